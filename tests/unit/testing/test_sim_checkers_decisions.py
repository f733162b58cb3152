"""S1, S2, S3 and S9: a good history passes, and each way of breaking it is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from p2pgrid.model import log as kinds
from p2pgrid.model.ids import GridId
from p2pgrid.model.job import Derive
from p2pgrid.model.work import DISAGREED, RAISED, UnitRange
from p2pgrid.testing.checkers.decisions import values_fault
from p2pgrid.testing.checkers.levels import Levels
from p2pgrid.testing.checkers.weighing import distinct
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Signed, seal
from tests.unit.testing.checker_stories import EPOCH_MS, GRID, KEYS, SUBMITTER, Story, digest_of, public

Records = list[Any]


def test_a_good_history_passes_at_lead_and_keeper(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    story.log("keeper", *records)
    story.log("lead", story.settled(4, 0, (0, 1, 4, 9)))
    story.tell("on_value", "lead", story.id, 3, 9)
    assert story.broken() == []


def test_disagreement_misses_and_dissent_are_good_when_they_are_told(tmp_path: Path) -> None:
    story = Story(tmp_path)
    one, two, three, four = (story.grant(name) for name in "abcd")
    x, y, z = story.receipt(one), story.receipt(two, (0, 1, 4, 8)), story.receipt(three)
    w = story.receipt(four)
    known = [*story.head(), one, two, three, four, x, y, z, w]
    good = story.decision([x, y, z, w], story.entry((0, 1, 4), (0, 1, 2)), story.entry((9,), (0, 2, 3), start=3, dissent=(1,)), by="lead")
    story.log("lead", *known, good)
    other = [story.grant(name, UnitRange(1, 0, 1)) for name in "ab"]
    u, v = story.receipt(other[0], (1,)), story.receipt(other[1], (2,))
    gone = story.grant("c", UnitRange(1, 1, 1))
    miss = story.receipt(gone, (7,), outcomes=b"\x03")
    story.log("lead", *other, gone, u, v, miss)
    story.log("lead", story.decision([u, v], story.entry((1,), (0, 1), batch=1, outcome=DISAGREED)))
    story.log("lead", story.decision([miss], story.entry((7,), (0,), batch=1, start=1, outcome=3)))
    assert story.broken() == []


# -- S1 -------------------------------------------------------------------------------


def _two(story: Story, **first: Any) -> tuple[Records, Signed[Any], Signed[Any]]:
    one, two = story.grant("a", **first), story.grant("b")
    x, y = story.receipt(one), story.receipt(two)
    return [*story.head(), one, two], x, y


def no_grant(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head[:2], head[3], x, y, story.decision([x, y])]


def grant_behind(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head[:2], head[3], x, head[2], y, story.decision([x, y])]


def grant_by_a_worker(story: Story) -> Records:
    return [*story.head(), story.grant("a", by="b")]


def grant_by_a_keeper_in_the_first_epoch(story: Story) -> Records:
    return [*story.head(), story.grant("a", by="keeper")]


def grant_outside_the_job(story: Story) -> Records:
    return [*story.head(), story.grant("a", UnitRange(1, 2, 3))]


def receipt_of_somebody_else(story: Story) -> Records:
    grant = story.grant("a")
    return [*story.head(), grant, story.receipt(grant, by="b")]


def receipt_for_more_than_was_granted(story: Story) -> Records:
    grant = story.grant("a", UnitRange(0, 0, 3))
    return [*story.head(), grant, story.receipt(grant, ranges=(UnitRange(0, 0, 4),))]


def receipt_with_short_columns(story: Story) -> Records:
    grant = story.grant("a")
    return [*story.head(), grant, story.receipt(grant, digests=bytes(32))]


def too_few(story: Story) -> Records:
    head, x, _ = _two(story)
    return [*head, x, story.decision([x], story.entry(cited=(0,)))]


def one_group_twice(story: Story) -> Records:
    one, two = story.grant("a", group=b"net"), story.grant("b", group=b"net")
    x, y = story.receipt(one), story.receipt(two)
    return [*story.head(), one, two, x, y, story.decision([x, y])]


def one_worker_twice(story: Story) -> Records:
    one, two = story.grant("a"), story.grant("a", group=b"other")
    x, y = story.receipt(one), story.receipt(two)
    return [*story.head(), one, two, x, y, story.decision([x, y])]


def dissent_without_one_more(story: Story) -> Records:
    head, x, y = _two(story)
    three = story.grant("c")
    z = story.receipt(three, (0, 1, 4, 8))
    return [*head, three, x, y, z, story.decision([x, y, z], story.entry(cited=(0, 1), dissent=(2,)))]


def receipts_that_differ(story: Story) -> Records:
    one, two = story.grant("a"), story.grant("b")
    x, y = story.receipt(one), story.receipt(two, (0, 1, 4, 8))
    return [*story.head(), one, two, x, y, story.decision([x, y])]


def another_root(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head, x, y, story.decision([x, y], story.entry((1, 0, 4, 9)))]


def another_outcome(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head, x, y, story.decision([x, y], story.entry(outcome=RAISED))]


def receipts_that_do_not_cover(story: Story) -> Records:
    one, two = story.grant("a", UnitRange(0, 0, 2)), story.grant("b", UnitRange(0, 0, 2))
    x, y = story.receipt(one, (0, 1)), story.receipt(two, (0, 1))
    return [*story.head(), one, two, x, y, story.decision([x, y])]


def receipt_behind_the_decision(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head, x, story.decision([x, y]), y]


def decision_by_a_worker(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head, x, y, story.decision([x, y], by="c")]


def decision_by_a_keeper_in_the_first_epoch(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head, x, y, story.decision([x, y], by="keeper")]


def one_receipt_cited_twice(story: Story) -> Records:
    head, x, _ = _two(story)
    return [*head, x, story.decision([x], story.entry(cited=(0, 0)))]


def disagreed_where_all_agree(story: Story) -> Records:
    head, x, y = _two(story)
    return [*head, x, y, story.decision([x, y], story.entry(outcome=DISAGREED))]


def payload_of_nobody(story: Story) -> Records:
    return [*story.head(), story.payload((1, 2))]


def payload_with_other_values(story: Story) -> Records:
    grant = story.grant("a")
    honest = story.receipt(grant)
    wrong = story.payload((0, 1, 4, 8))
    lied = story.receipt(grant, payload=blake3(wrong).digest())
    assert lied.id != honest.id
    return [*story.head(), grant, lied, wrong]


def keepers_by_somebody_else(story: Story) -> Records:
    return [story.job, story.keepers(key=KEYS["a"])]


def log_without_its_job(story: Story) -> Records:
    return [story.keepers()]


BROKEN_S1: list[Callable[[Story], Records]] = [
    no_grant,
    grant_behind,
    grant_by_a_worker,
    grant_by_a_keeper_in_the_first_epoch,
    grant_outside_the_job,
    receipt_of_somebody_else,
    receipt_for_more_than_was_granted,
    receipt_with_short_columns,
    too_few,
    one_group_twice,
    one_worker_twice,
    dissent_without_one_more,
    receipts_that_differ,
    another_root,
    another_outcome,
    receipts_that_do_not_cover,
    receipt_behind_the_decision,
    decision_by_a_worker,
    decision_by_a_keeper_in_the_first_epoch,
    one_receipt_cited_twice,
    disagreed_where_all_agree,
    payload_of_nobody,
    payload_with_other_values,
    keepers_by_somebody_else,
    log_without_its_job,
]


@pytest.mark.parametrize("bad", BROKEN_S1, ids=lambda bad: bad.__name__)
def test_a_decision_that_does_not_stand_is_caught(tmp_path: Path, bad: Callable[[Story], Records]) -> None:
    story = Story(tmp_path)
    story.log("lead", *bad(story), durable=False)
    assert set(story.broken()) == {"S1"}


def test_what_was_in_no_log_but_another_nodes_does_not_help(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    story.log("keeper", *records[:2], *records[4:])  # The grants are missing here.
    assert set(story.broken()) == {"S1"}


def test_a_liars_own_log_is_not_judged(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.view.liars.add("lead")
    story.log("lead", *too_few(story), durable=False)
    assert story.broken() == []


def test_keepers_may_speak_from_the_second_epoch_on(tmp_path: Path) -> None:
    story = Story(tmp_path)
    one, two = story.grant("a", by="keeper", epoch=1), story.grant("b", by="keeper", epoch=1)
    x, y = story.receipt(one), story.receipt(two)
    story.log("keeper", *story.head(), story.leads("keeper", 1), one, two, x, y, story.decision([x, y], by="keeper", epoch=1))
    assert story.broken() == []


@pytest.mark.parametrize(
    ("parties", "most"),
    [
        (["aa", "bb", "cc"], 3),
        (["ax", "bx", "cy"], 2),
        (["ax", "ay", "az"], 1),
        (["ax", "ay", "az", "bz", "cz"], 2),
        (["ax", "bx", "by", "cy", "cz"], 3),
        ([], 0),
    ],
)
def test_distinct_counts_parties_that_share_neither_key_nor_group(parties: list[str], most: int) -> None:
    assert distinct([(party[:1].encode(), party[1:].encode()) for party in parties]) == most


def test_values_are_compared_as_replicas_are(tmp_path: Path) -> None:
    story = Story(tmp_path)
    grant = story.grant("a")
    failure = {"type": "ValueError", "message": "no", "traceback": "here or there"}
    digests = digest_of(1) + digest_of(("ValueError", "no")) + b"b" * 32
    receipt = story.receipt(grant, (1, failure, None), outcomes=bytes([0, 1, 0]), digests=digests).body
    assert values_fault(receipt, story.payload((1, failure, None))) == ""
    assert values_fault(receipt, story.payload((2, failure, None)))
    assert values_fault(receipt, story.payload((1, {**failure, "message": "yes"}, None)))
    assert values_fault(receipt, story.payload((1, failure)))
    assert values_fault(receipt, b"\xff")


# -- S9 ----------------------------------------------------------------------------------


def test_a_unit_decided_twice_in_one_log_is_caught_and_counted(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    one, two = story.grant("c"), story.grant("d")
    x, y = story.receipt(one), story.receipt(two)
    story.log("lead", one, two, x, y, story.decision([x, y], story.entry((0, 1))))
    verdict = story.verdict()
    assert {violation.invariant for violation in verdict.violations} == {"S9"}
    assert verdict.accepted_twice == 2


def test_two_leads_may_decide_alike(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    one, two = story.grant("c", by="keeper", epoch=1), story.grant("d", by="keeper", epoch=1)
    x, y = story.receipt(one), story.receipt(two)
    story.log("lead", one, two, x, y, story.decision([x, y], by="keeper", epoch=1))
    verdict = story.verdict()
    assert (verdict.violations, verdict.accepted_twice) == ([], 0)


def test_a_lead_that_decides_again_what_it_knows_is_caught_and_counted(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    one, two = story.grant("c", by="keeper", epoch=1), story.grant("d", by="keeper", epoch=1)
    x, y = story.receipt(one), story.receipt(two)
    story.log("keeper", *records, story.leads("keeper", 1), one, two, x, y, story.decision([x, y], by="keeper", epoch=1))
    verdict = story.verdict()
    assert {violation.invariant for violation in verdict.violations} == {"S9"}
    assert verdict.accepted_twice == 4


def test_a_keeper_may_name_others_and_so_may_they(tmp_path: Path) -> None:
    story = Story(tmp_path)
    second = story.keepers("keeper", ("a",), KEYS["keeper"], 1)
    third = story.keepers("a", ("b",), KEYS["a"], 2)
    one, two = story.grant("c", by="b", epoch=3), story.grant("d", by="b", epoch=3)
    x, y = story.receipt(one), story.receipt(two)
    story.log("b", *story.head(), second, third, story.leads("b", 3), one, two, x, y, story.decision([x, y], by="b", epoch=3))
    assert story.broken() == []


def test_a_set_by_somebody_whom_only_a_bad_set_names_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("keeper", *story.head(), story.keepers("d", ("c",), KEYS["d"], 1), story.keepers("c", ("b",), KEYS["c"], 2))
    assert story.broken() == ["S1", "S1"]


def test_the_first_epoch_belongs_to_leads_of_the_submitter(tmp_path: Path) -> None:
    story = Story(tmp_path)
    second = story.keepers("keeper", ("a",), KEYS["keeper"], 1)
    story.log("keeper", *story.head(), second, story.grant("b", by="keeper"))
    assert story.broken() == ["S1"]


def test_who_leases_though_its_own_log_says_that_others_lead_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head(), story.leads("keeper", 1), story.grant("a"))
    story.log("keeper", *story.head(), story.leads("keeper", 1), story.grant("b", by="keeper", epoch=1))
    assert story.broken() == ["S1"]


@pytest.mark.parametrize(("epoch", "caught"), [(0, ["S1"]), (1, [])])
def test_who_names_keepers_raises_the_epoch(tmp_path: Path, epoch: int, caught: list[str]) -> None:
    story = Story(tmp_path)
    story.log("keeper", *story.head(), story.keepers("keeper", ("a",), KEYS["keeper"], epoch))
    assert story.broken() == caught


@pytest.mark.parametrize(("done", "failed", "values"), [(5, 0, (0, 1, 4, 9)), (4, 1, (0, 1, 4, 9)), (4, 0, (0, 1, 4, 8))])
def test_an_end_that_does_not_add_up_is_caught(tmp_path: Path, done: int, failed: int, values: tuple[int, ...]) -> None:
    story = Story(tmp_path)
    story.good()
    story.log("lead", story.settled(done, failed, values))
    assert story.broken() == ["S9"]


def test_a_value_that_was_not_decided_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    story.tell("on_value", "lead", story.id, 4, 16)
    assert set(story.broken()) == {"S9"}


def test_a_value_from_a_node_without_the_decision_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    story.log("keeper", *records[:-1])
    story.tell("on_value", "keeper", story.id, 0, 0)
    assert story.broken() == ["S9"]


def test_a_value_of_an_unknown_job_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.tell("on_value", "lead", story.id, 0, 0)
    assert story.broken() == ["S9"]


def test_levels_are_those_of_the_signed_job(tmp_path: Path) -> None:
    plain = Levels(Story(tmp_path).job.body)
    assert (plain.units, plain.last_units, plain.place(5), plain.number(1, 1), plain.number(0, 3)) == (8, 8, (1, 1), 5, 3)
    tree = Levels(Story(tmp_path, derive=Derive(reduce=True, fan_in=3)).job.body)
    assert (tree.batch_units, tree.last_batch, tree.last_units) == ([4, 4, 1, 1, 1, 1], 5, 1)
    assert (tree.place(0), tree.number(5, 0), tree.number(0, 0)) == ((5, 0), 0, -1)
    both = Levels(Story(tmp_path, derive=Derive(reduce=True, finish=True)).job.body)
    assert (both.batch_units[2:], both.last_batch) == ([1, 1], 3)
    with pytest.raises(IndexError):
        plain.place(8)


# -- S2 -------------------------------------------------------------------------------------


def _other_answer(story: Story, by: str, epoch: int) -> Records:
    one, two = story.grant("c", by=by, epoch=epoch), story.grant("d", by=by, epoch=epoch)
    x, y = story.receipt(one, (0, 1, 4, 8)), story.receipt(two, (0, 1, 4, 8))
    named = [story.leads(by, epoch)] if epoch else []
    return [*named, one, two, x, y, story.decision([x, y], story.entry((0, 1, 4, 8)), by=by, epoch=epoch)]


def test_one_lead_that_decides_in_two_ways_is_caught_wherever_each_is_seen(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.view.liars.update("cd")
    story.good()
    story.log("keeper", *story.head(), *_other_answer(story, "lead", 0))
    assert "S2" in story.broken()


def test_two_answers_of_honest_workers_are_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    story.log("keeper", *story.head(), *_other_answer(story, "keeper", 1))
    assert story.broken() == ["S2"]


def test_two_answers_of_units_that_vary_are_no_fault_and_counted(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.accept(varies=True)
    story.good()
    story.log("keeper", *story.head(), *_other_answer(story, "keeper", 1))
    verdict = story.verdict()
    assert (verdict.violations, verdict.conflicts) == ([], 1)


def test_a_conflict_that_every_log_shows_is_no_violation(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.view.liars.update("cd")
    records, other = story.good(), _other_answer(story, "keeper", 1)
    story.log("keeper", *story.head(), *other, *records[2:])
    story.log("lead", *other)
    story.tell("at_end")
    assert story.broken() == []


def test_an_answer_that_a_log_holds_alone_at_the_end_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.view.liars.update("cd")
    story.good()
    story.log("keeper", *story.head(), *_other_answer(story, "keeper", 1))
    assert story.broken() == []
    story.tell("at_end")
    assert set(story.broken()) == {"S2"}


def test_a_reader_that_is_given_another_value_than_before_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    story.log("keeper", *records)
    story.tell("on_value", "lead", story.id, 1, 1)
    story.tell("on_value", "keeper", story.id, 1, 1)
    assert story.broken() == []
    story.tell("on_value", "keeper", story.id, 1, 2)
    assert story.broken() == ["S2"]


# -- S3 ---------------------------------------------------------------------------------------


def test_a_signature_that_does_not_hold_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    grant = story.grant("a")
    forged = grant.raw[:-1] + bytes([grant.raw[-1] ^ 1])
    story.log("lead", *story.head(), (kinds.GRANT, forged), durable=False)
    assert story.broken() == ["S3"]


def test_a_statement_of_another_grid_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    body = story.grant("a").body
    story.log("lead", *story.head(), seal(body, KEYS["lead"], GridId(b"h" * 32)), durable=False)
    assert story.broken() == ["S3"]


def test_a_statement_of_another_kind_in_its_place_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head(), (kinds.GRANT, story.cancel().raw), durable=False)
    assert set(story.broken()) == {"S3"}


@pytest.mark.parametrize(("late_s", "skew_s", "caught"), [(240, 0, False), (500, 0, True), (500, -240, False), (700, -240, True)])
def test_an_expired_statement_is_caught_beyond_the_allowed_skew(tmp_path: Path, late_s: int, skew_s: int, caught: bool) -> None:
    story = Story(tmp_path)
    story.view.now = 1000.0
    story.view.skew_s["lead"] = skew_s
    grant = story.grant("a", expires_ms=EPOCH_MS + (1000 - late_s) * 1000)
    story.log("lead", *story.head(), grant, durable=False)
    assert story.broken() == (["S3"] if caught else [])


def test_a_statement_of_another_job_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head(), story.seal(story.cancel().body.__class__(story.expires_ms, b"j" * 32), SUBMITTER), durable=False)
    assert story.broken() == ["S3"]


def test_a_statement_that_is_logged_again_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    story.log("lead", records[2])
    assert story.broken() == ["S3"]


def test_the_same_payload_of_two_workers_is_no_replay(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    story.log("lead", records[5])
    assert story.broken() == []


def test_a_registered_forgery_is_caught_in_any_log(tmp_path: Path) -> None:
    story = Story(tmp_path)
    grant = story.grant("a")
    story.facts.poison(grant.raw)
    story.log("keeper", *story.head(), grant)
    assert story.broken() == ["S3"]


@pytest.mark.parametrize(
    "record", [(77, b"x"), (kinds.GRANT, b"\xff"), (kinds.GRANT, encode(["grant", b"\x00", public("lead"), b"s" * 64]))]
)
def test_a_record_that_cannot_be_read_is_caught(tmp_path: Path, record: tuple[int, bytes]) -> None:
    story = Story(tmp_path)
    story.log("lead", *story.head(), record, durable=False)
    assert set(story.broken()) == {"S3"}


def test_the_grid_is_that_of_the_first_node(tmp_path: Path) -> None:
    assert Story(tmp_path).facts.grid == GRID
