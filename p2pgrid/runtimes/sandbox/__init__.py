"""What a process that runs foreign code does to itself before it does so.

``rlimits`` is used by every worker today. Beside it will stand: ``landlock`` and ``seccomp`` (the allow-lists of files and system calls),
``namespaces`` (an addition where the kernel lets us), and ``selftest`` (the attacks a node runs against its own sandbox
at start; a runtime is offered only when all of them fail). Everything here is loaded inside the worker by path: standard library
only, relative imports only, and ctypes instead of compiled helpers.
"""
