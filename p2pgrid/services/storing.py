"""Blobs between nodes: what the other services use, and what is served to other nodes (docs/spec/blobs.md).

1. Copies are sent by copying.py, taken in by taking.py, fetched by fetching.py.
2. What is served is verified chunk by chunk when it is read, and again by whoever gets it.
3. Holders of what people ``put`` are recorded in the DHT by the holders themselves; blobs of jobs are found
   through the job's receipts and keepers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import MalformedError, UnreachableError
from p2pgrid.model.blob import encode_root
from p2pgrid.model.ids import BlobId, NodeKey, dht_id_of_blob, short
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.rpc import Session
from p2pgrid.services.chunks import Group, send_chunks
from p2pgrid.services.context import Context
from p2pgrid.services.copying import Copying, Terms
from p2pgrid.services.fetching import Fetching
from p2pgrid.services.peers import Peers
from p2pgrid.services.taking import LEASE_MAX_MS as LEASE_MAX_MS
from p2pgrid.services.taking import Taking
from p2pgrid.services.tasks import Tasks, Turns
from p2pgrid.services.writers import Writers
from p2pgrid.wire.codec import encode
from p2pgrid.wire.messages import BlobInfo, BlobRead, BlobRequest

HOLDER_TTL_S = 24 * 3600.0
HOLDS = encode(1)
"""Value of a holder's record: the author is what it points at. An empty one would withdraw it."""
CHUNKS_PER_READ_MAX = 1024
READS_PER_PEER = 8
"""Streams of one peer on which chunks are sent at one time; the others wait. Each has up to 10 MiB in memory."""


class Storing:
    """This node's share in storing and moving blobs."""

    def __init__(self, context: Context, peers: Peers, dht: GridServer) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._tasks = Tasks("storing")
        self._writers = Writers(context)
        self._fetching = Fetching(context, peers, dht, self._writers)
        self._copying = Copying(context, peers)
        self._turns = Turns(READS_PER_PEER)
        self._taking = Taking(context, self._writers, self._announce_soon)
        self._replicated: list[Callable[[BlobId, tuple[bytes, ...]], None]] = []
        methods = context.methods
        methods.on("blob.info", BlobRequest, self._on_info)
        methods.on_stream("blob.read", BlobRead, self._on_read)

    async def close(self) -> None:
        await self._tasks.close()
        await self._writers.close()

    # -- what other services use -------------------------------------------------------

    async def keep_bytes(
        self, data: bytes, expires_ms: int, replicas: int, prefer: Sequence[bytes] = (), holders: set[bytes] | None = None
    ) -> BlobId:
        """Store bytes here and on other nodes. ``holders`` collects who has a copy. Raises RefusedError (full)."""
        context = self._context
        blob = await context.offload.run(context.blobs.put_bytes, data, owner=context.me, expires_ms=expires_ms, replicas=replicas)
        copies = await self._copying.replicate(blob, prefer, Terms(expires_ms, replicas))
        self._tell_replicated(blob, copies)
        if holders is not None:
            holders.update(copies)
        return blob

    async def take_file(self, path: Path, expires_ms: int, size_bytes_max: int = 0) -> tuple[BlobId, int]:
        """Move a file that a unit made into the store; returns (blob, size in bytes)."""
        context = self._context
        limit = size_bytes_max or context.limits.blob_bytes
        try:
            blob = await context.offload.run(context.blobs.ingest, path, limit, owner=context.me, expires_ms=expires_ms)
        finally:
            with suppress(OSError):
                await context.offload.run(context.disk.unlink, path)
        return blob, await context.offload.run(context.blobs.size, blob)

    async def replicate(
        self, blob: BlobId | bytes, replicas: int, prefer: Sequence[bytes], expires_ms: int, *, announce: bool = False
    ) -> tuple[bytes, ...]:
        """Copy a blob of this node until ``replicas`` nodes have it, this one included, or nobody is left.

        Returns the other holders. Nodes of ``prefer`` come first; the rest in random order.
        """
        context = self._context
        holders = await self._copying.replicate(BlobId(blob), prefer, Terms(expires_ms, replicas, announce))
        if replicas > 1:
            await context.offload.run(context.blobs.lease, BlobId(blob), context.me, expires_ms, replicas)
            self._tell_replicated(BlobId(blob), holders)
        return holders

    def on_replicated(self, callback: Callable[[BlobId, tuple[bytes, ...]], None]) -> None:
        """Call ``callback(blob, others)`` when other nodes have acknowledged copies of a blob of this node."""
        self._replicated.append(callback)

    def _tell_replicated(self, blob: BlobId, holders: tuple[bytes, ...]) -> None:
        if holders:
            for callback in self._replicated:
                callback(blob, holders)

    async def copy_to(self, blob: BlobId, peer: NodeKey, expires_ms: int, replicas: int, *, announce: bool = False) -> str:
        """Copy a blob of this node to one other, as one of ``replicas`` copies; returns why it has none now, empty when it has."""
        return await self._copying.copy_to(blob, peer, Terms(expires_ms, replicas, announce))

    async def read(self, blob: BlobId, sources: Sequence[bytes], size_bytes_max: int) -> bytes:
        """The content of a blob, fetched first if it is not here. ``size_bytes_max`` 0: any size."""
        context = self._context
        await self.fetch(blob, sources)
        return await context.offload.run(context.blobs.read_all, blob, size_bytes_max or context.limits.blob_bytes)

    async def path(self, blob: BlobId, sources: Sequence[bytes]) -> Path:
        """The local file of a blob, fetched first if it is not here. To be read only."""
        await self.fetch(blob, sources)
        return await self._context.offload.run(self._context.blobs.path, blob)

    async def fetch(self, blob: BlobId, sources: Sequence[bytes] = (), expires_ms: int = 0) -> None:
        """Make sure that a blob is here. Raises UnreachableError when no holder can be found, MalformedError for no address."""
        await self._fetching.fetch(blob, sources, expires_ms)

    async def announce(self, blob: BlobId) -> None:
        """Record this node as a holder, for everybody who looks for the blob."""
        await self._dht.publish(RecordKind.BLOB_HOLDER, dht_id_of_blob(blob), HOLDS, HOLDER_TTL_S)

    def _announce_soon(self, blob: BlobId) -> None:
        self._tasks.spawn(self.announce(blob), "announce")

    # -- serving -----------------------------------------------------------------------------

    async def _on_info(self, session: Session, request: BlobRequest) -> BlobInfo:
        context = self._context
        size_bytes = await context.offload.run(context.blobs.size, BlobId(request.blob))
        root = await context.offload.run(context.blobs.root, BlobId(request.blob))
        return BlobInfo(size_bytes, encode_root(root) if root is not None else b"")

    async def _on_read(self, session: Session, request: BlobRead, stream: Stream) -> None:
        if not 0 < request.count <= CHUNKS_PER_READ_MAX or request.first < 0:
            raise MalformedError("chunks that cannot be", reason=Reason.MALFORMED)
        run, blobs = self._context.offload.run, self._context.blobs

        async def read(group: Group) -> Sequence[bytes]:
            return await run(blobs.read_chunks, BlobId(request.blob), group)

        try:
            async with self._turns.of(session.peer):
                await send_chunks(stream, [(request.first, request.count)], read, pay=self._context.throttle.upload)
        except TimeoutError as error:
            raise UnreachableError(f"{short(session.peer)} does not read", reason=Reason.TIMEOUT) from error
