"""What a machine's memory holds and its medium does not: the unsynced part of files and of folders.

1. A file remembers every write and truncation since its last sync, together with the bytes that these replaced. At a
   power cut each of them reached the medium, or not, or in part: in any order, as page caches write back.
2. A folder remembers every name that was made, moved or removed since its last sync, in order. At a power cut a prefix
   of them reached the medium, as with a metadata journal. A rename between two folders is one entry of both, so
   what makes it durable for one makes it durable for the other, with all that came before it in either.
3. Content and names are independent: a name may be durable before the content behind it.
4. What grows beyond a bound is written back, oldest first, as systems do by themselves.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from p2pgrid.store.disk import read_at

EFFECTS_MAX = 1024
"""Unsynced writes of one file."""
CHANGES_MAX = 256
"""Unsynced changes of one folder's names."""
_RDWR = os.O_RDWR | getattr(os, "O_BINARY", 0)


class _Effect(NamedTuple):
    """One write, or one truncation, and what it replaced."""

    offset: int
    length: int
    """Bytes written; -1 for a truncation to ``offset``."""
    old: bytes
    old_size: int


class OpenFile:
    """One file that is open or has unsynced content. ``names`` are all paths that lead to it."""

    __slots__ = ("effects", "names", "opened", "size_bytes")

    def __init__(self, name: str, size_bytes: int) -> None:
        self.names = [name]
        self.size_bytes = size_bytes
        self.opened = 0
        self.effects: list[_Effect] = []

    def before_write(self, descriptor: int, offset: int, length: int) -> None:
        """Note what a write is about to replace."""
        size = self.size_bytes
        old = read_at(descriptor, min(length, size - offset), offset) if offset < size else b""
        self._note(_Effect(offset, length, old, size))
        self.size_bytes = max(size, offset + length)

    def before_truncate(self, descriptor: int, size_bytes: int) -> None:
        """Note what a truncation is about to cut off."""
        size = self.size_bytes
        if size_bytes != size:
            old = read_at(descriptor, size - size_bytes, size_bytes) if size_bytes < size else b""
            self._note(_Effect(size_bytes, -1, old, size))
            self.size_bytes = size_bytes

    def _note(self, effect: _Effect) -> None:
        if len(self.effects) >= EFFECTS_MAX:
            del self.effects[: EFFECTS_MAX // 2]
        self.effects.append(effect)

    def strike(self, rng: random.Random) -> bool:
        """Leave on the file what a power cut would. True when that is not all that was written."""
        fate = rng.randrange(4)
        if fate == 0 or not self.effects:
            return False
        try:
            descriptor = os.open(self.names[0], _RDWR)
        except FileNotFoundError:
            return False
        try:
            written = self._undo(descriptor)
            if fate > 1:
                self._redo(descriptor, written, rng)
        finally:
            os.close(descriptor)
        self.effects = []
        return True

    def _undo(self, descriptor: int) -> list[bytes]:
        """Back to what was synced; returns what each write had written."""
        written = []
        for effect in reversed(self.effects):
            written.append(read_at(descriptor, effect.length, effect.offset) if effect.length > 0 else b"")
            if effect.length < 0 or effect.offset + effect.length > effect.old_size:
                os.ftruncate(descriptor, effect.old_size)
            _write(descriptor, effect.old, effect.offset)
        return written[::-1]

    def _redo(self, descriptor: int, written: list[bytes], rng: random.Random) -> None:
        """Some of the effects again: whole, a prefix, or nothing but the size that the file system had noted."""
        for effect, data in zip(self.effects, written, strict=True):
            fate = rng.randrange(4)
            if effect.length < 0:
                if fate > 1:
                    os.ftruncate(descriptor, effect.offset)
            elif fate == 1:
                _write(descriptor, data, effect.offset)
            elif fate == 2:
                _write(descriptor, data[: rng.randrange(len(data) + 1)], effect.offset)
            elif fate == 3 and os.fstat(descriptor).st_size < effect.offset + effect.length:
                os.ftruncate(descriptor, effect.offset + effect.length)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    while data:
        data = data[os.write(descriptor, data) :]


class Change:
    """One change of names. ``source`` is what was there before, ``target`` what is there after it; "" is nothing.

    ``limbo`` is where a file waits that lost its name by this change.
    """

    __slots__ = ("folders", "limbo", "number", "settled", "source", "target")

    def __init__(self, number: int, source: str, target: str, limbo: str, folders: tuple[str, ...]) -> None:
        self.number, self.source, self.target, self.limbo, self.folders = number, source, target, limbo, folders
        self.settled = False

    def undo(self) -> None:
        """The names as they were before. All later changes in the same folders are undone already."""
        with suppress(OSError):
            if self.source and self.target:
                os.replace(self.target, self.source)
            elif self.target:
                _remove(self.target)
        if self.limbo:
            with suppress(OSError):
                os.replace(self.limbo, self.target or self.source)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


class NameJournal:
    """The unsynced names of all folders of a disk."""

    def __init__(self, forget: Callable[[str], None]) -> None:
        """``forget`` is told each path in limbo that nobody can come back to."""
        self._forget = forget
        self._folders: dict[str, list[Change]] = {}
        self._count = 0

    @property
    def pending(self) -> int:
        """Changes that a power cut may undo; one between two folders counts twice."""
        return sum(map(len, self._folders.values()))

    def note(self, source: str, target: str, limbo: str = "") -> None:
        """A change was made. The folders are those of the two paths."""
        first = (source or target).rpartition(os.sep)[0]
        second = (target or source).rpartition(os.sep)[0]
        self._count += 1
        change = Change(self._count, source, target, limbo, (first,) if first == second else (first, second))
        for folder in change.folders:
            changes = self._folders.setdefault(folder, [])
            changes.append(change)
            if len(changes) > CHANGES_MAX:
                self.settle(folder, changes[CHANGES_MAX // 2].number)

    def settle(self, folder: str, until: int | None = None) -> None:
        """Make the changes of a folder durable, as far as the number ``until``."""
        left = [(folder, self._count if until is None else until)]
        while left:
            name, number = left.pop()
            changes = self._folders.get(name, [])
            count = 0
            while count < len(changes) and changes[count].number <= number:
                change = changes[count]
                count += 1
                if not change.settled:
                    change.settled = True
                    left += [(other, change.number) for other in change.folders if other != name]
                    if change.limbo:
                        self._forget(change.limbo)
            del changes[:count]
            if not changes:
                self._folders.pop(name, None)

    def settle_all(self) -> None:
        """Make all names durable."""
        for folder in list(self._folders):
            self.settle(folder)

    def strike(self, rng: random.Random) -> int:
        """Leave the names that a power cut would; returns how many changes it undid."""
        for folder, changes in list(self._folders.items()):
            fate = rng.randrange(4)
            kept = (0, len(changes), rng.randrange(len(changes) + 1), rng.randrange(len(changes) + 1))[fate] if changes else 0
            if kept:
                self.settle(folder, changes[kept - 1].number)
        lost = {change.number: change for changes in self._folders.values() for change in changes}
        for number in sorted(lost, reverse=True):
            lost[number].undo()
        self._folders.clear()
        return len(lost)
