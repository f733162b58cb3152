"""Who may lead, when a keeper's turn comes, and what a new lead makes of what it finds."""

from __future__ import annotations

import random

import pytest

from p2pgrid.core.lead import Began, Decided, Invite, Lead, Merged, Returned
from p2pgrid.core.lead_events import Effect
from p2pgrid.core.ledger import Ledger
from p2pgrid.core.lineage import EPOCH_MAX, Lineage
from p2pgrid.core.takeover import GRACE_S, RANK_S, RESUME_S, Succession, outstanding
from p2pgrid.errors import MalformedError, RefusedError
from p2pgrid.model.work import UnitRange
from p2pgrid.testing.core.grid import oracle
from tests.unit.core.core_builders import KEEPER, LEAD, A, B, C, D, entry, grant, keepers, ledger_of, pull, receipt
from tests.unit.core.core_builders import decision as decision_of

ALL = UnitRange(0, 0, 8)


def later(ledger: Ledger, lead: bytes = KEEPER) -> Lead:
    return Lead(ledger, lambda body: oracle(body, lead), random.Random(1), epoch=1)


def test_a_chain_goes_from_the_submitter_to_the_newest_and_strangers_cannot_join_it() -> None:
    ledger = ledger_of(8)
    with pytest.raises(RefusedError):
        ledger.add(keepers(ledger, 1, A, (B,), author=A))
    assert ledger.add(keepers(ledger, 1, KEEPER, (A, B), author=KEEPER))
    assert ledger.add(keepers(ledger, 2, A, (C,), author=A))
    assert [one.body.epoch for one in ledger.lineage.chain()] == [0, 1, 2]
    assert ledger.keepers is not None
    assert ledger.keepers.body.lead == A
    read = Lineage(ledger.job)
    for one in ledger.lineage.chain():
        assert read.add(one)
    assert [read.names(node) for node in (LEAD, KEEPER, A, B, C, D)] == [True, True, True, True, True, False]
    assert [read.of_submitter(node) for node in (LEAD, KEEPER, A)] == [True, False, False]


def test_the_submitters_word_shortens_a_chain_and_an_older_set_does_not_lead() -> None:
    ledger = ledger_of(8)
    ledger.add(keepers(ledger, 1, KEEPER, (A,), author=KEEPER))
    ledger.add(keepers(ledger, 3, A, (B,), author=A))
    ledger.add(keepers(ledger, 2, KEEPER, (C,), author=KEEPER))
    assert ledger.keepers is not None
    assert ledger.keepers.body.lead == A
    ledger.add(keepers(ledger, 4, LEAD, (A,)))
    assert len(ledger.lineage.chain()) == 1
    with pytest.raises(MalformedError):
        ledger.add(keepers(ledger, EPOCH_MAX + 1, KEEPER, (A,), author=KEEPER))


def test_only_the_submitters_lead_speaks_in_epoch_0() -> None:
    ledger = ledger_of(8)
    ledger.add(keepers(ledger, 1, KEEPER, (A,), author=KEEPER))
    for author, epoch, error in ((KEEPER, 0, RefusedError), (B, 1, RefusedError), (KEEPER, -1, MalformedError)):
        with pytest.raises(error):
            ledger.lineage.check_lead(author, epoch)
    for author, epoch in ((LEAD, 0), (LEAD, 5), (KEEPER, 1), (A, 9)):
        ledger.lineage.check_lead(author, epoch)


@pytest.mark.parametrize(
    ("me", "there", "wait_s"),
    [
        (A, {A, B, C}, GRACE_S),
        (B, {A, B, C}, GRACE_S + RANK_S),
        (B, {B, C}, GRACE_S),
        (C, {B, C}, GRACE_S + RANK_S),
        (D, {D}, GRACE_S + RANK_S),
        (D, {A, D}, GRACE_S + 2 * RANK_S),
        (LEAD, {LEAD, A}, RESUME_S),
    ],
)
def test_each_keeper_waits_for_those_before_it_who_are_there(me: bytes, there: set[bytes], wait_s: float) -> None:
    body = keepers(ledger_of(8), 0, LEAD, (A, B, C)).body
    turn = Succession(me)
    assert not turn.due(body, there, True, 100.0)
    assert not turn.due(body, there, True, 100.0 + wait_s - 0.01)
    assert turn.due(body, there, True, 100.0 + wait_s)


