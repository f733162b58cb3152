"""The value codec: what comes back, and what is refused with which words."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import BadDataError, MalformedError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.values import EXT_FILE, EXT_INTEGER, FileRef, ValueEncoder, decode_value, encode_value, is_plain_name

REFERENCE = FileRef(BlobId(b"b" * 32), 12, "a.txt")


@dataclass
class Point:
    x: int
    tags: object = None


class Color(enum.Enum):
    RED = "red"


class Whole(int):
    pass


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        2**64 - 1,
        -(2**63),
        2**64,
        -(2**63) - 1,
        10**300,
        -(10**300),
        1.5,
        float("inf"),
        "",
        "é\0",
        b"\xff",
        [],
        [[1], {"a": [2**100]}],
        {"z": 1, "a": 2},
        {1: 2, (3, 4): 5, None: 6},
    ],
)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    again = decode_value(encode_value(value))
    assert again == value
    assert type(again) is type(value)


def test_dicts_keep_their_order() -> None:
    assert list(decode_value(encode_value({"z": 1, "a": {2, 1}, "m": 3}))) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        ({3, 1, 2}, [1, 2, 3]),
        ({"a": [frozenset("ba")]}, {"a": [["a", "b"]]}),
        ({1, "a"}, [1, "a"]),
        (Point(1, {2, 1}), {"x": 1, "tags": [1, 2]}),
        (Point(2**70, None), {"x": 2**70, "tags": None}),
        (Color.RED, "red"),
        (Whole(3), 3),
        ([Name("n")], ["n"]),
        (bytearray(b"x"), b"x"),
        (collections.deque([1, {2}]), [1, [2]]),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
        (decimal.Decimal("1.50"), "1.50"),
        (REFERENCE, {"blob": b"b" * 32, "size_bytes": 12, "name": "a.txt"}),
    ],
)
def test_other_values_come_back_in_their_documented_form(value: Any, expected: Any) -> None:
    if isinstance(value, FileRef):
        expected = list(expected.values())
    assert decode_value(encode_value(value)) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0, 1, 2, {"x": object()}], r"\[3\]\['x'\]: type object"),
        (Point(1, [1j]), r"\.tags\[0\]: type complex"),
        ((n for n in "ab"), "type generator .make it a list"),
        ({"a": range(3)}, r"\['a'\]: type range"),
        ([print], r"\[0\]: type builtin_function"),
        ({"c": Point}, r"\['c'\]: type type"),
        (["\ud800"], r"\[0\]: text with half a surrogate"),
        ({2**70: 1}, "dict key"),
        ([10 ** (10**7)], "too long"),
        ([Path("x")], "files cannot be sent"),
        ({"s": {1j}}, r"\['s'\] \(a set\): type complex"),
    ],
)
def test_what_cannot_travel_is_named_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(BadDataError, match=words):
        encode_value(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(BadDataError, match="nested"):
        encode_value(loop)
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(BadDataError):
        encode_value(deep)


def test_a_refused_value_leaves_the_buffer_alone() -> None:
    encoder, buffer = ValueEncoder(), bytearray(b"before")
    with pytest.raises(BadDataError):
        encoder.append([1, 2, object()], buffer)
    assert buffer == b"before"
    encoder.append([1], buffer)
    assert buffer == b"before\x91\x01"


def test_errors_of_the_values_own_code_pass_through_and_leave_the_buffer_alone() -> None:
    def on_path(path: Path) -> FileRef:
        raise ZeroDivisionError

    encoder, buffer = ValueEncoder(on_path), bytearray()
    with pytest.raises(ZeroDivisionError):
        encoder.append([1, Path("x")], buffer)
    assert buffer == b""


def test_paths_become_references_and_come_back_as_the_caller_wants() -> None:
    raw = encode_value({"f": [Path("a.txt")]}, on_path=lambda path: REFERENCE)
    assert decode_value(raw) == {"f": [REFERENCE]}
    assert decode_value(raw, on_file=lambda reference: Path("/there") / reference.name) == {"f": [Path("/there/a.txt")]}


def test_a_path_beside_a_set_or_a_big_integer_still_travels() -> None:
    for other in ({1}, 2**100):
        assert decode_value(encode_value([other, Path("x")], on_path=lambda path: REFERENCE))[1] == REFERENCE


def ext(code: int, data: bytes) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, data))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b"\xa1\xff",
        b"\x91" * 100_000,
        ext(9, b""),
        ext(EXT_FILE, b""),
        ext(EXT_FILE, msgspec.msgpack.encode([b"short", 1, "a"])),
        ext(EXT_FILE, msgspec.msgpack.encode([b"b" * 32, -1, "a"])),
        ext(EXT_FILE, msgspec.msgpack.encode([b"b" * 32, 1, "../a"])),
        ext(EXT_FILE, msgspec.msgpack.encode([b"b" * 32, 1, "a\nb"])),
        ext(EXT_INTEGER, bytes((1 << 20) + 1)),
    ],
)
def test_foreign_bytes_that_are_no_value_are_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_value(raw)


@pytest.mark.parametrize(
    ("name", "plain"), [("a", True), ("ä b.txt", True), ("", False), ("..", False), ("a/b", False), ("x" * 256, False)]
)
def test_plain_names(name: str, plain: bool) -> None:
    assert is_plain_name(name) is plain
