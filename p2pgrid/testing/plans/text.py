"""From the text of a scenario file to its structs: what TOML cannot say is read here, and every mistake gets its place.

Sizes may be text with a unit. Keys nobody knows are refused with what was perhaps meant. A place is written as people
count: ``[[faults]] 2`` is the second table of that name.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from p2pgrid.errors import BadDataError, UsageError
from p2pgrid.model.sizes import parse_size

T = TypeVar("T", bound=msgspec.Struct)
NOT_WRITTEN = ("folder",)
"""Fields of the whole that no file may set."""
_PATH = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"^\.(?P<table>\w+)(?:\[(?P<number>\d+)\])?")


def bad(name: str, place: str, text: str, hint: str) -> BadDataError:
    """An error that says where it is: ``name: place: text``, what is empty left out."""
    return BadDataError(": ".join(part for part in (name, place, text) if part), hint=hint)


def meant(word: str, known: Iterable[str]) -> str:
    """A hint for a word that is not among the known ones."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known are {', '.join(names)}"


def tables(text: str, name: str, kind: type[T]) -> T:
    """The struct that a TOML text describes. Raises BadDataError with the place of what is wrong."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "nested too deeply"
        raise bad(name, "", f"not valid TOML: {reason}", "scenario files are TOML: [table], [[table of many]], key = value") from error
    if name:
        raw.setdefault("name", name)
    known = [field for field in kind.__struct_fields__ if field not in NOT_WRITTEN]
    _check_keys(raw, known, name, "")
    for place, table, inner in _inner_tables(raw, kind):
        _check_keys(table, inner.__struct_fields__, name, place)
        for field in inner.__struct_fields__:
            if "_bytes" in field and field in table:
                table[field] = _sized(table[field], name, f"{place}: {field}")
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _located(error, name) from error


def _check_keys(table: dict[str, Any], known: Iterable[str], name: str, place: str) -> None:
    for key in table:
        if key not in known:
            raise bad(name, place, f"unknown key '{key}'", meant(key, known))


def _inner_tables(raw: dict[str, Any], kind: type[msgspec.Struct]) -> Iterator[tuple[str, dict[str, Any], type[msgspec.Struct]]]:
    """(place, table, its struct) of every table below the top. What is no table where one belongs is left to the conversion."""
    for field, hint in typing.get_type_hints(kind).items():
        value = raw.get(field)
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        if isinstance(inner, types.UnionType) or not issubclass(inner, msgspec.Struct):
            continue
        if isinstance(value, list):
            yield from ((f"[[{field}]] {number}", table, inner) for number, table in enumerate(value, 1) if isinstance(table, dict))
        elif isinstance(value, dict):
            yield f"[{field}]", value, inner


def _sized(value: Any, name: str, place: str) -> Any:
    """A size, or bounds of one, as a number of bytes."""
    if isinstance(value, list):
        return [_sized(part, name, place) for part in value]
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except UsageError as error:
        raise bad(name, place, error.message, 'for example "64MiB", or a number of bytes') from error


def _located(error: msgspec.ValidationError, name: str) -> BadDataError:
    """The conversion's complaint, with its place as people count."""
    match = _PATH.match(str(error))
    assert match is not None
    what, path = match["what"], match["path"] or ""
    place = ""
    if step := _STEP.match(path):
        path = path[step.end() :]
        if step["number"] is not None:
            place = f"[[{step['table']}]] {int(step['number']) + 1}"
        else:
            place = f"[{step['table']}]" if path else step["table"]
    inner = path.removeprefix(".").replace("[...]", "")
    what = what.replace("Object missing required field", "lacks the key").replace("`", "'")
    what = what.replace("'array'", "'[low, high]'").replace("| array'", "| [low, high]'").replace("Expected", "expected")
    return bad(
        name, ": ".join(part for part in (place, inner) if part), what, "docs/reference/scenario-files.md has every key and its type"
    )
