"""The log of one job as its lead or keeper uses it: posted in order, addressed by cursor.

1. The only writer of a job's log is the service that holds its JobFile, so cursors are known when records are
   posted; they become readable once ``durable`` has passed them.
2. While the disk is busy with other jobs, records are held here and posted later, in order: what was merged into
   memory is never forgotten on its way to the disk. Callers that can wait ask for :meth:`calm` first.
3. After the first failure nothing counts as durable any more: later records may lie at other cursors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from p2pgrid.errors import P2PGridError, TryAgainError
from p2pgrid.model.ids import JobId
from p2pgrid.model.reasons import Reason
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES, JobLog
from p2pgrid.store.ledger_writer import LedgerPort
from p2pgrid.wire.messages import LogRecord

READ_BYTES = 1 << 20
BACKLOG_BYTES = 16 << 20
"""With more than this on its way to the disk, nobody posts who can wait."""
HELD_BYTES_MAX = 128 << 20
HOLD_S = 0.02
LAZY_S = 0.05
DISK_S = 60.0
"""A disk that is silent for longer has failed."""


class JobFile:
    """Belongs to one event loop; reading is blocking and goes through the node's offload port."""

    def __init__(self, job: JobId, log: JobLog | Callable[[], JobLog], port: LedgerPort) -> None:
        """``log``: a log that is open, or, for a new job, what opens it: its file is then made by the first append."""
        self.job = job
        self._log = log
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._next = log.end if isinstance(log, JobLog) else HEADER_BYTES
        self.durable = self._next
        """The cursor behind the last record that is on disk."""
        self.failed: P2PGridError | None = None
        self.changed = asyncio.Event()
        """Set whenever ``durable`` moves."""
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._held: deque[tuple[int, Sequence[LogRecord]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._unanswered = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def end(self) -> int:
        """The cursor behind the last record posted."""
        return self._next

    @property
    def empty(self) -> bool:
        """Whether the disk has no record yet."""
        return self.durable <= HEADER_BYTES

    @property
    def settled(self) -> bool:
        """Whether the disk has everything that was posted."""
        return self.durable >= self._next

    def post(self, records: Sequence[LogRecord], *, lazy: bool = False) -> list[int]:
        """Queue records; returns the cursor of each. Raises TryAgainError when the disk has failed or cannot keep up.

        ``lazy`` records wait up to LAZY_S for others to share their write and sync with: nobody waits for these alone.
        """
        if self.failed is not None:
            raise TryAgainError("the log of this job cannot be written", reason=Reason.DISK_FULL) from self.failed
        cursors, position = [], self._next
        for record in records:
            cursors.append(position)
            position += FRAME_BYTES + len(record.data)
        self._next = position
        if lazy or self._held or not self._submit(position, records):
            self._hold(position, records, LAZY_S if lazy else HOLD_S)
            if not lazy:
                self._submit_held()
        return cursors

    def _submit(self, end: int, records: Sequence[LogRecord]) -> bool:
        """Hand records to the writer; False while its queue is full."""
        try:
            self._port.submit(self.job, records, lambda error: self._done(end, error))
        except TryAgainError as error:
            if error.reason == Reason.BUSY:
                return False
            self._fail(error)
            raise
        self._unanswered += 1
        self._quiet.clear()
        return True

    def _hold(self, end: int, records: Sequence[LogRecord], delay_s: float) -> None:
        if end - self.durable > HELD_BYTES_MAX:
            error = TryAgainError("the disk cannot keep up with this job", reason=Reason.BUSY)
            self._fail(error)
            raise error
        self._held.append((end, records))
        if self._timer is None:
            self._timer = self._loop.call_later(delay_s, self._submit_held)

    def _submit_held(self) -> None:
        """What is held leaves as one submission, as far as the writer takes it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._held:
            return
        together = [record for _, records in self._held for record in records]
        with suppress(TryAgainError):
            if self._submit(self._held[-1][0], together):
                self._held.clear()
        if self._held:
            self._timer = self._loop.call_later(HOLD_S, self._submit_held)

    async def append(self, records: Sequence[LogRecord]) -> list[int]:
        """Post records and wait until they are on disk. Raises what the disk raised."""
        cursors = self.post(records)
        await self.wait(self._next)
        return cursors

    async def calm(self) -> None:
        """Wait until little enough is on its way to the disk. Raises what the disk raised."""
        while self._next - self.durable > BACKLOG_BYTES:
            await self.wait(self._next - BACKLOG_BYTES)

    async def wait(self, cursor: int) -> None:
        """Wait until everything before ``cursor`` is on disk. Raises what the disk raised, TryAgainError when it is silent."""
        if self.durable >= cursor:
            return
        if self.failed is not None:
            raise self.failed
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(cursor, []).append(future)
        try:
            async with asyncio.timeout(DISK_S):
                await future
        except TimeoutError as error:
            silent = TryAgainError("the disk does not answer", reason=Reason.DISK_FAILED)
            self._fail(silent)
            raise silent from error

    async def quiet(self) -> None:
        """Wait until the disk has answered everything, well or badly, at most as long as it may be silent."""
        self._submit_held()
        with suppress(TimeoutError):
            async with asyncio.timeout(DISK_S):
                await self._quiet.wait()

    def _done(self, end: int, error: Exception | None) -> None:
        """Called by the writer's thread, or inside ``post`` in a simulation."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, end, error)

    def _settle(self, end: int, error: Exception | None) -> None:
        self._unanswered -= 1
        if not self._unanswered:
            self._quiet.set()
        if error is not None:
            self._fail(error if isinstance(error, P2PGridError) else TryAgainError(str(error), reason=Reason.DISK_FULL))
        elif self.failed is None:
            self.durable = max(self.durable, end)
            self._wake()

    def _fail(self, error: P2PGridError) -> None:
        """Later records were queued at cursors that are now wrong: nothing more may be written through this object."""
        if self.failed is None:
            self.failed = error
            self._held.clear()
            self._wake()

    def _wake(self) -> None:
        for cursor in [cursor for cursor in self._waiting if self.failed is not None or cursor <= self.durable]:
            for future in self._waiting.pop(cursor):
                if future.done():
                    continue
                if cursor > self.durable and self.failed is not None:
                    future.set_exception(self.failed)
                else:
                    future.set_result(None)
        self.changed.set()

    def read(self, cursor: int, bytes_max: int = READ_BYTES) -> tuple[list[LogRecord], int]:
        """Blocking: records from ``cursor`` and the cursor behind them, as far as they are on disk."""
        if not isinstance(self._log, JobLog):
            self._log = self._log()
        records, behind = self._log.read(cursor, bytes_max)
        return [LogRecord(kind, data) for kind, data in records], behind

    def read_one(self, cursor: int) -> LogRecord:
        """Blocking: the record at ``cursor``."""
        records, _ = self.read(cursor, 1)
        if not records:
            raise TryAgainError("the log ends before this record", reason=Reason.CORRUPT)
        return records[0]
