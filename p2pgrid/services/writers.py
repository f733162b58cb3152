"""Writers of blobs that are opened for somebody who may go away: each is closed, whatever becomes of its user."""

from __future__ import annotations

import asyncio

from p2pgrid.errors import TryAgainError
from p2pgrid.model.blob import BlobRoot
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.services.context import Context
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.uploads import ChunkWriter

BUSY_S = 0.1


class Writers:
    """A writer that stays open would keep its blob from ever expiring, and its place from everybody else."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks = Tasks("writers")

    async def open(
        self, blob: BlobId, size_bytes: int, root: BlobRoot | None, owner: bytes, expires_ms: int, replicas: int = 1
    ) -> ChunkWriter:
        """Begin or resume a blob. Somebody who goes away meanwhile leaves no writer behind."""
        context = self._context
        opening = asyncio.ensure_future(
            context.offload.run(context.blobs.writer, blob, size_bytes, root, owner=owner, expires_ms=expires_ms, replicas=replicas)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: self.leave(done.result()) if not done.cancelled() and not done.exception() else None)
            raise

    def leave(self, writer: ChunkWriter) -> None:
        """Close a writer, whatever becomes of the caller: an open one would be kept for ever."""
        self._tasks.spawn(self._close_one(writer), "close a writer")

    async def _close_one(self, writer: ChunkWriter) -> None:
        while True:
            try:
                await self._context.offload.run(writer.close)
            except TryAgainError as error:
                if error.reason != Reason.BUSY:
                    raise
                await asyncio.sleep(BUSY_S)
            else:
                return

    async def close(self) -> None:
        await self._tasks.close()
