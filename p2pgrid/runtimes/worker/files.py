"""Files of units: the scratch folder they run in, and the outbox for what they return.

A returned path is taken only if it is a regular file with one name inside the scratch folder, or an input passed back. It is
hashed here and moved to the outbox, out of reach of the cleaning; the node checks everything again.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ...errors import BadDataError
from ...model.values import FILE_NAME_CHARS_MAX, FileRef, is_plain_name

CHUNK_BYTES = 1 << 20
_ROOT_CONTEXT = "p2pgrid/1/blob-root"
_LAYERS_MAX = 100_000
"""Folders inside of each other that are cleared away; the depth of a tree costs its maker as much."""
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


def leave_modes_alone(scratch: str) -> None:
    """Have ``os.chmod`` and ``os.utime`` leave the unit's own files as they are where the cage forbids it: copying and unpacking go on.

    A cage that cannot tell the unit's files from the owner's forbids it for all of them.
    """
    for name in ("chmod", "utime"):
        setattr(os, name, _forgiving(getattr(os, name), scratch))


def _forgiving(change: Callable[..., None], scratch: str) -> Callable[..., None]:
    def attempt(path: Any, *arguments: Any, **options: Any) -> None:
        try:
            change(path, *arguments, **options)
        except PermissionError as error:
            own = not isinstance(path, int) and os.path.realpath(os.fsdecode(path)).startswith(scratch + os.sep)
            if error.errno != errno.EPERM or not own:
                raise

    functools.update_wrapper(attempt, change)
    for calls in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if change in calls:
            calls.add(attempt)
    return attempt


def empty_folder(path: str) -> None:
    """Remove everything inside, links not followed, however deep it goes. What cannot be removed stays."""
    try:
        top = _open_folder(path, None)
    except OSError:
        return
    try:
        for _ in range(_LAYERS_MAX):
            if not _flatten(top):
                return
    finally:
        os.close(top)


def _flatten(top: int) -> bool:
    """Remove all that is directly in an open folder; what lies in its folders moves up. Whether something did.

    So no path grows long and no recursion deep, and two open files suffice.
    """
    moved = False
    for name in _names(top):
        try:
            os.unlink(name, dir_fd=top)
            continue
        except OSError:
            pass  # A folder, most likely.
        try:
            os.rmdir(name, dir_fd=top)
            continue
        except OSError:
            pass  # It holds something.
        try:
            inner = _open_folder(name, top)
        except OSError:
            continue
        try:
            moved = _move_up(inner, top) or moved
        finally:
            os.close(inner)
        try:
            os.rmdir(name, dir_fd=top)
        except OSError:
            continue
    return moved


def _move_up(inner: int, top: int) -> bool:
    """Empty a folder into the one above it; files are removed on the way. Whether something was moved."""
    moved = False
    for position, name in enumerate(_names(inner)):
        try:
            os.unlink(name, dir_fd=inner)
            continue
        except OSError:
            pass
        try:
            os.rename(name, f".up-{os.fstat(inner).st_ino}-{position}", src_dir_fd=inner, dst_dir_fd=top)
            moved = True
        except OSError:
            # Without the right to write into it, it cannot be moved: its entry for the folder above would change.
            moved = _made_ours(name, inner) or moved
    return moved


def _made_ours(name: str, folder: int) -> bool:
    """Take the right to change a folder inside an open one. Whether that changed anything."""
    try:
        state = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(state.st_mode) or stat.S_IMODE(state.st_mode) & stat.S_IRWXU == stat.S_IRWXU:
            return False
        os.close(_open_folder(name, folder))
    except OSError:
        return False
    return True


def _open_folder(name: str, above: int | None) -> int:
    """A folder that can be read and changed, by its name alone; never through a link. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        number = os.open(name, flags, dir_fd=above)
    except PermissionError:
        # Its owner may have taken the right to look into it.
        _take_rights(name, above)
        number = os.open(name, flags, dir_fd=above)
    if stat.S_IMODE(os.fstat(number).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
        try:
            os.fchmod(number, 0o700)
        except OSError:
            return number  # A cage may not; then nobody in it took the right away either.
    return number


def _take_rights(name: str, above: int | None) -> None:
    """Make a folder readable for its owner. Raises OSError for what is no folder: a link must not lead the change elsewhere."""
    if sys.platform == "linux" and os.path.isdir("/proc/self/fd"):
        number = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            os.chmod(f"/proc/self/fd/{number}", 0o700)
        finally:
            os.close(number)
        return
    # In a cage, where all that could be reached this way is the cage's own; or on a system without cages.
    if not stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
        raise NotADirectoryError(name)
    os.chmod(name, 0o700, dir_fd=above)


def _names(folder: int) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
