"""What Ctrl-C does: it ends the process where it stands, until there is something to put in order; then it is an exception.

An exception that comes while modules are imported may be dropped (in a callback that the interpreter calls), or come out as
another one, or leave a coroutine that nobody awaits. So nothing but the end of the process may come of it there.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # As in typing, which takes longer to import than all that is needed here.
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
STOPPED = b"stopped\n"


def end_at_once() -> None:
    """From here on Ctrl-C ends the process. Where it is ignored, or somebody else's, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        try:
            signal.signal(signal.SIGINT, _end)
        except ValueError:
            return  # Not the main thread: nobody interrupts it.


def raise_them() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, if it ended the process before: import first what is needed."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, STOPPED)
    os._exit(INTERRUPTED)
