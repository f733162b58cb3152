"""What ``watch`` says of a job where there is no terminal: a line whenever something changed, and each failure as it comes."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from p2pgrid.model.ids import short
from p2pgrid_cli.common import print_line
from p2pgrid_cli.dashboard.lines import printable

if TYPE_CHECKING:
    from p2pgrid.wire.faces import FailureLine, JobPicture
    from p2pgrid.wire.owner import FollowEvent, JobLine

LINE_EVERY_S = 1.0
TOLD_MAX = 4096
"""Failures that are remembered as told."""


def summary(line: JobLine) -> str:
    """How far a job is, in a line."""
    parts = [f"{line.done} of {line.units} units done"]
    parts += [f"{line.failed} failed"] if line.failed else []
    parts += [f"{line.disputed} disputed"] if line.disputed else []
    parts += [f"led by {short(line.lead)}"] if line.lead and line.state == "running" else []
    parts += [f"{len(line.keepers)} keepers"] if line.state == "running" else []
    return f"{line.state}: " + ", ".join(parts)


def failure_text(failure: FailureLine) -> str:
    """A failure in a line."""
    where = f" at {short(failure.node)}" if failure.node else ""
    again = "" if failure.final else ", it is tried again"
    return f"unit {failure.unit} failed{where} ({printable(failure.reason)}){again}: {printable(failure.text, 400)}"


class Telling:
    """Prints what is new, the summary at most once a second."""

    def __init__(self) -> None:
        self._last = ""
        self._note = ""
        self._next_s = 0.0
        self._told: OrderedDict[tuple[int, bytes, str, bool], None] = OrderedDict()

    def event(self, event: FollowEvent) -> None:
        """News of the job."""
        if event.note and event.note != self._note and not event.end:
            print_line(printable(event.note, 400))
        self._note = event.note
        text = summary(event.line)
        if text != self._last and (event.end or time.monotonic() >= self._next_s):
            self._last, self._next_s = text, time.monotonic() + LINE_EVERY_S
            print_line(text)

    def picture(self, picture: JobPicture) -> None:
        """The newest failures, each once."""
        for failure in picture.failures:
            key = (failure.unit, failure.node, failure.reason, failure.final)
            if key not in self._told:
                print_line(failure_text(failure))
            self._told[key] = None
            self._told.move_to_end(key)
        while len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)
