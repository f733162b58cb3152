"""Fetching blobs from several holders at once, each chunk verified as it comes (docs/spec/blobs.md).

A holder is believed only what its bytes prove: one that lies, stalls or leaves costs the others its part, not the blob.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import MalformedError, P2PGridError, RefusedError, RemoteError, TryAgainError, UnreachableError
from p2pgrid.model.blob import check_root, decode_root
from p2pgrid.model.ids import DIGEST_BYTES, BlobId, NodeKey, dht_id_of_blob, short
from p2pgrid.model.reasons import Reason
from p2pgrid.services.chunks import STALL_S, Run, runs_of, take_chunks
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.tasks import wind_up
from p2pgrid.services.writers import Writers
from p2pgrid.store.uploads import ChunkWriter
from p2pgrid.wire.messages import BlobInfo, BlobRead, BlobRequest

CHUNKS_PER_READ = 16
FETCH_SOURCES_MAX = 4
RUNS_PER_HOLDER = 2
"""While one run comes the next one is asked for already."""
PATIENCE_S = 2.0
"""At the end, a holder without anything to do is asked for what another has not sent for this long."""


class Fetching:
    """Brings blobs to this node; who wants the same one waits for the one transfer."""

    def __init__(self, context: Context, peers: Peers, dht: GridServer, writers: Writers) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._writers = writers
        self._fetching: dict[BlobId, asyncio.Future[None]] = {}

    async def fetch(self, blob: BlobId, sources: Sequence[bytes] = (), expires_ms: int = 0) -> None:
        """Make sure that a blob is here. Raises UnreachableError when no holder can be found, MalformedError for no address."""
        if len(blob) != DIGEST_BYTES:
            raise MalformedError("not the address of a blob", reason=Reason.MALFORMED)
        while not await self._context.offload.run(self._context.blobs.has, blob):
            running = self._fetching.get(blob)
            if running is not None:
                await asyncio.shield(running)
                continue
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._fetching[blob] = future
            try:
                await self._fetch(blob, sources, expires_ms or self._context.wall_ms() + 24 * 3_600_000)
            finally:
                del self._fetching[blob]
                future.set_result(None)

    async def _fetch(self, blob: BlobId, sources: Sequence[bytes], expires_ms: int) -> None:
        error: P2PGridError = UnreachableError(f"nobody who can be reached holds blob {short(blob)}", reason=Reason.NO_BLOB)
        asked: set[bytes] = {self._context.me}
        async for named in self._places(blob, sources):
            keys = [key for key in dict.fromkeys(named) if key not in asked]
            asked.update(keys)
            found = await self._ask(keys, blob)
            if found is None:
                continue
            try:
                await self._fetch_from(blob, *found, expires_ms)
            except (UnreachableError, TryAgainError, RemoteError) as failure:
                error = failure
            else:
                return
        raise error

    async def _places(self, blob: BlobId, sources: Sequence[bytes]) -> AsyncIterator[Sequence[bytes]]:
        """The nodes that should have it; those that the DHT names; whoever is connected."""
        yield sources
        yield await self._holders(blob)
        yield list(self._peers.live())

    async def _fetch_from(self, blob: BlobId, info: BlobInfo, holders: list[NodeKey], expires_ms: int) -> None:
        root = decode_root(info.root) if info.root else None
        writer = await self._writers.open(blob, info.size_bytes, root, self._context.me, expires_ms)
        try:
            await self._fetch_chunks(blob, writer, holders)
            await self._context.offload.run(writer.commit)
        finally:
            self._writers.leave(writer)

    async def _ask(self, keys: Iterable[bytes], blob: BlobId) -> tuple[BlobInfo, list[NodeKey]] | None:
        """Who of these holds a blob, all asked at once; only words that fit the blob's address count."""
        asked = [NodeKey(key) for key in keys]
        calls = [self._peers.call(key, "blob.info", BlobRequest(blob), BlobInfo, timeout_s=5.0) for key in asked]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        holders: list[tuple[BlobInfo, NodeKey]] = []
        for answer, key in zip(answers, asked, strict=True):
            if isinstance(answer, BlobInfo) and _fits(answer, blob):
                holders.append((answer, key))
        if not holders:
            return None
        return holders[0][0], [key for _, key in holders]

    async def _holders(self, blob: BlobId) -> list[bytes]:
        try:
            return [record.author for record in await self._dht.get(dht_id_of_blob(blob), RecordKind.BLOB_HOLDER)]
        except P2PGridError:
            return []

    async def _fetch_chunks(self, blob: BlobId, writer: ChunkWriter, holders: list[NodeKey]) -> None:
        """Ask for what is missing until nothing is, or no holder is left that has not failed."""
        good = list(holders)
        error: P2PGridError = UnreachableError(f"blob {short(blob)} did not arrive whole", reason=Reason.NO_BLOB)
        while good and (missing := await self._context.offload.run(writer.missing)):
            part = _Part(self, blob, writer, runs_of(missing, CHUNKS_PER_READ), good)
            await part.fetch()
            error = part.error or error
        if await self._context.offload.run(writer.missing):
            raise error

    async def fetch_run(self, holder: NodeKey, blob: BlobId, writer: ChunkWriter, run: Run) -> None:
        """Fetch consecutive chunks from one holder. Raises UnreachableError, TryAgainError, RemoteError, RefusedError."""
        offload = self._context.offload
        session = await self._peers.session(holder)
        stream = await session.open_stream("blob.read", BlobRead(blob, *run))
        try:
            stream.finish()
            pay = self._context.throttle.download
            await take_chunks(stream, [run], lambda chunks: offload.run(writer.write_chunks, chunks), STALL_S, pay=pay)
        except TimeoutError as error:
            raise UnreachableError(f"{short(holder)} stopped sending", reason=Reason.TIMEOUT) from error
        finally:
            stream.reset(Reason.CLOSED)


