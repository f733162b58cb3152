"""A disk that can lose its power: real files in a temporary folder, and a memory of what was never synced.

1. Everything a node changes through this object is really done, at once, in real files; nothing is really synced.
   What a sync would have made durable is only remembered as such, see :mod:`p2pgrid.testing.parts.unsynced`.
2. :meth:`SimulatedDisk.crash` is the power cut: of every unsynced effect the random stream decides whether it reached
   the medium. Unsynced writes of a file are kept, lost or torn at any byte, in any order, and the size may be there
   without the content. Of the unsynced names of a folder a prefix is kept, as with a metadata journal.
3. :meth:`SimulatedDisk.kill` is the end of the process alone: nothing is lost, but what was unsynced still is, and a
   later power cut may take it.
4. After either the disk is dead for the node that used it: its changes fail and do nothing, its descriptors can be
   closed. :meth:`SimulatedDisk.revived` is the same disk for the next life.
5. SQLite writes its own files and is not covered: after a power cut the index is abandoned and may be deleted.
"""

from __future__ import annotations

import copy
import errno
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pgrid.errors import UsageError
from p2pgrid.store.disk import Disk
from p2pgrid.testing.parts.unsynced import NameJournal, OpenFile

MEMORY_FOLDER = Path("/dev/shm")  # noqa: S108  # a folder in memory, where there is one
LIMBO = ".limbo"
"""Ends the name of the folder, beside the disk's, where files wait that lost their names."""
OUTSIDE_MAX = 100
_FOLDERS_KNOWN_MAX = 4096


