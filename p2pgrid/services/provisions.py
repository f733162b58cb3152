"""What a job's units need besides their inputs: the runner or module they run in, and the packages they import.

Everything is fetched by its address and only for jobs that were admitted. Nothing of it is run here: that is done in cages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import Reason
from p2pgrid.services.charter import Charters
from p2pgrid.services.storing import Storing


class Packages(Protocol):
    """Builds environments (see :class:`~p2pgrid.services.environments.JobEnvironments`)."""

    async def folder(self, environment: bytes, sources: Sequence[bytes], *, own: bool = False) -> Path:
        """The folder with the packages of an environment, built first if it is not there. ``own``: for the owner's own job."""

    def release(self, folder: Path) -> None:
        """A task that used this folder has ended."""


class Provisions:
    """Finds runners, modules and packages."""

    def __init__(self, storing: Storing, charters: Charters, packages: Packages) -> None:
        self._storing = storing
        self._charters = charters
        self._packages = packages
        self._lent: Counter[Path] = Counter()

    async def program(self, job: Job, runtime: str, sources: Sequence[bytes]) -> tuple[Path | None, bytes]:
        """The WebAssembly file that hosts the units, and its address; none for machine code. Raises what fetching raises."""
        if runtime == "python":
            return await self._charters.path(job.runner, tuple(sources)), job.runner
        if runtime == "wasm":
            if not job.code_blob:
                raise RefusedError("the job has no module", reason=Reason.MALFORMED)
            return await self._storing.path(BlobId(job.code_blob), sources), job.code_blob
        return None, b""

    async def packages(self, job: Job, runtime: str, sources: Sequence[bytes], held: list[Path], *, own: bool) -> tuple[str, ...]:
        """Folders for ``sys.path`` of native units. ``held`` takes what is to be handed to :meth:`release`."""
        if runtime != "native" or not job.environment:
            return ()
        folder = await self._packages.folder(job.environment, sources, own=own)
        self._lent[folder] += 1
        held.append(folder)
        return (str(folder),)

    def release(self, held: Sequence[Path]) -> list[Path]:
        """A task has ended. Returns what was not lent from here."""
        others: list[Path] = []
        for path in held:
            if self._lent[path] <= 0:
                others.append(path)
                continue
            self._lent[path] -= 1
            self._packages.release(path)
        self._lent += Counter()
        return others
