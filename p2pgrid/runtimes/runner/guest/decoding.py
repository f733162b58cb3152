"""Bytes to values, in Python alone: agrees with ``p2pgrid.model.values``, which the guest cannot import.

What opens a value is looked up in one table, and lists of floats or of small integers are read at once: everything that is done for each
byte in turn costs a hundred times more in here.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from typing import Any

from .encoding import DEPTH_MAX, EXT_FILE, EXT_INTEGER, EXT_TIMESTAMP, INTEGER_BYTES_MAX, RUN_MIN, SECONDS_MAX, SECONDS_MIN

OnFile = Callable[[bytes], Any]
"""From an encoded reference to what the unit sees."""
_TOO_DEEP = f"not a value: nested more than {DEPTH_MAX} deep"
_CUT_OFF = "not a value: it is cut off"
_DOUBLE = struct.Struct(">d")
_SINGLE = struct.Struct(">f")


class MalformedError(Exception):
    """Bytes that are no value."""


class Decoder:
    """Reads values. ``on_file`` makes of an encoded reference what the unit sees."""

    def __init__(self, on_file: OnFile) -> None:
        self._on_file = on_file
        self._data = b""
        self._at = 0

    def decode(self, data: bytes) -> Any:
        """The one value that ``data`` holds. Raises MalformedError, and what ``on_file`` raises."""
        return self.decode_part(data, 0, len(data))

    def decode_part(self, data: bytes, start: int, end: int) -> Any:
        """The one value that lies between two places. Raises MalformedError, and what ``on_file`` raises."""
        self._data, self._at = data, start
        try:
            value = self._value(DEPTH_MAX, False)
        except (IndexError, struct.error, UnicodeDecodeError, TypeError, OverflowError, RecursionError) as error:
            raise MalformedError(f"not a value: {error}") from error
        if self._at != end:
            raise MalformedError("not a value: something follows it" if self._at < end else _CUT_OFF)
        return value

    def _value(self, depth: int, key: bool) -> Any:
        tag = self._data[self._at]
        self._at += 1
        if tag < 0x80:
            return tag
        return _READERS[tag](self, tag, depth, key)

    def _take(self, count: int) -> bytes:
        start = self._at
        self._at = end = start + count
        part = self._data[start:end]
        if len(part) != count:
            raise MalformedError(_CUT_OFF)
        return part

    def _list(self, count: int, depth: int, key: bool) -> Any:
        if not depth:
            raise MalformedError(_TOO_DEEP)
        if count >= RUN_MIN:
            if count > len(self._data) - self._at:
                raise MalformedError(_CUT_OFF)
            run = self._run(count)
            if run is not None:
                return tuple(run) if key else run
        value, depth = self._value, depth - 1
        items = [value(depth, key) for _ in range(count)]
        return tuple(items) if key else items

    def _run(self, count: int) -> list[Any] | None:
        """All members at once where they are all small integers, or all floats."""
        data, start = self._data, self._at
        first = data[start]
        if first < 0x80:
            part = data[start : start + count]
            if max(part) < 0x80:
                self._at = start + count
                return list(part)
        elif first == 0xCB and len(data) - start >= 9 * count and data[start : start + 9 * count : 9] == b"\xcb" * count:
            part = data[start : start + 9 * count]
            raw = bytearray(8 * count)
            for place in range(8):
                raw[place::8] = part[place + 1 :: 9]
            numbers = array("d", bytes(raw))
            if sys.byteorder == "little":
                numbers.byteswap()
            self._at = start + 9 * count
            return numbers.tolist()
        return None

    def _dict(self, count: int, depth: int) -> Any:
        if not depth:
            raise MalformedError(_TOO_DEEP)
        if 2 * count > len(self._data) - self._at:
            raise MalformedError(_CUT_OFF)
        value, depth = self._value, depth - 1
        result = {}
        for _ in range(count):
            name = value(depth, True)
            result[name] = value(depth, False)
        return result

    def _extension(self, size_bytes: int) -> Any:
        code = self._take(1)[0]
        body = self._take(size_bytes)
        if code == EXT_INTEGER:
            if size_bytes > INTEGER_BYTES_MAX:
                raise MalformedError("not a value: an integer is too long")
            return int.from_bytes(body, "big", signed=True)
        if code == EXT_TIMESTAMP:
            return _moment(body)
        if code != EXT_FILE:
            raise MalformedError(f"not a value: extension type {code if code < 128 else code - 256} is not known")
        return self._on_file(body)


_Reader = Callable[[Any, int, int, bool], Any]


def _sized(size_bytes: int, read: Callable[[Any, int, int, bool], Any]) -> _Reader:
    """A reader of what has its size, or count, in ``size_bytes`` bytes in front of it."""
    return lambda self, tag, depth, key: read(self, int.from_bytes(self._take(size_bytes), "big"), depth, key)


def _integer(size_bytes: int, signed: bool) -> _Reader:
    return lambda self, tag, depth, key: int.from_bytes(self._take(size_bytes), "big", signed=signed)


def _text(self: Any, count: int, depth: int, key: bool) -> str:
    part: bytes = self._take(count)
    return part.decode()


def _bytes(self: Any, count: int, depth: int, key: bool) -> Any:
    return self._take(count)


def _list_of(self: Any, count: int, depth: int, key: bool) -> Any:
    return self._list(count, depth, key)


def _dict_of(self: Any, count: int, depth: int, key: bool) -> Any:
    return self._dict(count, depth)


def _extension_of(self: Any, count: int, depth: int, key: bool) -> Any:
    return self._extension(count)


def _meaningless(self: Any, tag: int, depth: int, key: bool) -> Any:
    raise MalformedError("not a value: an opening byte that means nothing")


def _constant(value: Any) -> _Reader:
    return lambda self, tag, depth, key: value


def _readers() -> list[_Reader]:
    """What reads on behind each opening byte."""
    readers: list[_Reader] = [_meaningless] * 256
    readers[0x80:0x90] = [lambda self, tag, depth, key: self._dict(tag & 0x0F, depth)] * 16
    readers[0x90:0xA0] = [lambda self, tag, depth, key: self._list(tag & 0x0F, depth, key)] * 16
    readers[0xA0:0xC0] = [lambda self, tag, depth, key: self._take(tag & 0x1F).decode()] * 32
    readers[0xC0], readers[0xC2], readers[0xC3] = _constant(None), _constant(False), _constant(True)
    readers[0xCA] = lambda self, tag, depth, key: _SINGLE.unpack(self._take(4))[0]
    readers[0xCB] = lambda self, tag, depth, key: _DOUBLE.unpack(self._take(8))[0]
    for power in range(4):
        readers[0xCC + power] = _integer(1 << power, signed=False)
        readers[0xD0 + power] = _integer(1 << power, signed=True)
    for power in range(3):
        readers[0xC4 + power] = _sized(1 << power, _bytes)
        readers[0xC7 + power] = _sized(1 << power, _extension_of)
        readers[0xD9 + power] = _sized(1 << power, _text)
    for power in range(2):
        readers[0xDC + power] = _sized(2 << power, _list_of)
        readers[0xDE + power] = _sized(2 << power, _dict_of)
    for power in range(5):
        readers[0xD4 + power] = lambda self, tag, depth, key: self._extension(1 << (tag - 0xD4))
    readers[0xE0:0x100] = [lambda self, tag, depth, key: tag - 256] * 32
    return readers


_READERS = _readers()


def _moment(body: bytes) -> Any:
    from datetime import datetime, timedelta, timezone

    if len(body) == 4:
        seconds, nanoseconds = int.from_bytes(body, "big"), 0
    elif len(body) == 8:
        both = int.from_bytes(body, "big")
        seconds, nanoseconds = both & ((1 << 34) - 1), both >> 34
    elif len(body) == 12:
        seconds, nanoseconds = int.from_bytes(body[4:], "big", signed=True), int.from_bytes(body[:4], "big")
    else:
        raise MalformedError("not a value: a timestamp of a wrong size")
    if nanoseconds > 999_999_999 or not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise MalformedError("not a value: a timestamp out of range")
    # Rounded as the node rounds: half a microsecond goes to the even one.
    microseconds = round(nanoseconds / 1000)
    return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds, microseconds=microseconds)  # noqa: UP017 (as the node spells it)
