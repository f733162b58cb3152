"""How the node of ``join`` ends, written down for 'p2pgrid why me' when no node is there to be asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from p2pgrid.errors import P2PGridError
from p2pgrid.model.reasons import Reason
from p2pgrid_cli.common import size_text, wall_ms

if TYPE_CHECKING:
    from p2pgrid.store.home import Home


class Ending:
    """What is known of the end so far."""

    def __init__(self) -> None:
        self.started = False
        """Whether the node was ready."""
        self.text = "it was stopped, by p2pgrid leave or a signal"


@contextmanager
def noted(home: Home, *, keeps: bool) -> Iterator[Ending]:
    """Note how the block ends, in a home that is locked. ``keeps`` False: the node serves one command, and nobody asks for it."""
    from p2pgrid.store.lastend import LastEnd, note_end

    ending = Ending()

    def note(*, failed: bool, reason: str = "", text: str = "", hint: str = "") -> None:
        if keeps:
            note_end(home, LastEnd(wall_ms(), failed, reason, text, hint, ending.started))

    try:
        yield ending
    except P2PGridError as error:
        if error.reason == Reason.DISK_FULL:
            error.hint = _full(home)
        note(failed=True, reason=str(error.reason), text=error.message, hint=error.hint)
        raise
    except Exception as error:
        note(failed=True, reason=Reason.BUG, text=f"a bug: {type(error).__name__}: {error}", hint="report it, with node.log")
        raise
    except BaseException:
        note(failed=False, text="it was interrupted with Ctrl-C")
        raise
    note(failed=False, text=ending.text)


def _full(home: Home) -> str:
    from p2pgrid.store.disk import Disk

    free_bytes = Disk().free_bytes_at(home.folder)
    left = f", which has {size_text(free_bytes)} left" if free_bytes is not None else ""
    return f"free some space on the disk of '{home.folder}'{left}, or choose another with --home"
