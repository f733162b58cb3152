"""Machines of the core engine: who is on, who works, and when each comes and goes.

A machine that goes off loses what it had in memory and keeps its disk: kept jobs and blobs are there when it comes back.
Whoever had a connection to it learns of that at once if it left in good order, else when it has been silent for too long.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from p2pgrid.core.ledger import Ledger
from p2pgrid.core.worker import Worker
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.plans.churn import Session, churn_of
from p2pgrid.testing.plans.gridplan import AirPlan, GridPlan, MachinePlan

ORDERLY = 0.5
"""Share of departures in good order; the others are found out by their silence."""
GOODBYE_S = 0.1
RETRANSMITTED_S = 0.2
"""What a lost segment costs: connections lose nothing, they are late."""


@dataclass(slots=True)
class Machine:
    """One machine. ``life`` counts its departures: what was begun in an earlier life is lost."""

    plan: MachinePlan
    key: NodeKey
    worker: Worker
    lie: bytes = b""
    on: bool = False
    life: int = 0
    seen_at: float = -1.0
    """When it was last on, while it is off."""
    ended_at: dict[int, float] = field(default_factory=dict)
    """When each of its lives was over."""
    kept: dict[bytes, Ledger] = field(default_factory=dict)
    blobs: dict[bytes, int] = field(default_factory=dict)
    stored_bytes: int = 0

    @property
    def stays(self) -> bool:
        """Whether it never leaves."""
        return self.plan.churn == "none"


class Air:
    """The network: how long messages take, and how many there were."""

    def __init__(self, heap: EventHeap, air: AirPlan) -> None:
        self._heap = heap
        self._air = air
        self.messages = 0
        self.bytes = 0

    def send(self, label: bytes, size_bytes: int, call: Callable[[], None]) -> None:
        """Make ``call`` at the other end of a connection after a while."""
        self.messages += 1
        self.bytes += size_bytes
        rng, air = self._heap.rng, self._air
        delay_s = air.latency_s * rng.lognormvariate(0.0, air.latency_sigma)
        if air.loss and rng.random() < air.loss:
            delay_s += RETRANSMITTED_S + 2 * air.latency_s
        self._heap.after(delay_s, call, label)


class Population:
    """All machines of a run, coming and going on the heap until ``until_s``."""

    def __init__(self, plan: GridPlan, heap: EventHeap) -> None:
        self._heap = heap
        self._until_s = plan.duration_s
        self.machines = [_machine(machine) for machine in plan.machines]
        self.by_key: dict[bytes, Machine] = {machine.key: machine for machine in self.machines}
        self.living: dict[bytes, Machine] = {}
        """By key, in the order in which they came."""
        self.departures = 0
        self.returns = 0
        self.on_gone: list[Callable[[Machine], None]] = []
        """Told when the others notice that a machine left."""
        for number, machine in enumerate(self.machines):
            rng = random.Random(f"{plan.seed}/churn/{machine.plan.name}")
            self._next(machine, number, churn_of(machine.plan).sessions(rng, machine.plan.joins_s, plan.duration_s))

    def _next(self, machine: Machine, number: int, sessions: Iterator[Session]) -> None:
        session = next(sessions, None)
        if session is None:
            return
        label = number.to_bytes(4, "big")

        def down() -> None:
            if self._heap.now <= self._until_s:
                self._down(machine, label)
                self._next(machine, number, sessions)

        def up() -> None:
            self._up(machine)
            if session.off_s < self._until_s:
                self._heap.after(session.off_s - self._heap.now, down, b"off" + label)

        self._heap.after(session.on_s - self._heap.now, up, b"on" + label)

    def _up(self, machine: Machine) -> None:
        self.returns += machine.life > 0
        machine.on = True
        machine.worker = Worker(machine.plan.cores)
        self.living[machine.key] = machine

    def _down(self, machine: Machine, label: bytes) -> None:
        self.departures += 1
        machine.on, machine.seen_at = False, self._heap.now
        machine.ended_at[machine.life] = self._heap.now
        machine.life += 1
        del self.living[machine.key]
        rng = self._heap.rng
        silent_s = GOODBYE_S if rng.random() < ORDERLY else DEFAULT_LIMITS.dead_after_s - DEFAULT_LIMITS.heartbeat_s * rng.random()
        self._heap.after(silent_s, lambda: self._noticed(machine), b"gone" + label)

    def _noticed(self, machine: Machine) -> None:
        for told in self.on_gone:
            told(machine)

    def some(self, count: int, fits: Callable[[Machine], bool]) -> list[Machine]:
        """Up to ``count`` machines that are on and fit, drawn at random."""
        fitting = [machine for machine in self.living.values() if fits(machine)]
        return self._heap.rng.sample(fitting, min(count, len(fitting)))

    def lately(self, seconds: float) -> list[Machine]:
        """Those that are on, or were within the last ``seconds``."""
        now = self._heap.now
        return [machine for machine in self.machines if machine.on or (machine.life > 0 and now - machine.seen_at <= seconds)]


def _machine(plan: MachinePlan) -> Machine:
    key = NodeKey(blake3(b"machine/" + plan.name.encode()).digest())
    lies = {"honest": b"", "colluding": b"together"}
    return Machine(plan, key, Worker(plan.cores), lies.get(plan.behaviour, b"alone" + key))
