"""A grid made of nothing but decisions: one lead, its keepers and n workers under a seeded event heap.

Messages take time, get lost and are sent again, arrive twice or too late; workers crash and come back, are slow,
lie, or report that a unit did not end. Signatures are an oracle's: statements are taken to be verified, so that
a run of some hundred events takes milliseconds. Faults stop at ``faults_until_s``; then the job must end.

Checks run where state changed: a worker's after each of its events, the lead's after each of its first events and
then after every eighth; what is computed anew from the statements alone, and the keepers' view, at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from p2pgrid.core import lead as leading
from p2pgrid.core import worker as working
from p2pgrid.core.keeping import PushBook
from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.job import BatchRef, Derive, Job, KeeperSet, UnitLimits
from p2pgrid.model.work import DIED, DISAGREED, OK, TIMED_OUT, DecisionEntry, Receipt, UnitRange
from p2pgrid.testing.core.checks import check_decisions, check_dissent, check_leases, summary
from p2pgrid.testing.core.forgeries import Forger
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.core.plan import EXPIRES_MS, LEAD, SUBMITTER, Scenario, oracle, truth
from p2pgrid.wire.envelope import Signed

__all__ = ["EXPIRES_MS", "LEAD", "SUBMITTER", "CoreGrid", "Scenario", "oracle", "truth"]

PATIENCE_S = 9.0
"""So long nobody who could say more is there before a unit is given up, to the second."""
CHECKED_FIRST = 40
"""Events of the lead that are all checked; a pull that gets nothing is none."""
CHECKED_OF = 8
"""Of the later ones, one in so many."""


@dataclass
class _Node:
    key: NodeKey
    machine: working.Worker
    slowness: float = 1.0
    lie: bytes = b""
    life: int = 0
    """Counts crashes: what was begun in an earlier life is lost."""
    alive: bool = True


@dataclass
class CoreGrid:
    """One run. ``run`` raises AssertionError where an invariant breaks, and says with which seed."""

    scenario: Scenario
    seed: int
    check_each: bool = True
    heap: EventHeap = field(init=False)
    lead: leading.Lead = field(init=False)
    keepers: dict[bytes, Ledger] = field(init=False)
    granted_units: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault struck."""
    forger: Forger = field(init=False)
    over: bool = False
    _answered: Counter[bytes] = field(default_factory=Counter)
    undecidable: int = 0
    """Units on which nobody agreed."""
    _there_at: dict[bytes, float] = field(default_factory=dict)
    """When the lead last knew of a worker."""
    _lead_events: int = 0
    _target: bytes = b""
    """The keeper at which a forgery is aimed."""

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.heap = EventHeap(self.seed)
        manifest = tuple(BatchRef(b"b" * 32, units, 100) for units in scenario.batches)
        derive = Derive(scenario.reduce, scenario.finish, 4)
        limits = UnitLimits(timeout_s=20.0)
        job = Job(EXPIRES_MS, b"n" * 16, 0, "sim", "native", b"x", b"", manifest, derive, limits, scenario.quorum, scenario.attempts)
        self.job = oracle(job, SUBMITTER)
        names = tuple(bytes([200 + number]) * 32 for number in range(scenario.keepers))
        named = oracle(KeeperSet(EXPIRES_MS, self.job.id, 0, LEAD, names), SUBMITTER)
        self.keepers = {name: self._ledger(named) for name in names}
        self.lead = leading.Lead(self._ledger(named), lambda body: oracle(body, LEAD), self.heap.rng)
        self.log: list[Signed[Any]] = []
        self.pushes = PushBook()
        for name in names:
            self.pushes.add(name)
        self.nodes = {key: self._node(number, key) for number, key in enumerate(self._keys())}
        self.forger = Forger(
            oracle,
            self.heap.rng,
            lambda receipt: self._lead(leading.Delivered(receipt)),
            self._offer,
        )
        self.heap.every(1.0, self._tick, b"tick")
        self._known()

    def _keys(self) -> list[NodeKey]:
        return [NodeKey(bytes([number + 1]) * 32) for number in range(self.scenario.workers)]

    def _ledger(self, named: Signed[KeeperSet]) -> Ledger:
        ledger = Ledger(self.job)
        ledger.add(named)
        return ledger

    def _node(self, number: int, key: NodeKey) -> _Node:
        lie = b""
        if number < self.scenario.liars:
            lie = b"together" if self.scenario.colluding else b"alone" + key
        slow = 40.0 if number >= self.scenario.workers - self.scenario.slow else 1.0
        return _Node(key, working.Worker(self.scenario.slots), slow, lie)

    # -- running ---------------------------------------------------------------

    def run(self) -> CoreGrid:
        """Run to the end and check what must hold then. Returns itself."""
        ended = self.heap.run(self._ended, self.scenario.limit_s, steps_max=60_000)
        assert ended, f"seed {self.seed}: not over after {self.heap.now:.0f} s, {self.lead.ledger.open_in} open"
        self.check_end()
        return self

    def _ended(self) -> bool:
        return self.over and self.pushes.complete(len(self.log))

    @property
    def _faulty(self) -> bool:
        return self.heap.now < self.scenario.faults_until_s

    def _chance(self, rate: float) -> bool:
        return rate > 0 and self._faulty and self.heap.rng.random() < rate

    def _strikes(self, kind: str, rate: float) -> bool:
        """As :meth:`_chance`, and counted as a fault."""
        struck = self._chance(rate)
        if struck:
            self.faults[kind] += 1
        return struck

    def _send(self, label: bytes, call: Callable[[], None], lost: Callable[[], None] | None = None) -> None:
        """Deliver after a while; perhaps twice, perhaps not at all: then ``lost`` is called after a time-out."""
        delay_s = self.heap.rng.expovariate(1.0 / self.scenario.latency_s)
        if self._strikes("loss", self.scenario.loss):
            if lost is not None:
                self.heap.after(1.0, lost, b"lost " + label)
            return
        self.heap.after(delay_s, call, label)
        if self._strikes("twice", self.scenario.twice):
            self.heap.after(delay_s * 3, call, label)

    # -- the lead ------------------------------------------------------------------

    def _lead(self, event: leading.Event) -> leading.Granted | None:
        granted = None
        for effect in self.lead.handle(event, self.heap.now, self.heap.now_ms):
            if isinstance(effect, leading.Granted):
                granted = effect
            else:
                self._carry_out(effect)
        if self.check_each and not isinstance(event, leading.WorkersKnown) and (granted is None or granted.grant is not None):
            self._lead_events += 1
            if self._lead_events <= CHECKED_FIRST or not self._lead_events % CHECKED_OF:
                self.lead.check()
        return granted

    def _carry_out(self, effect: leading.Effect) -> None:
        match effect:
            case leading.Record(statements):
                self.log.extend(statements)
                self.heap.note(*[statement.id for statement in statements])
                self._push()
            case leading.Invite(workers):
                for worker in workers:
                    self._send(b"invite" + worker[:1], lambda key=worker: self._invite(key))  # type: ignore[misc]
            case leading.AssembleDerived(batches):
                for batch in batches:
                    self.heap.after(0.2, lambda number=batch: self._derive(number), b"derive")  # type: ignore[misc]
            case leading.Decided(entries):
                for entry in entries:
                    if entry.outcome == DISAGREED:
                        self._check_undecidable(entry)
            case leading.Over():
                assert not self.over, "a job is over once"
                self.over = True

    def _check_undecidable(self, entry: DecisionEntry) -> None:
        """Units on which nobody agrees are given up only if whoever could say more was away for long, or very many were asked."""
        asked_max = self.scenario.quorum + 2 * self.scenario.attempts
        for unit in range(entry.start, entry.start + entry.units):
            answered = {answer.worker for answer in self.lead.ledger.answers(entry.batch, unit)}
            away = all(self.heap.now - self._there_at[key] >= PATIENCE_S for key in self.nodes if key not in answered)
            assert away or len(entry.cited) >= asked_max, f"unit {unit} was given up, and somebody was there to ask"
        self.undecidable += entry.units

    def _derive(self, batch: int) -> None:
        self._lead(leading.DerivedReady(batch, b"d" * 32))

    def _tick(self) -> None:
        for node in list(self.nodes.values()):
            if node.alive and self._strikes("crash", self.scenario.crashes):
                self._crash(node)
            elif node.alive and self._strikes("flap", self.scenario.flaps):
                self._lead(leading.WorkerGone(node.key))
        if self._strikes("forgery", self.scenario.forgeries):
            self._forge()
        self._known()
        self._lead(leading.Tick())
        self._push()

    def _known(self) -> None:
        there = [node.key for node in self.nodes.values() if node.alive]
        self._there_at.update(dict.fromkeys(there, self.heap.now))
        self._lead(leading.WorkersKnown(frozenset(there)))

    def _crash(self, node: _Node) -> None:
        node.alive = False
        node.life += 1
        node.machine = working.Worker(self.scenario.slots)
        self.heap.after(0.5, lambda: self._gone(node), b"gone" + node.key[:1])
        self.heap.after(2.0 + 5 * self.heap.rng.random(), lambda: self._back(node), b"back" + node.key[:1])

    def _gone(self, node: _Node) -> None:
        self._lead(leading.WorkerGone(node.key))

    @staticmethod
    def _back(node: _Node) -> None:
        node.alive = True

    def _push(self) -> None:
        for keeper, cursor in self.pushes.due(len(self.log)):
            end = len(self.log)
            self._send(
                b"push" + keeper[:1],
                lambda key=keeper, first=cursor, last=end: self._keep(key, first, last),  # type: ignore[misc]
                lambda key=keeper: self._push_failed(key),  # type: ignore[misc]
            )

    def _push_failed(self, keeper: bytes) -> None:
        self.pushes.on_failed(keeper)

    def _keep(self, keeper: bytes, first: int, last: int) -> None:
        for statement in self.log[first:last]:
            self.keepers[keeper].add(statement)
        self.pushes.on_acknowledged(keeper, last)
        self._push()

    # -- workers ---------------------------------------------------------------------

    def _invite(self, key: bytes) -> None:
        node = self.nodes[NodeKey(key)]
        if node.alive:
            self._work(node, working.Invited((self.job.id, LEAD), SUBMITTER))

    def _work(self, node: _Node, event: working.Event) -> None:
        for effect in node.machine.handle(event, self.heap.now):
            match effect:
                case working.Pull():
                    self._pull(node, effect, node.life)
                case working.Run():
                    self._begin(node, effect, node.life)
        if self.check_each:
            node.machine.check()

    def _pull(self, node: _Node, pull: working.Pull, life: int) -> None:
        answered: list[bool] = []

        def answer(event: working.Event) -> None:
            if node.life == life and not answered:
                answered.append(True)
                self._work(node, event)

        def arrive() -> None:
            if not node.alive:
                return
            granted = self._lead(leading.Pulled(node.key, node.key, pull.slots, pull.want))
            assert granted is not None
            event: working.Event = working.Dry(pull.source, granted.over)
            if granted.grant is not None:
                self.granted_units += sum(unit_range.units for unit_range in granted.grant.body.ranges)
                event = working.Leased(pull.source, granted.grant.id, granted.grant.body.ranges)
            self._send(b"lease" + node.key[:1], lambda: answer(event), lambda: answer(working.Dry(pull.source)))

        self._send(b"pull" + node.key[:1], arrive, lambda: answer(working.Dry(pull.source)))

    def _begin(self, node: _Node, run: working.Run, life: int) -> None:
        spent_s = run.range.units * self.scenario.unit_s * node.slowness * (0.5 + self.heap.rng.random())

        def end() -> None:
            if node.life != life:
                return
            self._work(node, working.UnitsDone(run.source, run.range.units, spent_s))
            self._deliver(node, self._receipt(node, run, spent_s), life)
            self._work(node, working.TaskEnded(run.source))

        self.faults["slow"] += node.slowness > 1
        self.heap.after(spent_s, end, b"end" + node.key[:1])

    def _receipt(self, node: _Node, run: working.Run, spent_s: float) -> Signed[Receipt]:
        outcomes, digests = bytearray(), bytearray()
        batch, start, count, _ = run.range
        for unit in range(start, start + count):
            missed = self._strikes("miss", self.scenario.misses)
            outcomes.append(self.heap.rng.choice((TIMED_OUT, DIED)) if missed else OK)
            digest = blake3(node.lie + b"%d/%d" % (batch, unit)).digest() if node.lie else truth(batch, unit)
            digests += bytes(32) if missed else digest
        if node.lie:
            self.faults["collusion" if self.scenario.colluding else "lie"] += 1
        ranges: tuple[UnitRange, ...] = (run.range,)
        body = Receipt(EXPIRES_MS, self.job.id, run.grant, ranges, bytes(outcomes), bytes(digests), int(spent_s * 1e6), bytes(32))
        return oracle(body, node.key)

    def _deliver(self, node: _Node, receipt: Signed[Receipt], life: int) -> None:
        def again() -> None:
            if node.life == life:
                self._deliver(node, receipt, life)

        self._send(b"receipt" + node.key[:1], lambda: self._take(receipt), again)

    def _take(self, receipt: Signed[Receipt]) -> None:
        new = receipt.id not in self.lead.ledger.receipts
        try:
            self._lead(leading.Delivered(receipt))
        except P2PGridError as error:
            self.refused[error.reason] += 1
            return
        grant = receipt.body.grant
        self._answered[grant] += len(receipt.body.outcomes) if new else 0
        lease = self.lead.book.leases.get(grant)
        if lease is not None:
            leased = sum(unit_range.units for unit_range in lease.ranges)
            assert lease.open == leased - self._answered[grant], "a lease owes what was answered"

    # -- forgeries -----------------------------------------------------------------

    def _forge(self) -> None:
        """Somebody sends what must not count."""
        before = (len(self.lead.ledger.receipts), self.lead.ledger.done)
        self._target = self.heap.rng.choice(list(self.keepers))
        self.forger.forge(self.lead.ledger, list(self.nodes), self._target)
        assert before == (len(self.lead.ledger.receipts), self.lead.ledger.done), "a forgery changed the ledger"

    def _offer(self, statement: Signed[Any]) -> None:
        """Somebody hands a statement to the keeper it is aimed at."""
        self.keepers[self._target].add(statement)

    @property
    def forged(self) -> int:
        """Forgeries that were refused."""
        return sum(self.forger.refused.values())

    # -- what must hold at the end -----------------------------------------------------

    def check_end(self) -> None:
        """S1, S2, S9, and that every keeper sees what the lead sees."""
        ledger = self.lead.ledger
        self.lead.check()
        check_decisions(ledger)
        check_dissent(self.log, ledger)
        check_leases(self.log, ledger)
        assert not ledger.conflicts, "one lead never contradicts itself"
        assert not self.refused, f"an honest delivery was refused: {self.refused}"
        if not self.scenario.misses and not self.undecidable:
            assert ledger.failed == 0, "nothing failed, and yet units were given up"
            assert ledger.complete, "the job ended before its units did"
        for kept in self.keepers.values():
            kept.check()
            assert summary(kept) == summary(ledger), "a keeper sees another job than the lead"
        if self.scenario.quorum > self._liars_that_agree():
            for batch, units in enumerate(ledger.layout.batch_units):
                for unit in range(units):
                    found = ledger.find(batch, unit)
                    assert found is None or found.outcome != OK or found.digest == truth(batch, unit), "a lie stands"

    def _liars_that_agree(self) -> int:
        return self.scenario.liars if self.scenario.colluding else min(1, self.scenario.liars)
