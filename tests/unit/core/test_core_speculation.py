"""The last units of a job: copies, leases given up for lost, and the pace that both go by."""

from __future__ import annotations

import pytest

from p2pgrid.core.lead import Invite, Lead, Tick, WorkerGone, WorkersKnown
from p2pgrid.core.ledger import DONE
from p2pgrid.core.pace import STRAY_FIRST, Pace, Sketch, WorkerState
from p2pgrid.core.speculation import EXTRA
from p2pgrid.model.work import Grant
from p2pgrid.wire.envelope import Signed
from tests.unit.core.core_builders import A, B, C, D, deliver, lead_of, leased, pull, receipt


def work(lead: Lead, worker: bytes, units: int, unit_s: float, now: float) -> float:
    """A worker with one core works off some units, one after the other. Returns when it is done."""
    for _ in range(units):
        lease = pull(lead, worker, want=1, slots=1, now=now)
        assert lease is not None
        now += unit_s
        deliver(lead, receipt(lease), now=now)
    return now


def nearly_done(units: int = 40, quorum: int = 1) -> tuple[Lead, Signed[Grant]]:
    """B is ten times as fast as A; A has the last unit of the job since second 100."""
    lead = lead_of(units, quorum=quorum)
    lead.handle(WorkersKnown(frozenset((A, B))), 0.0, 0)
    work(lead, A, 4, 10.0, 0.0)
    work(lead, B, units - 5, 1.0, 0.0)
    lead.handle(Tick(), 99.0, 0)
    last = pull(lead, A, want=1, slots=1, now=100.0) or pull(lead, A, want=1, slots=1, now=120.0)
    assert last is not None
    return lead, last


def test_a_fast_worker_gets_a_copy_of_what_a_slow_one_is_still_at() -> None:
    lead, last = nearly_done()
    now = next(iter(lead.book.leases.values())).since
    copy = pull(lead, B, want=1, slots=1, now=now + 1.0)
    assert leased(copy) == leased(last)
    assert copy is not None
    deliver(lead, receipt(copy), now=now + 2.0)
    assert lead.over
    deliver(lead, receipt(last), now=now + 10.0)
    lead.check()
    assert lead.ledger.done == 40


def test_a_slow_worker_gets_no_copy_of_what_a_fast_one_is_about_to_end() -> None:
    lead = lead_of(40)
    work(lead, A, 4, 10.0, 0.0)
    work(lead, B, 35, 1.0, 0.0)
    lead.handle(Tick(), 99.0, 0)
    assert pull(lead, B, want=1, slots=1, now=100.0) is not None
    assert pull(lead, A, want=1, slots=1, now=100.1) is None


def test_what_strays_is_copied_even_by_equals_and_they_are_invited_to() -> None:
    lead = lead_of(40)
    lead.handle(WorkersKnown(frozenset((A, B))), 0.0, 0)
    work(lead, A, 20, 1.0, 0.0)
    work(lead, B, 19, 1.0, 0.0)
    lead.handle(Tick(), 29.0, 0)
    lost = pull(lead, A, want=1, slots=1, now=30.0)
    assert pull(lead, B, want=1, slots=1, now=30.5) is None
    lead.handle(Tick(), 31.0, 0)
    late = 30.0 + 1.0 + STRAY_FIRST * 1.0
    effects = lead.handle(Tick(), late, 0)
    assert [effect.workers for effect in effects if isinstance(effect, Invite)] == [(B,)]
    assert leased(pull(lead, B, want=1, slots=1, now=late)) == leased(lost)


