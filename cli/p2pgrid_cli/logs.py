"""How a log looks and where it goes: structlog renders what the library says with the standard library's ``logging``.

1. On a terminal lines are for people; everywhere else each is one JSON object (docs/reference/logs.md).
2. A node's lines are made and written in a thread beside its loop, those of a fifth of a second at once: a slow disk, or a reader
   who does not read, holds up no node. What such a thread has not written when a node is killed is lost.
3. A log is bounded: in memory by a number of lines, on disk by two files of 5 MiB, which only the owner may read. A disk that is
   full costs lines, never the node.
4. Lines that strangers can cause are limited: a flood of them costs neither the disk nor the lines before it. What is left out
   is counted, and the count is a line.
5. structlog is imported when the first line is written: most commands write none.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from p2pgrid.dht.limiter import TokenBuckets
from p2pgrid.errors import P2PGridError, UsageError
from p2pgrid.logs import HAPPENED, MESSAGE_MAX, REFUSED, Line, clean_text
from p2pgrid_cli.aside import aside

Fields = MutableMapping[str, Any]
_log = logging.getLogger(__name__)

VARIABLE = "P2PGRID_LOG"
USUAL, QUIET = logging.INFO, logging.WARNING
"""Of a node, and of commands and of nodes that serve one command only."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
FILE_BYTES = 5 << 20
"""After so many bytes a file is put aside, as ``node.1.log``, and the one before it is gone."""
RAW_BYTES = 1 << 20
"""What a node in the background may say beside its log: messages of its start, and those of an interpreter in trouble."""
LINES_MAX = 4096
"""Lines that wait to be written; the newest that find no room are counted and lost."""
LIMITED = frozenset({REFUSED.name, HAPPENED.name})
"""Events that others can cause as often as they like."""
AT_ONCE, PER_S = 50, 1.0
"""Lines of such an event and level at once, and lines a second after that."""
KINDS_MAX = 64
"""Events and levels: more than there are."""
GATHER_S = 0.2
CLOSE_S = 2.0
TRACEBACK_MAX = 8000
_PRIVATE = 0o600


class Sink(Protocol):
    """Takes finished lines, in a thread of its own."""

    def write(self, data: bytes) -> None:
        """Write whole lines. Raises OSError."""


class StderrSink:
    """The process's stderr, whatever that is."""

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with aside():
            while view:
                view = view[os.write(2, view) :]


class FileSink:
    """A file and the one before it, for the owner's eyes. What cannot be written is lost; the next line tries again."""

    def __init__(self, path: Path, file_bytes: int = FILE_BYTES) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._descriptor: int | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        try:
            if self._descriptor is not None and self._size + len(data) > self._file_bytes:
                self.close()
                os.replace(self._path, self._path.with_name(f"{self._path.stem}.1{self._path.suffix}"))
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _PRIVATE)
                self._size = os.fstat(self._descriptor).st_size
            self._size += os.write(self._descriptor, data)
        except OSError:
            self.close()
            raise
        _keep_short(2, RAW_BYTES)

    def close(self) -> None:
        """Let go of the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)


def _keep_short(descriptor: int, bytes_max: int) -> None:
    """Begin anew with a file that this process appends to, when it has grown too large."""
    with suppress(OSError):
        if os.fstat(descriptor).st_size > bytes_max:
            os.ftruncate(descriptor, 0)


class Formatter(logging.Formatter):
    """Lines by structlog's renderers, which are imported for the first of them."""

    def __init__(self, *, pretty: bool, colours: bool = False) -> None:
        super().__init__()
        self._pretty = pretty
        self._colours = colours
        self._render: Callable[[Any, str, Fields], str | bytes] | None = None

    def format(self, record: logging.LogRecord) -> str:
        render = self._render = self._render or self._renderer()
        line: dict[str, Any]
        if self._pretty:
            line = {"timestamp": datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")}
        else:
            line = {"time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")}
        line["level"] = record.levelname.lower()
        if isinstance(record.msg, Line):
            line["event"] = clean_text(record.msg.event)
            line.update(record.msg.fields())
        else:
            line["event"] = clean_text(record.getMessage(), MESSAGE_MAX)
            line["logger"] = record.name
        if record.exc_info:
            line["exception"] = clean_text(self.formatException(record.exc_info), TRACEBACK_MAX, keep="\n")
        return str(render(None, "", line))

    def _renderer(self) -> Callable[[Any, str, Fields], str | bytes]:
        from structlog.dev import ConsoleRenderer
        from structlog.processors import JSONRenderer

        if self._pretty:
            return ConsoleRenderer(colors=self._colours, sort_keys=False, pad_event_to=0)
        return JSONRenderer(_json)


def _json(line: Fields, **_: Any) -> str:
    return msgspec.json.encode(line).decode()


