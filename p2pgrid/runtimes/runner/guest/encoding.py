"""Values to bytes, in Python alone: agrees to the byte with ``p2pgrid.model.values``, which the guest cannot import.

The table of what may travel stands there. Speed comes from looking at whole lists at once: a list of floats, or of small integers, is
written in a handful of operations that run in C, whatever its length.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from typing import Any

EXT_FILE = 1
EXT_INTEGER = 2
EXT_TIMESTAMP = -1 & 0xFF
DEPTH_MAX = 200
INTEGER_BYTES_MAX = 1 << 20
RUN_MIN = 8
"""Shorter lists are not worth the look at their kind."""
_EPOCH_ORDINAL = 719163
SECONDS_MIN, SECONDS_MAX = -62135596800, 253402300799

OnPath = Callable[[Any, int], bytes]
"""From a path, and where its extension's body will stand in the buffer, to the encoded reference."""


class RefusedError(Exception):
    """Something in a value has no form in which it could travel."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Encoder:
    """Appends the bytes of values to a buffer. ``on_path`` takes along the files whose paths are met."""

    def __init__(self, on_path: OnPath) -> None:
        self._on_path = on_path

    def append(self, value: Any, out: bytearray) -> None:
        """Append ``value``. Raises RefusedError that names the type and the place of what cannot travel; the buffer is as it was then."""
        before = len(out)
        try:
            self._value(value, out, DEPTH_MAX)
        except (RefusedError, UnicodeEncodeError, OverflowError, TypeError, RecursionError) as error:
            del out[before:]
            place, culprit = _culprit_of(value, self._probe, DEPTH_MAX)
            raise _refusal(place, culprit, error) from error
        except BaseException:
            del out[before:]
            raise

    def _probe(self, value: Any) -> bool:
        """Whether a value that holds no others can travel."""
        try:
            self._value(value, bytearray(), 1)
        except (RefusedError, UnicodeEncodeError, OverflowError, TypeError, RecursionError):
            return False
        return True

    def _value(self, value: Any, out: bytearray, depth: int) -> None:
        kind = type(value)
        if kind is int:
            if 0 <= value < 128:
                out.append(value)
            else:
                _append_integer(value, out)
        elif kind is str:
            _append_text(value, out)
        elif kind is float:
            out += _FLOAT.pack(0xCB, value)
        elif value is None:
            out.append(0xC0)
        elif kind is bool:
            out.append(0xC3 if value else 0xC2)
        elif kind is bytes:
            _append_bytes(value, out)
        elif kind is list or kind is tuple:
            self._list(value, out, depth)
        elif kind is dict:
            self._dict(value.items(), len(value), out, depth)
        else:
            self._other(value, out, depth)

    def _list(self, value: Any, out: bytearray, depth: int) -> None:
        count = len(value)
        if not depth:
            raise RefusedError("too deep")
        _append_header(count, 0x90, 0xDC, out)
        if count >= RUN_MIN and _append_run(value, count, out):
            return
        append = self._value
        depth -= 1
        for item in value:
            append(item, out, depth)

    def _dict(self, items: Any, count: int, out: bytearray, depth: int) -> None:
        if not depth:
            raise RefusedError("too deep")
        _append_header(count, 0x80, 0xDE, out)
        append = self._value
        depth -= 1
        for key, item in items:
            if type(key) is str:
                _append_text(key, out)
            else:
                append(_as_key(key), out, depth)
            append(item, out, depth)

    def _other(self, value: Any, out: bytearray, depth: int) -> None:
        """Everything that is not exactly one of the plain types, in the order in which ``values`` looks at it."""
        if isinstance(value, (set, frozenset)):
            self._list(self._sorted(value, depth), out, depth)
            return
        if isinstance(value, dict):
            self._dict(value.items(), len(value), out, depth)
            return
        if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
            self._list(list(value), out, depth)
            return
        fields = None if isinstance(value, type) else getattr(type(value), "__dataclass_fields__", None)
        if fields is not None:
            self._dict([(name, getattr(value, name)) for name in fields], len(fields), out, depth)
            return
        plain = _plain_form(value)
        if plain is not value:
            self._value(plain, out, depth)
        elif hasattr(value, "__fspath__") and hasattr(value, "is_file"):
            self._file(value, out)
        elif _is_moment(value):
            _append_moment(value, out)
        else:
            raise RefusedError(_unsupported(value))

    def _sorted(self, members: Any, depth: int) -> list[Any]:
        """Sorted where the members can be compared, else in the order of their bytes: never in the order of their hashes."""
        if not depth:
            raise RefusedError("too deep")
        settled = [self._settled(member, depth - 1) for member in members]
        try:
            return sorted(settled)
        except TypeError:
            return sorted(settled, key=self._bytes_of)

    def _settled(self, value: Any, depth: int) -> Any:
        """What ``values`` compares in the place of a member: tuples as lists, sets sorted."""
        if isinstance(value, (set, frozenset)):
            return self._sorted(value, depth)
        if isinstance(value, (list, tuple)):
            if not depth:
                raise RefusedError("too deep")
            return [self._settled(item, depth - 1) for item in value]
        if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 64:
            return _BigInteger(value)
        fields = None if isinstance(value, type) else getattr(type(value), "__dataclass_fields__", None)
        if fields is not None:
            return {name: self._settled(getattr(value, name), depth - 1) for name in fields}
        return value

    def _bytes_of(self, value: Any) -> bytes:
        out = bytearray()
        self._value(value, out, DEPTH_MAX)
        return bytes(out)

    def _file(self, value: Any, out: bytearray) -> None:
        _append_extension(EXT_FILE, self._on_path(value, len(out)), out)


class _BigInteger:
    """Stands for an integer beyond 64 bits among the members of a set: ``values`` cannot compare those either."""

    def __init__(self, value: int) -> None:
        self.value = value


_FLOAT = struct.Struct(">Bd")
_FIXED_EXTENSIONS = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}


def _append_integer(value: int, out: bytearray) -> None:
    if value >= 0:
        if value < 1 << 8:
            out += bytes((0xCC, value)) if value > 127 else bytes((value,))
        elif value < 1 << 16:
            out += b"\xcd" + value.to_bytes(2, "big")
        elif value < 1 << 32:
            out += b"\xce" + value.to_bytes(4, "big")
        elif value < 1 << 64:
            out += b"\xcf" + value.to_bytes(8, "big")
        else:
            _append_big_integer(value, out)
    elif value >= -32:
        out.append(value & 0xFF)
    elif value >= -(1 << 7):
        out += bytes((0xD0, value & 0xFF))
    elif value >= -(1 << 15):
        out += b"\xd1" + value.to_bytes(2, "big", signed=True)
    elif value >= -(1 << 31):
        out += b"\xd2" + value.to_bytes(4, "big", signed=True)
    elif value >= -(1 << 63):
        out += b"\xd3" + value.to_bytes(8, "big", signed=True)
    else:
        _append_big_integer(value, out)


def _append_big_integer(value: int, out: bytearray) -> None:
    size_bytes = value.bit_length() // 8 + 1
    if size_bytes > INTEGER_BYTES_MAX:
        raise RefusedError(f"an integer of {value.bit_length()} bits is too long", "write it to a file")
    _append_extension(EXT_INTEGER, value.to_bytes(size_bytes, "big", signed=True), out)


def _append_extension(code: int, body: bytes, out: bytearray) -> None:
    size_bytes = len(body)
    if size_bytes in _FIXED_EXTENSIONS:
        out += bytes((_FIXED_EXTENSIONS[size_bytes], code))
    elif size_bytes < 1 << 8:
        out += bytes((0xC7, size_bytes, code))
    elif size_bytes < 1 << 16:
        out += b"\xc8" + size_bytes.to_bytes(2, "big") + bytes((code,))
    else:
        out += b"\xc9" + size_bytes.to_bytes(4, "big") + bytes((code,))
    out += body


def _append_text(value: str, out: bytearray) -> None:
    raw = value.encode()
    size_bytes = len(raw)
    if size_bytes < 32:
        out.append(0xA0 | size_bytes)
    elif size_bytes < 1 << 8:
        out += bytes((0xD9, size_bytes))
    elif size_bytes < 1 << 16:
        out += b"\xda" + size_bytes.to_bytes(2, "big")
    else:
        out += b"\xdb" + size_bytes.to_bytes(4, "big")
    out += raw


def _append_bytes(value: bytes | bytearray | memoryview, out: bytearray) -> None:
    size_bytes = value.nbytes if isinstance(value, memoryview) else len(value)
    if size_bytes < 1 << 8:
        out += bytes((0xC4, size_bytes))
    elif size_bytes < 1 << 16:
        out += b"\xc5" + size_bytes.to_bytes(2, "big")
    else:
        out += b"\xc6" + size_bytes.to_bytes(4, "big")
    out += value


def _append_header(count: int, short: int, long: int, out: bytearray) -> None:
    if count < 16:
        out.append(short | count)
    elif count < 1 << 16:
        out.append(long)
        out += count.to_bytes(2, "big")
    else:
        out.append(long + 1)
        out += count.to_bytes(4, "big")


def _append_run(value: Any, count: int, out: bytearray) -> bool:
    """Append the members of a list of one plain kind at once; False where there is no short cut."""
    kinds = set(map(type, value))
    if kinds == {float}:
        numbers = array("d", value)
        if sys.byteorder == "little":
            numbers.byteswap()
        raw = numbers.tobytes()
        spread = bytearray(9 * count)
        spread[0::9] = b"\xcb" * count
        for place in range(8):
            spread[place + 1 :: 9] = raw[place::8]
        out += spread
        return True
    if kinds == {int} and 0 <= min(value) and max(value) < 128:
        out += bytes(value)
        return True
    return False


def _is_moment(value: Any) -> bool:
    return type(value).__module__ in ("datetime", "_datetime") and type(value).__name__ in ("datetime", "date", "time", "timedelta")


def _append_moment(value: Any, out: bytearray) -> None:
    name = type(value).__name__
    if name == "datetime" and value.tzinfo is not None and value.utcoffset() is not None:
        _append_timestamp(value, out)
    elif name == "timedelta":
        _append_text(_duration_text(value), out)
    elif name == "time":
        _append_text(_time_text(value), out)
    else:
        _append_text((value.replace(tzinfo=None) if name == "datetime" else value).isoformat(), out)


def _append_timestamp(value: Any, out: bytearray) -> None:
    offset = value.utcoffset()
    seconds = (value.toordinal() - _EPOCH_ORDINAL) * 86400 + value.hour * 3600 + value.minute * 60 + value.second
    seconds -= offset.days * 86400 + offset.seconds
    microseconds = value.microsecond - offset.microseconds
    if microseconds < 0:
        seconds, microseconds = seconds - 1, microseconds + 1_000_000
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise OverflowError("date value out of range")
    nanoseconds = microseconds * 1000
    if not nanoseconds and 0 <= seconds < 1 << 32:
        _append_extension(EXT_TIMESTAMP, seconds.to_bytes(4, "big"), out)
    elif 0 <= seconds < 1 << 34:
        _append_extension(EXT_TIMESTAMP, (nanoseconds << 34 | seconds).to_bytes(8, "big"), out)
    else:
        _append_extension(EXT_TIMESTAMP, nanoseconds.to_bytes(4, "big") + seconds.to_bytes(8, "big", signed=True), out)


def _duration_text(value: Any) -> str:
    """ISO 8601, days and seconds only."""
    microseconds = (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds
    if not microseconds:
        return "P0D"
    sign = "-" if microseconds < 0 else ""
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    days, seconds = divmod(seconds, 86400)
    text = f"{sign}P{days}D" if days else f"{sign}P"
    if seconds or rest:
        fraction = f".{rest:06d}".rstrip("0") if rest else ""
        text += f"T{seconds}{fraction}S"
    return text


def _time_text(value: Any) -> str:
    text: str = value.replace(tzinfo=None).isoformat()
    offset = value.utcoffset()
    if offset is None:
        return text
    seconds = offset.days * 86400 + offset.seconds
    minutes = (abs(seconds) + 30) // 60
    return text + ("Z" if not seconds else f"{'-' if seconds < 0 else '+'}{minutes // 60:02d}:{minutes % 60:02d}")


def _plain_form(value: Any) -> Any:
    """The plain value that travels in the place of this one; the value itself where there is none."""
    kind = type(value)
    if "enum" in sys.modules and isinstance(value, sys.modules["enum"].Enum):
        return value.value
    for plain in (str, int, float, bytes):
        if isinstance(value, plain):
            return plain(value)  # type: ignore[arg-type]
    if kind is bytearray or kind is memoryview:
        return value.tobytes() if kind is memoryview else bytes(value)
    module, name = kind.__module__, kind.__name__
    if module == "decimal" and name == "Decimal":
        return str(value)
    if "uuid" in sys.modules and isinstance(value, sys.modules["uuid"].UUID):
        return str(value)
    if kind is _BigInteger:
        return value.value
    return value


def _as_key(key: Any) -> Any:
    """A dict key: a tuple stays an array, an integer beyond 64 bits and whatever only ``values`` could rewrite is refused."""
    if isinstance(key, int):
        if not -(1 << 63) <= key < 1 << 64:
            raise OverflowError("can't serialize ints < -2**63 or > 2**64 - 1")
    elif isinstance(key, tuple):
        for member in key:
            _as_key(member)
    return key


def _refusal(place: str, culprit: Any, error: BaseException) -> RefusedError:
    at = f"{place if len(place) <= 200 else '...' + place[-197:]}: " if place else ""
    if isinstance(error, RefusedError):
        message, hint = error.message, error.hint
    else:
        message, hint = str(error), ""
    if message == "too deep" or isinstance(error, RecursionError):
        return RefusedError(f"{place[:80] or 'the value'}: nested more than {DEPTH_MAX} deep, or it contains itself")
    if isinstance(culprit, _Key):
        message, hint = f"the dict key {_label(culprit.key)} cannot be sent", "use text or small numbers"
    elif isinstance(error, UnicodeEncodeError):
        message, hint = "text with half a surrogate pair", "encode it to bytes first"
    return RefusedError(f"{at}{message}", hint or "numbers, text, bytes, lists, dicts and paths can be sent")


class _Key:
    """Marks a culprit that is the key of a dict."""

    def __init__(self, key: Any) -> None:
        self.key = key


def _culprit_of(value: Any, is_fine: Callable[[Any], bool], depth: int) -> tuple[str, Any]:
    """Where in a value that was refused the reason lies: its place, as ``[3]['x']``, and the culprit."""
    if not depth:
        return "", value
    members: Any
    if isinstance(value, dict):
        for key in value:
            if not is_fine([key] if isinstance(key, tuple) else key) or (isinstance(key, int) and not -(1 << 63) <= key < 1 << 64):
                return "", _Key(key)
        members = [(f"[{_label(key)}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        members = [(f"[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, (set, frozenset)):
        members = [(" (a set)", item) for item in value]
    elif not isinstance(value, type) and hasattr(type(value), "__dataclass_fields__"):
        members = [(f".{name}", getattr(value, name)) for name in type(value).__dataclass_fields__]
    else:
        return "", value
    for place, item in members:
        if isinstance(item, _CONTAINERS) or hasattr(type(item), "__dataclass_fields__"):
            inner, culprit = _culprit_of(item, is_fine, depth - 1)
            if culprit is not _FINE:
                return place + inner, culprit
        elif not is_fine(item):
            return place, item
    return "", _FINE


_FINE = object()
_CONTAINERS = (dict, list, tuple, set, frozenset)


def _unsupported(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if kind.__name__ in ("generator", "range", "dict_keys", "dict_values", "dict_items", "map", "filter", "zip"):
        return f"type {name} (make it a list first)"
    return f"type {name}"


def _label(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:  # noqa: BLE001 (a foreign repr may raise anything; the label is for a message only)
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 40 else text[:37] + "..."
