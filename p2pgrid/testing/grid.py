"""A whole grid in one process, in virtual time, from one seed: real nodes on simulated machines, with faults.

    verdict = SimulatedGrid(load(Path("scenarios/grids/churn.toml")), seed=7).run()
    assert verdict.ok, verdict.violations

A run has four parts. While faults happen, people submit jobs and put files. Then everything that can be undone is
undone, and what the scenario promises must come true within the bound of the liveness phase. Then readers at other
machines ask for every result and every file that was acknowledged. At last all nodes end, and must leave nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from p2pgrid.runtimes.tasks import Kind
from p2pgrid.testing import faults, tails
from p2pgrid.testing.air.network import SimulatedNetwork, Weather
from p2pgrid.testing.hostile.attackers import Attackers
from p2pgrid.testing.observe import Onlooker
from p2pgrid.testing.parts.disk import temporary_folder
from p2pgrid.testing.parts.runtime import UnitTimes
from p2pgrid.testing.plans.gridplan import AirPlan, FaultEvent, plan
from p2pgrid.testing.plans.scenario import GridScenario
from p2pgrid.testing.reasons import OutcomeCounter, reasons_given
from p2pgrid.testing.verdict import JobVerdict, Verdict, Violation
from p2pgrid.testing.whole.clients import JobRun
from p2pgrid.testing.whole.crowd import Crowd
from p2pgrid.testing.whole.errands import Errands
from p2pgrid.testing.whole.lookup_probe import LookupProbe
from p2pgrid.testing.whole.machines import OFF_S
from p2pgrid.testing.whole.referee import Referee, signatures
from p2pgrid.testing.world import Stuck, World

READING_S = 90.0
LOOKUPS = 12
IDEAL_MIN_S = 2.0
"""Jobs that are shorter say nothing about how well the machines are used."""
GAVE_UP = "gave-up:ConfigError"
"""The path of a node that finds its own home unusable. What a simulation does to disks never damages keys."""
CLOSING_S = 30.0
"""A node that ends in good order is gone by then."""


class SimulatedGrid:
    """One seed of one scenario. Runs once."""

    def __init__(self, scenario: GridScenario, seed: int, *, onlookers: Sequence[Onlooker] = ()) -> None:
        """``onlookers``: of the caller, besides the checkers; told everything first."""
        self.scenario = scenario
        self.seed = seed
        self.world = World(seed)
        self._extra = onlookers
        self._broken: list[Violation] = []

    def run(self) -> Verdict:
        """Play it and say what came of it. Raises nothing for what the nodes do."""
        gc.collect()  # What the run before left behind: the collector rests while time passes.
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder())
            self.holds = stack.enter_context(signatures(self.scenario.signatures))
            self.reasons = stack.enter_context(reasons_given())
            self._build(folder)
            stack.callback(self.world.close)
            stack.enter_context(self.referee.listening())
            try:
                self._play()
            except Stuck as error:
                self._break("L4", "world", str(error))
            return self._verdict()

    def _break(self, invariant: str, where: str, text: str) -> None:
        self._broken.append(Violation(invariant, self.world.now, where, text))

    # -- putting it together ------------------------------------------------------------

    def _build(self, folder: Path) -> None:
        world, scenario = self.world, self.scenario
        self.plan = plan(scenario, self.seed)
        self.network = SimulatedNetwork(world, world.fork("network"), _weather(self.plan.air))
        self.times = UnitTimes(self.seed)
        self.crowd = Crowd(world, self.network, self.plan, folder, self.times)
        self.errands = Errands(self.crowd, Path(scenario.folder))
        self.referee = Referee(self.crowd, scenario, self.holds)
        self.crowd.onlookers = [*self._extra, OutcomeCounter(self.reasons), *self.referee.all]
        self.crowd.poisons.append(self.referee.facts.poison)
        self.crowd.causes.append(self.referee.on_cause)
        for onlooker in self.crowd.onlookers:
            onlooker.attach(self.crowd)
            if type(onlooker).on_datagram is not Onlooker.on_datagram:
                self.network.watchers.append(onlooker.on_datagram)
        self.attackers = Attackers(self.crowd, self.network, self.referee.facts.poison)
        self.crowd.hostile.append(self.attackers)
        for event in self.plan.faults:
            world.at(event.at_s, self._strike, event)
        world.after(1.0, self._second)

    def _strike(self, event: FaultEvent) -> None:
        struck = faults.apply(event, self.crowd)
        for onlooker in self.crowd.onlookers:
            onlooker.on_fault(event, struck)

    def _second(self) -> None:
        for onlooker in self.crowd.onlookers:
            onlooker.on_second()
        self.world.note(len(self.crowd.living()), self.network.messages)
        self.world.after(1.0, self._second)

    # -- the four parts --------------------------------------------------------------------

    def _play(self) -> None:
        world, crowd = self.world, self.crowd
        world.run_for(self.plan.duration_s)
        self._calm()
        bound_s = world.now + self.scenario.settle_s
        world.run_for(min(self.scenario.calm_s, self.scenario.settle_s))
        world.run_until(lambda: self.errands.settled() and not self.referee.due(), bound_s)
        for onlooker in crowd.onlookers:
            onlooker.at_end()
        self.errands.read_all()
        world.run_until(lambda: not self.errands.unread, world.now + READING_S)
        probe = LookupProbe(crowd, world.fork("lookups"), self.referee.lookups)
        probe.start(LOOKUPS)
        world.run_until(probe.over, world.now + READING_S)
        self._close_all()

    def _calm(self) -> None:
        crowd = self.crowd
        crowd.calm = True
        faults.calm(crowd)
        for onlooker in crowd.onlookers:
            onlooker.on_calm()

    def _close_all(self) -> None:
        """Every node ends, in an order drawn from the seed; each within its bound. There is nobody to hand anything to."""
        crowd, names = self.crowd, self.crowd.running()
        self.world.fork("closing").shuffle(names)
        for name in names:
            crowd.machines[name].leave(0.0)
        over = self.world.run_until(lambda: not crowd.running(), self.world.now + CLOSING_S)
        if not over:
            for name in crowd.running():
                self._break("L4", name, f"the node had not ended {CLOSING_S:g} s after it was asked to")
        self.world.run_for(2 * OFF_S)

    # -- the verdict ------------------------------------------------------------------------

    def _verdict(self) -> Verdict:
        jobs = [self._job_verdict(run) for run in self.errands.jobs]
        verdict = Verdict(
            scenario=self.scenario.name,
            seed=self.seed,
            nodes=len(self.crowd.machines),
            virtual_seconds=round(self.world.now, 3),
            events=self.world.events,
            messages=self.network.messages + self.network.datagrams,
            bytes=self.network.bytes,
            units=sum(run.map_units for run in self.errands.jobs),
            files=sum(run.stored for run in self.errands.files),
            makespan_ratio=max((round(job.makespan_s / job.ideal_s, 3) for job in jobs if job.ideal_s >= IDEAL_MIN_S), default=0.0),
            tail_ratio=max((job.tail_ratio for job in jobs), default=0.0),
            extra_work=max((job.extra_work for job in jobs), default=0.0),
            jobs=jobs,
            faults=dict(sorted(self.crowd.faults.items())),
            reasons=dict(sorted(self.reasons.items())),
            paths=dict(sorted(self.crowd.paths.items())),
        )
        self._expect(verdict)
        for adversary in self.attackers.all:
            if adversary.believed:
                self._break("S3", adversary.host.name, f"{adversary.believed} times somebody believed what a '{adversary.kind}' said")
        refused = self.crowd.paths[GAVE_UP]
        if refused:
            self._break("S5", "grid", f"{refused} times a node could not start with the disk that it had")
        verdict.violations = self._broken
        self.referee.judge(verdict)
        self._add_unread(verdict)
        self._look_at_conflicts(verdict)
        verdict.ok = not verdict.violations
        verdict.trace_hash = self._trace_hash(verdict)
        return verdict

    def _add_unread(self, verdict: Verdict) -> None:
        """Decided values that readers were not given, by whether somebody still has them."""
        lost, unlucky = self.errands.unread_values()
        verdict.lost += lost
        verdict.unlucky += unlucky
        verdict.figures["values_decided"] = float(sum(run.decided for run in self.errands.jobs))
        if lost:
            text = f"{lost} decided values could not be read though they are there"
            verdict.violations.append(Violation("S5", self.world.now, "jobs", text))

    def _look_at_conflicts(self, verdict: Verdict) -> None:
        """Whoever asks for a job in which leads have decided differently is told so."""
        if self.referee.copies.made:
            self.crowd.count_path("copied-anew")
        for run in self.errands.jobs:
            if run.job is None or not self.referee.views.conflicts(run.job):
                continue
            self.crowd.count_path("conflict")
            shown = self.referee.views.shown(run.job, run.read_at)
            if run.read is not None and run.told_conflicts < shown:
                text = f"{shown} units have two answers in the log at {run.read_at}, and a reader there was told of {run.told_conflicts}"
                verdict.violations.append(Violation("S2", self.world.now, run.plan.name, text))
        verdict.paths = dict(sorted((self.crowd.paths + self.referee.ways).items()))

    def _trace_hash(self, verdict: Verdict) -> str:
        """Over all events, and over what came of them."""
        self.world.note(msgspec.json.encode(verdict, order="sorted"))
        return self.world.trace_hash()

    def _job_verdict(self, run: JobRun) -> JobVerdict:
        made = JobVerdict(name=run.plan.name, job=run.job.hex() if run.job else "", units=run.map_units, state=run.state)
        if run.read is not None and not run.followed:
            run.correct = sum(run.read.values.get(number) == value for number, value in enumerate(run.expected))
        whole = bool(run.expected) and run.correct == len(run.expected)
        made.correct, made.failed = run.map_units if whole else run.correct, run.failed
        if run.followed and run.job is not None and not run.cancelled:
            made.makespan_s = round(run.ended_s - run.submitted_s, 3)
            work_s = sum(self.times.base_s(run.job, Kind.MAP, number) for number in range(run.map_units)) * run.plan.quorum
            made.ideal_s = round(self.crowd.ideal_s(run.submitted_s, work_s), 3)
            if not run.plan.fails:
                needed_s = sum(self.times.base_s(run.job, kind, index) for kind, index in self.referee.ends.units(run.job))
                tail = self.referee.ends.tail(run.job)
                tail.spent_s = self.times.spent_s.get(run.job, 0.0)
                made.tail_ratio, made.extra_work = tail.ratio(run.submitted_s), tail.beyond(needed_s * run.plan.quorum)
        return made

    def _expect(self, verdict: Verdict) -> None:
        """What the scenario promises beyond the invariants."""
        expect = self.scenario.expect
        for run in self.errands.jobs:
            if run.cancelled or not run.plan.until_end or run.job in self.referee.liveness.excused:
                continue
            # Values whose every copy was struck are unlucky, and counted as that.
            whole = bool(run.expected) and run.correct + self.errands.gone(run) == len(run.expected)
            if run.plan.fails:
                whole = run.followed and run.failed > 0 and run.correct + run.failed == len(run.expected)
            if expect.jobs_complete and not whole:
                self._break("expect", run.plan.name, f"the job is not complete: {run.correct} of {len(run.expected)} right ({run.state})")
            elif run.followed and not run.plan.fails and run.correct < expect.units_correct_min * len(run.expected):
                self._break("expect", run.plan.name, f"only {run.correct} of {len(run.expected)} values are right")
        if expect.makespan_ratio_max >= 0 and verdict.makespan_ratio > expect.makespan_ratio_max:
            self._break("expect", "jobs", f"the makespan is {verdict.makespan_ratio} times the ideal")
        for text in tails.broken(verdict, expect.tail_ratio_max, expect.extra_work_max):
            self._break("expect", "jobs", text)


def _weather(air: AirPlan) -> Weather:
    return Weather(
        latency_s=air.latency_s,
        latency_sigma=air.latency_sigma,
        jitter_s=air.jitter_s,
        loss=air.loss,
        duplicate=air.duplicate,
        reorder=air.reorder,
    )
