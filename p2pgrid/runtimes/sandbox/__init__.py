"""What a process that runs foreign code does to itself before it does so.

``cage`` puts all walls up in order and tries each: ``namespaces``, ``identity``, ``rlimits``, ``landlock``, ``seccomp`` (with ``bpf``
and ``syscalls``); ``relay`` waits outside for those that run commands. ``abilities`` is the node's side: which of it this machine can.
Everything here is loaded inside the worker by path: standard library only, relative imports only, and ctypes instead of compiled helpers.
"""
