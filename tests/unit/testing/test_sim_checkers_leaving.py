"""What the onlookers say of leads that pass a job on, and of machines that leave in the middle of their work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from p2pgrid.runtimes.tasks import BatchChunk
from p2pgrid.testing.checkers import Passing, find
from p2pgrid.testing.plans.scenario import Expectations
from tests.unit.testing.checker_stories import KEYS, Story

NIL = msgspec.Raw(b"\xc0")


def _leaving(story: Story, name: str, *, leaves: bool = True) -> None:
    story.view.nodes[name].stopping = SimpleNamespace(is_set=lambda: leaves)


@pytest.mark.parametrize(
    ("quorum", "leaves", "other", "caught"), [(1, True, "b", 1), (2, True, "b", 0), (1, False, "b", 0), (1, True, "a", 0)]
)
def test_a_unit_that_ended_where_somebody_left_and_is_begun_elsewhere_is_caught(
    tmp_path: Path, quorum: int, leaves: bool, other: str, caught: int
) -> None:
    story = Story(tmp_path, quorum=quorum, expect=Expectations(runs_again_max=0))
    story.accept(until_end=False)
    _leaving(story, "a", leaves=leaves)
    task = story.task()
    story.tell("on_units_start", "a", task)
    story.tell("on_chunk", "a", task, BatchChunk(0, b"\x00\x00", [NIL, NIL], 1))
    story.tell("on_units_start", other, story.task(first=1, units=1))
    node = story.view.nodes.pop("a")
    story.tell("on_close", "a", node)
    story.tell("at_end")
    assert story.broken().count("expect") == caught


@pytest.mark.parametrize(("leaves", "way"), [(True, "handed-over"), (False, "took-over")])
def test_a_lead_that_leaves_hands_over_and_one_that_is_gone_is_replaced(tmp_path: Path, leaves: bool, way: str) -> None:
    story = Story(tmp_path)
    story.log("keeper", *story.head())
    _leaving(story, "lead", leaves=leaves)
    second = story.keepers("keeper", ("a",), KEYS["keeper"], 1)
    story.log("keeper", second)
    story.log("lead", *story.head(), second)
    assert find(story.checkers, Passing).ways == {way: 1, "stepped-down": 1}


def test_a_lead_that_goes_on_after_a_restart_is_told_from_one_that_names_another_keeper(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head(), story.keepers(names=("a",), epoch=1))
    ways = find(story.checkers, Passing).ways
    assert not +ways
    story.start("lead", story.crash("lead"))
    story.log("lead", story.keepers(names=("b",), epoch=2))
    story.log("lead", story.keepers(names=("c",), epoch=3))
    assert +ways == {"resumed": 1}


def test_receipts_that_a_keeper_takes_are_counted(tmp_path: Path) -> None:
    story = Story(tmp_path)
    grant = story.grant("a")
    receipt = story.receipt(grant)
    story.log("keeper", *story.head(), grant, receipt)
    story.log("lead", *story.head(), grant, receipt)
    assert find(story.checkers, Passing).ways == {"receipts-kept": 1}
