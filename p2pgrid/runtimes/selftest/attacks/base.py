"""What an attack is, and how one is attempted: gained, refused, or broken. Nothing that was not clearly refused counts as held."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

Canary = dict[str, Any]
"""What the host prepared as targets: paths, numbers and addresses."""

GAINED, REFUSED, BROKEN, ABSENT = "gained", "refused", "broken", "absent"

USUAL = (errno.EPERM, errno.EACCES, errno.ENOSYS)
"""How cages refuse system calls and files."""
HIDDEN = (*USUAL, errno.ENOENT, errno.EROFS)
"""How a file is refused that the cage does not show at all."""


class Refused(Exception):
    """What was looked for is not there."""


class Absent(Exception):
    """This machine has no such thing to attack."""


class Attack(NamedTuple):
    """One attempt, and what counts as refused."""

    name: str
    run: Callable[[Canary], Any]
    refusals: tuple[int, ...]
    errors: tuple[type[BaseException], ...]
    """Exceptions other than OSError that are refusals: a memory error of a memory bomb."""
    ends: bool
    """Whether it also counts as held when the process is ended over it."""
    spoils: bool
    """Whether the process is not what it was afterwards: nothing else is to be attempted in it."""
    commands: bool
    """Whether a command must not be able to do it either."""
    control: str
    """Where it succeeds without a cage: for ``anybody``, for ``root``, in a ``plain`` child that inherits the environment and files, or
    ``nowhere``: the pool itself refuses it, cage or not."""
    accepted: tuple[str, ...]
    """Levels that are known not to hold it: ``landlock``, or ``command-landlock`` for that of commands only."""

    def is_accepted(self, runtime: str, level: str) -> bool:
        """Whether the cage of a runtime at a level is known not to hold it."""
        return level in self.accepted or f"{runtime}-{level}" in self.accepted


ATTACKS: dict[str, Attack] = {}


def attack(
    *refusals: int,
    errors: tuple[type[BaseException], ...] = (),
    ends: bool = False,
    spoils: bool = False,
    commands: bool = True,
    control: str = "anybody",
    accepted: tuple[str, ...] = (),
) -> Callable[[Callable[[Canary], Any]], Callable[[Canary], Any]]:
    """Add a function to the attacks, under its own name with hyphens."""

    def add(run: Callable[[Canary], Any]) -> Callable[[Canary], Any]:
        name = run.__name__.replace("_", "-")
        ATTACKS[name] = Attack(name, run, refusals or USUAL, (Refused, *errors), ends, spoils, commands, control, accepted)
        return run

    return add


def attempt(name: str, canary: Canary) -> tuple[str, Any]:
    """(what came of it, detail) of one attack."""
    chosen = ATTACKS[name]
    try:
        return GAINED, chosen.run(canary)
    except Absent as missing:
        return ABSENT, str(missing)
    except chosen.errors as error:
        return REFUSED, f"{type(error).__name__}: {error}"[:200]
    except OSError as error:
        verdict = REFUSED if error.errno in chosen.refusals else BROKEN
        return verdict, f"{errno.errorcode.get(error.errno or 0, 'OSError')}: {error}"[:200]
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        return BROKEN, f"{type(error).__name__}: {error}"[:200]


def tokens_in(data: bytes, canary: Canary) -> str:
    """Say that the secret was found in some bytes. Raises Refused when it is not there."""
    if canary["token"].encode() in data:
        return "the secret was read"
    raise Refused("it does not hold the secret")


def pause(seconds: float) -> None:
    """Wait, so that a watchdog has the time it needs."""
    import select

    select.select([], [], [], seconds)


# System calls by number: many have no function of their own, and a filter sees the number alone.
_X86_64 = {
    "add_key": 248, "bpf": 321, "chroot": 161, "clone": 56, "execve": 59, "execveat": 322, "fanotify_init": 300, "init_module": 175,
    "inotify_init1": 294, "ioprio_set": 251, "kexec_load": 246, "keyctl": 250, "memfd_create": 319, "mount": 165, "mq_open": 240,
    "open_by_handle_at": 304, "perf_event_open": 298, "personality": 135, "pivot_root": 155, "prlimit64": 302, "process_vm_readv": 310,
    "process_vm_writev": 311, "ptrace": 101, "quotactl": 179, "request_key": 249, "rt_sigqueueinfo": 129, "sched_setaffinity": 203,
    "setns": 308, "shmget": 29, "tgkill": 234, "umount2": 166, "unshare": 272, "userfaultfd": 323,
}  # fmt: skip
_AARCH64 = {
    "add_key": 217, "bpf": 280, "chroot": 51, "clone": 220, "execve": 221, "execveat": 281, "fanotify_init": 262, "init_module": 105,
    "inotify_init1": 26, "ioprio_set": 30, "kexec_load": 104, "keyctl": 219, "memfd_create": 279, "mount": 40, "mq_open": 180,
    "open_by_handle_at": 265, "perf_event_open": 241, "personality": 92, "pivot_root": 41, "prlimit64": 261, "process_vm_readv": 270,
    "process_vm_writev": 271, "ptrace": 117, "quotactl": 60, "request_key": 218, "rt_sigqueueinfo": 138, "sched_setaffinity": 122,
    "setns": 268, "shmget": 194, "tgkill": 131, "umount2": 39, "unshare": 97, "userfaultfd": 282,
}  # fmt: skip
_BOTH = {
    "clone3": 435, "fsopen": 430, "io_uring_setup": 425, "memfd_secret": 447, "mount_setattr": 442, "move_mount": 429, "open_tree": 428,
    "pidfd_getfd": 438, "pidfd_open": 434, "pidfd_send_signal": 424, "process_madvise": 440,
}  # fmt: skip
_NUMBERS = {"x86_64": _X86_64, "aarch64": _AARCH64}


def system_call(name: str, *arguments: Any) -> int:
    """Make a call of the system. Raises OSError when it fails, Absent on a processor whose numbers are not known here."""
    table = _NUMBERS.get(platform.machine())
    if table is None or sys.platform != "linux":
        raise Absent(f"no system call numbers for {platform.machine()}")
    number = _BOTH.get(name) or table[name]
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    result = int(library.syscall(ctypes.c_long(number), *words))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
