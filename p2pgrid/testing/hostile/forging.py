"""The forger: a member that puts words into others' mouths, and claims rights that it does not have.

It hears of jobs as any worker does, reads their logs, and makes statements of what it reads: results for leases of
others, leases and decisions of its own, keepers and cancels nobody signed; broken signatures, other grids, statements
that have expired. It sends them to leads, keepers and workers, and forged records to the DHT. None may ever be believed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from p2pgrid.model import log as kinds
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import JobId, NodeKey, StatementId
from p2pgrid.model.job import Cancel, Job, KeeperSet, Settled
from p2pgrid.model.membership import Grid
from p2pgrid.model.statement import Statement
from p2pgrid.model.work import OK, Decision, DecisionEntry, Grant, Receipt
from p2pgrid.net.rpc import Session
from p2pgrid.testing.hostile.adversary import Adversary, AdversaryHost, Target
from p2pgrid.testing.hostile.forged_records import forged_datagram, forged_record, refusal_of
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import Envelope, Signed, peek, seal, statement_id
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import (
    CancelRequest,
    Delivered,
    Delivery,
    DeliveryReply,
    DeltaReply,
    DeltaRequest,
    JobInvite,
    JobReadReply,
    JobReadRequest,
    LogRecord,
    Ok,
    Payload,
    PullReply,
    PullRequest,
)

S = TypeVar("S", bound=Statement)
JOBS_MAX = 16
STATEMENTS_MAX = 64
SIGNATURE_BYTES = 64
READ_SHARE = 0.1
"""How much of what it says only serves to learn."""
HOUR_MS = 3_600_000
UNITS_MAX = 64
"""Units of one forged receipt."""
Forged = tuple[int, bytes]
"""(kind of log record, bytes)."""


@dataclass
class KnownJob:
    """What the forger has read of a job."""

    id: JobId
    lead: NodeKey
    job: Signed[Job] | None = None
    keepers: Signed[KeeperSet] | None = None
    grants: deque[Signed[Grant]] = field(default_factory=lambda: deque(maxlen=STATEMENTS_MAX))
    receipts: deque[Signed[Receipt]] = field(default_factory=lambda: deque(maxlen=STATEMENTS_MAX))
    decisions: deque[Signed[Decision]] = field(default_factory=lambda: deque(maxlen=STATEMENTS_MAX))
    cursor: int = 0

    def learn(self, records: tuple[LogRecord, ...]) -> None:
        """Take what can be used out of a log."""
        for kind, data in records:
            if kind == kinds.JOB:
                self.job = _read(data, Job)
            elif kind == kinds.KEEPERS:
                self.keepers = _read(data, KeeperSet)
            elif kind == kinds.GRANT:
                self.grants.append(_read(data, Grant))
            elif kind == kinds.RECEIPT:
                self.receipts.append(_read(data, Receipt))
            elif kind == kinds.DECISION:
                self.decisions.append(_read(data, Decision))


def _read(raw: bytes, kind: type[S]) -> Signed[S]:
    """A statement as it is written, whoever wrote it."""
    envelope = peek(raw)
    return Signed(decode(envelope.body, kind), envelope.author, statement_id(envelope.author, envelope.body), raw)


class Forger(Adversary):
    """See the module."""

    kind = "forge"

    def prepare(self) -> None:
        self._jobs: OrderedDict[bytes, KnownJob] = OrderedDict()
        self._forge = Forgery(self.host)
        self.methods.on_notify("job.invite", JobInvite, self._on_invite)
        self.methods.on("job.pull", PullRequest, self._on_pull)

    # -- learning -----------------------------------------------------------------------

    def _on_invite(self, session: Session, invite: JobInvite) -> None:
        if invite.job not in self._jobs:
            self._jobs[invite.job] = KnownJob(JobId(StatementId(invite.job)), session.peer)
            while len(self._jobs) > JOBS_MAX:
                self._jobs.popitem(last=False)

    async def _learn(self, job: KnownJob, target: Target) -> None:
        reply = await self.call(target, "job.read", JobReadRequest(job.id, job.cursor), JobReadReply)
        job.learn(reply.records)
        job.cursor = 0 if reply.end else reply.cursor

    # -- attacking ------------------------------------------------------------------------

    def attack(self) -> None:
        target = self.target()
        if target is None:
            return
        known = [job for job in self._jobs.values() if job.job is not None]
        roll = self.rng.random()
        if self._jobs and (roll < READ_SHARE or not known):
            self._ask(target)
        elif roll < 0.3 or not known:
            self._send_record(target)
        else:
            self._send_statement(target, self.rng.choice(known))

    def _ask(self, target: Target) -> None:
        job = self.rng.choice(list(self._jobs.values()))
        leads = [known for known in self.host.targets() if known.key == job.lead]
        self._try("read", self._learn(job, leads[0] if leads else target))

    def _try(self, what: str, work: Any) -> None:
        self.sent[what] += 1
        if not self.spawn(work):
            self.sent["skipped"] += 1

    def _send_record(self, target: Target) -> None:
        """A forged record for the DHT, a datagram in another's name; and a session, without which nobody invites."""
        rng = self.rng
        if not self._jobs and rng.random() < 0.3:
            self._try("session", self.session(target))
        elif rng.random() < 0.3:
            self.sent["datagram"] += 1
            self.datagram(target, forged_datagram(self.host, target))
        else:
            name, message = forged_record(self.host, target)
            self.sent[name] += 1
            self.ask(target, message)

    def on_arrived(self, data: bytes, place: Any) -> None:
        reason = refusal_of(data, self.host.grid.id)
        if reason:
            self.answers[reason] += 1

    def _send_statement(self, target: Target, job: KnownJob) -> None:
        forge = self._forge
        ways: list[tuple[str, Callable[[], Any]]] = [
            ("delta", lambda: self._delta(target, job, forge.statement(job))),
            ("delta", lambda: self._delta(target, job, forge.statement(job))),
            ("deliver", lambda: self._deliver(target, job)),
            ("deliver", lambda: self._deliver(target, job)),
            ("begin", lambda: self._begin(target, job)),
            ("cancel", lambda: self._cancel(target, job)),
            ("invite", lambda: self._invite(target, job)),
            ("junk", lambda: self._junk(target, job)),
        ]
        name, way = self.rng.choice(ways)
        self._try(name, way())

    async def _delta(self, target: Target, job: KnownJob, *records: Forged) -> None:
        """Tell a keeper what its lead never said."""
        for _, raw in records:
            self.host.poison(raw)
        await self.call(target, "job.delta", DeltaRequest(job.id, tuple([LogRecord(*record) for record in records])), DeltaReply)
        self.believed += 1

    async def _deliver(self, target: Target, job: KnownJob) -> None:
        """Results of leases that others have."""
        forged = self._forge.receipt(job)
        if forged is None:
            return
        raw, payload = forged
        self.host.poison(raw)
        reply = await self.call(target, "job.deliver", Delivery(job.id, (Delivered(raw, payload),)), DeliveryReply)
        self.answers.update(reply.refused)
        self.believed += "" in reply.refused

    async def _begin(self, target: Target, job: KnownJob) -> None:
        """A job that its submitter never signed, or that names no such keeper."""
        raw, job_id, keepers = self._forge.job(job, target)
        self.host.poison(raw)
        self.host.poison(keepers)
        records = (LogRecord(kinds.JOB, raw), LogRecord(kinds.KEEPERS, keepers))
        await self.call(target, "job.delta", DeltaRequest(job_id, records), DeltaReply)
        self.believed += 1

    async def _cancel(self, target: Target, job: KnownJob) -> None:
        """Only its submitter cancels a job."""
        _, raw = self._forge.cancel(job)
        self.host.poison(raw)
        session = await self.session(target)
        session.notify("job.cancelled", CancelRequest(raw))
        await self.call(target, "job.cancel", CancelRequest(raw), Ok)
        self.believed += 1

    async def _invite(self, target: Target, job: KnownJob) -> None:
        """Offer work of a job that somebody else leads; what comes of it is in :meth:`_on_pull`."""
        session = await self.session(target)
        session.notify("job.invite", JobInvite(job.id, "native", 0, self.host.wall_ms() + HOUR_MS))

    def _on_pull(self, session: Session, request: PullRequest) -> PullReply:
        """A worker took the bait: a lease in the name of the lead, or of nobody who may give one."""
        job = self._jobs.get(request.job)
        if job is None or job.job is None or job.keepers is None:
            return PullReply(True)
        _, raw = self._forge.grant(job, session.peer)
        self.host.poison(raw)
        self.sent["lease"] += 1
        return PullReply(False, raw, job.job.raw, (job.keepers.raw,))

    async def _junk(self, target: Target, job: KnownJob) -> None:
        """Records that are no statements: payloads of nobody's receipt, unknown kinds, a statement under another's kind."""
        rng = self.rng
        forged = self._forge.statement(job)
        other = rng.choice([kind for kind in (kinds.GRANT, kinds.RECEIPT, kinds.DECISION, kinds.CANCEL) if kind != forged[0]])
        record = rng.choice([(kinds.PAYLOAD, rng.randbytes(rng.randrange(1, 500))), (99, rng.randbytes(20)), (other, forged[1])])
        await self._delta(target, job, record)


