"""One grid of the family that a scenario describes: every number settled for one seed.

1. The same scenario and seed give the same plan, in every process.
2. Each part draws from a stream of its own: a machine by its name, a fault and a group of files by its place in the file, a
   job by its name. So one more fault, job or machine leaves all that is there as it was.
3. ``founder`` stands for the kind that founds the grid, whatever its name is; a plan has the name of that kind.
4. Whatever lasts is over when the faults' time is: the liveness phase that follows is calm.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from p2pgrid.testing.plans.scenario import Count, FaultPlan, FilePlan, GridScenario, JobPlan, NodePlan, Span

FOUNDER = "founder"


def low(span: Span) -> float:
    """The least that a span can give."""
    return span[0] if isinstance(span, tuple) else span


def high(span: Span) -> float:
    """The most that a span can give."""
    return span[1] if isinstance(span, tuple) else span


def draw(span: Span, rng: random.Random) -> float:
    """The number itself, or one between its bounds, each with equal chance."""
    return rng.uniform(*span) if isinstance(span, tuple) else float(span)


def draw_count(count: Count, rng: random.Random) -> int:
    """The number itself, or one of those from the first bound to the second, each with equal chance."""
    return rng.randint(*count) if isinstance(count, tuple) else count


@dataclass(frozen=True, slots=True)
class AirPlan:
    """The network of one grid. Fields as in ``NetworkPlan``; links are with the machines."""

    latency_s: float
    latency_sigma: float
    jitter_s: float
    loss: float
    duplicate: float
    reorder: float


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """One machine. Fields as in ``NodePlan``."""

    name: str
    """``kind-number``, counted from 1."""
    kind: str
    founder: bool
    """The one machine that is there first and invites the others."""
    cores: int
    speed: float
    storage_bytes: int
    disk_bytes: int
    """0: without limit."""
    roles: tuple[str, ...]
    native: bool
    nat: str
    bandwidth_bytes_s: float
    """Up, and down; 0: without limit. What the network said is settled here."""
    extra_latency_s: float
    clock_skew_s: float
    joins_s: float
    behaviour: str
    churn: str
    """``none`` for the stable share of a kind that comes and goes."""
    session_s: float
    shape: float
    away_s: float

    @property
    def honest(self) -> bool:
        """Whether it follows the protocol."""
        return self.behaviour == "honest"


@dataclass(frozen=True, slots=True)
class FaultEvent:
    """A fault that happens once, at a known time. Whom it strikes is drawn when it does, among those that run then."""

    kind: str
    at_s: float
    for_s: float
    """Cut at the end of the faults' time."""
    nodes: int
    share: float
    """Above 0: counts instead of ``nodes``."""
    of: str
    """Only machines of this kind; empty: of any."""
    spare: str
    """Machines of these kinds, with spaces between, are spared."""
    strength: float
    table: int
    """Which ``[[faults]]`` it comes from, counted from 1, and the how manieth time."""
    turn: int
    newcomers: tuple[MachinePlan, ...] = ()
    """The machines of a flash crowd, each with its own ``joins_s``."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job with its numbers settled."""

    name: str
    plan: JobPlan
    """As written, with the numbers below in the place of their bounds."""
    at_s: float
    submitter: str
    """The kind of machine."""
    units: int
    unit_s: float
    result_bytes: int
    cancel_at_s: float
    """0: never."""


@dataclass(frozen=True, slots=True)
class FileEvent:
    """One file that is put."""

    name: str
    at_s: float
    size_bytes: int
    replicas: int
    by: str
    """The kind of machine; empty: any that runs."""