class _Part:
    """Runs of chunks that several holders serve from one queue; what one fails to serve, those that did not fail serve."""

    def __init__(self, fetching: Fetching, blob: BlobId, writer: ChunkWriter, runs: Sequence[Run], good: list[NodeKey]) -> None:
        """``good``: the holders; those that fail are taken out."""
        self.error: P2PGridError | None = None
        self._fetching, self._blob, self._writer = fetching, blob, writer
        self._queue = deque(runs)
        self._good = good
        self._under_way: dict[asyncio.Task[None], tuple[NodeKey, Run]] = {}
        self._too_late: list[asyncio.Task[None]] = []
        self._twice: set[Run] = set()
        """Runs that a second holder was asked for at the end."""

    async def fetch(self) -> None:
        """Until every run came or failed; the rest is the caller's."""
        try:
            while self._fill():
                done, _ = await asyncio.wait(self._under_way, timeout=self._patience_s(), return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in self._under_way if task in done]:
                    self._ended(task)
                if not done:
                    self._ask_others()
        finally:
            await wind_up(*self._under_way, *self._too_late)

    def _fill(self) -> bool:
        """Give every holder that is used runs to do. Whether somebody is at work."""
        for _ in range(RUNS_PER_HOLDER):
            for holder in self._good[:FETCH_SOURCES_MAX]:
                if self._queue and self._busy(holder) < RUNS_PER_HOLDER:
                    self._start(holder, self._queue.popleft())
        return bool(self._under_way)

    def _busy(self, holder: NodeKey) -> int:
        return sum(key == holder for key, _ in self._under_way.values())

    def _start(self, holder: NodeKey, run: Run) -> None:
        task = asyncio.ensure_future(self._fetching.fetch_run(holder, self._blob, self._writer, run))
        self._under_way[task] = (holder, run)

    def _ended(self, task: asyncio.Task[None]) -> None:
        holder, run = self._under_way.pop(task)
        others = [other for other, (_, same) in self._under_way.items() if same == run]
        failure = task.exception()
        if failure is None:
            for other in others:
                # Who was slower is not bad for that.
                other.cancel()
                del self._under_way[other]
                self._too_late.append(other)
            return
        if not isinstance(failure, RefusedError | TryAgainError | UnreachableError | RemoteError):
            raise failure
        self.error = failure
        if holder in self._good:
            self._good.remove(holder)
        if not others:
            self._queue.appendleft(run)

    def _patience_s(self) -> float | None:
        """When the queue is empty, the others do not wait long for a slow one."""
        return None if self._queue else PATIENCE_S

    def _ask_others(self) -> None:
        """Nothing is left to ask for, and nothing came for a while: somebody else is asked for what is under way."""
        idle = [holder for holder in self._good[: FETCH_SOURCES_MAX + 1] if not self._busy(holder)]
        for _, run in list(self._under_way.values()):
            if idle and run not in self._twice:
                self._twice.add(run)
                self._start(idle.pop(), run)


def _fits(info: BlobInfo, blob: BlobId) -> bool:
    """Whether what a holder says of a blob can be true."""
    try:
        check_root(decode_root(info.root) if info.root else None, blob, info.size_bytes)
    except RemoteError:
        return False
    return True
