"""What a lead hands out, checked whole before a unit of it starts: job, keepers, lease, batches, ranges (docs/spec/worker.md).

1. Who leases was named for the job, in a chain of keeper sets that begins with the submitter's (:mod:`p2pgrid.core.lineage`), and
   leases for itself.
2. A job that this node refuses is remembered, so that it is not looked at again. Where only the roles of the lead stand in the
   way, it is that lead who is refused: another one may lead the job later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from p2pgrid.core.admission import check_job, choose_runtime, refuse_work
from p2pgrid.core.checks import check_range
from p2pgrid.core.columns import check_apart
from p2pgrid.core.layout import Layout
from p2pgrid.core.lineage import Lineage
from p2pgrid.errors import IntegrityError, MalformedError, RefusedError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import BlobId, NodeKey
from p2pgrid.model.job import Job, KeeperSet
from p2pgrid.model.membership import Member
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import Grant
from p2pgrid.services.context import Context
from p2pgrid.services.knownjobs import JOBS_MAX, KnownJob, KnownJobs
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import Storing
from p2pgrid.wire.envelope import Signed, open_envelope
from p2pgrid.wire.messages import PullReply

CHAIN_MAX = 512
"""Keeper sets in one reply."""
SETS_MAX = 4 * CHAIN_MAX
"""Keeper sets remembered of one job; then only the newest chain is."""
SLICE = 16
"""Signatures of keepers checked before others get their turn."""
PASS_OVER_S = (0.0, 2.0, 8.0, 60.0)
"""After the first, second ... lease that does not fit: who gives one back is invited again within seconds, and each costs a signature."""
OF_LEAD = (Reason.NO_ROLE, Reason.NATIVE_REFUSED)
"""Refusals that say something about the lead, not about the job."""


class Leasing:
    """Looks at what comes in answer to a pull, and fills the table of known jobs."""

    def __init__(self, context: Context, peers: Peers, storing: Storing, jobs: KnownJobs) -> None:
        self._context = context
        self._peers = peers
        self._storing = storing
        self._jobs = jobs
        self.refused: dict[bytes, Reason] = {}
        """By job id, or by job id and lead; the last 256."""
        self._passed_over: dict[bytes, tuple[float, Reason, int]] = {}
        """Until when nothing is asked of a lead for a job, why, and how often its leases did not fit; by both ids, the last 256."""

    def why_refused(self, job: bytes, lead: bytes) -> Reason | None:
        """Why work of this job, or of this lead for it, was refused before; None if it was not."""
        until_s, why, _ = self._passed_over.get(job + lead, (0.0, None, 0))
        passed_over = why if until_s > self._context.clock() else None
        return self.refused.get(job) or self.refused.get(job + lead) or passed_over

    def pass_over(self, job: bytes, lead: bytes, why: Reason) -> None:
        """What this lead handed out for a job does not fit together. What was stale passes, so it is asked again, but ever later."""
        key = job + lead
        _, _, before = self._passed_over.pop(key, (0.0, why, 0))
        self._passed_over[key] = (self._context.clock() + PASS_OVER_S[min(before, len(PASS_OVER_S) - 1)], why, before + 1)
        while len(self._passed_over) > JOBS_MAX:
            self._passed_over.pop(next(iter(self._passed_over)))

    def refuse(self, key: bytes, why: Reason) -> None:
        """From now on work of this job (or of this lead for it: the key is both ids) is refused."""
        self.refused[key] = why
        while len(self.refused) > JOBS_MAX:
            self.refused.pop(next(iter(self.refused)))

    async def take(self, job: bytes, lead: NodeKey, reply: PullReply) -> tuple[KnownJob, Signed[Grant]] | None:
        """The lease that a lead handed out, or None. Raises when something does not fit together."""
        chain = await self._opened_chain(job, reply.keepers)
        known = self._jobs.known.get(job)
        if known is not None:
            self._learn(known, chain)
            self._admit(known.job, lead, known.runtime)
        elif reply.job:
            known = self._meet(job, lead, reply.job, chain)
        if not reply.grant:
            return None
        if known is None:
            raise IntegrityError("a lease without its job", reason=Reason.UNKNOWN_JOB)
        if not known.lineage.names(lead):
            raise RefusedError("the peer does not lead this job", reason=Reason.BAD_GRANT)
        grant = open_envelope(reply.grant, Grant, self._context.grid.id, self._context.wall_ms())
        if grant.body.job != job or grant.body.worker != self._context.me or grant.author != lead:
            raise RefusedError("a lease that is not for this node", reason=Reason.BAD_GRANT)
        known.lineage.check_lead(lead, grant.body.epoch)
        for unit_range in grant.body.ranges:
            check_range(unit_range, known.layout.batch_units)
        check_apart(grant.body.ranges)
        self._take_batches(known, reply)
        self._passed_over.pop(job + lead, None)
        return known, grant

    async def fetch_derived(self, known: KnownJob, lead: NodeKey, grant: Grant) -> None:
        """Fetch the batches that the signed job does not name; nothing else may come in this way."""
        sources = known.places(lead)
        wanted = {unit_range.batch for unit_range in grant.ranges} - known.batches.keys()
        for number, blob in grant.derived:
            if not len(known.job.body.manifest) <= number < known.layout.batches:
                raise IntegrityError("a lease brings another content for a batch of the manifest", reason=Reason.BAD_GRANT)
            if number in wanted:
                self._jobs.put(known, number, await self._storing.read(BlobId(blob), sources, self._context.limits.batch_bytes), 1)

    async def _opened_chain(self, job: bytes, raws: Sequence[bytes]) -> list[Signed[KeeperSet]]:
        """The keeper sets of a reply, each by who signed it; whether that one may is another question."""
        if len(raws) > CHAIN_MAX:
            raise MalformedError("too many keeper sets", reason=Reason.MALFORMED)
        chain: list[Signed[KeeperSet]] = []
        for raw in raws:
            keepers = open_envelope(raw, KeeperSet, self._context.grid.id, self._context.wall_ms())
            if keepers.body.job != job:
                raise RefusedError("the keepers of another job", reason=Reason.BAD_GRANT)
            chain.append(keepers)
            if len(chain) % SLICE == 0:
                await asyncio.sleep(0)
        return chain

    @staticmethod
    def _learn(known: KnownJob, chain: Sequence[Signed[KeeperSet]]) -> None:
        """Others lead or keep a known job by now."""
        lineage = known.lineage if len(known.lineage.sets) + len(chain) <= SETS_MAX else Lineage(known.job)
        for keepers in chain:
            lineage.add(keepers)
        known.lineage = lineage

    def _meet(self, job: bytes, lead: NodeKey, raw: bytes, chain: Sequence[Signed[KeeperSet]]) -> KnownJob:
        """Look at a job for the first time: is it what it says, and may it run here?"""
        context = self._context
        signed = open_envelope(raw, Job, context.grid.id, context.wall_ms())
        if signed.id != job:
            raise RefusedError("another job than the one that was offered", reason=Reason.BAD_GRANT)
        lineage = Lineage(signed)
        for keepers in chain:
            lineage.add(keepers)
        if not lineage.names(lead):
            raise RefusedError("the peer does not lead this job", reason=Reason.BAD_GRANT)
        check_job(signed.body, context.limits)
        known = KnownJob(signed, lineage, Layout(signed.body), runtime=self._admit(signed, lead))
        self._jobs.add(known)
        return known

    def _admit(self, job: Signed[Job], lead: NodeKey, runtime: str = "") -> str:
        """The runtime that units of a job get here, led by this member. Asked for every lease: leads change, and so does what is offered.

        ``runtime``: what was decided before, so that all units of a job run alike here. Raises RefusedError.
        """
        context = self._context
        own = job.author == context.submitter.public
        # The owner's own jobs do not depend on what cages have shown.
        policy = context.policy if own else context.terms
        body = job.body if not runtime else msgspec.structs.replace(job.body, runtime=runtime)
        found = self._peers.member(lead)
        member = Member(lead, found.roles, found.lineage, 0) if found else None
        reason = refuse_work(body, member, own, policy, context.wall_ms(), job.author)
        chosen = choose_runtime(body, member, own, policy)
        if reason is None and not isinstance(chosen, Reason):
            return chosen
        why = reason or Reason.NO_RUNTIME
        self.refuse(job.id + lead if why in OF_LEAD else job.id, why)
        raise RefusedError(f"not run here: {why.sentence}", reason=why)

    def _take_batches(self, known: KnownJob, reply: PullReply) -> None:
        manifest = known.job.body.manifest
        for number, content in reply.batches:
            if not 0 <= number < len(manifest) or blob_id_of(content) != manifest[number].blob:
                raise IntegrityError("a batch is not the one in the manifest", reason=Reason.CORRUPT)
            self._jobs.put(known, number, content, manifest[number].units)
