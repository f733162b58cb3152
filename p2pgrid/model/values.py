"""What a unit may take and return, and how it becomes bytes.

Values are msgpack, so that they can be read without running anything. What msgpack does not know is settled here, once:

=============================================  ====================================================
Python                                         comes back as
=============================================  ====================================================
None, bool, int, float, str, bytes, list,      itself (an int of any size: extension type 2)
dict with any hashable keys, aware datetime
tuple, named tuple                             list (a dict key stays a tuple)
set, frozenset                                 list: sorted where the members can be compared, else
                                               in the order of their encoded bytes
dataclass, msgspec struct                      dict of its fields
date, time, naive datetime, timedelta,         str, or what msgspec writes for them
Decimal, UUID, Enum
subclass of int, float, str, bytes or list;    the plain value
numpy scalar, bytearray, memoryview, deque
pathlib.Path                                   the file itself travels: extension type 1
anything else                                  refused, with its type and where it stands
=============================================  ====================================================

Sets are sorted because two honest workers must return equal bytes. Dicts keep their order: people sort
their results on purpose. The worker process loads this file without the rest of the package, therefore it imports
nothing but ``errors``, and relatively.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import BadDataError, MalformedError

if TYPE_CHECKING:
    from pathlib import Path

    from p2pgrid.model.ids import BlobId
else:
    BlobId = bytes

EXT_FILE = 1
EXT_INTEGER = 2
DEPTH_MAX = 200
"""Containers inside containers; deeper values are refused on both sides."""
INTEGER_BYTES_MAX = 1 << 20
FILE_NAME_CHARS_MAX = 255
_SCALARS = frozenset({int, str, float, bytes, bool, type(None)})
_PLAIN: tuple[type[Any], ...] = (str, int, float, bytes)
_BLOB_BYTES = 32


class FileRef(msgspec.Struct, frozen=True, array_like=True):
    """A file that travels beside a value: its address, its size in bytes, and the name it is shown under."""

    blob: BlobId
    size_bytes: int
    name: str


class _Unsupported(Exception):
    """Carries the offending object from inside msgspec to the place that can say where it stands."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


OnPath = Callable[["Path"], FileRef]
OnFile = Callable[[FileRef], Any]


def encode_value(value: Any, *, on_path: OnPath | None = None) -> bytes:
    """The bytes of ``value``; ``on_path`` turns a path into the reference of a file that was taken along.

    Raises BadDataError that names the type and the place of what cannot travel, as ``[3]['x']: ...``.
    """
    return ValueEncoder(on_path).encode(value)


def decode_value(raw: bytes | bytearray | memoryview | msgspec.Raw, *, on_file: OnFile | None = None) -> Any:
    """The value of these bytes; a file becomes what ``on_file`` returns for it, or stays a FileRef.

    Raises MalformedError when the bytes are no value.
    """
    return ValueDecoder(on_file).decode(raw)


