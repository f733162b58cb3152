"""The core's machines under a seeded event heap: many seeds, then planted bugs that the same seeds must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2pgrid.core import columns, keeping, lead, leases, ledger, lineage, sharing, speculation, verdicts, worker
from p2pgrid.errors import P2PGridError
from p2pgrid.testing.core.batch import core_scenario
from p2pgrid.testing.core.grid import CoreGrid, Scenario

SEEDS = 200
PLANT_SEEDS = 40


def run_seeds(count: int, first: int = 0) -> int:
    """Run seeds one after the other; returns the events handled. Any broken invariant raises."""
    steps = 0
    for seed in range(first, first + count):
        steps += CoreGrid(core_scenario(seed), seed).run().heap.steps
    return steps


@pytest.mark.parametrize("part", range(4))
def test_every_invariant_holds_after_every_event_of_two_hundred_runs(part: int) -> None:
    count = SEEDS // 4
    assert run_seeds(count, part * count) > 50 * count


def test_forgeries_are_tried_and_refused() -> None:
    grids = [CoreGrid(Scenario(forgeries=1.0, quorum=quorum, liars=quorum - 1), seed).run() for quorum in (1, 2) for seed in range(5)]
    assert all(grid.forged >= 3 for grid in grids)


def test_a_seed_replays_exactly() -> None:
    first, second = (CoreGrid(core_scenario(11), 11).run() for _ in range(2))
    assert [one.id for one in first.log] == [two.id for two in second.log]
    assert (first.heap.now, first.heap.steps) == (second.heap.now, second.heap.steps)


@pytest.mark.parametrize("quorum_of", [1, 2, 3])
def test_without_faults_every_unit_is_leased_as_often_as_the_quorum_asks_and_a_few_are_copied(quorum_of: int) -> None:
    for seed in range(5):
        grid = CoreGrid(Scenario(quorum=quorum_of, workers=7), seed).run()
        copies = grid.lead.speculation.copies
        assert grid.granted_units == quorum_of * 40 + copies
        assert copies <= max(1, speculation.EXTRA * quorum_of * 40)
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
    return lambda self, lease, now: self.book.end(lease) and None


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
    return lambda self, worker_state, want, present, now: []


def tasks_never_end(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(self: Any, event: Any, source: Any) -> None:
        if not isinstance(event, worker.TaskEnded):
            original(self, event, source)

    return bug


def late_receipts_dropped(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(self: Any, receipt: Any, now: float) -> Any:
        if self.ledger.grants.get(receipt.body.grant) and receipt.body.grant not in self.book.leases:
            return []
        return original(self, receipt, now)

    return bug


def grants_to_a_stranger(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(self: Any, author: bytes, epoch: int) -> None:
        """Anybody may lead."""

    return bug


def acknowledged_too_much(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, keeper, cursor: original(self, keeper, cursor + 1)


def pushes_forget_failures(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, keeper: 0


def ranges_off_by_one(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda unit_range, batch_units: original(unit_range._replace(units=unit_range.units - (unit_range.units > 1)), batch_units)


def overlap_allowed(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda ranges: None


def roots_not_compared(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(entry: Any, receipts: Any, grants: Any, quorum: int) -> None:
        if entry.cited:
            return
        original(entry, receipts, grants, quorum)

    return bug


def answered_twice_counts(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, receipt, words: original(self, receipt, 8)


def quorum_ignored(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda entry, receipts, grants, quorum: original(entry, receipts, grants, 1)


def level_opens_early(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, level: max(0, original(self, level) - 1)


def leases_never_end(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, now, answers: []


def never_stuck(_: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, now: []


def anybody_cancels(original: Callable[..., Any]) -> Callable[..., Any]:
    def bug(self: Any, cancel: Any) -> bool:
        self.cancelled = self.cancelled or cancel
        return True

    return bug


def words_out_of_step(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, start, count, ordinal, position: original(self, start, count, ordinal, position + (count > 2))


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
    ("a unit that everybody had is never leased again", sharing.Sharing, "_take_again", nothing_again),
    ("a core is never free again", worker.Worker, "_on_source", tasks_never_end),
    ("a late receipt does not count", lead.Lead, "_on_delivered", late_receipts_dropped),
    ("anybody may lead", lineage.Lineage, "check_lead", grants_to_a_stranger),
    ("a keeper is believed to have one record more", keeping.PushBook, "on_acknowledged", acknowledged_too_much),
    ("a push that failed is never sent again", keeping.PushBook, "on_failed", pushes_forget_failures),
    ("a range may end one unit behind its batch", ledger, "check_range", ranges_off_by_one),
    ("a statement may speak of a unit twice", ledger, "check_apart", overlap_allowed),
    ("the root of a decision is not compared", ledger, "check_entry", roots_not_compared),
    ("a worker may answer a lease twice", ledger.Ledger, "_check_receipt", answered_twice_counts),
    ("keepers do not count who agrees", ledger, "check_entry", quorum_ignored),
    ("a level opens one unit early", ledger.Ledger, "level_open", level_opens_early),
    ("a lease never ends", speculation.Speculation, "lost", leases_never_end),
    ("what everybody disagrees about is asked for ever", lead.Lead, "_stuck", never_stuck),
    ("anybody may cancel", ledger.Ledger, "_add_cancel", anybody_cancels),
    ("words of a receipt are off by one", columns.Column, "add_words", words_out_of_step),
]


@pytest.mark.parametrize(("name", "target", "attribute", "plant"), PLANTED, ids=[row[0].replace(" ", "-") for row in PLANTED])
def test_the_seeds_find_a_planted_bug(
    monkeypatch: pytest.MonkeyPatch, name: str, target: Any, attribute: str, plant: Callable[[Any], Any]
) -> None:
    assert found(monkeypatch, target, attribute, plant(getattr(target, attribute))), f"the seeds did not notice: {name}"
