"""The log of one job as its lead or keeper uses it: posted in order, addressed by cursor.

The only writer of a job's log is the service that holds its JobFile, so cursors can be computed when
records are posted; they become readable once ``durable`` has passed them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from p2pgrid.errors import P2PGridError, TryAgainError
from p2pgrid.model.ids import JobId
from p2pgrid.model.reasons import Reason
from p2pgrid.store.ledger import FRAME_BYTES, JobLog
from p2pgrid.store.ledger_writer import LedgerPort
from p2pgrid.wire.messages import LogRecord

READ_BYTES = 1 << 20


class JobFile:
    """Belongs to one event loop; reading is blocking and goes through the node's offload port."""

    def __init__(self, job: JobId, log: JobLog, port: LedgerPort) -> None:
        self.job = job
        self._log = log
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._next = log.end
        self.durable = log.end
        """The cursor behind the last record that is on disk."""
        self.failed: Exception | None = None
        self.changed = asyncio.Event()
        """Set whenever ``durable`` moves."""
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    @property
    def end(self) -> int:
        """The cursor behind the last record posted."""
        return self._next

    def post(self, records: Sequence[LogRecord]) -> list[int]:
        """Queue records; returns the cursor of each. Raises TryAgainError when the disk cannot keep up."""
        if self.failed is not None:
            raise TryAgainError("the log of this job cannot be written", reason=Reason.DISK_FULL) from self.failed
        cursors, position = [], self._next
        for record in records:
            cursors.append(position)
            position += FRAME_BYTES + len(record.data)
        end = position
        self._port.submit(self.job, records, lambda error: self._done(end, error))
        self._next = end
        return cursors

    async def append(self, records: Sequence[LogRecord]) -> list[int]:
        """Post records and wait until they are on disk. Raises what the disk raised."""
        cursors = self.post(records)
        await self.wait(self._next)
        return cursors

    async def wait(self, cursor: int) -> None:
        """Wait until everything before ``cursor`` is on disk."""
        if self.durable >= cursor:
            return
        if self.failed is not None:
            raise self.failed
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(cursor, []).append(future)
        await future

    def _done(self, end: int, error: Exception | None) -> None:
        """Called by the writer's thread, or inside ``post`` in a simulation."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, end, error)

    def _settle(self, end: int, error: Exception | None) -> None:
        if error is not None:
            # Later records were queued at cursors that are now wrong: nothing more may be written through this object.
            self.failed = error if isinstance(error, P2PGridError) else TryAgainError(str(error), reason=Reason.DISK_FULL)
        else:
            self.durable = max(self.durable, end)
        for cursor in [cursor for cursor in self._waiting if self.failed is not None or cursor <= self.durable]:
            for future in self._waiting.pop(cursor):
                if not future.done():
                    if self.failed is not None and cursor > self.durable:
                        future.set_exception(self.failed)
                    else:
                        future.set_result(None)
        self.changed.set()

    def read(self, cursor: int, bytes_max: int = READ_BYTES) -> tuple[list[LogRecord], int]:
        """Blocking: records from ``cursor`` and the cursor behind them, as far as they are on disk."""
        records, behind = self._log.read(cursor, bytes_max)
        return [LogRecord(kind, data) for kind, data in records], behind

    def read_one(self, cursor: int) -> LogRecord:
        """Blocking: the record at ``cursor``."""
        records, _ = self.read(cursor, 1)
        if not records:
            raise TryAgainError("the log ends before this record", reason=Reason.CORRUPT)
        return records[0]
