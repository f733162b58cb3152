"""What a guest answers, checked before anything is done with it.

The guest can say whatever it likes about its own units: that is its owner's loss. It cannot say more than it may, in another form than
the node can read, or make this process write anywhere but into the outbox.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import NamedTuple

import msgspec

from ...errors import BadDataError, MalformedError
from . import frames
from .engine import Failure
from .files import Folders

FAILURE_BYTES_MAX = 1 << 16
"""Longest description of an error."""
LOG_BYTES_MAX = 16 << 10
REPORT = struct.Struct("<II")
"""Behind the outcomes: sizes of what was printed, and of the files."""
FILES_MAX = 4096
"""Files that the units of one chunk return."""
_OUTCOMES = bytes((frames.OK, frames.RAISED, frames.TOO_LARGE, frames.UNENCODABLE))
_BLOB_BYTES = 32
_OPEN = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


class Answer(NamedTuple):
    """The results of a chunk of units."""

    outcomes: bytes
    payloads: bytes | bytearray
    """Behind one another."""
    files: list[tuple[int, bytes, int, str]]
    """(unit within the chunk, blob id, size in bytes, name in the outbox)."""


class _Report(NamedTuple):
    """What a guest says before its results."""

    outcomes: bytes
    log: bytes
    files: list[tuple[int, int, str, bytes]]
    """(unit within the chunk, where its blob id stands in the results, name, content)."""


class _Description(msgspec.Struct, frozen=True):
    type: str
    message: str
    traceback: str


_files = msgspec.msgpack.Decoder(list[tuple[int, int, str, bytes]])
_descriptions = msgspec.msgpack.Decoder(_Description)
_lists = msgspec.msgpack.Decoder(list[msgspec.Raw])


def check_answer(raw: bytes, count: int, result_bytes_max: int, folders: Folders) -> tuple[Answer, bytes]:
    """The results of ``count`` units, and what they printed. Their files are in the outbox. Raises Failure."""
    try:
        header, region = _parted(raw, count)
        payloads = _lists.decode(frames.array_header(count) + region)
        _check(header, payloads, count, result_bytes_max)
        if not header.files:
            return Answer(header.outcomes, region, []), header.log
        patched = bytearray(region)
        return Answer(header.outcomes, patched, _taken_files(header, payloads, patched, folders)), header.log
    except MalformedError as error:
        raise Failure(frames.RAISED, "Trap", error.message) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Failure(frames.RAISED, "Trap", f"the guest's answer cannot be read: {error}") from None


def check_description(payload: bytes | msgspec.Raw) -> bytes:
    """``payload``, if it describes an error. Raises MalformedError."""
    if len(payload) <= FAILURE_BYTES_MAX:
        try:
            _descriptions.decode(payload)
            return bytes(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
    raise MalformedError("the guest's description of an error is none")


def _parted(raw: bytes, count: int) -> tuple[_Report, bytes]:
    """The report and the results in an answer. Raises MalformedError, msgspec's errors."""
    if len(raw) < count + REPORT.size:
        raise MalformedError("the guest's answer is cut off")
    log_bytes, files_bytes = REPORT.unpack_from(raw, count)
    log_end = count + REPORT.size + log_bytes
    files_end = log_end + files_bytes
    if len(raw) < files_end:
        raise MalformedError("the guest's answer is cut off")
    files = _files.decode(raw[log_end:files_end]) if files_bytes else []
    return _Report(raw[:count], raw[count + REPORT.size : log_end], files), raw[files_end:]


def _check(header: _Report, payloads: list[msgspec.Raw], count: int, result_bytes_max: int) -> None:
    """Raises MalformedError."""
    outcomes = header.outcomes
    if len(outcomes) != count or outcomes.translate(None, _OUTCOMES):
        raise MalformedError("the guest reported outcomes that it cannot know")
    if len(header.log) > LOG_BYTES_MAX or len(header.files) > FILES_MAX:
        raise MalformedError("the guest printed, or returned, more than it may")
    if not any(outcomes) and sum(map(len, payloads)) <= result_bytes_max:
        return  # The usual case: no single one can be over the limit.
    for outcome, payload in zip(outcomes, payloads, strict=True):
        if outcome != frames.OK:
            check_description(payload)
        elif len(payload) > result_bytes_max:
            raise MalformedError("the guest reported a result over the limit")


def _taken_files(header: _Report, payloads: list[msgspec.Raw], region: bytearray, folders: Folders) -> list[tuple[int, bytes, int, str]]:
    """Write returned files to the outbox, and their blob ids to where the guest left room. Raises Failure, MalformedError."""
    starts = [0]
    for payload in payloads:
        starts.append(starts[-1] + len(payload))
    taken: list[tuple[int, bytes, int, str]] = []
    try:
        for unit, place, _, content in header.files:
            if not 0 <= unit < len(payloads) or header.outcomes[unit] != frames.OK:
                raise MalformedError("the guest returned a file of no unit")
            if not starts[unit] <= place <= starts[unit + 1] - _BLOB_BYTES or any(region[place : place + _BLOB_BYTES]):
                raise MalformedError("the guest left no room for a file's address")
            blob, size_bytes, name = _written(content, folders)
            region[place : place + _BLOB_BYTES] = blob
            taken.append((unit, blob, size_bytes, name))
    except BaseException:
        folders.drop_moved()
        raise
    folders.moved.clear()
    return taken


def _written(content: bytes, folders: Folders) -> tuple[bytes, int, str]:
    """A file with this content in the outbox: its blob id, size and name there. Raises Failure."""
    path = os.path.join(folders.scratch, "returned")
    try:
        number = os.open(path, _OPEN, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(number, view) :]
        finally:
            os.close(number)
        folders.take(path, {})
    except (OSError, BadDataError) as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        why = error.message if isinstance(error, BadDataError) else f"a returned file cannot be kept: {error.strerror or error}"
        raise Failure(frames.UNENCODABLE, "BadDataError", why) from None
    return folders.moved[-1]
