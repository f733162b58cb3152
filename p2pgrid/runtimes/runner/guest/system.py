"""The functions of ``os`` that a system would answer, answered by the unit's storage."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from .storage import FOLDER, INPUTS, Folder, MemoryFile, opened, storage


class Entry:
    """What ``scandir`` yields; as os.DirEntry."""

    def __init__(self, folder: Any, name: str, node: Any) -> None:
        as_bytes = isinstance(os.fspath(folder), bytes)
        self.name = os.fsencode(name) if as_bytes else name
        self.path = os.path.join(os.fspath(folder), self.name)
        self._node = node

    def __fspath__(self) -> Any:
        return self.path

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """As os.DirEntry."""
        return isinstance(self._node, dict)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """As os.DirEntry."""
        return not isinstance(self._node, dict)

    def is_symlink(self) -> bool:
        """As os.DirEntry."""
        return False

    def is_junction(self) -> bool:
        """As os.DirEntry."""
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As os.DirEntry."""
        return storage.state(self._node)

    def inode(self) -> int:
        """As os.DirEntry."""
        return id(self._node)


class Entries:
    """The iterator of ``scandir``."""

    def __init__(self, folder: Any) -> None:
        node = _folder(folder)
        self._entries = iter([Entry(folder, name, item) for name, item in sorted(node.items())])

    def __iter__(self) -> Iterator[Entry]:
        return self._entries

    def __next__(self) -> Entry:
        return next(self._entries)

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """As the iterator of os.scandir."""


def _folder(path: Any) -> Folder:
    node = storage.find(path)
    if not isinstance(node, dict):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return node


def stat(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
    """As os.stat."""
    if isinstance(path, int):
        return fstat(path)
    return storage.state(storage.find(path))


def lstat(path: Any, *, dir_fd: int | None = None) -> os.stat_result:
    """As os.lstat."""
    return stat(path)


def fstat(fd: int) -> os.stat_result:
    """As os.fstat."""
    return opened(fd).state()


def access(path: Any, mode: int, *, dir_fd: int | None = None, effective_ids: bool = False, follow_symlinks: bool = True) -> bool:
    """As os.access."""
    try:
        node = storage.find(path)
    except OSError:
        return False
    return not (mode & os.W_OK and id(node) in storage.read_only)


def listdir(path: Any = ".") -> list[Any]:
    """As os.listdir, in a sorted order."""
    names = sorted(_folder(path))
    return [os.fsencode(name) for name in names] if isinstance(os.fspath(path), bytes) else names


def scandir(path: Any = ".") -> Entries:
    """As os.scandir."""
    return Entries(path)


def getcwd() -> str:
    """As os.getcwd."""
    return storage.working


def getcwdb() -> bytes:
    """As os.getcwdb."""
    return os.fsencode(storage.working)


def chdir(path: Any) -> None:
    """As os.chdir."""
    _folder(path)
    storage.working = storage.absolute(path)


def chmod(path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
    """There are no permissions: nothing happens, if the file is there."""
    storage.find(path)


def utime(path: Any, times: Any = None, *, ns: Any = None, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
    """There are no times: nothing happens, if the file is there."""
    storage.find(path)


def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    """As os.mkdir."""
    where = storage.absolute(path)
    if where in (FOLDER, INPUTS, "/"):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    folder, name = storage.parent(path)
    if name in folder:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    folder[name] = {}


def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
    """As os.rmdir."""
    node = _folder(path)
    folder, name = storage.parent(path)
    if node:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
    del folder[name]


def unlink(path: Any, *, dir_fd: int | None = None) -> None:
    """As os.unlink."""
    if isinstance(storage.find(path), dict):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    folder, name = storage.parent(path)
    del folder[name]


def rename(source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
    """As os.rename."""
    node = storage.find(source)
    old_folder, old_name = storage.parent(source)
    new_folder, new_name = storage.parent(target)
    if (storage.absolute(target) + "/").startswith(storage.absolute(source) + "/") and isinstance(node, dict):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), source)
    there = new_folder.get(new_name)
    if isinstance(there, dict) and (not isinstance(node, dict) or there):
        raise OSError(errno.ENOTEMPTY if isinstance(node, dict) else errno.EISDIR, "the target is a folder", target)
    del old_folder[old_name]
    new_folder[new_name] = node


def readlink(path: Any, *, dir_fd: int | None = None) -> str:
    """There are no links. Raises OSError."""
    storage.find(path)
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)


def truncate(path: Any, length: int) -> None:
    """As os.truncate."""
    with MemoryFile(path, "r+") as file:
        file.truncate(length)


def open_number(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """As os.open."""
    access_mode = flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
    writes = access_mode in (os.O_WRONLY, os.O_RDWR)
    storage.open_node(
        path,
        create=bool(flags & os.O_CREAT),
        fresh=bool(flags & os.O_EXCL and flags & os.O_CREAT),
        truncate=bool(flags & os.O_TRUNC),
        write=writes,
    )
    return MemoryFile(path, "a+" if flags & os.O_APPEND else "r+" if writes else "r").fileno()


def close_number(fd: int) -> None:
    """As os.close."""
    opened(fd).close()
    storage.open_files.pop(fd, None)


def read_number(fd: int, length: int) -> bytes:
    """As os.read."""
    return opened(fd).read(length) or b""


def write_number(fd: int, data: Any) -> int:
    """As os.write. What goes to standard output or error is printed."""
    if fd in (1, 2):
        import sys

        stream = sys.stdout if fd == 1 else sys.stderr
        stream.write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)
    return opened(fd).write(data)


def seek_number(fd: int, position: int, whence: int) -> int:
    """As os.lseek."""
    return opened(fd).seek(position, whence)


def truncate_number(fd: int, length: int) -> None:
    """As os.ftruncate."""
    opened(fd).truncate(length)


def sync_number(fd: int) -> None:
    """As os.fsync."""
    opened(fd)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "access": access,
    "chdir": chdir,
    "chmod": chmod,
    "close": close_number,
    "fdatasync": sync_number,
    "fstat": fstat,
    "fsync": sync_number,
    "ftruncate": truncate_number,
    "getcwd": getcwd,
    "getcwdb": getcwdb,
    "isatty": lambda fd: False,
    "listdir": listdir,
    "lseek": seek_number,
    "lstat": lstat,
    "mkdir": mkdir,
    "open": open_number,
    "read": read_number,
    "readlink": readlink,
    "remove": unlink,
    "rename": rename,
    "replace": rename,
    "rmdir": rmdir,
    "scandir": scandir,
    "stat": stat,
    "truncate": truncate,
    "unlink": unlink,
    "utime": utime,
    "write": write_number,
}
"""What takes the place of the functions of ``os``."""
