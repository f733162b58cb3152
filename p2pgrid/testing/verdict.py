"""What one simulated run comes to: counts, violations, and whether it held."""

from __future__ import annotations

import msgspec


class Violation(msgspec.Struct, frozen=True):
    """An invariant that broke. ``invariant`` is its name in the design: ``S1`` to ``S9``, ``L1`` to ``L4``, ``log`` or ``expect``."""

    invariant: str
    at_s: float
    where: str
    """The node, job or blob it was seen at."""
    text: str


class JobVerdict(msgspec.Struct, kw_only=True):
    """What became of one job of a run. Times in virtual seconds."""

    name: str
    job: str = ""
    """Its id in hex; empty when it was never accepted."""
    units: int = 0
    correct: int = 0
    failed: int = 0
    state: str = ""
    makespan_s: float = 0.0
    ideal_s: float = 0.0
    """The sum of its units' times over the capacity that was there while it ran."""
    tail_ratio: float = 0.0
    """When its last unit was decided over when 95 % were, both since it was submitted; 0 when it did not end."""
    extra_work: float = 0.0
    """Unit seconds at speed 1 that machines spent on it beyond those it needed, over those it needed; 0 when it did not end."""


class Verdict(msgspec.Struct, kw_only=True):
    """The outcome of one seed of one scenario, as ``p2pgrid simulate --json`` prints it."""

    scenario: str
    seed: int
    ok: bool = False
    trace_hash: str = ""
    nodes: int = 0
    virtual_seconds: float = 0.0
    events: int = 0
    messages: int = 0
    bytes: int = 0
    units: int = 0
    files: int = 0
    lost: int = 0
    """Acknowledged objects with a surviving holder that could not be read within the bound."""
    unlucky: int = 0
    """Acknowledged objects whose holders were all struck."""
    unlucky_expected: float = 0.0
    """What the formula for r copies expects."""
    accepted_wrong: int = 0
    accepted_wrong_expected: float = 0.0
    accepted_twice: int = 0
    """Units that a lead gave a value though it knew that they had one."""
    conflicts: int = 0
    """Units that two leads who did not know of one another decided differently: shown to every reader."""
    makespan_ratio: float = 0.0
    """The longest of the jobs' makespans over its ideal; 0 when no job ended."""
    tail_ratio: float = 0.0
    """The worst of its jobs that were not failing on purpose."""
    extra_work: float = 0.0
    """The most of its jobs."""
    violations: list[Violation] = []
    jobs: list[JobVerdict] = []
    faults: dict[str, int] = {}
    """How often each kind of fault struck."""
    reasons: dict[str, int] = {}
    """How often each reason code was given."""
    paths: dict[str, int] = {}
    """How often each path through the grid that a batch must cover was taken."""
    figures: dict[str, float] = {}
    """Further figures of a scenario, as lookups' hops."""
