"""Who leads a job when its lead is gone, and what keepers do meanwhile (docs/spec/keeping.md#who-leads).

1. Every second, each job that has not ended and is kept here is looked at: is its lead there, and does it say that it leads it?
2. Before a keeper leads, it reads what the other keepers have. Then it names itself in a new keeper set, and goes on.
3. Receipts are taken by every keeper: relayed to the lead, or, while there is none, merged and logged here.
4. A cancel is taken by everybody who has the job, and passed on to its lead.
5. Who leaves hands its jobs over, and tells the leads of those that it keeps.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from p2pgrid.core.takeover import Succession as Turn
from p2pgrid.errors import MalformedError, P2PGridError, RefusedError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import JobId, NodeKey, StatementId, short
from p2pgrid.model.job import Cancel
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import Receipt
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.keeping import Keeping, job_id_of
from p2pgrid.services.leading import GRANTS_MAX, Leading
from p2pgrid.services.ledjob import LedJob
from p2pgrid.services.outbox import DELIVERY_ITEMS_MAX
from p2pgrid.services.peers import Peers
from p2pgrid.services.reading import Reading
from p2pgrid.services.results import check_payload
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.envelope import open_envelope
from p2pgrid.wire.messages import (
    CancelRequest,
    Delivery,
    DeliveryReply,
    DeltaReply,
    DeltaRequest,
    HandOver,
    LeadingAnswer,
    LeadingQuestion,
    LogRecord,
    Ok,
)

LOOK_S = 1.0
ASK_S = 5.0
"""A lead that sent nothing of a job for so long is asked whether it still leads it."""
DOUBT_S = 12.0
"""A lead that is there but does not say that it leads a job is silent after this long."""
GATHER_S = 8.0
RETRY_S = 10.0
"""After a take-over that failed."""
BROUGHT_BACK_MAX = 4
"""Jobs read back from the disk in one look."""
REJOIN_S = 3.0
"""For those who led before to hand on what they have."""
LEADS_MAX = 4096
QUESTION_JOBS_MAX = 1024
CALL_S = 5.0
RELAY_S = 20.0


class Succession:
    """The keepers' side of leading."""

    def __init__(self, context: Context, peers: Peers, keeping: Keeping, reading: Reading, leading: Leading) -> None:
        self._context = context
        self._peers = peers
        self._keeping = keeping
        self._reading = reading
        self._leading = leading
        self._tasks = Tasks("succession")
        self._turns: dict[JobId, Turn] = {}
        self._not_before_s: dict[JobId, float] = {}
        self._asked_s: dict[bytes, float] = {}
        self._leaving: dict[bytes, float] = {}
        """Nodes that said they leave, and until when that is believed."""
        self._taking: set[JobId] = set()
        self._leads: dict[JobId, bytes] = {}
        """Who led each job by the newest set that was seen here."""
        self._sets: dict[JobId, int] = {}
        self._parted: dict[JobId, float] = {}
        """Jobs whose lead changed without this node: when to read what the new one has."""
        self._closed = False
        leading.hand_over = self.hand_over
        keeping.merged.append(self._on_merged)
        methods = context.methods
        methods.on("job.deliver", Delivery, self._on_deliver)
        methods.on("job.cancel", CancelRequest, self._on_cancel)
        methods.on("job.handover", HandOver, self._on_handover)
        methods.on("job.leading", LeadingQuestion, self._on_question)

    async def start(self) -> None:
        self._peers.on_came(self._on_came)
        self._tasks.spawn(self._watch(), "watch")

    async def close(self) -> None:
        await self._tasks.close()

    # -- watching leads ------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._keeping.jobs or self._parted or self._keeping.custody:
                self._look()

    def _look(self) -> None:
        now = self._context.clock()
        watched = [kept for kept in self._keeping.jobs.values() if self._concerns(kept)]
        for kept in self._keeping.jobs.values():
            if kept.ledger.keepers is not None:
                self._leads.setdefault(kept.id, kept.ledger.keepers.body.lead)
        self._turns = {kept.id: self._turns.get(kept.id) or Turn(self._context.me) for kept in watched}
        there = frozenset([self._context.me, *self._peers.live()]) - self.leaving()
        doubtful: dict[bytes, list[KeptJob]] = {}
        for kept in watched:
            keepers = kept.ledger.keepers
            assert keepers is not None
            if keepers.body.lead in there and now - kept.heard_s > ASK_S:
                doubtful.setdefault(keepers.body.lead, []).append(kept)
            leads = now - kept.heard_s <= DOUBT_S
            if self._turns[kept.id].due(keepers.body, there, leads, now) and self._not_before_s.get(kept.id, 0.0) <= now:
                self._begin(kept)
        spare = any(self._peers.info(key).offer.storage_bytes for key in self._peers.with_role("store") if key != self._context.me)
        for job in self._keeping.custody.due(self._keeping.jobs, there, spare, now, BROUGHT_BACK_MAX):
            self._tasks.spawn(self._bring_back(job), "bring back")
        for job in [job for job, due_s in self._parted.items() if due_s <= now][:BROUGHT_BACK_MAX]:
            del self._parted[job]
            self._tasks.spawn(self._rejoin(job), "rejoin")
        for lead, jobs in doubtful.items():
            if now - self._asked_s.get(lead, -ASK_S) >= ASK_S and lead != self._context.me:
                self._asked_s[lead] = now
                self._tasks.spawn(self._ask(NodeKey(lead), jobs[:QUESTION_JOBS_MAX]), "ask")
        self._asked_s = {lead: asked_s for lead, asked_s in self._asked_s.items() if lead in doubtful}
        self._not_before_s = {job: until_s for job, until_s in self._not_before_s.items() if until_s > now}

    def _on_merged(self, kept: KeptJob, first: int) -> None:
        """Somebody else leads a job that was kept or led here, and pushes nothing to this node: the two may have parted for a while."""
        newest = kept.ledger.keepers
        if newest is None:
            return
        lead = newest.body.lead
        sets = len(kept.ledger.lineage.sets)
        if kept.led and self._sets.get(kept.id, sets) != sets:
            self._tell_past(kept)
        self._sets[kept.id] = sets
        if self._leads.get(kept.id, lead) != lead and self._context.me not in (lead, *newest.body.keepers):
            self._parted[kept.id] = self._context.clock() + REJOIN_S
        self._leads[kept.id] = lead
        for table in (self._leads, self._sets):
            while len(table) > LEADS_MAX:
                table.pop(next(iter(table)))

    def _tell_past(self, kept: KeptJob) -> None:
        """Sets came from somebody who led the job apart from this node: whoever they name learns who leads now."""
        led, newest = self._leading.jobs.get(kept.id), kept.ledger.keepers
        for peer in sorted(self._peers.live()):
            if led is not None and newest is not None and kept.ledger.lineage.names(peer) and peer not in newest.body.keepers:
                self._tasks.spawn(self._tell(led, NodeKey(peer)), "tell")

    async def _rejoin(self, job: JobId) -> None:
        """Read what the new lead has, so that answers that differ are shown here, too."""
        kept = await self._keeping.here(job)
        if kept is not None and not kept.led:
            await self._reading.gather(kept)

    async def _bring_back(self, job: JobId) -> None:
        """A job that ended long ago lost a keeper: in memory, it is looked after like every other."""
        await self._keeping.here(job)

    def _concerns(self, kept: KeptJob) -> bool:
        """Whether this node may have to lead a job: it was named, or is the submitter's."""
        ledger = kept.ledger
        if kept.led or ledger.keepers is None or kept.file.failed is not None or kept.id in self._taking:
            return False
        if kept.job.body.expires_ms < self._context.wall_ms() or kept.state in ("incomplete", "stopped"):
            return False
        if "submit" not in self._context.member.roles:
            return False
        return ledger.lineage.names(self._context.me) or kept.job.author == self._context.submitter.public

    def leaving(self) -> frozenset[bytes]:
        """Nodes that said they leave."""
        now = self._context.clock()
        self._leaving = {node: until_s for node, until_s in self._leaving.items() if until_s > now}
        return frozenset(self._leaving)

    async def _ask(self, lead: NodeKey, jobs: list[KeptJob]) -> None:
        question = LeadingQuestion(tuple(kept.id for kept in jobs))
        answer = await self._peers.call(lead, "job.leading", question, LeadingAnswer, timeout_s=CALL_S)
        now = self._context.clock()
        for kept, leads in zip(jobs, answer.leads, strict=False):
            if leads:
                kept.heard_s = now

    def _on_question(self, session: Session, question: LeadingQuestion) -> LeadingAnswer:
        if len(question.jobs) > QUESTION_JOBS_MAX:
            raise MalformedError("too many jobs in one question", reason=Reason.MALFORMED)
        return LeadingAnswer(bytes(self._led(JobId(StatementId(job))) is not None for job in question.jobs))

    def _led(self, job: JobId) -> LedJob | None:
        led = self._leading.jobs.get(job)
        return led if led is not None and led.kept.led and not led.broken else None

    # -- taking over -----------------------------------------------------------------------

    def _begin(self, kept: KeptJob) -> None:
        if not self._closed and kept.id not in self._taking:
            self._taking.add(kept.id)
            self._tasks.spawn(self._take_over(kept), "take over")

    async def _take_over(self, kept: KeptJob) -> None:
        """Read what the others know, then lead. If it cannot be done now, it is tried again: somebody else may be first."""
        before = kept.ledger.keepers
        try:
            if before is not None and await self._answers(NodeKey(before.body.lead), kept):
                return
            try:
                async with asyncio.timeout(GATHER_S):
                    await self._reading.gather(kept)
            except TimeoutError:
                self._context.tell(Reason.TIMEOUT, f"the other keepers of job {short(kept.id)} answer slowly", kept.id)
            if self._closed or kept.led or kept.ledger.keepers is not before:
                return
            await self._leading.take_over(kept, self.leaving())
        except P2PGridError as error:
            self._not_before_s[kept.id] = self._context.clock() + RETRY_S
            self._context.tell(error.reason, f"job {short(kept.id)} cannot be led here: {error}", kept.id)
        finally:
            self._taking.discard(kept.id)

    async def _answers(self, lead: NodeKey, kept: KeptJob) -> bool:
        """Whether a lead without a session, which may have been closed because nobody used it, leads the job after all."""
        if lead == self._context.me or lead in self.leaving():
            return False
        heard_s = kept.heard_s
        try:
            async with asyncio.timeout(CALL_S):
                await self._ask(lead, [kept])
        except (TimeoutError, P2PGridError):
            return False
        return kept.heard_s > heard_s

    async def _on_handover(self, session: Session, request: HandOver) -> DeltaReply:
        """The lead asks this keeper to go on. Answered, with the new keepers, when it leads."""
        kept = await self._keeping.here(job_id_of(request.job))
        keepers = kept.ledger.keepers if kept is not None else None
        if kept is None or keepers is None or keepers.body.lead != session.peer or self._context.me not in keepers.body.keepers:
            raise RefusedError("this node is no keeper of the job", reason=Reason.UNKNOWN_JOB)
        if self._closed or "submit" not in self._context.member.roles:
            raise RefusedError("this node leads no jobs of others", reason=Reason.NO_ROLE)
        if not kept.led and kept.id not in self._taking:
            self._taking.add(kept.id)
            try:
                await self._leading.take_over(kept, self.leaving() | {session.peer})
            finally:
                self._taking.discard(kept.id)
        return DeltaReply(kept.ledger.lineage.raw_chain())

    def _on_came(self, peer: NodeKey) -> None:
        """Somebody is back who may still take itself for the lead: it learns who leads now."""
        self._leaving.pop(peer, None)
        for led in list(self._leading.jobs.values()):
            newest = led.ledger.keepers
            past = newest is not None and newest.body.epoch > 0 and peer not in newest.body.keepers and led.ledger.lineage.names(peer)
            if past and led.kept.led:
                self._tasks.spawn(self._tell(led, peer), "tell")

    async def _tell(self, led: LedJob, peer: NodeKey) -> None:
        chain = [LogRecord(kinds.KEEPERS, raw) for raw in led.ledger.lineage.raw_chain()]
        delta = DeltaRequest(led.id, (LogRecord(kinds.JOB, led.job.raw), *chain))
        await self._peers.call(peer, "job.delta", delta, DeltaReply, timeout_s=CALL_S)

    # -- receipts ------------------------------------------------------------------------

    async def _on_deliver(self, session: Session, delivery: Delivery) -> DeliveryReply:
        job = job_id_of(delivery.job)
        led = self._leading.jobs.get(job)
        if led is not None and not led.ended.is_set():
            return await self._leading.deliver(session, led, delivery)
        kept = await self._keeping.here(job)
        if kept is None or not kept.ledger.lineage.names(self._context.me):
            raise RefusedError("this node does not keep the job", reason=Reason.UNKNOWN_JOB)
        if kept.ended:
            raise RefusedError("the job is over", reason=Reason.JOB_OVER)
        keepers = kept.ledger.keepers
        lead = keepers.body.lead if keepers is not None else b""
        if lead not in (self._context.me, session.peer) and self._peers.is_live(lead):
            try:
                return await self._peers.call(NodeKey(lead), "job.deliver", delivery, DeliveryReply, timeout_s=RELAY_S)
            except P2PGridError as error:
                self._context.tell(error.reason, f"receipts of job {short(job)} could not be relayed: {error}", job, lead)
        return await self._take_receipts(kept, delivery)

    async def _take_receipts(self, kept: KeptJob, delivery: Delivery) -> DeliveryReply:
        """Nobody leads the job now: what was done meanwhile is kept for whoever will."""
        if len(delivery.items) > DELIVERY_ITEMS_MAX or len(delivery.grants) > GRANTS_MAX:
            raise MalformedError("too many receipts in one message", reason=Reason.MALFORMED)
        context = self._context
        records = [LogRecord(kinds.GRANT, grant) for grant in delivery.grants]
        if kept.role == "kept":
            self._keeping.check_room([LogRecord(kinds.PAYLOAD, item.payload) for item in delivery.items])
        if records:
            await self._keeping.take(kept, records)
        refused: list[str] = []
        for item in delivery.items:
            try:
                receipt = open_envelope(item.receipt, Receipt, context.grid.id, context.wall_ms())
                check_payload(receipt.body, item.payload)
                await self._keeping.take(kept, [LogRecord(kinds.RECEIPT, item.receipt), LogRecord(kinds.PAYLOAD, item.payload)])
            except P2PGridError as error:
                if error.reason == Reason.BAD_SIGNATURE or error.retryable:
                    raise
                refused.append(error.reason or Reason.MALFORMED)
            else:
                refused.append("")
        return DeliveryReply(tuple(refused))

    # -- cancel ----------------------------------------------------------------------------

    async def _on_cancel(self, session: Session, request: CancelRequest) -> Ok:
        cancel = open_envelope(request.cancel, Cancel, self._context.grid.id, self._context.wall_ms())
        kept = await self._keeping.here(job_id_of(cancel.body.job))
        if kept is None:
            raise RefusedError("this node does not keep the job", reason=Reason.UNKNOWN_JOB)
        if cancel.author != kept.job.author:
            # Also when it has ended, which is no reason to say yes to anybody.
            raise RefusedError("only its submitter cancels a job", reason=Reason.NO_ROLE)
        await self._take_cancel(kept, request.cancel)
        return Ok()

    async def _take_cancel(self, kept: KeptJob, raw: bytes) -> None:
        """Merge a cancel; whoever leads the job here stops it. Raises RefusedError unless the submitter signed it."""
        if not kept.ended and await self._keeping.take(kept, [LogRecord(kinds.CANCEL, raw)]):
            kept.tell_watchers()

    async def cancel(self, kept: KeptJob, raw: bytes) -> int:
        """Carry out the submitter's signed cancel here, and tell everybody who keeps or leads the job. Returns how many heard it."""
        await self._take_cancel(kept, raw)
        led = self._leading.jobs.get(kept.id)
        if led is not None and kept.file.failed is None:
            # In the order of the log: what came before the cancel stays readable at the keepers, too.
            with suppress(TimeoutError, P2PGridError):
                async with asyncio.timeout(CALL_S):
                    await self._leading.complete(led)
        keepers = kept.ledger.keepers
        named = dict.fromkeys((keepers.body.lead, *keepers.body.keepers)) if keepers is not None else {}
        others = [NodeKey(key) for key in named if key != self._context.me]
        calls = [self._peers.call(key, "job.cancel", CancelRequest(raw), Ok, timeout_s=CALL_S) for key in others]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return sum(isinstance(answer, Ok) for answer in answers)

    # -- leaving -----------------------------------------------------------------------------

    def peer_leaving(self, peer: NodeKey, within_s: float) -> None:
        """A peer leaves: others keep what it keeps, and nobody counts on it."""
        self._leaving[peer] = self._context.clock() + within_s
        self._leading.pass_over(peer)

    async def leave(self, within_s: float) -> int:
        """Hand over every job that is led here. Returns how many found nobody."""
        self._closed = True
        led = [led for led in self._leading.jobs.values() if not led.ended.is_set()]
        try:
            async with asyncio.timeout(within_s):
                taken = await asyncio.gather(*(self.hand_over(one) for one in led))
        except TimeoutError:
            taken = [led_job.ended.is_set() for led_job in led]
        return sum(not one for one in taken)

    async def hand_over(self, led: LedJob) -> bool:
        """Let a keeper lead a job from now on; whether one does."""
        try:
            if led.file.failed is None:
                async with asyncio.timeout(GATHER_S):
                    await self._leading.complete(led)
        except (TimeoutError, P2PGridError):
            pass
        for keeper in led.keepers:
            if not self._peers.is_live(keeper) or keeper in self.leaving():
                continue
            try:
                reply = await self._peers.call(NodeKey(keeper), "job.handover", HandOver(led.id), DeltaReply, timeout_s=CALL_S)
                if led.file.failed is None:
                    await self._keeping.learn(led.kept, reply.keepers)
            except P2PGridError as error:
                self._context.tell(error.reason, f"job {short(led.id)} was not handed to {short(keeper)}: {error}", led.id, keeper)
            else:
                return True
        return False
