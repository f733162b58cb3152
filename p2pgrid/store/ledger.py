"""The append-only log of one job, and what a crash or a bad sector may do to it.

1. A file is a header, written twice, and records. A record is ``sync 4 | length u32 | kind u8 | check 8 | data``.
2. The check is BLAKE3, keyed with the file's salt and the job, over (offset, kind, length, data). The offset is the
   record's sequence: a record copied to another place, or into another file, is not a record.
3. ``sync`` is derived from the same salt. Whoever chooses the data of records cannot know it, so data can never pass
   for a record when the log is searched behind a damaged place, and that search is a plain find.
4. Records are written and synced in batches; a batch is acknowledged after the sync, never before.
5. What is replayed is synced, as its readers take it for durable and a killed process may not have got so far.
6. Damage that reaches the end of the file is a torn tail and is cut. Damage before good records stays where it
   is, is reported each time the log is opened, and hides nothing behind it.
7. A log holds no open descriptor between calls: a thousand kept jobs cost a thousand small objects.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from blake3 import blake3

from p2pgrid.errors import ConfigError, MalformedError, RefusedError, TryAgainError
from p2pgrid.model.ids import DIGEST_BYTES, JobId, StatementId, short
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.store.disk import READ_FLAGS, Disk, disk_errors, read_at

MAGIC = b"p2pgridL"
FORMAT = 1
SALT_BYTES = 16
WINDOW_BYTES = 1 << 20
DAMAGES_MAX = 64
_HEADER = struct.Struct(f"<8sH{SALT_BYTES}s{DIGEST_BYTES}s")
_COPY_BYTES = _HEADER.size + 8
HEADER_BYTES = 2 * _COPY_BYTES
_FRAME = struct.Struct("<4sIB8s")
FRAME_BYTES = _FRAME.size
_PLACE = struct.Struct("<QBI")

Record = tuple[int, bytes]
"""(kind 0..255, data)."""
RandomBytes = Callable[[int], bytes]
EachRecord = Callable[[int, bytes], None]


class Span(msgspec.Struct, frozen=True):
    """Damaged bytes of a log: from ``start`` up to but not including ``end``."""

    start: int
    end: int


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What opening a log found. A log is ``sound`` when nothing at all was wrong."""

    records: int = 0
    damaged: tuple[Span, ...] = ()
    """At most 64 spans; further ones are joined to the last."""
    cut_bytes: int = 0
    """Bytes of a torn tail that were removed."""
    header_repaired: bool = False
    set_aside: str = ""
    """The name of a file whose header was beyond use, kept beside an empty new log."""
    was_empty: bool = False
    """There was a file without a byte in it: either nothing was ever acknowledged, or somebody emptied it."""

    @property
    def sound(self) -> bool:
        return not self.why

    @property
    def why(self) -> str:
        """In words what was wrong; empty when nothing was. A torn tail alone is what every crash may leave."""
        found = []
        if self.set_aside:
            found.append(f"its header was damaged; it is kept as {self.set_aside} and begun anew")
        if self.was_empty:
            found.append("it was empty")
        if self.header_repaired:
            found.append("its header was repaired")
        if self.damaged:
            lost_bytes = sum(span.end - span.start for span in self.damaged)
            found.append(f"{lost_bytes} bytes in {len(self.damaged)} places were damaged and are passed over")
        if self.cut_bytes:
            found.append(f"{self.cut_bytes} bytes of an unfinished write were cut off")
        return "; ".join(found)


class _Marks:
    """What tells a true record of one file: the key of its checks and its sync bytes."""

    __slots__ = ("key", "sync")

    def __init__(self, salt: bytes, job: bytes) -> None:
        material = blake3(salt + job, derive_key_context="p2pgrid/1/ledger").digest(DIGEST_BYTES + 4)
        self.key, self.sync = material[:DIGEST_BYTES], material[DIGEST_BYTES:]

    def check(self, offset: int, kind: int, data: bytes) -> bytes:
        return blake3(_PLACE.pack(offset, kind, len(data)), key=self.key).update(data).digest(8)

    def frame(self, offset: int, kind: int, data: bytes) -> bytes:
        return _FRAME.pack(self.sync, len(data), kind, self.check(offset, kind, data))


