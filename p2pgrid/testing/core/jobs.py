"""Jobs of the core engine: each a lead with its ledger, its log, and keepers that are pushed to and replaced.

What the services of a node do around the same machines, on the event heap: a lead knows as many workers as it may have connections,
finds others when some are gone, names other keepers when one is gone, and pushes them its log from the beginning.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

from p2pgrid.core import lead as leading
from p2pgrid.core.keeping import K, PushBook, draw_keepers, workers_of
from p2pgrid.core.ledger import Ledger
from p2pgrid.model.job import BatchRef, Derive, Job, KeeperSet, UnitLimits
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.work import OK, DecisionEntry, Receipt
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.core.plan import EXPIRES_MS, oracle, truth
from p2pgrid.testing.core.population import Air, Machine, Population
from p2pgrid.testing.plans.gridplan import JobEvent
from p2pgrid.testing.tails import Tail
from p2pgrid.wire.envelope import Signed

LINKS_MAX = DEFAULT_LIMITS.connections - 8
"""Connections of a lead that workers have; the others are for whoever comes."""
DISCOVER_S = 10.0
COALESCE_S = 0.05
PUSHED_AT_ONCE = 256
"""Statements in one push."""
UNIT_TIMEOUT_S = 3600.0
DERIVED_SHARE = 0.1
"""A derived unit takes this share of the median unit's time."""
ASSEMBLED_S = 0.2


class LeadNode:
    """The connections of a node that leads jobs: all its jobs share them."""

    def __init__(self, at: Machine, population: Population) -> None:
        self.at = at
        self.links: dict[bytes, Machine] = {}
        self.jobs: list[ScaleJob] = []
        self._population = population

    def discover(self) -> None:
        """Connect to other machines while there is room."""
        room = LINKS_MAX - len(self.links)
        for machine in self._population.some(room, lambda one: one is not self.at and one.key not in self.links):
            self.links[machine.key] = machine

    def gone(self, machine: Machine) -> None:
        """Somebody left."""
        if self.links.pop(machine.key, None) is not None:
            for job in self.jobs:
                job.gone(machine)


