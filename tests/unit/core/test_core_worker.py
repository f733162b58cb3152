"""When a worker pulls, and what it runs next."""

from __future__ import annotations

from p2pgrid.core.worker import (
    Drain,
    Dry,
    Event,
    Finish,
    Invited,
    LeadGone,
    Leased,
    Pause,
    Pull,
    Resume,
    Return,
    Run,
    SourceGone,
    TaskEnded,
    UnitsDone,
    Worker,
)
from p2pgrid.model.work import UnitRange

ONE, TWO = (b"j1", b"l1"), (b"j2", b"l2")


class Driver:
    """Feeds a machine and sorts what it wants."""

    def __init__(self, slots: int) -> None:
        self.machine = Worker(slots)
        self.pulls: list[Pull] = []
        self.runs: list[Run] = []

    def feed(self, event: Event, now: float = 0.0) -> list[object]:
        effects = self.machine.handle(event, now)
        self.machine.check()
        assert self.machine.running <= self.machine.slots
        self.pulls += [effect for effect in effects if isinstance(effect, Pull)]
        self.runs += [effect for effect in effects if isinstance(effect, Run)]
        return list(effects)


def test_an_invitation_leads_to_one_pull_for_its_cores() -> None:
    driver = Driver(3)
    assert driver.feed(Invited(ONE, b"s")) == [Pull(ONE, 3, 3)]
    assert driver.feed(Invited(ONE, b"s"), 0.1) == []


def test_a_lease_is_spread_over_the_cores() -> None:
    driver = Driver(4)
    driver.feed(Invited(ONE, b"s"))
    driver.feed(Leased(ONE, b"g", (UnitRange(0, 0, 8),)))
    assert [run.range.units for run in driver.runs] == [2, 2, 2, 2]
    assert {run.range.start for run in driver.runs} == {0, 2, 4, 6}


def test_short_units_are_pulled_before_the_cores_are_idle_and_long_ones_are_not() -> None:
    for mean_s, pulls in ((0.01, True), (5.0, False)):
        driver = Driver(1)
        driver.feed(Invited(ONE, b"s"))
        driver.feed(Leased(ONE, b"g", (UnitRange(0, 0, 1),)))
        effects = driver.feed(UnitsDone(ONE, 10, 10 * mean_s))
        assert any(isinstance(effect, Pull) for effect in effects) == pulls


def test_a_pull_asks_for_about_a_second_and_never_for_more_than_the_bound() -> None:
    for cpu_s, want in ((1.0, 20), (0.0, 4096), (1e9, 2)):
        driver = Driver(2)
        driver.feed(Invited(ONE, b"s"))
        driver.feed(Leased(ONE, b"g", (UnitRange(0, 0, 2),)))
        driver.feed(UnitsDone(ONE, 10, cpu_s))
        driver.feed(TaskEnded(ONE))
        assert driver.pulls[-1].want == want


def test_a_dry_lead_is_not_asked_again_until_it_invites() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    assert driver.feed(Dry(ONE)) == []
    assert driver.feed(TaskEnded(ONE), 0.5) == []
    assert len(driver.feed(Invited(ONE, b"s"), 1.0)) == 1


def test_an_invitation_that_overtakes_a_dry_answer_is_not_lost() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    driver.feed(Invited(ONE, b"s"), 0.1)
    assert driver.feed(Dry(ONE), 0.2) == [Pull(ONE, 1, 1)]
    assert driver.feed(Dry(ONE), 0.3) == []


def test_an_empty_lease_counts_as_dry() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    assert driver.feed(Leased(ONE, b"g", ())) == []
    driver.feed(Invited(ONE, b"s"))
    assert driver.feed(Leased(ONE, b"g", (UnitRange(0, 0, 0), UnitRange(0, 5, -3)))) == []


def test_cores_go_round_the_submitters() -> None:
    driver = Driver(1)
    for source, submitter in ((ONE, b"s1"), (TWO, b"s2")):
        driver.feed(Invited(source, submitter))
        driver.feed(Leased(source, b"g", tuple(UnitRange(0, start, 1) for start in range(3))))
    for _ in range(5):
        driver.feed(TaskEnded(driver.runs[-1].source))
    assert [run.source for run in driver.runs] == [ONE, ONE, TWO, ONE, TWO, TWO]


def test_a_job_that_was_cancelled_loses_its_queue_and_what_runs_ends() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    driver.feed(Leased(ONE, b"g", (UnitRange(0, 0, 1), UnitRange(0, 5, 1))))
    driver.feed(SourceGone(ONE))
    assert (driver.machine.queued, driver.machine.running) == (0, 1)
    driver.feed(TaskEnded(ONE), 5.0)
    assert driver.machine.sources == {}
    assert not driver.machine.turn


def test_events_of_unknown_sources_and_repeated_ends_change_nothing() -> None:
    driver = Driver(2)
    for event in (Leased(ONE, b"g", (UnitRange(0, 0, 1),)), Dry(ONE), UnitsDone(ONE, 1, 1.0), TaskEnded(ONE), SourceGone(ONE)):
        assert driver.feed(event) == []
    driver.feed(Invited(ONE, b"s"))
    driver.feed(TaskEnded(ONE))
    assert driver.machine.running == 0


