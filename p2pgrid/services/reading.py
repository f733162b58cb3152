"""Reading jobs back: from this disk, or copied from whoever keeps them; and following one that others lead (docs/spec/keeping.md).

1. What a keeper sends is verified like everything else; a copy is believed when it bears out what was settled.
2. Raw records are served, so that nobody can make this node read a whole job back by asking for a line of it.
3. A job that is followed is read on from where the last look ended, at one source at a time: its lead, else a keeper.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import MalformedError, P2PGridError, RefusedError
from p2pgrid.model.ids import JobId, NodeKey, dht_id_of_job, short
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.joblog import READ_BYTES
from p2pgrid.services.keeping import Keeping, job_id_of
from p2pgrid.services.peers import Peers
from p2pgrid.wire.messages import JobReadReply, JobReadRequest, LogRecord

COPY_S = 300.0
"""How long a job may be copied from its keepers before the reader is told what is here."""
READ_S = 10.0
LOOK_FOR_S = 5.0
"""So long is waited before keepers are looked for once more."""


class Following:
    """How far a job was read at one source."""

    def __init__(self) -> None:
        self.source: NodeKey | None = None
        self.cursor = 0
        self.sent_bytes = 0
        self.failed_s = -LOOK_FOR_S


class Reading:
    """Jobs as readers see them."""

    def __init__(self, context: Context, peers: Peers, dht: GridServer, keeping: Keeping) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._keeping = keeping
        context.methods.on("job.read", JobReadRequest, self._on_read)

    async def _on_read(self, session: Session, request: JobReadRequest) -> JobReadReply:
        job = job_id_of(request.job)
        run = self._context.offload.run
        kept = self._keeping.jobs.get(job)
        if kept is not None:
            records, cursor = await run(kept.file.read, request.cursor, READ_BYTES)
            return JobReadReply(tuple(records), cursor, cursor >= kept.file.durable)
        if not self._keeping.knows(job):
            raise RefusedError("the job is not kept here", reason=Reason.UNKNOWN_JOB)
        log = await run(self._context.ledgers.log, job)
        found, cursor = await run(log.read, request.cursor, READ_BYTES)
        return JobReadReply(tuple([LogRecord(kind, data) for kind, data in found]), cursor, cursor >= log.end)

    async def view(self, job: JobId) -> KeptJob:
        """A job to read from: led here, kept here, on this disk, or copied from its keepers now.

        Raises RefusedError (unknown-job) when nobody who can be reached has it.
        """
        kept = await self._keeping.here(job)
        if kept is not None and (kept.led or kept.ended_for_good):
            return kept
        try:
            async with asyncio.timeout(COPY_S):
                kept = await self._copy_from_any(job, kept)
        except TimeoutError:
            self._context.tell(Reason.TIMEOUT, f"reading job {short(job)} took too long", job)
        kept = self._keeping.jobs.get(job, kept)
        if kept is None:
            raise RefusedError(f"nobody who can be reached knows job {short(job)}", reason=Reason.UNKNOWN_JOB, hint="check the id")
        return kept

    async def gather(self, kept: KeptJob) -> None:
        """Merge what the others who are there have of a job, before it is led here."""
        keepers = kept.ledger.keepers
        named = (keepers.body.lead, *keepers.body.keepers) if keepers else ()
        for keeper in named:
            if keeper != self._context.me and self._peers.is_live(keeper):
                try:
                    await self._copy(kept.id, NodeKey(keeper))
                except P2PGridError as error:
                    self._context.tell(error.reason, f"reading job {short(kept.id)} from {short(keeper)}: {error}", kept.id, keeper)

    async def _copy_from_any(self, job: JobId, kept: KeptJob | None) -> KeptJob | None:
        for keeper in await self._keepers(job, kept):
            try:
                kept = await self._copy(job, keeper)
            except P2PGridError as error:
                self._context.tell(error.reason, f"reading job {short(job)} from {short(keeper)}: {error}", job, keeper)
                continue
            if kept.ended_for_good or self._leads(kept, keeper):
                break
        return kept

    @staticmethod
    def _leads(kept: KeptJob, node: NodeKey) -> bool:
        """Whether nobody can know more of a job than this node."""
        keepers = kept.ledger.keepers
        return kept.state in ("running", "done", "failed") and keepers is not None and keepers.body.lead == node

    async def _keepers(self, job: JobId, kept: KeptJob | None) -> list[NodeKey]:
        named = kept.ledger.keepers.body if kept is not None and kept.ledger.keepers else None
        found = [named.lead, *named.keepers] if named else []
        with suppress(P2PGridError):
            found += [record.author for record in await self._dht.get(dht_id_of_job(job), RecordKind.JOB_KEEPERS)]
        found += list(self._peers.live())
        return [NodeKey(key) for key in dict.fromkeys(found) if key != self._context.me]

    async def _copy(self, job: JobId, keeper: NodeKey) -> KeptJob:
        """Copy what a keeper has of a job into this node's own log of it."""
        look = Following()
        look.source = keeper
        while True:
            kept, end = await self._read_on(job, look)
            if end:
                self._keeping.index(kept)
                return kept

    async def _read_on(self, job: JobId, look: Following) -> tuple[KeptJob, bool]:
        """One piece of a log, and whether there is no more now.

        What a source sends is either new, and then this log grows, or here already: more than that is no log.
        """
        assert look.source is not None
        request = JobReadRequest(job, look.cursor)
        reply = await self._peers.call(look.source, "job.read", request, JobReadReply, timeout_s=READ_S)
        kept = await self._keeping.copy(job, reply.records)
        look.sent_bytes += sum(len(record.data) for record in reply.records)
        if look.sent_bytes > kept.file.end + READ_BYTES:
            raise MalformedError("a log of a job that is longer than all it says", reason=Reason.MALFORMED)
        end = reply.end or reply.cursor <= look.cursor or not reply.records
        look.cursor = max(look.cursor, reply.cursor)
        return kept, end

    def note(self, kept: KeptJob) -> str:
        """What a reader of a job that others lead should know; empty if it goes on by itself."""
        if kept.state == "incomplete":
            return "results are missing that the submitter settled, and nobody who can be reached has them"
        keepers = kept.ledger.keepers
        if kept.state != "running" or keepers is None or self._peers.is_live(keepers.body.lead):
            return ""
        if any(self._peers.is_live(key) for key in keepers.body.keepers):
            return f"its lead {short(keepers.body.lead)} is away: another keeper takes over"
        return "nobody who keeps this job can be reached: it goes on when one of them is back"

    async def catch_up(self, kept: KeptJob, look: Following) -> None:
        """Read on in a job that others lead; ``look`` remembers where. Says nothing if nobody can be asked now."""
        keepers = kept.ledger.keepers
        now_s = self._context.clock()
        if kept.led or keepers is None or (self._context.me in keepers.body.keepers and self._peers.is_live(keepers.body.lead)):
            return
        named = [keepers.body.lead, *keepers.body.keepers]
        if look.source is None or look.source not in named or not self._peers.is_live(look.source):
            live = [key for key in named if key != self._context.me and self._peers.is_live(key)]
            if not live:
                if now_s - look.failed_s >= LOOK_FOR_S:
                    look.failed_s = now_s
                    await self._copy_from_any(kept.id, kept)
                return
            look.source, look.cursor, look.sent_bytes = NodeKey(live[0]), 0, 0
        try:
            while not (await self._read_on(kept.id, look))[1]:
                pass
        except P2PGridError as error:
            self._context.tell(error.reason, f"following job {short(kept.id)}: {error}", kept.id)
            look.source = None