def _header(salt: bytes, job: bytes) -> bytes:
    body = _HEADER.pack(MAGIC, FORMAT, salt, job)
    return (body + blake3(body).digest(8)) * 2


def _read_header(raw: bytes) -> tuple[bytes, bytes] | None:
    """(salt, job) from one of the two copies, or None. Raises ConfigError for a newer format."""
    for start in (0, _COPY_BYTES):
        body, check = raw[start : start + _HEADER.size], raw[start + _HEADER.size : start + _COPY_BYTES]
        if len(check) == 8 and blake3(body).digest(8) == check:
            magic, version, salt, job = _HEADER.unpack(body)
            if magic != MAGIC:
                return None
            if version > FORMAT:
                raise ConfigError("a job log was written by a newer p2pgrid", hint="update p2pgrid")
            return salt, job
    return None


class _Scanner:
    """Reads records between two offsets of an open file, and finds its way behind damage."""

    def __init__(self, descriptor: int, marks: _Marks, end: int, record_bytes_max: int) -> None:
        self._descriptor, self._marks, self._end, self._record_bytes_max = descriptor, marks, end, record_bytes_max
        self._base, self._window = 0, b""

    def _bytes(self, offset: int, size_bytes: int) -> bytes:
        start = offset - self._base
        if start < 0 or start + size_bytes > len(self._window):
            wanted = min(max(size_bytes, WINDOW_BYTES), self._end - offset)
            self._base, self._window, start = offset, read_at(self._descriptor, wanted, offset), 0
        return self._window[start : start + size_bytes]

    def record_at(self, offset: int) -> Record | None:
        """The record that starts exactly here, or None."""
        if offset + FRAME_BYTES > self._end:
            return None
        head = self._bytes(offset, FRAME_BYTES)
        if len(head) < FRAME_BYTES:
            return None
        sync, length, kind, check = _FRAME.unpack(head)
        if sync != self._marks.sync or length > self._record_bytes_max or offset + FRAME_BYTES + length > self._end:
            return None
        data = self._bytes(offset + FRAME_BYTES, length)
        return (kind, data) if self._marks.check(offset, kind, data) == check else None

    def next_record(self, offset: int) -> int:
        """The offset of the first true record behind ``offset``, or the end."""
        position = offset + 1
        while position < self._end:
            window = self._bytes(position, min(WINDOW_BYTES, self._end - position))
            if not window:
                break
            found = window.find(self._marks.sync)
            if found < 0:
                position += max(1, len(window) - 3)
            elif self.record_at(position + found) is not None:
                return position + found
            else:
                position += found + 1
        return self._end

    def walk(self, start: int) -> Iterator[tuple[int, int, Record | None]]:
        """(offset, offset behind, record) in order; the record is None for a damaged span."""
        position = start
        while position < self._end:
            record = self.record_at(position)
            behind = self.next_record(position) if record is None else position + FRAME_BYTES + len(record[1])
            yield position, behind, record
            position = behind