class PowerLoss(OSError):
    """The power went in the middle of this operation, as :meth:`SimulatedDisk.crash_at` planned."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the power went")


class Counters:
    """What happened on a disk, over all its lives."""

    def __init__(self) -> None:
        self.operations = 0
        """Everything that changes something, syncs included."""
        self.writes = 0
        self.syncs = 0
        self.bytes_written = 0
        self.torn = 0
        """Files whose unsynced content a power cut did not keep whole."""
        self.undone = 0
        """Changes of names that a power cut took back."""


class SimulatedDisk(Disk):
    """One machine's disk, for one life of its node. Belongs to one thread."""

    syncs = False

    def __init__(self, folder: Path, rng: random.Random, *, capacity_bytes: int = 0) -> None:
        """``folder``: must be there; all paths must lie below it. ``rng``: decides what a power cut takes.

        ``capacity_bytes``: bytes of file content that fit, 0 for no limit.
        """
        self.folder = Path(os.path.realpath(folder))
        self.outside: list[str] = []
        """Paths that somebody wanted to change and that do not lie below the folder; the first hundred."""
        self.on_power_loss: Callable[[], None] | None = None
        """Called when a planned loss of power happens, before :class:`PowerLoss` is raised."""
        self.counters = Counters()
        self._rng = rng
        self._prefix = str(self.folder) + os.sep
        self._limbo = f"{self.folder}{LIMBO}"
        self._limbo_count = 0
        self._folders_known: dict[str, bool] = {}
        self._open: dict[int, OpenFile] = {}
        self._files: dict[str, OpenFile] = {}
        self._journal = NameJournal(self._forget)
        self._dead = False
        self._bytes_left = -1
        self._operations_left = -1
        self._capacity_bytes = capacity_bytes
        self._free: int | None = None
        self._filled = False
        self.relieve()

    # -- faults ----------------------------------------------------------------------------

    def crash(self) -> None:
        """The machine loses its power. What is unsynced may be gone; the disk is dead for its node."""
        self._dead = True
        for file in dict.fromkeys(self._files.values()):
            self.counters.torn += file.strike(self._rng)
        self.counters.undone += self._journal.strike(self._rng)
        self._files.clear()
        shutil.rmtree(self._limbo, ignore_errors=True)

    def kill(self) -> None:
        """The node's process dies; the machine, with all it has in memory, goes on. The disk is dead for its node."""
        self._dead = True

    def revived(self) -> SimulatedDisk:
        """The same disk for the node's next life. Raises UsageError while this life goes on."""
        if not self._dead:
            raise UsageError("revived() needs crash() or kill()")
        self.bury()
        life = copy.copy(self)
        life._open = {}
        life._dead = False
        life._bytes_left = life._operations_left = -1
        if not life._filled:
            life.relieve()
        return life

    @property
    def dead(self) -> bool:
        """Whether this life is over."""
        return self._dead

    def crash_at(self, byte_number: int) -> None:
        """Let the power go once so many more bytes were written, in the middle of a write if need be.

        The write that gets there raises :class:`PowerLoss`, and the disk is dead; call :meth:`crash` to let the power
        cut take effect, or :meth:`kill` to keep every byte that was written. 0: before the next byte.
        """
        self._bytes_left = byte_number

    def crash_before(self, operations: int) -> None:
        """As :meth:`crash_at`, before the operation that comes after so many more. Writes, syncs and names all count."""
        self._operations_left = operations

    def settle(self) -> None:
        """All that was written reaches the medium, as systems see to within half a minute."""
        self._journal.settle_all()
        for file in list(self._files.values()):
            file.effects = []
            self._drop(file)

    @property
    def full(self) -> bool:
        """Whether not one byte more fits."""
        return self._free == 0

    @property
    def free_bytes(self) -> int | None:
        """Bytes that still fit; None without a limit."""
        return self._free

    def free_bytes_at(self, folder: Path) -> int | None:
        return self._free

    def fill(self, free_bytes: int = 0) -> None:
        """Somebody else fills the disk: so many bytes are left. What the node removes becomes free."""
        self._free, self._filled = free_bytes, True

    def relieve(self) -> None:
        """Back to the capacity of the disk."""
        self._filled = False
        self._free = max(0, self._capacity_bytes - sum(_sizes(self.folder).values())) if self._capacity_bytes else None

    def rot(self, rng: random.Random, below: Path) -> Path | None:
        """Flip one bit of one stored file below a folder; returns which, or None when there is no byte."""
        found = [path for path, size_bytes in _sizes(below).items() if size_bytes]
        if not found:
            return None
        path = rng.choice(found)
        with path.open("r+b", buffering=0) as file:
            place = rng.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << rng.randrange(8)]))
        return path

    @property
    def open_descriptors(self) -> int:
        """Descriptors that this life's node has open through this object."""
        return len(self._open)

    def bury(self) -> None:
        """Close what a dead node left open, as its system would."""
        for descriptor in list(self._open):
            self.close(descriptor)

    @property
    def unsynced(self) -> int:
        """Effects that a power cut might take now."""
        return sum(len(file.effects) for file in dict.fromkeys(self._files.values())) + self._journal.pending

    # -- what the node does ----------------------------------------------------------------

    def create(self, path: Path, *, exclusive: bool = False) -> int:
        name = self._begin(path)
        if not exclusive:
            try:
                return self._opened(name, super().modify(path))
            except FileNotFoundError:
                pass
        descriptor = super().create(path, exclusive=True)
        self._files.pop(name, None)
        self._journal.note("", name)
        return self._opened(name, descriptor, 0)

    def modify(self, path: Path) -> int:
        name = self._begin(path)
        return self._opened(name, super().modify(path))

    def close(self, descriptor: int) -> None:
        file = self._open.pop(descriptor, None)
        if file is None:
            if self._dead:
                return
            raise OSError(errno.EBADF, "not a descriptor of this disk")
        os.close(descriptor)
        file.opened -= 1
        self._drop(file)

    def write_at(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        file = self._descriptor(descriptor)
        wanted = len(data)
        fits = self._fitting(file, offset, wanted)
        count = fits if self._bytes_left < 0 else min(fits, self._bytes_left)
        if count:
            file.before_write(descriptor, offset, count)
            super().write_at(descriptor, data if count == wanted else memoryview(data)[:count], offset)
            self.counters.writes += 1
            self.counters.bytes_written += count
        if self._bytes_left >= 0 and wanted:
            self._bytes_left -= count
            if self._bytes_left == 0:
                raise self._power_loss()
        if fits < wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self, descriptor: int) -> None:
        self._descriptor(descriptor).effects = []
        self.counters.syncs += 1

    def sync_data(self, descriptor: int) -> None:
        self.sync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        file = self._descriptor(descriptor)
        growth = size_bytes - file.size_bytes
        if self._free is not None:
            if growth > self._free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._free -= growth
        file.before_truncate(descriptor, size_bytes)
        super().truncate(descriptor, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        old, new = self._begin(source), self._begin(target, count=False)
        limbo = self._keep(new, moved=False)
        try:
            super().rename(source, target)
        except OSError:
            if limbo:
                self._back(new, limbo)
            raise
        self._rename_file(old, new)
        self._journal.note(old, new, limbo)

    def link(self, source: Path, target: Path) -> None:
        old, new = self._begin(source), self._begin(target, count=False)
        super().link(source, target)
        file = self._files.get(old)
        if file is not None:
            file.names.append(new)
            self._files[new] = file
        self._journal.note("", new)

    def unlink(self, path: Path) -> None:
        name = self._begin(path)
        limbo = self._keep(name, moved=True)
        if limbo:
            self._journal.note(name, "", limbo)

    def make_folder(self, path: Path) -> None:
        name = self._begin(path)
        if os.path.isdir(name):
            return
        made = [name]
        while not os.path.exists(parent := os.path.dirname(made[-1])):
            made.append(parent)
        super().make_folder(path)
        for folder in reversed(made):
            self._journal.note("", folder)

    def make_private(self, path: Path) -> None:
        self._begin(path)
        super().make_private(path)

    def sync_folder(self, path: Path) -> None:
        self._step()
        self.counters.syncs += 1
        self._journal.settle(os.fspath(path))

    # -- the gate ---------------------------------------------------------------------------

    def _step(self) -> None:
        if self._dead:
            raise OSError(errno.EIO, "the machine is down")
        self.counters.operations += 1
        if self._operations_left >= 0:
            if self._operations_left == 0:
                raise self._power_loss()
            self._operations_left -= 1

    def _power_loss(self) -> PowerLoss:
        self._dead = True
        if self.on_power_loss is not None:
            self.on_power_loss()
        return PowerLoss()

    def _begin(self, path: Path, *, count: bool = True) -> str:
        """The name of a path that may be changed now."""
        if count:
            self._step()
        name = os.fspath(path)
        parent = name.rpartition(os.sep)[0]
        known = self._folders_known.get(parent)
        if known is None:
            if len(self._folders_known) >= _FOLDERS_KNOWN_MAX:
                self._folders_known.clear()
            # A link on the way may lead out of the folder as well as dots.
            known = self._folders_known[parent] = (os.path.realpath(parent) + os.sep).startswith(self._prefix)
        if (not known and os.path.realpath(name) + os.sep != self._prefix) or name.endswith(("/.", "/..")):
            if len(self.outside) < OUTSIDE_MAX:
                self.outside.append(name)
            raise OSError(errno.EPERM, "outside the simulated disk", name)
        return name

    def _descriptor(self, descriptor: int) -> OpenFile:
        self._step()
        file = self._open.get(descriptor)
        if file is None:
            raise OSError(errno.EBADF, "not a descriptor of this disk")
        return file

    def _fitting(self, file: OpenFile, offset: int, wanted: int) -> int:
        """How many bytes of a write fit; they are taken."""
        if self._free is None:
            return wanted
        # A hole before the write costs as much as content: disks without sparse files are the stricter ones.
        missing = max(0, offset + wanted - file.size_bytes - self._free)
        fits = max(0, wanted - missing)
        if fits:
            self._free -= max(0, offset + fits - file.size_bytes)
        return fits

    # -- files ------------------------------------------------------------------------------

    def _opened(self, name: str, descriptor: int, size_bytes: int = -1) -> int:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = OpenFile(name, size_bytes if size_bytes >= 0 else os.fstat(descriptor).st_size)
        file.opened += 1
        self._open[descriptor] = file
        return descriptor

    def _drop(self, file: OpenFile) -> None:
        """Only files that are open, or have something unsynced, are remembered."""
        if not file.opened and not file.effects:
            for name in file.names:
                if self._files.get(name) is file:
                    del self._files[name]

    def _keep(self, name: str, *, moved: bool) -> str:
        """Keep a file that loses its name until that is durable; returns where, "" when there is none."""
        self._limbo_count += 1
        limbo = f"{self._limbo}{os.sep}{self._limbo_count}"
        try:
            self._into_limbo(name, limbo, moved)
        except FileNotFoundError:
            if os.path.isdir(self._limbo):
                return ""
            os.mkdir(self._limbo, 0o700)
            try:
                self._into_limbo(name, limbo, moved)
            except FileNotFoundError:
                return ""
        if self._free is not None:
            status = os.lstat(limbo)
            self._free += status.st_size if status.st_nlink <= (1 if moved else 2) else 0
        self._rename_file(name, limbo)
        return limbo

    @staticmethod
    def _into_limbo(name: str, limbo: str, moved: bool) -> None:
        if not moved:
            os.link(name, limbo)
        elif os.path.isdir(name) and not os.path.islink(name):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        else:
            os.rename(name, limbo)

    def _back(self, name: str, limbo: str) -> None:
        """A rename did not happen: its target was not replaced."""
        if self._free is not None:
            self._free -= min(self._free, os.lstat(limbo).st_size)
        self._rename_file(limbo, name)
        with suppress(OSError):
            os.unlink(limbo)

    def _rename_file(self, old: str, new: str) -> None:
        file = self._files.pop(old, None)
        if file is not None:
            file.names[file.names.index(old)] = new
            self._files[new] = file

    def _forget(self, limbo: str) -> None:
        """Nobody can come back to this file."""
        with suppress(OSError):
            os.unlink(limbo)
        file = self._files.pop(limbo, None)
        if file is not None:
            file.names.remove(limbo)


def _sizes(folder: Path) -> dict[Path, int]:
    """The regular files below a folder, each with its bytes."""
    found = {path: path.lstat() for path in sorted(folder.rglob("*"))}
    return {path: status.st_size for path, status in found.items() if stat.S_ISREG(status.st_mode)}


@contextmanager
def temporary_folder(prefix: str = "p2pgrid-") -> Iterator[Path]:
    """A new folder for simulated disks, in memory where the system has a place for that, removed afterwards."""
    parent = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK) else None
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=prefix, dir=parent)))
    try:
        yield folder
    finally:
        for left in (folder, Path(f"{folder}{LIMBO}")):
            shutil.rmtree(left, ignore_errors=True)
