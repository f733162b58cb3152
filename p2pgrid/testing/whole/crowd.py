"""The machines of a simulated grid as one: who runs, who starts and stops when, and what faults do to them.

It is what faults act on (:class:`p2pgrid.testing.faults.Machines`), what machines live in
(:class:`p2pgrid.testing.whole.machines.Surroundings`) and what onlookers may ask (:class:`p2pgrid.testing.observe.View`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from p2pgrid.node import Node
from p2pgrid.testing.air.network import NatKind, SimulatedNetwork
from p2pgrid.testing.faults import Struck, Undoing
from p2pgrid.testing.observe import Onlooker
from p2pgrid.testing.parts.disk import SimulatedDisk
from p2pgrid.testing.parts.runtime import Cpu, UnitTimes
from p2pgrid.testing.plans import churn
from p2pgrid.testing.plans.gridplan import GridPlan, MachinePlan
from p2pgrid.testing.whole.machines import SimulatedMachine
from p2pgrid.testing.world import EPOCH_MS, World

INVITE_MS = 30 * 86_400_000
LEAVES_POLITELY = 0.5
"""Share of churn's sessions that end in good order; the others are simply gone."""


class Air:
    """The network as faults see it: partitions by who is parted, not by number."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.network = network
        self._parted: dict[tuple[str, ...], int] = {}
        self._usual: dict[str, float] = {}

    @property
    def loss(self) -> float:
        return self.network.loss

    @loss.setter
    def loss(self, chance: float) -> None:
        self.network.loss = chance

    def partition(self, one: list[str], other: list[str], *, one_way: bool = False) -> None:
        self._parted[(*one, "|", *other)] = self.network.partition([one, other], one_way=one_way)

    def heal(self, one: list[str], other: list[str]) -> None:
        self.network.heal(self._parted.pop((*one, "|", *other)))

    def clog(self, name: str, extra_s: float) -> None:
        self.network.delay(name, self._usual.setdefault(name, self.network.hosts[name].extra_latency_s) + extra_s)

    def unclog(self, name: str) -> None:
        self.network.delay(name, self._usual.pop(name, 0.0))


class Crowd:
    """All machines of one run, by name in the order in which they came."""

    def __init__(self, world: World, network: SimulatedNetwork, plan: GridPlan, folder: Path, times: UnitTimes) -> None:
        self.world = world
        self.plan = plan
        self.times = times
        self.grid_name = plan.scenario.name
        self.network = Air(network)
        self.rng = world.fork("faults")
        self.undoing: dict[Struck, Undoing] = {}
        self.machines: dict[str, SimulatedMachine] = {}
        self.onlookers: Sequence[Onlooker] = ()
        self.faults: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.causes: list[Callable[[str, str, float], None]] = []
        """Told of every fault that may lead to errors in the log of a machine."""
        self.hostile: list[Callable[[str, float, float], None]] = []
        """Makes hostile machines."""
        self.poisons: list[Callable[[bytes], None]] = []
        self.founder: Node | None = None
        self.capacity: list[tuple[float, float]] = [(0.0, 0.0)]
        """(moment, units of work a second that the grid can do from then on)."""
        self.calm = False
        """Faults are over; churn too."""
        self._folder = folder
        self._invites: dict[tuple[str, ...], str] = {}
        self._added: Counter[str] = Counter()
        for machine in plan.machines:
            self._make(machine)

    def _make(self, plan: MachinePlan) -> SimulatedMachine:
        number = len(self.machines)
        host = self.network.network.host(
            plan.name,
            f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
            bandwidth_bytes_s=plan.bandwidth_bytes_s,
            nat=cast(NatKind, plan.nat),
            extra_latency_s=plan.extra_latency_s,
        )
        machine = SimulatedMachine(self, plan, host, self._folder / plan.name, self.world.fork(f"disk/{plan.name}"))
        self.machines[plan.name] = machine
        self._schedule(machine)
        return machine

    def _schedule(self, machine: SimulatedMachine) -> None:
        """When it is on and off, by its churn."""
        plan = machine.plan
        self.world.at(plan.joins_s, machine.start)
        if plan.churn == "none":
            return
        rng = self.world.fork(f"churn/{plan.name}")
        for on_s, off_s in churn.sessions(plan, rng, self.plan.duration_s):
            self.world.at(on_s, self._arrive, machine)
            if off_s < self.plan.duration_s:
                self.world.at(off_s, self._depart, machine, rng.random() < LEAVES_POLITELY)

    def _arrive(self, machine: SimulatedMachine) -> None:
        if not self.calm:
            machine.start()

    def _depart(self, machine: SimulatedMachine, politely: bool) -> None:
        if self.calm or not machine.on:
            return
        self.count_path("churn-leave" if politely else "churn-gone")
        if politely:
            machine.leave()
        else:
            machine.stop(power=False)

    def poison(self, raw: bytes) -> None:
        """Tell the checkers of a forged statement."""
        for tell in self.poisons:
            tell(raw)

    # -- what machines need ------------------------------------------------------------------

    def founded(self, node: Node) -> None:
        """The first node runs: from now on others can be invited."""
        self.founder = node

    def invite_for(self, roles: tuple[str, ...]) -> str | None:
        """An invite with these roles, as the founder's owner would hand it out."""
        if roles not in self._invites and self.founder is not None:
            self._invites[roles] = self.founder.invite(roles, self.wall_ms() + INVITE_MS)
        return self._invites.get(roles)

    def changed(self) -> None:
        """Who runs has changed: note what the grid can compute from now on."""
        able = sum(machine.plan.cores * machine.cpu.speed for machine in self.machines.values() if machine.node is not None)
        self.capacity.append((self.world.now, able))

    def ideal_s(self, from_s: float, work_s: float) -> float:
        """How long so many seconds of work at speed 1 take from a moment on if nobody who runs is ever idle; 0: they are never done."""
        done = 0.0
        for (since_s, able), (until_s, _) in zip(self.capacity, [*self.capacity[1:], (self.world.now, 0.0)], strict=True):
            span_s = until_s - max(since_s, from_s)
            if span_s > 0:
                if done + able * span_s >= work_s:
                    return max(since_s, from_s) + (work_s - done) / able - from_s
                done += able * span_s
        return 0.0

    def count_path(self, path: str) -> None:
        """A path through the grid was taken."""
        self.paths[path] += 1

    # -- what onlookers may ask ----------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.world.now

    def wall_ms(self, name: str = "") -> int:
        return self.machines[name].wall_ms() if name else EPOCH_MS + int(self.world.now * 1000)

    def living(self) -> dict[str, Node]:
        return {name: machine.node for name, machine in self.machines.items() if machine.node is not None}

    def honest(self, name: str) -> bool:
        return self.machines[name].plan.honest

    def frozen(self, name: str) -> bool:
        """Whether a machine stands still."""
        return self.machines[name].loop.held is not None

    # -- what faults do -----------------------------------------------------------------------------

    def running(self, of: str = "", spare: str = "") -> list[str]:
        spared = spare.split()
        return sorted(
            name
            for name, machine in self.machines.items()
            if machine.node is not None and (not of or machine.plan.kind == of) and machine.plan.kind not in spared
        )

    def kill(self, name: str, *, power: bool, disk_gone: bool) -> None:
        self.machines[name].stop(power=power, disk_gone=disk_gone)
        self.changed()

    def start(self, name: str) -> None:
        self.machines[name].start()

    def leave(self, name: str) -> None:
        self.machines[name].leave()

    def freeze(self, name: str) -> None:
        self.machines[name].loop.freeze()

    def thaw(self, name: str) -> None:
        self.machines[name].loop.thaw()

    def cpu(self, name: str) -> Cpu:
        return self.machines[name].cpu

    def disk(self, name: str) -> SimulatedDisk:
        return self.machines[name].disk

    def skew(self, name: str, seconds: float) -> None:
        self.machines[name].skew_s += seconds

    def add(self, kind: str, at_s: float) -> str:
        self._added[kind] += 1
        return self._make(self.plan.another(kind, self._added[kind], at_s)).name

    def adversary(self, kind: str, strength: float, for_s: float) -> None:
        for make in self.hostile:
            make(kind, strength, for_s)

    def count(self, kind: str) -> None:
        self.faults[kind] += 1

    def damaged(self, name: str, path: str) -> None:
        for onlooker in self.onlookers:
            onlooker.on_disk_damage(name, path)

    def cause(self, name: str, kind: str, for_s: float) -> None:
        for tell in self.causes:
            tell(name, kind, for_s)


def some(rng: random.Random, names: Sequence[str]) -> str:
    """One of some machines."""
    return names[rng.randrange(len(names))]