@dataclass(frozen=True, slots=True)
class GridPlan:
    """One grid, and all that will happen to it."""

    scenario: GridScenario
    seed: int
    duration_s: float
    settle_s: float
    air: AirPlan
    machines: tuple[MachinePlan, ...]
    """Those that are there from the beginning or join by themselves; the one that founds is the first."""
    faults: tuple[FaultEvent, ...]
    """In the order of their times, as are jobs and files."""
    jobs: tuple[JobEvent, ...]
    files: tuple[FileEvent, ...]

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.scenario.name

    @property
    def all_machines(self) -> tuple[MachinePlan, ...]:
        """With those of flash crowds."""
        return self.machines + tuple(machine for fault in self.faults for machine in fault.newcomers)

    def another(self, kind: str, number: int, joins_s: float) -> MachinePlan:
        """The machine that joins as the ``number``-th (from 1) of its kind beyond those in ``machines``."""
        node = next(node for node in self.scenario.nodes if node.kind == kind)
        have = sum(machine.kind == kind for machine in self.machines)
        return replace(_Planner(self.scenario, self.seed).machine(node, have + number), joins_s=joins_s)


def plan(scenario: GridScenario, seed: int) -> GridPlan:
    """Settle every number of a scenario for one seed."""
    planner = _Planner(scenario, seed)
    duration_s = draw(scenario.duration_s, planner.stream("run"))
    machines = planner.machines()
    return GridPlan(
        scenario=scenario,
        seed=seed,
        duration_s=duration_s,
        settle_s=scenario.settle_s,
        air=planner.air(),
        machines=machines,
        faults=planner.faults(duration_s, machines),
        jobs=tuple(sorted(map(planner.job, scenario.jobs), key=lambda job: job.at_s)),
        files=planner.files(duration_s + scenario.settle_s),
    )


