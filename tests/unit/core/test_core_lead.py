"""What a lead leases, to whom, and what it makes of receipts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from p2pgrid.core.lead import (
    AssembleDerived,
    Decided,
    Delivered,
    DerivedReady,
    Granted,
    Invite,
    Lead,
    Over,
    Pulled,
    Record,
    Returned,
    Stopped,
    Tick,
    WorkerGone,
    WorkersKnown,
)
from p2pgrid.core.ledger import DONE, FAILED, OPEN
from p2pgrid.errors import IntegrityError, RefusedError
from p2pgrid.model.job import Derive
from p2pgrid.model.work import DIED, DISAGREED, TIMED_OUT, Decision, UnitRange
from p2pgrid.testing.core.grid import oracle
from tests.unit.core.core_builders import LEAD, A, B, C, D, decision, deliver, entry, grant, lead_of, leased, ledger_of, pull, receipt


def kinds(effects: Sequence[object]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def invited(effects: Sequence[object]) -> set[bytes]:
    return {worker for effect in effects if isinstance(effect, Invite) for worker in effect.workers}


def test_a_pull_gets_at_most_its_share_of_what_is_left() -> None:
    lead = lead_of(100)
    assert pull(lead, A, slots=1, want=1) is not None
    assert len(leased(pull(lead, B, slots=1, want=100))) == 25


@pytest.mark.parametrize(("slots", "want"), [(-1, -1), (0, 0), (10**9, 10**9), (-(2**63), 2**63), (1, -5)])
def test_absurd_pulls_are_held_within_bounds_and_starve_nobody(slots: int, want: int) -> None:
    lead = lead_of(100_000 // 8, 100_000 // 8)
    assert 1 <= len(leased(pull(lead, A, slots=slots, want=want))) <= 4096
    assert len(leased(pull(lead, B, slots=2, want=8))) == 8


def test_who_delivered_nothing_yet_cannot_hoard() -> None:
    lead = lead_of(*[1024] * 4)
    taken = sum(len(leased(pull(lead, A, slots=2, want=4096))) for _ in range(20))
    assert taken <= 64
    assert pull(lead, A) is None


def test_with_quorum_one_every_unit_is_leased_once_and_decided_at_once() -> None:
    lead = lead_of(10)
    lease = pull(lead, A, want=10, slots=10)
    assert lease is not None
    rest = pull(lead, A, want=10, slots=10)
    assert rest is None or not leased(lease) & leased(rest)
    effects = deliver(lead, receipt(lease))
    assert kinds(effects)[:3] == ["Record", "Record", "Decided"]


def test_a_job_is_over_once_and_says_so_to_whoever_pulls() -> None:
    lead = lead_of(1)
    lease = pull(lead, A)
    assert lease is not None
    assert Over(1, 0) in deliver(lead, receipt(lease))
    assert lead.handle(Pulled(B, B, 1, 1), 1.0, 0) == [Granted(B, None, True)]
    assert Over(1, 0) not in lead.handle(Tick(), 1.0, 0)


def test_a_quorum_leases_each_unit_to_distinct_workers_of_distinct_groups() -> None:
    lead = lead_of(6, quorum=2)
    first = leased(pull(lead, A, want=6, slots=6))
    assert first
    assert not leased(pull(lead, A, want=6, slots=6)) & first
    same_group = leased(pull(lead, B, want=6, slots=6, group=A))
    assert not same_group & first


def test_a_disagreement_asks_for_more_until_the_majority_is_q_ahead() -> None:
    lead = lead_of(1, quorum=2)
    values = {A: "lie", B: "right", C: "right", D: "right"}
    lead.handle(WorkersKnown(frozenset(values)), 0.0, 0)
    for worker in (A, B, C):
        lease = pull(lead, worker)
        assert lease is not None, worker
        assert lead.ledger.state(0, 0) == OPEN
        deliver(lead, receipt(lease, value=values[worker]))
    lease = pull(lead, D)
    assert lease is not None
    effects = deliver(lead, receipt(lease, value="right"))
    (made,) = [
        effect.statements[0].body for effect in effects if isinstance(effect, Record) and isinstance(effect.statements[0].body, Decision)
    ]
    assert (len(made.entries[0].cited), len(made.entries[0].dissent)) == (3, 1)
    assert lead.disputed == 1
    assert lead.over


def test_a_duplicate_receipt_changes_nothing_and_a_changed_one_is_refused() -> None:
    lead = lead_of(4)
    lease = pull(lead, A, want=4, slots=4)
    assert lease is not None
    one = receipt(lease)
    deliver(lead, one)
    assert deliver(lead, one) == []
    with pytest.raises(RefusedError):
        deliver(lead, receipt(lease, value="changed"))


def test_partial_receipts_end_a_lease_only_together() -> None:
    lead = lead_of(4)
    lease = pull(lead, A, want=4, slots=8)
    assert lease is not None
    units = sorted(unit for _, unit in leased(lease))
    for unit in units[:-1]:
        deliver(lead, receipt(lease, A, UnitRange(0, unit, 1)))
        assert lease.id in lead.book.leases
    deliver(lead, receipt(lease, A, UnitRange(0, units[-1], 1)))
    assert lease.id not in lead.book.leases


def test_units_of_a_departed_worker_are_leased_again_and_its_late_receipt_still_counts() -> None:
    lead = lead_of(2)
    lease = pull(lead, A, want=2, slots=2)
    assert lease is not None
    lead.handle(WorkerGone(A), 1.0, 0)
    lead.check()
    assert lead.book.pending == 2
    deliver(lead, receipt(lease))
    assert lead.book.pending == 0
    assert lead.over


def test_a_late_receipt_takes_back_what_was_wanted_again_in_a_quorum() -> None:
    lead = lead_of(1, quorum=2)
    lease = pull(lead, A)
    assert lease is not None
    lead.handle(WorkerGone(A), 1.0, 0)
    assert lead.book.outstanding(0, 0) == 2
    deliver(lead, receipt(lease))
    assert lead.book.outstanding(0, 0) == 1


def test_a_lease_ends_at_its_deadline() -> None:
    lead = lead_of(2)
    assert pull(lead, A, want=2, slots=2) is not None
    lead.handle(WorkersKnown(frozenset((A, B))), 1.0, 0)
    effects = lead.handle(Tick(), 1000.0, 0)
    lead.check()
    assert lead.book.pending == 2
    assert B in invited(effects)
    assert leased(pull(lead, B, now=1000.0))


def test_a_unit_that_everybody_lost_is_leased_again() -> None:
    lead = lead_of(1)
    for worker in (A, B):
        assert pull(lead, worker) is not None
        lead.handle(WorkerGone(worker), 1.0, 0)
    assert pull(lead, A, now=2.0) is not None


def test_a_worker_that_had_a_unit_gets_it_again_when_others_let_it_lie() -> None:
    lead = lead_of(1)
    lead.handle(WorkersKnown(frozenset((A, B))), 0.0, 0)
    assert pull(lead, A) is not None
    lead.handle(WorkerGone(A), 1.0, 0)
    lead.handle(WorkersKnown(frozenset((A, B))), 1.0, 0)
    assert pull(lead, A, now=2.0) is None
    assert pull(lead, A, now=8.0) is not None


def test_who_answered_a_compared_unit_never_gets_it_again() -> None:
    lead = lead_of(1, quorum=2)
    lease = pull(lead, A)
    assert lease is not None
    deliver(lead, receipt(lease))
    for now in (1.0, 10.0, 100.0):
        assert pull(lead, A, now=now) is None


def test_a_miss_is_tried_elsewhere_and_given_up_when_everybody_missed() -> None:
    lead = lead_of(1)
    lead.handle(WorkersKnown(frozenset((A, B))), 0.0, 0)
    first = pull(lead, A)
    assert first is not None
    deliver(lead, receipt(first, outcomes=bytes([TIMED_OUT])))
    assert lead.ledger.state(0, 0) == OPEN
    second = pull(lead, B)
    assert second is not None
    effects = deliver(lead, receipt(second, outcomes=bytes([DIED])))
    assert lead.ledger.state(0, 0) == FAILED
    assert Over(0, 1) in effects


def test_a_miss_while_nobody_is_there_gives_nothing_up() -> None:
    lead = lead_of(1)
    lease = pull(lead, A)
    assert lease is not None
    lead.handle(WorkerGone(A), 1.0, 0)
    deliver(lead, receipt(lease, outcomes=bytes([DIED])))
    assert lead.ledger.state(0, 0) == OPEN
    assert lead.book.outstanding(0, 0) == 1


def test_attempts_bound_the_misses_of_one_worker_in_a_quorum() -> None:
    lead = lead_of(1, quorum=2, attempts=3)
    lead.handle(WorkersKnown(frozenset((A, B, C))), 0.0, 0)
    good = pull(lead, A)
    assert good is not None
    deliver(lead, receipt(good))
    for now in (10.0, 20.0, 30.0, 40.0):
        lease = pull(lead, B, now=now) or pull(lead, B, now=now + 6)
        if lease is None:
            break
        deliver(lead, receipt(lease, outcomes=bytes([DIED]), cpu_us=int(now)))
    assert lead.ledger.state(0, 0) == FAILED
    assert len(lead.ledger.receipt_list) == 4


def test_many_units_given_up_together_are_one_decision() -> None:
    lead = lead_of(32)
    lease = pull(lead, A, want=32, slots=16)
    assert lease is not None
    effects = deliver(lead, receipt(lease, outcomes=bytes([DIED]) * len(leased(lease))))
    assert kinds(effects).count("Decided") == 1
    (made,) = [effect for effect in effects if isinstance(effect, Decided)]
    assert len(made.entries) == 1


def test_levels_open_one_after_the_other_and_finish_ends_the_job() -> None:
    lead = lead_of(3, derive=Derive(reduce=True, finish=True, fan_in=2))
    opened: list[tuple[int, ...]] = []
    for _ in range(20):
        lease = pull(lead, A, want=8, slots=8)
        assert lease is not None
        effects = deliver(lead, receipt(lease))
        for effect in effects:
            if isinstance(effect, AssembleDerived):
                opened.append(effect.batches)
                for batch in effect.batches:
                    lead.handle(DerivedReady(batch, b"d" * 32), 0.0, 0)
                    assert lead.handle(DerivedReady(batch, b"d" * 32), 0.0, 0) == []
                    lead.check()
        if lead.over:
            break
    assert opened == [(1, 2), (3,), (4,)]
    assert lead.ledger.complete


def test_a_failed_unit_ends_the_job_without_deriving() -> None:
    lead = lead_of(1, derive=Derive(finish=True))
    lease = pull(lead, A)
    assert lease is not None
    effects = deliver(lead, receipt(lease, outcomes=b"\x01"))
    assert Over(0, 1) in effects
    assert not any(isinstance(effect, AssembleDerived) for effect in effects)


def test_a_lead_begun_on_a_ledger_from_disk_goes_on_where_it_ended() -> None:
    first = lead_of(2, derive=Derive(finish=True))
    while first.ledger.done != 2:
        lease = pull(first, A, want=2, slots=8)
        assert lease is not None
        deliver(first, receipt(lease))
    second = Lead(first.ledger, lambda body: oracle(body, LEAD), first.rng, epoch=1)
    assert AssembleDerived((1,)) in second.handle(Tick(), 0.0, 0)
    second.check()


def test_a_lead_begun_again_in_the_middle_of_a_quorum_asks_only_for_what_is_missing() -> None:
    first = lead_of(1, quorum=2)
    lease = pull(first, A)
    assert lease is not None
    deliver(first, receipt(lease))
    second = Lead(first.ledger, lambda body: oracle(body, LEAD), first.rng, epoch=1)
    assert second.book.outstanding(0, 0) == 1
    assert pull(second, A) is None
    assert pull(second, B) is not None


def test_decisions_merged_from_another_lead_are_not_leased_again() -> None:
    mine, other = lead_of(2), lead_of(2)
    lease = pull(other, A, want=2, slots=8)
    assert lease is not None
    deliver(other, receipt(lease))
    held: list[Any] = [*other.ledger.grants.values(), *other.ledger.receipt_list, *other.ledger.decisions.values()]
    for statement in held:
        mine.ledger.add(statement)
    assert mine.ledger.done == len(leased(lease)) > 0
    effects = mine.handle(Tick(), 1.0, 0)
    assert mine.book.pending == 2 - mine.ledger.done
    assert mine.over == (mine.ledger.done == 2) == (Over(2, 0) in effects)
    assert not leased(pull(mine, B, want=2, slots=8)) & leased(lease)


def test_a_stopped_lead_leases_nothing_and_invites_nobody() -> None:
    lead = lead_of(4)
    lead.handle(WorkersKnown(frozenset((A,))), 0.0, 0)
    lead.handle(Stopped(), 0.0, 0)
    assert pull(lead, A) is None
    assert lead.handle(Tick(), 5.0, 0) == []


def test_hungry_workers_are_woken_when_something_is_pending_again() -> None:
    lead = lead_of(1)
    assert pull(lead, A) is not None
    assert pull(lead, B) is None
    assert B in invited(lead.handle(WorkerGone(A), 1.0, 0))


def test_leases_that_are_handed_back_go_to_others_at_once_and_count_no_attempt() -> None:
    lead = lead_of(4)
    mine, other = pull(lead, A, want=2, slots=2), pull(lead, B, want=1, slots=1)
    assert mine is not None
    assert other is not None
    pull(lead, C, want=4, slots=4)
    effects = lead.handle(Returned(A, (mine.id, other.id, b"x" * 32)), 1.0, 0)
    lead.check()
    assert lead.book.pending == len(leased(mine)) > 0
    assert other.id in lead.book.leases
    assert not effects or invited(effects)
    deliver(lead, receipt(mine), now=2.0)
    assert lead.book.pending == 0


def test_a_forged_receipt_changes_nothing() -> None:
    lead = lead_of(4)
    lease = pull(lead, A)
    assert lease is not None
    with pytest.raises(RefusedError):
        lead.handle(Delivered(receipt(lease, B)), 0.0, 0)
    lead.check()
    assert lease.id in lead.book.leases
    assert not lead.ledger.receipt_list


def disagreement(workers: int, attempts: int = 3) -> Lead:
    """A unit on which everybody there says something else."""
    lead = lead_of(1, quorum=2, attempts=attempts)
    names = [bytes([number + 1]) * 32 for number in range(workers)]
    lead.handle(WorkersKnown(frozenset(names)), 0.0, 0)
    for name in names:
        lease = pull(lead, name)
        if lease is None:
            break
        deliver(lead, receipt(lease, value=name))
    return lead


def test_answers_that_never_agree_are_given_up_when_nobody_else_comes() -> None:
    lead = disagreement(4)
    assert lead.handle(Tick(), 5.0, 0)[:1] != [Over(0, 1)]
    effects = lead.handle(Tick(), 11.0, 0)
    lead.check()
    assert Over(0, 1) in effects
    found = lead.ledger.find(0, 0)
    assert found is not None
    assert (found.outcome, lead.ledger.state(0, 0)) == (DISAGREED, FAILED)
    copy = ledger_of(1, quorum=2)
    held: list[Any] = [*lead.ledger.grants.values(), *lead.ledger.receipt_list, *lead.ledger.decisions.values()]
    assert all(copy.add(one) for one in held)
    assert copy.failed == 1


def test_a_newcomer_may_still_settle_a_disagreement() -> None:
    lead = disagreement(2)
    lead.handle(WorkersKnown(frozenset((A, B))), 5.0, 0)
    lead.handle(Tick(), 11.0, 0)
    for worker in (A, B):
        lease = pull(lead, worker, now=12.0)
        assert lease is not None
        deliver(lead, receipt(lease, value=bytes([1]) * 32), now=12.0)
    assert lead.ledger.state(0, 0) == DONE


def test_a_unit_that_nobody_can_agree_on_does_not_use_up_the_whole_grid() -> None:
    lead = disagreement(50)
    assert lead.over
    assert len(lead.ledger.receipt_list) == 2 + 2 * 3


def test_a_decision_that_says_disagreed_needs_answers_that_do() -> None:
    ledger = ledger_of(1, quorum=2)
    leases = [grant(ledger, worker, UnitRange(0, 0, 1)) for worker in (A, B)]
    answers = [receipt(lease) for lease in leases]
    held: list[Any] = [*leases, *answers]
    for one in held:
        ledger.add(one)
    for cited in ((0,), (0, 1)):
        with pytest.raises(IntegrityError):
            ledger.add(decision(ledger, answers, entry(0, 0, 1, cited, outcome=DISAGREED)))
