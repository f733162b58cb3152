"""What a running process may not keep from the node: the size of its folder, and what a command's processes take together.

1. No limit of the kernel that needs no privilege counts these: a file size is bounded, not their sum; memory is bounded for a
   process, not for a tree of them. So the node looks, about five times a second of running, and ends a process that is over.
2. Nothing here trusts what it looks at. Links are not followed, folders are opened one inside the other and never by a
   long path, and counting ends where a limit is passed: a look has a bounded cost whatever lies there.
3. A process is found by its parents: whatever a command starts descends from its runner, which adopts what lost its own parent.

Looking blocks on the disk: :meth:`Watchdog.look` is for an :class:`~p2pgrid.offload.Offload`, and keeps no thread of its own.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from p2pgrid.runtimes.tasks import BatchTask, PoolPolicy

LOOK_S = 0.2
"""Seconds of running between two looks, unless a look takes long."""
LOOK_SHARE = 0.1
"""The part of the time that may go into looking."""
LOOK_MAX_S = 2.0
DEPTH_MAX = 64
"""Folders inside of each other; each costs the looking node an open file."""
THREADS_FACTOR = 16
"""Threads that a command may have for each process it may have."""
HIDDEN_MAX = 4
"""Files without a name that are mapped and not open: their size cannot be seen."""
GIVEN = "given"
"""The part of a private folder that the node fills: not counted."""
_BLOCK_BYTES = 512
_TREE_ROOM = 8
"""Processes read past the limit before counting stops: those of our own are among them."""


class Bounds(NamedTuple):
    """What one worker process may have. ``processes`` and ``memory_bytes`` are of what a command starts; 0 where they are not looked at."""

    folder_bytes: int
    folder_entries: int
    processes: int = 0
    memory_bytes: int = 0

    @classmethod
    def of(cls, task: BatchTask, policy: PoolPolicy) -> Bounds:
        """Those of the process that runs a task."""
        if task.runtime != "command":
            return cls(policy.folder_bytes_max, policy.folder_entries_max)
        return cls(policy.folder_bytes_max, policy.folder_entries_max, policy.processes_max, task.memory_bytes or policy.memory_bytes)


class Watchdog:
    """Looks at one process, over all its batches. Make it before the process gets its first units."""

    def __init__(self, folder: Path, process_id: int, bounds: Bounds) -> None:
        """``process_id``: of what the node started; all that belongs to the process descends from it."""
        self._folder = folder
        self._process_id = process_id
        self._bounds = bounds
        self._own = frozenset(tree_of(process_id, _TREE_ROOM)) if bounds.processes else frozenset((process_id,))
        """Launcher and runner of commands: there before any command is."""
        self._unseen_s = 0.0
        self._pause_s = LOOK_S

    @property
    def due_s(self) -> float:
        """Seconds of running until the next look."""
        return max(0.0, self._pause_s - self._unseen_s)

    def ran(self, seconds: float) -> None:
        """A batch ended that nobody looked at for so long: many short ones must not go unseen."""
        self._unseen_s += seconds

    def looked(self, took_s: float) -> None:
        """A look was taken, and took so many seconds: one that is dear is taken less often."""
        self._unseen_s = 0.0
        self._pause_s = min(max(LOOK_S, took_s / LOOK_SHARE), LOOK_MAX_S)

    def look(self) -> str:
        """What the process has too much of, as the predicate of a sentence about it; empty when all is well. Blocks, never raises."""
        bounds = self._bounds
        tree = tree_of(self._process_id, bounds.processes + _TREE_ROOM)
        found = self._look_at_tree(tree) if bounds.processes else ""
        if found:
            return found
        folder = weigh_folder(self._folder, bounds.folder_bytes, bounds.folder_entries)
        if folder.trouble:
            return folder.trouble
        nameless = weigh_nameless(tree, bounds.folder_bytes - folder.size_bytes)
        return nameless.trouble

    def _look_at_tree(self, tree: list[int]) -> str:
        bounds = self._bounds
        started = [process_id for process_id in tree if process_id not in self._own]
        if len(started) > bounds.processes:
            return f"had {len(started)} processes or more at one time, and {bounds.processes} are allowed"
        taken = [read for process_id in started if (read := _read_status(process_id)) is not None]
        threads, limit = sum(read.threads for read in taken), bounds.processes * THREADS_FACTOR
        if threads > limit:
            return f"had {threads} threads in {_processes(len(taken))}, and {limit} are allowed"
        if not bounds.memory_bytes or sum(read.memory_bytes for read in taken) <= bounds.memory_bytes:
            return ""
        # Pages that several processes share were counted for each of them. Counting right is dear, so it is done only here.
        used_bytes = sum(_proportional_bytes(read) for read in taken)
        if used_bytes <= bounds.memory_bytes:
            return ""
        return f"used {size_text(used_bytes)} of memory in {_processes(len(taken))}, and {size_text(bounds.memory_bytes)} are allowed"


class Weight(NamedTuple):
    """What was found on the disk; with ``trouble``, counting ended early."""

    size_bytes: int = 0
    entries: int = 0
    trouble: str = ""


def weigh_folder(folder: Path, bytes_max: int, entries_max: int) -> Weight:
    """The bytes that the files of a private folder occupy, and how many names there are in it. Blocks, never raises."""
    size_bytes = entries = 0
    known: set[tuple[int, int]] = set()
    try:
        for state in _states(folder):
            if state is None:
                return Weight(size_bytes, entries, f"made a folder that cannot be looked into, or {DEPTH_MAX} inside of each other")
            entries += 1
            if entries > entries_max:
                return Weight(size_bytes, entries, f"had more than the {entries_max} files and folders allowed in its folder")
            if state.st_nlink > 1 and not stat.S_ISDIR(state.st_mode):
                if (state.st_dev, state.st_ino) in known:
                    continue
                known.add((state.st_dev, state.st_ino))
            size_bytes += _occupied_bytes(state)
            if size_bytes > bytes_max:
                return Weight(size_bytes, entries, f"wrote more than the {size_text(bytes_max)} allowed into its folder")
    except OSError:
        # The node is out of open files, or the folder is gone: the next look will tell.
        return Weight(size_bytes, entries)
    return Weight(size_bytes, entries)


def _states(folder: Path) -> Iterator[os.stat_result | None]:
    """What lies in a folder, at any depth, in no order; None for a place that cannot be looked into."""
    with _Descent() as descent:
        try:
            descent.enter(str(folder), None)
        except PermissionError:
            yield None
        while descent.depth:
            entry = descent.next()
            if entry is None:
                continue
            if descent.depth == 1 and entry.name == GIVEN:
                continue
            try:
                state = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # It went away in between.
            yield state
            if not stat.S_ISDIR(state.st_mode):
                continue
            if descent.depth >= DEPTH_MAX:
                yield None
            try:
                descent.enter(entry.name, descent.number)
            except PermissionError:
                yield None
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno not in _SWAPPED:
                    raise


class _Descent:
    """Folders that are open, each inside the one before. Opened by name in their parent: a path could be turned into a link meanwhile."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._listings: list[Iterator[os.DirEntry[str]]] = []

    def __enter__(self) -> _Descent:
        return self

    def __exit__(self, *args: object) -> None:
        while self._numbers:
            self._leave()

    @property
    def depth(self) -> int:
        """How many are open."""
        return len(self._numbers)

    @property
    def number(self) -> int:
        """The innermost."""
        return self._numbers[-1]

    def enter(self, name: str, parent: int | None) -> None:
        """Open one more. Raises OSError."""
        number = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            listing = os.scandir(number)
        except BaseException:
            os.close(number)
            raise
        self._numbers.append(number)
        self._listings.append(listing)

    def next(self) -> os.DirEntry[str] | None:
        """The next entry of the innermost; None when there was no other, and the folder was left."""
        try:
            return next(self._listings[-1])
        except (StopIteration, OSError):
            self._leave()
            return None

    def _leave(self) -> None:
        listing = self._listings.pop()
        listing.close()  # type: ignore[attr-defined]
        os.close(self._numbers.pop())