class ScaleJob:
    """One job and its lead's side."""

    def __init__(self, event: JobEvent, number: int, node: LeadNode, heap: EventHeap, air: Air, population: Population) -> None:
        plan = event.plan
        self.event = event
        self.at = at = node.at
        self.heap = heap
        self.air = air
        self.population = population
        self.links = node.links
        self.submitter = bytes([1 + number]) * 32
        size = DEFAULT_LIMITS.batch_units
        manifest = tuple(BatchRef(b"b" * 32, min(size, event.units - first), 100) for first in range(0, event.units, size))
        limits, derive = UnitLimits(timeout_s=UNIT_TIMEOUT_S), Derive(reduce=plan.reduce)
        nonce = number.to_bytes(16, "big")
        body = Job(EXPIRES_MS, nonce, 0, event.name, "native", b"x", b"", manifest, derive, limits, plan.quorum, plan.attempts)
        self.job: Signed[Job] = oracle(body, self.submitter)
        self.source = (bytes(self.job.id), bytes(at.key))
        self.units_s = _unit_times(event, heap.seed)
        self.log: list[Signed[Any]] = []
        self.book = PushBook()
        self.lead: leading.Lead
        self.keepers: tuple[bytes, ...] = ()
        self.submitted_at = heap.now
        self.over_at = 0.0
        self.capacity = 0.0
        """Unit seconds that the machines known to the lead could have worked off while the job ran."""
        self.paths: Counter[str] = Counter()
        self.tail = Tail()
        self.invite: Callable[[ScaleJob, Machine], None] = lambda _job, _machine: None
        self._push_due = False

    def start(self, invite: Callable[[ScaleJob, Machine], None]) -> None:
        """Name keepers and begin to lead. ``invite`` is called at a worker that is invited."""
        self.invite = invite
        ledger = Ledger(self.job)
        self.lead = leading.Lead(ledger, lambda body: oracle(body, self.at.key), self.heap.rng)
        self.replace_keepers()
        self.handle(leading.WorkersKnown(self.workers()))

    @property
    def over(self) -> bool:
        """Whether nothing is left to decide."""
        return self.lead.over

    @property
    def complete(self) -> bool:
        """Whether it is over and every keeper has all of it."""
        return self.over and self.book.complete(len(self.log))

    def workers(self) -> frozenset[bytes]:
        """Whom the lead may invite."""
        return workers_of(frozenset(self.links), self.keepers, self.job.body.quorum)

    # -- who is there -------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Look after it, as a lead does every second."""
        if len(self.keepers) < K:
            self.replace_keepers()
        if not self.over:
            self.capacity += seconds * sum(machine.plan.cores * machine.plan.speed for machine in self.links.values() if machine.on)
            self.handle(leading.WorkersKnown(self.workers()))
            self.handle(leading.Tick())
        self.push_soon()

    def gone(self, machine: Machine) -> None:
        """A connection ended."""
        if not self.over:
            self.paths["lease-lost"] += bool(self.lead.book.by_worker.get(machine.key))
            self.handle(leading.WorkerGone(machine.key))
        if machine.key in self.keepers and not self.complete:
            self.replace_keepers(machine.key)

    def replace_keepers(self, failed: bytes | None = None) -> None:
        """Name keepers again where one is gone, or too few are named."""
        have = tuple(key for key in self.keepers if key != failed)
        willing = [key for key, machine in self.links.items() if "store" in machine.plan.roles and key != failed]
        named = draw_keepers(willing, have, self.heap.rng)
        if named == self.keepers:
            return
        self.paths["keeper-replaced"] += bool(self.keepers)
        epoch = sum(statement.body.TYPE == KeeperSet.TYPE for statement in self.log)
        statement = oracle(KeeperSet(EXPIRES_MS, self.job.id, epoch, self.at.key, named), self.submitter)
        self.lead.ledger.add(statement)
        self._record((statement,))
        for key in sorted(set(self.keepers) - set(named)):
            self.book.remove(key)
        for key in named:
            self.book.add(key)
        self.keepers = named

    # -- deciding ----------------------------------------------------------------------------

    def handle(self, event: leading.Event) -> leading.Granted | None:
        """Give the lead an event and carry out what follows."""
        granted = None
        for effect in self.lead.handle(event, self.heap.now, self.heap.now_ms):
            match effect:
                case leading.Granted():
                    granted = effect
                case leading.Record(statements):
                    self._record(statements)
                case leading.Invite(workers):
                    self._invite(workers)
                case leading.AssembleDerived(batches):
                    self.paths["derived"] += len(batches)
                    for batch in batches:
                        self.heap.after(ASSEMBLED_S, lambda number=batch: self._derived(number), b"derive")  # type: ignore[misc]
                case leading.Decided(entries):
                    self._count(entries)
                case leading.Over():
                    self.over_at = self.heap.now
        return granted

    def take(self, receipt: Signed[Receipt]) -> None:
        """A receipt arrived."""
        self.handle(leading.Delivered(receipt))

    def _count(self, entries: tuple[DecisionEntry, ...]) -> None:
        self.paths["disputed"] += sum(1 for entry in entries if entry.dissent)
        self.tail.decided(self.heap.now, sum(entry.units for entry in entries))

    def _derived(self, batch: int) -> None:
        self.handle(leading.DerivedReady(batch, b"d" * 32))

    def _invite(self, workers: tuple[bytes, ...]) -> None:
        for key in workers:
            machine = self.links.get(key)
            if machine is not None:
                life = machine.life
                self.air.send(b"invite", 100, lambda one=machine, life=life: self._invited(one, life))  # type: ignore[misc]

    def _invited(self, machine: Machine, life: int) -> None:
        if machine.on and machine.life == life:
            self.invite(self, machine)

    def spent_s(self, machine: Machine, batch: int, start: int, count: int) -> float:
        """How long a machine takes for some units."""
        batches = len(self.job.body.manifest)
        if batch >= batches:
            return count * DERIVED_SHARE * self.event.unit_s / machine.plan.speed
        first = batch * DEFAULT_LIMITS.batch_units + start
        return sum(self.units_s[first : first + count]) / machine.plan.speed

    # -- pushing ------------------------------------------------------------------------------

    def _record(self, statements: tuple[Signed[Any], ...]) -> None:
        self.log.extend(statements)
        self.heap.note(*[statement.id for statement in statements])
        self.push_soon()

    def push_soon(self) -> None:
        """Push what is new in a moment: what is recorded until then travels with it."""
        if not self._push_due:
            self._push_due = True
            self.heap.after(COALESCE_S, self._push, b"push")

    def _push(self) -> None:
        self._push_due = False
        for keeper, cursor in self.book.due(len(self.log)):
            self._send(keeper, cursor)

    def _send(self, keeper: bytes, cursor: int) -> None:
        machine = self.population.by_key[keeper]
        life, end = machine.life, min(len(self.log), cursor + PUSHED_AT_ONCE)
        size_bytes = sum(len(statement.raw) for statement in self.log[cursor:end])
        self.air.send(b"delta", size_bytes, lambda: self._keep(machine, life, cursor, end))

    def _keep(self, machine: Machine, life: int, first: int, end: int) -> None:
        if not machine.on or machine.life != life:
            self.book.on_failed(machine.key)
            if machine.key not in self.links and machine.key in self.keepers:
                self.replace_keepers(machine.key)  # It left when all was kept; then another receipt came.
            return
        kept = machine.kept.get(self.job.id)
        if kept is None:
            kept = machine.kept[self.job.id] = Ledger(self.job)
        for statement in self.log[first:end]:
            kept.add(statement)
        self.air.send(b"kept", 50, lambda: self._kept(machine.key, end))

    def _kept(self, keeper: bytes, end: int) -> None:
        if keeper not in self.book.keepers:
            return
        if end < len(self.log):
            self.book.note(keeper, end)
            self._send(keeper, end)
        else:
            self.book.on_acknowledged(keeper, end)

    # -- what came of it --------------------------------------------------------------------------

    def ideal_s(self) -> float:
        """The sum of its units' times over the capacity its lead knew while it ran."""
        lasted_s = (self.over_at or self.heap.now) - self.submitted_at
        per_s = self.capacity / lasted_s if lasted_s else 0.0
        return sum(self.units_s) * self.job.body.quorum / per_s if per_s else 0.0

    def needed_s(self) -> float:
        """Unit seconds at speed 1 that it cannot be done with less than."""
        derived = self.lead.ledger.layout.units - len(self.units_s)
        return (sum(self.units_s) + derived * DERIVED_SHARE * self.event.unit_s) * self.job.body.quorum

    def decided(self) -> tuple[int, int]:
        """(units of the manifest with the right value, units of any kind with a wrong one)."""
        ledger, right, wrong = self.lead.ledger, 0, 0
        for batch, units in enumerate(ledger.layout.batch_units):
            for unit in range(units):
                found = ledger.find(batch, unit)
                if found is not None and found.outcome == OK:
                    holds = found.digest == truth(batch, unit)
                    right += holds and batch < len(self.job.body.manifest)
                    wrong += not holds
        return right, wrong


def _unit_times(event: JobEvent, seed: int) -> array[float]:
    """The time of each unit on a machine of speed 1, in seconds."""
    rng = random.Random(f"{seed}/units/{event.name}")
    sigma = event.plan.unit_sigma
    return array("d", [event.unit_s * rng.lognormvariate(0.0, sigma) for _ in range(event.units)])
