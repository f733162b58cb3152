"""What the owner keeps here: pinned for good or given up, and the list of it (docs/spec/owner.md#files).

1. Keeping for good is a lease of the node itself. It is prolonged while the node lives, so that it never ends by itself.
2. Giving up ends the leases of this node here. Others that hold copies keep them until their leases end.
3. A folder stands for its files too. A file that another folder or the list itself still needs stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from p2pgrid.errors import P2PGridError, RefusedError
from p2pgrid.model.folder import FolderEntry
from p2pgrid.model.ids import BlobId, short
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.files import Files, failed, framed, news
from p2pgrid.services.filetable import FileRow
from p2pgrid.services.storing import LEASE_MAX_MS, Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.index import HELD, BlobRow, Lease
from p2pgrid.wire.owner import BlobLine, BlobsReply, BlobsRequest, FileReply, PinHeader

PARALLEL = 8
"""Files of a folder that are fetched at one time."""
PAGE = 1000
RENEW_S = 24 * 3600.0
GONE = "gone"


class Pins:
    """Serves ``own.pin`` and ``own.blobs``."""

    def __init__(self, context: Context, files: Files, storing: Storing) -> None:
        self._context = context
        self._files = files
        self._storing = storing
        self._tasks = Tasks("pins")
        context.methods.on_stream("own.pin", PinHeader, self._on_pin, owner_only=True)
        context.methods.on("own.blobs", BlobsRequest, self._on_blobs, owner_only=True)

    def start(self) -> None:
        """Begin to prolong what is kept for good."""
        self._tasks.spawn(self._renew(), "renew")

    async def close(self) -> None:
        await self._tasks.close()

    # -- pinning -----------------------------------------------------------------------------

    async def _on_pin(self, session: Session, header: PinHeader, stream: Stream) -> None:
        blob = BlobId(header.blob)
        try:
            reply = await (self._pin(blob, stream) if header.keep else self._unpin(blob))
        except P2PGridError as error:
            stream.write_nowait(failed(error))
            return
        stream.write_nowait(framed(reply))

    async def _pin(self, blob: BlobId, stream: Stream) -> FileReply:
        context, files = self._context, self._files
        await files.bring(blob, (), stream)
        size_bytes, kind = await context.offload.run(context.blobs.size, blob), "file"
        if await files.is_folder(blob):
            manifest, kind = await files.manifest(blob), "folder"
            await self._bring_all(manifest.files, await files.holders(blob), stream)
            size_bytes = manifest.size_bytes
        await self._keep(blob)
        await self._storing.announce(blob)
        now_ms = context.wall_ms()
        row = (await files.table.rows()).get(blob) or FileRow(blob=blob, kind=kind, size_bytes=size_bytes)
        await files.table.note(msgspec.structs.replace(row, pinned=True, expires_ms=now_ms + LEASE_MAX_MS))
        return FileReply(blob, size_bytes, 1)

    async def _bring_all(self, wanted: list[FolderEntry], sources: tuple[bytes, ...], stream: Stream) -> None:
        """Fetch and keep the files of a folder, a few at a time."""
        queue, done_bytes, size_bytes = iter(wanted), 0, sum(entry.size_bytes for entry in wanted)

        async def serve() -> None:
            nonlocal done_bytes
            for entry in queue:
                await self._files.bring(BlobId(entry.blob), sources)
                await self._keep(BlobId(entry.blob))
                done_bytes += entry.size_bytes
                await stream.write(news(entry.blob, size_bytes, done_bytes=done_bytes))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(PARALLEL, len(wanted))):
                    group.create_task(serve())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _keep(self, blob: BlobId) -> None:
        context = self._context
        await context.offload.run(context.blobs.lease, blob, context.me, context.wall_ms() + LEASE_MAX_MS)

    async def _unpin(self, blob: BlobId) -> FileReply:
        context = self._context
        rows = await self._files.table.rows()
        if blob not in rows and not await self._owned(blob):
            raise RefusedError(
                f"blob {short(blob)} was neither put nor pinned here", reason=Reason.NO_BLOB, hint="p2pgrid blobs lists what was"
            )
        others = [row for row in rows.values() if row.blob != blob]
        needed = {row.blob for row in others}
        for row in others:
            needed.update(await self._files_of(row))
        mine = await self._files_of(rows[blob]) if blob in rows else []
        for given_up in dict.fromkeys((*mine, blob)):
            if given_up not in needed:
                await context.offload.run(context.blobs.release, BlobId(given_up), context.me)
        await self._files.table.forget(blob)
        return FileReply(blob, 0, 0)

    async def _owned(self, blob: BlobId) -> bool:
        leases = await self._context.offload.run(self._context.blobs.leases, blob)
        return any(lease.owner == self._context.me for lease in leases)

    async def _files_of(self, row: FileRow) -> list[bytes]:
        """The blobs of a folder's files, as far as its manifest is here."""
        if row.kind != "folder":
            return []
        try:
            return [entry.blob for entry in (await self._files.manifest(BlobId(row.blob))).files]
        except P2PGridError:
            return []

    async def _renew(self) -> None:
        while True:
            for row in list((await self._files.table.rows()).values()):
                if row.pinned:
                    for blob in (row.blob, *await self._files_of(row)):
                        await self._renew_one(BlobId(blob))
            await asyncio.sleep(RENEW_S)

    async def _renew_one(self, blob: BlobId) -> None:
        try:
            await self._keep(blob)
        except P2PGridError as error:
            self._context.tell(error.reason, f"blob {short(blob)} is to be kept for good: {error}", blob)

    # -- listing -------------------------------------------------------------------------------

    async def _on_blobs(self, session: Session, request: BlobsRequest) -> BlobsReply:
        run, index, rows = self._context.offload.run, self._context.index, await self._files.table.rows()
        if request.all:
            page = await run(index.blobs, request.after, PAGE)
            return BlobsReply(await self.lines([row.id for row in page]), len(page) == PAGE)
        lines = await self.lines([BlobId(blob) for blob in rows])
        return BlobsReply(tuple(sorted(lines, key=lambda line: (-line.put_ms, line.blob))))

    async def lines(self, blobs: Sequence[BlobId]) -> tuple[BlobLine, ...]:
        """What is known here of some blobs, in their order."""
        rows = await self._files.table.rows()
        known = await self._context.offload.run(self._context.blobs.look, blobs)
        lines = []
        for blob, (found, leases) in zip(blobs, known, strict=True):
            line = self._listed(rows[blob], found) if blob in rows else self._stored(blob, found, leases)
            lines.append(msgspec.structs.replace(line, owners=tuple(lease.owner for lease in leases)))
        return tuple(lines)

    def _stored(self, blob: BlobId, found: BlobRow | None, leases: Sequence[Lease]) -> BlobLine:
        """What lies here, or might, without the owner having asked for it."""
        care = self._files.care(blob)
        return BlobLine(
            blob=blob,
            name="",
            kind="",
            size_bytes=found.size_bytes if found else 0,
            copies=len(care.holders) if care else int(found is not None and found.state == HELD),
            wanted=care.wanted if care else max((lease.replicas for lease in leases), default=0),
            expires_ms=found.until_ms if found else 0,
            pinned=False,
            put_ms=0,
            state=found.state if found else "",
        )

    def _listed(self, row: FileRow, found: BlobRow | None) -> BlobLine:
        care = self._files.care(BlobId(row.blob))
        return BlobLine(
            blob=row.blob,
            name=row.name,
            kind=row.kind,
            size_bytes=row.size_bytes,
            copies=len(care.holders) if care else row.copies,
            wanted=care.wanted if care else row.replicas,
            expires_ms=row.expires_ms,
            pinned=row.pinned,
            put_ms=row.put_ms,
            state=found.state if found else GONE,
        )