def weigh_nameless(tree: list[int], bytes_max: int) -> Weight:
    """The same of files that have no name any more and are held open or mapped. Processes that hide theirs are passed over."""
    size_bytes, known, mapped = 0, set[int](), set[int]()
    for process_id in tree:
        for state in _open_files(process_id):
            if state.st_nlink == 0 and stat.S_ISREG(state.st_mode) and state.st_ino not in known:
                known.add(state.st_ino)
                size_bytes += _occupied_bytes(state)
                if size_bytes > bytes_max:
                    return Weight(size_bytes, len(known), "wrote more into its folder than is allowed, and removed the names of the files")
        mapped |= _mapped_nameless(process_id)
    hidden = mapped - known
    if len(hidden) > HIDDEN_MAX:
        return Weight(size_bytes, len(known), f"kept {len(hidden)} files without names, and {HIDDEN_MAX} are allowed")
    return Weight(size_bytes, len(known))


def _open_files(process_id: int) -> Iterator[os.stat_result]:
    try:
        with os.scandir(f"/proc/{process_id}/fd") as listing:
            for entry in listing:
                try:
                    yield os.stat(entry.path)
                except OSError:
                    continue
    except OSError:
        return


def _mapped_nameless(process_id: int) -> set[int]:
    """Inodes of removed files that a process maps."""
    try:
        with open(f"/proc/{process_id}/maps", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        if line.endswith(b" (deleted)"):
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and (fields[5] == _TAKEN or any(part in fields[5] for part in _WRITABLE_PARTS)):
                found.add(int(fields[4]))
    return found


_TAKEN = b"/ (deleted)"
"""How a file shows in a cage that the node took and has removed since."""
_WRITABLE_PARTS = (b"/scratch/", b"/outbox/", b"/inputs/")
"""Of a private folder. Libraries that were replaced while they are in use show as removed files too, elsewhere."""
_SWAPPED = frozenset((40, 20))
"""ELOOP and ENOTDIR: a folder became a link or a file while it was looked at."""


def _occupied_bytes(state: os.stat_result) -> int:
    """Of the disk: a file with holes takes less than its size."""
    blocks: int = getattr(state, "st_blocks", -1)
    return blocks * _BLOCK_BYTES if blocks >= 0 else state.st_size


def tree_of(process_id: int, processes_max: int) -> list[int]:
    """A process and all that descends from it, by the process table (Linux; else it alone). Stops counting behind ``processes_max``."""
    found = [process_id]
    if sys.platform != "linux":
        return found
    for parent in found:  # It grows meanwhile.
        for child in _children_of(parent, processes_max):
            if child not in found:
                found.append(child)
            if len(found) > processes_max:
                return found
    return found


def _children_of(process_id: int, children_max: int) -> Iterator[int]:
    """Children of all threads of a process."""
    try:
        threads = os.listdir(f"/proc/{process_id}/task")
    except OSError:
        return
    for thread in threads:
        try:
            with open(f"/proc/{process_id}/task/{thread}/children", "rb") as file:
                words = file.read().split()
        except OSError:
            continue
        yield from map(int, words[: children_max + 1])


class _Status(NamedTuple):
    process_id: int
    threads: int
    memory_bytes: int
    """Resident and swapped out."""


def _read_status(process_id: int) -> _Status | None:
    fields = _read_fields(f"/proc/{process_id}/status")
    if fields is None:
        return None
    kilobytes = fields.get(b"VmRSS", 0) + fields.get(b"VmSwap", 0)
    return _Status(process_id, fields.get(b"Threads", 1), kilobytes * 1024)


def _proportional_bytes(read: _Status) -> int:
    """The same, with each page divided by how many share it; where that cannot be read, without."""
    fields = _read_fields(f"/proc/{read.process_id}/smaps_rollup")
    if not fields or b"Pss" not in fields:
        return read.memory_bytes
    return (fields[b"Pss"] + fields.get(b"SwapPss", 0)) * 1024


def _read_fields(path: str) -> dict[bytes, int] | None:
    """The numbers of a file with lines as ``Name:  123 kB``."""
    try:
        with open(path, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    fields = {}
    for line in lines:
        name, _, rest = line.partition(b":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"


def size_text(size_bytes: int) -> str:
    """As ``2.1 GiB``."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < 4:
        value /= 1024
        unit += 1
    text = f"{value:.1f}".removesuffix(".0")
    return f"{text} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