class Forgery:
    """Makes statements that must not be believed. All of it is drawn from the host's chance."""

    def __init__(self, host: AdversaryHost) -> None:
        self._host = host
        self._rng = host.rng
        self._nobody = SigningKey(self._rng.randbytes(32))
        self._other_grid = Grid("another", self._nobody.public)

    def _sign(self, body: Statement, author: bytes) -> bytes:
        """Sign in one of the ways that do not hold. ``author``: who would have to say it."""
        host, rng = self._host, self._rng
        way = rng.randrange(6)
        if way == 0:
            return seal(body, self._nobody, host.grid.id).raw
        if way == 1:
            return seal(body, host.key, self._other_grid.id).raw
        if way == 2:
            stale = msgspec.structs.replace(body, expires_ms=host.wall_ms() - 24 * HOUR_MS)
            return seal(stale, host.key, host.grid.id).raw
        if way == 3:
            signature = peek(seal(body, host.key, host.grid.id).raw).signature
            return encode(Envelope(body.TYPE, encode(body), author, signature))
        if way == 4:
            return encode(Envelope(body.TYPE, encode(body), author, rng.randbytes(SIGNATURE_BYTES)))
        return seal(body, host.key, host.grid.id).raw

    def statement(self, job: KnownJob) -> Forged:
        """Any statement that a log holds."""
        made = self._rng.choice([self._receipt, self._grant, self.decision, self._keepers, self.cancel, self._settled])
        return made(job) or self.cancel(job)

    def _expires_ms(self) -> int:
        return self._host.wall_ms() + HOUR_MS

    def _receipt(self, job: KnownJob) -> Forged | None:
        forged = self.receipt(job)
        return None if forged is None else (kinds.RECEIPT, forged[0])

    def receipt(self, job: KnownJob) -> tuple[bytes, bytes] | None:
        """(receipt, payload) for a lease that somebody else has; None before one is known."""
        if not job.grants:
            return None
        rng = self._rng
        grant = rng.choice(job.grants)
        units = sum(unit_range.units for unit_range in grant.body.ranges)
        ranges = grant.body.ranges
        if units > UNITS_MAX:
            ranges, units = (ranges[0]._replace(units=1),), 1
        value = encode(rng.getrandbits(48))
        payload = encode(Payload([msgspec.Raw(value)] * units))
        body = Receipt(
            expires_ms=self._expires_ms(),
            job=job.id,
            grant=grant.id,
            ranges=ranges,
            outcomes=bytes([OK]) * units,
            digests=blob_id_of(value) * units,
            cpu_us=rng.randrange(1000),
            payload=blake3(payload).digest(),
        )
        return self._sign(body, grant.body.worker), payload

    def _grant(self, job: KnownJob) -> Forged | None:
        return self.grant(job, self._host.key.public)

    def grant(self, job: KnownJob, worker: bytes) -> Forged:
        """A lease that no lead gave."""
        rng = self._rng
        ranges = rng.choice(job.grants).body.ranges if job.grants else ()
        epoch = rng.choice([0, 0, 1, 1 << 30])
        return kinds.GRANT, self._sign(
            Grant(self._expires_ms(), job.id, epoch, worker, worker, ranges, nonce=rng.getrandbits(32)), job.lead
        )

    def decision(self, job: KnownJob) -> Forged | None:
        """That a unit is decided, by results that are there or by some that are not."""
        rng = self._rng
        if not job.grants:
            return None
        receipt = rng.choice(job.receipts) if job.receipts else None
        cited = receipt.id if receipt is not None and rng.random() < 0.7 else rng.randbytes(32)
        batch, start, units, _ = rng.choice(job.grants).body.ranges[0]
        root = blake3(receipt.body.digests).digest() if receipt is not None else rng.randbytes(32)
        entry = DecisionEntry(batch, start, units, OK, root, (0,))
        return kinds.DECISION, self._sign(Decision(self._expires_ms(), job.id, rng.randrange(3), (cited,), (entry,)), job.lead)

    def _keepers(self, job: KnownJob) -> Forged:
        assert job.job is not None
        me = self._host.key.public
        return kinds.KEEPERS, self._sign(KeeperSet(self._expires_ms(), job.id, self._rng.randrange(1, 1 << 20), me, (me,)), job.job.author)

    def cancel(self, job: KnownJob) -> Forged:
        """The end of a job, not by its submitter."""
        assert job.job is not None
        return kinds.CANCEL, self._sign(Cancel(self._expires_ms() + self._rng.randrange(1000), job.id), job.job.author)

    def _settled(self, job: KnownJob) -> Forged:
        assert job.job is not None
        body = Settled(self._expires_ms(), job.id, self._rng.randrange(100), 0, self._rng.randbytes(32))
        return kinds.SETTLED, self._sign(body, job.lead)

    def job(self, job: KnownJob, target: Target) -> tuple[bytes, bytes, bytes]:
        """(job, its id, keepers that name the target): the words of another submitter, changed."""
        assert job.job is not None
        host, rng = self._host, self._rng
        body = msgspec.structs.replace(job.job.body, nonce=rng.randbytes(16))
        author = job.job.author
        raw = encode(Envelope(body.TYPE, encode(body), author, rng.randbytes(SIGNATURE_BYTES)))
        job_id = statement_id(author, encode(body))
        named = KeeperSet(body.expires_ms, job_id, 0, host.key.public, (target.key,))
        return raw, job_id, encode(Envelope(named.TYPE, encode(named), author, rng.randbytes(SIGNATURE_BYTES)))
