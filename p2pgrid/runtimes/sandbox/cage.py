"""Putting a process into its cage: all walls in the one order that works, each tried afterwards. One that does not stand ends the process.

The order: namespaces (they need rights that go away), the pid namespace by a fork, the root, the user, the capabilities, limits, the tie to
the parent (a change of the user undoes it), no new privileges, Landlock, the filter of system calls. Nothing of the job is there yet, and
the process has one thread: what it does here holds for all that come.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from . import identity, kernel, landlock, namespaces, relay, rlimits, seccomp

FAILED = 77
"""The exit status of a process whose cage does not stand."""
_PR_SET_DUMPABLE, _PR_GET_SECCOMP, _PR_GET_NO_NEW_PRIVS = 4, 21, 39
_THREADS_MAX = 512
_UCOUNTS_RELEASE = (5, 14)
"""From this kernel on processes are counted for each user namespace."""


class CageError(Exception):
    """A wall cannot be raised or does not stand; the text says which."""


class Plan(NamedTuple):
    """What to confine, and how. ``level``, ``kind``, ``user`` and ``read`` as in the cage that the node ordered."""

    level: str
    kind: str
    user: int
    read: list[str]
    folder: str
    """The private folder, without links in its path: ``scratch``, ``outbox`` and ``inputs`` writable, the rest readable."""
    file_bytes_max: int
    open_files_max: int
    memory_bytes: int
    nice: int = 0
    processes_max: int = 64
    """How many processes and threads a command may have at one time, where the kernel can count them."""


def confine(plan: Plan, parent_id: int) -> None:
    """Everything that must hold before the job's first line runs; level ``bare`` gets limits only. Ends the process when it fails."""
    try:
        if plan.level == "bare":
            _confine_barely(plan, parent_id)
            return
        user = _confine(plan, parent_id)
        _verify(plan, user, parent_id)
    except (OSError, CageError, KeyError) as error:
        _fail(f"the cage does not stand: {error}")


def _fail(why: str) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"{why}\n".encode("utf-8", "backslashreplace"))
    os._exit(FAILED)


def _confine_barely(plan: Plan, parent_id: int) -> None:
    tie = _Tie(parent_id)
    if plan.kind == "command" and sys.platform == "linux":
        _fork(tie)
    tie.hold()
    _limit(plan, counted=False)
    rlimits.forbid_new_privileges()


def _fork(tie: _Tie) -> None:
    """Go on in a child, behind a relay; what loses its parent below it is its own."""
    relay.fork(tie.parent_id, tie.before_fork)
    rlimits.adopt_orphans()


def _confine(plan: Plan, parent_id: int) -> int:
    """Put up all walls. Gives the user that this process must be afterwards; 0 when it is no other than before."""
    if sys.platform != "linux":
        raise CageError("there is no cage on this system")
    if plan.level not in ("namespaces", "landlock"):
        raise CageError(f"there is no level {plan.level!r}")
    if os.geteuid() == 0 and not plan.user:
        raise CageError("a cage of root needs a user to become")
    version = landlock.abi()
    in_user_namespace = False
    if plan.level == "namespaces":
        in_user_namespace = _leave_namespaces(plan)
    tie = _Tie(parent_id)
    if plan.kind == "command":
        _fork(tie)
    if plan.level == "namespaces":
        namespaces.enter_root(plan.folder, plan.read, runs_programs=plan.kind == "command")
    with contextlib.suppress(OSError):  # Inside of a user namespace it may be refused, and there is nothing left to drop outside of it.
        identity.drop_bounding_set()
    if plan.user and os.geteuid() == 0:
        identity.become(plan.user)
    identity.drop_capabilities()
    _limit(plan, counted=bool(plan.user) or (in_user_namespace and _release() >= _UCOUNTS_RELEASE))
    if plan.user:
        kernel.prctl(_PR_SET_DUMPABLE, 0)
    tie.hold()
    rlimits.forbid_new_privileges()
    _raise_landlock(plan)
    metadata = plan.level == "namespaces" or bool(plan.user)
    profile = seccomp.Profile(plan.kind, os.getpid(), metadata, version >= landlock.TRUNCATE_ABI)
    seccomp.install(seccomp.filter_for(profile, os.uname().machine))
    return namespaces.NOBODY if plan.user and in_user_namespace else plan.user


def _leave_namespaces(plan: Plan) -> bool:
    """True when that took a user namespace."""
    command = plan.kind == "command"
    if os.geteuid() == 0:
        try:
            namespaces.separate(processes=command, privileged=True)
            return False
        except PermissionError:
            # A root without the right to do so, as in most containers: an ordinary user may have it.
            identity.drop_bounding_set()
            identity.become(plan.user)
    namespaces.separate(processes=command, privileged=False)
    return True


