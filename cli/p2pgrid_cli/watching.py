"""What ``watch`` says of a job, as plain lines where there is no terminal: a line whenever something changed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from p2pgrid_cli.common import print_line

if TYPE_CHECKING:
    from p2pgrid.wire.owner import FollowEvent, JobLine
    from p2pgrid_cli.progress import Progress

LINE_EVERY_S = 1.0


def summary(line: JobLine) -> str:
    """How far a job is, in a line."""
    from p2pgrid.model.ids import short

    parts = [f"{line.done} of {line.units} units done"]
    parts += [f"{line.failed} failed"] if line.failed else []
    parts += [f"{line.disputed} disputed"] if line.disputed else []
    parts += [f"led by {short(line.lead)}"] if line.lead and line.state == "running" else []
    parts += [f"{len(line.keepers)} keepers"] if line.state == "running" else []
    return f"{line.state}: " + ", ".join(parts)


class Telling:
    """Hands news to the progress line of a terminal, else prints lines, at most one a second."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last = ""
        self._next_s = 0.0

    def event(self, event: FollowEvent) -> None:
        """News of the job."""
        self._progress.event(event)
        text = summary(event.line)
        if text != self._last and (event.end or (not self._progress.live and time.monotonic() >= self._next_s)):
            self._last, self._next_s = text, time.monotonic() + LINE_EVERY_S
            print_line(text)