class Flood:
    """Holds back lines of the events that are limited. Warnings have their own bucket: what is usual must not drown them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._room = TokenBuckets(clock, PER_S, AT_ONCE, KINDS_MAX)
        self._left_out: dict[tuple[str, int], int] = {}

    def through(self, record: logging.LogRecord) -> list[logging.LogRecord]:
        """What is to be written for a record: nothing, itself, or how many were left out and itself."""
        if not isinstance(record.msg, Line) or record.msg.event not in LIMITED:
            return [record]
        kind = record.msg.event, record.levelno
        with self._lock:
            if not self._room.take(kind):
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return []
            left_out = self._left_out.pop(kind, 0)
        return [_left_out(*kind, left_out), record] if left_out else [record]

    def counts(self, *, last: bool = False) -> list[logging.LogRecord]:
        """How many were left out of the events that have room again; of all, when it is the last chance to say it."""
        with self._lock:
            ready = [kind for kind in self._left_out if self._room.take(kind) or last]
            return [_left_out(*kind, self._left_out.pop(kind)) for kind in ready]

    def holds(self) -> bool:
        """Whether some were left out and nobody was told."""
        return bool(self._left_out)


def _left_out(event: str, level: int, count: int) -> logging.LogRecord:
    return logging.LogRecord(__name__, level, "", 0, f"{event}: {count} more were left out", (), None)


class LateHandler(logging.Handler):
    """Takes records at once and writes them soon, in a thread beside the one that speaks."""

    def __init__(
        self,
        sink: Sink,
        formatter: logging.Formatter,
        gather_s: float = GATHER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lost = 0
        """Lines for which there was no room or no disk, or that nothing could show."""
        self._lost_told = 0
        self._flood = Flood(clock)
        self._sink = sink
        self._gather_s = gather_s
        self._records: deque[logging.LogRecord] = deque()
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the lock that others take: appending to a deque needs none."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        for wanted in self._flood.through(record):
            self._append(wanted)
        # Also when it was left out: the writer then tells, when there is room, how many were.
        if not self._wanted.is_set():
            self._wanted.set()

    def _append(self, record: logging.LogRecord) -> None:
        if len(self._records) >= LINES_MAX:
            self.lost += 1
            return
        if record.args:
            # What the arguments show may change before it is written.
            try:
                record.msg, record.args = record.getMessage(), None
            except Exception:  # noqa: BLE001 - a call that does not fit its format must not fail whoever made it
                record.args = None
        self._records.append(record)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait(1.0 / PER_S if self._flood.holds() else None)
            self._closing.wait(self._gather_s)
            self._wanted.clear()
            self._write()

    def _write(self, *, last: bool = False) -> None:
        """Everything that is there now, in one piece, and what is missing. ``last``: nothing is written after it."""
        lines: list[str] = []
        while self._records:
            record = self._records.popleft()
            try:
                lines.append(self.format(record))
            except Exception:  # noqa: BLE001 - a line that cannot be shown must not end the log
                self.lost += 1
        lines += map(self.format, self._flood.counts(last=last))
        lost, told = self.lost, list[str]()
        if lost > self._lost_told:
            text = f"{lost - self._lost_told} lines were lost"
            told.append(self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, text, (), None)))
        if lines or told:
            try:
                self._sink.write(("\n".join(lines + told) + "\n").encode(errors="replace"))
            except OSError:
                self.lost += len(lines)
            else:
                self._lost_told = lost

    def close(self) -> None:
        """Write what is there, within a bound."""
        self._closing.set()
        self._wanted.set()
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._write(last=True)
        super().close()


class _Stderr(logging.StreamHandler[Any]):
    """A command's own warnings, at once, on whatever stderr is at that moment. One that has gone is no error of the command."""

    def __init__(self) -> None:
        super().__init__()
        self._flood = Flood()

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        with aside():
            for wanted in self._flood.through(record):
                super().emit(wanted)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - named by the standard library
        return


def level_of(text: str | None, default: int) -> int:
    """The level that is named, or ``default`` when none is. Raises UsageError."""
    if not text:
        return default
    try:
        return LEVELS[text.strip().lower()]
    except KeyError:
        raise UsageError(f"'{text}' is no level of the log", hint=f"levels: {', '.join(LEVELS)}") from None


def for_commands() -> None:
    """Warnings of a command and of the nodes it runs go to stderr, unless the process's log is set up already."""
    root = logging.getLogger()
    if not any(isinstance(handler, LateHandler | _Stderr) for handler in root.handlers):
        handler = _Stderr()
        handler.setFormatter(_for_stderr())
        root.addHandler(handler)
        root.setLevel(level_of(os.environ.get(VARIABLE), QUIET))


@contextmanager
def for_node(level: int, path: Path | None = None) -> Iterator[LateHandler]:
    """The log of a node that is what this process is for: into a file, or to stderr. What was said is written at the end."""
    handler = LateHandler(FileSink(path), Formatter(pretty=False)) if path else LateHandler(StderrSink(), _for_stderr())
    root = logging.getLogger()
    before, level_before = list(root.handlers), root.level
    for old in before:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    # One line of asyncio's for each debug setting is nobody's business.
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
    try:
        yield handler
    except Exception as error:
        if path and not isinstance(error, P2PGridError):
            _log.exception("the node failed")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(level_before)
        for old in before:
            root.addHandler(old)


def _for_stderr() -> Formatter:
    terminal = sys.stderr.isatty()
    return Formatter(pretty=terminal, colours=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")