def test_near_the_end_a_slow_worker_leaves_the_last_units_to_the_others_but_not_for_ever() -> None:
    lead = lead_of(40)
    lead.handle(WorkersKnown(frozenset((A, B))), 0.0, 0)
    work(lead, A, 4, 10.0, 0.0)
    work(lead, B, 34, 1.0, 0.0)
    lead.handle(Tick(), 99.0, 0)
    assert lead.book.pending == 2
    assert pull(lead, A, want=1, slots=1, now=100.0) is None
    assert A in {worker for effect in lead.handle(Tick(), 101.0, 0) if isinstance(effect, Invite) for worker in effect.workers}
    assert pull(lead, A, want=1, slots=1, now=120.0) is not None


def test_copies_are_bounded_by_a_share_of_the_job() -> None:
    lead = lead_of(100)
    work(lead, B, 50, 1.0, 0.0)
    lead.handle(Tick(), 60.0, 0)
    for name in range(1, 51):
        assert pull(lead, bytes([name]) * 32, want=1, slots=1, now=60.0) is not None
    copied = 0
    for second in range(64, 68):
        while copy := pull(lead, B, want=8, slots=1, now=float(second)):
            copied += len(leased(copy))
    assert 1 <= copied <= EXTRA * 50
    assert lead.speculation.room(lead.sharing.answers) < 1


def test_a_party_that_had_a_unit_never_gets_a_copy_of_it_and_two_copies_of_what_runs_are_too_many() -> None:
    lead, last = nearly_done()
    now = next(iter(lead.book.leases.values())).since
    assert leased(pull(lead, B, want=1, slots=1, now=now + 1.0)) == leased(last)
    assert pull(lead, B, want=1, slots=1, now=now + 1.5) is None
    assert pull(lead, A, want=1, slots=1, now=now + 1.5) is None
    assert pull(lead, C, want=1, slots=1, now=now + 1.5, group=B) is None
    assert pull(lead, D, want=1, slots=1, now=now + 1.5) is None


def test_a_copy_outlives_the_worker_it_was_made_for() -> None:
    lead, last = nearly_done()
    now = next(iter(lead.book.leases.values())).since
    copy = pull(lead, B, want=1, slots=1, now=now + 1.0)
    assert copy is not None
    lead.handle(WorkerGone(A), now + 1.1, 0)
    lead.check()
    assert lead.book.pending == 0
    lead.handle(WorkerGone(B), now + 1.2, 0)
    lead.check()
    assert lead.book.pending == 1
    lead.handle(Tick(), now + 1.5, 0)
    assert leased(pull(lead, C, want=1, slots=1, now=now + 2.0)) == leased(last)


def test_where_answers_are_compared_a_copy_goes_to_somebody_who_never_had_the_unit() -> None:
    lead = lead_of(20, quorum=2)
    lead.handle(WorkersKnown(frozenset((A, B, C))), 0.0, 0)
    now = 0.0
    while lead.book.pending:
        now += 1.0
        for worker in (A, B, C):
            lease = pull(lead, worker, want=1, slots=1, now=now)
            if lease is not None and lead.book.pending:
                deliver(lead, receipt(lease), now=now + 0.9)
        lead.handle(Tick(), now + 0.95, 0)
    (owed,) = list(lead.book.leases.values())[-1:]
    unit = (owed.ranges[0].batch, owed.ranges[0].start)
    had = lead.book.had(*unit, 1)
    for worker in (A, B, C):
        copy = pull(lead, worker, want=1, slots=1, now=now + 30.0)
        assert unit not in leased(copy) or worker not in had


def test_a_lease_whose_worker_says_nothing_is_given_up_long_before_its_time_out() -> None:
    lead = lead_of(60)
    assert pull(lead, A, want=4, slots=4) is not None
    work(lead, B, 8, 1.0, 0.0)
    lead.handle(WorkersKnown(frozenset((A, B))), 8.0, 0)
    deadline = next(iter(lead.book.leases.values())).deadline
    now = 9.0
    while lead.book.leases and now < deadline:
        lead.handle(Tick(), now, 0)
        now += 1.0
    assert not lead.book.leases
    assert now < 30.0 < deadline
    again = pull(lead, A, want=64, slots=4, now=now)
    assert len(leased(again)) <= 4, "who fell silent gets little"


