"""Everything the worker pool needs for one range of units: code, inputs and files, all of it on this disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from p2pgrid.core.layout import FINISH, MAP, REDUCE
from p2pgrid.errors import IntegrityError, MalformedError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import BlobId
from p2pgrid.model.job import Batch
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import UnitRange
from p2pgrid.runtimes.tasks import BatchTask, Code, JobKey, Kind
from p2pgrid.services.context import Context
from p2pgrid.services.inputfiles import InputFiles
from p2pgrid.services.inputs import FILE, VALUE, fill_in
from p2pgrid.services.knownjobs import KnownJob
from p2pgrid.services.provisions import Provisions
from p2pgrid.services.storing import Storing

VALUES_BYTES_MAX = 1 << 30
"""Inputs out of blobs that one task may have in memory, unless the owner lends less memory."""
KINDS = {MAP: Kind.MAP, REDUCE: Kind.REDUCE}


class Preparing:
    """Makes tasks. What it wrote for one is let go of with :meth:`release`."""

    def __init__(
        self, context: Context, storing: Storing, inputs: Path, provisions: Provisions | None = None, *, own_grid: bool = False
    ) -> None:
        """``inputs``: a folder for small input files; nothing in it outlives the node.

        ``own_grid``: all of the grid belongs to this owner, so that every job in it is the owner's own.
        """
        self._context = context
        self._storing = storing
        self._provisions = provisions
        self._own_grid = own_grid
        self._inputs = InputFiles(inputs, context.offload, context.disk)

    async def task(self, known: KnownJob, lead: bytes, unit_range: UnitRange, held: list[Path]) -> BatchTask:
        """The task for some units that ``lead`` leased.

        ``held`` takes the small input files that were written for it, to be released at its end.
        """
        job = known.job.body
        batch, start, units, _ = unit_range
        content = known.batches[batch]
        stop = start + units
        sources = known.places(lead)
        uses = [use for use in content.blobs if start <= use.unit < stop]
        values = await self._values([use.blob for use in uses if use.kind == VALUE], sources)
        files = await self._files(content, [use.blob for use in uses if use.kind == FILE], sources, held)
        inputs: Sequence[msgspec.Raw] = content.units[start:stop]
        if values:
            kind = known.layout.kind_of(batch)
            derived = kind == REDUCE or (kind == FINISH and not job.derive.reduce)
            inputs = [msgspec.Raw(fill_in(bytes(raw), values, derived=derived)) for raw in inputs]
        own = self._own_grid or known.job.author == self._context.submitter.public
        commands = known.runtime in ("command", "wasm")
        what = Kind.COMMAND if commands else KINDS.get(known.layout.kind_of(batch), Kind.FINISH)
        return BatchTask(
            job=JobKey(known.job.author, known.job.id),
            code=await self._code(known, sources, held, own),
            runtime=known.runtime,
            trusted=own,
            fresh=job.quorum > 1,
            kind=what,
            first=known.layout.number(batch, start),
            inputs=list(inputs),
            timeout_s=job.limits.timeout_s,
            files=files,
            result_bytes_max=min(job.limits.result_bytes, self._context.limits.result_bytes),
            memory_bytes=job.limits.memory_bytes,
        )

    def release(self, held: Sequence[Path]) -> None:
        """The task has ended."""
        self._inputs.release(held if self._provisions is None else self._provisions.release(held))

    async def _values(self, blobs: Sequence[bytes], sources: Sequence[bytes]) -> dict[bytes, bytes]:
        """Values that lie in blobs. A job may not fill the memory with them."""
        left_bytes = min(self._context.policy.memory_bytes or VALUES_BYTES_MAX, VALUES_BYTES_MAX)
        values: dict[bytes, bytes] = {}
        for blob in dict.fromkeys(blobs):
            values[blob] = await self._storing.read(BlobId(blob), sources, max(1, left_bytes))
            left_bytes -= len(values[blob])
        return values

    async def _files(self, batch: Batch, blobs: Sequence[bytes], sources: Sequence[bytes], held: list[Path]) -> dict[BlobId, Path]:
        """Where the input files of some units lie: small ones are written from the batch, large ones are blobs."""
        inside = dict(batch.files)
        found: dict[BlobId, Path] = {}
        for blob in dict.fromkeys(blobs):
            content = inside.get(blob)
            if content is None:
                found[BlobId(blob)] = await self._storing.path(BlobId(blob), sources)
            elif blob_id_of(content) == blob:
                found[BlobId(blob)] = await self._inputs.write(BlobId(blob), content, held)
            else:
                raise IntegrityError("an input file does not match its address", reason=Reason.CORRUPT)
        return found

    async def _code(self, known: KnownJob, sources: Sequence[bytes], held: list[Path], own: bool) -> Code:
        job, program, program_id, path = known.job.body, None, b"", tuple[str, ...]()
        if self._provisions is not None:
            program, program_id = await self._provisions.program(job, known.runtime, sources)
            path = await self._provisions.packages(job, known.runtime, sources, held, own=own)
        source = await self._source(known, sources)
        return Code(source=source, file_name=job.name, seed=job.nonce, path=path, program=program, program_id=program_id)

    async def _source(self, known: KnownJob, sources: Sequence[bytes]) -> str:
        job = known.job.body
        if known.runtime == "wasm":
            return ""  # The blob is no text, and goes to the engine as a file.
        if not known.source and (job.code or job.code_blob):
            limit = self._context.limits.bulk_message_bytes
            content = job.code or await self._storing.read(BlobId(job.code_blob), sources, limit)
            try:
                known.source = content.decode()
            except UnicodeDecodeError as error:
                raise MalformedError("the job's code is no text", reason=Reason.MALFORMED) from error
        return known.source