class ValueEncoder:
    """encode_value with its encoder kept, for those who encode many values."""

    def __init__(self, on_path: OnPath | None = None) -> None:
        self._on_path = on_path
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._hook)

    def encode(self, value: Any) -> bytes:
        """As encode_value."""
        buffer = bytearray()
        self.append(value, buffer)
        return bytes(buffer)

    def append(self, value: Any, buffer: bytearray) -> None:
        """Append the bytes of ``value``. Raises BadDataError and leaves the buffer as it was."""
        before = len(buffer)
        try:
            if type(value) not in _SCALARS and _holds_a_set(value, DEPTH_MAX):
                value = self._settle(value, "", DEPTH_MAX)
            self._encoder.encode_into(value, buffer, -1)
        except (_Unsupported, OverflowError, UnicodeEncodeError, TypeError, RecursionError, msgspec.MsgspecError):
            del buffer[before:]
            self._append_slowly(value, buffer, before)
        except BaseException:
            del buffer[before:]
            raise

    def _append_slowly(self, value: Any, buffer: bytearray, before: int) -> None:
        """Something did not fit: replace what has another form, and explain what has none."""
        try:
            self._encoder.encode_into(self._settle(value, "", DEPTH_MAX), buffer, -1)
        except BaseException as error:
            del buffer[before:]
            if isinstance(error, (_Unsupported, OverflowError, UnicodeEncodeError, TypeError, RecursionError, msgspec.MsgspecError)):
                raise BadDataError(f"a value cannot be sent: {error}") from error
            raise

    def _hook(self, value: Any) -> Any:
        """What msgspec asks about objects that it does not know."""
        for plain in _PLAIN:
            if isinstance(value, plain):
                return plain(value)
        if isinstance(value, list) or type(value).__name__ == "deque":
            return list(value)
        if hasattr(value, "__fspath__") and hasattr(value, "is_file"):
            return self._file(value)
        if type(value).__module__.partition(".")[0] == "numpy":
            if hasattr(value, "item") and getattr(value, "shape", None) == ():
                return value.item()
            raise _Unsupported(f"type numpy.{type(value).__name__} (send .tolist(), or .tobytes() with its shape)")
        raise _Unsupported(_unsupported(value))

    def _file(self, path: Path) -> msgspec.msgpack.Ext:
        if self._on_path is None:
            raise _Unsupported(f"the path {path} (files cannot be sent from here)")
        reference = self._on_path(path)
        return msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(reference))

    def _settle(self, value: Any, place: str, depth: int) -> Any:
        """A copy of ``value`` in which everything has a form msgpack can carry; BadDataError names what has none."""
        if depth == 0:
            raise BadDataError(f"{place[:80] or 'the value'}: nested more than {DEPTH_MAX} deep, or it contains itself")
        if isinstance(value, int) and not isinstance(value, bool):
            return value if -(1 << 63) <= value < 1 << 64 else _big_integer(value, place)
        if isinstance(value, dict):
            return {self._settle_key(key, place): self._settle(item, f"{place}[{_label(key)}]", depth - 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
            return [self._settle(item, f"{place}[{index}]", depth - 1) for index, item in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            return _sorted_members([self._settle(item, f"{place} (a set)", depth - 1) for item in value], self._encoder)
        names = _field_names(value)
        if names is not None:
            return {name: self._settle(getattr(value, name), f"{place}.{name}", depth - 1) for name in names}
        try:
            self._encoder.encode(value)
        except UnicodeEncodeError as error:
            raise BadDataError(f"{_at(place)}text with half a surrogate pair", hint="encode it to bytes first") from error
        except (_Unsupported, OverflowError, TypeError, RecursionError, msgspec.MsgspecError) as error:
            raise BadDataError(f"{_at(place)}{error}", hint="numbers, text, bytes, lists, dicts and paths can be sent") from error
        return value

    def _settle_key(self, key: Any, place: str) -> Any:
        try:
            self._encoder.encode(key)
        except (_Unsupported, OverflowError, TypeError, UnicodeEncodeError, msgspec.MsgspecError) as error:
            raise BadDataError(f"{_at(place)}the dict key {_label(key)} cannot be sent", hint="use text or small numbers") from error
        return key


class ValueDecoder:
    """decode_value with its decoder kept, for those who decode many values."""

    def __init__(self, on_file: OnFile | None = None, kind: Any = Any) -> None:
        self._on_file = on_file
        self._decoder = msgspec.msgpack.Decoder(kind, ext_hook=self._hook)

    def decode(self, raw: bytes | bytearray | memoryview | msgspec.Raw) -> Any:
        """As decode_value."""
        try:
            return self._decoder.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, TypeError) as error:
            raise MalformedError(f"not a value: {error}") from error

    def _hook(self, code: int, data: memoryview) -> Any:
        if code == EXT_INTEGER:
            if len(data) > INTEGER_BYTES_MAX:
                raise ValueError("an integer is too long")
            return int.from_bytes(data, "big", signed=True)
        if code != EXT_FILE:
            raise ValueError(f"extension type {code} is not known")
        reference = msgspec.msgpack.decode(data, type=FileRef)
        if len(reference.blob) != _BLOB_BYTES or reference.size_bytes < 0 or not is_plain_name(reference.name):
            raise ValueError("a file reference is malformed")
        return reference if self._on_file is None else self._on_file(reference)


def is_plain_name(name: str) -> bool:
    """Whether a foreign file name is one ordinary name: no folders, no dots alone, no control characters."""
    return 0 < len(name) <= FILE_NAME_CHARS_MAX and name not in (".", "..") and name.isprintable() and "/" not in name and "\\" not in name


def _holds_a_set(value: Any, depth: int) -> bool:
    """Whether a set hides in these containers. Looks at the types of all members at C speed, enters containers only."""
    kind = type(value)
    if kind is set or kind is frozenset:
        return True
    if depth == 0:
        return False
    if isinstance(value, dict):
        members: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        members = value
    else:
        names = _field_names(value)
        if names is None:
            return False
        members = [getattr(value, name) for name in names]
    if _SCALARS.issuperset(map(type, members)):
        return False
    return any(type(member) not in _SCALARS and _holds_a_set(member, depth - 1) for member in members)


def _field_names(value: Any) -> tuple[str, ...] | None:
    """The fields of a dataclass or struct instance, else None. A class itself is no value."""
    if isinstance(value, type):
        return None
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return tuple(fields)
    return getattr(type(value), "__struct_fields__", None)


def _sorted_members(members: list[Any], encoder: msgspec.msgpack.Encoder) -> list[Any]:
    try:
        return sorted(members)
    except TypeError:
        return sorted(members, key=encoder.encode)


def _big_integer(value: int, place: str) -> msgspec.msgpack.Ext:
    size_bytes = value.bit_length() // 8 + 1
    if size_bytes > INTEGER_BYTES_MAX:
        raise BadDataError(f"{_at(place)}an integer of {value.bit_length()} bits is too long", hint="write it to a file")
    return msgspec.msgpack.Ext(EXT_INTEGER, value.to_bytes(size_bytes, "big", signed=True))


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


def _at(place: str) -> str:
    return f"{place if len(place) <= 200 else '...' + place[-197:]}: " if place else ""
