"""A job from above: letters, shares, rates and stragglers."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core import picture
from p2pgrid.core.columns import DONE, FAILED, OPEN
from p2pgrid.core.lead import Lead, Pulled, Returned, Tick
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.job import Derive
from p2pgrid.model.work import OK, RAISED, UnitRange
from tests.unit.core.core_builders import A, B, C, deliver, lead_of, ledger_of, pull, receipt

STATES = {OPEN: ".", DONE: "d", FAILED: "f"}
ORDER = "f?r.d"


def of(lead: Lead, cells: int = 1000) -> str:
    return picture.letters(
        lead.ledger, cells, picture.leased_runs(lead.book), picture.disputed_units(lead.ledger, lead.disputes.contested)
    )[0]


def test_nothing_is_begun() -> None:
    assert of(lead_of(3, 4)) == "......."


def test_units_are_leased_then_done_or_failed() -> None:
    lead = lead_of(4, 4)
    grant = pull(lead, A, want=4)
    assert grant is not None
    (first,) = grant.body.ranges
    assert of(lead) == "r" * first.units + "." * (8 - first.units)
    units = first.units
    deliver(lead, receipt(grant, outcomes=bytes([OK] * (units - 1) + [RAISED])))
    assert of(lead) == "d" * (units - 1) + "f" + "." * (8 - units)


def test_a_lease_that_was_handed_back_is_waiting_again() -> None:
    lead = lead_of(4)
    grant = pull(lead, A, want=4)
    assert grant is not None
    lead.handle(Returned(A, (grant.id,)), 1.0, 0)
    assert of(lead) == "...."


def test_units_on_which_answers_differ_are_disputed() -> None:
    lead = lead_of(2, quorum=2)
    for worker, value in ((A, "right"), (B, "wrong")):
        grant = pull(lead, worker, want=2)
        assert grant is not None
        deliver(lead, receipt(grant, value=value))
    assert of(lead) == "??"


def test_derived_units_come_behind_the_others() -> None:
    lead = lead_of(2, 2, derive=Derive(reduce=True, fan_in=2, finish=True))
    for _ in range(4):
        grant = pull(lead, A, want=4, slots=4)
        if grant is not None:
            deliver(lead, receipt(grant))
    assert of(lead) == "dddd...."
    assert picture.levels(lead.ledger) == (("map", 4, 4), ("reduce", 2, 0), ("reduce", 1, 0), ("finish", 1, 0))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([OPEN, DONE, FAILED]), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(1, 60),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=4),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=4),
)
def test_a_letter_stands_for_what_needs_looking_at_most(
    batches: list[list[int]], cells: int, leased: set[tuple[int, int]], disputed: set[tuple[int, int]]
) -> None:
    ledger = ledger_of(*[len(batch) for batch in batches])
    plain: list[str] = []
    there = {(batch, unit) for batch, states in enumerate(batches) for unit in range(len(states))}
    for batch, states in enumerate(batches):
        if any(states):
            ledger.column(batch).state[:] = bytes(states)
        for unit, state in enumerate(states):
            waiting = "r" if (batch, unit) in leased and state == OPEN else STATES[state]
            plain.append(min(waiting, "?" if (batch, unit) in disputed else "d", key=ORDER.index))
    text, per_cell = picture.letters(ledger, cells, [(*one, 1) for one in leased & there], disputed & there)
    assert len(text) <= cells
    assert text == "".join(min(plain[at : at + per_cell], key=ORDER.index) for at in range(0, len(plain), per_cell))


def test_a_million_units_are_drawn_in_a_moment() -> None:
    lead = lead_of(*[1000] * 1000)
    for batch in range(0, 1000, 2):
        lead.ledger.column(batch).state[:] = bytes([DONE]) * 999 + bytes([batch % 3])
    for number in range(200):
        lead.handle(Pulled(NodeKey(bytes([number]) * 32), bytes([number]) * 32, 4, 400), 0.0, 0)
    began = time.perf_counter()
    text, per_cell = picture.letters(lead.ledger, 1024, picture.leased_runs(lead.book))
    took_s = time.perf_counter() - began
    assert (len(text), per_cell) == (1024, 977)
    assert {"r", "f", "."} <= set(text) <= {"r", "f", ".", "d"}
    assert took_s < 0.25  # It takes some milliseconds; a loop over the units would take more than this.


def test_shares_say_who_did_and_does_how_much() -> None:
    lead = lead_of(64, 64)
    first, second = pull(lead, A, want=8, slots=2), pull(lead, B, want=8, slots=2, now=1.0)
    assert first is not None
    assert second is not None
    done = sum(one.units for one in first.body.ranges)
    deliver(lead, receipt(first), now=4.0)
    assert pull(lead, A, want=8, slots=2, now=4.0) is not None
    shares = {share.node: share for share in picture.shares(lead, 6.0)}
    assert [share.node for share in picture.shares(lead, 6.0)] == [A, B]
    assert (shares[A].done, shares[B].done) == (done, 0)
    assert shares[A].running > 0
    assert shares[B].running == sum(one.units for one in second.body.ranges)
    assert (shares[A].oldest_s, shares[B].oldest_s) == (2.0, 5.0)
    assert shares[A].rate == pytest.approx(done / 4.0)  # So many in 4 s, on both cores.
    assert shares[B].rate == 0.0  # Nothing is known of it yet.
    assert picture.rate(lead, 6.0) == pytest.approx(done / 4.0)
    assert picture.left_s(lead.ledger, 2.0) == (128 - done) / 2.0


def test_who_works_no_more_adds_nothing_to_the_rate() -> None:
    lead = lead_of(64)
    grant = pull(lead, A, want=8)
    assert grant is not None
    deliver(lead, receipt(grant), now=2.0)
    assert picture.rate(lead, 2.5 + picture.BETWEEN_LEASES_S) == 0.0
    assert picture.left_s(lead.ledger, 0.0) == -1.0


def test_with_a_quorum_each_unit_takes_the_work_of_several() -> None:
    lead = lead_of(64, quorum=2)
    for worker in (A, B):
        grant = pull(lead, worker, want=8, slots=2)
        assert grant is not None
        deliver(lead, receipt(grant), now=2.0)
        assert pull(lead, worker, want=8, slots=2, now=2.0) is not None
    alone = picture.worker_rate(lead, A, 2.0)
    assert alone > 0
    assert picture.rate(lead, 2.0) == pytest.approx((alone + picture.worker_rate(lead, B, 2.0)) / 2)


def test_a_lease_far_beyond_its_forecast_is_a_straggler() -> None:
    lead = lead_of(256)
    for worker in (A, B, C):
        grant = pull(lead, worker, want=2, slots=2)
        assert grant is not None
        deliver(lead, receipt(grant), now=1.0)
    lead.handle(Tick(), 1.0, 0)
    slow = pull(lead, C, want=2, slots=2, now=1.0)
    assert slow is not None
    assert picture.stragglers(lead, 2.0) == []
    (late,) = picture.stragglers(lead, 5.0)
    assert (late.node, late.age_s) == (C, 4.0)
    assert late.unit == slow.body.ranges[0].start


def test_of_whom_nothing_is_known_nothing_is_late() -> None:
    lead = lead_of(8)
    assert pull(lead, A, want=2) is not None
    assert picture.stragglers(lead, 1000.0) == []


def test_the_straggling_unit_is_one_that_is_still_owed() -> None:
    lead = lead_of(256)
    quick = pull(lead, A, want=4, slots=4)
    assert quick is not None
    deliver(lead, receipt(quick), now=1.0)
    slow = pull(lead, A, want=4, slots=4, now=1.0)
    assert slow is not None
    batch, start, units, attempt = slow.body.ranges[0]
    assert units > 1
    deliver(lead, receipt(slow, None, UnitRange(batch, start, units - 1, attempt)), now=2.0)
    (late,) = picture.stragglers(lead, 60.0)
    assert late.unit == start + units - 1
