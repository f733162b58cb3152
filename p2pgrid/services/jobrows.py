"""Rows of the job index on their way to the disk: the newest of each job, written by one task.

With several writers an older state could be written after a newer one, and stay.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import Reason
from p2pgrid.services.context import Context
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.index import JobRow
from p2pgrid.wire.envelope import Signed

RETRY_S = 0.5
CLOSE_S = 2.0
ROLES = ("led", "kept", "read")


def job_row(job: Signed[Job], ledger: Ledger, role: str, state: str, detail: bytes = b"") -> JobRow:
    """What the index says of a job that is led or kept here. ``detail``: who keeps it, see :mod:`p2pgrid.services.custody`."""
    body = job.body
    return JobRow(
        id=JobId(job.id),
        role=role,
        name=body.name,
        submitter=job.author,
        created_ms=body.created_ms,
        expires_ms=body.expires_ms,
        state=state,
        units=ledger.layout.units,
        done=ledger.done,
        failed=ledger.failed,
        detail=detail,
    )


class JobRows:
    """Bounded by the number of jobs, of which each has one row here at most."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks = Tasks("rows")
        self._due: dict[tuple[JobId, str], JobRow] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, row: JobRow) -> None:
        """Write a row soon, in place of an older one of the same job."""
        self._due[row.id, row.role] = row
        if self._idle.is_set():
            self._idle.clear()
            if self._tasks.spawn(self._write(), "write") is None:
                self._idle.set()

    async def _write(self) -> None:
        try:
            while self._due:
                key, row = next(iter(self._due.items()))
                del self._due[key]
                await self._write_one(key, row)
        finally:
            self._idle.set()

    async def _write_one(self, key: tuple[JobId, str], row: JobRow) -> None:
        try:
            await self._context.offload.run(self._replace, row)
        except P2PGridError as error:
            if not error.retryable or error.reason == Reason.SHUTDOWN:
                self._context.tell(error.reason, f"the index of jobs was not written: {error}")
                return
            self._due.setdefault(key, row)
            await asyncio.sleep(RETRY_S)

    def _replace(self, row: JobRow) -> None:
        """A node has one role in a job at a time."""
        index = self._context.index
        for role in ROLES:
            if role != row.role:
                index.delete_job(row.id, role)
        index.put_job(row)

    async def close(self) -> None:
        """Write what is due, within a bound."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._idle.wait()
        await self._tasks.close()