def test_a_flood_of_invitations_and_ranges_is_bounded() -> None:
    driver = Driver(2)
    for number in range(400):
        driver.machine.handle(Invited((b"j%d" % number, b"l"), b"s%d" % number), 0.0)
    assert len(driver.machine.sources) == 256
    driver.feed(Leased((b"j0", b"l"), b"g", tuple(UnitRange(0, start, 1) for start in range(100_000))))
    assert driver.machine.queued <= 256


def test_a_job_that_is_over_is_forgotten() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    driver.feed(Invited(ONE, b"s"))
    assert driver.feed(Dry(ONE, over=True)) == []
    assert driver.machine.sources == {}


def test_units_of_a_lead_that_is_gone_run_and_it_is_not_asked_for_more() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    driver.feed(Leased(ONE, b"g", (UnitRange(0, 0, 1), UnitRange(0, 5, 1))))
    assert driver.feed(LeadGone(ONE)) == []
    assert driver.feed(UnitsDone(ONE, 1, 0.001), 0.1) == []
    driver.feed(TaskEnded(ONE), 0.1)
    assert [run.range.start for run in driver.runs] == [0, 5]
    driver.feed(TaskEnded(ONE), 0.2)
    assert len(driver.pulls) == 1
    assert driver.machine.sources == {}


def test_a_lead_that_is_back_is_asked_when_it_invites() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    driver.feed(Leased(ONE, b"g", (UnitRange(0, 0, 1),)))
    driver.feed(LeadGone(ONE))
    driver.feed(Invited(ONE, b"s"), 5.0)
    assert driver.feed(TaskEnded(ONE), 5.1) == [Pull(ONE, 1, 1)]


def test_a_pull_that_fails_after_its_lead_is_gone_leads_to_no_other() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s"))
    driver.feed(LeadGone(ONE))
    assert driver.feed(Dry(ONE)) == []
    assert driver.machine.sources == {}


def test_a_worker_that_leaves_hands_back_what_has_not_started_and_takes_nothing_more() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s1"))
    driver.feed(Leased(ONE, b"g1", (UnitRange(0, 0, 1), UnitRange(0, 5, 2))))
    driver.feed(Invited(TWO, b"s2"))
    assert driver.feed(Drain()) == [Return(ONE, b"g1", UnitRange(0, 5, 2))]
    assert driver.feed(Leased(TWO, b"g2", (UnitRange(1, 0, 1),))) == [Return(TWO, b"g2", UnitRange(1, 0, 1))]
    assert (driver.machine.queued, driver.machine.running) == (0, 1)
    for event in (UnitsDone(ONE, 1, 0.001), TaskEnded(ONE), Invited(ONE, b"s1"), Invited((b"j3", b"l3"), b"s3"), Drain()):
        assert driver.feed(event, 0.1) == []
    assert driver.machine.sources == {}
    assert not driver.machine.turn


def test_a_paused_worker_hands_back_its_queue_and_hears_nobody_until_it_is_resumed() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s1"))
    driver.feed(Leased(ONE, b"g1", (UnitRange(0, 0, 1), UnitRange(0, 5, 2))))
    assert driver.feed(Pause()) == [Return(ONE, b"g1", UnitRange(0, 5, 2))]
    assert driver.feed(TaskEnded(ONE)) == []
    assert driver.feed(Invited(TWO, b"s2")) == []
    assert driver.machine.idle
    assert driver.feed(Resume()) == []
    assert driver.feed(Invited(TWO, b"s2")) == [Pull(TWO, 1, 1)]


def test_a_lease_that_arrives_in_a_pause_goes_back_and_the_next_one_runs() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s1"))
    driver.feed(Pause())
    assert not driver.machine.idle, "a pull is under way"
    assert driver.feed(Leased(ONE, b"g1", (UnitRange(0, 0, 1),))) == [Return(ONE, b"g1", UnitRange(0, 0, 1))]
    driver.feed(Resume())
    driver.feed(Invited(ONE, b"s1"))
    assert Run(ONE, b"g2", UnitRange(0, 0, 1)) in driver.feed(Leased(ONE, b"g2", (UnitRange(0, 0, 1),)))


def test_a_worker_that_finishes_runs_what_it_has_and_pulls_no_more() -> None:
    driver = Driver(1)
    driver.feed(Invited(ONE, b"s1"))
    driver.feed(Leased(ONE, b"g1", (UnitRange(0, 0, 1), UnitRange(0, 5, 1))))
    assert driver.feed(Finish()) == []
    assert driver.feed(Invited(TWO, b"s2")) == []
    driver.feed(UnitsDone(ONE, 1, 0.001))
    assert driver.feed(TaskEnded(ONE)) == [Run(ONE, b"g1", UnitRange(0, 5, 1))]
    assert not driver.machine.idle
    assert driver.feed(TaskEnded(ONE)) == []
    assert driver.machine.idle
    assert driver.feed(Resume()) == [Pull(ONE, 1, 1000)], "its invitation still holds"


def test_a_pause_takes_finishing_back_and_leaving_outlasts_resume() -> None:
    driver = Driver(1)
    driver.feed(Finish())
    driver.feed(Pause())
    assert (driver.machine.paused, driver.machine.finishing) == (True, False)
    driver.feed(Drain())
    driver.feed(Resume())
    assert driver.machine.closed
    assert driver.feed(Invited(ONE, b"s1")) == []