class _Planner:
    """The draws of one seed."""

    def __init__(self, scenario: GridScenario, seed: int) -> None:
        self.scenario = scenario
        self.seed = seed
        kinds = [node.kind for node in scenario.nodes]
        self.founder = FOUNDER if FOUNDER in kinds else kinds[0]

    def stream(self, part: str) -> random.Random:
        """A generator that belongs to one part alone."""
        return random.Random(f"{self.seed}/{part}")

    def named(self, kind: str) -> str:
        """A kind by its own name."""
        return self.founder if kind == FOUNDER else kind

    def air(self) -> AirPlan:
        network, rng = self.scenario.network, self.stream("network")
        return AirPlan(
            latency_s=draw(network.latency_s, rng),
            latency_sigma=network.latency_sigma,
            jitter_s=draw(network.jitter_s, rng),
            loss=draw(network.loss, rng),
            duplicate=draw(network.duplicate, rng),
            reorder=draw(network.reorder, rng),
        )

    # -- machines --------------------------------------------------------------------

    def machines(self) -> tuple[MachinePlan, ...]:
        """The machines of every kind, the one that founds first."""
        found = [
            self.machine(node, number, founder=node.kind == self.founder and number == 1)
            for node in self.scenario.nodes
            for number in range(1, draw_count(node.count, self.stream(f"machines/{node.kind}")) + 1)
        ]
        return tuple(sorted(found, key=lambda machine: not machine.founder))

    def machine(self, node: NodePlan, number: int, *, founder: bool = False) -> MachinePlan:
        name = f"{node.kind}-{number}"
        rng = self.stream(f"machines/{name}")
        link = draw(node.bandwidth_bytes_s, rng)
        network_link = draw(self.scenario.network.bandwidth_bytes_s, rng)
        joins_s = draw(node.joins_s, rng)
        stays = rng.random() < node.stable
        return MachinePlan(
            name=name,
            kind=node.kind,
            founder=founder,
            cores=draw_count(node.cores, rng),
            speed=draw(node.speed, rng),
            storage_bytes=draw_count(node.storage_bytes, rng),
            disk_bytes=draw_count(node.disk_bytes, rng),
            roles=node.roles,
            native=node.native,
            nat=node.nat,
            bandwidth_bytes_s=network_link if link < 0 else link,
            extra_latency_s=draw(node.extra_latency_s, rng),
            clock_skew_s=draw(node.clock_skew_s, rng),
            joins_s=0.0 if founder else joins_s,
            behaviour=node.behaviour,
            churn="none" if stays else node.churn,
            session_s=draw(node.session_s, rng),
            shape=draw(node.shape, rng),
            away_s=draw(node.away_s, rng),
        )

    # -- faults -------------------------------------------------------------------------

    def faults(self, duration_s: float, machines: tuple[MachinePlan, ...]) -> tuple[FaultEvent, ...]:
        """Every fault that happens before the faults' time is over. Crowds are numbered in the order of their times."""
        drawn = [event for table, fault in enumerate(self.scenario.faults, 1) for event in self.turns(fault, table, duration_s)]
        drawn.sort(key=lambda event: (event.at_s, event.table, event.turn))
        counts = Counter(machine.kind for machine in machines)
        return tuple(self.with_crowd(event, counts, duration_s) if event.kind == "flash-crowd" else event for event in drawn)

    def turns(self, fault: FaultPlan, table: int, duration_s: float) -> Iterator[FaultEvent]:
        rng = self.stream(f"faults/{table}")
        at_s, turn = draw(fault.at_s, rng), 1
        while at_s < duration_s:
            yield FaultEvent(
                kind=fault.kind,
                at_s=at_s,
                for_s=min(draw(fault.for_s, rng), duration_s - at_s),
                nodes=draw_count(fault.nodes, rng),
                share=fault.share,
                of=self.named(fault.of),
                spare=" ".join(map(self.named, fault.spare.split())),
                strength=draw(fault.strength, rng),
                table=table,
                turn=turn,
            )
            every_s = draw(fault.every_s, rng)
            if not every_s:
                return
            at_s, turn = at_s + every_s, turn + 1

    def with_crowd(self, event: FaultEvent, counts: Counter[str], duration_s: float) -> FaultEvent:
        """A flash crowd with its machines: numbered on from those of their kind, each joining within ``strength`` seconds."""
        node = next(node for node in self.scenario.nodes if node.kind == event.of)
        rng = self.stream(f"crowd/{event.table}/{event.turn}")
        newcomers = []
        for number in range(counts[node.kind] + 1, counts[node.kind] + event.nodes + 1):
            joins_s = min(event.at_s + event.strength * rng.random(), duration_s)
            newcomers.append(replace(self.machine(node, number), joins_s=joins_s))
        counts[node.kind] += event.nodes
        return replace(event, newcomers=tuple(sorted(newcomers, key=lambda machine: machine.joins_s)))

    # -- work ---------------------------------------------------------------------------------

    def job(self, job: JobPlan) -> JobEvent:
        rng = self.stream(f"jobs/{job.name}")
        at_s, unit_s, cancel_at_s = draw(job.at_s, rng), draw(job.unit_s, rng), draw(job.cancel_at_s, rng)
        units, result_bytes = draw_count(job.units, rng), draw_count(job.result_bytes, rng)
        submitter = self.named(job.submitter)
        settled = msgspec.structs.replace(
            job, at_s=at_s, submitter=submitter, units=units, unit_s=unit_s, result_bytes=result_bytes, cancel_at_s=cancel_at_s
        )
        return JobEvent(job.name, settled, at_s, submitter, units, unit_s, result_bytes, cancel_at_s)

    def files(self, end_s: float) -> tuple[FileEvent, ...]:
        found = [event for table, group in enumerate(self.scenario.files, 1) for event in self.group(group, table) if event.at_s < end_s]
        return tuple(sorted(found, key=lambda file: file.at_s))

    def group(self, group: FilePlan, table: int) -> Iterator[FileEvent]:
        rng = self.stream(f"files/{table}")
        at_s = draw(group.at_s, rng)
        for number in range(1, draw_count(group.count, rng) + 1):
            yield FileEvent(
                f"file-{table}-{number}",
                at_s,
                draw_count(group.size_bytes, rng),
                group.replicas,
                self.named(group.by),
            )
            at_s += draw(group.every_s, rng)
