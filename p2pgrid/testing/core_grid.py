"""A grid made of nothing but decisions: one lead, its keepers and n workers under a seeded event heap.

Messages take time, get lost and are sent again, arrive twice or too late; workers crash and come back, are slow,
lie, or report that a unit did not end. Signatures are an oracle's: statements are taken to be verified, so that
a run of some thousand events takes milliseconds. Faults stop at ``faults_until_s``; then the job must end.
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
from p2pgrid.model.work import DIED, OK, TIMED_OUT, Decision, DecisionEntry, Receipt, UnitRange
from p2pgrid.testing.core_checks import check_decisions, check_dissent, check_leases, summary
from p2pgrid.testing.heap import EventHeap
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import S, Signed, statement_id

EXPIRES_MS = 1 << 50


def oracle(body: S, author: bytes) -> Signed[S]:
    """A statement as if its signature had been made and verified."""
    raw = encode(body)
    return Signed(body, author, statement_id(author, raw), raw)


def truth(batch: int, unit: int) -> bytes:
    """The digest of the right answer."""
    return blake3(b"%d/%d" % (batch, unit)).digest()


@dataclass(frozen=True)
class Scenario:
    """What a run is made of. Rates are chances per message, unit or second; times are seconds."""

    batches: tuple[int, ...] = (20, 20)
    quorum: int = 1
    attempts: int = 3
    reduce: bool = False
    finish: bool = False
    workers: int = 5
    slots: int = 2
    keepers: int = 3
    unit_s: float = 0.3
    latency_s: float = 0.05
    loss: float = 0.0
    twice: float = 0.0
    crashes: float = 0.0
    flaps: float = 0.0
    slow: int = 0
    """Workers that take forty times as long."""
    liars: int = 0
    colluding: bool = False
    """Liars tell the same lie."""
    misses: float = 0.0
    forgeries: float = 0.0
    """Chance per second that somebody sends the lead a receipt, or a keeper a decision, that must not count."""
    faults_until_s: float = 60.0
    limit_s: float = 900.0


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
    forged: int = 0
    """Forgeries that were refused."""
    over: bool = False
    _answered: Counter[bytes] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        scenario = self.scenario
        self.heap = EventHeap(self.seed)
        manifest = tuple(BatchRef(b"b" * 32, units, 100) for units in scenario.batches)
        derive = Derive(scenario.reduce, scenario.finish, 4)
        limits = UnitLimits(timeout_s=20.0)
        job = Job(EXPIRES_MS, b"n" * 16, 0, "sim", "native", b"x", b"", manifest, derive, limits, scenario.quorum, scenario.attempts)
        self.job = oracle(job, b"S" * 32)
        names = tuple(bytes([200 + number]) * 32 for number in range(scenario.keepers))
        named = oracle(KeeperSet(EXPIRES_MS, self.job.id, 0, b"L" * 32, names), b"S" * 32)
        self.keepers = {name: self._ledger(named) for name in names}
        self.lead = leading.Lead(self._ledger(named), lambda body: oracle(body, b"L" * 32), self.heap.rng)
        self.log: list[Signed[Any]] = []
        self.pushes = PushBook()
        for name in names:
            self.pushes.add(name)
        self.nodes = {key: self._node(number, key) for number, key in enumerate(self._keys())}
        self._pulled: Callable[[leading.Granted], None] | None = None
        self.heap.every(1.0, self._tick)
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
        each = self._check_each if self.check_each else lambda: None
        ended = self.heap.run(self._ended, self.scenario.limit_s, each=each, steps_max=60_000)
        assert ended, f"seed {self.seed}: not over after {self.heap.now:.0f} s, {self.lead.ledger.open_in} open"
        self.check_end()
        return self

    def _ended(self) -> bool:
        return self.over and self.pushes.complete(len(self.log))

    def _check_each(self) -> None:
        if self.heap.steps % 4 == 0 or self.heap.steps < 200:
            self.lead.check()
        for node in self.nodes.values():
            node.machine.check()

    @property
    def _faulty(self) -> bool:
        return self.heap.now < self.scenario.faults_until_s

    def _chance(self, rate: float) -> bool:
        return rate > 0 and self._faulty and self.heap.rng.random() < rate

    def _send(self, call: Callable[[], None], lost: Callable[[], None] | None = None) -> None:
        """Deliver after a while; perhaps twice, perhaps not at all: then ``lost`` is called after a time-out."""
        delay_s = self.heap.rng.expovariate(1.0 / self.scenario.latency_s)
        if self._chance(self.scenario.loss):
            if lost is not None:
                self.heap.after(1.0, lost)
            return
        self.heap.after(delay_s, call)
        if self._chance(self.scenario.twice):
            self.heap.after(delay_s * 3, call)

    # -- the lead ------------------------------------------------------------------

    def _lead(self, event: leading.Event) -> leading.Granted | None:
        granted = None
        for effect in self.lead.handle(event, self.heap.now, self.heap.now_ms):
            match effect:
                case leading.Granted():
                    granted = effect
                case leading.Record(statements):
                    self.log.extend(statements)
                    self._push()
                case leading.Invite(workers):
                    for worker in workers:
                        self._send(lambda key=worker: self._invite(key))  # type: ignore[misc]
                case leading.AssembleDerived(batches):
                    for batch in batches:
                        self.heap.after(0.2, lambda number=batch: self._derive(number))  # type: ignore[misc]
                case leading.Over():
                    assert not self.over, "a job is over once"
                    self.over = True
                case leading.Decided():
                    pass
        return granted

    def _derive(self, batch: int) -> None:
        self._lead(leading.DerivedReady(batch, b"d" * 32))

    def _tick(self) -> None:
        for node in list(self.nodes.values()):
            if node.alive and self._chance(self.scenario.crashes):
                self._crash(node)
            elif node.alive and self._chance(self.scenario.flaps):
                self._lead(leading.WorkerGone(node.key))
        if self._chance(self.scenario.forgeries):
            self._forge()
        self._known()
        self._lead(leading.Tick())
        self._push()

    def _known(self) -> None:
        self._lead(leading.WorkersKnown(frozenset(node.key for node in self.nodes.values() if node.alive)))

    def _crash(self, node: _Node) -> None:
        node.alive = False
        node.life += 1
        node.machine = working.Worker(self.scenario.slots)
        self.heap.after(0.5, lambda: self._gone(node))
        self.heap.after(2.0 + 5 * self.heap.rng.random(), lambda: self._back(node))

    def _gone(self, node: _Node) -> None:
        self._lead(leading.WorkerGone(node.key))

    @staticmethod
    def _back(node: _Node) -> None:
        node.alive = True

    def _push(self) -> None:
        for keeper, cursor in self.pushes.due(len(self.log)):
            end = len(self.log)
            self._send(
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
            self._work(node, working.Invited((self.job.id, b"L" * 32), b"S" * 32))

    def _work(self, node: _Node, event: working.Event) -> None:
        for effect in node.machine.handle(event, self.heap.now):
            match effect:
                case working.Pull():
                    self._pull(node, effect, node.life)
                case working.Run():
                    self._begin(node, effect, node.life)

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
            self._send(lambda: answer(event), lambda: answer(working.Dry(pull.source)))

        self._send(arrive, lambda: answer(working.Dry(pull.source)))

    def _begin(self, node: _Node, run: working.Run, life: int) -> None:
        spent_s = run.range.units * self.scenario.unit_s * node.slowness * (0.5 + self.heap.rng.random())

        def end() -> None:
            if node.life != life:
                return
            self._work(node, working.UnitsDone(run.source, run.range.units, spent_s))
            self._deliver(node, self._receipt(node, run, spent_s), life)
            self._work(node, working.TaskEnded(run.source))

        self.heap.after(spent_s, end)

    def _receipt(self, node: _Node, run: working.Run, spent_s: float) -> Signed[Receipt]:
        outcomes, digests = bytearray(), bytearray()
        batch, start, count, _ = run.range
        for unit in range(start, start + count):
            missed = self._chance(self.scenario.misses)
            outcomes.append(self.heap.rng.choice((TIMED_OUT, DIED)) if missed else OK)
            digest = blake3(node.lie + b"%d/%d" % (batch, unit)).digest() if node.lie else truth(batch, unit)
            digests += bytes(32) if missed else digest
        ranges: tuple[UnitRange, ...] = (run.range,)
        body = Receipt(EXPIRES_MS, self.job.id, run.grant, ranges, bytes(outcomes), bytes(digests), int(spent_s * 1e6), bytes(32))
        return oracle(body, node.key)

    def _deliver(self, node: _Node, receipt: Signed[Receipt], life: int) -> None:
        def again() -> None:
            if node.life == life:
                self._deliver(node, receipt, life)

        self._send(lambda: self._take(receipt), again)

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
        """Send what breaks one rule. What is taken over all the same shows at the end."""
        ledger, rng = self.lead.ledger, self.heap.rng
        if not ledger.grants or not ledger.receipt_list:
            return
        grant = rng.choice(list(ledger.grants.values()))
        thief = rng.choice([key for key in self.nodes if key != grant.body.worker] or [NodeKey(b"T" * 32)])
        lies = b"".join(blake3(b"forged" + bytes([number % 256])).digest() for number in range(sum(one.units for one in grant.body.ranges)))
        stolen = Receipt(EXPIRES_MS, self.job.id, grant.id, grant.body.ranges, bytes(len(lies) // 32), lies, 0, bytes(32))
        self._try(lambda: self._lead(leading.Delivered(oracle(stolen, thief))))
        receipt = rng.choice(ledger.receipt_list)
        entry = DecisionEntry(*receipt.body.ranges[0][:3], OK, b"r" * 32, (0,))
        keeper = rng.choice(list(self.keepers))
        for author, epoch in ((keeper, 0), (keeper, 1), (bytes(thief), 1)):
            decision = Decision(EXPIRES_MS, self.job.id, epoch, (receipt.id,), (entry,))
            self._try(lambda signer=author, body=decision: self.keepers[keeper].add(oracle(body, signer)))  # type: ignore[misc]

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except P2PGridError:
            self.forged += 1

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
        if not self.scenario.misses:
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
