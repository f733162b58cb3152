"""The files of a unit, in memory: a folder to work in, and the inputs that were brought along. Nothing else exists to be opened.

Python's own `os`, `io` and everything built on them (pathlib, shutil, tempfile, zipfile ...) work on this tree, because ``world``
puts these functions in the places of those that would ask a system.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import stat as stat_bits
from collections.abc import Callable
from typing import Any

FOLDER = "/unit"
"""Where units run, and where relative paths lead."""
INPUTS = "/inputs"
_BUFFER_BYTES = 1 << 16
_STAMP_S = 1_577_836_800
"""When every file was changed, in seconds since 1970: the moment at which units begin."""
_DESCRIPTORS_MAX = 256
_FIRST_DESCRIPTOR = 3

Folder = dict[str, Any]
"""Names to a bytearray (a file) or another Folder."""


class Storage:
    """One tree of files."""

    def __init__(self) -> None:
        self.root: Folder = {}
        self.working = FOLDER
        self.read_only: set[int] = set()
        """Identities of the files that are inputs."""
        self.open_files: dict[int, MemoryFile] = {}
        self.touched = False
        """Whether the running unit has asked for anything in here that it could have changed."""
        self.clear()

    def clear(self) -> None:
        """The next unit finds its folder empty, whatever the last one left."""
        self.root[FOLDER[1:]] = {}
        self.root.setdefault(INPUTS[1:], {})
        self.working = FOLDER
        for file in list(self.open_files.values()):
            file.drop()
        self.open_files.clear()
        self.touched = False

    def forget_inputs(self) -> None:
        """Drop all inputs."""
        self.root[INPUTS[1:]] = {}
        self.read_only.clear()

    def absolute(self, path: Any) -> str:
        """The normal form of a path."""
        text = os.fspath(path)
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        if "\0" in text:
            raise ValueError("embedded null character")
        normal = posixpath.normpath(posixpath.join(self.working, text))
        return "/" + normal.lstrip("/")

    def find(self, path: Any) -> Any:
        """The file or folder at a path. Raises FileNotFoundError, NotADirectoryError."""
        self.touched = True
        node: Any = self.root
        if not os.fspath(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        for name in self.absolute(path).split("/"):
            if not name:
                continue
            if not isinstance(node, dict):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if name not in node:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = node[name]
        return node

    def parent(self, path: Any) -> tuple[Folder, str]:
        """The folder that a path lies in, and its last name. Only the unit's folder can be changed."""
        where = self.absolute(path)
        above, name = posixpath.split(where)
        folder = self.find(above)
        if not isinstance(folder, dict):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if not (where + "/").startswith(FOLDER + "/") or where == FOLDER:
            raise PermissionError(errno.EACCES, "only files in the unit's own folder can be changed", path)
        return folder, name

    def state(self, node: Any) -> os.stat_result:
        """What ``stat`` says. Times stand still: they would only make results differ."""
        if isinstance(node, dict):
            mode, size_bytes = stat_bits.S_IFDIR | 0o700, 0
        else:
            mode, size_bytes = stat_bits.S_IFREG | (0o444 if id(node) in self.read_only else 0o600), len(node)
        return os.stat_result((mode, id(node), 1, 1, 0, 0, size_bytes, _STAMP_S, _STAMP_S, _STAMP_S))

    def open_node(self, path: Any, *, create: bool, fresh: bool, truncate: bool, write: bool) -> bytearray:
        """The file to be opened, made if that is wanted."""
        try:
            node = self.find(path)
        except FileNotFoundError:
            if not create:
                raise
            folder, name = self.parent(path)
            node = folder[name] = bytearray()
            return node
        if isinstance(node, dict):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if fresh:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if write and id(node) in self.read_only:
            raise PermissionError(errno.EACCES, "an input file cannot be changed", path)
        if truncate:
            del node[:]
        found: bytearray = node
        return found


storage = Storage()