def test_a_lead_that_stood_still_gives_nobody_up() -> None:
    lead = lead_of(60)
    lease = pull(lead, A, want=1, slots=1)
    work(lead, B, 8, 1.0, 0.0)
    lead.handle(Tick(), 8.0, 0)
    lead.handle(Tick(), 38.0, 0)
    assert lease is not None
    assert 38.0 < lead.book.leases[lease.id].deadline
    assert lease.id in lead.book.leases


def test_a_late_answer_counts_and_teaches_how_slow_its_worker_is() -> None:
    lead = lead_of(60)
    slow = pull(lead, A, want=1, slots=1)
    assert slow is not None
    work(lead, B, 8, 1.0, 0.0)
    for second in range(1, 41):
        lead.handle(Tick(), float(second), 0)
    assert slow.id not in lead.book.leases
    deliver(lead, receipt(slow), now=40.0)
    assert lead.ledger.state(0, next(iter(leased(slow)))[1]) == DONE
    assert lead.pace.unit_s(lead.workers[A]) == pytest.approx(40.0, rel=0.6)
    assert not lead.workers[A].silent


def test_a_lost_lease_does_not_make_its_worker_look_slow() -> None:
    lead = lead_of(60)
    work(lead, A, 4, 1.0, 0.0)
    assert pull(lead, A, want=1, slots=1, now=4.0) is not None
    work(lead, A, 4, 1.0, 20.0)
    assert lead.pace.unit_s(lead.workers[A]) == pytest.approx(1.0)


def test_a_sketch_is_within_a_fifth_of_the_true_quantile_and_forgets() -> None:
    sketch = Sketch()
    for number in range(1, 1001):
        sketch.note(number / 100)
    for share in (0.1, 0.5, 0.95):
        assert 10 * share <= sketch.quantile(share) <= 10 * share * 1.2
    for _ in range(100_000):
        sketch.note(100.0)
    assert sketch.quantile(0.1) > 50
    assert sketch.samples <= 4096


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-30, 1e30, float("inf")])
def test_a_sketch_takes_any_number(value: float) -> None:
    sketch = Sketch()
    sketch.note(value)
    assert sketch.samples == 1


def test_nothing_is_forecast_before_anybody_answered() -> None:
    pace, worker = Pace(), WorkerState(2, A, 0.0)
    pace.learn([worker])
    assert pace.forecast_s(worker, 10) == 0.0
    worker.spend(2, 0.0)
    worker.spend(2, 3.0)
    worker.answer(2)
    pace.learn([worker])
    assert pace.forecast_s(worker, 4) == pytest.approx(6.0)
    assert pace.forecast_s(WorkerState(1, B, 0.0), 1) == pytest.approx(3.0)


def test_what_became_of_copies_is_settled() -> None:
    lead, last = nearly_done()
    now = next(iter(lead.book.leases.values())).since
    for second in (1.0, 4.0, 7.0, 10.0, 13.0):
        lead.handle(Tick(), now + second, 0)
    copy = pull(lead, B, want=1, slots=1, now=now + 14.0)
    assert copy is not None
    assert leased(copy) == leased(last)
    charged = lead.speculation.copied
    assert charged > 1.0, "the unit seems to be large, it has run for so long"
    deliver(lead, receipt(copy), now=now + 15.0)
    assert lead.speculation.copied == pytest.approx(1.0), "it was not: its worker was slow"


def test_a_copy_in_the_place_of_who_is_gone_is_no_extra_work() -> None:
    lead, _ = nearly_done()
    now = next(iter(lead.book.leases.values())).since
    assert pull(lead, B, want=1, slots=1, now=now + 1.0) is not None
    assert lead.speculation.copied >= 1.0
    lead.handle(WorkerGone(A), now + 1.1, 0)
    assert lead.speculation.copied == 0.0
