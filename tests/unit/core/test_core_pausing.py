"""When a node works for others, and when its owner has the machine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.admission import Policy
from p2pgrid.core.pausing import (
    BACK_AFTER_S,
    BUSY_AFTER_S,
    FINISHING,
    GRACE_S,
    PAUSED,
    RUNNING,
    SET_ASIDE_S,
    Asked,
    Effect,
    Event,
    Finish,
    FinishNow,
    Idle,
    Keep,
    Pause,
    PauseNow,
    Pausing,
    Presence,
    Resume,
    ResumeNow,
    Tick,
    minutes_until,
    within_hours,
)
from p2pgrid.model.reasons import Reason

NIGHT = ((22 * 60, 7 * 60),)


class Driver:
    """Feeds events at a time of its own; the wall clock runs with it."""

    def __init__(self, **terms: Any) -> None:
        self.pausing = Pausing(Policy(**({"on_battery": True} | terms)))
        self.now = 1000.0

    def feed(self, event: Event, after_s: float = 1.0) -> list[Effect]:
        self.now += after_s
        return self.pausing.handle(event, self.now, self.now_ms)

    @property
    def now_ms(self) -> int:
        return int(self.now * 1000)

    @property
    def told(self) -> tuple[str, Reason | None]:
        return self.pausing.state.name, self.pausing.state.reason


def test_without_terms_nothing_is_asked_and_no_reading_pauses() -> None:
    driver = Driver()
    assert driver.pausing.asked == Asked(idle=False, battery=False, load=False, hours=False)
    assert driver.feed(Presence(idle_s=0.0, on_battery=True, others_share=1.0, minute=0)) == []
    assert driver.told == (RUNNING, None)


def test_a_pause_of_the_owner_holds_until_it_is_resumed() -> None:
    driver = Driver()
    effects = driver.feed(PauseNow())
    assert effects == [Pause(GRACE_S), Keep(True, driver.now_ms, 0)]
    since_ms = driver.now_ms
    assert driver.feed(Tick(), 1e6) == []
    assert (driver.told, driver.pausing.state.since_ms) == ((PAUSED, Reason.PAUSED), since_ms)
    assert driver.feed(ResumeNow()) == [Resume(), Keep(False, 0, 0)]
    assert driver.told == (RUNNING, None)


def test_a_pause_for_a_time_ends_by_itself() -> None:
    driver = Driver()
    driver.feed(PauseNow(60_000))
    assert driver.pausing.waits
    assert driver.feed(Tick(), 55.0) == []
    assert driver.feed(Tick(), 10.0) == [Resume(), Keep(False, 0, 0)]
    assert not driver.pausing.waits


def test_a_pause_of_an_earlier_life_holds_at_the_start_unless_its_time_is_over() -> None:
    driver = Driver()
    driver.pausing.restore(5, 0)
    assert driver.feed(Presence()) == [Pause(GRACE_S)]
    assert driver.pausing.state.since_ms == 5
    over = Driver()
    over.pausing.restore(5, over.now_ms - 1)
    assert over.feed(Presence()) == [Keep(False, 0, 0)]
    assert over.told == (RUNNING, None)


def test_finishing_ends_in_a_pause_when_nothing_is_left() -> None:
    driver = Driver()
    assert driver.feed(FinishNow()) == [Finish(), Keep(True, driver.now_ms, 0)]
    assert driver.told == (FINISHING, Reason.FINISHING)
    assert driver.feed(Tick()) == []
    assert driver.feed(Idle()) == [Pause(GRACE_S)]
    assert driver.told == (PAUSED, Reason.PAUSED)


def test_finishing_is_cut_short_by_pause_and_taken_back_by_resume() -> None:
    driver = Driver()
    driver.feed(FinishNow())
    assert driver.feed(PauseNow())[0] == Pause(GRACE_S)
    other = Driver()
    other.feed(FinishNow())
    assert other.feed(ResumeNow())[0] == Resume()
    assert other.told == (RUNNING, None)


def test_who_is_paused_and_told_to_finish_is_paused_by_the_owner() -> None:
    driver = Driver(idle_s=60.0)
    driver.feed(Presence(idle_s=0.0))
    assert driver.feed(FinishNow()) == [Keep(True, driver.now_ms, 0)]
    driver.feed(Presence(idle_s=1000.0))
    assert driver.told == (PAUSED, Reason.PAUSED)


def test_the_owner_who_comes_back_while_it_finishes_has_the_machine_at_once() -> None:
    driver = Driver(idle_s=60.0)
    driver.feed(Presence(idle_s=100.0))
    driver.feed(FinishNow())
    assert driver.feed(Presence(idle_s=0.0)) == [Pause(GRACE_S)]
    assert driver.feed(Presence(idle_s=100.0)) == []
    assert driver.told == (PAUSED, Reason.PAUSED)


def test_it_works_only_while_nobody_has_touched_the_machine_for_long_enough() -> None:
    driver = Driver(idle_s=600.0)
    assert driver.feed(Presence(idle_s=599.0)) == [Pause(GRACE_S)]
    assert driver.told == (PAUSED, Reason.OWNER_ACTIVE)
    assert driver.feed(Presence(idle_s=600.0)) == [Resume()]
    assert driver.feed(Presence(idle_s=0.1)) == [Pause(GRACE_S)]


def test_where_nobody_can_tell_whether_the_owner_is_there_it_does_not_work() -> None:
    driver = Driver(idle_s=600.0)
    driver.feed(Presence())
    assert driver.told == (PAUSED, Reason.OWNER_ACTIVE)
    assert Driver(hours=NIGHT).feed(Presence()) == [Pause(GRACE_S)]


def test_on_battery_it_rests_and_goes_on_only_when_the_plug_stays_in() -> None:
    driver = Driver(on_battery=False)
    assert driver.feed(Presence(on_battery=False)) == []
    assert driver.feed(Presence(on_battery=True)) == [Pause(GRACE_S)]
    assert driver.feed(Presence(on_battery=False)) == []
    assert driver.feed(Presence(on_battery=True), BACK_AFTER_S[Reason.ON_BATTERY] / 2) == []
    assert driver.feed(Presence(on_battery=False)) == []
    assert driver.feed(Presence(on_battery=False), BACK_AFTER_S[Reason.ON_BATTERY]) == [Resume()]
    assert driver.feed(Presence(on_battery=None)) == []


def test_only_a_load_that_lasts_pauses_and_only_a_rest_that_lasts_resumes() -> None:
    driver = Driver(busy_share=0.5)
    for _ in range(3):
        assert driver.feed(Presence(others_share=0.9)) == []
        assert driver.feed(Presence(others_share=0.1)) == []
    driver.feed(Presence(others_share=0.9))
    assert driver.feed(Presence(others_share=0.9), BUSY_AFTER_S) == [Pause(GRACE_S)]
    assert driver.told == (PAUSED, Reason.MACHINE_BUSY)
    back_s = BACK_AFTER_S[Reason.MACHINE_BUSY]
    driver.feed(Presence(others_share=0.3))
    assert driver.feed(Presence(others_share=0.45), back_s) == [], "under the bound, but not by enough"
    driver.feed(Presence(others_share=0.3))
    assert driver.feed(Presence(others_share=0.3), back_s) == [Resume()]


def test_hours_may_lie_past_midnight() -> None:
    assert [minute for minute in (0, 419, 420, 1319, 1320, 1439) if within_hours(NIGHT, minute)] == [0, 419, 1320, 1439]
    assert within_hours(((60, 120), (180, 240)), 200)
    assert not within_hours(((60, 120), (180, 240)), 120)
    assert (minutes_until(NIGHT, 1319), minutes_until(NIGHT, 7 * 60), minutes_until(NIGHT, 5)) == (1, 15 * 60, 0)


def test_of_several_reasons_one_is_told_and_the_next_when_it_has_passed() -> None:
    driver = Driver(idle_s=60.0, hours=NIGHT)
    assert driver.feed(Presence(idle_s=0.0, minute=720)) == [Pause(GRACE_S)]
    assert driver.told == (PAUSED, Reason.OWNER_ACTIVE)
    first_ms = driver.pausing.state.since_ms
    assert driver.feed(Presence(idle_s=100.0, minute=720)) == []
    assert driver.told == (PAUSED, Reason.OUTSIDE_HOURS)
    assert driver.pausing.state.since_ms > first_ms
    assert driver.feed(Presence(idle_s=100.0, minute=0)) == [Resume()]


def test_resume_sets_a_reason_aside_until_it_has_passed_once() -> None:
    driver = Driver(idle_s=60.0)
    driver.feed(Presence(idle_s=0.0))
    assert driver.feed(ResumeNow()) == [Resume()]
    assert driver.feed(Presence(idle_s=0.0)) == []
    assert driver.feed(Presence(idle_s=61.0)) == []
    assert driver.feed(Presence(idle_s=0.0)) == [Pause(GRACE_S)]


def test_resume_sets_a_reason_aside_for_an_hour_at_most() -> None:
    driver = Driver(hours=NIGHT)
    driver.feed(Presence(minute=600))
    assert driver.feed(ResumeNow()) == [Resume()]
    assert driver.feed(Presence(minute=659), SET_ASIDE_S - 1) == []
    assert driver.feed(Presence(minute=660)) == [Pause(GRACE_S)]


def test_a_reason_that_comes_after_resume_counts() -> None:
    driver = Driver(idle_s=60.0, on_battery=False)
    driver.feed(Presence(idle_s=0.0, on_battery=False))
    driver.feed(ResumeNow())
    assert driver.feed(Presence(idle_s=0.0, on_battery=True)) == [Pause(GRACE_S)]
    assert driver.told == (PAUSED, Reason.ON_BATTERY)


READINGS = st.builds(
    Presence,
    idle_s=st.none() | st.floats(0, 1000),
    on_battery=st.none() | st.booleans(),
    others_share=st.none() | st.floats(0, 1),
    minute=st.none() | st.integers(0, 1439),
)
COMMANDS = st.sampled_from([PauseNow(), PauseNow(1_200_000), ResumeNow(), FinishNow(), Idle(), Tick()])


@pytest.mark.parametrize("terms", [{}, {"idle_s": 60.0, "busy_share": 0.5, "hours": NIGHT, "on_battery": False}])
@given(events=st.lists(st.tuples(READINGS | COMMANDS, st.floats(0, 100)), max_size=40))
def test_effects_always_say_what_the_state_became(terms: dict[str, Any], events: list[tuple[Event, float]]) -> None:
    driver = Driver(**terms)
    name = RUNNING
    kept = False
    for event, after_s in events:
        for effect in driver.feed(event, after_s):
            match effect:
                case Pause():
                    assert name != PAUSED
                    name = PAUSED
                case Finish():
                    assert name == RUNNING
                    name = FINISHING
                case Resume():
                    assert name != RUNNING
                    name = RUNNING
                case Keep(paused):
                    kept = paused
        state = driver.pausing.state
        assert state.name == name
        assert (state.reason is None) == (name == RUNNING)
        assert (state.reason in (Reason.PAUSED, Reason.FINISHING)) == kept