class JobLog:
    """The log of one job. Any thread may read; appends exclude each other. Made by :meth:`open`."""

    def __init__(self, path: Path, marks: _Marks, end: int, disk: Disk, limits: Limits) -> None:
        self._path, self._marks, self._end, self._disk, self._limits = path, marks, end, disk, limits
        self._lock = threading.Lock()
        self._failed = False
        self._new = False

    @classmethod
    def open(
        cls,
        path: Path,
        job: JobId,
        random_bytes: RandomBytes,
        *,
        each: EachRecord | None = None,
        disk: Disk | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> tuple[JobLog, ReplayReport]:
        """Open or create the log at ``path``; every record is given to ``each`` in order.

        A torn tail is cut, damage is reported. Raises ConfigError (newer format, unusable disk), RefusedError (disk full).
        """
        disk = disk or Disk()
        with disk_errors("opening a job log"):
            raw = _read_start(path)
            found = _read_header(raw) if raw is not None else None
            if found is None or found[1] != job:
                return cls._create(path, job, random_bytes, raw, disk, limits)
            return cls._replay(path, found, raw or b"", each or _ignore, disk, limits)

    @classmethod
    def _create(
        cls, path: Path, job: JobId, random_bytes: RandomBytes, raw: bytes | None, disk: Disk, limits: Limits
    ) -> tuple[JobLog, ReplayReport]:
        """Start afresh. A file shorter than a header never acknowledged anything; a longer one is kept aside."""
        report = ReplayReport(cut_bytes=len(raw or b""), was_empty=raw == b"")
        if raw is not None and len(raw) >= HEADER_BYTES:
            aside = path.with_suffix(".damaged")
            disk.rename(path, aside)
            report = ReplayReport(set_aside=aside.name)
        salt = random_bytes(SALT_BYTES)
        descriptor = disk.create(path)
        try:
            disk.truncate(descriptor, 0)
            disk.write_at(descriptor, _header(salt, job), 0)
        finally:
            disk.close(descriptor)
        log = cls(path, _Marks(salt, job), HEADER_BYTES, disk, limits)
        # The header and the name of the file become durable with the first batch: before it nothing was acknowledged.
        log._new = True
        return log, report

    @classmethod
    def _replay(
        cls, path: Path, found: tuple[bytes, bytes], raw: bytes, each: EachRecord, disk: Disk, limits: Limits
    ) -> tuple[JobLog, ReplayReport]:
        marks = _Marks(*found)
        repaired = raw != _header(*found)
        records, damaged = 0, list[Span]()
        descriptor = disk.modify(path)
        try:
            if repaired:
                disk.write_at(descriptor, _header(*found), 0)
            end = size = max(os.fstat(descriptor).st_size, HEADER_BYTES)
            for start, behind, record in _Scanner(descriptor, marks, size, limits.bulk_message_bytes).walk(HEADER_BYTES):
                if record is not None:
                    records += 1
                    each(*record)
                elif behind == size:
                    end = start
                else:
                    _note(damaged, Span(start, behind))
            if end != size:
                disk.truncate(descriptor, end)
            if records or repaired or end != size:
                disk.sync(descriptor)
        finally:
            disk.close(descriptor)
        disk.sync_folder(path.parent)
        report = ReplayReport(records=records, damaged=tuple(damaged), cut_bytes=size - end, header_repaired=repaired)
        return cls(path, marks, end, disk, limits), report

    @property
    def end(self) -> int:
        """The cursor behind the last acknowledged record; also the size of the file in bytes."""
        return self._end

    def append(self, records: Sequence[Record]) -> int:
        """Write a batch and wait until it is on the medium; returns the cursor behind it.

        All of the batch or nothing. Raises MalformedError (a record over its limit), RefusedError (log or disk full)
        and TryAgainError after a failed sync: what the disk then holds is unknown until the log is opened again.
        """
        with self._lock:
            if self._failed:
                raise TryAgainError("the job log must be opened again", reason=Reason.DISK_FAILED)
            data = self._framed(records)
            if self._end + len(data) > self._limits.ledger_bytes:
                raise RefusedError("the log of the job is full", reason=Reason.KEEPER_FULL)
            with disk_errors("writing a job log"):
                self._write(data)
            self._end += len(data)
            return self._end

    def _framed(self, records: Sequence[Record]) -> bytes:
        offset, pieces, marks = self._end, list[bytes](), self._marks
        for kind, data in records:
            if len(data) > self._limits.bulk_message_bytes or not 0 <= kind <= 255:
                raise MalformedError("a record of a job log is over its limit", reason=Reason.MALFORMED)
            pieces.append(marks.frame(offset, kind, data))
            pieces.append(data)
            offset += FRAME_BYTES + len(data)
        return b"".join(pieces)

    def _write(self, data: bytes) -> None:
        descriptor = self._disk.modify(self._path)
        try:
            try:
                self._disk.write_at(descriptor, data, self._end)
            except OSError:
                # Half a batch must not stay: a later, shorter batch would leave its rest behind as damage.
                self._failed = True
                self._disk.truncate(descriptor, self._end)
                self._failed = False
                raise
            self._failed = True
            self._disk.sync_data(descriptor)
            if self._new:
                self._disk.sync_folder(self._path.parent)
                self._new = False
            self._failed = False
        finally:
            self._disk.close(descriptor)

    def read(self, cursor: int, bytes_max: int) -> tuple[list[Record], int]:
        """Records from ``cursor`` on (0 = the first) until ``bytes_max`` are reached, and the cursor behind them.

        At least one record comes back unless the end was reached. A cursor that is no record's start, as a peer may
        send, continues at the next record. Damaged spans are passed over; opening the log reports them.
        """
        end, records, total = self._end, list[Record](), 0
        position = max(cursor, HEADER_BYTES)
        if position >= end:
            return [], end
        with disk_errors("reading a job log"):
            descriptor = os.open(self._path, READ_FLAGS)
            try:
                for start, behind, record in _Scanner(descriptor, self._marks, end, self._limits.bulk_message_bytes).walk(position):
                    if record is not None:
                        total += len(record[1])
                        if records and total > bytes_max:
                            return records, start
                        records.append(record)
                    position = behind
            finally:
                os.close(descriptor)
        return records, position


def _ignore(first: object, second: object) -> None:
    """For those who do not want to be told."""


def _note(damaged: list[Span], span: Span) -> None:
    if len(damaged) < DAMAGES_MAX:
        damaged.append(span)
    else:
        damaged[-1] = Span(damaged[-1].start, span.end)


def _read_start(path: Path) -> bytes | None:
    """The bytes where the header should be, or None when there is no file."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return None
    try:
        return read_at(descriptor, HEADER_BYTES, 0)
    finally:
        os.close(descriptor)


class Ledgers:
    """All job logs of a node: one file ``<job in hex>.log`` each, in one folder. Any thread."""

    def __init__(self, folder: Path, random_bytes: RandomBytes, *, disk: Disk | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self._folder, self._random_bytes, self._disk, self._limits = folder, random_bytes, disk or Disk(), limits
        self._logs: dict[JobId, JobLog] = {}
        self._lock = threading.Lock()
        self.on_unsound: Callable[[JobId, ReplayReport], None] = _ignore
        """Told of every log that was found other than it was left, from whatever thread opened it. Must not block."""
        with disk_errors("making the folder of job logs"):
            self._disk.make_folder(folder)

    def _path(self, job: JobId) -> Path:
        return self._folder / f"{job.hex()}.log"

    def jobs(self) -> list[JobId]:
        """The jobs that have a log on disk. Strange files in the folder are passed over."""
        found = []
        with disk_errors("listing the job logs"):
            for path in sorted(self._folder.glob("*.log")):
                with suppress(ValueError):
                    job = bytes.fromhex(path.stem)
                    if len(job) == DIGEST_BYTES and path.stem == job.hex():
                        found.append(JobId(StatementId(job)))
        return found

    def has(self, job: JobId) -> bool:
        """Whether there is a log of this job. One look at the disk at most."""
        with self._lock:
            return job in self._logs or self._path(job).exists()

    def open(self, job: JobId, each: EachRecord | None = None) -> ReplayReport:
        """Replay the log of a job from the disk and keep it open for :meth:`log`."""
        with self._lock:
            return self._open(job, each)

    def _open(self, job: JobId, each: EachRecord | None) -> ReplayReport:
        if job not in self._logs and len(self._logs) >= self._limits.jobs_kept + self._limits.jobs_led:
            raise RefusedError(f"no room for the log of job {short(job)}", reason=Reason.KEEPER_FULL)
        self._logs[job], report = JobLog.open(self._path(job), job, self._random_bytes, each=each, disk=self._disk, limits=self._limits)
        if not report.sound:
            self.on_unsound(job, report)
        return report

    def log(self, job: JobId) -> JobLog:
        """The log of a job, created when there is none. Raises RefusedError when there are too many."""
        with self._lock:
            if job not in self._logs:
                self._open(job, None)
            return self._logs[job]

    def remove(self, job: JobId) -> None:
        """Delete the log of a job. Its :class:`JobLog` must not be used afterwards."""
        with self._lock:
            self._logs.pop(job, None)
        with disk_errors("deleting a job log"):
            # The log goes last: as long as it is there, somebody will come again to remove what is left.
            self._disk.unlink(self._path(job).with_suffix(".damaged"))
            self._disk.unlink(self._path(job))
            self._disk.sync_folder(self._folder)