class MemoryFile(io.RawIOBase):
    """An open file; stands in the place of ``io.FileIO``."""

    def __init__(self, file: Any, mode: str = "r", closefd: bool = True, opener: Callable[..., int] | None = None) -> None:
        super().__init__()
        self._owned, self._number, self._data = False, -1, bytearray()  # What cannot be opened is closed all the same.
        kind = mode.replace("b", "")
        plus = "+" in kind
        kind = kind.replace("+", "")
        if kind not in ("r", "w", "a", "x"):
            raise ValueError(f"invalid mode: {mode}")
        self.name = file
        self.mode = ("rb+" if plus else "rb") if kind == "r" else f"{kind}b{'+' if plus else ''}"
        self._reads, self._writes, self._appends = kind == "r" or plus, kind != "r" or plus, kind == "a"
        self._position = 0
        if opener is not None:
            file = opener(file, _flags(kind, plus))
        if isinstance(file, int) and not isinstance(file, bool):
            other = opened(file)
            self._data, self._number = other._data, file
            self._position = other._position
            self._owned = closefd
        else:
            self._data = storage.open_node(file, create=kind != "r", fresh=kind == "x", truncate=kind == "w", write=self._writes)
            self._number, self._owned = _next_descriptor(), True
        storage.open_files[self._number] = self
        if self._appends:
            self._position = len(self._data)

    @property
    def closefd(self) -> bool:
        """As io.FileIO."""
        return self._owned

    def readable(self) -> bool:
        """As io.FileIO."""
        return self._reads

    def writable(self) -> bool:
        """As io.FileIO."""
        return self._writes

    def seekable(self) -> bool:
        """As io.FileIO."""
        return True

    def fileno(self) -> int:
        """As io.FileIO."""
        self._check()
        return self._number

    def isatty(self) -> bool:
        """As io.FileIO."""
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        """As io.FileIO."""
        self._check()
        base = (0, self._position, len(self._data))[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """As io.FileIO."""
        self._check()
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As io.FileIO."""
        self._check()
        if not self._reads:
            raise io.UnsupportedOperation("not readable")
        view = memoryview(buffer).cast("B")
        part = self._data[self._position : self._position + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readall(self) -> bytes:
        """As io.FileIO."""
        self._check()
        if not self._reads:
            raise io.UnsupportedOperation("not readable")
        part = bytes(memoryview(self._data)[self._position :])
        self._position += len(part)
        return part

    def write(self, data: Any) -> int:
        """As io.FileIO."""
        self._check()
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        raw = bytes(data)
        if self._appends:
            self._position = len(self._data)
        missing = self._position - len(self._data)
        if missing > 0:
            self._data += bytes(missing)
        self._data[self._position : self._position + len(raw)] = raw
        self._position += len(raw)
        return len(raw)

    def truncate(self, size: int | None = None) -> int:
        """As io.FileIO."""
        self._check()
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        size = self._position if size is None else size
        if size < len(self._data):
            del self._data[size:]
        else:
            self._data += bytes(size - len(self._data))
        return size

    def close(self) -> None:
        """As io.FileIO."""
        if not self.closed:
            super().close()
            if self._owned and storage.open_files.get(self._number) is self:
                del storage.open_files[self._number]

    def drop(self) -> None:
        """Its unit is over: whatever still holds it finds it empty."""
        self._data = bytearray()

    def state(self) -> os.stat_result:
        """As fstat."""
        return storage.state(self._data)

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def _flags(kind: str, plus: bool) -> int:
    access = os.O_RDWR if plus else os.O_RDONLY if kind == "r" else os.O_WRONLY
    return access | {"r": 0, "w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL}[kind]


def opened(number: int) -> MemoryFile:
    file = storage.open_files.get(number)
    if file is None or file.closed:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return file


def _next_descriptor() -> int:
    for number in range(_FIRST_DESCRIPTOR, _DESCRIPTORS_MAX):
        if number not in storage.open_files:
            return number
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def open_file(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Callable[..., int] | None = None,
) -> Any:
    """As the builtin ``open``."""
    binary = "b" in mode
    if len(set(mode)) != len(mode) or set(mode) - set("rwaxbt+") or ("t" in mode and binary):
        raise ValueError(f"invalid mode: {mode!r}")
    if binary and (encoding is not None or errors is not None or newline is not None):
        raise ValueError("binary mode takes no encoding, errors or newline argument")
    raw = MemoryFile(file, mode.replace("t", "").replace("b", ""), closefd, opener)
    if buffering == 0:
        if not binary:
            raise ValueError("can't have unbuffered text I/O")
        return raw
    size_bytes = buffering if buffering > 1 else _BUFFER_BYTES
    buffer: Any
    if "+" in mode:
        buffer = io.BufferedRandom(raw, size_bytes)  # The stubs want the typeshed's own FileIO.
    else:
        buffer = io.BufferedReader(raw, size_bytes) if raw.readable() else io.BufferedWriter(raw, size_bytes)
    if binary:
        return buffer
    text = io.TextIOWrapper(
        buffer, encoding if encoding not in (None, "locale") else "utf-8", errors, newline, line_buffering=buffering == 1
    )
    text.mode = mode  # type: ignore[misc] # As the builtin does it.
    return text


def open_code(path: str) -> Any:
    """As io.open_code."""
    return open_file(path, "rb")
