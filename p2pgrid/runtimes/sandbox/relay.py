"""The process between the node and a runner of commands: it waits outside of the cage, ends all that is left, and ends the same way.

Inside of a pid namespace the runner is the init: with it goes everything. Where there is none, this process adopts what the runner leaves
behind, and ends it. It runs no foreign code and holds nothing of the protocol.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from . import rlimits

_SWEEPS_MAX = 1000


def fork(parent_id: int, before_fork: Callable[[], int]) -> None:
    """Return in the child, which goes on; the caller stays behind as the relay and never returns.

    ``before_fork`` gives a file that only the relay keeps open, so that the child can tell whether it still lives. Raises OSError.
    """
    kept = before_fork()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child == 0:
        os.close(kept)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return
    try:
        _stand_by(child, kept, parent_id)
    finally:
        os._exit(1)


def _stand_by(child: int, kept: int, parent_id: int) -> NoReturn:
    def end(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)

    rlimits.adopt_orphans()
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if not rlimits.die_with_parent(parent_id, by=signal.SIGTERM):
        end(0, None)
    rlimits.forbid_new_privileges()
    _close_all_but(kept)
    # It is not reaped before what it left is ended: until then nobody else can get its number.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    _end_descendants(child)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _close_all_but(kept: int) -> None:
    os.closerange(0, kept)
    os.closerange(kept + 1, 4096)


def _end_descendants(child: int) -> None:
    """Kill and reap what the child left to us, until there is nothing but the child itself, dead and not reaped."""
    for _ in range(_SWEEPS_MAX):
        left = [process_id for process_id in _children() if process_id != child]
        if not left:
            return
        for process_id in left:
            with contextlib.suppress(OSError):
                os.kill(process_id, signal.SIGKILL)
                os.waitpid(process_id, 0)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listing:
            return [int(word) for word in listing.read().split()]
    except OSError:
        return []
