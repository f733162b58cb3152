"""The limits a process puts on itself, and its tie to the life of its parent.

Applied by the process itself after it was started: the parent has threads, so it must not run Python between
fork and exec. Hard limits are set together with the soft ones, so they cannot be raised again.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

from . import kernel

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_ADDRESS_SLACK_BYTES = 768 << 20
"""Libraries and thread stacks that are mapped and not touched."""
_LOCKED_BYTES = 64 << 10
_PENDING_SIGNALS = 256
_STACK_BYTES_MAX = 64 << 20
"""Where the system has no limit for it; memory of a stack is not counted as data."""
_LINUX_ONLY = (("RLIMIT_MEMLOCK", _LOCKED_BYTES), ("RLIMIT_MSGQUEUE", 0), ("RLIMIT_SIGPENDING", _PENDING_SIGNALS))


def limit_resources(
    *, file_bytes_max: int, open_files_max: int, memory_bytes: int = 0, address_space: bool = False, processes_max: int = 0
) -> None:
    """No core files, and bounds on file size, open files, locked memory, queues and private memory (bytes; 0 leaves memory free).

    ``address_space``: bound it too; a wasm engine reserves far more than it uses. ``processes_max``: processes and threads of this
    user, 0 for any; only where nobody else is this user.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes_max)
    _limit(resource.RLIMIT_NOFILE, open_files_max)
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    _limit(resource.RLIMIT_STACK, min(soft, _STACK_BYTES_MAX) if soft != resource.RLIM_INFINITY else _STACK_BYTES_MAX)
    for name, value in _LINUX_ONLY:
        if hasattr(resource, name):
            _limit(getattr(resource, name), value)
    if memory_bytes:
        # DATA counts private writable memory and nothing else: AS counts every mapped library, so it gets slack.
        _limit(resource.RLIMIT_DATA, memory_bytes)
        if address_space:
            _limit(resource.RLIMIT_AS, memory_bytes + _ADDRESS_SLACK_BYTES)
    if processes_max:
        _limit(resource.RLIMIT_NPROC, processes_max)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bounded, bounded))


def lower_priority(nice: int) -> None:
    """Give way to the owner of the machine. Never raises: a machine that forbids it still runs units."""
    try:
        os.nice(nice)
    except OSError:
        return


def die_with_parent(parent_id: int, *, by: int = signal.SIGKILL) -> bool:
    """Have the kernel send ``by`` when the parent ends, kill -9 included (Linux only; elsewhere the closed channel ends us).

    False when the parent is gone already: it may have died before the kernel was asked. A change of the user undoes it.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    return os.getppid() == parent_id


def forbid_new_privileges() -> None:
    """From here on no setuid program raises what this process may do."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ended, so that they can be found and ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        kernel.prctl(option, value)
