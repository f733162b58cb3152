"""L3 of job logs, and what holders really have: keepers that lack records, copies that rot, records that were forged."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.dht.datagram import REPLY, pack_payload, seal_datagram
from p2pgrid.dht.messages import Values
from p2pgrid.dht.records import Record, RecordKind
from p2pgrid.model.blob import blob_id_of
from p2pgrid.testing.observe import OTHER_BYTES
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Envelope, seal
from tests.unit.testing.checker_stories import EPOCH_MS, GRID, KEYS, Story, public

CONTENT = b"what somebody put"
FILE = blob_id_of(CONTENT)

# -- keepers -----------------------------------------------------------------------------


def _kept(tmp_path: Path, count: int, *, over: bool = True) -> Story:
    """A job of which the keeper has only so many records."""
    story = Story(tmp_path)
    records = story.good()
    story.log("keeper", *records[:count])
    story.accept(until_end=False)
    if over:
        story.log("lead", story.settled(4, 0, (0, 1, 4, 9)))
        if count > 7:
            story.log("keeper", story.settled(4, 0, (0, 1, 4, 9)))
    story.tell("on_calm")
    for number, value in enumerate((0, 1, 4, 9)):
        story.tell("on_value", "lead", story.id, number, value)
    return story


@pytest.mark.parametrize(("count", "caught"), [(99, []), (7, ["L3"]), (3, ["L3"])])
def test_a_keeper_that_lacks_what_its_lead_has_is_caught(tmp_path: Path, count: int, caught: list[str]) -> None:
    story = _kept(tmp_path, count)
    story.tell("at_end")
    assert story.broken() == caught


def test_what_came_after_the_faults_may_be_on_its_way(tmp_path: Path) -> None:
    story = _kept(tmp_path, 99)
    story.log("lead", story.grant("a"))
    story.tell("at_end")
    assert story.broken() == []


def test_nothing_is_asked_of_a_keeper_that_is_gone(tmp_path: Path) -> None:
    story = _kept(tmp_path, 3)
    story.crash("keeper")
    story.tell("at_end")
    assert "L3" not in story.broken()


def test_a_job_that_goes_on_with_too_few_keepers_is_caught(tmp_path: Path) -> None:
    story = _kept(tmp_path, 99, over=False)
    story.tell("at_end")
    assert story.broken() == []
    story.view.now += 60
    story.tell("at_end")
    assert "L3" in story.broken()


def test_a_keeper_that_was_replaced_owes_nothing(tmp_path: Path) -> None:
    story = _kept(tmp_path, 3)
    story.log("lead", story.keepers(names=("d",), epoch=1))
    story.tell("at_end")
    assert story.broken() == []


# -- readers -----------------------------------------------------------------------------


def test_a_value_that_is_told_before_it_is_on_the_disk_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    one, two = story.grant("a"), story.grant("b")
    first, second = story.receipt(one), story.receipt(two)
    story.log("lead", *story.head(), one, two, first, story.payload((0, 1, 4, 9)), second)
    lines = story.log("lead", story.decision([first, second]), durable=False)
    story.accept()
    story.tell("on_value", "lead", story.id, 0, 0)
    assert story.broken() == ["S5"]
    story.tell("on_log_durable", "lead", story.id, lines, "")
    story.tell("on_value", "lead", story.id, 1, 1)
    assert story.broken() == ["S5"]


# -- blobs --------------------------------------------------------------------------------


def _stored(story: Story, *names: str) -> list[Path]:
    paths = [story.view.nodes[name].blobs.keep(CONTENT) for name in names]
    story.tell("on_stored", "a", FILE, len(CONTENT), [public(name) for name in names])
    return paths


def test_a_put_that_nobody_holds_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _stored(story)
    assert story.broken() == ["S5"]


def test_a_blob_with_other_bytes_after_a_restart_is_caught(tmp_path: Path) -> None:
    story = Story(tmp_path)
    paths = _stored(story, "a", "b")
    paths[0].write_bytes(CONTENT[:-1] + b"?")
    for name in "ab":
        story.start(name, story.crash(name))
    story.tell("on_calm")
    story.tell("on_read", "d", FILE, True, "")
    story.tell("at_end")
    assert story.broken() == ["S5"]


def test_a_reader_that_is_given_other_bytes_is_never_bad_luck(tmp_path: Path) -> None:
    story = Story(tmp_path)
    for path, name in zip(_stored(story, "a", "b"), "ab", strict=True):
        path.write_bytes(CONTENT[:-1] + b"?")
        story.tell("on_disk_damage", name, str(path))
    story.tell("on_calm")
    story.tell("on_read", "d", FILE, False, OTHER_BYTES)
    story.tell("at_end")
    assert story.broken() == ["S5"]


@pytest.mark.parametrize(("rotten", "lost", "unlucky"), [("ab", 0, 1), ("a", 1, 0)])
def test_a_file_is_unlucky_only_when_every_copy_rots(tmp_path: Path, rotten: str, lost: int, unlucky: int) -> None:
    story = Story(tmp_path)
    for path, name in zip(_stored(story, "a", "b"), "ab", strict=True):
        if name in rotten:
            path.write_bytes(CONTENT[:-1] + b"?")
            story.tell("on_disk_damage", name, str(path))
    story.tell("on_calm")
    story.tell("on_read", "d", FILE, False, "nobody holds it")
    story.tell("at_end")
    verdict = story.verdict()
    assert (verdict.lost, verdict.unlucky, len(verdict.violations)) == (lost, unlucky, lost)


# -- records of the DHT ----------------------------------------------------------------------


def _served(story: Story, raw: bytes, address: str = "10.0.0.1") -> None:
    flags, packed = pack_payload(REPLY, b"r" * 20, encode(Values((raw,))))
    data = seal_datagram(KEYS["b"], GRID, public("c"), flags, EPOCH_MS, packed)
    story.tell("on_datagram", data, (address, 1), ("10.0.0.2", 2))


def _record(seq: int) -> bytes:
    return seal(Record(EPOCH_MS + 1_800_000, RecordKind.BLOB_HOLDER, b"k" * 20, seq, b"", b"v"), KEYS["a"], GRID).raw


def test_a_record_whose_signature_does_not_hold_is_caught_where_it_is_served(tmp_path: Path) -> None:
    story = Story(tmp_path)
    body = encode(Record(EPOCH_MS + 1_800_000, RecordKind.BLOB_HOLDER, b"k" * 20, 7, b"", b"v"))
    _served(story, encode(Envelope(Record.TYPE, body, public("a"), b"s" * 64)))
    assert story.broken() == ["S3"]


def test_a_forged_record_is_caught_where_it_is_served(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.facts.poison(_record(7))
    _served(story, _record(7))
    assert story.broken() == ["S3"]


def test_a_datagram_from_elsewhere_is_not_believed_to_be_of_its_author(tmp_path: Path) -> None:
    story = Story(tmp_path)
    _served(story, _record(7))
    _served(story, _record(6), "10.200.0.1")
    assert story.broken() == []
    _served(story, _record(6))
    assert story.broken() == ["S6"]
