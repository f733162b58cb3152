"""Small input files that travel inside batches: on disk while a task needs them, and no longer."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload
from p2pgrid.store.disk import Disk


class InputFiles:
    """Files of one folder, counted by the tasks that use them. Belongs to one event loop."""

    def __init__(self, folder: Path, offload: Offload, disk: Disk) -> None:
        self._folder = folder
        self._offload = offload
        self._disk = disk
        self._users: Counter[Path] = Counter()
        self._numbers = itertools.count()

    async def write(self, blob: BlobId, content: bytes, held: list[Path]) -> Path:
        """The file with this content, whose address was checked. ``held`` takes it at once, for :meth:`release`.

        Raises RefusedError when the disk is full.
        """
        path = self._folder / blob.hex()
        self._users[path] += 1
        held.append(path)
        try:
            return await self._offload.run(self._write, path, path.with_suffix(f".{next(self._numbers)}"), content)
        except OSError as error:
            raise RefusedError(f"an input file cannot be written: {error.strerror}", reason=Reason.DISK_FULL) from error

    def release(self, held: Sequence[Path]) -> None:
        """A task has ended; what nobody else uses is removed. At once: the next task must not see a file that is about to go."""
        for path in held:
            self._users[path] -= 1
            if self._users[path] <= 0:
                del self._users[path]
                with suppress(OSError):
                    self._disk.unlink(path)

    def _write(self, path: Path, temporary: Path, content: bytes) -> Path:
        """Blocking: write a file unless it is there. Renamed into place, as two tasks may need it at once.

        Nothing is synced: the folder is emptied when the node starts.
        """
        if path.exists():
            return path
        disk = self._disk
        try:
            descriptor = disk.create(temporary)
            try:
                disk.write_at(descriptor, content, 0)
            finally:
                disk.close(descriptor)
            disk.rename(temporary, path)
        except OSError:
            with suppress(OSError):
                disk.unlink(temporary)
            raise
        return path
