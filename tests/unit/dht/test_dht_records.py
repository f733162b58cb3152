"""Rules of records and of the store that keeps them."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.dht.records import Record, RecordKind, RecordStore, SignedRecord, newest, open_record
from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.ids import GridId, dht_id_of_key, grid_id
from p2pgrid.model.limits import Limits
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.keys import SigningKey

GRID = grid_id(b"r" * 32, "records")
KEYS = [SigningKey(bytes([number]) * 32) for number in range(1, 7)]
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return NOW_MS + int(self.now_s * 1000)


def blob(
    key: SigningKey = KEYS[0], place: bytes = b"p" * 20, seq: int = 1, life_ms: int = HOUR_MS, value: bytes = b"v", grid: GridId = GRID
) -> SignedRecord:
    return seal(Record(NOW_MS + life_ms, RecordKind.BLOB_HOLDER, place, seq, b"", value), key, grid)


def node_record(key: SigningKey, seq: int = 1, life_ms: int = 600_000) -> SignedRecord:
    return seal(Record(NOW_MS + life_ms, RecordKind.NODE, dht_id_of_key(key.public), seq, b"", b"info"), key, GRID)


def store(time: Time | None = None, **limits: int) -> RecordStore:
    time = time or Time()
    return RecordStore(GRID, time.clock, time.wall_ms, Limits(**limits))


def test_what_was_put_is_found_byte_for_byte() -> None:
    subject = store()
    record = blob()
    subject.put(record.raw)
    assert [found.raw for found in subject.find(RecordKind.BLOB_HOLDER, b"p" * 20)] == [record.raw]
    assert subject.find(RecordKind.JOB_KEEPERS, b"p" * 20) == []


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(8)))
def test_the_highest_sequence_stays_whatever_the_order(order: list[int]) -> None:
    records = [blob(seq=seq // 2, value=bytes([seq])) for seq in range(8)]
    subject = store()
    for index in order:
        try:
            subject.put(records[index].raw)
        except RefusedError:
            continue
    (kept,) = subject.find(RecordKind.BLOB_HOLDER, b"p" * 20)
    assert kept.id == newest(records)[0].id
    assert kept.body.seq == 3


def test_a_lower_sequence_is_refused_as_stale() -> None:
    subject = store()
    subject.put(blob(seq=5).raw)
    with pytest.raises(RefusedError) as caught:
        subject.put(blob(seq=4).raw)
    assert caught.value.reason == "stale"


def test_fault_m_storing_again_does_not_extend_a_life() -> None:
    time = Time()
    subject = store(time)
    record = blob(life_ms=HOUR_MS)
    for _ in range(5):
        subject.put(record.raw)
        time.now_s += 700
    assert len(subject) == 1
    time.now_s = 3601
    assert subject.find(RecordKind.BLOB_HOLDER, b"p" * 20) == []
    assert len(subject) == 0
    with pytest.raises(IntegrityError):
        subject.put(record.raw)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (blob(life_ms=0), IntegrityError),
        (blob(life_ms=25 * HOUR_MS), IntegrityError),
        (blob(grid=grid_id(b"x" * 32, "other")), IntegrityError),
        (blob(value=b"v" * 800), MalformedError),
        (node_record(KEYS[0], life_ms=HOUR_MS), IntegrityError),
        (seal(Record(NOW_MS + 1000, RecordKind.NODE, b"k" * 20, 1, b"", b"v"), KEYS[0], GRID), IntegrityError),
        (seal(Record(NOW_MS + 1000, RecordKind.BLOB_HOLDER, b"short", 1, b"", b"v"), KEYS[0], GRID), MalformedError),
        (seal(Record(NOW_MS + 1000, RecordKind.BLOB_HOLDER, b"k" * 20, -1, b"", b"v"), KEYS[0], GRID), MalformedError),
        (seal(Record(NOW_MS + 1000, RecordKind.BLOB_HOLDER, b"k" * 20, 1, b"s" * 17, b"v"), KEYS[0], GRID), MalformedError),
        (seal(Record(NOW_MS + 1000, 9, b"k" * 20, 1, b"", b"v"), KEYS[0], GRID), MalformedError),  # type: ignore[arg-type]
    ],
    ids=["expired", "too long", "other grid", "too large", "node too long", "foreign id", "short key", "bad seq", "salt", "kind"],
)
def test_a_record_that_breaks_a_rule_is_refused(record: SignedRecord, error: type[Exception]) -> None:
    subject = store()
    with pytest.raises(error):
        subject.put(record.raw)
    assert len(subject) == 0


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(at: int, bit: int) -> None:
    raw = bytearray(blob().raw)
    raw[at % len(raw)] ^= 1 << bit
    with pytest.raises((IntegrityError, MalformedError)):
        open_record(bytes(raw), GRID, NOW_MS)


def test_each_author_has_one_entry_under_a_key() -> None:
    subject = store()
    for key in KEYS:
        for seq in (1, 2):
            subject.put(blob(key, seq=seq).raw)
    found = subject.find(RecordKind.BLOB_HOLDER, b"p" * 20)
    assert len(found) == len(KEYS)
    assert {record.body.seq for record in found} == {2}


def test_a_full_key_keeps_the_records_that_live_longest() -> None:
    subject = store(records_per_key=3)
    for index, key in enumerate(KEYS[:3]):
        subject.put(blob(key, life_ms=(index + 1) * HOUR_MS).raw)
    with pytest.raises(RefusedError):
        subject.put(blob(KEYS[3], life_ms=HOUR_MS // 2).raw)
    subject.put(blob(KEYS[4], life_ms=5 * HOUR_MS).raw)
    authors = {record.author for record in subject.find(RecordKind.BLOB_HOLDER, b"p" * 20)}
    assert authors == {KEYS[1].public, KEYS[2].public, KEYS[4].public}


def test_fault_i_records_per_author_and_in_all_are_bounded() -> None:
    subject = store(records=5, records_per_author=3)
    for number in range(3):
        subject.put(blob(place=bytes([number]) * 20).raw)
    with pytest.raises(RefusedError):
        subject.put(blob(place=b"z" * 20).raw)
    for number in range(2):
        subject.put(blob(KEYS[1], place=bytes([number]) * 20).raw)
    with pytest.raises(TryAgainError):
        subject.put(blob(KEYS[2]).raw)
    assert len(subject) == 5


def test_replacing_a_record_again_and_again_leaves_nothing_behind() -> None:
    subject = store()
    for seq in range(500):
        subject.put(blob(seq=seq).raw)
    assert len(subject) == 1
    assert len(subject._expiries) <= 70


def test_walk_goes_through_node_records_in_order_and_sample_draws_from_them() -> None:
    time = Time()
    subject = store(time)
    for key in KEYS:
        subject.put(node_record(key).raw)
    ids = sorted(dht_id_of_key(key.public) for key in KEYS)
    assert [record.body.key for record in subject.walk(bytes(20), b"\xff" * 20)] == ids
    assert [record.body.key for record in subject.walk(ids[1], ids[3])] == ids[1:4]
    assert len({record.author for record in subject.sample(random.Random(1), 3)}) == 3
    time.now_s = 601
    assert list(subject.walk(bytes(20), b"\xff" * 20)) == []
    assert subject.sample(random.Random(1), 3) == []


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 5), st.integers(1, 400), st.integers(0, 200)), max_size=60
    )
)
def test_the_store_agrees_with_a_plain_model(steps: list[tuple[int, int, int, int, int]]) -> None:
    time = Time()
    subject = store(time)
    model: dict[tuple[bytes, bytes], SignedRecord] = {}
    for author, place, seq, life_s, wait_s in steps:
        time.now_s += wait_s
        life_ms = int(time.now_s + life_s) * 1000
        record = blob(KEYS[author], bytes([place]) * 20, seq, life_ms)
        model = {slot: kept for slot, kept in model.items() if kept.body.expires_ms > time.wall_ms()}
        slot = (record.body.key, record.author)
        if slot not in model or newest([model[slot], record])[0] is record:
            model[slot] = record
        with contextlib.suppress(P2PGridError):
            subject.put(record.raw)
    model = {slot: kept for slot, kept in model.items() if kept.body.expires_ms > time.wall_ms()}
    found = [record.raw for place in range(4) for record in subject.find(RecordKind.BLOB_HOLDER, bytes([place]) * 20)]
    assert sorted(found) == sorted(record.raw for record in model.values())
    assert len(subject) == len(model)


def test_the_storage_interface_of_the_package_works() -> None:
    time = Time()
    subject = store(time)
    record = blob()
    subject[b"p" * 20] = record.raw
    assert subject[b"p" * 20] == [record.raw]
    assert list(subject) == [(b"p" * 20, [record.raw])]
    with pytest.raises(KeyError):
        subject[b"q" * 20]
    with pytest.raises(IntegrityError):
        subject[b"q" * 20] = blob(KEYS[1]).raw
    assert subject.iter_older_than(10) == []
    time.now_s = 11
    assert [old.raw for _, old in subject.iter_older_than(10)] == [record.raw]
    subject.mark_copied(record)
    assert subject.iter_older_than(10) == []
