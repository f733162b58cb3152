"""A job as its submitter signs it, and the batches of units it names (docs/spec/job.md)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import msgspec

from p2pgrid.model.statement import Statement

RUNTIMES = ("native", "command", "python", "wasm")
"""What a node may offer: native Python, programs, Python inside WebAssembly, WebAssembly modules."""
AUTO = "auto"
"""In a job: native where the submitter is trusted and a cage holds, else ``python``. Each worker decides for itself."""


class UnitLimits(msgspec.Struct, frozen=True, array_like=True):
    """What one unit may use."""

    timeout_s: float = 3600.0
    memory_bytes: int = 0
    """0: whatever the worker allows."""
    result_bytes: int = 64 << 20


class BatchRef(NamedTuple):
    """A line of the job's manifest: a content-addressed list of units."""

    blob: bytes
    units: int
    size_bytes: int


class Derive(msgspec.Struct, frozen=True, array_like=True):
    """The rule for units that nobody signs: a tree of ``reduce`` over all results, then one ``finish``."""

    reduce: bool = False
    finish: bool = False
    fan_in: int = 32


class Job(Statement, frozen=True, array_like=True):
    """Everything a worker or keeper must know. ``expires_ms`` is the job's ``not_after``."""

    TYPE: ClassVar[str] = "job"

    nonce: bytes
    """16 random bytes: the same script submitted twice is two jobs; also the seed of its units."""
    created_ms: int
    name: str
    runtime: str
    code: bytes
    """The source text when it is at most 16 KiB, else empty."""
    code_blob: bytes
    """The blob with the source when ``code`` is empty."""
    manifest: tuple[BatchRef, ...]
    derive: Derive = Derive()
    limits: UnitLimits = UnitLimits()
    quorum: int = 1
    attempts: int = 3
    """How many workers may fail on a unit (time-out, death) before it is given up."""
    replicas: int = 3
    """Copies of each blob of the job."""
    runner: bytes = b""
    """The blob id of the Python runner that ``python`` units run in, the one the grid names; empty for other runtimes."""
    environment: bytes = b""
    """The blob id of the encoded Environment of native units (locked requirements and wheels); empty for none."""

    @property
    def map_units(self) -> int:
        """Units in the manifest, derived ones not counted."""
        return sum(batch.units for batch in self.manifest)


class BlobUse(NamedTuple):
    """A blob that a unit needs: ``kind`` is ``value`` (the input itself lies in the blob) or ``file``."""

    unit: int
    kind: str
    blob: bytes
    size_bytes: int


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The content of a batch: one msgpack value per unit, and the blobs those values refer to."""

    units: list[msgspec.Raw]
    blobs: tuple[BlobUse, ...] = ()
    files: tuple[tuple[bytes, bytes], ...] = ()
    """(blob id, content) of small input files, which travel inside the batch."""


class KeeperSet(Statement, frozen=True, array_like=True):
    """By the submitter key: which nodes keep this job, and which node leads it while it lives."""

    TYPE: ClassVar[str] = "keepers"

    job: bytes
    epoch: int
    lead: bytes
    keepers: tuple[bytes, ...]


class Cancel(Statement, frozen=True, array_like=True):
    """By the submitter key: terminal. Earlier decisions stay readable, later receipts are dropped."""

    TYPE: ClassVar[str] = "cancel"

    job: bytes


class Settled(Statement, frozen=True, array_like=True):
    """By the lead of the submitter: the job has ended; ``root`` is BLAKE3 over all decided digests, in unit order."""

    TYPE: ClassVar[str] = "settled"

    job: bytes
    done: int
    failed: int
    root: bytes
