"""What a batch of seeds came to: what it hit of all that can go wrong, and one row of figures for each scenario.

A simulation that never meets a fault, a refusal or a way back proves nothing about it. So a batch that is asked for
coverage fails when something of these was never hit: a kind of fault, a reason code, a path through the grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from p2pgrid.model.reasons import Reason
from p2pgrid.testing.batches.batch import Ran
from p2pgrid.testing.plans.scenario import FAULT_KINDS, GridScenario
from p2pgrid.testing.verdict import Verdict

PATHS: tuple[str, ...] = (
    "cancel",
    "churn-gone",
    "churn-leave",
    "conflict",
    "copied-anew",
    "handed-over",
    "left",
    "read-again",
    "read-elsewhere",
    "receipts-kept",
    "restart",
    "resumed",
    "start-again",
    "stepped-down",
    "took-over",
)
"""Names of ``Verdict.paths`` of which each must be taken."""
NOT_IN_SIMULATION: dict[Reason, str] = {
    Reason.NO_RUNTIME: "every simulated machine offers every runtime",
    Reason.NO_SLOT: "who lends no cores is invited by nobody honest, and no attacker leads a job",
    Reason.TOO_MANY: "no whole grid has as many nodes as a node takes connections",
    Reason.NO_INPUT: "inputs lie at the lead and at its copies, and who can pull from it can fetch them",
    Reason.DISK_FAILED: "simulated disks fill up, tear and rot, but never fail to sync",
    Reason.BUG: "a bug fails the run by the line it logs",
    Reason.NO_MEMORY: "a simulated unit has no memory of its own",
    Reason.DIED: "units run inside the process of the simulation",
    Reason.FEW_COPIES: "whoever asks why is told so, and nobody asks",
    Reason.REPAIRING: "whoever asks why is told so, and nobody asks",
    Reason.HOLDER_AWAY: "whoever asks why is told so, and nobody asks",
    Reason.STOPPED: "a job that nobody can go on with is bad luck, and as rare",
    Reason.REBUILT: "simulated disks damage blobs, and no index or log of a node that runs",
    Reason.BAD_NAME: "file names are those of the host's own disk",
    **dict.fromkeys(
        (Reason.NO_CAGE, Reason.CAGE_BROKEN, Reason.UNTESTED), "simulated units run in the process of the simulation, without cages"
    ),
    **dict.fromkeys(
        (
            Reason.NO_WORKERS,
            Reason.QUORUM_SHORT,
            Reason.KEEPS_IT,
            Reason.OTHER_WORK,
            Reason.NOT_ASKING,
            Reason.NOTHING_LEFT,
            Reason.LEAD_AWAY,
            Reason.NO_KEEPER_THERE,
            Reason.SUBMITTER_AWAY,
            Reason.INCOMPLETE,
            Reason.INDEX_ONLY,
        ),
        "whoever asks why a job waits is told so, and nobody asks",
    ),
    **dict.fromkeys((Reason.MISSING_MODULE, Reason.OVER_MEMORY), "simulated units import nothing, and have no memory of their own"),
    Reason.NO_RUNNER: "simulated units run in the interpreter of the simulation",
    **dict.fromkeys(
        (
            Reason.NO_ENVIRONMENT,
            Reason.PACKAGE_REFUSED,
            Reason.NO_WHEEL,
            Reason.BAD_PACKAGE,
            Reason.BUILD_FAILED,
            Reason.NO_PACKAGE_ROOM,
        ),
        "simulated jobs bring no packages",
    ),
    Reason.NOT_LISTED: "no simulated owner lists submitters",
    **dict.fromkeys(
        (
            Reason.ALONE,
            Reason.NO_CONTACT,
            Reason.UNREACHABLE,
            Reason.NO_DATAGRAMS,
            Reason.LOOPBACK_ONLY,
            Reason.EXPIRES_SOON,
            Reason.NOT_RUNNING,
            Reason.KILLED,
        ),
        "whoever asks why a node does nothing is told so, and nobody asks",
    ),
    **dict.fromkeys(
        (Reason.PORT_TAKEN, Reason.BAD_INVITE, Reason.NEVER_JOINED, Reason.BAD_HOME),
        "simulated machines have a port and a folder of their own, and invites that are whole",
    ),
    **dict.fromkeys(
        (
            Reason.PAUSED,
            Reason.OWNER_ACTIVE,
            Reason.ON_BATTERY,
            Reason.OUTSIDE_HOURS,
            Reason.MACHINE_BUSY,
            Reason.FINISHING,
        ),
        "simulated machines are quiet, and nobody pauses them",
    ),
}
"""Reason codes that only real processes meet, and why."""


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How often each thing was hit, and what never was."""

    faults: dict[str, int]
    reasons: dict[str, int]
    paths: dict[str, int]
    missing: list[str]
    """As ``fault crash``, ``reason busy``, ``path restart``, ``reason busy in churn``."""

    @property
    def ok(self) -> bool:
        return not self.missing


