"""The two documents of ``simulate``: of one seed, and of many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from p2pgrid.testing.batches.coverage import Coverage, Summary
    from p2pgrid.testing.batches.timeline import Entry
    from p2pgrid.testing.verdict import Verdict


class Violated(msgspec.Struct, frozen=True):
    """Each of ``violated``."""

    invariant: str
    """`S1` to `S9`, `L1` to `L4`, `log`, `expect`, or `determinism`"""
    at_s: float
    """virtual time"""
    where: str
    """the node, job or blob it was seen at"""
    text: str
    """what was wrong"""


class SimulatedJob(msgspec.Struct, frozen=True):
    """Each of ``jobs`` of a verdict. Times in virtual seconds."""

    name: str
    """in the scenario"""
    job: str
    """its id in hex; empty when it was never accepted"""
    units: int
    """of its first level"""
    correct: int
    """that got the right value"""
    failed: int
    """without one"""
    state: str
    """as in `jobs`"""
    makespan_s: float
    """from its submission to its end"""
    ideal_s: float
    """the sum of its units' times over the capacity that was there while it ran"""
    tail_ratio: float
    """when its last unit was decided over when 95 % were; 0 when it did not end"""
    extra_work: float
    """unit seconds beyond those it needed, over those it needed"""


class Traced(msgspec.Struct, frozen=True):
    """Each of ``trace``."""

    at_s: float
    """virtual time"""
    node: str
    """where"""
    event: str
    """what kind"""
    text: str
    """for people"""


class SeedVerdict(msgspec.Struct, frozen=True):
    """What one seed came to."""

    scenario: str
    """its name"""
    seed: int
    """which"""
    ok: bool
    """whether all held"""
    trace_hash: str
    """of all events: equal for the same seed, in every process; empty with `--real`"""
    nodes: int
    """machines that were ever there"""
    virtual_seconds: float
    """with `--real` real ones"""
    events: int
    """that were run"""
    messages: int
    """between machines"""
    bytes: int
    """sent between machines"""
    units: int
    """of all jobs that were accepted"""
    files: int
    """that were acknowledged"""
    lost: int
    """acknowledged objects with a surviving holder that could not be read within the bound"""
    unlucky: int
    """acknowledged objects whose holders were all struck"""
    unlucky_expected: float
    """what the formula for r copies expects"""
    accepted_wrong: int
    """wrong values that became results"""
    accepted_wrong_expected: float
    """what the quorum's formula expects"""
    accepted_twice: int
    """units that a lead gave a value though it knew that they had one"""
    conflicts: int
    """units that two leads who did not know of one another decided differently"""
    makespan_ratio: float
    """the longest of the jobs' makespans over its ideal on the capacity that was there"""
    tail_ratio: float
    """when a job's last unit was decided over when 95 % were, the worst of the jobs"""
    extra_work: float
    """unit seconds beyond those that were needed, over those that were needed, the most of the jobs"""
    violations: int
    """how often an invariant or an expectation broke"""
    jobs: tuple[SimulatedJob, ...]
    """of the scenario"""
    faults: dict[str, int]
    """how often each kind struck"""
    reasons: dict[str, int]
    """how often each [reason code](reasons.md) was given"""
    paths: dict[str, int]
    """how often each path was taken that a batch must cover"""
    figures: dict[str, float]
    """further figures of the scenario"""
    violated: tuple[Violated, ...]
    """what broke"""
    trace: tuple[Traced, ...] | msgspec.UnsetType = msgspec.UNSET
    """with `--trace` only"""


class Sums(msgspec.Struct, frozen=True):
    """Each of ``scenarios``, and ``summary``."""

    scenario: str
    """`all` in the summary"""
    seeds: int
    """how many"""
    ok: int
    """that held"""
    failed: int
    """that did not"""
    failed_seeds: tuple[int, ...]
    """the first hundred"""
    units: int
    """sum"""
    files: int
    """sum"""
    lost: int
    """sum"""
    unlucky: int
    """sum"""
    unlucky_expected: float
    """sum"""
    accepted_wrong: int
    """sum"""
    accepted_wrong_expected: float
    """sum"""
    accepted_twice: int
    """sum"""
    violations: int
    """sum"""
    makespan_ratio: float
    """the worst"""
    virtual_seconds: float
    """sum"""
    events: int
    """sum"""
    messages: int
    """sum"""
    wall_seconds: float
    """of all processes together"""
    events_per_s: float
    """events in a second of a process"""
    faults: dict[str, int]
    """sums"""


class Hits(msgspec.Struct, frozen=True):
    """``coverage``, over all seeds."""

    faults: dict[str, int]
    """how often each kind struck"""
    reasons: dict[str, int]
    """how often each was given"""
    paths: dict[str, int]
    """how often each was taken"""
    missing: tuple[str, ...]
    """what was never hit, as `fault crash` or `reason busy`"""


class BatchVerdict(msgspec.Struct, frozen=True):
    """What many seeds came to."""

    scenarios: tuple[Sums, ...]
    """a row for each"""
    verdicts: tuple[SeedVerdict, ...]
    """in the order of the seeds"""
    summary: Sums
    """of all"""
    coverage: Hits | None
    """what was hit"""


def verdict_of(verdict: Verdict, trace: Iterable[Entry] | None = None) -> SeedVerdict:
    """A verdict as programs read it: how many invariants broke, and behind the figures which."""
    fields = msgspec.to_builtins(verdict)
    traced = msgspec.UNSET if trace is None else tuple(Traced(entry.at_s, entry.node, entry.kind, entry.text) for entry in trace)
    plain = msgspec.convert({**fields, "violations": len(verdict.violations), "violated": fields["violations"]}, SeedVerdict)
    return msgspec.structs.replace(plain, trace=traced)


def batch_of(verdicts: Iterable[Verdict], rows: Iterable[Summary], everything: Summary, covered: Coverage | None) -> BatchVerdict:
    """Many seeds as programs read them."""
    return BatchVerdict(
        tuple(_sums_of(row) for row in rows),
        tuple(verdict_of(verdict) for verdict in verdicts),
        _sums_of(everything),
        None if covered is None else msgspec.convert(msgspec.to_builtins(covered), Hits),
    )


def _sums_of(row: Summary) -> Sums:
    return msgspec.convert(msgspec.to_builtins(row), Sums)
