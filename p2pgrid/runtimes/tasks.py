"""What goes into a worker process and what comes out of it, in columns: a batch is the unit of work here, never a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from p2pgrid.model.ids import BlobId
from p2pgrid.model.limits import DEFAULT_LIMITS, GIB
from p2pgrid.runtimes.worker import frames


class Outcome(IntEnum):
    """How a unit ended: one byte each in a chunk."""

    OK = frames.OK
    """The payload is the encoded result."""
    RAISED = frames.RAISED
    """The payload of this and all below is an encoded dict: type, message, traceback."""
    TIMED_OUT = frames.TIMED_OUT
    DIED = frames.DIED
    TOO_LARGE = frames.TOO_LARGE
    UNENCODABLE = frames.UNENCODABLE
    """It returned something that cannot travel; to be counted as raised."""


class Kind(IntEnum):
    """Which function of the job a batch calls, and with what."""

    MAP = frames.MAP
    """Each input is an item: work(item)."""
    REDUCE = frames.REDUCE
    """Each input is a list of values, folded with reduce(a, b)."""
    FINISH = frames.FINISH
    """Each input is what finish(results) takes."""
    COMMAND = frames.COMMAND
    """Each input is a command, see ``command.encode_command``."""


class JobKey(NamedTuple):
    """Whose batch it is. Processes are shared by jobs of one submitter with the same code, never by two submitters."""

    submitter: bytes
    job: bytes


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """The program of a job."""

    source: str = ""
    file_name: str = "job.py"
    """Shown in tracebacks."""
    entry: str = "work"
    seed: bytes = b""
    """Makes chance repeatable: the random module is seeded for each unit from this and the unit's index."""
    path: tuple[str, ...] = ()
    """Folders with the job's packages, for ``sys.path``."""
    program: Path | None = None
    """``wasm``: the module; ``python``: the runner. A file that nobody changes; its bytes are what ``program_id`` names."""
    program_id: bytes = b""
    """BLAKE3 blob id of the program: what a compiled form is filed under."""


class BatchTask(msgspec.Struct, frozen=True, kw_only=True):
    """One batch to run."""

    job: JobKey
    code: Code
    runtime: str = "native"
    """``native``, ``command``, ``python`` or ``wasm``."""
    trusted: bool = False
    """The owner's own job: it may run without a cage where none holds."""
    fresh: bool = False
    """``python``: a guest of its own for each unit, so that fuel can be compared."""
    fuel_max: int = 0
    """Fuel that one unit may burn; 0: only the time-out ends it."""
    kind: Kind = Kind.MAP
    first: int = 0
    """Index of the first unit in its job."""
    inputs: bytes | list[msgspec.Raw]
    """One encoded value for each unit: a msgpack array, or its members."""
    timeout_s: float = 0.0
    """Wall seconds for each unit; 0 for none."""
    files: Mapping[BlobId, Path] = {}
    """Where the files that inputs refer to lie, read-only."""
    result_bytes_max: int = DEFAULT_LIMITS.result_bytes
    memory_bytes: int = 0
    """Private memory the process may use; 0 for no limit."""


class FileOutput(msgspec.Struct, frozen=True):
    """A file that a unit returned. It belongs to the receiver of the chunk, who moves or removes it.

    ``blob`` is what the worker claims: whoever takes the file in computes it again.
    """

    index: int
    blob: BlobId
    size_bytes: int
    path: Path


class BatchChunk(msgspec.Struct, frozen=True):
    """Consecutive units that have ended: for each one outcome byte and one payload (encoded, unread)."""

    first: int
    outcomes: bytes
    payloads: list[msgspec.Raw]
    run_us: int
    """Microseconds of wall time that these units took together."""
    files: list[FileOutput] = []
    fuel: bytes = b""
    """What each unit burnt, 8 bytes little-endian a unit; empty where the runtime does not count."""


OnResults = Callable[[BatchChunk], None]


class PoolPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a worker pool."""

    slots: int = 1
    """Batches that run at one time."""
    idle_max: int = 4
    """Warm processes that wait for more work of their job; the one unused for longest is ended first."""
    idle_s: float = 120.0
    """A process idle for longer is ended."""
    spare_s: float = 120.0
    """How long after the last use an interpreter stands ready for the next job; 0: none does."""
    waiting_max: int = 1024
    """Batches that wait for a slot; more are refused as busy."""
    start_s: float = 60.0
    """Time for a process to start and load the job's code."""
    kill_s: float = 2.0
    """Time for a killed process to be gone."""
    file_bytes_max: int = GIB
    """Largest file a unit may write."""
    open_files_max: int = 256
    nice: int = 19
    """Added to the niceness of workers, so that they give way to the owner."""
    python: str = ""
    """The interpreter for workers; empty for the running one."""
    path: tuple[str, ...] = ()
    """Folders for every worker's ``sys.path``, behind the job's own."""
    cage: str = "auto"
    """The level of confinement: ``auto`` (the strongest that this machine can), ``namespaces``, ``landlock`` or ``bare``."""
    memory_bytes: int = 0
    """Private memory of a process whose job does not say; 0 for no limit."""
    folder_bytes_max: int = GIB
    """What the private folder of a process may hold before the process is ended."""
    folder_entries_max: int = 10_000
    """How many files and folders it may hold."""
    processes_max: int = 64
    """Processes that a command may have at one time."""
    programs: Path | None = None
    """Where compiled modules are kept (0700); None: beside the pool's folder."""


class Workers(Protocol):
    """Where units run (see :class:`~p2pgrid.runtimes.pool.WorkerPool`)."""

    async def start(self) -> None:
        """Prepare. Call before anything else."""

    async def run(self, task: BatchTask, on_results: OnResults) -> None:
        """Run a batch; every unit is handed to ``on_results`` exactly once, in order."""

    async def cancel(self, job: bytes) -> None:
        """Stop everything of a job."""

    def wind_down(self) -> None:
        """Take nothing more and start no further unit: the units that run end and are reported, what is left raises ``drained``."""

    async def stop(self) -> None:
        """End everything that runs, at once. Files that units returned stay until ``close``."""

    def resume(self) -> None:
        """Take batches again after ``wind_down`` and ``stop``, both of which have returned."""

    async def close(self) -> None:
        """End all. Bounded in time."""
