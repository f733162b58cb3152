"""Files of units: the scratch folder they run in, and the outbox for what they return.

A returned path is taken only if it is a regular file with one name inside the scratch folder, or an input passed back. It is
hashed here and moved to the outbox, out of reach of the cleaning; the node checks everything again.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any

import msgspec

from ...errors import BadDataError
from ...model.values import FILE_NAME_CHARS_MAX, FileRef, is_plain_name

CHUNK_BYTES = 1 << 20
_ROOT_CONTEXT = "p2pgrid/1/blob-root"
_COARSE_CLOCK_S = 0.02
"""Folders stamp their changes with a clock that may stand still this long."""


class Folders:
    """The private folders of this process."""

    def __init__(self, folder: str, file_bytes_max: int) -> None:
        self.scratch = os.path.join(os.path.realpath(folder), "scratch")
        self._outbox = os.path.join(os.path.realpath(folder), "outbox")
        self._named = os.path.join(os.path.realpath(folder), "inputs")
        self._inputs: dict[tuple[str, str], str] = {}
        self._file_bytes_max = file_bytes_max
        self._taken = 0
        self._scratch_number = os.open(self.scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._clean_stamp = os.fstat(self._scratch_number).st_mtime_ns
        self._look_until = 0.0
        self.moved: list[tuple[bytes, int, str]] = []
        """What the running unit returned so far: (blob id, size in bytes, name in the outbox)."""

    def enter(self) -> None:
        """Make the scratch folder the working directory."""
        os.fchdir(self._scratch_number)

    def clean(self, now: float) -> None:
        """Remove what the last unit left. Two system calls when it left nothing; ``now`` in seconds, monotonic."""
        os.fchdir(self._scratch_number)
        changed = os.fstat(self._scratch_number).st_mtime_ns != self._clean_stamp
        if not changed and now > self._look_until:
            return
        if os.listdir(self._scratch_number):
            empty_folder(self.scratch)
            now = time.monotonic()
            changed = True
        if changed:
            self._look_until = now + _COARSE_CLOCK_S
            self._clean_stamp = os.fstat(self._scratch_number).st_mtime_ns

    def named_input(self, place: str, reference: FileRef) -> str:
        """A path to an input file that ends in the name its owner knows: a link in a folder of its own."""
        known = self._inputs.get((place, reference.name))
        if known is not None:
            return known
        name = reference.name
        if not is_plain_name(name):
            return place
        folder = os.path.join(self._named, str(len(self._inputs)))
        os.mkdir(folder, 0o700)
        link = os.path.join(folder, name)
        os.symlink(place, link)
        self._inputs[place, name] = link
        return link

    def forget_inputs(self) -> None:
        """Another batch begins; its inputs get links of their own."""
        if self._inputs:
            empty_folder(self._named)
            self._inputs.clear()

    def take(self, path: Any, inputs: dict[str, FileRef]) -> FileRef:
        """The reference of a path that a unit returned. Raises BadDataError when it cannot be taken along."""
        text = os.fspath(path)
        if text in inputs:
            return inputs[text]
        where = os.path.join(os.path.realpath(os.path.dirname(os.path.join(self.scratch, text))), os.path.basename(text))
        if not where.startswith(self.scratch + os.sep):
            raise BadDataError(f"the file {text} is outside of the unit's folder", hint="write it under the current directory")
        name = os.path.basename(where)
        if not is_plain_name(name):
            raise BadDataError(f"the file name {name[:FILE_NAME_CHARS_MAX]!r} cannot be sent")
        try:
            blob, size_bytes = self._digest(where, text)
            outbox_name = str(self._taken)
            self._taken += 1
            os.rename(where, os.path.join(self._outbox, outbox_name))
        except OSError as error:
            raise BadDataError(f"the file {text} cannot be read: {error.strerror}") from error
        self.moved.append((blob, size_bytes, outbox_name))
        return FileRef(blob, size_bytes, name)  # type: ignore[arg-type]

    def drop_moved(self) -> None:
        """Forget the files of a unit whose result is not sent after all."""
        for _, _, name in self.moved:
            try:
                os.unlink(os.path.join(self._outbox, name))
            except OSError:
                continue
        self.moved.clear()

    def _digest(self, where: str, text: str) -> tuple[bytes, int]:
        number = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            state = os.fstat(number)
            if not stat.S_ISREG(state.st_mode):
                raise BadDataError(f"{text} is not a regular file", hint="a folder can be packed with shutil.make_archive")
            if state.st_nlink != 1:
                raise BadDataError(f"the file {text} has more than one name")
            if state.st_size > self._file_bytes_max:
                raise BadDataError(f"the file {text} has {state.st_size} bytes, more than the {self._file_bytes_max} allowed")
            return blob_id_of(number, state.st_size), state.st_size
        finally:
            os.close(number)


def blob_id_of(number: int, size_bytes: int) -> bytes:
    """The blob id of an open file: the digest of its bytes, or above one chunk that of its chunks' digests."""
    from blake3 import blake3

    if size_bytes <= CHUNK_BYTES:
        return blake3(_read_exactly(number, size_bytes)).digest()
    digests = bytearray()
    left = size_bytes
    while left:
        part = _read_exactly(number, min(left, CHUNK_BYTES))
        digests += blake3(part).digest()
        left -= len(part)
    root = msgspec.msgpack.encode([size_bytes, CHUNK_BYTES, bytes(digests)])
    return blake3(root, derive_key_context=_ROOT_CONTEXT).digest()


def _read_exactly(number: int, size_bytes: int) -> bytes:
    parts = []
    while size_bytes:
        part = os.read(number, size_bytes)
        if not part:
            raise BadDataError("the file became shorter while it was read")
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)


def empty_folder(path: str) -> None:
    """Remove everything inside, links not followed. What cannot be removed stays."""
    try:
        os.chmod(path, 0o700)
        entries = list(os.scandir(path))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                empty_folder(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)
        except OSError:
            continue
