"""One progress line on stderr, with rate and time left; silent when stderr is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from p2pgrid_cli.common import say

if TYPE_CHECKING:
    from p2pgrid.model.ids import JobId
    from p2pgrid.wire.owner import FollowEvent


class Progress:
    """Use as a context manager; every method is harmless without a terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._said = ""
        self.job: JobId | None = None

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=sys.stderr), transient=True, refresh_per_second=4)
            self._bar.start()
            self._task = self._bar.add_task("preparing", total=None, rate="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def live(self) -> bool:
        """Whether there is a terminal to show it on."""
        return self._bar is not None

    def stop(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _update(self, **fields: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, **fields)

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            say(text)

    def reading(self, count: int) -> None:
        """Items read so far."""
        self._update(description="reading items", completed=count)

    def sending(self, number: int, total: int) -> None:
        """Input files stored so far."""
        self._update(description="storing inputs", completed=number, total=total)

    def submitted(self, job: JobId, units: int) -> None:
        """The job has an id."""
        from p2pgrid.model.ids import short

        self.job = job
        self._update(description=f"job {short(job)}", completed=0, total=units)

    def event(self, event: FollowEvent) -> None:
        """News of the job."""
        line = event.line
        if event.note and event.note != self._said and not event.end:
            self.note(event.note)
        self._said = event.note
        parts = [f"{event.running} leases"] if event.running else []
        parts += [f"{line.failed} failed"] if line.failed else []
        parts += [f"{line.disputed} disputed"] if line.disputed else []
        self._update(completed=line.done + line.failed, total=line.units, rate=self._rate() + ", ".join(parts))

    def seeds(self, done: int, total: int) -> None:
        """Seeds of a simulation that have ended so far."""
        self._update(description="seeds", completed=done, total=total)

    def step(self, text: str) -> None:
        """What is being done now, where nothing can be counted."""
        self._update(description=text)

    def _rate(self) -> str:
        if self._bar is None:
            return ""
        speed = self._bar.tasks[0].speed
        return f"{speed:,.0f}/s " if speed else ""


class TransferProgress:
    """Bytes that move, with their rate and the time left; silent when stderr is no terminal."""

    def __init__(self, *, to_stdout: bool = False) -> None:
        """``to_stdout``: the content itself goes to stdout, and nothing is shown if that is the same terminal."""
        self._live = sys.stderr.isatty() and not (to_stdout and sys.stdout.isatty())
        self._bar: Any = None
        self._task: Any = None
        self._what = ""

    def __enter__(self) -> TransferProgress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=sys.stderr), transient=True, refresh_per_second=4)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def more(self, what: str, more_bytes: int, size_bytes: int) -> None:
        """So many bytes more were moved; another ``what`` begins a new line."""
        if self._bar is None:
            return
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._what = self._bar.add_task(what, total=size_bytes), what
        self._bar.update(self._task, advance=more_bytes, total=size_bytes or None)
