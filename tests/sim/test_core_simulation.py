"""The core's machines under a seeded event heap: many seeds, then planted bugs that the same seeds must find."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from p2pgrid.core import lead, leases, ledger, verdicts, worker
from p2pgrid.errors import P2PGridError
from p2pgrid.testing.core_grid import CoreGrid, Scenario

SEEDS = 200
PLANT_SEEDS = 40


def scenario_of(seed: int) -> Scenario:
    """Draw the shape and the faults of a run from its seed."""
    rng = random.Random(seed * 7919)
    quorum = rng.choice((1, 1, 2, 2, 3))
    hostile = rng.random() < 0.7
    return Scenario(
        batches=tuple(rng.randint(1, 14) for _ in range(rng.randint(1, 3))),
        quorum=quorum,
        reduce=rng.random() < 0.3,
        finish=rng.random() < 0.3,
        workers=rng.randint(2 * quorum + 1, 2 * quorum + 4),
        slots=rng.randint(1, 4),
        unit_s=rng.choice((0.01, 0.2, 1.5)),
        loss=rng.choice((0.0, 0.1, 0.3)) if hostile else 0.0,
        twice=rng.choice((0.0, 0.2)) if hostile else 0.0,
        crashes=rng.choice((0.0, 0.03)) if hostile else 0.0,
        flaps=rng.choice((0.0, 0.05)) if hostile else 0.0,
        slow=rng.choice((0, 1)) if hostile else 0,
        liars=rng.randint(0, quorum - 1) if hostile else 0,
        colluding=rng.random() < 0.5,
        misses=rng.choice((0.0, 0.0, 0.1)) if hostile else 0.0,
        forgeries=rng.choice((0.0, 0.3)) if hostile else 0.0,
    )


def run_seeds(count: int, first: int = 0) -> int:
    """Run seeds one after the other; returns the events handled. Any broken invariant raises."""
    steps = 0
    for seed in range(first, first + count):
        steps += CoreGrid(scenario_of(seed), seed).run().heap.steps
    return steps


@pytest.mark.parametrize("part", range(4))
def test_every_invariant_holds_after_every_event_of_two_hundred_runs(part: int) -> None:
    count = SEEDS // 4
    assert run_seeds(count, part * count) > 50 * count


def test_forgeries_are_tried_and_refused() -> None:
    grids = [CoreGrid(Scenario(forgeries=1.0, quorum=quorum, liars=quorum - 1), seed).run() for quorum in (1, 2) for seed in range(5)]
    assert all(grid.forged >= 3 for grid in grids)


def test_a_seed_replays_exactly() -> None:
    first, second = (CoreGrid(scenario_of(11), 11).run() for _ in range(2))
    assert [one.id for one in first.log] == [two.id for two in second.log]
    assert (first.heap.now, first.heap.steps) == (second.heap.now, second.heap.steps)


@pytest.mark.parametrize("quorum_of", [1, 2, 3])
def test_without_faults_every_unit_is_leased_exactly_as_often_as_the_quorum_asks(quorum_of: int) -> None:
    for seed in range(5):
        grid = CoreGrid(Scenario(quorum=quorum_of, workers=7), seed).run()
        assert grid.granted_units == quorum_of * 40
        assert grid.lead.disputed == 0


def test_two_workers_that_both_lost_a_unit_get_it_again() -> None:
    for seed in range(5):
        CoreGrid(Scenario(workers=2, flaps=0.5, unit_s=1.5, batches=(6,), faults_until_s=20.0), seed).run()


def test_a_single_worker_that_always_comes_back_ends_the_job() -> None:
    for seed in range(5):
        CoreGrid(Scenario(workers=1, crashes=0.3, flaps=0.2, batches=(5, 3), faults_until_s=20.0), seed).run()


def test_exactly_as_many_workers_as_the_quorum_asks_end_the_job_after_faults() -> None:
    for seed in range(5):
        CoreGrid(Scenario(quorum=3, workers=3, crashes=0.1, loss=0.2, batches=(8,), faults_until_s=20.0), seed).run()


def test_a_worker_forty_times_slower_does_not_hold_up_the_end() -> None:
    grid = CoreGrid(Scenario(slow=1, unit_s=1.0, batches=(30,), workers=4), 3).run()
    assert grid.heap.now < 60


# -- planted bugs ---------------------------------------------------------------


def found(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, bug: Any) -> bool:
    """Whether the batch of seeds notices a bug put in place of ``target.name``."""
    with monkeypatch.context() as patch:
        patch.setattr(target, name, bug)
        try:
            run_seeds(PLANT_SEEDS)
        except (AssertionError, P2PGridError, LookupError, ValueError):
            return True
    return False


def lease_counted_twice(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(column: bytearray, start: int, stop: int, step: int) -> None:
        original(column, start, stop, 2 * step if step > 0 else step)

    return bug


def quorum_off_by_one(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda answers, wanted: original(answers, max(1, wanted - 1))


def checks_nothing(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **keywords: None


def avoid_ignored(_: Callable[..., Any]) -> Any:
    def bug(shelf: Any, party: int, start: int, stop: int) -> Any:
        yield start, stop - start

    return staticmethod(bug)


def dissent_forgotten(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(answers: Any, wanted: int) -> Any:
        verdict = original(answers, wanted)
        return verdict and verdict._replace(dissent=(), missing=max(0, wanted - len(verdict.agree)))

    return bug


def widening_forgotten(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(self: Any, batch: int, start: int, count: int, wanted: int) -> None:
        if wanted <= self_quorum(self):
            original(self, batch, start, count, wanted)

    def self_quorum(_: Any) -> int:
        return 1

    return bug


def pending_not_restored(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, lease: self.book.end(lease) and None


def counted_twice(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(self: Any, batch: int, state: int, units: int) -> None:
        original(self, batch, state, units)
        self.done += 1

    return bug


def anything_granted(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda receipt, grant: 1 << 20


def never_answered(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, book_lease, ranges: None


def level_never_opens(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: []


def nothing_again(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, worker_state, want, now: []


def tasks_never_end(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(self: Any, event: Any, source: Any) -> None:
        if not isinstance(event, worker.TaskEnded):
            original(self, event, source)

    return bug


PLANTED: list[tuple[str, Any, str, Callable[[Any], Any]]] = [
    ("a lease is counted twice", leases, "_step", lease_counted_twice),
    ("the lead's quorum is off by one", verdicts, "judge", quorum_off_by_one),
    ("dissent is forgotten", verdicts, "judge", dissent_forgotten),
    ("who had a unit is ignored", leases.LeaseBook, "_never_had", avoid_ignored),
    ("a disagreement asks for nobody", leases.LeaseBook, "want", widening_forgotten),
    ("units of a departed worker are forgotten", lead.Lead, "_return", pending_not_restored),
    ("a unit is counted twice", ledger.Ledger, "_count", counted_twice),
    ("an answered lease stays owed", leases.LeaseBook, "answered", never_answered),
    ("a receipt without a lease counts", ledger, "check_receipt", anything_granted),
    ("keepers take decisions over unchecked", ledger, "check_entry", checks_nothing),
    ("a finished level opens no other", lead.Lead, "_advance", level_never_opens),
    ("a unit that everybody had is never leased again", lead.Lead, "_take_again", nothing_again),
    ("a core is never free again", worker.Worker, "_on_source", tasks_never_end),
]


@pytest.mark.parametrize(("name", "target", "attribute", "plant"), PLANTED, ids=[row[0].replace(" ", "-") for row in PLANTED])
def test_the_seeds_find_a_planted_bug(
    monkeypatch: pytest.MonkeyPatch, name: str, target: Any, attribute: str, plant: Callable[[Any], Any]
) -> None:
    assert found(monkeypatch, target, attribute, plant(getattr(target, attribute))), f"the seeds did not notice: {name}"
