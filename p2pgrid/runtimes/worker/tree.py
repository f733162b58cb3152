"""The files that a WebAssembly unit sees: a small tree in memory, made anew for each unit and gone with it.

Input files are mapped read-only from where the node placed them, so that only what is read costs memory. What the unit writes is its
own scratch space: bounded in bytes and entries, and not kept. Nothing here ever opens a path that a unit named.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator

WRITTEN_BYTES_MAX = 64 << 20
"""What all files that one unit writes may hold together."""
ENTRIES_MAX = 4096
PATH_BYTES_MAX = 4096
DEPTH_MAX = 64
NAME_BYTES_MAX = 255

ACCES, EXIST, INVAL, ILSEQ, ISDIR, NAMETOOLONG = 2, 20, 28, 25, 31, 37
NOENT, NOSPC, NOTDIR, NOTEMPTY, FBIG, PERM, NOTCAPABLE = 44, 51, 54, 55, 22, 63, 76


class Refused(Exception):
    """A call that the unit gets an error number for."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class File:
    """A file: a mapping of an input, or bytes that the unit wrote."""

    def __init__(self, inode: int, content: bytearray | None = None, place: str = "") -> None:
        self.inode = inode
        self.written = content
        """None for an input."""
        self._place = place
        self._mapping: mmap.mmap | bytes | None = None
        self._size_bytes = os.stat(place).st_size if place else 0

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return self._size_bytes if self.written is None else len(self.written)

    def read(self, start: int, size_bytes: int) -> bytes:
        """Up to ``size_bytes`` from ``start``; empty at the end."""
        if start >= self.size_bytes:
            return b""
        if self.written is not None:
            return bytes(self.written[start : start + size_bytes])
        if self._mapping is None:
            self._mapping = _map(self._place, self._size_bytes)
        return self._mapping[start : start + size_bytes]

    def close(self) -> None:
        """Let go of the mapping."""
        if isinstance(self._mapping, mmap.mmap):
            self._mapping.close()
        self._mapping = None


class Folder:
    """A folder: names and what they stand for."""

    def __init__(self, inode: int, parent: Folder | None) -> None:
        self.inode = inode
        self.parent = parent or self
        self.entries: dict[bytes, File | Folder] = {}
        self.depth: int = 0 if parent is None else parent.depth + 1

    def listing(self) -> list[tuple[bytes, File | Folder]]:
        """All entries, in an order that depends on their names alone; itself and its parent first."""
        return [(b".", self), (b"..", self.parent), *sorted(self.entries.items(), key=lambda entry: entry[0])]


Node = File | Folder