def test_a_lead_that_is_back_or_replaced_starts_the_wait_anew() -> None:
    ledger = ledger_of(8)
    body = keepers(ledger, 0, LEAD, (A, B)).body
    turn = Succession(A)
    assert not turn.due(body, {A}, True, 0.0)
    assert not turn.due(body, {A, LEAD}, True, 2.0)
    assert not turn.due(body, {A}, True, 3.0)
    assert turn.due(body, {A}, True, 3.0 + GRACE_S)
    newer = keepers(ledger, 1, B, (A,)).body
    assert not turn.due(newer, {A}, True, 3.1 + GRACE_S)
    # There, but it says that it does not lead the job.
    assert not turn.due(newer, {A, B}, False, 4.0 + GRACE_S)
    assert turn.due(newer, {A, B}, False, 3.1 + 2 * GRACE_S)


def test_leases_of_workers_who_are_there_are_outstanding_until_they_are_answered() -> None:
    ledger = ledger_of(8)
    ends_ms = 4_000_000
    first, second, away = grant(ledger, A, UnitRange(0, 0, 4)), grant(ledger, B, UnitRange(0, 4, 2)), grant(ledger, C, UnitRange(0, 6, 2))
    for one in (first, second, away, receipt(first, None, UnitRange(0, 0, 1)), receipt(second)):
        ledger.add(one)
    found = outstanding(ledger, {A, B}, ends_ms)
    assert [(one.id, said) for one, said in found] == [(first.id, [(UnitRange(0, 0, 1),)])]
    assert not outstanding(ledger, {A, B}, first.body.expires_ms)


def test_a_new_lead_decides_what_was_answered_keeps_what_runs_and_leases_the_rest() -> None:
    ledger = ledger_of(8)
    ledger.add(keepers(ledger, 1, KEEPER, (LEAD,), author=KEEPER))
    runs, gone = grant(ledger, A, UnitRange(0, 0, 4)), grant(ledger, B, UnitRange(0, 4, 2))
    said = receipt(runs, None, UnitRange(0, 0, 2))
    for one in (runs, gone, said):
        ledger.add(one)
    lead = later(ledger)
    effects = lead.handle(Began(frozenset({A, KEEPER})), 0.0, 1_000_000)
    lead.check()
    assert ledger.done == 2
    assert any(isinstance(effect, Decided) for effect in effects)
    assert lead.book.owed_by(A) == 2
    leased = pull(lead, C, want=64)
    assert leased is not None
    assert {unit for one in leased.body.ranges for unit in range(one.start, one.start + one.units)} <= {4, 5, 6, 7}


def invited(effects: list[Effect]) -> set[bytes]:
    return {worker for effect in effects if isinstance(effect, Invite) for worker in effect.workers}


def test_a_worker_whose_lease_was_adopted_is_asked_until_it_pulls() -> None:
    """It may have been started again, and know nothing of the lease: three jobs once waited an hour for their last unit."""
    ledger = ledger_of(8)
    ledger.add(keepers(ledger, 1, KEEPER, (LEAD,), author=KEEPER))
    lease = grant(ledger, A, ALL)
    ledger.add(lease)
    lead = later(ledger)
    assert A in invited(lead.handle(Began(frozenset({A})), 0.0, 1_000_000))
    assert lead.book.pending == 0
    lead.handle(Returned(A, (lease.id,)), 1.0, 1_001_000)
    again = pull(lead, A, now=1.0)
    assert again is not None or lead.book.pending == 8


def test_receipts_that_others_took_are_decided_when_they_are_merged() -> None:
    ledger = ledger_of(8)
    lead = Lead(ledger, lambda body: oracle(body, LEAD), random.Random(1))
    lease = pull(lead, A, want=8)
    assert lease is not None
    first = len(ledger.receipt_list)
    ledger.add(receipt(lease))
    effects = lead.handle(Merged(first), 1.0, 1_000)
    lead.check()
    assert any(isinstance(effect, Decided) for effect in effects)
    assert ledger.done == sum(one.units for one in lease.body.ranges)


def test_of_two_leads_the_smaller_epoch_stands_and_the_other_answer_is_shown() -> None:
    ledger = ledger_of(8)
    ledger.add(keepers(ledger, 1, KEEPER, (LEAD,), author=KEEPER))
    one, other = grant(ledger, A, ALL), grant(ledger, B, ALL, author=KEEPER)
    said, otherwise = receipt(one), receipt(other, value="wrong")
    for statement in (one, other, said, otherwise):
        ledger.add(statement)
    ledger.add(decision_of(ledger, [otherwise], entry(0, 0, 8, (0,), "wrong"), author=KEEPER, epoch=1))
    ledger.add(decision_of(ledger, [said], entry(0, 0, 8, (0,))))
    found = ledger.find(0, 3)
    assert found is not None
    assert found.receipt is said
    assert len(ledger.conflicts) == 8
