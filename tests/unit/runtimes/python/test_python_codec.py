"""The guest's codec against the node's: the same bytes out, the same values in, the same things refused."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections import Counter, OrderedDict, deque, namedtuple
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from p2pgrid.errors import BadDataError, MalformedError
from p2pgrid.model.values import EXT_FILE, FileRef, ValueDecoder, decode_value, encode_value
from p2pgrid.runtimes.runner.guest import decoding, encoding

Pair = namedtuple("Pair", "left right")


class Color(enum.Enum):
    RED = 1
    NAME = "name"


class Level(enum.IntEnum):
    HIGH = 300


class Text(str):
    """A subclass of a plain type."""

    __slots__ = ()


class Number(int):
    """A subclass of a plain type."""


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 2


def no_path(path: Any, at: int) -> bytes:
    raise encoding.RefusedError(f"the path {path} (files cannot be sent from here)")


def no_file(body: bytes) -> Any:
    raise decoding.MalformedError("no files")


def view_of(raw: bytes) -> memoryview:
    return memoryview(raw)


def guest_encoded(value: Any) -> bytes:
    out = bytearray(b"before")
    encoding.Encoder(no_path).append(value, out)
    assert out[:6] == b"before"
    return bytes(out[6:])


def guest_decoded(raw: bytes) -> Any:
    return decoding.Decoder(no_file).decode(raw)


zones = some.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
moments = some.one_of(
    some.datetimes(),
    some.datetimes(timezones=zones),
    some.dates(),
    some.times(),
    some.times(timezones=zones),
    some.timedeltas(min_value=dt.timedelta(days=-99999), max_value=dt.timedelta(days=99999)),
)
scalars = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(),
    some.integers(-(1 << 70), 1 << 70),
    some.sampled_from(
        [sign * (1 << power) + step for sign in (1, -1) for power in (5, 7, 8, 15, 16, 31, 32, 63, 64, 400) for step in (-1, 0, 1)]
    ),
    some.floats(allow_nan=False),
    some.text(max_size=300),
    some.binary(max_size=300),
    some.binary(max_size=20).map(bytearray),
    some.binary(max_size=20).map(view_of),
    some.decimals(),
    some.uuids(),
    some.sampled_from([*Color, *Level, Text("x"), Number(7), float("nan")]),
    moments,
)
keys = some.one_of(
    some.text(max_size=5), some.integers(-1000, 1000), some.none(), some.booleans(), some.tuples(some.integers(0, 9), some.text(max_size=2))
)
members = some.one_of(
    some.integers(), some.text(max_size=5), some.floats(allow_nan=False), some.tuples(some.integers(), some.text(max_size=2))
)


def containers(inner: Any) -> Any:
    return some.one_of(
        some.lists(inner, max_size=20),
        some.lists(some.floats(allow_nan=False), max_size=40),
        some.lists(some.integers(0, 200), max_size=40),
        some.tuples(inner, inner),
        some.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        some.dictionaries(keys, inner, max_size=5),
        some.dictionaries(keys, inner, max_size=5).map(OrderedDict),
        some.sets(members, max_size=12),
        some.frozensets(some.integers(-5, 1 << 70), max_size=12),
        some.lists(some.text(max_size=1)).map(Counter),
        some.lists(some.integers()).map(deque),
        some.tuples(inner, inner).map(lambda pair: Point(*pair)),
    )


values = some.recursive(scalars, containers, max_leaves=30)


@given(values)
@example(list(range(70000)))
@example([1.5] * 70000)
@example({str(number): number for number in range(70000)})
@example("x" * 70000)
@example(b"x" * 70000)
def test_what_the_guest_encodes_is_what_the_node_encodes(value: Any) -> None:
    assert guest_encoded(value) == encode_value(value)


@given(values)
def test_what_the_node_encodes_is_read_as_the_node_reads_it(value: Any) -> None:
    raw = encode_value(value)
    ours, theirs = guest_decoded(raw), decode_value(raw)
    assert repr(ours) == repr(theirs)


@given(some.binary(max_size=60))
@example(b"\x81\x91\x01\x02")
@example(b"\x81\x81\x01\x01\x02")
@example(b"\xc7\x0c\xff" + b"\xff" * 12)
@example(b"\xd7\xff" + b"\xff" * 8)
@example(b"\xc7\x0c\xff\x00\x00\x13\x88" + (253402300799).to_bytes(8, "big"))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\x7f\xff\xff\xff")
@example(b"\x98" + b"\x01" * 7)
@example(b"\x98\xcb" + b"\x00" * 10)
@example(b"\xc1")
@example(b"")
def test_any_bytes_are_read_or_refused_as_the_node_does(raw: bytes) -> None:
    def forbid(reference: FileRef) -> Any:
        raise ValueError("no files")

    try:
        theirs = ValueDecoder(forbid).decode(raw)
    except MalformedError:
        with pytest.raises(decoding.MalformedError):
            guest_decoded(raw)
        return
    assert repr(guest_decoded(raw)) == repr(theirs)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("kind", [b"\x07", b"\xcb\x40\x09\x21\xfb\x54\x44\x2d\x18", b"\xff", b"\xcd\x01\x00"])
def test_lists_of_one_kind_are_read_whole_and_found_cut_off(count: int, kind: bytes) -> None:
    raw = b"\xdc" + count.to_bytes(2, "big") + kind * count
    assert guest_decoded(raw) == decode_value(raw)
    assert guest_decoded(raw[:-1] + raw[-1:] * 1) == decode_value(raw)
    with pytest.raises(decoding.MalformedError):
        guest_decoded(raw[:-1])
    with pytest.raises(decoding.MalformedError):
        guest_decoded(raw + b"\x00")


REFUSED: list[Any] = [
    object(),
    [1, {"x": object()}],
    {"deep": [1, 2, (3, 1j)]},
    range(3),
    [Ellipsis],
    int,
    {1, 1j},
    "\ud800",
    ["\ud800"],
    {"\ud800": 1},
    {1 << 70: 1},
    {(1, 1 << 70): 1},
    {object: 1},
    Point(1, object()),
    (number for number in [1]),
    {1: 2}.keys(),
    1 << (8 << 20),
    ValueError("x"),
]


@pytest.mark.parametrize("value", REFUSED, ids=range(len(REFUSED)))
def test_what_the_node_refuses_the_guest_refuses_in_the_same_words(value: Any) -> None:
    with pytest.raises(BadDataError) as theirs:
        encode_value(value)
    with pytest.raises(encoding.RefusedError) as ours:
        guest_encoded(value)
    assert ours.value.message.split(" (make")[0].split(" 0x")[0] == theirs.value.message.split(" (make")[0].split(" 0x")[0]


def test_a_value_that_contains_itself_is_refused_and_leaves_nothing_behind() -> None:
    endless: list[Any] = []
    endless.append(endless)
    out = bytearray(b"kept")
    with pytest.raises(encoding.RefusedError, match="contains itself"):
        encoding.Encoder(no_path).append(endless, out)
    assert out == b"kept"


def test_sets_with_members_that_cannot_be_compared_have_one_order() -> None:
    value = {1, "a", (2, "b"), None, 1.5, b"x", 1 << 80}
    assert guest_encoded(value) == encode_value(value)


def test_deep_values_are_refused_by_both() -> None:
    raw = b"\x91" * 201 + b"\x01"
    with pytest.raises(decoding.MalformedError):
        guest_decoded(raw)
    assert guest_decoded(b"\x91" * 200 + b"\x01") is not None


def test_references_of_files_travel_in_their_extension() -> None:
    reference = FileRef(b"i" * 32, 5, "name.bin")  # type: ignore[arg-type]
    body = msgspec.msgpack.encode(reference)
    taken: list[int] = []

    def on_path(path: Any, at: int) -> bytes:
        taken.append(at)
        return body

    class Path:
        def __fspath__(self) -> str:
            return "x"

        def is_file(self) -> bool:
            return True

    out = bytearray()
    encoding.Encoder(on_path).append([1, Path()], out)
    assert bytes(out) == b"\x92\x01" + msgspec.msgpack.encode(msgspec.msgpack.Ext(EXT_FILE, body))
    assert taken == [2]
    seen: list[bytes] = []

    def on_file(raw: bytes) -> str:
        seen.append(raw)
        return "path"

    assert decoding.Decoder(on_file).decode(bytes(out)) == [1, "path"]
    assert seen == [body]


def test_decimals_and_identifiers_travel_as_text() -> None:
    value = [decimal.Decimal("1.50"), uuid.UUID(int=5)]
    assert guest_decoded(guest_encoded(value)) == ["1.50", str(uuid.UUID(int=5))]