class Tree:
    """The files of one unit."""

    def __init__(self, *, written_bytes_max: int = WRITTEN_BYTES_MAX) -> None:
        self.root = Folder(1, None)
        self._inodes = 1
        self._entries = 0
        self._files: list[File] = []
        self._left_bytes = written_bytes_max

    def add_input(self, place: str, source: str) -> None:
        """Put the regular file ``source`` at the relative path ``place``. Raises Refused, and OSError when it cannot be read."""
        *folders, name = place.encode("utf-8", "surrogateescape").split(b"/")
        folder = self.root
        for part in folders:
            known = folder.entries.get(part)
            if known is None:
                known = self._new_folder(folder, part)
            if not isinstance(known, Folder):
                raise Refused(NOTDIR)
            folder = known
        self._check_new(folder, name)
        self._enter(folder, name, File(self._next_inode(), place=source))

    def find(self, base: Folder, path: bytes) -> Node:
        """What a path stands for. Raises Refused."""
        folder, name = self.parent_of(base, path)
        node = folder if not name else folder.entries.get(name)
        if node is None:
            raise Refused(NOENT)
        if isinstance(node, File) and path.endswith(b"/"):
            raise Refused(NOTDIR)
        return node

    def parent_of(self, base: Folder, path: bytes) -> tuple[Folder, bytes]:
        """The folder that holds the last part of a path, and that part: empty when the path is the folder itself. Raises Refused.

        A path never leads out of ``base``, by ``..`` or from the root.
        """
        if not path:
            raise Refused(NOENT)
        if len(path) > PATH_BYTES_MAX:
            raise Refused(NAMETOOLONG)
        if path.startswith(b"/"):
            raise Refused(NOTCAPABLE)
        if b"\0" in path:
            raise Refused(INVAL)
        folder, name = base, b""
        for part in _parts(path):
            if name:
                folder, name = _entered(folder, name), b""
            if part != b"..":
                name = part
            elif folder is base:
                raise Refused(NOTCAPABLE)
            else:
                folder = folder.parent
        return folder, name

    def create(self, folder: Folder, name: bytes) -> File:
        """A new empty file. Raises Refused."""
        self._check_new(folder, name)
        file = File(self._next_inode(), content=bytearray())
        self._enter(folder, name, file)
        return file

    def make_folder(self, folder: Folder, name: bytes) -> None:
        """A new folder. Raises Refused."""
        if not name or name in folder.entries:
            raise Refused(EXIST)
        self._new_folder(folder, name)

    def remove(self, folder: Folder, name: bytes, *, is_folder: bool) -> None:
        """Remove a file, or an empty folder. Raises Refused. What a removed file held still counts until the unit ends."""
        node = folder.entries.get(name)
        if not name or node is None:
            raise Refused(NOENT if name else INVAL)
        if is_folder and isinstance(node, File):
            raise Refused(NOTDIR)
        if not is_folder and isinstance(node, Folder):
            raise Refused(ISDIR)
        if isinstance(node, Folder) and node.entries:
            raise Refused(NOTEMPTY)
        del folder.entries[name]
        self._entries -= 1

    def rename(self, source: tuple[Folder, bytes], target: tuple[Folder, bytes]) -> None:
        """Give a node another place; a file or an empty folder that is there goes. Raises Refused."""
        (old_folder, old_name), (new_folder, new_name) = source, target
        node = old_folder.entries.get(old_name)
        if not old_name or not new_name or node is None:
            raise Refused(NOENT)
        there = new_folder.entries.get(new_name)
        if there is node:
            return
        if isinstance(node, Folder):
            self._check_move(node, new_folder)
        if there is not None:
            if isinstance(there, Folder) != isinstance(node, Folder):
                raise Refused(ISDIR if isinstance(there, Folder) else NOTDIR)
            self.remove(new_folder, new_name, is_folder=isinstance(there, Folder))
        _check_name(new_name)
        del old_folder.entries[old_name]
        new_folder.entries[new_name] = node
        if isinstance(node, Folder):
            node.parent, node.depth = new_folder, new_folder.depth + 1

    def write(self, file: File, start: int, parts: Iterator[bytes], size_bytes: int) -> None:
        """Put ``size_bytes`` bytes at ``start``, zeros before it if the file is shorter. Raises Refused before anything is changed."""
        if file.written is None:
            raise Refused(ACCES)
        self.resize(file, max(len(file.written), start + size_bytes))
        for part in parts:
            file.written[start : start + len(part)] = part
            start += len(part)

    def resize(self, file: File, size_bytes: int) -> None:
        """Cut a file off, or fill it up with zeros. Raises Refused."""
        if file.written is None:
            raise Refused(ACCES)
        more = size_bytes - len(file.written)
        if more > self._left_bytes:
            raise Refused(NOSPC)
        self._left_bytes -= more
        if more < 0:
            del file.written[size_bytes:]
        else:
            file.written.extend(bytes(more))

    def close(self) -> None:
        """Let go of all that is mapped."""
        for file in self._files:
            file.close()

    def _new_folder(self, folder: Folder, name: bytes) -> Folder:
        self._check_new(folder, name)
        if folder.depth >= DEPTH_MAX:
            raise Refused(NOSPC)
        made = Folder(self._next_inode(), folder)
        self._enter(folder, name, made)
        return made

    def _check_new(self, folder: Folder, name: bytes) -> None:
        _check_name(name)
        if name in folder.entries:
            raise Refused(EXIST)
        if self._entries >= ENTRIES_MAX or self._inodes >= 16 * ENTRIES_MAX:
            raise Refused(NOSPC)

    def _check_move(self, node: Folder, target: Folder) -> None:
        """A folder cannot go into itself, nor deeper than allowed."""
        above = target
        while above is not above.parent:
            if above is node:
                raise Refused(INVAL)
            above = above.parent
        if target.depth + _height(node) >= DEPTH_MAX:
            raise Refused(NOSPC)

    def _enter(self, folder: Folder, name: bytes, node: Node) -> None:
        folder.entries[name] = node
        self._entries += 1
        if isinstance(node, File):
            self._files.append(node)

    def _next_inode(self) -> int:
        self._inodes += 1
        return self._inodes


def _parts(path: bytes) -> Iterator[bytes]:
    return (part for part in path.split(b"/") if part not in (b"", b"."))


def _entered(folder: Folder, name: bytes) -> Folder:
    node = folder.entries.get(name)
    if node is None:
        raise Refused(NOENT)
    if not isinstance(node, Folder):
        raise Refused(NOTDIR)
    return node


def _check_name(name: bytes) -> None:
    if not name:
        raise Refused(EXIST)
    if len(name) > NAME_BYTES_MAX:
        raise Refused(NAMETOOLONG)
    try:
        name.decode()
    except UnicodeDecodeError:
        raise Refused(ILSEQ) from None


def _height(folder: Folder) -> int:
    """Folders below this one, itself included. Not by recursion: a unit decides how deep it goes."""
    height, level = 0, [folder]
    while level:
        height += 1
        level = [child for parent in level for child in parent.entries.values() if isinstance(child, Folder)]
    return height


def _map(place: str, size_bytes: int) -> mmap.mmap | bytes:
    """The content of a regular file, read as it is needed. Raises OSError."""
    number = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode) or state.st_size != size_bytes:
            raise OSError("an input file is not what it was")
        return mmap.mmap(number, size_bytes, access=mmap.ACCESS_READ) if size_bytes else b""
    finally:
        os.close(number)
