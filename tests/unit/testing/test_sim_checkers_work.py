"""S7, S8, L1 to L4, wrong values and logged errors: each rule is kept by a good history, and its breach is caught."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.model.ids import dht_id_of_key
from p2pgrid.runtimes.tasks import BatchChunk
from p2pgrid.testing.checkers import CopiesChecker, LogChecker, LookupChecker, find, true_closest, wrong_bound, wrong_share
from p2pgrid.testing.checkers.liveness import LivenessChecker
from p2pgrid.testing.checkers.logs import LOGGERS
from p2pgrid.testing.plans.scenario import Expectations
from tests.unit.testing.checker_stories import EPOCH_MS, KEYS, Story, node_of, public

# -- S7 ---------------------------------------------------------------------------------


def test_a_task_that_the_policy_allows_may_start(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head())
    for name in ("lead", "a"):
        story.tell("on_units_start", name, story.task())
    assert story.broken() == []


@pytest.mark.parametrize(
    ("policy", "task"),
    [
        ({"cores": 0}, {}),
        ({"runtimes": ("command",)}, {}),
        ({"native": False}, {}),
        ({"memory_bytes": 100}, {"memory_bytes": 101}),
        ({}, {"submitter": b"?" * 32}),
        ({}, {"submitter": KEYS["b"].public}),
    ],
)
def test_a_task_that_the_policy_refuses_is_caught(tmp_path: Path, policy: dict[str, Any], task: dict[str, Any]) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head())
    story.start("a", node_of("a", tmp_path, **policy))
    story.tell("on_units_start", "a", story.task(**task))
    assert set(story.broken()) == {"S7"}


def test_ones_own_jobs_run_whatever_is_refused_to_others(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head())
    story.start("lead", node_of("lead", tmp_path, native=False))
    story.tell("on_units_start", "lead", story.task())
    assert story.broken() == []


@pytest.mark.parametrize("role", ["submit", "native"])
def test_a_submitter_without_the_role_is_caught(tmp_path: Path, role: str) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head())
    story.view.nodes["lead"].member.roles -= {role}
    story.tell("on_units_start", "a", story.task())
    assert story.broken() == ["S7"]


def test_an_expired_job_and_a_refused_one_are_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head())
    story.view.nodes["a"].working._refused[story.id] = "no-role"
    story.tell("on_units_start", "a", story.task())
    assert story.broken() == ["S7"]
    story.view.now = (story.expires_ms - EPOCH_MS) / 1000 + 400
    story.tell("on_units_start", "b", story.task())
    assert story.broken() == ["S7", "S7"]


def test_a_task_that_overtakes_its_job_is_judged_when_the_job_is_logged(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.tell("on_units_start", "a", story.task())
    story.view.nodes["b"].working._refused[story.id] = "no-role"
    story.tell("on_units_start", "b", story.task())
    assert story.broken() == []
    story.log("lead", *story.head())
    assert story.broken() == ["S7"]


def _chunk(units: int) -> BatchChunk:
    return BatchChunk(0, bytes(units), [], 1)


def test_more_tasks_than_cores_are_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head())
    running = story.view.nodes["a"].working.worker
    first, second, third = story.task(), story.task(), story.task()
    for number, task in enumerate((first, second), 1):
        running.running = number
        story.tell("on_units_start", "a", task)
    story.tell("on_chunk", "a", first, _chunk(1))
    story.tell("on_chunk", "a", first, _chunk(3))
    story.tell("on_units_start", "a", third)
    assert story.broken() == []
    running.running = 3
    story.tell("on_units_start", "a", story.task())
    assert story.broken() == ["S7"]


def test_tasks_that_were_cancelled_do_not_count(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head())
    story.view.nodes["a"].working.worker.running = 2
    for _ in range(5):
        story.tell("on_units_start", "a", story.task())
    story.tell("on_crash", "a")
    story.tell("on_units_start", "a", story.task())
    assert story.broken() == []


# -- S8 and L4 -------------------------------------------------------------------------------


def test_a_path_outside_is_caught_once(tmp_path: Path) -> None:
    found: list[str] = []
    story = Story(tmp_path, outside=lambda: found)
    story.tell("at_exit", "a", {})
    assert story.broken() == []
    found.append("/elsewhere")
    story.tell("at_exit", "b", {})
    story.tell("at_exit", "c", {})
    assert story.broken() == ["S8"]


@pytest.mark.parametrize(
    ("left", "caught"),
    [
        ({"tasks": 0, "timers": 0, "descriptors": 0, "seconds": 30}, 0),
        ({"tasks": 1}, 1),
        ({"timers": 2, "descriptors": 1}, 2),
        ({"seconds": 31}, 1),
    ],
)
def test_what_a_node_leaves_behind_is_caught(tmp_path: Path, left: dict[str, int], caught: int) -> None:
    story = Story(tmp_path)
    story.tell("at_exit", "a", left)
    assert story.broken() == ["L4"] * caught


# -- L1 ----------------------------------------------------------------------------------------


def _late(story: Story, seconds: float) -> None:
    story.view.now += seconds
    story.tell("at_end")


def test_a_job_that_ends_in_time_passes(tmp_path: Path) -> None:
    story = Story(tmp_path, settle_s=60.0)
    story.good()
    story.whole("lead")
    story.accept()
    story.tell("on_calm")
    assert find(story.checkers, LivenessChecker).due == [story.id]
    story.view.now += 50
    story.log("lead", story.settled(4, 0, (0, 1, 4, 9)))
    assert find(story.checkers, LivenessChecker).due == []
    _late(story, 60)
    assert "L1" not in story.broken()


@pytest.mark.parametrize("ends", [False, True])
def test_a_job_that_does_not_end_or_ends_late_is_caught(tmp_path: Path, ends: bool) -> None:
    story = Story(tmp_path, settle_s=60.0)
    story.good()
    story.whole("lead")
    story.accept()
    story.tell("on_calm")
    story.view.now += 61
    if ends:
        story.log("lead", story.settled(4, 0, (0, 1, 4, 9)))
    _late(story, 1)
    assert story.broken().count("L1") == 1


def test_nobody_is_late_before_the_bound(tmp_path: Path) -> None:
    story = Story(tmp_path, settle_s=60.0)
    story.accept()
    story.tell("on_calm")
    _late(story, 30)
    assert "L1" not in story.broken()


def _crashed(story: Story) -> None:
    story.crash("lead")


def _left(story: Story) -> None:
    story.tell("on_close", "lead", story.view.nodes.pop("lead"))


def _disk_failed(story: Story) -> None:
    story.tell("on_log_durable", "lead", story.id, [], "the disk is full")


def _nobody_left(story: Story) -> None:
    for name in ("keeper", "a", "b", "c", "d"):
        story.crash(name)


def _cancelled(story: Story) -> None:
    story.log("lead", story.cancel())


@pytest.mark.parametrize("why", [_crashed, _left, _disk_failed, _nobody_left, _cancelled])
def test_no_end_is_asked_where_it_cannot_be(tmp_path: Path, why: Any) -> None:
    story = Story(tmp_path, settle_s=60.0, expect=Expectations(unlucky_max=9))
    story.whole("lead")
    story.accept()
    why(story)
    story.tell("on_calm")
    _late(story, 61)
    assert "L1" not in story.broken()


def test_a_crash_of_a_worker_is_no_excuse(tmp_path: Path) -> None:
    story = Story(tmp_path, settle_s=60.0)
    story.whole("lead")
    story.accept()
    story.crash("a")
    story.tell("on_calm")
    _late(story, 61)
    assert story.broken().count("L1") == 1


@pytest.mark.parametrize(("whole", "caught"), [(True, 1), (False, 0)])
def test_a_keeper_that_has_all_of_a_job_owes_its_end_when_the_lead_is_gone(tmp_path: Path, whole: bool, caught: int) -> None:
    story = Story(tmp_path, settle_s=60.0)
    story.whole("lead")
    story.whole("keeper") if whole else story.log("keeper", *story.head())
    story.accept()
    story.crash("lead")
    story.tell("on_calm")
    _late(story, 61)
    assert story.broken().count("L1") == caught


def test_an_end_that_only_the_dead_have_seen_is_none(tmp_path: Path) -> None:
    story = Story(tmp_path, settle_s=60.0)
    story.good()
    story.whole("lead", "keeper")
    story.accept()
    story.log("lead", story.settled(4, 0, (0, 1, 4, 9)))
    story.crash("lead")
    story.tell("on_calm")
    assert find(story.checkers, LivenessChecker).due == [story.id]
    _late(story, 61)
    assert story.broken().count("L1") == 1


# -- L2 and L3 -------------------------------------------------------------------------------------


def test_the_true_closest_are_by_distance_of_ids() -> None:
    keys = [public(name) for name in "abcd"]
    target = dht_id_of_key(public("c"))
    closest = true_closest(target, keys, 3)
    assert closest[0] == public("c")
    distances = [int.from_bytes(dht_id_of_key(key), "big") ^ int.from_bytes(target, "big") for key in closest]
    assert distances == sorted(distances)
    assert public("c") not in true_closest(target, keys, 4, asker=public("c"))


@pytest.mark.parametrize(("share", "caught"), [(0.5, False), (0.6, True)])
def test_lookups_are_compared_with_the_truth(tmp_path: Path, share: float, caught: bool) -> None:
    story = Story(tmp_path, expect=Expectations(lookups_min=share))
    story.view.nodes["d"].dht.is_server = False
    checker = find(story.checkers, LookupChecker)
    target = random.Random(3).randbytes(20)
    servers = [public(name) for name in ("lead", "keeper", "a", "b", "c")]
    truth = true_closest(target, servers, 20, public("a"))
    assert checker.answered(public("a"), target, truth)
    assert not checker.answered(public("a"), target, truth[1:])
    assert (checker.share, checker.recall) == (0.5, 7 / 8)
    assert story.broken() == (["L2"] if caught else [])


@pytest.mark.parametrize(("back_s", "caught"), [(-1.0, False), (30.0, True), (300.0, False)])
def test_copies_that_are_missing_after_their_time_are_caught(tmp_path: Path, back_s: float, caught: bool) -> None:
    story = Story(tmp_path, expect=Expectations(copies_back_s=back_s))
    for name in "abc":
        story.view.nodes[name].blobs.held.add(b"f" * 32)
    story.tell("on_stored", "a", b"f" * 32, 9, [public(name) for name in "abc"])
    story.crash("c")
    story.tell("on_calm")
    story.tell("on_read", "d", b"f" * 32, True, "")
    assert find(story.checkers, CopiesChecker).due == ([b"f" * 32] if back_s > 0 else [])
    story.view.now += 31
    story.tell("at_end")
    verdict = story.verdict()
    assert verdict.figures["copies_mean"] == verdict.figures["copies_min"] == 2
    assert [violation.invariant for violation in verdict.violations] == ["L3"] * caught


def test_copies_need_not_be_more_than_there_are_nodes_with_room(tmp_path: Path) -> None:
    story = Story(tmp_path, expect=Expectations(copies_back_s=30.0))
    for name in "abc":
        story.view.nodes[name].blobs.held.add(b"f" * 32)
    story.tell("on_stored", "a", b"f" * 32, 9, [public(name) for name in "abc"])
    story.crash("c")
    for name in ("lead", "keeper", "d"):
        story.view.nodes[name].member.roles = frozenset(("work",))
    story.tell("on_calm")
    story.tell("on_read", "d", b"f" * 32, True, "")
    story.view.now += 31
    story.tell("at_end")
    assert story.broken() == []


@pytest.mark.parametrize(("asked", "caught"), [(2, []), (3, ["L3"])])
def test_a_copy_that_is_let_go_while_it_is_needed_is_caught(tmp_path: Path, asked: int, caught: list[str]) -> None:
    story = Story(tmp_path)
    for name in "abc":
        story.view.nodes[name].blobs.held.add(b"f" * 32)
    story.tell("on_stored", "a", b"f" * 32, 9, [public(name) for name in "abc"], asked)
    for turn in range(2):
        story.view.now += 5
        story.tell("on_second")
        if not turn:
            story.view.nodes["c"].blobs.held.clear()
    assert [one for one in story.broken() if one == "L3"] == caught


# -- wrong values ---------------------------------------------------------------------------------------


def _race(rng: random.Random, quorum: int, workers: int, colluders: int) -> bool:
    """One unit, played by drawing workers until one side is ahead by the quorum."""
    order = rng.sample(range(workers), workers)
    lead = 0
    for worker in order:
        lead += 1 if worker < colluders else -1
        if abs(lead) >= quorum:
            return lead > 0
    return False


@pytest.mark.parametrize(("quorum", "workers", "colluders"), [(1, 10, 3), (2, 10, 3), (3, 12, 4), (2, 4, 2), (3, 9, 5)])
def test_the_share_of_wrong_units_is_that_of_a_race(quorum: int, workers: int, colluders: int) -> None:
    rng = random.Random(f"{quorum} {workers} {colluders}")
    rounds = 20_000
    played = sum(_race(rng, quorum, workers, colluders) for _ in range(rounds)) / rounds
    share = wrong_share(quorum, workers, colluders)
    assert played == pytest.approx(share, abs=4 * (share * (1 - share) / rounds) ** 0.5)


def test_the_bound_grows_with_liars_and_their_speed_and_falls_with_the_quorum() -> None:
    assert wrong_share(1, 10, 3) == pytest.approx(0.3)
    assert wrong_share(2, 10, 1) == wrong_share(3, 10, 0) == wrong_share(0, 10, 3) == 0.0
    assert wrong_share(2, 10, 3) < wrong_share(2, 10, 3, weight=3.0) < wrong_share(1, 10, 3, weight=3.0) < 1
    assert wrong_share(2, 3, 3) == pytest.approx(1.0)
    assert wrong_bound(1000, 2, 10, 0) == 3
    assert wrong_bound(100, 1, 10, 3) == pytest.approx(30 + 4 * 30**0.5 + 3)


def _answered(story: Story) -> None:
    story.good()
    story.accept()


def test_a_wrong_value_is_caught_once(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _answered(story)
    story.tell("on_value", "lead", story.id, 2, 4)
    assert story.broken() == []
    for _ in range(2):
        story.tell("on_value", "lead", story.id, 3, 8)
    verdict = story.verdict()
    assert [violation.invariant for violation in verdict.violations] == ["expect"]
    assert verdict.accepted_wrong == 1


@pytest.mark.parametrize(("colluders", "caught"), [("ab", False), ("", True)])
def test_liars_explain_wrong_values_by_the_formula(tmp_path: Path, colluders: str, caught: bool) -> None:
    behaviours = {name: "colluding" if name in colluders else "wrong" for name in "abcd"}
    story = Story(tmp_path, expect=Expectations(accepted_wrong="formula"), behaviours=behaviours)
    story.view.liars.update("ab")
    _answered(story)
    story.tell("on_value", "lead", story.id, 3, 8)
    verdict = story.verdict()
    assert [violation.invariant for violation in verdict.violations] == ["expect"] * caught
    assert verdict.accepted_wrong == 1
    assert verdict.accepted_wrong_expected == (0.0 if caught else 8.0)


def test_more_wrong_values_than_the_formula_allows_are_caught(tmp_path: Path) -> None:
    story = Story(tmp_path, quorum=1, expect=Expectations(accepted_wrong="formula"))
    story.view.liars.add("c")
    grants = [story.grant(name) for name in "abc"]
    receipts = [story.receipt(grant) for grant in grants]
    story.log("lead", *story.head(), *grants, *receipts, story.decision(receipts[:1], story.entry(cited=(0,))))
    expected = list(range(100))
    story.accept(*expected)
    for number in expected[:59]:
        story.tell("on_value", "lead", story.id, number, "wrong")
    verdict = story.verdict()
    assert verdict.accepted_wrong_expected == pytest.approx(100 / 3)
    assert "expect" not in {violation.invariant for violation in verdict.violations}
    story.tell("on_value", "lead", story.id, 59, "wrong")
    assert story.broken().count("expect") == 1


def test_one_liar_alone_makes_nothing_stand(tmp_path: Path) -> None:
    story = Story(tmp_path, quorum=2, expect=Expectations(accepted_wrong="formula"))
    story.view.liars.add("c")
    story.good("keeper")
    grant = story.grant("c")
    story.log("keeper", grant, story.receipt(grant))
    story.accept()
    for number in range(4):
        story.tell("on_value", "keeper", story.id, number, "wrong")
    assert story.broken().count("expect") == 4


# -- logged errors -----------------------------------------------------------------------------------------


@pytest.fixture
def logs(tmp_path: Path) -> Any:
    current = ["a"]
    story = Story(tmp_path, machine=lambda: current[0])
    checker = find(story.checkers, LogChecker)
    checker.listen()
    checker.listen()
    yield story, checker, current
    checker.stop()
    for name in LOGGERS:
        assert not [one for one in logging.getLogger(name).handlers if type(one).__module__.startswith("p2pgrid.testing")]


def test_an_error_is_caught_with_its_machine_and_its_place(logs: Any) -> None:
    story, _, _ = logs
    logging.getLogger("p2pgrid.services.tasks").warning("nothing")
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("p2pgrid.services.tasks").exception("bug in %s", "leading:tick")
    (violation,) = story.verdict().violations
    assert (violation.invariant, violation.where) == ("log", "a")
    assert "bug in leading:tick" in violation.text
    assert "KeyError" in violation.text
    assert "test_sim_checkers_work.py:" in violation.text


@pytest.mark.parametrize(
    ("machine", "later_s", "text", "caught"),
    [
        ("a", 0, "No space left on device", False),
        ("a", 79, "the disk is full", False),
        ("a", 81, "the disk is full", True),
        ("b", 0, "the disk is full", True),
        ("", 0, "the disk is full", True),
        ("a", 0, "list index out of range", True),
    ],
)
def test_only_a_cause_on_its_own_machine_excuses_an_error(logs: Any, machine: str, later_s: float, text: str, caught: bool) -> None:
    story, checker, current = logs
    checker.expect("a", "full-disk", 20.0)
    story.view.now += later_s
    current[0] = machine
    logging.getLogger("p2pgrid.store").error(text)
    assert story.broken() == ["log"] * caught
    assert checker.excused == (not caught)


def test_what_asyncio_could_not_give_to_anybody_is_caught(logs: Any) -> None:
    story, checker, _ = logs
    checker.on_loop_error("b", {"message": "Task exception was never retrieved", "exception": ValueError("no")})
    logging.getLogger("asyncio").error("Task was destroyed but it is pending!")
    assert [(violation.where, violation.invariant) for violation in story.verdict().violations] == [("b", "log"), ("a", "log")]


def test_a_lead_that_is_closed_when_all_is_over_excuses_nothing(tmp_path: Path) -> None:
    story = Story(tmp_path, settle_s=90.0)
    story.whole("lead")
    story.accept()
    story.tell("on_calm")
    story.view.now += 91.0
    story.tell("at_end")
    story.tell("on_close", "lead", story.view.nodes["lead"])
    assert "L1" in story.broken()


def test_a_path_that_was_written_by_a_node_whose_end_failed_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path, outside=lambda: ["/elsewhere"])
    assert story.broken() == ["S8"]


@pytest.mark.parametrize(("loss", "found", "caught"), [(0.0, 59, True), (0.01, 59, False), (0.01, 57, True)])
def test_where_datagrams_are_lost_a_lookup_may_miss_somebody_now_and_then(tmp_path: Path, loss: float, found: int, caught: bool) -> None:
    story = Story(tmp_path, loss=loss)
    checker = find(story.checkers, LookupChecker)
    checker.lookups, checker.exact, checker.due, checker.found = 12, 11, 60, found
    assert story.broken() == (["L2"] if caught else [])
