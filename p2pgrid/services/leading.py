"""Leading jobs: the core's Lead joined to sessions, the job's log and the keepers (docs/spec/job.md).

1. A grant leaves before it is on disk: a lead that crashes in between only makes its units run again. A receipt
   is acknowledged, and its results are shown to anybody, only after it is on disk.
2. A job whose log cannot be written, whose derived units cannot be stored, or whose time is over is stopped, and says why.
3. A job is led from its submission on, or from where another lead left it. Who hears of a newer lead stops leading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from p2pgrid.core import lead as core
from p2pgrid.core.keeping import K, workers_of
from p2pgrid.errors import MalformedError, P2PGridError, RefusedError, RemoteError, TryAgainError, UnreachableError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import JobId, NodeKey, StatementId, short
from p2pgrid.model.job import Settled
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import Grant, Receipt
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.deriving import Deriving
from p2pgrid.services.keeping import Keeping
from p2pgrid.services.ledjob import Batches, LedJob, say_ended
from p2pgrid.services.noticing import Noticing
from p2pgrid.services.outbox import DELIVERY_ITEMS_MAX
from p2pgrid.services.peers import Peers
from p2pgrid.services.pushing import Pushing
from p2pgrid.services.recruiting import Recruiting
from p2pgrid.services.results import check_payload, root_of
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.envelope import Signed, open_envelope, seal
from p2pgrid.wire.messages import (
    CancelRequest,
    Delivery,
    DeliveryReply,
    JobDeclined,
    JobInvite,
    JobPreparing,
    LeasesReturned,
    LogRecord,
    Payload,
    PullReply,
    PullRequest,
)

TICK_S = 1.0
ENDED_IN_MEMORY_MAX = 64
SETTLE_S = 15.0
"""How long the end of a job waits for its keepers."""
ASKS_WITHIN_S = 10.0
"""Who has not asked for units of a job so long after its start is not counted on."""
ASSEMBLE_RETRIES_S = (0.2, 1.0, 3.0, 10.0)
UNIT_PAYLOAD_BYTES_MAX = 64 << 10
"""What one unit may put into a log: an inline result, or the longest account of a failure."""
GRANTS_MAX = 4096
RECORD_KINDS = {"grant": kinds.GRANT, "receipt": kinds.RECEIPT, "decision": kinds.DECISION, "settled": kinds.SETTLED}


async def _nobody(led: LedJob) -> bool:
    return False


class Leading:
    """All jobs this node leads. ``start`` before use, ``close`` at the end."""

    def __init__(self, context: Context, peers: Peers, storing: Storing, keeping: Keeping) -> None:
        self._context = context
        self._peers = peers
        self._storing = storing
        self._keeping = keeping
        self._tasks = Tasks("leading")
        self._pushing = Pushing(context, peers, self._replace_keeper, self._on_newer)
        self.recruiting = Recruiting(context, peers)
        self.deriving = Deriving(context, storing)
        self._batches = Batches(context.offload)
        self.jobs: dict[JobId, LedJob] = {}
        """Those that are led now, and those whose end the keepers are still told."""
        self.hand_over: Callable[[LedJob], Awaitable[bool]] = _nobody
        """Lets a keeper lead a job that cannot go on here; whether one does."""
        keeping.merged.append(self._on_merged)
        methods = context.methods
        methods.on("job.pull", PullRequest, self._on_pull, role="work")
        methods.on_notify("job.returned", LeasesReturned, self._on_returned)
        methods.on_notify("job.preparing", JobPreparing, self._on_preparing)
        self._noticing = Noticing(context)
        methods.on_notify("job.declined", JobDeclined, self._on_declined, role="work")

    async def start(self) -> None:
        self._peers.on_gone(self._on_gone)
        self._peers.on_restarted(self._on_restarted)
        self._tasks.spawn(self._tick(), "tick")

    async def close(self) -> None:
        await self._tasks.close()
        await self._pushing.close()

    # -- the beginning ---------------------------------------------------------------

    def lead(self, kept: KeptJob, epoch: int) -> LedJob:
        """Begin to lead a job that is whole here."""
        led = LedJob(kept, core.Lead(kept.ledger, self._seal, self._context.rng, epoch=epoch))
        led.started_s = self._context.clock()
        kept.role, kept.led, kept.stopped = "led", True, ""
        if kept.ended:
            # There is nothing left to do but to see that enough others have it.
            led.lead.handle(core.Stopped(), led.started_s, self._context.wall_ms())
            led.ended.set()
        self.jobs[led.id] = led
        self._keeping.index(kept)
        self._pushing.add(kept)
        return led

    def reached(self, led: LedJob) -> int:
        """How many other nodes have everything of a job that is on this disk."""
        return self._pushing.reached(led.id)

    def begin(self, kept: KeptJob, batches: Sequence[bytes]) -> LedJob:
        """Lead a job that was just submitted here, from its first unit on."""
        for number, content in enumerate(batches):
            self._batches.put(kept.id, number, content)
        led = self.lead(kept, epoch=0)
        self._hear(led, core.WorkersKnown(self._workers(led)))
        return led

    async def take_over(self, kept: KeptJob, not_these: frozenset[bytes] = frozenset()) -> LedJob:
        """Lead a job from where it stands: name this node lead in a new keeper set, and go on.

        ``not_these``: nodes that are not to keep it. Raises what the disk raises; RefusedError if its batches are not here.
        """
        context = self._context
        current = kept.ledger.keepers
        if current is None or not kept.whole:
            raise RefusedError("the job is not here as a whole", reason=Reason.UNKNOWN_JOB)
        before = [key for key in (current.body.lead, *current.body.keepers) if key != context.me and key not in not_these]
        keep = tuple(await self._peers.reachable(before))[:K]
        if kept.led or kept.ledger.keepers is not current:
            raise TryAgainError("others were named meanwhile", reason=Reason.STALE)
        keepers = self.recruiting.name(kept, keep, current.body.epoch + 1, not_these)
        await kept.file.append([LogRecord(kinds.KEEPERS, keepers.raw)])
        kept.ledger.add(keepers)
        if kept.ledger.keepers is not keepers:
            raise TryAgainError("others were named meanwhile", reason=Reason.STALE)
        led = self.lead(kept, keepers.body.epoch)
        if not led.ended.is_set():
            there = frozenset([context.me, *self._peers.live()])
            self._hear(led, core.Began(there))
            self._hear(led, core.WorkersKnown(self._workers(led)))
        context.tell(Reason.TOOK_OVER, f"this node leads job {short(kept.id)} from now on", kept.id, current.body.lead)
        return led

    def _on_merged(self, kept: KeptJob, first: int) -> None:
        """Records of others were merged: a newer lead, a cancel, or receipts that another keeper took."""
        led = self.jobs.get(kept.id)
        if led is None or not kept.led:
            return
        newest = kept.ledger.keepers
        if newest is not None and newest.body.lead != self._context.me:
            self.step_down(led)
        elif led.ended.is_set():
            self._settle_again(led)
        elif kept.ledger.cancelled is not None:
            self._stop(led)
        else:
            self._hear(led, core.Merged(first))

    def _on_newer(self, job: JobId, chain: tuple[bytes, ...]) -> None:
        led = self.jobs.get(job)
        if led is not None and led.kept.led:
            self._tasks.spawn(self._learn(led, chain), "learn")

    async def _learn(self, led: LedJob, chain: tuple[bytes, ...]) -> None:
        await self._keeping.learn(led.kept, chain)

    def step_down(self, led: LedJob) -> None:
        """Others lead the job: lease nothing more, and give the new lead what only this node knows."""
        newest = led.ledger.keepers
        if newest is None:
            return
        led.lead.handle(core.Stopped(), self._context.clock(), self._context.wall_ms())
        led.ended.set()
        led.kept.led = False
        led.kept.role = "kept"
        led.kept.heard_s = self._context.clock()
        self._pushing.set_keepers(led.id, (newest.body.lead,))
        lead = newest.body.lead
        self._context.tell(Reason.TOOK_OVER, f"node {short(lead)} leads job {short(led.id)} from now on", led.id, lead)
        self._tasks.spawn(self._hand_on(led), "hand on")

    async def _hand_on(self, led: LedJob) -> None:
        with suppress(TimeoutError, P2PGridError):
            async with asyncio.timeout(SETTLE_S):
                await self._pushing.complete(led.id)
        if self.jobs.get(led.id) is led:
            del self.jobs[led.id]
            self._pushing.remove(led.id)
        led.kept.tell_watchers()

    async def batch(self, led: LedJob, number: int) -> bytes:
        """A batch of the manifest. Raises what reading the disk raises."""
        return await self._batches.get(led, number)

    async def complete(self, led: LedJob) -> None:
        """Wait until every keeper has everything posted so far."""
        await self._pushing.complete(led.id)

    def pass_over(self, node: NodeKey) -> None:
        """A node leaves: others keep what it keeps."""
        for led in list(self.jobs.values()):
            if node in led.keepers:
                self._replace_keeper(led.id, node)

    def _replace_keeper(self, job: JobId, failed: bytes | None) -> None:
        """A keeper is gone or refused (or, with None, the set is short): name others if there are any."""
        led = self.jobs.get(job)
        named = self.recruiting.replace(led, failed) if led is not None else None
        if named is not None:
            self._pushing.set_keepers(job, named.body.keepers)

    def _seal(self, statement: Any) -> Signed[Any]:
        return seal(statement, self._context.key, self._context.grid.id)

    # -- the end by cancel -----------------------------------------------------------

    def _stop(self, led: LedJob) -> None:
        """The job was cancelled: tell everybody who works on it, and end it."""
        cancel = led.ledger.cancelled
        assert cancel is not None
        self._hear(led, core.Stopped())
        for worker in sorted(led.lead.workers.keys() | led.lead.known):
            self._peers.notify(NodeKey(worker), "job.cancelled", CancelRequest(cancel.raw))
        self._end(led)

    # -- workers -----------------------------------------------------------------

    async def _on_pull(self, session: Session, request: PullRequest) -> PullReply:
        led = self._led(request.job)
        want, slots = max(1, min(request.want, 1 << 16)), max(1, min(request.slots, 4096))
        if session.peer not in self._workers(led) | led.lead.known:
            return PullReply(over=led.ended.is_set())
        self._give_up(led, session.peer, request)
        led.declined.pop(session.peer, None)
        pulled = core.Pulled(session.peer, session.peer, slots, want)
        granted = self._hear(led, pulled)
        assert granted is not None
        if granted.grant is None:
            return PullReply(granted.over)
        newest = led.ledger.keepers
        newer = newest is not None and (request.need_job or newest.body.epoch > request.epoch)
        chain = led.ledger.lineage.raw_chain() if newer else ()
        job = led.job.raw if request.need_job else b""
        sent = led.sent.setdefault(session.peer, set())
        sent.intersection_update(request.have)
        needed = sorted({unit_range.batch for unit_range in granted.grant.body.ranges} - sent)
        try:
            batches = [(number, await self._batches.get(led, number)) for number in needed if number < len(led.job.body.manifest)]
        except P2PGridError:
            # The lease never arrives: its units must not wait for its deadline.
            self._hear(led, core.WorkerGone(session.peer))
            raise
        sent.update(number for number, _ in batches)
        return PullReply(False, granted.grant.raw, job, chain, tuple(batches))

    def _give_up(self, led: LedJob, worker: NodeKey, request: PullRequest) -> None:
        """What this lead believes of leases that an earlier one granted is set right by the worker's first pull."""
        newest = led.ledger.keepers
        if newest is not None and request.epoch < newest.body.epoch:
            lost = led.lead.book.by_worker.get(worker, set()) - set(request.leases)
            if lost:
                event = core.Returned(worker, tuple(sorted(lost)))
                self._hear(led, event)

    def _on_returned(self, session: Session, returned: LeasesReturned) -> None:
        led = self.jobs.get(JobId(StatementId(returned.job)))
        if led is not None and not led.ended.is_set() and len(returned.grants) <= GRANTS_MAX:
            event = core.Returned(session.peer, returned.grants)
            self._hear(led, event)

    def _on_preparing(self, session: Session, notice: JobPreparing) -> None:
        led = self.jobs.get(JobId(StatementId(notice.job)))
        if led is not None and not led.ended.is_set() and session.peer in led.lead.workers:
            led.preparations.hear(session.peer, notice, self._context.clock(), led.started_s)

    def _on_declined(self, session: Session, declined: JobDeclined) -> None:
        led = self.jobs.get(JobId(StatementId(declined.job)))
        if led is not None and not led.ended.is_set() and session.peer in led.lead.known | led.lead.workers.keys():
            self._noticing.declined(led, session.peer, declined.reason)

    async def deliver(self, session: Session, led: LedJob, delivery: Delivery) -> DeliveryReply:
        """Take receipts for a job that is led here; answered when they are on disk."""
        context = self._context
        if led.file.failed is not None:
            # Its memory is ahead of its disk: nothing may be acknowledged any more.
            raise TryAgainError("the log of this job cannot be written", reason=Reason.DISK_FULL)
        if len(delivery.items) > DELIVERY_ITEMS_MAX:
            raise MalformedError("too many receipts in one message", reason=Reason.MALFORMED)
        await led.file.calm()
        self._take_grants(led, delivery.grants)
        refused: list[str] = []
        for item in delivery.items:
            try:
                receipt = open_envelope(item.receipt, Receipt, context.grid.id, context.wall_ms())
                if len(item.payload) > len(receipt.body.outcomes) * UNIT_PAYLOAD_BYTES_MAX + 64:
                    raise MalformedError("a payload over its limit", reason=Reason.TOO_LARGE)
                payload = self._checked_payload(led, session.peer, receipt.body, item.payload)
                effects = led.lead.handle(core.Delivered(receipt), context.clock(), context.wall_ms())
            except P2PGridError as error:
                if error.reason == Reason.BAD_SIGNATURE:
                    # Checking costs more than sending: nobody gets two in one message.
                    raise
                refused.append(error.reason or Reason.MALFORMED)
                continue
            refused.append("")
            self._noticing.answered(led, session.peer, receipt.body.outcomes)
            led.kept.payloads.put(receipt.body.payload, payload, len(item.payload))
            self._apply(led, effects, (receipt, item.payload))
        end = led.file.end
        await led.file.wait(end)
        return DeliveryReply(tuple(refused))

    def _take_grants(self, led: LedJob, raws: Sequence[bytes]) -> None:
        """Leases by an earlier lead, of which nobody told this one before that lead was gone."""
        if len(raws) > DELIVERY_ITEMS_MAX:
            raise MalformedError("too many leases in one message", reason=Reason.MALFORMED)
        records = []
        for raw in raws:
            grant = open_envelope(raw, Grant, self._context.grid.id, self._context.wall_ms())
            if led.ledger.add_grant(grant):
                records.append(LogRecord(kinds.GRANT, raw))
        if records:
            led.file.post(records, lazy=True)

    def _checked_payload(self, led: LedJob, worker: NodeKey, receipt: Receipt, payload: bytes) -> Payload:
        """Raises as check_payload. Who sends what does not fit holds no lease any longer: others get its units at once."""
        try:
            return check_payload(receipt, payload)
        except RemoteError:
            if worker in led.lead.workers:
                self._hear(led, core.WorkerGone(worker))
            raise

    def _on_gone(self, peer: NodeKey) -> None:
        """The session to a peer ended and it cannot be dialled again: its leases are returned, and another keeps what it kept."""
        self._on_restarted(peer)
        for led in list(self.jobs.values()):
            if peer in led.keepers:
                self._replace_keeper(led.id, peer)

    def _on_restarted(self, peer: NodeKey) -> None:
        """A peer knows nothing any more of what it had begun, though its session may never have been missed."""
        for led in list(self.jobs.values()):
            led.sent.pop(peer, None)
            led.declined.pop(peer, None)
            if peer in led.lead.workers:
                self._noticing.gone(led, peer)
                self._hear(led, core.WorkerGone(peer))

    def workers_now(self, led: LedJob) -> frozenset[bytes]:
        """To whom units of a job are given now."""
        return self._workers(led)

    def _workers(self, led: LedJob) -> frozenset[bytes]:
        known = self._peers.workers_for(led.job.body, own=led.job.author == self._context.submitter.public)
        waited = self._context.clock() - led.started_s > ASKS_WITHIN_S
        return workers_of(known, led.keepers, led.job.body.quorum, known - led.lead.workers.keys() if waited else frozenset())

    def _led(self, job: bytes) -> LedJob:
        led = self.jobs.get(JobId(StatementId(job)))
        if led is None:
            raise RefusedError("this node does not lead the job", reason=Reason.UNKNOWN_JOB)
        return led

    # -- effects -------------------------------------------------------------------

    def _hear(self, led: LedJob, event: core.Event) -> core.Granted | None:
        """Tell the core what happened now, and carry out what it wants."""
        return self._apply(led, led.lead.handle(event, self._context.clock(), self._context.wall_ms()))

    def _apply(self, led: LedJob, effects: list[core.Effect], payload: tuple[Signed[Receipt], bytes] | None = None) -> core.Granted | None:
        """Carry out what the core decided: records in one post, messages, and what follows on disk."""
        granted: core.Granted | None = None
        records: list[LogRecord] = []
        decided = False
        for effect in effects:
            match effect:
                case core.Granted():
                    granted = effect
                case core.Record(statements):
                    for statement in statements:
                        records.append(LogRecord(RECORD_KINDS[statement.body.TYPE], statement.raw))
                        if payload is not None and statement is payload[0]:
                            records.append(LogRecord(kinds.PAYLOAD, payload[1]))
                case core.Decided(entries):
                    decided = True
                    self._noticing.decided(led, entries)
                case core.Late():
                    self._noticing.late(led, effect)
                case core.Invite(workers):
                    self._invite(led, workers)
                case core.AssembleDerived(batches):
                    self._tasks.spawn(self._assemble(led, batches), "derive")
                case core.Over():
                    self._tasks.spawn(self._finish(led), "finish")
        if records:
            # A lease waits for its receipts: until then nobody is told of it but the worker.
            cursors = led.file.post(records, lazy=all(record.kind == kinds.GRANT for record in records))
            if payload is not None:
                for record, cursor in zip(records, cursors, strict=True):
                    if record.kind == kinds.PAYLOAD:
                        led.kept.payload_at[payload[0].body.payload] = cursor
        if decided:
            led.kept.tell_watchers()
        return granted

    def _invite(self, led: LedJob, workers: Sequence[bytes]) -> None:
        body = led.job.body
        invite = JobInvite(led.id, body.runtime, body.limits.memory_bytes, body.expires_ms)
        for worker in workers:
            self._peers.notify(NodeKey(worker), "job.invite", invite)

    async def _assemble(self, led: LedJob, batches: Sequence[int]) -> None:
        """Build derived batches one after the other; each is leased as soon as it is stored."""
        for number in batches:
            for wait_s in (*ASSEMBLE_RETRIES_S, None):
                if led.ended.is_set():
                    return
                try:
                    await self._assemble_one(led, number)
                    break
                except P2PGridError as error:
                    if not error.retryable or wait_s is None:
                        self.break_off(led, f"its results could not be joined: {error.message}")
                        return
                    await asyncio.sleep(wait_s)

    async def _assemble_one(self, led: LedJob, number: int) -> None:
        content = await self.deriving.content(led.kept, number)
        blob = await self._storing.keep_bytes(content, led.job.body.expires_ms, led.job.body.replicas, led.keepers)
        event = core.DerivedReady(number, blob)
        self._hear(led, event)

    async def _finish(self, led: LedJob) -> None:
        """Sign the end of the job, and wait until every keeper has it. With the submitter's key it is final."""
        if led.ended.is_set() or led.ledger.cancelled is not None:
            return
        # The last results go out as soon as they are on disk: nothing here may stand in their way.
        with suppress(P2PGridError):
            await led.file.wait(led.file.end)
        self._settle(led)
        await led.file.wait(led.file.end)
        try:
            await asyncio.wait_for(self._pushing.complete(led.id), SETTLE_S)
        except (TimeoutError, UnreachableError):
            led.keepers_note = "not every keeper has confirmed the end of the job"
        self._end(led)

    def _settle(self, led: LedJob) -> None:
        context, ledger = self._context, led.ledger
        root = root_of(ledger, range(ledger.layout.batches))
        statement = Settled(led.job.body.expires_ms, led.id, ledger.done, ledger.failed, root)
        settled = seal(statement, context.key_for(led.job.author), context.grid.id)
        if ledger.add(settled):
            led.file.post([LogRecord(kinds.SETTLED, settled.raw)])

    def _settle_again(self, led: LedJob) -> None:
        """The job had ended; then what another lead decided meanwhile was merged, and another answer may stand for some unit."""
        if led.kept.state in ("running", "incomplete") and led.ledger.complete and led.file.failed is None:
            self._settle(led)
            self._keeping.index(led.kept)

    def _end(self, led: LedJob) -> None:
        """The first end counts."""
        if led.ended.is_set():
            return
        led.ended.set()
        self._keeping.index(led.kept)
        reason = {"cancelled": Reason.CANCELLED, "stopped": Reason.STOPPED}.get(led.state, Reason.JOB_OVER)
        self._context.tell(reason, f"job {short(led.id)} {led.state}", led.id)
        say_ended(led, self._context.clock() - led.started_s)
        led.kept.tell_watchers()

    def break_off(self, led: LedJob, why: str) -> None:
        """The job cannot go on here: stop leasing. One of its keepers goes on if it can; else it is stopped, and says why."""
        if led.ended.is_set() or led.broken:
            return
        led.broken = True
        led.lead.handle(core.Stopped(), self._context.clock(), self._context.wall_ms())
        self._tasks.spawn(self._pass_on(led, why), "pass on")

    async def _pass_on(self, led: LedJob, why: str) -> None:
        handed = led.job.body.expires_ms > self._context.wall_ms() and await self.hand_over(led)
        if led.ended.is_set():
            return
        led.kept.stopped = f"the job was stopped: {why}" + ("; another keeper goes on with it" if handed else "")
        self._context.tell(Reason.TOOK_OVER if handed else Reason.STOPPED, f"job {short(led.id)}: {led.kept.stopped}", led.id)
        self._end(led)

    def _forget_ended(self) -> None:
        """A job that has ended, and whose end is on disk and told, is led no longer."""
        done = [led for led in self.jobs.values() if led.ended.is_set() and led.kept.led]
        ended = [led for led in done if led.file.failed is not None or (led.file.settled and not self._pushing.busy(led.id))]
        for led in ended[: max(0, len(ended) - ENDED_IN_MEMORY_MAX)]:
            del self.jobs[led.id]
            self._pushing.remove(led.id)
            led.kept.led = False

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._forget_ended()
            for led in list(self.jobs.values()):
                if len(led.keepers) < K:
                    self._replace_keeper(led.id, None)
                if not (led.ended.is_set() or led.broken):
                    try:
                        self._look_after(led, self._context.clock(), self._context.wall_ms())
                    except P2PGridError as error:
                        self._context.tell(error.reason, f"job {short(led.id)}: {error}", led.id)

    def _look_after(self, led: LedJob, now: float, now_ms: int) -> None:
        if led.file.failed is not None:
            self.break_off(led, led.file.failed.message)
            return
        if led.job.body.expires_ms < now_ms:
            self.break_off(led, "its time is over")
            return
        self._hear(led, core.WorkersKnown(self._workers(led)))
        self._hear(led, core.Tick())
        self._noticing.look(led)
