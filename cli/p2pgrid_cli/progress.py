"""One line on stderr that says what is done now, how fast, and how much time is left; silent when stderr is no terminal.

1. The line never wraps: what has no room goes, the time first, what is done last.
2. It is drawn by a thread of its own, so that seconds go on while a command waits; nothing is shown of what takes no time.
3. Whatever else is printed meanwhile takes the line away first.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from p2pgrid_cli.aside import shows, shows_no_more
from p2pgrid_cli.common import say

if TYPE_CHECKING:
    from p2pgrid.model.ids import JobId
    from p2pgrid.wire.owner import FollowEvent
    from p2pgrid_cli.dashboard.lines import Glyphs, Line

DRAW_S = 0.25
AFTER_S = 0.5
"""A line appears when something takes longer than this."""
WINDOW_S = 15.0
"""A rate is taken over so many seconds."""
BAR_CELLS_MIN, BAR_CELLS_MAX, BAR_OF = 8, 30, 6
"""A bar is the sixth part of the width, within bounds: it does not jump while figures change."""
ELAPSED_FROM_S = 2.0
FIGURES = re.compile(r"\d+")


class Status(NamedTuple):
    """What is shown. ``total`` 0: nothing can be counted, or nobody knows how much there will be."""

    what: str
    done: int = 0
    total: int = 0
    noun: str = ""
    """What is counted; ``bytes`` are shown as sizes."""
    rate: float = 0.0
    """Of what is counted, a second."""
    left_s: float = -1.0
    """Less than nothing: not known."""
    elapsed_s: float = 0.0
    more: str = ""
    timed: bool = True
    """False: ``what`` says for how long."""


def progress_line(status: Status, width: int, glyphs: Glyphs | None = None) -> str:
    """The line, at most ``width`` cells."""
    from p2pgrid_cli.dashboard.lines import UNICODE, Part, bar, duration, printable, rate, segments
    from p2pgrid_cli.watching.picture import percent

    glyphs = glyphs or UNICODE
    size = _size if status.noun == "bytes" else _count
    pieces: list[tuple[int, Line]] = [(0, (Part(printable(status.what, 200)),))]
    if status.total:
        share = min(1.0, status.done / status.total)
        cells = min(BAR_CELLS_MAX, max(BAR_CELLS_MIN, width // BAR_OF))
        pieces += [(3, (Part(bar(share, cells, glyphs)),)), (1, (Part(percent(share)),))]
        pieces.append((2, (Part(f"{size(status.done)} of {size(status.total)}"),)))
    elif status.done:
        pieces.append((1, (Part(size(status.done)),)))
    if status.rate > 0:
        pieces.append((5, (Part(f"{size(status.rate)}/s" if status.noun == "bytes" else f"{rate(status.rate)}/s"),)))
    if status.left_s >= 0 and status.done < status.total:
        pieces.append((4, (Part(f"{duration(status.left_s)} left"),)))
    elif status.timed and status.elapsed_s >= ELAPSED_FROM_S:
        pieces.append((4, (Part(duration(status.elapsed_s)),)))
    if status.more:
        pieces.append((6, (Part(status.more),)))
    return "".join(part.text for part in segments(pieces, width, ellipsis=glyphs.ellipsis))


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _size(size_bytes: float) -> str:
    from p2pgrid_cli.common import size_text

    return size_text(size_bytes)


class StatusLine:
    """The line on the terminal. Harmless without one."""

    def __init__(self, *, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb") if live is None else live
        self._status = Status("")
        self._samples: deque[tuple[float, int]] = deque(maxlen=64)
        self._began_s = 0.0
        self._first = 0
        """What was done when this began: it is no work of ours."""
        self._shown = ""
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def live(self) -> bool:
        """Whether there is a terminal to show it on, and something may still be shown."""
        return self._live and not self._ended.is_set()

    def start(self) -> None:
        if self._live:
            shows(self.aside)
            self._thread = threading.Thread(target=self._draw_often, name="progress", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Take the line away, for good."""
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        with self._lock:
            self._clear()
        shows_no_more(self.aside)

    def show(self, status: Status) -> None:
        """From now on this is done. The rate and the time left are found here unless they are given."""
        if not self._live:
            return
        with self._lock:
            now = time.monotonic()
            if FIGURES.sub("", status.what) != FIGURES.sub("", self._status.what) or status.done < self._status.done:
                self._began_s, self._first = now, status.done
                self._samples.clear()
            if not self._samples or now - self._samples[-1][0] >= WINDOW_S / 64:
                self._samples.append((now, status.done))
            self._status = status

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While something else is printed, the line is away."""
        with self._lock:
            self._clear()
            yield

    def _draw_often(self) -> None:
        while not self._ended.wait(DRAW_S):
            with self._lock:
                if not self._ended.is_set():
                    self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._status.what or now - self._began_s < AFTER_S:
            return
        text = progress_line(self._timed(now), max(1, _columns() - 1), _glyphs())
        if text != self._shown:
            with suppress(OSError, ValueError):
                sys.stderr.write(f"\r{text}\x1b[K")
                sys.stderr.flush()
            self._shown = text

    def _timed(self, now: float) -> Status:
        """The status with what time tells of it."""
        status = self._status._replace(elapsed_s=now - self._began_s)
        # Of what grows so slowly that nothing came lately, since it began.
        recent = [sample for sample in self._samples if now - sample[0] <= WINDOW_S and sample[1] < status.done]
        since_s, before = recent[0] if recent else (self._began_s, self._first)
        per_s = status.rate
        if not per_s and now - since_s > AFTER_S:
            per_s = (status.done - before) / (now - since_s)
        left_s = status.left_s
        if left_s < 0 and status.total and per_s > 0:
            left_s = max(0, status.total - status.done) / per_s
        return status._replace(rate=per_s, left_s=left_s)

    def _clear(self) -> None:
        if self._shown:
            with suppress(OSError, ValueError):
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._shown = ""


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _glyphs() -> Glyphs:
    from p2pgrid_cli.dashboard.lines import ASCII, UNICODE

    return UNICODE if (sys.stderr.encoding or "").lower().replace("-", "") == "utf8" else ASCII


class Progress:
    """Use as a context manager; every method is harmless without a terminal."""

    def __init__(self, *, live: bool | None = None) -> None:
        """``live``: whether there is a terminal to show it on; None: that of stderr, if it is one."""
        self._line = StatusLine(live=live)
        self._said = ""
        self.job: JobId | None = None

    def __enter__(self) -> Progress:
        self._line.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def live(self) -> bool:
        """Whether there is a terminal to show it on."""
        return self._line.live

    def stop(self) -> None:
        """Take the line away."""
        self._line.stop()

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        say(text)

    def step(self, text: str) -> None:
        """What is being done now, where nothing can be counted."""
        self._line.show(Status(text))

    def tell(self, text: str) -> None:
        """As :meth:`step`; without a terminal a line of its own."""
        if self.live:
            self.step(text)
        else:
            say(text)

    def count(self, what: str, done: int, total: int, noun: str = "") -> None:
        """So many of so many are done."""
        self._line.show(Status(what, done, total, noun))

    def reading(self, count: int) -> None:
        """Items read so far."""
        self.count("reading items", count, 0)

    def sending(self, number: int, total: int) -> None:
        """Input files stored so far."""
        self.count("storing inputs", number, total)

    def submitted(self, job: JobId, units: int) -> None:
        """The job has an id."""
        from p2pgrid.model.ids import short

        self.job = job
        self.count(f"job {short(job)}", 0, units)

    def event(self, event: FollowEvent) -> None:
        """News of the job."""
        from p2pgrid.model.ids import short

        line = event.line
        said, decided = FIGURES.sub("", event.note), line.done + line.failed
        prepares = event.note.startswith("node ") and not decided
        if event.note and said != self._said and not event.end and not (prepares and self.live):
            self.note(event.note)
        self._said = said
        if prepares:
            self._line.show(Status(event.note, timed=False))
            return
        parts = [f"{line.failed:,} failed"] if line.failed else []
        parts += [f"{line.disputed:,} disputed"] if line.disputed else []
        parts += [event.note] if event.note else []
        self._line.show(Status(f"job {short(line.job)}", decided, line.units, rate=line.rate, left_s=line.left_s, more=", ".join(parts)))

    def seeds(self, done: int, total: int) -> None:
        """Seeds of a simulation that have ended so far."""
        self.count("seeds", done, total)


class TransferProgress:
    """Bytes that move, with their rate and the time left; silent when stderr is no terminal."""

    def __init__(self, *, to_stdout: bool = False) -> None:
        """``to_stdout``: the content itself goes to stdout, and nothing is shown if that is the same terminal."""
        self._line = StatusLine(live=False if to_stdout and sys.stdout.isatty() else None)
        self._what = ""
        self._done = 0

    def __enter__(self) -> TransferProgress:
        self._line.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.stop()

    def more(self, what: str, more_bytes: int, size_bytes: int) -> None:
        """So many bytes more were moved; another ``what`` begins anew."""
        if what != self._what:
            self._what, self._done = what, 0
        self._done += more_bytes
        self._line.show(Status(what, self._done, size_bytes, "bytes"))