class _Tie:
    """Dies with the node, across a fork into a pid namespace, where a parent outside has no number."""

    def __init__(self, parent_id: int) -> None:
        self.parent_id = parent_id
        self._reader = -1

    def before_fork(self) -> int:
        """The end of a pipe for the parent-to-be to hold: it closes when that one ends."""
        self._reader, writer = os.pipe()
        return writer

    def hold(self) -> None:
        """Be killed with the parent from now on. Call behind the last change of the user."""
        if self._reader < 0:
            if not rlimits.die_with_parent(self.parent_id):
                os._exit(0)
            return
        rlimits.die_with_parent(0)
        watch = select.poll()
        watch.register(self._reader, select.POLLIN)
        if watch.poll(0):
            os._exit(0)
        os.close(self._reader)


def _limit(plan: Plan, *, counted: bool) -> None:
    """``counted``: nobody outside of the cage counts as this user."""
    rlimits.lower_priority(plan.nice)
    processes_max = (plan.processes_max + 1 if plan.kind == "command" else _THREADS_MAX) if counted else 0
    rlimits.limit_resources(
        file_bytes_max=plan.file_bytes_max,
        open_files_max=plan.open_files_max,
        memory_bytes=plan.memory_bytes,
        address_space=plan.level != "bare" and plan.kind != "engine",
        processes_max=processes_max,
    )


def _raise_landlock(plan: Plan) -> None:
    rules = landlock.Ruleset()
    if plan.kind == "command" and plan.level == "landlock" and rules.abi < landlock.SIGNAL_SCOPE_ABI and not plan.user:
        raise CageError("a command could signal the owner's processes on this kernel")
    for path in plan.read:
        rules.allow(path, landlock.READ)
    rules.allow("/dev/null", landlock.READ_FILE | landlock.WRITE_FILE | landlock.TRUNCATE)
    for path in namespaces.DEVICES:
        rules.allow(path, landlock.READ_FILE)
    rules.allow(plan.folder, landlock.READ_FILE | landlock.READ_DIR)
    run = landlock.EXECUTE if plan.kind == "command" else 0
    for name in ("scratch", "outbox", "inputs"):
        rules.allow(os.path.join(plan.folder, name), landlock.WRITE | run)
    rules.restrict()


def _verify(plan: Plan, user: int, parent_id: int) -> None:
    """Try what must fail; ``user``: who this process must be. Raises CageError for a wall that lets it through."""
    problem = namespaces.stands() if plan.level == "namespaces" else ""
    if not problem and user and {*os.getresuid(), *os.getresgid()} != {user}:
        problem = "the user was not changed"
    if not problem and (identity.capabilities() or (os.getgroups() and user)):
        problem = "it kept rights"
    if not problem and kernel.prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        problem = "it may gain privileges"
    if not problem and kernel.prctl(_PR_GET_SECCOMP) != 2:
        problem = "there is no filter of system calls"
    problem = problem or _first_open_way(plan, parent_id)
    if problem:
        raise CageError(problem)


def _first_open_way(plan: Plan, parent_id: int) -> str:
    refused = (errno.EACCES,)
    libc = kernel.libc()
    ways: list[tuple[str, Callable[[], object], tuple[int, ...]]] = [
        ("files outside can be listed", lambda: os.listdir("/"), refused),
        ("its folder can be changed", lambda: os.mkdir(os.path.join(plan.folder, "open")), refused),
        ("what was given can be changed", lambda: os.mkdir(os.path.join(plan.folder, "given", "open")), (errno.EACCES, errno.EROFS)),
        ("sockets can be made", lambda: kernel.checked(libc.socket(2, 1, 0), "socket"), refused),
        ("namespaces can be made", lambda: kernel.checked(libc.unshare(0), "unshare"), (errno.EPERM,)),
        ("the parent can be signalled", lambda: os.kill(parent_id, 0), (errno.EPERM, errno.ESRCH)),
    ]
    for problem, attempt, numbers in ways:
        try:
            attempt()
        except OSError as error:
            if error.errno in numbers:
                continue
            return f"{problem}, or it failed in another way: {error}"
        return problem
    return ""


def _release() -> tuple[int, int]:
    """The version of the kernel, (0, 0) when it does not say."""
    words = os.uname().release.split(".")
    try:
        return int(words[0]), int("".join(digit for digit in words[1][:3] if digit.isdigit()))
    except (IndexError, ValueError):
        return 0, 0
