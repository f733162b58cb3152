"""S5 and S6: what survives, what is lost or unlucky, and what holders of records serve."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.dht.datagram import REPLY, REQUEST, pack_payload, seal_datagram
from p2pgrid.dht.messages import FindNode, Nodes, Values
from p2pgrid.dht.records import Record, RecordKind
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.store.ledger import JobLog
from p2pgrid.testing.checkers import Objects
from p2pgrid.testing.checkers.disklog import read_log
from p2pgrid.testing.checkers.objects import struck_chance, unlucky_bound
from p2pgrid.testing.checkers.records import records_in
from p2pgrid.testing.plans.scenario import Expectations
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Signed, seal
from tests.unit.testing.checker_stories import EPOCH_MS, GRID, KEYS, Story, public, record_of

JOB = JobId(StatementId(b"j" * 32))
CONTENT = b"what somebody put"
FILE = blob_id_of(CONTENT)


# -- logs on disk ------------------------------------------------------------------------


def _written(path: Path, records: list[tuple[int, bytes]]) -> Path:
    log, _ = JobLog.open(path, JOB, random.Random(1).randbytes)
    log.append(records)
    return path


def test_a_log_is_read_from_its_documented_form(tmp_path: Path) -> None:
    records = [(1, b"job"), (5, b""), (9, bytes(5000)), (3, b"grant")]
    path = _written(tmp_path / "x.log", records)
    assert read_log(path, JOB) == records
    assert read_log(path, b"k" * 32) == []
    assert read_log(tmp_path / "none.log", JOB) == []


@pytest.mark.parametrize("back", [1, 3, 20, 60, 5100])
def test_one_flipped_byte_costs_one_record(tmp_path: Path, back: int) -> None:
    records = [(1, b"job"), (9, bytes(5000)), (3, b"grant"), (4, b"a receipt of some length")]
    path = _written(tmp_path / "x.log", records)
    raw = bytearray(path.read_bytes())
    raw[-back] ^= 0x40
    path.write_bytes(raw)
    found = read_log(path, JOB)
    assert len(found) == 3
    assert [record for record in records if record in found] == found


def test_a_torn_tail_hides_nothing_before_it(tmp_path: Path) -> None:
    path = _written(tmp_path / "x.log", [(1, b"job"), (3, b"grant")])
    path.write_bytes(path.read_bytes()[:-2])
    assert read_log(path, JOB) == [(1, b"job")]


# -- what comes back after a restart -----------------------------------------------------------


def test_a_node_that_comes_back_with_everything_passes(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    node = story.crash("lead")
    story.start("lead", node)
    assert story.broken() == []


def test_a_durable_record_that_is_gone_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = [record_of(record) for record in story.good()]
    node = story.crash("lead")
    (tmp_path / "lead" / f"{story.id.hex()}.log").unlink()
    story.write("lead", records[:-1])
    story.start("lead", node)
    assert story.broken() == ["S5"]


def test_a_record_that_was_not_durable_may_be_gone(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    story.log("lead", story.grant("c"), durable=False)
    node = story.crash("lead")
    story.start("lead", node)
    assert story.broken() == []


def test_what_was_lost_and_is_handed_over_again_is_no_replay(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    grant = story.grant("c")
    story.log("lead", grant, durable=False)
    node = story.crash("lead")
    story.start("lead", node)
    story.log("lead", grant)
    assert story.broken() == []


def test_a_receipt_does_not_count_on_a_grant_that_was_lost_with_the_power(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    grant = story.grant("c")
    story.log("lead", grant, durable=False)
    node = story.crash("lead")
    story.start("lead", node)
    story.log("lead", story.receipt(grant))
    assert story.broken() == ["S1"]


def test_a_flipped_byte_excuses_one_record_of_its_own_log(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = [record_of(record) for record in story.good()]
    path = tmp_path / "lead" / f"{story.id.hex()}.log"
    story.tell("on_disk_damage", "lead", str(path))
    node = story.crash("lead")
    path.unlink()
    story.write("lead", records[:5] + records[6:])
    story.start("lead", node)
    assert story.broken() == []
    story.crash("lead")
    path.unlink()
    story.write("lead", records[:3])
    story.start("lead", node)
    assert story.broken() == ["S5"]


def test_a_log_that_stands_on_nothing_after_a_restart_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = [record_of(record) for record in story.good()]
    lines = [*records[:4], records[-1]]
    story.crash("lead")
    (tmp_path / "lead" / f"{story.id.hex()}.log").unlink()
    story.write("lead", lines)
    story.start("lead")
    assert set(story.broken()) == {"S1", "S5"}


def test_after_a_failed_write_the_log_is_what_is_on_the_disk(tmp_path: Path) -> None:
    story = Story(tmp_path)
    records = story.good()
    for record in records:
        story.log("keeper", record)
    grant = story.grant("c")
    lines = story.log("keeper", grant, durable=False)
    story.tell("on_log_durable", "keeper", story.id, lines, "the disk is full")
    story.log("keeper", grant)
    assert story.broken() == []
    lost = story.grant("d")
    lines = story.log("keeper", lost, durable=False)
    story.tell("on_log_durable", "keeper", story.id, lines, "the disk is full")
    story.view.now += 5.0
    story.log("keeper", story.receipt(lost))
    assert story.broken() == ["S1"]


def test_a_machine_that_comes_back_as_somebody_else_owes_nothing(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good("a")
    node = story.crash("a")
    (tmp_path / "a" / f"{story.id.hex()}.log").unlink()
    node.key = KEYS["d"]
    story.start("a", node)
    assert story.broken() == []


def test_a_log_that_was_deleted_is_not_missed(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.good()
    story.tell("on_log_removed", "lead", story.id)
    node = story.crash("lead")
    (tmp_path / "lead" / f"{story.id.hex()}.log").unlink()
    story.start("lead", node)
    assert story.broken() == []


# -- files and results ----------------------------------------------------------------------------


def _stored(story: Story, *names: str) -> None:
    for name in names:
        story.view.nodes[name].blobs.keep(CONTENT)
    story.tell("on_stored", "a", FILE, 100, [public(name) for name in names])


def test_a_file_that_is_read_at_the_end_is_neither_lost_nor_unlucky(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _stored(story, "a", "b", "c")
    story.tell("on_calm")
    story.tell("on_read", "d", FILE, False, "not yet")
    story.tell("on_read", "d", FILE, True, "")
    story.tell("at_end")
    verdict = story.verdict()
    assert (verdict.violations, verdict.files, verdict.lost, verdict.unlucky) == ([], 1, 0, 0)


@pytest.mark.parametrize("told", [[], [(True, "too early")], [(None, ""), (False, "no")], [(None, ""), (True, ""), (False, "other bytes")]])
def test_a_file_with_a_living_holder_that_cannot_be_read_is_lost(tmp_path: Path, told: list[tuple[bool | None, str]]) -> None:
    story = Story(tmp_path)
    _stored(story, "a", "b", "c")
    story.crash("a")
    for ok, text in told:
        story.tell(*(("on_calm",) if ok is None else ("on_read", "d", FILE, ok, text)))
    story.tell("on_calm") if (None, "") not in told else None
    story.tell("at_end")
    verdict = story.verdict()
    assert ([violation.invariant for violation in verdict.violations], verdict.lost) == (["S5"], 1)


def test_a_file_whose_holders_were_all_struck_is_unlucky(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _stored(story, "a", "b", "c")
    for name in "abc":
        story.crash(name)
    story.tell("on_calm")
    story.tell("at_end")
    verdict = story.verdict()
    assert (verdict.violations, verdict.lost, verdict.unlucky) == ([], 0, 1)
    assert verdict.unlucky_expected == pytest.approx(1 / 20)


def test_more_unlucky_files_than_chance_explains_are_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    for number in range(4):
        story.tell("on_stored", "a", bytes([number]) * 32, 100, [public(name) for name in "abc"])
    for name in "abc":
        story.crash(name)
    story.tell("at_end")
    assert story.broken() == ["expect"]


def test_a_scenario_may_forbid_unlucky_files(tmp_path: Path) -> None:
    story = Story(tmp_path, expect=Expectations(unlucky_max=0))
    _stored(story, "a")
    story.crash("a")
    story.tell("at_end")
    assert story.broken() == ["expect"]


def test_an_acknowledged_blob_that_is_gone_after_a_restart_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _stored(story, "a", "b", "c")
    node = story.crash("a")
    story.start("a", node)
    node = story.crash("b")
    node.blobs.held.clear()
    story.start("b", node)
    story.tell("on_calm")
    story.tell("on_read", "d", FILE, True, "")
    story.tell("at_end")
    assert story.broken() == ["S5"]


def test_results_that_a_living_node_holds_must_be_given_to_somebody(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.log("keeper", *story.good())
    story.accept()
    story.crash("lead")
    story.tell("on_calm")
    for number, value in enumerate((0, 1, 4)):
        story.tell("on_value", "keeper", story.id, number, value)
    story.tell("at_end")
    verdict = story.verdict()
    assert ([violation.invariant for violation in verdict.violations], verdict.lost) == (["S5"], 1)


@pytest.mark.parametrize("gone", [["lead"], ["lead", "keeper"]])
def test_results_are_read_or_their_keepers_were_struck(tmp_path: Path, gone: list[str]) -> None:
    story = Story(tmp_path)
    story.log("keeper", *story.good())
    story.accept()
    for name in gone:
        story.crash(name)
    story.tell("on_calm")
    for number, value in enumerate((0, 1, 4, 9) if gone == ["lead"] else ()):
        story.tell("on_value", "keeper", story.id, number, value)
    story.tell("at_end")
    verdict = story.verdict()
    assert (verdict.violations, verdict.lost, verdict.unlucky) == ([], 0, len(gone) - 1)


@pytest.mark.parametrize(("gone", "lost", "unlucky"), [("ac", 0, 1), ("a", 1, 0)])
def test_results_whose_blobs_were_all_struck_are_unlucky(tmp_path: Path, gone: str, lost: int, unlucky: int) -> None:
    story = Story(tmp_path, quorum=1)
    grant = story.grant("a")
    receipt = story.receipt(grant, holders=(public("c"),))
    story.log("lead", *story.head(), grant, receipt, story.decision([receipt], story.entry(cited=(0,))))
    story.accept()
    for name in gone:
        story.crash(name)
    story.tell("on_calm")
    story.tell("at_end")
    verdict = story.verdict()
    assert (verdict.lost, verdict.unlucky) == (lost, unlucky)


def test_objects_count_by_the_formula() -> None:
    nodes = [bytes([number]) * 32 for number in range(10)]
    files = Objects()
    rng = random.Random(4)
    for number in range(2000):
        files.add(number.to_bytes(4, "big"), rng.sample(nodes, 3), nodes)
    files.struck(*nodes[:3])
    files.struck(*nodes[3:5], nodes[0])
    assert files.unlucky_expected == pytest.approx(2000 * 10 / 120)
    assert len(files.unlucky) == pytest.approx(files.unlucky_expected, abs=4 * files.unlucky_expected**0.5)
    assert all(files.survivors(known) for known in files.ids() if known not in set(files.unlucky))


def test_with_repair_each_blow_stands_for_itself() -> None:
    nodes = [bytes([number]) * 32 for number in range(10)]
    one = Objects(repair=True)
    one.add(b"x", nodes[:2], nodes)
    one.struck(*nodes[4:6])
    one.struck(*nodes[6:8])
    assert one.unlucky_expected == pytest.approx(1 / 45 + 1 / 28)


@pytest.mark.parametrize(("copies", "struck", "nodes", "chance"), [(3, 2, 9, 0), (3, 3, 3, 1), (1, 2, 8, 0.25), (2, 5, 5, 1), (3, 1, 2, 0)])
def test_the_chance_of_being_struck(copies: int, struck: int, nodes: int, chance: float) -> None:
    assert struck_chance(copies, struck, nodes) == pytest.approx(chance)
    assert unlucky_bound(chance) >= chance + 2


# -- S6 ----------------------------------------------------------------------------------------------


def _record(seq: int, expires_ms: int = EPOCH_MS + 1_800_000, by: str = "a") -> Signed[Any]:
    return seal(Record(expires_ms, RecordKind.BLOB_HOLDER, b"k" * 20, seq, b"", b"v"), KEYS[by], GRID)


def _serve(story: Story, *records: Signed[Any], by: str = "b", message: Any = None, **payload: Any) -> bytes:
    body = encode(message or Values(tuple(record.raw for record in records)))
    flags, packed = pack_payload(REPLY, b"r" * 20, body, **payload)
    data = seal_datagram(KEYS[by], GRID, public("c"), flags, EPOCH_MS, packed)
    story.tell("on_datagram", data, ("10.0.0.1", 1), ("10.0.0.2", 2))
    return data


def test_records_are_found_behind_whatever_a_datagram_carries(tmp_path: Path) -> None:
    story, record = Story(tmp_path), _record(7)
    shapes: list[dict[str, Any]] = [{}, {"cookie": b"c" * 8}, {"credential": b"x" * 300}, {"cookie": b"c" * 8, "payload_bytes_min": 900}]
    for shape in shapes:
        assert records_in(_serve(story, record, **shape)) == [record.raw]
    assert records_in(_serve(story, message=Nodes((b"n" * 38,)))) == []
    flags, packed = pack_payload(REQUEST, b"r" * 20, encode(FindNode(b"t" * 20)))
    assert records_in(seal_datagram(KEYS["a"], GRID, public("c"), flags, EPOCH_MS, packed)) == []
    for size in range(0, 200, 7):
        assert records_in(_serve(story, record, credential=b"x" * 300)[:size]) == []
    assert story.broken() == []


def test_a_sequence_that_falls_at_one_holder_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _serve(story, _record(7))
    _serve(story, _record(6), by="c")
    _serve(story, _record(6, by="d"))
    _serve(story, _record(8))
    assert story.broken() == []
    _serve(story, _record(7))
    assert story.broken() == ["S6"]


def test_a_holder_that_starts_again_may_begin_with_an_older_record(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _serve(story, _record(7))
    story.start("b", story.crash("b"))
    _serve(story, _record(6))
    assert story.broken() == []


@pytest.mark.parametrize(("late_ms", "skew_s", "caught"), [(-1, 0, False), (1, 0, True), (1, -10, False), (301_000, -900, True)])
def test_a_record_that_is_served_after_its_expiry_is_caught(tmp_path: Path, late_ms: int, skew_s: int, caught: bool) -> None:
    story = Story(tmp_path)
    story.view.now = 1000.0
    story.view.skew_s["b"] = skew_s
    _serve(story, _record(7, EPOCH_MS + 1_000_000 - late_ms))
    assert story.broken() == (["S6"] if caught else [])


def test_what_strangers_and_liars_serve_is_not_judged(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.view.liars.add("b")
    _serve(story, _record(7))
    _serve(story, _record(6))
    _serve(story, _record(1, EPOCH_MS - 1))
    assert story.broken() == []
