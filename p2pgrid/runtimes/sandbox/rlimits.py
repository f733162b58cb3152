"""The limits a process puts on itself, and its tie to the life of its parent.

Applied by the process itself after it was started: the parent has threads, so it must not run Python between
fork and exec. Hard limits are set together with the soft ones, so they cannot be raised again.
"""

from __future__ import annotations

import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38


def limit_resources(*, file_bytes_max: int, open_files_max: int, memory_bytes: int = 0) -> None:
    """No core files, and bounds on file size, open files and private memory (bytes; 0 leaves memory free)."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, file_bytes_max)
    _limit(resource.RLIMIT_NOFILE, open_files_max)
    if memory_bytes:
        # DATA counts private writable memory and nothing else: AS would count every mapped library and break wasm engines.
        _limit(resource.RLIMIT_DATA, memory_bytes)


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

    False when the parent is gone already: it may have died before the kernel was asked.
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
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}) failed: {os.strerror(number)}")
