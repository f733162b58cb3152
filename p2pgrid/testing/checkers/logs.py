"""What nodes log as an error: a bug, unless the simulation gave it a cause.

A line is excused only by a cause that was registered for its own machine, within the last minute or while the fault lasts,
and that names words of the line. So a fault on one machine hides no bug on another.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.observe import Onlooker

CAUSE_S = 60.0
"""For how long after a fault its errors may be logged."""
LOGGERS = ("p2pgrid", "asyncio")
WORDS: dict[str, tuple[str, ...]] = {
    "full-disk": ("no space left", "disk is full", "disk full", "disk i/o error", "cannot be written"),
    "bad-disk": ("input/output error", "disk i/o error", "the disk", "cannot be written"),
    "rot": ("corrupt", "damaged", "does not match"),
}
"""By kind of fault: words of which a line must contain one to be excused by it, in any case of letters."""


class LogChecker(Onlooker):
    """Collects the errors of all nodes. :meth:`listen` before the run, :meth:`stop` behind it."""

    invariant = "log"

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._facts = facts
        self._causes: dict[str, list[tuple[float, tuple[str, ...]]]] = {}
        self._handler: logging.Handler | None = None
        self.excused = 0
        """Errors that had a cause."""

    # -- causes ------------------------------------------------------------------------

    def expect(self, name: str, kind: str, for_s: float = 0.0, words: Sequence[str] = ()) -> None:
        """A fault strikes a machine now and lasts ``for_s`` seconds: lines with ``words`` (those of its kind) have a cause."""
        chosen = tuple(word.lower() for word in (words or WORDS.get(kind, ())))
        self._causes.setdefault(name, []).append((self.view.now + for_s + CAUSE_S, chosen))

    def _excuses(self, name: str, text: str) -> bool:
        lower = text.lower()
        return any(until_s >= self.view.now and any(word in lower for word in words) for until_s, words in self._causes.get(name, ()))

    # -- lines ---------------------------------------------------------------------------

    def note(self, name: str, text: str) -> None:
        """An error of a machine."""
        if self._excuses(name, text):
            self.excused += 1
        else:
            self.violate(name or "grid", text[:2000])

    def on_loop_error(self, name: str, context: Mapping[str, Any]) -> None:
        """For the exception handler of a machine's loop: what asyncio could not give to anybody."""
        self.note(name, f"asyncio: {context.get('message', '')}{_told(context.get('exception'))}")

    def listen(self) -> None:
        """Hear the loggers from now on."""
        if self._handler is None:
            self._handler = _Handler(self)
            for name in LOGGERS:
                logging.getLogger(name).addHandler(self._handler)

    def stop(self) -> None:
        """Hear them no more."""
        if self._handler is not None:
            for name in LOGGERS:
                logging.getLogger(name).removeHandler(self._handler)
            self._handler = None

    def on_record(self, record: logging.LogRecord) -> None:
        """A line of one of the loggers."""
        error = record.exc_info[1] if record.exc_info else None
        self.note(self._facts.machine(), f"{record.name}: {record.getMessage()}{_told(error)}")


def _told(error: BaseException | None) -> str:
    """An exception with the last places it passed; file names without their folders."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames]
    return f" {type(error).__name__}: {error} ({', '.join(places)})"


class _Handler(logging.Handler):
    def __init__(self, checker: LogChecker) -> None:
        super().__init__(logging.ERROR)
        self._checker = checker

    def emit(self, record: logging.LogRecord) -> None:
        self._checker.on_record(record)
