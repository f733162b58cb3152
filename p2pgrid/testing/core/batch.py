"""Many seeds of the core's machines, wide rather than deep: each seed draws its own grid and its own faults.

    python -m p2pgrid.testing.core.batch 0 5000
    python -m p2pgrid.testing.core.batch 0 5000 --json

Small grids on purpose: what goes wrong with a hundred workers goes wrong with five, and a hundred times as often in
the same time. A batch fails when an invariant breaks, and also when a kind of fault, of forgery, a reason for a refusal
or a path through the machines was never met: then it proves less than it says.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import msgspec
from blake3 import blake3

from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DIED, DISAGREED, TIMED_OUT
from p2pgrid.testing.core.forgeries import KINDS
from p2pgrid.testing.core.grid import CoreGrid, Scenario

FAULTS = ("collusion", "crash", "flap", "forgery", "lie", "loss", "miss", "slow", "twice")
FORGERIES = tuple(kind.__name__.lstrip("_") for kind in KINDS)
REFUSALS = tuple(str(reason) for reason in (Reason.BAD_GRANT, Reason.MALFORMED, Reason.NOT_GRANTED, Reason.NO_ROLE, Reason.UNKNOWN_JOB))
PATHS = (
    *("copied", "derived", "disputed", "doubted", "finished", "given-up", "leased-again", "lost-lease"),
    *("quorum-1", "quorum-2", "quorum-3", "undecidable"),
)
"""What happens in a run: copies of late units, derived levels, decisions against dissent, dissent after a decision, a last unit over
all, units given up, units leased more than once, leases given up for lost, each quorum, units on which nobody agrees."""
COVERED_FROM = 400
"""Seeds from which on a batch must cover everything."""
COLLECT_EVERY = 100
"""Seeds between two rounds of the garbage collector: runs are full of cycles, and small."""


class CoreReport(msgspec.Struct, kw_only=True):
    """What came of a batch."""

    first: int
    last: int
    """The first seed that was not run."""
    events: int = 0
    virtual_seconds: float = 0.0
    units: int = 0
    violations: list[tuple[int, str]] = []
    """(seed, what broke)."""
    faults: dict[str, int] = {}
    forgeries: dict[str, int] = {}
    refusals: dict[str, int] = {}
    paths: dict[str, int] = {}
    missing: list[str] = []
    """What a batch of this size should have met and did not."""
    hashes: list[str] = []
    """The trace hash of each seed, in order."""
    trace_hash: str = ""
    """Over all of them."""

    @property
    def ok(self) -> bool:
        """Whether nothing broke and nothing was left out."""
        return not self.violations and not self.missing


def core_scenario(seed: int) -> Scenario:
    """Draw the shape and the faults of a run from its seed."""
    rng = random.Random(seed * 7919)
    quorum = rng.choice((1, 1, 2, 2, 3))
    calm = Scenario(
        batches=tuple(rng.randint(1, 8) for _ in range(rng.choice((1, 1, 2, 3)))),
        quorum=quorum,
        reduce=rng.random() < 0.3,
        finish=rng.random() < 0.3,
        workers=rng.randint(2 * quorum + 1, 2 * quorum + 3),
        slots=rng.randint(1, 4),
        keepers=rng.randint(1, 3),
        unit_s=rng.choice((0.01, 0.2, 1.0)),
        faults_until_s=30.0,
    )
    if rng.random() < 0.25:
        return calm
    hostile = replace(
        calm,
        loss=rng.choice((0.0, 0.1, 0.3)),
        twice=rng.choice((0.0, 0.2)),
        crashes=rng.choice((0.0, 0.04)),
        flaps=rng.choice((0.0, 0.06)),
        slow=rng.choice((0, 0, 1)) if calm.unit_s < 1 else 0,
        liars=rng.randint(0, quorum - 1),
        colluding=rng.random() < 0.5,
        misses=rng.choice((0.0, 0.0, 0.1)),
        forgeries=rng.choice((0.0, 0.4)),
    )
    if quorum > 1 and rng.random() < 0.06:
        # More liars than can be outvoted, each with a lie of its own: nothing may stand but the truth, and all must end.
        return replace(hostile, batches=(rng.randint(1, 4),), reduce=False, liars=hostile.workers - quorum, colluding=False)
    return hostile


def run_core_seeds(first: int, last: int, progress: Callable[[int], None] | None = None) -> CoreReport:
    """Run the seeds from ``first`` up to, not including, ``last``. ``progress`` is told how many are done."""
    report = CoreReport(first=first, last=last)
    faults, forgeries, refusals, paths = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    collects = gc.isenabled()
    gc.disable()
    try:
        for seed in range(first, last):
            grid = CoreGrid(core_scenario(seed), seed)
            try:
                grid.run()
            except Exception as error:  # noqa: BLE001 - whatever breaks is the finding, and the other seeds are run all the same
                report.violations.append((seed, f"{type(error).__name__}: {error}"))
            _add(report, grid)
            faults.update(grid.faults)
            forgeries.update(grid.forger.tried)
            refusals.update(grid.forger.refused)
            paths.update(paths_of(grid))
            if not seed % COLLECT_EVERY:
                gc.collect()
            if progress is not None:
                progress(seed + 1 - first)
    finally:
        if collects:
            gc.enable()
    report.faults, report.forgeries, report.refusals, report.paths = dict(faults), dict(forgeries), dict(refusals), dict(paths)
    report.trace_hash = blake3("".join(report.hashes).encode()).hexdigest()
    if last - first >= COVERED_FROM:
        report.missing = missing(report)
    return report


def _add(report: CoreReport, grid: CoreGrid) -> None:
    report.events += grid.heap.steps
    report.virtual_seconds += grid.heap.now
    report.units += grid.lead.ledger.layout.units
    report.hashes.append(grid.heap.trace_hash())


def paths_of(grid: CoreGrid) -> list[str]:
    """Which paths a run took."""
    ledger, scenario = grid.lead.ledger, grid.scenario
    states = [ledger.find(batch, unit) for batch, units in enumerate(ledger.layout.batch_units) for unit in range(units)]
    taken = {
        "copied": grid.lead.speculation.copies > 0,
        "lost-lease": grid.lead.speculation.taken_back > 0,
        "derived": len(ledger.layout.levels) > 1 and ledger.complete,
        "finished": scenario.finish and ledger.complete,
        "disputed": grid.lead.disputed > 0,
        "doubted": bool(ledger.doubted),
        "given-up": any(found is not None and found.outcome in (TIMED_OUT, DIED) for found in states),
        "undecidable": any(entry.outcome == DISAGREED for decision in ledger.decisions.values() for entry in decision.body.entries),
        "leased-again": any(one.attempt > 0 for grant in ledger.grants.values() for one in grant.body.ranges),
        f"quorum-{scenario.quorum}": True,
    }
    return [path for path, was_taken in taken.items() if was_taken]


def missing(report: CoreReport) -> list[str]:
    """What a batch should have met at least once and did not."""
    wanted = ((FAULTS, report.faults), (FORGERIES, report.forgeries), (REFUSALS, report.refusals), (PATHS, report.paths))
    return [name for names, met in wanted for name in names if not met.get(name)]


def main(arguments: list[str]) -> int:
    """Run a batch from the command line and print what came of it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="p2pgrid.testing.core.batch", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, help="the first seed that is not run")
    parser.add_argument("--json", action="store_true", help="the whole report, without the hash of each seed")
    chosen = parser.parse_args(arguments)
    report = run_core_seeds(chosen.first, chosen.last)
    if chosen.json:
        report.hashes = []
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    else:
        sys.stdout.write(describe(report) + "\n")
    return 0 if report.ok else 1


def describe(report: CoreReport) -> str:
    """A few lines for people."""
    lines = [
        f"seeds {report.first}..{report.last - 1}: {report.events} events, {report.units} units, {report.virtual_seconds:.0f} virtual s",
        f"trace {report.trace_hash}",
        *(f"seed {seed}: {text}" for seed, text in report.violations),
        *(f"never met: {name}" for name in report.missing),
        "ok" if report.ok else "FAILED",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
