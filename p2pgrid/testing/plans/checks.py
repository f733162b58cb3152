"""Whether a scenario makes sense: bounds of every number, names that exist, grids that a machine can simulate.

A mistake in a scenario must not look like a finding, so what could never happen or has no effect is refused too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from p2pgrid.model.node import ROLES
from p2pgrid.model.reasons import Reason
from p2pgrid.testing.plans.gridplan import FOUNDER, high, low
from p2pgrid.testing.plans.text import bad, meant
from p2pgrid.testing.plans.words import ACCEPTED_WRONG, BEHAVIOURS, CHURNS, ENGINES, FAULT_KINDS, NATS, SIGNATURES

if TYPE_CHECKING:
    from p2pgrid.testing.plans.scenario import FaultPlan, GridScenario, JobPlan, NodePlan

INF = math.inf
TINY_S = 0.001
"""The shortest time that is one."""
YEAR_S = 366 * 86400.0
OCCURRENCES_MAX = 20_000
"""Faults, or files, of one table."""
NODES_MAX = {"whole": 200, "core": 2000}
KIND_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
SAFE_NAME = re.compile(r"[\w.+-]{1,64}")

Bounds = Mapping[str, tuple[float, float]]

NETWORK: dict[str, tuple[float, float]] = {
    "latency_s": (0, 10),
    "latency_sigma": (0, 3),
    "jitter_s": (0, 10),
    "bandwidth_bytes_s": (0, INF),
}
NETWORK |= dict.fromkeys(("loss", "duplicate", "reorder"), (0, 1))
NODE: dict[str, tuple[float, float]] = {
    "count": (0, 2000),
    "cores": (0, 1024),
    "speed": (0.001, 1000),
    "storage_bytes": (0, INF),
    "disk_bytes": (0, INF),
}
NODE |= {"bandwidth_bytes_s": (-1, INF), "extra_latency_s": (0, 60), "clock_skew_s": (-YEAR_S, YEAR_S), "joins_s": (0, YEAR_S)}
NODE |= {"stable": (0, 1), "session_s": (TINY_S, YEAR_S), "shape": (0.1, 10), "away_s": (TINY_S, YEAR_S)}
FAULT: dict[str, tuple[float, float]] = {
    "at_s": (0, YEAR_S),
    "every_s": (0, YEAR_S),
    "for_s": (TINY_S, YEAR_S),
    "nodes": (1, 2000),
    "share": (0, 1),
}
JOB: dict[str, tuple[float, float]] = {
    "units": (1, 10_000_000),
    "unit_s": (TINY_S, YEAR_S),
    "unit_sigma": (0, 3),
    "at_s": (0, YEAR_S),
    "quorum": (1, 64),
}
JOB |= {"attempts": (1, 100), "replicas": (1, 64), "result_bytes": (0, 64 << 20), "cancel_at_s": (0, YEAR_S)}
FILE: dict[str, tuple[float, float]] = {
    "count": (1, OCCURRENCES_MAX),
    "size_bytes": (0, 32 << 30),
    "replicas": (1, 64),
    "at_s": (0, YEAR_S),
    "every_s": (0, YEAR_S),
}
EXPECT: dict[str, tuple[float, float]] = {
    "units_correct_min": (0, 1),
    "unlucky_max": (-1, INF),
    "makespan_ratio_max": (-1, INF),
    "tail_ratio_max": (-1, INF),
    "extra_work_max": (-1, INF),
    "runs_again_max": (-1, INF),
    "copies_back_s": (-1, YEAR_S),
    "lookups_min": (0, 1),
}
CORE: dict[str, tuple[float, float]] = {"lookups": (0, 1_000_000), "table_nodes": (2, 50_000)}
GRID: dict[str, tuple[float, float]] = {"duration_s": (TINY_S, YEAR_S), "settle_s": (TINY_S, YEAR_S)}
STRENGTH: dict[str, tuple[float, float]] = {
    "slow": (1, 1e6),
    "flash-crowd": (0, YEAR_S),
    "clog": (0, 60),
    "lossy": (0, 1),
    "clock-skew": (-YEAR_S, YEAR_S),
}
STRENGTH |= {"rot": (1, 1e6), "full-disk": (0, INF)} | dict.fromkeys(("flood", "forge", "replay"), (0.01, 1e6))


class _Check:
    """The checks of one scenario; the first that fails raises."""

    def __init__(self, scenario: GridScenario, name: str) -> None:
        self.scenario = scenario
        self.name = name
        self.kinds = tuple(node.kind for node in scenario.nodes)

    def refuse(self, place: str, text: str, hint: str = "") -> None:
        raise bad(self.name, place, text, hint or "docs/reference/scenario-files.md has every key and its bounds")

    def words(self, place: str, field: str, word: str, known: Iterable[str]) -> None:
        names = list(known)
        if word not in names:
            self.refuse(place, f"unknown {field} '{word}'", meant(word, names))

    def numbers(self, place: str, table: msgspec.Struct, bounds: Bounds) -> None:
        """Every number of a table is finite, its low is not above its high, and both are within bounds."""
        for field in table.__struct_fields__:
            value = getattr(table, field)
            parts = value if isinstance(value, tuple) else (value,)
            if not parts or not all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in parts):
                continue
            where = f"{place}: {field}" if place else field
            if not all(map(math.isfinite, parts)):
                self.refuse(where, "is no finite number")
            if field != "table_nodes" and low(value) > high(value):
                self.refuse(where, f"the low {low(value):g} is above the high {high(value):g}", "write [low, high]")
            least, most = bounds.get(field, (-INF, INF))
            if not (least <= min(parts) and max(parts) <= most):
                self.refuse(where, f"{' to '.join(f'{part:g}' for part in parts)} is not within {_range_text(least, most)}")

    # -- tables ------------------------------------------------------------------

    def whole(self) -> None:
        """Keys that belong to no table, and what is said of the run as a whole."""
        scenario = self.scenario
        if SAFE_NAME.fullmatch(scenario.name) is None:
            self.refuse("name", f"'{scenario.name}' is not plain", "letters, digits, dots and dashes, at most 64")
        if not scenario.about.strip():
            self.refuse("about", "is empty", "say in a sentence what the scenario shows")
        self.words("", "engine", scenario.engine, ENGINES)
        self.words("", "signatures", scenario.signatures, SIGNATURES)
        self.numbers("", scenario, GRID)
        self.numbers("[network]", scenario.network, NETWORK)
        self.numbers("[expect]", scenario.expect, EXPECT)
        self.numbers("[core]", scenario.core, CORE)
        self.words("[expect]", "accepted_wrong", scenario.expect.accepted_wrong, ACCEPTED_WRONG)
        for reason in scenario.expect.reasons:
            self.words("[expect]", "reason", reason, [known.value for known in Reason])
        if scenario.engine == "whole" and (scenario.core.lookups or scenario.core.table_nodes):
            self.refuse("[core]", "has no effect on whole nodes", 'say engine = "core", or take the table out')

    def nodes(self) -> None:
        """Kinds, their behaviour, and who founds."""
        if not self.kinds:
            self.refuse("nodes", "is empty", "write at least one [[nodes]] table")
        for number, node in enumerate(self.scenario.nodes, 1):
            place = f"[[nodes]] {number}"
            if KIND_NAME.fullmatch(node.kind) is None or len(node.kind) > 32:
                self.refuse(place, f"the kind '{node.kind}' is not plain", "small letters, digits and dashes, at most 32")
            if self.kinds.index(node.kind) != number - 1:
                self.refuse(place, f"a second kind '{node.kind}'", "give each kind one table and a name of its own")
            self.numbers(place, node, NODE)
            self.words(place, "nat", node.nat, NATS)
            self.words(place, "behaviour", node.behaviour, BEHAVIOURS)
            self.words(place, "churn", node.churn, CHURNS)
            for role in node.roles:
                self.words(place, "role", role, ROLES)
            if -1 < low(node.bandwidth_bytes_s) < 0 or low(node.bandwidth_bytes_s) < 0 <= high(node.bandwidth_bytes_s):
                self.refuse(f"{place}: bandwidth_bytes_s", "is either -1 or not below 0")
        self.founder(self.scenario.nodes[founding(self.kinds)], f"[[nodes]] {founding(self.kinds) + 1}")

    def founder(self, node: NodePlan, place: str) -> None:
        """The kind that founds can do what a first node must."""
        if low(node.count) < 1:
            self.refuse(place, f"'{node.kind}' founds the grid, so there is at least one", "count = 1")
        if missing := [role for role in ("store", "submit") if role not in node.roles]:
            self.refuse(place, f"'{node.kind}' founds the grid but lacks the role '{missing[0]}'", f"add '{missing[0]}' to its roles")
        if node.behaviour != "honest" or node.nat != "open":
            self.refuse(place, f"'{node.kind}' founds the grid, so it is honest and open", "give others that behaviour or nat")

    def total(self) -> None:
        """A machine can simulate that many."""
        crowds = sum(high(fault.nodes) * _times(self.scenario, fault) for fault in self.scenario.faults if fault.kind == "flash-crowd")
        nodes = sum(high(node.count) for node in self.scenario.nodes) + crowds
        most = NODES_MAX[self.scenario.engine]
        if nodes > most:
            self.refuse("nodes", f"{nodes:g} machines are over the {most} of engine = '{self.scenario.engine}'", "take fewer")

    def faults(self) -> None:
        """Kinds of faults, whom they strike, and that they can happen."""
        for number, fault in enumerate(self.scenario.faults, 1):
            place = f"[[faults]] {number}"
            self.words(place, "kind", fault.kind, FAULT_KINDS)
            self.numbers(place, fault, FAULT | {"strength": STRENGTH.get(fault.kind, (-INF, INF))})
            if fault.of:
                self.words(place, "kind of machine", fault.of, self._names())
            for kind in fault.spare.split():
                self.words(place, "kind of machine", kind, self._names())
            if fault.kind == "flash-crowd" and not fault.of:
                self.refuse(place, "flash-crowd does not say of which kind its machines are", "of = KIND, whose count may be 0")
            if fault.kind == "lossy" and low(fault.strength) <= 0:
                self.refuse(place, "strength is the chance of loss, and above 0", "strength = 0.2")
            self.spaced(place, fault)
            if low(fault.at_s) >= high(self.scenario.duration_s):
                self.refuse(place, "never happens: faults end with duration_s", f"at_s below {high(self.scenario.duration_s):g}")
        self.total()

    def spaced(self, place: str, fault: FaultPlan) -> None:
        """What comes again and again does so at a bounded pace."""
        if not high(fault.every_s):
            return
        if low(fault.every_s) < TINY_S or _times(self.scenario, fault) > OCCURRENCES_MAX:
            self.refuse(f"{place}: every_s", f"comes more than {OCCURRENCES_MAX} times", "take longer between them, or 0 for once")

    def jobs(self) -> None:
        """Who submits, when, and what is cancelled."""
        names = [job.name for job in self.scenario.jobs]
        for number, job in enumerate(self.scenario.jobs, 1):
            place = f"[[jobs]] {number}"
            if SAFE_NAME.fullmatch(job.name) is None:
                self.refuse(place, f"the name '{job.name}' is not plain", "letters, digits, dots and dashes, at most 64")
            if names.index(job.name) != number - 1:
                self.refuse(place, f"a second job '{job.name}'", "give each job a name of its own")
            self.numbers(place, job, JOB)
            self.submits(place, job.submitter)
            self.in_time(place, low(job.at_s))
            self.script(place, job)
            if high(job.cancel_at_s) and low(job.cancel_at_s) <= high(job.at_s):
                self.refuse(f"{place}: cancel_at_s", "may come before the job is submitted", f"above {high(job.at_s):g}, or 0 for never")

    def script(self, place: str, job: JobPlan) -> None:
        """A job's arguments go with its script."""
        if job.args and not job.script:
            self.refuse(place, "has args but no script to give them to", "name the script, or take the args out")

    def files(self) -> None:
        """Who puts, and when."""
        for number, plan in enumerate(self.scenario.files, 1):
            place = f"[[files]] {number}"
            self.numbers(place, plan, FILE)
            if plan.by:
                self.submits(place, plan.by)
            self.in_time(place, low(plan.at_s))

    def submits(self, place: str, kind: str) -> None:
        """The kind exists and may submit."""
        self.words(place, "kind of machine", kind, self._names())
        node = self.scenario.nodes[founding(self.kinds) if kind == FOUNDER else self.kinds.index(kind)]
        if "submit" not in node.roles:
            self.refuse(place, f"'{kind}' lacks the role 'submit'", "add it to its roles, or name another kind")

    def in_time(self, place: str, at_s: float) -> None:
        """It happens before the run is over."""
        end_s = high(self.scenario.duration_s) + self.scenario.settle_s
        if at_s >= end_s:
            self.refuse(place, "never happens: the run is over before", f"at_s below {end_s:g}")

    def _names(self) -> Iterator[str]:
        return chain(self.kinds, (FOUNDER,) if FOUNDER not in self.kinds else ())


def founding(kinds: tuple[str, ...]) -> int:
    """The place of the kind that founds."""
    return kinds.index(FOUNDER) if FOUNDER in kinds else 0


def check(scenario: GridScenario, name: str) -> None:
    """Raise BadDataError, with the place, for the first thing that makes no sense. ``name`` is what messages call the file."""
    checks = _Check(scenario, name)
    checks.whole()
    checks.nodes()
    checks.faults()
    checks.jobs()
    checks.files()


def _times(scenario: GridScenario, fault: FaultPlan) -> int:
    """How often a fault can happen at most."""
    if low(fault.every_s) <= 0:
        return 1
    return 1 + int((high(scenario.duration_s) - low(fault.at_s)) / low(fault.every_s))


def _range_text(least: float, most: float) -> str:
    if most == INF:
        return f"{least:g} and above"
    return f"{least:g} to {most:g}"
