"""Planted bugs in whole nodes: each is found by the checkers within a stated number of seeds, and the same seeds are clean without it.

These are forty-one, besides the twenty-seven that :mod:`test_core_simulation` plants in the core's machines alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.sim import planted_bugs as bugs
from tests.sim import planted_grids as grids
from tests.sim.planted_grids import Change, Grid, clean, planted

HASH_SEEDS = ("1", "2", "3")


class Plant(NamedTuple):
    """A bug, where it must show, as what, and within how many seeds (from 1 on)."""

    name: str
    bug: Change
    grid: Grid
    invariants: tuple[str, ...]
    """Each of them must break, in one run."""
    seeds_max: int = 2


PLANTS = (
    Plant("no signature is verified", bugs.signature_skipped, grids.FORGED, ("S3",), 3),
    Plant("no signature of a record is verified", bugs.record_signature_skipped, grids.FORGED, ("S3",)),
    Plant("a membership counts whoever shows it", bugs.membership_not_bound, grids.REPLAYED, ("S3",)),
    Plant("what is known is written down again", bugs.known_records_kept_again, grids.REPLAYED, ("S3",)),
    Plant("a lead takes values unchecked", bugs.payload_unchecked, grids.LIARS, ("S1", "S3")),
    Plant("one answer decides where two are asked", bugs.quorum_not_asked, grids.CALM, ("S1",)),
    Plant("readers are told numbers that are off by one", bugs.units_from_one, grids.CALM, ("expect", "S9")),
    Plant("results are shown before they are on the disk", bugs.shown_before_synced, grids.CALM, ("S5",)),
    Plant("the root of a job is in the wrong order", bugs.root_out_of_order, grids.CALM, ("S9",)),
    Plant("a policy is ignored", bugs.policy_ignored, grids.WARY, ("S7",)),
    Plant("a core more than lent is used", bugs.one_core_more, grids.CALM, ("S4",), 5),
    Plant("a quota is not checked", bugs.quota_unchecked, grids.TIGHT, ("S4",), 5),
    Plant("a log acknowledges before it is synced", bugs.ledger_unsynced, grids.POWER, ("S5",)),
    Plant("a blob is renamed before it is synced", bugs.renamed_before_synced, grids.POWER, ("S5",)),
    Plant("keys are not synced", bugs.keys_unsynced, grids.POWER, ("S5",)),
    Plant("a keeper drops what it acknowledges", bugs.records_dropped, grids.CALM, ("L3",)),
    Plant("a keeper forgets its logs when it restarts", bugs.logs_forgotten, grids.GONE, ("S5",)),
    Plant("a put is acknowledged and not stored", bugs.acknowledged_before_stored, grids.CALM, ("S5",)),
    Plant("leases end too early", bugs.leases_in_seconds, grids.FLEETING, ("S5",)),
    Plant("a corrupt copy is trusted", bugs.corrupt_copies_trusted, grids.ROT, ("S5",), 5),
    Plant("an expiry is ignored", bugs.expiry_ignored, grids.FLEETING, ("S6",)),
    Plant("a lower sequence replaces a higher one", bugs.lower_sequence_taken, grids.BACKWARDS, ("S6",)),
    Plant("a bucket has a place too many", bugs.bucket_off_by_one, grids.CROWD, ("S4",), 5),
    Plant("the nearest neighbour is left out", bugs.neighbours_off_by_one, grids.CROWD, ("L2",)),
    Plant("parted halves never merge", bugs.lost_not_remembered, grids.PARTED, ("L2",)),
    Plant("a restart is not noticed", bugs.restart_unnoticed, grids.BLINK, ("L1", "expect")),
    Plant("tasks are left at the end", bugs.tasks_left, grids.CALM, ("L4",)),
    Plant("a timer is left at the end", bugs.timer_left, grids.CALM, ("L4",)),
    Plant("sessions are left at the end", bugs.sessions_left, grids.CALM, ("L4",)),
    Plant("a task fails in the background", bugs.error_in_the_background, grids.CALM, ("log",)),
    Plant("a file is written outside the home", bugs.written_outside, grids.CALM, ("S8",)),
    Plant("nobody takes over", bugs.nobody_takes_over, grids.ORPHAN, ("L1",)),
    Plant("a new lead forgets what was decided", bugs.lead_begins_anew, grids.ORPHAN, ("S9",)),
    Plant("a stale lead does not step down", bugs.stale_lead_goes_on, grids.STALE, ("S1",), 5),
    Plant("anybody names keepers", bugs.anybody_names_keepers, grids.FORGED, ("S1", "S3"), 5),
    Plant("keepers that die are not replaced", bugs.keepers_not_replaced, grids.THIN, ("L3",), 5),
    Plant("a job is said to be kept before it is", bugs.detached_at_once, grids.DETACHED, ("S5",)),
    Plant("a conflict is not shown", bugs.conflict_not_shown, grids.TORN, ("S2",), 5),
    Plant("copies are never made anew", bugs.copies_never_made, grids.MENDED, ("L3",), 5),
    Plant("the last of just enough copies is let go", bugs.last_copy_let_go, grids.SURPLUS, ("L3",), 5),
)


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name.replace(" ", "-") for plant in PLANTS])
def test_a_planted_bug_is_found_within_its_seeds(plant: Plant) -> None:
    met: list[set[str]] = []
    for seed in range(1, plant.seeds_max + 1):
        met.append({violation.invariant for violation in planted(plant.grid, seed, plant.bug).violations})
        if set(plant.invariants) <= met[-1]:
            without = clean(plant.grid, seed)
            assert without.ok, without.violations
            return
    pytest.fail(f"{plant.seeds_max} seeds did not notice it; they met {met}")


def trace_of(bug: str, hash_seed: str) -> str:
    """The trace hash of one run in a process of its own."""
    code = (
        f"from tests.sim import planted_bugs as bugs, planted_grids as grids\nprint(grids.planted(grids.CALM, 1, bugs.{bug}).trace_hash)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.strip()


def test_what_depends_on_the_order_of_a_set_shows_in_the_trace() -> None:
    first, *others = HASH_SEEDS
    trace = trace_of("keepers_in_any_order", first)
    assert any(trace_of("keepers_in_any_order", hash_seed) != trace for hash_seed in others)


def test_the_product_has_one_trace_whatever_the_order_of_sets() -> None:
    assert trace_of("none", HASH_SEEDS[0]) == trace_of("none", HASH_SEEDS[1]) == clean(grids.CALM, 1).trace_hash
