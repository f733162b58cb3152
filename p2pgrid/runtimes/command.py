"""The input and the result of a command unit, for those who make the one and read the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from p2pgrid.errors import BadDataError, MalformedError
from p2pgrid.model.values import EXT_FILE, FileRef


class CommandResult(NamedTuple):
    """What a command that succeeded left behind."""

    status: int
    stdout: bytes
    """Exactly as produced."""
    stderr: str
    """The last 4 KiB."""


def encode_command(argv: Sequence[str], *, stdin: bytes | None = None, files: Sequence[tuple[FileRef, str]] = ()) -> bytes:
    """The input of a unit that runs ``argv`` without a shell.

    ``files`` are placed, read-only, at paths relative to the command's folder. Raises BadDataError for an empty command, or for a place
    outside of that folder.
    """
    if not argv or any("\0" in argument for argument in argv):
        raise BadDataError("the command is empty, or has a zero byte in it")
    for _, place in files:
        if not is_safe_place(place):
            raise BadDataError(f"'{place}' is not a place inside of the command's folder", hint="use a relative path without '..'")
    references = [[msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(reference)), place] for reference, place in files]
    return msgspec.msgpack.encode([list(argv), stdin, references])


def decode_command_result(raw: bytes | msgspec.Raw) -> CommandResult:
    """Read the payload of a command unit whose outcome is OK. Raises MalformedError."""
    try:
        return msgspec.msgpack.decode(raw, type=CommandResult)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedError(f"not the result of a command: {error}") from error


def is_safe_place(place: str) -> bool:
    """Whether a path is plain and relative: no root, no '.' or '..', no backslash."""
    return "\\" not in place and "\0" not in place and all(part not in ("", ".", "..") for part in place.split("/"))