def required_reasons() -> list[str]:
    """The codes that a batch must meet."""
    return [reason.value for reason in Reason if reason not in NOT_IN_SIMULATION]


def coverage(
    verdicts: Iterable[Verdict],
    scenarios: Iterable[GridScenario] = (),
    *,
    faults: Sequence[str] | None = None,
    reasons: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
) -> Coverage:
    """Add up what was hit. None: all there are. ``scenarios``: their own ``expect.reasons`` must be met by their own seeds."""
    hit = {kind: Counter[str]() for kind in ("fault", "reason", "path")}
    by_scenario: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        for kind, counts in (("fault", verdict.faults), ("reason", verdict.reasons), ("path", verdict.paths)):
            hit[kind].update(counts)
        by_scenario.setdefault(verdict.scenario, Counter()).update(verdict.reasons)
    required = {
        "fault": tuple(FAULT_KINDS) if faults is None else faults,
        "reason": required_reasons() if reasons is None else reasons,
        "path": PATHS if paths is None else paths,
    }
    missing = [f"{kind} {name}" for kind, names in required.items() for name in names if not hit[kind][name]]
    for scenario in scenarios:
        met = by_scenario.get(scenario.name, Counter())
        missing += [f"reason {name} in {scenario.name}" for name in scenario.expect.reasons if not met[name]]
    counts_of = {kind: dict(sorted(counts.items())) for kind, counts in hit.items()}
    return Coverage(faults=counts_of["fault"], reasons=counts_of["reason"], paths=counts_of["path"], missing=missing)


class Summary(msgspec.Struct, kw_only=True):
    """Seeds of one scenario, or of all, added up."""

    scenario: str
    seeds: int = 0
    ok: int = 0
    failed: int = 0
    failed_seeds: list[int] = []
    """The first hundred."""
    units: int = 0
    files: int = 0
    lost: int = 0
    unlucky: int = 0
    unlucky_expected: float = 0.0
    accepted_wrong: int = 0
    accepted_wrong_expected: float = 0.0
    accepted_twice: int = 0
    violations: int = 0
    makespan_ratio: float = 0.0
    """The worst."""
    virtual_seconds: float = 0.0
    events: int = 0
    messages: int = 0
    wall_seconds: float = 0.0
    """Of all processes together."""
    events_per_s: float = 0.0
    faults: dict[str, int] = {}

    def add(self, ran: Ran) -> None:
        """Count one seed."""
        verdict = ran.verdict
        self.seeds += 1
        self.ok += verdict.ok
        self.failed += not verdict.ok
        if not verdict.ok and len(self.failed_seeds) < 100:
            self.failed_seeds.append(verdict.seed)
        for name in ("units", "files", "lost", "unlucky", "unlucky_expected", "accepted_wrong", "accepted_wrong_expected"):
            setattr(self, name, getattr(self, name) + getattr(verdict, name))
        for name in ("accepted_twice", "virtual_seconds", "events", "messages"):
            setattr(self, name, getattr(self, name) + getattr(verdict, name))
        self.violations += len(verdict.violations)
        self.makespan_ratio = max(self.makespan_ratio, verdict.makespan_ratio)
        self.wall_seconds += ran.wall_s
        self.events_per_s = self.events / self.wall_seconds if self.wall_seconds else 0.0
        for kind, count in verdict.faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count


def summarize(rans: Iterable[Ran]) -> tuple[list[Summary], Summary]:
    """A row for each scenario, in the order they were met, and one for all."""
    rows: dict[str, Summary] = {}
    everything = Summary(scenario="all")
    for ran in rans:
        name = ran.verdict.scenario
        rows.setdefault(name, Summary(scenario=name)).add(ran)
        everything.add(ran)
    return list(rows.values()), everything
