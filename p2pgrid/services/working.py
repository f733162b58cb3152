"""Working for leads: the core's Worker joined to sessions and to the pool of worker processes (docs/spec/worker.md).

1. What a lead hands out is checked whole before a unit of it starts (:mod:`p2pgrid.services.leasing`).
2. What a job keeps in memory here is bounded: batches that nobody needs go first, then jobs that nobody works on.
3. A unit that cannot be run is answered with the reason; a lease is not left to run into its deadline.
4. No peer has more than a share of the places for leads, so that nobody crowds the others out.
5. A lead that is gone ends nothing while somebody else leads or keeps its job and can be reached: the results go there.
6. A node that leaves answers what has ended before it hands a lease back, so that no unit that ended runs again.
7. A pause is the same, but for the end: the node goes on as a member, and may work again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from p2pgrid.core import worker as core
from p2pgrid.errors import P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.ids import DIGEST_BYTES, NodeKey, short
from p2pgrid.model.job import AUTO, Cancel
from p2pgrid.model.reasons import CODES, Reason
from p2pgrid.model.work import NO_INPUT, Grant
from p2pgrid.net.rpc import Session
from p2pgrid.runtimes.tasks import BatchChunk, Workers
from p2pgrid.services.announcing import Announcing
from p2pgrid.services.context import Context
from p2pgrid.services.declining import Declining
from p2pgrid.services.delivering import Delivering
from p2pgrid.services.knownjobs import KnownJob, KnownJobs
from p2pgrid.services.leasing import Leasing
from p2pgrid.services.outbox import GIVE_UP_AFTER_S, Course, Source
from p2pgrid.services.peers import Peers
from p2pgrid.services.preparing import Preparing
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Signed, open_envelope, peek, statement_id
from p2pgrid.wire.messages import CancelRequest, JobInvite, LeasesReturned, PullReply, PullRequest

JOBS_PER_LEAD_MAX = 32
LEASES_MAX = 4096
LEASES_TOLD_MAX = 256
PULL_S = 15.0
GRACE_S = 1.7
"""What units that run get to end when their node leaves: the machine is to be free within two seconds."""
LAST_DELIVERY_S = 10.0
"""How long a node that leaves waits for its receipts to be taken."""
STOP_S = 5.0
QUIET = (Reason.JOB_OVER, Reason.SHUTDOWN, Reason.DRAINED, Reason.PAUSED)
"""Why a task was stopped through no fault of its units: these are handed back, and not answered."""
UNABLE = (
    Reason.NO_CAGE,
    Reason.NO_RUNNER,
    Reason.NO_ENVIRONMENT,
    Reason.PACKAGE_REFUSED,
    Reason.NO_WHEEL,
    Reason.BUILD_FAILED,
)
"""Why units cannot run here, though they may elsewhere: they are handed back, and the job is refused from then on."""
LAST_WORDS_S = 1.0
"""For the answers to pulls that were under way, whose leases are handed back."""


@dataclass
class _Lease:
    source: Source
    left: int
    """Units whose tasks have not ended."""
    drained: bool = False
    """Some of its units will not be answered, since this node leaves or pauses."""


class Working:
    """Pulls, runs, and hands results to :class:`Delivering`."""

    def __init__(
        self, context: Context, peers: Peers, storing: Storing, pool: Workers, preparing: Preparing, announcing: Announcing | None = None
    ) -> None:
        """``announcing``: tells leads what is prepared for their jobs; None: only that inputs are fetched."""
        self._context = context
        self._peers = peers
        self._pool = pool
        self._tasks = Tasks("working")
        self._preparing = preparing
        self._announcing = announcing or Announcing(context, peers, lambda environment: None, lambda job: False)
        self._delivering = Delivering(context, peers, storing)
        self._jobs = KnownJobs()
        self._known = self._jobs.known
        self._leasing = Leasing(context, peers, storing, self._jobs)
        self._refused = self._leasing.refused
        self._declining = Declining(peers)
        self._owed: dict[bytes, _Lease] = {}
        """Leases whose tasks have not all ended; bounded, and of a forgotten lease every task counts as the last."""
        self._runs: dict[asyncio.Task[None], bool] = {}
        """Tasks of the core that are under way, and whether the pool has them."""
        self._leadless: dict[core.SourceKey, asyncio.TimerHandle] = {}
        """Sources whose lead is gone, each with the timer that looks for somebody who would take its results."""
        self.worker = core.Worker(context.policy.cores)
        self.done = 0
        self._deliver_s = LAST_DELIVERY_S
        context.methods.on_notify("job.invite", JobInvite, self._on_invite)
        context.methods.on_notify("job.cancelled", CancelRequest, self._on_cancelled)

    async def start(self) -> None:
        self._peers.on_gone(self._on_gone)
        self._peers.on_restarted(self._on_gone)

    async def close(self) -> None:
        for timer in self._leadless.values():
            timer.cancel()
        self._announcing.close()
        await self._tasks.close()
        await self._delivering.close()

    # -- invitations and leases ------------------------------------------------------

    def _on_invite(self, session: Session, invite: JobInvite) -> None:
        policy = self._context.policy if session.peer == self._context.me else self._context.terms
        offered = invite.runtime in policy.runtimes or invite.runtime == AUTO
        if policy.cores < 1 or not offered:
            self._declining.tell(invite.job, session.peer, Reason.NO_RUNTIME if policy.cores else Reason.NO_SLOT)
            return
        refused = self._leasing.why_refused(invite.job, session.peer)
        if refused is not None:
            self._declining.tell(invite.job, session.peer, refused)
            return
        if invite.expires_ms < self._context.wall_ms() or self._delivering.outboxes.congested or len(invite.job) != DIGEST_BYTES:
            return
        key = (invite.job, session.peer)
        if key not in self.worker.sources and sum(lead == session.peer for _, lead in self.worker.sources) >= JOBS_PER_LEAD_MAX:
            return
        if key in self._leadless:
            self._leadless.pop(key).cancel()
        self._handle(core.Invited(key, session.peer))

    def _handle(self, event: core.Event) -> None:
        for effect in self.worker.handle(event, self._context.clock()):
            match effect:
                case core.Pull():
                    self._tasks.spawn(self._pull(effect), "pull")
                case core.Run():
                    self._begin(effect)
                case core.Return():
                    self._take_back(effect)

    def _answering(self, job: bytes) -> tuple[bytes, ...]:
        """Leases of a job that this node still answers: it runs their units, or has not delivered their receipts."""
        running = [grant for grant, lease in self._owed.items() if lease.source.job == job]
        return tuple(dict.fromkeys([*running, *self._delivering.grants(job)]))[-LEASES_TOLD_MAX:]

    async def _pull(self, pull: core.Pull) -> None:
        job, lead = pull.source
        known = self._known.get(job)
        if self._delivering.outboxes.congested:
            self._handle(core.Dry(pull.source))
            return
        have = tuple(known.batches) if known else ()
        request = PullRequest(job, pull.slots, pull.want, known is None, have, known.epoch if known else -1, self._answering(job))
        if known is not None:
            known.pulls += 1
        reply = PullReply(False)
        try:
            reply = await self._peers.call(NodeKey(lead), "job.pull", request, PullReply, timeout_s=PULL_S)
            leased = await self._take_lease(pull, reply)
        except P2PGridError as error:
            if not error.retryable:
                self._refuse_lease(job, NodeKey(lead), reply, error)
            self._handle(core.Dry(pull.source, over=not error.retryable))
            return
        finally:
            if known is not None:
                known.pulls -= 1
        if reply.over:
            self._end_leadless(job, lead)
        self._handle(leased or core.Dry(pull.source, over=reply.over))

    def _refuse_lease(self, job: bytes, lead: NodeKey, reply: PullReply, error: P2PGridError) -> None:
        """Say why nothing is taken, and give back what came: its units must not wait for a deadline."""
        self._context.tell(error.reason, f"job {short(job)}: {error}", job, lead)
        self._declining.tell(job, lead, error.reason)
        if reply.grant:
            if self._leasing.why_refused(job, lead) is None:
                self._leasing.pass_over(job, lead, CODES.get(error.reason, Reason.BAD_GRANT))
            with suppress(P2PGridError):
                envelope = peek(reply.grant)
                grant = statement_id(envelope.author, envelope.body)
                self._peers.notify(lead, "job.returned", LeasesReturned(job, (grant,), str(error.reason)))

    async def _take_lease(self, pull: core.Pull, reply: PullReply) -> core.Leased | None:
        """Check everything a lead handed out. Raises when it does not fit together."""
        job, lead = pull.source
        taken = await self._leasing.take(job, NodeKey(lead), reply)
        if taken is None:
            return None
        known, grant = taken
        source = Source(known, NodeKey(lead), grant.id, grant.raw, Course(self._context.clock()))
        known.pulls += 1
        try:
            await self._leasing.fetch_derived(known, NodeKey(lead), grant.body)
        except P2PGridError as error:
            for unit_range in grant.body.ranges:
                self._delivering.add_missed(source, unit_range, NO_INPUT, error)
            raise TryAgainError("a derived batch could not be fetched", reason=Reason.NO_INPUT) from error
        finally:
            known.pulls -= 1
        if any(unit_range.batch not in known.batches for unit_range in grant.body.ranges):
            raise RefusedError("a lease of units that are not there", reason=Reason.BAD_GRANT)
        if pull.source not in self.worker.sources:
            if self.worker.closed:
                self._tasks.spawn(self._hand_back(source), "hand back")
            return None
        self._reserve(source, grant)
        return core.Leased(pull.source, grant.id, grant.body.ranges)

    def _reserve(self, source: Source, grant: Signed[Grant]) -> None:
        """Keep the batches of a lease until its last unit has ended."""
        self._owed[grant.id] = _Lease(source, sum(unit_range.units for unit_range in grant.body.ranges))
        while len(self._owed) > LEASES_MAX:
            self._owed.pop(next(iter(self._owed)))
        self._jobs.reserve(source.known, grant.body.ranges)

    # -- running -------------------------------------------------------------------

    def _begin(self, run: core.Run) -> None:
        task = self._tasks.spawn(self._run(run), "run")
        if task is not None:
            self._runs[task] = False
            task.add_done_callback(self._forget_run)

    def _forget_run(self, task: asyncio.Task[None]) -> None:
        self._runs.pop(task, None)

    async def _run(self, run: core.Run) -> None:
        job, lead = run.source
        known = self._known[job]
        lease = self._owed.get(run.grant)
        source = lease.source if lease is not None else Source(known, NodeKey(lead), run.grant, b"", Course(self._context.clock()))
        files: list[Path] = []
        done = 0
        preparation = self._announcing.begin(known, lead)

        def on_chunk(chunk: BatchChunk) -> None:
            nonlocal done
            done += len(chunk.outcomes)
            self._announcing.end(preparation)
            self._on_chunk(source, run, chunk)

        try:
            await self._delivering.outboxes.room()
            task = await self._preparing.task(known, lead, run.range, files)
            self._note_in_pool()
            preparation.in_pool = True
            if source.course.began_s is None:
                source.course.began_s = self._context.clock()
            await self._pool.run(task, on_chunk)
        except P2PGridError as error:
            if error.reason in UNABLE and known.job.author != self._context.submitter.public:
                self._give_up(run, error)
            elif error.reason not in QUIET and done < run.range.units:
                left = run.range._replace(start=run.range.start + done, units=run.range.units - done)
                self._delivering.add_missed(source, left, NO_INPUT, error)
                done = run.range.units
            if not self.worker.paused or error.reason not in QUIET:
                self._context.tell(error.reason, f"job {short(job)}: {error}", job, lead)
        finally:
            self._announcing.end(preparation)
            self._preparing.release(files)
            self._jobs.release(known, run.range.batch, run.range.units)
            self._end_part(source, run.range.units, answered=done >= run.range.units)
            self._handle(core.TaskEnded(run.source))

    def _give_up(self, run: core.Run, error: P2PGridError) -> None:
        """This node cannot run the units of a job: somebody else may."""
        job, lead = run.source
        reason = next(reason for reason in UNABLE if reason == error.reason)
        self._leasing.refuse(job, reason)
        self._declining.tell(job, NodeKey(lead), reason)
        self._mark_drained(run.grant)
        for key, source in [(key, source) for key, source in self.worker.sources.items() if key[0] == job]:
            for grant, unit_range in list(source.queue):
                self._mark_drained(grant)
                self._take_back(core.Return(key, grant, unit_range))
            self._handle(core.SourceGone(key))

    def _mark_drained(self, grant: bytes) -> None:
        lease = self._owed.get(grant)
        if lease is not None:
            lease.drained = True

    def _note_in_pool(self) -> None:
        task = asyncio.current_task()
        if task is not None and task in self._runs:
            self._runs[task] = True

    def _end_part(self, source: Source, units: int, *, answered: bool) -> None:
        """One signature for a lease where its tasks are short: only the last of them sends at once what was gathered."""
        lease = self._owed.get(source.grant)
        if lease is not None:
            lease.drained |= self.worker.closed and not answered
            lease.left -= units
            if lease.left > 0:
                return
            del self._owed[source.grant]
            if lease.drained:
                self._tasks.spawn(self._hand_back(source), "hand back")
        self._delivering.flush(source)

    def _on_chunk(self, source: Source, run: core.Run, chunk: BatchChunk) -> None:
        units = len(chunk.outcomes)
        self.done += units
        first = source.known.layout.number(run.range.batch, run.range.start)
        unit_range = run.range._replace(start=run.range.start + chunk.first - first, units=units)
        self._delivering.add(source, unit_range, chunk)
        self._handle(core.UnitsDone(run.source, units, chunk.run_us / 1e6))

    # -- ends -----------------------------------------------------------------------

    def _on_cancelled(self, session: Session, request: CancelRequest) -> None:
        # Looked at before it is verified, and verified before it is believed: a signature costs more than a message.
        known = self._known.get(decode(peek(request.cancel).body, Cancel).job)
        if known is None:
            return
        cancel = open_envelope(request.cancel, Cancel, self._context.grid.id, self._context.wall_ms())
        if cancel.author == known.job.author:
            self._tasks.spawn(self._stop(cancel.body.job), "cancel")

    async def _stop(self, job: bytes) -> None:
        for source in [source for source in self.worker.sources if source[0] == job]:
            self._end_source(source)
        self._delivering.drop(job)
        await self._pool.cancel(job)

    def _end_source(self, key: core.SourceKey) -> None:
        """What of its leases has not started will not: nothing is kept for it."""
        if key in self._leadless:
            self._leadless.pop(key).cancel()
        known, source = self._known.get(key[0]), self.worker.sources.get(key)
        if known is not None and source is not None:
            for grant, unit_range in source.queue:
                self._jobs.release(known, unit_range.batch, unit_range.units)
                self._owed.pop(grant, None)
        self._handle(core.SourceGone(key))

    # -- leads that are gone ------------------------------------------------------------

    def _on_gone(self, peer: NodeKey) -> None:
        self._declining.forget_lead(peer)
        for job in self._known.values():
            job.doubt(peer)
        for key in [source for source in self.worker.sources if source[1] == peer]:
            known = self._known.get(key[0])
            if known is not None and self._others(known, peer):
                self._handle(core.LeadGone(key))
                self._watch(key)
            else:
                self._end_source(key)

    @staticmethod
    def _others(known: KnownJob, lead: bytes) -> list[NodeKey]:
        """Who else would take results for a lead."""
        return [node for node in known.leads_and_keepers if node != lead]

    def _watch(self, key: core.SourceKey) -> None:
        """Look after a while whether the results of a source still have somewhere to go."""
        for gone in [other for other in self._leadless if other == key or other not in self.worker.sources]:
            self._leadless.pop(gone).cancel()
        if key in self.worker.sources:
            loop = asyncio.get_running_loop()
            self._leadless[key] = loop.call_later(GIVE_UP_AFTER_S, self._look, key)

    def _look(self, key: core.SourceKey) -> None:
        self._tasks.spawn(self._look_for_keepers(key), "look for keepers")

    async def _look_for_keepers(self, key: core.SourceKey) -> None:
        """A source whose lead stays away, and whose other nodes cannot be reached either, is dropped."""
        known = self._known.get(key[0])
        for node in self._others(known, key[1]) if known is not None else ():
            with suppress(P2PGridError):
                if not self._peers.is_live(node):
                    await self._peers.session(node)
                if key in self._leadless:
                    self._watch(key)
                return
        if key in self._leadless:
            self._end_source(key)

    def _end_leadless(self, job: bytes, lead: bytes) -> None:
        """Somebody who may lead a job says that it is over: so it is for the leads that are gone."""
        known = self._known.get(job)
        if known is not None and known.lineage.names(lead):
            for key in [key for key in self._leadless if key[0] == job]:
                self._end_source(key)

    # -- leaving ------------------------------------------------------------------------

    async def drain(self, grace_s: float = GRACE_S, deliver_s: float = LAST_DELIVERY_S) -> None:
        """Take no more work, and end what is here: for a node that leaves.

        Units that run get ``grace_s`` seconds and then are stopped; no other is started. Receipts are delivered, at most for
        ``deliver_s`` seconds more; leases are handed back as soon as what was answered under them is delivered.
        """
        self._deliver_s = deliver_s
        self._handle(core.Drain())
        await self._stop_units(grace_s)
        await self._delivering.finished(deliver_s)
        await self._tasks.idle(LAST_WORDS_S)

    async def _stop_units(self, grace_s: float) -> None:
        """Start no further unit; those that run may end, and after the grace their processes are ended."""
        self._pool.wind_down()
        await asyncio.sleep(0)  # A task that is cancelled before its first step tidies nothing up.
        for task, in_pool in list(self._runs.items()):
            if not in_pool:
                task.cancel()
        await _ended(list(self._runs), grace_s)
        await self._pool.stop()
        await _ended(list(self._runs), STOP_S)

    def think_again(self) -> None:
        """What this node offers has changed: jobs that were refused may be asked for again."""
        self._refused.clear()
        self._declining.forget()

    # -- pausing ------------------------------------------------------------------------

    async def pause(self, grace_s: float = 1.0) -> None:
        """Give the processors back: no unit runs when this returns, and none starts before :meth:`resume`.

        As :meth:`drain`, but receipts are delivered and leases handed back while the node goes on. Units that were stopped
        count as not begun. One call at a time, also with the two below.
        """
        self._handle(core.Pause())
        await self._stop_units(grace_s)

    def finish(self) -> None:
        """Take nothing new; what is leased is run to its end, which ``worker.idle`` tells."""
        self._handle(core.Finish())

    def resume(self) -> None:
        """Take work again, unless the node leaves."""
        if not self.worker.draining:
            if self.worker.paused:
                self._pool.resume()
            self._handle(core.Resume())

    def _take_back(self, effect: core.Return) -> None:
        """Units that were leased and will not start."""
        lease = self._owed.get(effect.grant)
        known = self._known.get(effect.source[0])
        if known is not None:
            self._jobs.release(known, effect.range.batch, effect.range.units)
        if lease is not None:
            self._end_part(lease.source, effect.range.units, answered=False)

    async def _hand_back(self, source: Source) -> None:
        """Tell who leased them, and who leads by now, that units of a lease were not answered and will not be."""
        reason = Reason.DRAINED if self.worker.draining else Reason.PAUSED
        await self._delivering.settled(source.grant, self._deliver_s)
        known = source.known
        leads = [source.lead, *known.leads_and_keepers[:1], *[lead for job, lead in self.worker.sources if job == known.job.id]]
        for lead in dict.fromkeys(leads):
            if self._peers.is_live(lead):
                self._peers.notify(NodeKey(lead), "job.returned", LeasesReturned(known.job.id, (source.grant,), reason))


async def _ended(tasks: list[asyncio.Task[None]], timeout_s: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s)
