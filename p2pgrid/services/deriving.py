"""Assembling derived batches from decided results, alike at everybody who leads (docs/spec/job.md#derived-units)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from p2pgrid.core.layout import FINISH
from p2pgrid.errors import IntegrityError, TryAgainError
from p2pgrid.model.environment import ENVIRONMENT_BYTES_MAX, Environment
from p2pgrid.model.ids import BlobId
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import Receipt
from p2pgrid.services.context import Context
from p2pgrid.services.inputs import FILE, VALUE, array_of, blob_value, decode_batch, encode_batch
from p2pgrid.services.results import Span, UnitValue, check_payload, spans, values_of
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Signed
from p2pgrid.wire.messages import Payload

if TYPE_CHECKING:
    from p2pgrid.services.absorbing import KeptJob
    from p2pgrid.services.storing import Storing

GetBatch = Callable[[int], Awaitable[bytes]]
BlobRow = tuple[int, str, bytes, int]


class Deriving:
    """Stateless: everything it needs is in the job, its log and the store."""

    def __init__(self, context: Context, storing: Storing) -> None:
        self._context = context
        self._storing = storing

    async def input_blobs(self, job: Job, get: GetBatch) -> list[bytes]:
        """The blobs that the signed job needs: its code, what that runs in and imports, and the inputs of its batches."""
        blobs = dict.fromkeys(blob for blob in (job.code_blob, job.environment) if blob)
        if job.environment:
            environment = decode(await self._storing.read(BlobId(job.environment), (), ENVIRONMENT_BYTES_MAX), Environment)
            blobs.update((wheel.blob, None) for wheel in environment.wheels)
        if job.runtime == "python":
            blobs[job.runner] = None  # A member that trusts the submitter needs none: for "auto" the grid's own copies do.
        for number, reference in enumerate(job.manifest):
            batch = decode_batch(await get(number), reference.units)
            inside = {blob for blob, _ in batch.files}
            blobs.update((use.blob, None) for use in batch.blobs if use.blob not in inside)
        return list(blobs)

    async def payload(self, view: KeptJob, receipt: Signed[Receipt]) -> Payload:
        """The payload of a receipt, from memory or from the log. Raises IntegrityError when it is not there, or another."""
        digest = receipt.body.payload
        known = view.payloads.get(digest)
        if known is None:
            cursor = view.payload_at.get(digest)
            if cursor is None:
                raise IntegrityError("results are missing in this copy of the job's log", reason=Reason.CORRUPT)
            record = await self._context.offload.run(view.file.read_one, cursor)
            # What was copied from others was compared with its receipt only, not its values with what was decided.
            known = check_payload(receipt.body, record.data)
            view.payloads.put(digest, known, len(record.data))
        return known

    async def values(self, view: KeptJob, span: Span) -> list[UnitValue]:
        """The values of a decided span."""
        if span.receipt is None:
            raise TryAgainError("the unit is not decided yet", reason=Reason.BUSY)
        return values_of(span, await self.payload(view, span.receipt))

    async def content(self, kept: KeptJob, number: int) -> bytes:
        """The encoded content of a derived batch: one unit, the list of the results it takes."""
        layout = kept.ledger.layout
        below = layout.level_of(number) - 1
        parts: list[bytes] = []
        rows: list[BlobRow] = []
        wanted = layout.inputs_of(number)
        position = wanted.start
        while position < wanted.stop:
            batch, index = layout.locate(below, position)
            count = min(layout.batch_units[batch] - index, wanted.stop - position)
            for span in spans(kept.ledger, batch, index, count):
                await self._take(kept, span, parts, rows)
            position += count
        after_reduce = layout.kind_of(number) == FINISH and kept.job.body.derive.reduce
        whole = parts[0] if after_reduce else array_of(parts)
        if len(whole) > self._context.limits.input_inline_bytes:
            blob = await self._storing.keep_bytes(whole, kept.job.body.expires_ms, kept.job.body.replicas, self._keepers(kept))
            rows.append((0, VALUE, blob, len(whole)))
            whole = blob_value(blob)
        return encode_batch([whole], rows)

    async def _take(self, kept: KeptJob, span: Span, parts: list[bytes], rows: list[BlobRow]) -> None:
        assert span.receipt is not None
        for value in await self.values(kept, span):
            if value.raw:
                parts.append(value.raw)
            else:
                parts.append(blob_value(value.digest))
                rows.append((0, VALUE, value.digest, 0))
        inside = range(span.position, span.position + span.units)
        rows.extend((0, FILE, file.blob, file.size_bytes) for file in span.receipt.body.files if file.unit in inside)

    @staticmethod
    def _keepers(kept: KeptJob) -> tuple[bytes, ...]:
        return kept.ledger.keepers.body.keepers if kept.ledger.keepers else ()
