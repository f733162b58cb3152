"""Ending all that a command started, so that nothing of it outlives its unit.

This process adopts whatever loses its parent below it, so all of it can be found. Where the kernel can say "everybody I may signal" and
that means the cage and nobody else, one signal ends them all at once, however fast they multiply: as the first process of
a pid namespace; or under Landlock, when the kernel is seen to keep signals inside. Else they are ended one by one, again and again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import FrameType

from . import frames

_END_S = 5.0
"""How long to go on ending what comes anew, and to wait for what was killed."""
_PAUSE_S = 0.0005
"""A killed process is gone within microseconds, unless the disk holds it."""
_EVENT_BYTES = 4096
_LISTING_BYTES = 1 << 16


class Descendants:
    """All that descends from this process. Make it before the process is confined: its own part of /proc is closed to it later."""

    def __init__(self) -> None:
        self._process_id = os.getpid()
        self._listing = _open_listing()
        self._parent = os.getppid()
        self._parent_user = _user_of(self._parent)
        self._scoped = _keeps_signals_inside()
        self._all_at_once = False
        self.ended = -1
        """Readable when a child has ended."""

    def enter(self, cage: frames.Cage) -> None:
        """Find out how to end them, once the process is confined."""
        self.ended = _open_child_events()
        if os.getpid() != self._process_id:
            self._forget_listing()  # It speaks of the process this one was forked from.
            self._listing = _open_listing() if cage.level == "bare" else -1
        if cage.level == "namespaces":
            self._all_at_once = os.getpid() == 1
        elif cage.level == "landlock" and (self._scoped or cage.uid):
            own_user = bool(cage.uid) and os.getuid() == os.geteuid() == cage.uid
            # Only a refusal for the cage's sake counts: a parent of the same user could be signalled otherwise.
            same_user = not cage.uid and self._parent_user == os.getuid()
            self._all_at_once = (own_user or same_user) and not _can_signal(self._parent)

    def end(self) -> None:
        """Kill and reap until none is left. Ends this process when that takes too long: with it, all goes that it started."""
        give_up = time.monotonic() + _END_S
        while time.monotonic() < give_up:
            for process_id in (-1,) if self._all_at_once else self._children():
                _kill(process_id)
            if not self._reap_ended():
                return
            time.sleep(_PAUSE_S)
        os._exit(1)

    def reap(self, command: int) -> None:
        """Let go of adopted processes that have ended by themselves; ``command`` is left for its own waiter.

        While they wait for it they count as processes of the command, which may leave many short ones behind.
        """
        with contextlib.suppress(BlockingIOError):
            os.read(self.ended, _EVENT_BYTES)
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid == command:
                    return
                os.waitpid(ended.si_pid, os.WNOHANG)
            except OSError:
                return

    def _reap_ended(self) -> bool:
        """Let go of those that are over. False when this process has no children any more, and so no descendants."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return False
        return True

    def _children(self) -> list[int]:
        if self._listing < 0:
            return []
        try:
            return [int(word) for word in os.pread(self._listing, _LISTING_BYTES, 0).split()]
        except (OSError, ValueError):
            return []

    def _forget_listing(self) -> None:
        if self._listing >= 0:
            os.close(self._listing)
            self._listing = -1


def _open_child_events() -> int:
    """A pipe that gets a byte when a child ends."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _note)
    return reader


def _note(number: int, frame: FrameType | None) -> None:
    """A signal is only written to the pipe when somebody handles it."""


def _open_listing() -> int:
    """The list of own children, open: it cannot be opened from inside of a cage."""
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _user_of(process_id: int) -> int:
    try:
        return os.stat(f"/proc/{process_id}").st_uid
    except OSError:
        return -1


def _keeps_signals_inside() -> bool:
    """Whether a Landlock cage of this kernel does."""
    if sys.platform != "linux":
        return False
    from ..sandbox import landlock

    return landlock.abi() >= landlock.SIGNAL_SCOPE_ABI


def _can_signal(process_id: int) -> bool:
    """Whether a process can be signalled, or is gone so that nothing is known. Sends nothing."""
    try:
        os.kill(process_id, 0)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def _kill(process_id: int) -> None:
    try:
        os.kill(process_id, signal.SIGKILL)
    except OSError:
        return
