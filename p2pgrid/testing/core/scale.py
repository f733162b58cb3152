"""The core engine: a thousand nodes' machines on one event heap, for scenarios with ``engine = "core"``.

Leads, keepers and workers are the product's own, as are the DHT's tables and crawl; what moves bytes is not there. Connections
break as an event, signatures are an oracle's. Machines come and go as the scenario's kinds do; jobs are submitted from machines that
stay, since a job whose submitter is gone for good waits for it. Faults other than comings and goings belong to whole nodes.

    python -m p2pgrid.testing.core.scale scenarios/grids/thousand.toml --seed 7
    python -m p2pgrid.testing.core.scale million
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from p2pgrid.core import lead as leading
from p2pgrid.core import worker as working
from p2pgrid.errors import UsageError
from p2pgrid.model.work import OK, Receipt
from p2pgrid.testing import tails
from p2pgrid.testing.checkers.objects import unlucky_bound
from p2pgrid.testing.core import lookups, million
from p2pgrid.testing.core.blobs import Blobs
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.core.jobs import DISCOVER_S, LeadNode, ScaleJob
from p2pgrid.testing.core.million import million_units
from p2pgrid.testing.core.plan import EXPIRES_MS, oracle, truth
from p2pgrid.testing.core.population import Air, Machine, Population
from p2pgrid.testing.core.watch import Watch
from p2pgrid.testing.plans import gridplan, scenario
from p2pgrid.testing.plans.gridplan import GridPlan, JobEvent
from p2pgrid.testing.plans.scenario import GridScenario
from p2pgrid.testing.verdict import JobVerdict, Verdict
from p2pgrid.wire.codec import digest_of
from p2pgrid.wire.envelope import Signed

__all__ = ["ScaleGrid", "million_units", "run_core"]

TICK_S = 1.0
CHECK_S = 120.0
"""Between two looks at every lead and keeper."""
SNAPSHOTS = 5
"""How often lookups are made in the course of a run, each time by an equal part of them."""
KNOWN_LATELY_S = 3600.0
"""Tables still know who left within this time: every bucket is refreshed that often."""
TABLE_LOOKUPS = 300
COLLECT_EVERY = 600
"""Virtual seconds between two rounds of the garbage collector."""
EVENTS_MAX = 50_000_000

Progress = Callable[[float], None]
"""Told now and then which share of the run is over, 0 to 1."""


class ScaleGrid:
    """One run of a scenario."""

    def __init__(self, plan: GridPlan, progress: Progress | None = None) -> None:
        """Raises UsageError for a scenario with faults that only whole nodes have, or without a machine that stays to submit from."""
        if plan.faults:
            raise UsageError(
                f"{plan.name} has faults, and runs on the core alone", hint='let machines come and go, or use engine = "whole"'
            )
        self.plan = plan
        self.heap = EventHeap(plan.seed)
        self.air = Air(self.heap, plan.air)
        self.population = Population(plan, self.heap)
        self.blobs = Blobs(plan, self.heap, self.air, self.population)
        self.nodes: dict[bytes, LeadNode] = {}
        self.jobs: list[ScaleJob] = []
        self.watch = Watch(self.heap, self.jobs)
        self.lookups: list[lookups.LookupRow] = []
        self.table: list[lookups.LookupRow] = []
        self._progress = progress
        self._end_s = plan.duration_s + plan.settle_s
        self.population.on_gone.append(self._gone)
        for number, event in enumerate(plan.jobs):
            self._submitter(event)
            self.heap.after(event.at_s, lambda event=event, number=number: self._submit(event, number), b"submit")  # type: ignore[misc]
        self.heap.every(TICK_S, self._tick, b"tick")
        self.heap.every(DISCOVER_S, self._discover, b"discover")
        self.heap.every(CHECK_S, self.watch.look, b"check")
        for number in range(SNAPSHOTS if plan.scenario.core.lookups else 0):
            self.heap.after((number + 1) / SNAPSHOTS * plan.duration_s, lambda number=number: self._look_up(number), b"lookups")  # type: ignore[misc]

    def run(self) -> Verdict:
        """Run to the end. Broken invariants are in the verdict."""
        collects = gc.isenabled()
        gc.disable()
        try:
            self.heap.run(self._over, self._end_s, steps_max=EVENTS_MAX)
            self.watch.end()
            return self._verdict()
        finally:
            if collects:
                gc.enable()
            gc.collect()

    def _over(self) -> bool:
        return self.heap.now >= self.plan.duration_s and len(self.jobs) == len(self.plan.jobs) and all(job.complete for job in self.jobs)

    # -- what happens by the clock -------------------------------------------------------------

    def _tick(self) -> None:
        for job in self.jobs:
            if not job.complete:
                job.tick(TICK_S)
        second = int(self.heap.now)
        if not second % COLLECT_EVERY:
            gc.collect()
        if self._progress is not None:
            self._progress(min(1.0, self.heap.now / self.plan.duration_s))

    def _discover(self) -> None:
        for node in self.nodes.values():
            node.discover()

    def _gone(self, machine: Machine) -> None:
        for node in self.nodes.values():
            node.gone(machine)

    def _look_up(self, number: int) -> None:
        """An equal part of the scenario's lookups, in the grid as it is now."""
        share = self.plan.scenario.core.lookups // SNAPSHOTS
        known = self.population.lately(KNOWN_LATELY_S)
        grid = lookups.Population([machine.key for machine in known], [machine.on for machine in known])
        if len(grid.living) > 1:
            rtt = (2 * self.plan.air.latency_s, self.plan.air.latency_sigma)
            self.lookups.append(lookups.measure(grid, max(1, share), self.plan.seed * SNAPSHOTS + number, rtt))

    # -- jobs -------------------------------------------------------------------------------------

    def _submitter(self, event: JobEvent) -> Machine:
        staying = [
            machine
            for machine in self.population.machines
            if machine.plan.kind == event.submitter and machine.stays and machine.plan.joins_s < event.at_s
        ]
        if not staying:
            raise UsageError(f"no machine of kind '{event.submitter}' stays to submit {event.name}", hint="give the kind a stable share")
        return staying[len(self.jobs) % len(staying)]

    def _submit(self, event: JobEvent, number: int) -> None:
        at = self._submitter(event)
        node = self.nodes.get(at.key)
        if node is None:
            node = self.nodes[at.key] = LeadNode(at, self.population)
            node.discover()
        job = ScaleJob(event, number, node, self.heap, self.air, self.population)
        self.jobs.append(job)
        node.jobs.append(job)
        job.start(self._invited)

    def _invited(self, job: ScaleJob, machine: Machine) -> None:
        self._work(machine, working.Invited(job.source, job.submitter))

    def _job(self, source: working.SourceKey) -> ScaleJob:
        return next(job for job in self.jobs if job.source == source)

    def _work(self, machine: Machine, event: working.Event) -> None:
        for effect in machine.worker.handle(event, self.heap.now):
            match effect:
                case working.Pull():
                    self._pull(machine, effect, machine.life)
                case working.Run():
                    self._begin(machine, effect, machine.life)

    def _pull(self, machine: Machine, pull: working.Pull, life: int) -> None:
        job = self._job(pull.source)

        def answer(event: working.Event) -> None:
            if machine.on and machine.life == life:
                self._work(machine, event)

        def arrive() -> None:
            if machine.key not in job.links or machine.life != life:
                self.air.send(b"dry", 50, lambda: answer(working.Dry(pull.source)))
                return
            granted = job.handle(leading.Pulled(machine.key, machine.key, pull.slots, pull.want))
            assert granted is not None
            grant = granted.grant
            if grant is None:
                self.air.send(b"dry", 50, lambda: answer(working.Dry(pull.source, granted.over)))
            else:
                self.air.send(b"lease", len(grant.raw), lambda: answer(working.Leased(pull.source, grant.id, grant.body.ranges)))

        self.air.send(b"pull", 100, arrive)

    def _begin(self, machine: Machine, run: working.Run, life: int) -> None:
        job = self._job(run.source)
        spent_s = job.spent_s(machine, run.range.batch, run.range.start, run.range.units)

        ends_at = self.heap.now + spent_s
        job.tail.spent_s += spent_s * machine.plan.speed

        def end() -> None:
            if machine.life != life or not machine.on:
                job.tail.spent_s -= (ends_at - machine.ended_at[life]) * machine.plan.speed
                return
            self._work(machine, working.UnitsDone(run.source, run.range.units, spent_s))
            receipt = self._receipt(job, machine, run, spent_s)
            self.air.send(b"receipt", len(receipt.raw), lambda: job.take(receipt))
            self._work(machine, working.TaskEnded(run.source))

        self.heap.after(spent_s, end, b"end")

    @staticmethod
    def _receipt(job: ScaleJob, machine: Machine, run: working.Run, spent_s: float) -> Signed[Receipt]:
        batch, start, count, _ = run.range
        units = range(start, start + count)
        if machine.lie:
            digests = b"".join(digest_of(machine.lie + b"%d/%d" % (batch, unit)) for unit in units)
        else:
            digests = b"".join(truth(batch, unit) for unit in units)
        body = Receipt(EXPIRES_MS, job.job.id, run.grant, (run.range,), bytes([OK]) * count, digests, int(spent_s * 1e6), bytes(32))
        return oracle(body, machine.key)

    # -- the verdict ------------------------------------------------------------------------------------

    def _verdict(self) -> Verdict:
        jobs = [self._job_verdict(job) for job in self.jobs]
        lost, unlucky, expected = self.blobs.lost(), self.blobs.unlucky(), self.blobs.unlucky_expected()
        verdict = Verdict(
            scenario=self.plan.name,
            seed=self.plan.seed,
            nodes=len(self.population.machines),
            virtual_seconds=round(self.heap.now, 3),
            events=self.heap.steps,
            messages=self.air.messages,
            bytes=self.air.bytes,
            units=sum(job.units for job in jobs),
            files=len(self.blobs.acknowledged),
            lost=len(lost),
            unlucky=len(unlucky),
            unlucky_expected=round(expected, 4),
            accepted_wrong=sum(job.decided()[1] for job in self.jobs),
            accepted_twice=self.watch.twice,
            makespan_ratio=max((round(job.makespan_s / job.ideal_s, 3) for job in jobs if job.ideal_s and job.makespan_s), default=0.0),
            tail_ratio=max((job.tail_ratio for job in jobs), default=0.0),
            extra_work=max((job.extra_work for job in jobs), default=0.0),
            jobs=jobs,
            faults={"departure": self.population.departures, "return": self.population.returns},
            reasons=dict(sorted(self._reasons().items())),
            paths=dict(sorted(self._paths().items())),
            figures=self._figures(),
        )
        self._expect(verdict)
        verdict.violations = self.watch.violations
        verdict.ok = not verdict.violations
        self.heap.note(msgspec.json.encode(verdict, order="sorted"))
        verdict.trace_hash = self.heap.trace_hash()
        return verdict

    @staticmethod
    def _job_verdict(job: ScaleJob) -> JobVerdict:
        return JobVerdict(
            name=job.event.name,
            job=job.job.id.hex(),
            units=job.event.units,
            correct=job.decided()[0],
            failed=job.lead.ledger.failed,
            state=("failed" if job.lead.ledger.failed else "done") if job.over else "running",
            makespan_s=round(job.over_at - job.submitted_at, 3) if job.over else 0.0,
            ideal_s=round(job.ideal_s(), 3),
            tail_ratio=job.tail.ratio(job.submitted_at) if job.over else 0.0,
            extra_work=job.tail.beyond(job.needed_s()) if job.over else 0.0,
        )

    def _reasons(self) -> dict[str, int]:
        return {str(reason): count for reason, count in self.blobs.reasons.items()}

    def _paths(self) -> dict[str, int]:
        paths = Counter[str]()
        for job in self.jobs:
            paths.update(job.paths)
        return {path: count for path, count in paths.items() if count}

    def _figures(self) -> dict[str, float]:
        figures: dict[str, float] = {"files_failed": float(self.blobs.failed)}
        if self.lookups:
            figures |= lookups.summary(self.lookups)
        sizes = self.plan.scenario.core.table_nodes
        if sizes:
            self.table = lookups.table(sizes, TABLE_LOOKUPS, self.plan.seed)
            figures |= lookups.figures(self.table)
        return figures

    def _expect(self, verdict: Verdict) -> None:
        """What the scenario promises beyond the invariants."""
        expect, watch = self.plan.scenario.expect, self.watch
        for job, made in zip(verdict.jobs, self.jobs, strict=True):
            if not made.complete and made.event.plan.until_end:
                watch.violate("L1", job.name, f"not over {self.plan.settle_s:g} s after faults stopped: {job.correct} of {job.units} right")
            elif expect.jobs_complete and job.correct != job.units:
                watch.violate("expect", job.name, f"the job is not complete: {job.correct} of {job.units} right")
        if expect.accepted_wrong == "none" and verdict.accepted_wrong:
            watch.violate("expect", "jobs", f"{verdict.accepted_wrong} wrong values were accepted")
        if verdict.lost:
            watch.violate("S5", "blobs", f"{verdict.lost} blobs with a living holder are lost")
        most = unlucky_bound(verdict.unlucky_expected) if expect.unlucky_max < 0 else expect.unlucky_max
        if verdict.unlucky > most:
            watch.violate("expect", "blobs", f"{verdict.unlucky} blobs lost all their holders, {most:.1f} are the most")
        if expect.makespan_ratio_max >= 0 and verdict.makespan_ratio > expect.makespan_ratio_max:
            watch.violate("expect", "jobs", f"the makespan is {verdict.makespan_ratio} times the ideal")
        for text in tails.broken(verdict, expect.tail_ratio_max, expect.extra_work_max):
            watch.violate("expect", "jobs", text)
        for rows, where in ((self.lookups, "the grid"), (self.table, "the table of sizes")):
            if rows and lookups.success(rows) < expect.lookups_min:
                watch.violate("L2", "dht", f"only {lookups.success(rows):.2%} of lookups in {where} found the nearest nodes")


def run_core(scenario: GridScenario, seed: int, *, progress: Progress | None = None) -> Verdict:
    """Run a scenario of the core engine from a seed. Raises UsageError for one that needs whole nodes."""
    return ScaleGrid(gridplan.plan(scenario, seed), progress).run()


def main(arguments: list[str]) -> int:
    """From the command line: a scenario file, or ``million``. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="p2pgrid.testing.core.scale", description=__doc__)
    parser.add_argument("what", help="a scenario file, or the word 'million'")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--units", type=int, default=million.UNITS, help="of 'million'")
    chosen = parser.parse_args(arguments)
    if chosen.what == "million":
        sys.stdout.write(million.describe(million.measured(chosen.units)) + "\n")
        return 0
    verdict = run_core(scenario.load(Path(chosen.what)), chosen.seed)
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(verdict), indent=2) + b"\n")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
