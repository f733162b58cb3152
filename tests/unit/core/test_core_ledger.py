"""What counts in a job's ledger, and what does not."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from p2pgrid.core.ledger import DONE, FAILED, OPEN
from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError
from p2pgrid.model.job import Cancel, Settled
from p2pgrid.model.work import DIED, RAISED, Receipt, ResultFile, UnitRange
from p2pgrid.testing.core.grid import oracle
from tests.unit.core.core_builders import (
    EXPIRES_MS,
    KEEPER,
    LEAD,
    SUBMITTER,
    A,
    B,
    C,
    D,
    decision,
    digest,
    entry,
    grant,
    keepers,
    ledger_of,
    receipt,
)

ALL = UnitRange(0, 0, 4)


def test_the_same_statement_twice_changes_nothing() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    answer = receipt(lease)
    made = decision(ledger, [answer], entry(0, 0, 4, (0,)))
    assert [ledger.add(one) for one in (lease, answer, made)] == [True, True, True]
    assert [ledger.add(one) for one in (lease, answer, made)] == [False, False, False]
    assert (ledger.done, ledger.complete) == (4, True)
    ledger.check()


@pytest.mark.parametrize(
    "ranges",
    [(), (UnitRange(0, 0, 0),), (UnitRange(0, 3, 2),), (UnitRange(1, 0, 1),), (UnitRange(0, -1, 2),), (UnitRange(-1, 0, 1),)],
)
def test_a_grant_outside_its_batches_is_refused(ranges: tuple[UnitRange, ...]) -> None:
    ledger = ledger_of(4)
    with pytest.raises(MalformedError):
        ledger.add(grant(ledger, A, *ranges))


def test_a_grant_that_leases_a_unit_twice_is_refused() -> None:
    ledger = ledger_of(8)
    with pytest.raises(MalformedError):
        ledger.add(grant(ledger, A, UnitRange(0, 0, 4), UnitRange(0, 3, 2, 1)))


def test_grants_and_decisions_of_strangers_are_refused() -> None:
    ledger = ledger_of(4)
    with pytest.raises(RefusedError):
        ledger.add(grant(ledger, A, ALL, author=A))
    lease = grant(ledger, A, ALL)
    answer = receipt(lease)
    ledger.add(lease)
    ledger.add(answer)
    with pytest.raises(RefusedError):
        ledger.add(decision(ledger, [answer], entry(0, 0, 4, (0,)), author=A))


def test_a_lead_named_before_still_counts_after_others_are_named() -> None:
    ledger = ledger_of(4)
    ledger.add(keepers(ledger, epoch=1, lead=D, names=(C,)))
    assert ledger.add(grant(ledger, A, ALL, author=LEAD))
    assert ledger.add(grant(ledger, A, ALL, author=C))


def test_a_keeper_says_nothing_in_the_epoch_of_the_submitters_node() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    ledger.add(lease)
    answer = receipt(lease)
    ledger.add(answer)
    for epoch, error in ((0, RefusedError), (-1, MalformedError)):
        with pytest.raises(error):
            ledger.add(decision(ledger, [answer], entry(0, 0, 4, (0,)), author=KEEPER, epoch=epoch))
    assert ledger.done == 0


def test_of_two_keeper_records_the_higher_epoch_stands_in_any_order() -> None:
    one, two = ledger_of(4), ledger_of(4)
    early, late = keepers(one, epoch=1, lead=C), keepers(one, epoch=2, lead=D)
    for ledger, order in ((one, (early, late)), (two, (late, early))):
        for named in order:
            ledger.add(named)
    assert one.keepers is not None
    assert two.keepers is not None
    assert one.keepers.id == two.keepers.id == late.id


def test_a_receipt_needs_a_lease_of_its_author() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    with pytest.raises(RefusedError):
        ledger.add(receipt(lease))
    ledger.add(lease)
    with pytest.raises(RefusedError):
        ledger.add(receipt(lease, B))


def test_a_receipt_for_units_that_were_not_leased_is_refused() -> None:
    ledger = ledger_of(8)
    lease = grant(ledger, A, UnitRange(0, 2, 3))
    ledger.add(lease)
    for wrong in (UnitRange(0, 1, 2), UnitRange(0, 4, 2), UnitRange(0, 2, 3, 1), UnitRange(0, 2, -3), UnitRange(0, 3, 0)):
        with pytest.raises(P2PGridError):
            ledger.add(receipt(lease, A, wrong))
    assert ledger.add(receipt(lease, A, UnitRange(0, 3, 2)))


def test_a_receipt_that_says_a_unit_twice_or_nothing_is_refused() -> None:
    ledger = ledger_of(8)
    lease = grant(ledger, A, UnitRange(0, 0, 8))
    ledger.add(lease)
    with pytest.raises(MalformedError):
        ledger.add(receipt(lease, A, UnitRange(0, 0, 4), UnitRange(0, 2, 2)))
    with pytest.raises(MalformedError):
        ledger.add(oracle(Receipt(EXPIRES_MS, ledger.job.id, lease.id, (), b"", b"", 0, bytes(32)), A))


def test_columns_of_the_wrong_length_and_unknown_outcomes_are_refused() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    ledger.add(lease)
    job = ledger.job.id
    for outcomes, digests in ((bytes(3), bytes(128)), (bytes(4), bytes(96)), (b"\x63" * 4, bytes(128)), (b"", b"")):
        with pytest.raises(MalformedError):
            ledger.add(oracle(Receipt(EXPIRES_MS, job, lease.id, (ALL,), outcomes, digests, 0, bytes(32)), A))
    files = (ResultFile(4, b"f" * 32, 1),)
    with pytest.raises(MalformedError):
        ledger.add(oracle(Receipt(EXPIRES_MS, job, lease.id, (ALL,), bytes(4), bytes(128), 0, bytes(32), (), files), A))


def test_first_hand_a_unit_is_answered_once_and_merged_it_is_bounded() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    ledger.add(lease)
    ledger.add_receipt(receipt(lease), first_hand=True)
    with pytest.raises(RefusedError):
        ledger.add_receipt(receipt(lease, value="another"), first_hand=True)
    for value in range(7):
        assert ledger.add_receipt(receipt(lease, value=value)) is not None
    with pytest.raises(RefusedError):
        ledger.add_receipt(receipt(lease, value="one too many"))


def test_a_decision_needs_every_receipt_it_cites() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    ledger.add(lease)
    with pytest.raises(RefusedError):
        ledger.add(decision(ledger, [receipt(lease)], entry(0, 0, 4, (0,))))
    assert ledger.done == 0


@pytest.mark.parametrize(
    "wrong",
    [
        entry(0, 0, 4, ()),
        entry(0, 0, 4, (1,)),
        entry(0, 0, 4, (-1,)),
        entry(0, 0, 4, (0,), dissent=(-1,)),
        entry(0, 0, 4, (0,), value="other"),
        entry(0, 0, 4, (0,), outcome=RAISED),
        entry(0, 0, 4, (0,), outcome=300),
        entry(0, 0, 4, (0,), outcome=-1),
        entry(0, 0, 5, (0,)),
        entry(0, 0, 0, (0,)),
        entry(3, 0, 4, (0,)),
        entry(0, 0, 4, (0,), dissent=(0,)),
    ],
)
def test_a_decision_that_its_receipts_do_not_bear_out_is_refused(wrong: object) -> None:
    ledger = ledger_of(4, 4)
    lease = grant(ledger, A, ALL)
    answer = receipt(lease)
    ledger.add(lease)
    ledger.add(answer)
    with pytest.raises((IntegrityError, MalformedError)):
        ledger.add(decision(ledger, [answer], wrong))  # type: ignore[arg-type]
    with pytest.raises(MalformedError):
        ledger.add(decision(ledger, [answer]))
    assert ledger.done == ledger.failed == 0
    ledger.check()


def test_a_decision_may_join_ranges_that_a_receipt_holds_in_any_order() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, UnitRange(0, 2, 2), UnitRange(0, 0, 2))
    answer = receipt(lease)
    for one in (lease, answer):
        ledger.add(one)
    assert ledger.add(decision(ledger, [answer], entry(0, 0, 4, (0,))))


def two_answers(quorum: int = 2, groups: tuple[bytes, bytes] = (b"", b""), values: tuple[str, str] = ("right", "right")) -> tuple:
    ledger = ledger_of(4, quorum=quorum)
    leases = [grant(ledger, worker, ALL, group=group) for worker, group in zip((A, B), groups, strict=True)]
    answers = [receipt(lease, value=value) for lease, value in zip(leases, values, strict=True)]
    statements: list[Any] = [*leases, *answers]
    for one in statements:
        ledger.add(one)
    return ledger, answers


def test_a_quorum_of_two_needs_two_keys_in_two_groups() -> None:
    ledger, answers = two_answers(groups=(b"g", b"g"))
    with pytest.raises(IntegrityError):
        ledger.add(decision(ledger, answers, entry(0, 0, 4, (0, 1))))
    ledger, answers = two_answers()
    with pytest.raises(IntegrityError):
        ledger.add(decision(ledger, answers, entry(0, 0, 4, (0, 0))))
    assert ledger.add(decision(ledger, answers, entry(0, 0, 4, (0, 1))))


def test_each_dissenter_costs_one_more_witness() -> None:
    ledger, answers = two_answers()
    lease = grant(ledger, C, ALL)
    against = receipt(lease, value="wrong")
    ledger.add(lease)
    ledger.add(against)
    with pytest.raises(IntegrityError):
        ledger.add(decision(ledger, [*answers, against], entry(0, 0, 4, (0, 1), dissent=(2,))))


def test_a_later_dissent_marks_the_unit_doubted() -> None:
    ledger, answers = two_answers()
    ledger.add(decision(ledger, answers, entry(0, 0, 4, (0, 1))))
    assert not ledger.doubted
    lease = grant(ledger, C, UnitRange(0, 1, 2))
    ledger.add(lease)
    ledger.add(receipt(lease, value="wrong"))
    assert ledger.doubted == {(0, 1), (0, 2)}
    assert ledger.done == 4


def test_two_different_decisions_are_a_conflict_and_the_smaller_epoch_stands_in_any_order() -> None:
    for order in (0, 1):
        ledger = ledger_of(4)
        leases = [grant(ledger, A, ALL), grant(ledger, B, ALL)]
        answers = [receipt(leases[0], value="x"), receipt(leases[1], value="y")]
        made = [
            decision(ledger, answers[:1], entry(0, 0, 4, (0,), value="x"), epoch=2),
            decision(ledger, answers[1:], entry(0, 0, 4, (0,), value="y"), author=KEEPER, epoch=1),
        ]
        for one in (*leases, *answers, *(made if order else reversed(made))):
            ledger.add(one)
        assert ledger.conflicts == {(0, unit) for unit in range(4)}
        found = ledger.find(0, 0)
        assert found is not None
        assert found.digest == digest("y")
        ledger.check()


def test_the_rank_of_an_answer_is_the_smallest_of_all_decisions_for_it() -> None:
    """Two decisions agree, a third does not: who came first must not matter."""
    digests = set()
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0), (0, 2, 1), (1, 2, 0)):
        ledger = ledger_of(1)
        one = UnitRange(0, 0, 1)
        leases = [grant(ledger, A, one), grant(ledger, B, one)]
        answers = [receipt(leases[0], value="x"), receipt(leases[1], value="y")]
        made = [
            decision(ledger, answers[:1], entry(0, 0, 1, (0,), value="x"), epoch=5),
            decision(ledger, answers[:1], entry(0, 0, 1, (0,), value="x"), epoch=1),
            decision(ledger, answers[1:], entry(0, 0, 1, (0,), value="y"), epoch=3),
        ]
        statements: list[Any] = [*leases, *answers, *(made[number] for number in order)]
        for statement in statements:
            ledger.add(statement)
        found = ledger.find(0, 0)
        assert found is not None
        digests.add(found.digest)
    assert digests == {digest("x")}


@pytest.mark.parametrize(("epoch", "state", "counts"), [(0, DONE, (1, 0)), (9, FAILED, (0, 1))])
def test_within_an_epoch_an_answer_stands_before_a_unit_given_up_and_a_later_epoch_overrules_neither(
    epoch: int, state: int, counts: tuple[int, int]
) -> None:
    for order in (0, 1):
        ledger = ledger_of(1)
        one = UnitRange(0, 0, 1)
        leases = [grant(ledger, A, one), grant(ledger, B, one)]
        answers = [receipt(leases[0], value="none", outcomes=bytes([DIED])), receipt(leases[1])]
        made = [
            decision(ledger, answers[:1], entry(0, 0, 1, (0,), value="none", outcome=DIED)),
            decision(ledger, answers[1:], entry(0, 0, 1, (0,)), epoch=epoch),
        ]
        for statement in (*leases, *answers, *(made if order else reversed(made))):
            ledger.add(statement)
        assert ledger.state(0, 0) == state
        assert (ledger.done, ledger.failed) == counts
        assert ledger.conflicts == {(0, 0)}
        ledger.check()


def test_a_unit_on_which_decisions_differ_is_in_conflict_and_not_doubted_in_any_order() -> None:
    """Found by hypothesis: the doubt of a decision that came first stayed when one without an answer overruled it."""
    for order in (0, 1):
        ledger = ledger_of(1, quorum=2)
        one = UnitRange(0, 0, 1)
        leases = [grant(ledger, worker, one, nonce=number) for number, worker in enumerate((A, B, C, D))]
        answers = [receipt(lease, value=value) for lease, value in zip(leases[:3], ("x", "y", "y"), strict=True)]
        answers.append(receipt(leases[3], value="none", outcomes=bytes([DIED])))
        made = [
            decision(ledger, answers, entry(0, 0, 1, (3,), value="none", outcome=DIED), epoch=0),
            decision(ledger, answers, entry(0, 0, 1, (1, 2), value="y"), epoch=1),
        ]
        for statement in (*leases, *answers, *(made if order else reversed(made))):
            ledger.add(statement)
        assert ledger.state(0, 0) == FAILED
        assert (ledger.conflicts, ledger.doubted) == ({(0, 0)}, set())
        ledger.check()


def test_after_a_cancel_receipts_are_dropped_and_decisions_stay() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    first, late = receipt(lease, A, UnitRange(0, 0, 2)), receipt(lease, A, UnitRange(0, 2, 2))
    for one in (lease, first, decision(ledger, [first], entry(0, 0, 2, (0,)))):
        ledger.add(one)
    with pytest.raises(RefusedError):
        ledger.add(oracle(Cancel(EXPIRES_MS, ledger.job.id), LEAD))
    assert ledger.add(oracle(Cancel(EXPIRES_MS, ledger.job.id), SUBMITTER))
    assert not ledger.add(late)
    assert not ledger.add(decision(ledger, [late], entry(0, 2, 2, (0,))))
    assert (ledger.done, ledger.state(0, 2)) == (2, OPEN)


def test_only_who_may_lead_settles_and_only_the_submitters_side_for_good() -> None:
    ledger = ledger_of(4)
    settled = Settled(EXPIRES_MS, ledger.job.id, 4, 0, b"r" * 32)
    with pytest.raises(RefusedError):
        ledger.add(oracle(settled, A))
    assert ledger.add(oracle(settled, KEEPER))
    assert not ledger.final
    for done in range(20):
        ledger.add(oracle(Settled(EXPIRES_MS, ledger.job.id, done, 0, b"r" * 32), KEEPER))
    assert {end.author for end in ledger.provisional.values()} == {KEEPER}
    assert len(ledger.provisional) == 8, "nobody fills a ledger with ends"
    with pytest.raises(RefusedError):
        ledger.add(oracle(Settled(EXPIRES_MS, b"j" * 32, 4, 0, b"r" * 32), LEAD))
    assert ledger.add(oracle(settled, LEAD))
    assert not ledger.add(oracle(settled, LEAD))


def test_statements_about_another_job_are_refused() -> None:
    ledger, other = ledger_of(4), ledger_of(4, 4)
    for statement in (
        grant(other, A, ALL),
        receipt(grant(other, A, ALL)),
        keepers(other),
        oracle(Cancel(EXPIRES_MS, other.job.id), SUBMITTER),
    ):
        with pytest.raises(RefusedError):
            ledger.add(statement)
    with pytest.raises(MalformedError):
        ledger.add(other.job)


def test_a_raised_unit_is_an_answer_and_fails() -> None:
    ledger = ledger_of(4)
    lease = grant(ledger, A, ALL)
    answer = receipt(lease, outcomes=bytes([RAISED]) * 4)
    for one in (lease, answer, decision(ledger, [answer], entry(0, 0, 4, (0,), outcome=RAISED))):
        ledger.add(one)
    assert ledger.state(0, 0) == FAILED
    assert ledger.failed == 4


def test_many_units_cost_at_most_two_hundred_bytes_each() -> None:
    units = 1024
    ledger = ledger_of(*[units] * 8, quorum=2)
    statements = []
    for batch in range(8):
        both = [grant(ledger, worker, UnitRange(batch, 0, units), nonce=batch) for worker in (A, B)]
        statements.append((both, [receipt(one) for one in both]))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for both, answers in statements:
            for lease in both:
                ledger.add(lease)
            ledger.add(answers[0])
        open_bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert (open_bytes / (8 * units)) + 2 * 33 < 200


def test_the_same_words_by_two_authors_are_two_statements() -> None:
    ledger = ledger_of(4)
    mine, theirs = grant(ledger, A, ALL), grant(ledger, A, ALL, author=KEEPER)
    assert mine.id != theirs.id
    assert ledger.add(mine)
    assert ledger.add(theirs)
