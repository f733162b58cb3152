"""A few real nodes on simulated machines, and hostile ones among them, without scenario files and checkers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from p2pgrid.node import Node
from p2pgrid.testing.air.network import SimulatedNetwork, Weather
from p2pgrid.testing.hostile.attackers import Attackers
from p2pgrid.testing.observe import Onlooker
from p2pgrid.testing.parts.oracle import oracle_signatures
from p2pgrid.testing.parts.runtime import SimulatedWorkers, UnitTimes
from p2pgrid.testing.plans.gridplan import plan
from p2pgrid.testing.plans.scenario import FaultPlan, FilePlan, GridScenario, JobPlan, NodePlan
from p2pgrid.testing.reasons import reasons_given
from p2pgrid.testing.whole.crowd import Crowd
from p2pgrid.testing.whole.errands import Errands
from p2pgrid.testing.world import World


class Watch(Onlooker):
    """Remembers every record that was handed to a log, and whether a poisoned one was among them."""

    def __init__(self) -> None:
        super().__init__()
        self.poisoned: set[bytes] = set()
        self.logged: list[tuple[str, int, bytes]] = []
        self.believed: list[tuple[str, int]] = []
        self.started: list[Node] = []

    def on_start(self, name: str, node: Node) -> None:
        self.started.append(node)

    def poison(self, raw: bytes) -> None:
        self.poisoned.add(raw)

    def on_log(self, name: str, job: bytes, records: Sequence[tuple[int, bytes]]) -> None:
        for kind, data in records:
            self.logged.append((name, kind, data))
            if data in self.poisoned:
                self.believed.append((name, kind))


class SmallGrid:
    """Built by :func:`small_grid`."""

    def __init__(self, seed: int, scenario: GridScenario, folder: Path, reasons: Counter[str]) -> None:
        self.world = World(seed)
        self.plan = plan(scenario, seed)
        self.network = SimulatedNetwork(self.world, self.world.fork("network"), Weather(latency_s=0.01))
        self.times = UnitTimes(seed)
        self.crowd = Crowd(self.world, self.network, self.plan, folder, self.times)
        self.errands = Errands(self.crowd, folder)
        self.watch = Watch()
        self.reasons = reasons
        self.attackers = Attackers(self.crowd, self.network, self.watch.poison)
        self.crowd.hostile.append(self.attackers)
        self.crowd.onlookers = [self.watch]
        self.watch.attach(self.crowd)

    def run(self, until_s: float) -> None:
        self.world.run_for(until_s - self.world.now)

    def finished(self, limit_s: float) -> bool:
        """Let time pass until every job was followed to its end."""
        return self.world.run_until(lambda: self.errands.jobs and all(job.followed for job in self.errands.jobs), limit_s)


@contextmanager
def small_grid(
    folder: Path,
    *,
    seed: int = 1,
    nodes: int = 4,
    jobs: Sequence[JobPlan] = (JobPlan(units=60, unit_s=0.3, at_s=4.0),),
    files: Sequence[FilePlan] = (),
    faults: Sequence[FaultPlan] = (),
    kinds: Sequence[NodePlan] = (),
) -> Iterator[SmallGrid]:
    scenario = GridScenario(
        name="small",
        about="",
        duration_s=60.0,
        nodes=(NodePlan(kind="founder"), NodePlan(kind="peer", count=nodes - 1), *kinds),
        jobs=tuple(jobs),
        files=tuple(files),
        faults=tuple(faults),
    )
    with oracle_signatures(), reasons_given() as reasons:
        grid = SmallGrid(seed, scenario, folder, reasons)
        try:
            yield grid
        finally:
            for name in grid.crowd.running():
                grid.crowd.leave(name)
            grid.world.run_for(5.0)
            grid.world.close()
            for node in grid.watch.started:
                assert isinstance(node.workers, SimulatedWorkers)
                node.workers.abandon()


def errors_of(records: Sequence[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if record.levelno >= logging.ERROR]
