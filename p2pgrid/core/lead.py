"""The lead of one job: it leases units to workers that pull, and decides from their receipts (docs/spec/job.md).

1. Workers are invited and pull; nobody is pushed work. What a pull gets is said in p2pgrid.core.sharing: a share of what is
   left, and of the last units no more than its worker ends about when the others end the rest.
2. With a quorum, units are drawn at random, each needs q distinct parties, and a disagreement asks for more.
3. Nobody gets a unit twice, unless everybody there had it, or nobody else took it for a while. Who answered
   it where answers are compared, or still owes it, never gets it again.
4. A lease ends with its receipts, with its worker's connection, when its worker hands it back, when it is given up for
   lost by what was learned of the job's pace, and with its deadline. What is open then is leased again. A late receipt
   still counts.
5. A unit that missed ``attempts`` times (time-out, death), or missed once at everybody there who could answer,
   is given up. So is one whose answers differ when many were asked, or when everybody there has answered
   and nobody new came for a while.
6. Derived batches open when all results below them are decided. If a unit failed, nothing is derived.
7. The job is over when every unit that can be decided is.
8. When nothing is pending, who is faster gets copies of what ends last, within a bound (p2pgrid.core.speculation).
9. What a unit still needs is computed from the ledger whenever something happens to it, never carried along:
   whatever was decided elsewhere and merged in is found, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core.columns import OPEN, digest_at, positions
from p2pgrid.core.disputes import Disputes
from p2pgrid.core.lead_events import (
    AssembleDerived,
    Began,
    Decided,
    Delivered,
    DerivedReady,
    Effect,
    Event,
    Granted,
    Invite,
    Late,
    Merged,
    Over,
    Pulled,
    Record,
    Returned,
    Stopped,
    Tick,
    WorkerGone,
    WorkersKnown,
)
from p2pgrid.core.leases import Lease, LeaseBook
from p2pgrid.core.ledger import Ledger
from p2pgrid.core.pace import Pace, WorkerState
from p2pgrid.core.quorum import misses
from p2pgrid.core.sharing import Sharing
from p2pgrid.core.speculation import Speculation
from p2pgrid.core.takeover import GRANT_OUTLIVES_MS, outstanding
from p2pgrid.core.verdicts import join_entries
from p2pgrid.model.work import ANSWERS, Decision, DecisionEntry, Grant, Receipt
from p2pgrid.wire.envelope import Signed, Statement

__all__ = [
    "AssembleDerived",
    "Began",
    "Decided",
    "Delivered",
    "DerivedReady",
    "Effect",
    "Event",
    "Granted",
    "Invite",
    "Late",
    "Lead",
    "Merged",
    "Over",
    "Pulled",
    "Record",
    "Returned",
    "Seal",
    "Stopped",
    "Tick",
    "WorkerGone",
    "WorkersKnown",
]

Seal = Callable[[Statement], Signed[Any]]
"""Signs a statement with the lead's node key."""

LEASE_SLACK_S = 30.0
SLOTS_MAX = 1024
"""Cores a worker may claim: what it claims weighs in everybody's share."""
WORKERS_MAX = 4096


