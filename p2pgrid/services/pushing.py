"""Pushing a job's log to its keepers: in order, in pieces of at most a megabyte, one at a time to each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from p2pgrid.core.keeping import PushBook
from p2pgrid.errors import P2PGridError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import JobId, NodeKey, short
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.joblog import JobFile
from p2pgrid.services.peers import Peers
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.messages import DeltaReply, DeltaRequest, LogRecord

COALESCE_S = 0.05
"""Records of this long travel together, unless somebody waits for the end."""
FAILURES_MAX = 3
PUSH_S = 10.0

Replace = Callable[[JobId, bytes], None]
Newer = Callable[[JobId, tuple[bytes, ...]], None]


@dataclass
class _Pushed:
    kept: KeptJob
    book: PushBook = field(default_factory=PushBook)
    urgent: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def file(self) -> JobFile:
        return self.kept.file


class Pushing:
    """One loop per job; a keeper that fails three times in a row is replaced."""

    def __init__(self, context: Context, peers: Peers, replace: Replace, newer: Newer) -> None:
        """``replace(job, keeper)`` is called for a keeper that failed, ``newer(job, chain)`` when one knows of a newer lead."""
        self._context = context
        self._peers = peers
        self._replace = replace
        self._newer = newer
        self._tasks = Tasks("pushing")
        self._jobs: dict[JobId, _Pushed] = {}

    def add(self, kept: KeptJob) -> None:
        """Begin to push the log of a job to its keepers."""
        self._jobs[kept.id] = _Pushed(kept)
        if kept.ledger.keepers is not None:
            self.set_keepers(kept.id, kept.ledger.keepers.body.keepers)
        self._tasks.spawn(self._run(kept.id), "run")

    def remove(self, job: JobId) -> None:
        """Forget a job that has ended."""
        pushed = self._jobs.pop(job, None)
        if pushed is not None:
            pushed.ended = True
            pushed.file.changed.set()

    def set_keepers(self, job: JobId, keepers: Sequence[bytes]) -> None:
        """Push to these from now on."""
        pushed = self._jobs.get(job)
        if pushed is None:
            return
        for gone in [keeper for keeper in pushed.book.keepers if keeper not in keepers]:
            pushed.book.remove(gone)
        for keeper in keepers:
            pushed.book.add(keeper)
        pushed.moved.set()
        pushed.file.changed.set()

    def reached(self, job: JobId) -> int:
        """How many keepers have everything that is on this disk."""
        pushed = self._jobs.get(job)
        return sum(pushed.book.complete_at(keeper, pushed.file.durable) for keeper in pushed.book.keepers) if pushed else 0

    def busy(self, job: JobId) -> bool:
        """Whether a keeper that is there still lacks something."""
        pushed = self._jobs.get(job)
        if pushed is None:
            return False
        return any(self._peers.is_live(keeper) and not pushed.book.complete_at(keeper, pushed.file.end) for keeper in pushed.book.keepers)

    async def complete(self, job: JobId) -> None:
        """Wait until every keeper has everything posted so far."""
        pushed = self._jobs.get(job)
        if pushed is None:
            return
        pushed.urgent.set()
        pushed.file.changed.set()
        await pushed.file.wait(pushed.file.end)
        while not pushed.book.complete(pushed.file.end):
            pushed.moved.clear()
            await pushed.moved.wait()

    async def _run(self, job: JobId) -> None:
        pushed = self._jobs.get(job)
        while pushed is not None and not pushed.ended:
            await pushed.file.changed.wait()
            pushed.file.changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(COALESCE_S):
                    await pushed.urgent.wait()
            if pushed.file.empty:
                continue
            for keeper, cursor in pushed.book.due(pushed.file.durable):
                self._tasks.spawn(self._push(job, NodeKey(keeper), cursor), "push")

    async def _push(self, job: JobId, keeper: NodeKey, cursor: int) -> None:
        pushed = self._jobs.get(job)
        if pushed is None:
            return
        try:
            while cursor < pushed.file.durable and keeper in pushed.book.keepers:
                records, behind = await self._context.offload.run(pushed.file.read, cursor)
                if not cursor:
                    # Whoever has nothing yet is told first that it was named, and by what right.
                    records[1:1] = [LogRecord(kinds.KEEPERS, raw) for raw in pushed.kept.ledger.lineage.raw_chain()]
                reply = await self._peers.call(keeper, "job.delta", DeltaRequest(job, tuple(records)), DeltaReply, timeout_s=PUSH_S)
                if reply.keepers:
                    self._newer(job, reply.keepers)
                cursor = behind
                pushed.book.note(keeper, cursor)
            pushed.book.on_acknowledged(keeper, cursor)
        except P2PGridError as error:
            if keeper not in pushed.book.keepers:
                return
            if pushed.book.on_failed(keeper) >= FAILURES_MAX or not error.retryable or not self._peers.is_live(keeper):
                self._context.tell(error.reason, f"{short(keeper)} does not keep job {short(job)}: {error}", job, keeper)
                self._replace(job, keeper)
            else:
                await asyncio.sleep(COALESCE_S * 4)
        finally:
            pushed.moved.set()
            pushed.file.changed.set()

    async def close(self) -> None:
        await self._tasks.close()