@dataclass(slots=True)
class Lead:
    """``handle`` events one at a time; ``now`` is monotonic seconds, ``now_ms`` Unix milliseconds."""

    ledger: Ledger
    seal: Seal
    rng: random.Random
    epoch: int = 0
    known: frozenset[bytes] = frozenset()
    workers: dict[bytes, WorkerState] = field(default_factory=dict)
    over: bool = False
    stopped: bool = False
    derived: dict[int, bytes] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    disputed: int = 0
    book: LeaseBook = field(init=False)
    speculation: Speculation = field(init=False)
    sharing: Sharing = field(init=False)
    disputes: Disputes = field(init=False)
    _level: int = 0
    _assembling: set[int] = field(default_factory=set)
    _nonce: int = 0
    _believed: dict[bytes, None] = field(default_factory=dict)
    """Workers with leases of an earlier lead that have not pulled here yet."""
    _accounted: int = 0
    """Decided units that the book knows of."""

    def __post_init__(self) -> None:
        job = self.ledger.job.body
        self.book = LeaseBook(self.rng, shuffle=job.quorum > 1)
        self.disputes = Disputes(self.ledger, self.book)
        self.speculation = Speculation(self.book, self.pace, self.workers, job.quorum)
        self.sharing = Sharing(self.ledger, self.book, self.pace, self.workers, self.speculation)
        self._nonce = self.rng.getrandbits(48)
        for batch in range(len(job.manifest)):
            self._open_batch(batch)
        self._accounted = self.ledger.done + self.ledger.failed

    def _open_batch(self, batch: int) -> None:
        """Everything undecided of a batch becomes pending (all of it, unless the ledger was read from disk)."""
        units = self.ledger.layout.batch_units[batch]
        if not self.ledger.open_in[batch]:
            return
        self.book.open(batch, units)
        if self.ledger.untouched(batch):
            self.book.want(batch, 0, units, self.ledger.job.body.quorum)
            return
        for unit in range(units):
            answers = self.ledger.answers(batch, unit)
            for answer in answers:
                self.book.note_had(batch, unit, answer.group)
            if len({answer.digest for answer in answers if answer.outcome in ANSWERS}) > 1:
                self.disputes.contested[batch, unit] = 0.0
        self._reconcile(batch, 0, units)

    def handle(self, event: Event, now: float, now_ms: int) -> list[Effect]:
        """What an event leads to, in order. A receipt that does not count raises, and changes nothing."""
        if self._accounted != self.ledger.done + self.ledger.failed:
            self._resync()
        effects = self._dispatch(event, now, now_ms)
        self._accounted = self.ledger.done + self.ledger.failed
        return effects

    def _dispatch(self, event: Event, now: float, now_ms: int) -> list[Effect]:
        match event:
            case Pulled():
                return self._on_pulled(event, now, now_ms)
            case Delivered(receipt):
                return self._on_delivered(receipt, now)
            case WorkerGone(worker):
                return self._on_gone(worker, now)
            case Returned(worker, grants):
                return self._on_returned(worker, grants, now)
            case WorkersKnown(workers):
                self.known = workers
                return self._invite(now)
            case DerivedReady(batch, blob):
                return self._on_derived(batch, blob, now)
            case Merged(first):
                return self._on_merged(first, now)
            case Began(there):
                return self._on_began(there, now, now_ms)
            case Tick():
                return self._on_tick(now)
            case Stopped():
                self.stopped = True
                return []

    # -- leasing -------------------------------------------------------------

    def _on_pulled(self, pull: Pulled, now: float, now_ms: int) -> list[Effect]:
        ended = self.over or self.stopped
        slots = min(max(1, pull.slots), SLOTS_MAX)
        group = pull.group or pull.worker
        worker = self.workers.get(pull.worker)
        if worker is None:
            if ended or len(self.workers) >= WORKERS_MAX:
                return [Granted(pull.worker, None, ended)]
            worker = self.workers[pull.worker] = WorkerState(slots, group, now)
        worker.slots, worker.group, worker.pulled_at = slots, group, now
        self._believed.pop(pull.worker, None)
        owed = self.book.owed_by(pull.worker)
        worker.spend(owed, now)
        ranges = () if ended else tuple(self.sharing.take(pull, worker, self._present, now))
        worker.hungry = not ranges
        if worker.idle_since is None:
            worker.idle_since = now
        if not ranges:
            return [Granted(pull.worker, None, ended)]
        worker.hungry_since = worker.held_since = worker.idle_since = None
        job = self.ledger.job.body
        units = sum(unit_range.units for unit_range in ranges)
        lease_s = self._lease_s(units, slots)
        self._nonce += 1
        grant = self.seal(
            Grant(
                expires_ms=min(now_ms + int(lease_s * 1000) + GRANT_OUTLIVES_MS, job.expires_ms),
                job=self.ledger.job.id,
                epoch=self.epoch,
                worker=pull.worker,
                group=group,
                ranges=ranges,
                derived=tuple((piece.batch, self.derived[piece.batch]) for piece in ranges if piece.batch in self.derived),
                nonce=self._nonce,
            )
        )
        self.ledger.add_grant(grant)
        forecast_s = self.pace.forecast_s(worker, owed + units)
        lease = Lease(grant.id, pull.worker, ranges, now + lease_s, units, group, now, ahead=owed, forecast_s=forecast_s)
        lease.charged = self.speculation.claim()
        self.book.lease(lease)
        return [Granted(pull.worker, grant, False), Record((grant,))]

    def _present(self) -> frozenset[bytes]:
        """The parties that are there: by group once they pulled, by key before."""
        groups = {worker.group for worker in self.workers.values()}
        return frozenset(groups | (self.known - self.workers.keys()))

    def _lease_s(self, units: int, slots: int) -> float:
        """How long a lease of ``units`` units may last: the time-outs, or three times what the pace says."""
        timeout_s = self.ledger.job.body.limits.timeout_s
        if not self.pace.units:
            return -(-units // slots) * timeout_s + LEASE_SLACK_S
        return min(units * timeout_s, 3 * units * max(self.pace.longest_s, 0.001) + timeout_s) + LEASE_SLACK_S

    def _invite(self, now: float) -> list[Effect]:
        """Invite everybody who could take pending work and has not just pulled; at the end, who could take copies."""
        if self.over or self.stopped:
            return []
        # Whose leases were adopted may know nothing of them any more, and says so with a first pull.
        believed = tuple(self._believed)
        if not self.book.pending:
            late = tuple(dict.fromkeys((*self.sharing.copies_for(now), *believed)))
            return [Invite(late)] if late else []
        busy = {key for key, worker in self.workers.items() if not worker.hungry and now - worker.pulled_at < 2.0}
        hungry = {key for key, worker in self.workers.items() if worker.hungry}
        chosen = tuple(sorted(((self.known | hungry) - busy).union(believed)))
        return [Invite(chosen)] if chosen else []

    # -- receipts ------------------------------------------------------------

    def _on_delivered(self, receipt: Signed[Receipt], now: float) -> list[Effect]:
        ordinal = self.ledger.add_receipt(receipt, first_hand=True)
        if ordinal is None:
            return []
        pending = self.book.pending
        effects: list[Effect] = [Record((receipt,)), *self._judge(receipt, ordinal, now)]
        worker = self.workers.get(receipt.author)
        if self.book.pending > pending:
            effects += self._wake_hungry()
        elif not self.book.pending:
            effects += self._invite(now)
        elif worker is not None and worker.hungry:
            effects.append(Invite((receipt.author,)))
        return effects + self._advance()

    def _judge(self, receipt: Signed[Receipt], ordinal: int, now: float) -> list[Effect]:
        """Decide what a receipt decides, and ask for what is still missing."""
        self._note_answered(receipt, now)
        entries, cited, short = self.ledger.verdicts(ordinal)
        effects = self._decide(tuple(entries), tuple(cited)) if entries else []
        effects += self._disagree(self.disputes.widen(short, now))
        if any(outcome not in ANSWERS for outcome in set(receipt.body.outcomes)):
            effects += self._on_missed(receipt)
        return effects

    # -- what others did -------------------------------------------------------

    def _on_merged(self, first: int, now: float) -> list[Effect]:
        if self.over or self.stopped:
            return []
        effects: list[Effect] = []
        for ordinal in range(first, len(self.ledger.receipt_list)):
            effects += self._judge(self.ledger.receipt_list[ordinal], ordinal, now)
        return effects + self._wake_hungry() + self._advance()

    def _on_began(self, there: frozenset[bytes], now: float, now_ms: int) -> list[Effect]:
        """Who still works on a lease keeps it; what was answered and not decided is decided."""
        opened = frozenset(self.book.batches())
        for grant, answered in outstanding(self.ledger, there, now_ms):
            body = grant.body
            if any(unit_range.batch not in opened for unit_range in body.ranges):
                continue
            units = sum(unit_range.units for unit_range in body.ranges)
            deadline = now + (body.expires_ms - GRANT_OUTLIVES_MS - now_ms) / 1000
            self.book.adopt(Lease(grant.id, body.worker, body.ranges, deadline, units, body.group, now), answered)
            self.workers.setdefault(body.worker, WorkerState(1, body.group, now))
            self._believed[body.worker] = None
            for batch, start, count, _ in body.ranges:
                if self.ledger.open_in[batch]:
                    self._reconcile(batch, start, count)
        return self._on_merged(0, now) + self._invite(now)

    def _stuck(self, now: float) -> list[Effect]:
        """Give up the contested units for which nobody is left to ask."""
        if self.over or self.stopped or not self.disputes.contested:
            return []
        return self._disagree(self.disputes.stuck(self._present(), now))

    def _disagree(self, units: list[tuple[int, int]]) -> list[Effect]:
        """Decide that no answer stands for these units."""
        return self._decide(*self.disputes.entries(units)) if units else []

    def _note_answered(self, receipt: Signed[Receipt], now: float) -> None:
        self.pace.note(receipt.body, self.ledger.job.body.limits.timeout_s)
        worker, lease = self.workers.get(receipt.author), self.book.leases.get(receipt.body.grant)
        if worker is not None:
            worker.spend(self.book.owed_by(receipt.author), now)
            if lease is None:
                self.speculation.heard(receipt.body.grant, worker, len(receipt.body.outcomes), now)
            else:
                worker.waiting_s = min(worker.waiting_s, worker.slots * (now - lease.since))
            worker.answer(sum(receipt.body.outcomes.count(outcome) for outcome in ANSWERS))
        if lease is not None:
            self.book.answered(lease, receipt.body.ranges)
            lease.touched = now
            if lease.id not in self.book.leases:
                self.speculation.ended(lease, now)

    def _decide(self, entries: tuple[DecisionEntry, ...], cited: tuple[bytes, ...]) -> list[Effect]:
        job = self.ledger.job
        decision = self.seal(Decision(job.body.expires_ms, job.id, self.epoch, cited, entries))
        self.ledger.add_decision(decision)
        self.disputed += sum(entry.units for entry in entries if entry.dissent)
        for entry in entries:
            if self.ledger.open_in[entry.batch]:
                self.book.want(entry.batch, entry.start, entry.units, 0)
            else:
                self.book.drop_batch(entry.batch)
        return [Record((decision,)), Decided(entries)]

    def _on_missed(self, receipt: Signed[Receipt]) -> list[Effect]:
        """Lease again, or give up, what a receipt reports as no answer."""
        body = receipt.body
        present = self._present()
        given_up: list[tuple[DecisionEntry, bytes]] = []
        for batch, unit, position in positions(body):
            outcome = body.outcomes[position]
            if outcome in ANSWERS or self.ledger.state(batch, unit) != OPEN:
                continue
            if self._hopeless(batch, unit, present):
                given_up.append((DecisionEntry(batch, unit, 1, outcome, b"", (0,)), digest_at(body, position)))
            else:
                self._reconcile(batch, unit, 1)
        return self._decide(tuple(join_entries(given_up)), (receipt.id,)) if given_up else []

    def _hopeless(self, batch: int, unit: int, present: frozenset[bytes]) -> bool:
        if self.book.owed(batch, unit):
            return False
        answers = self.ledger.answers(batch, unit)
        missed = misses(answers)
        able = present - {answer.group for answer in answers if answer.outcome in ANSWERS}
        tried = {answer.group for answer in missed}
        return len(missed) >= self.ledger.job.body.attempts or (bool(able) and able <= tried)

    def _reconcile(self, batch: int, start: int, count: int) -> None:
        """Want of these units exactly what the ledger says they lack."""
        if self.ledger.job.body.quorum > 1:
            for unit in range(start, start + count):
                self.book.want(batch, unit, 1, self.ledger.missing(batch, unit))
            return
        runs = self.ledger.column(batch).open_runs(start, start + count)
        if runs != [(start, count)]:
            self.book.want(batch, start, count, 0)
        for first, units in runs:
            self.book.want(batch, first, units, 1)

    def _resync(self) -> None:
        """The ledger learnt of decisions from elsewhere: want no more of what they settle."""
        for batch in self.book.batches():
            if self.ledger.open_in[batch]:
                self._reconcile(batch, 0, self.ledger.layout.batch_units[batch])
            else:
                self.book.drop_batch(batch)

    # -- departures and time ---------------------------------------------------

    def _on_gone(self, worker: bytes, now: float) -> list[Effect]:
        self.speculation.gone(worker, self.ledger.missing)
        self.workers.pop(worker, None)
        self._believed.pop(worker, None)
        self.known -= {worker}
        leases = [self.book.leases[lease] for lease in sorted(self.book.by_worker.get(worker, ()))]
        for lease in leases:
            self._return(lease, now)
        return self._wake_hungry() if leases else []

    def _on_returned(self, worker: bytes, grants: tuple[bytes, ...], now: float) -> list[Effect]:
        theirs = self.book.by_worker.get(worker, set())
        leases = [self.book.leases[grant] for grant in dict.fromkeys(grants) if grant in theirs]
        for lease in leases:
            self._return(lease, now)
        return self._wake_hungry() if leases else []

    def _return(self, lease: Lease, now: float) -> None:
        worker = self.workers.get(lease.worker)
        if worker is not None:
            worker.spend(self.book.owed_by(lease.worker), now)
        for batch, start, count in self.book.end(lease):
            self._reconcile(batch, start, count)

    def _on_tick(self, now: float) -> list[Effect]:
        self.pace.learn(self.workers.values())
        late: dict[bytes, int] = {}
        for lease in self.speculation.lost(now, self.sharing.answers):
            late[lease.worker] = late.get(lease.worker, 0) + lease.open
            self._return(lease, now)
        given_up = self._stuck(now)
        told: list[Effect] = [Late(tuple(late.items()))] if late else []
        return given_up + self._advance() + self._invite(now) + told

    def _wake_hungry(self) -> list[Effect]:
        if self.over or self.stopped or not self.book.pending:
            return []
        hungry = tuple(key for key, worker in self.workers.items() if worker.hungry)
        for key in hungry:
            self.workers[key].hungry = False
        return [Invite(hungry)] if hungry else []

    # -- levels ----------------------------------------------------------------

    def _advance(self) -> list[Effect]:
        """Open the next level when the one below is decided, or end the job."""
        ledger = self.ledger
        while not (self.over or self.stopped or ledger.level_open(self._level)):
            if ledger.failed or self._level == len(ledger.layout.levels) - 1:
                self.over = True
                return [Over(ledger.done, ledger.failed)]
            self._level += 1
            level = ledger.layout.levels[self._level]
            batches = tuple(batch for batch in range(level.first_batch, level.first_batch + level.batches) if ledger.open_in[batch])
            if batches:
                self._assembling.update(batches)
                return [AssembleDerived(batches)]
        return []

    def _on_derived(self, batch: int, blob: bytes, now: float) -> list[Effect]:
        if batch not in self._assembling:
            return []
        self._assembling.discard(batch)
        self.derived[batch] = blob
        self._open_batch(batch)
        return self._wake_hungry() or self._invite(now)

    def check(self) -> None:
        """Assert the invariants of leasing: what is open is pending or leased, and sums agree."""
        self.ledger.check()
        self.book.check()
        if self.over or self.stopped:
            return
        level = self.ledger.layout.levels[self._level]
        for batch in range(level.first_batch, level.first_batch + level.batches):
            if batch not in self._assembling:
                for start, count in self.ledger.open_runs(batch):
                    for unit in range(start, start + count):
                        assert self.book.outstanding(batch, unit) >= 1, (batch, unit)
