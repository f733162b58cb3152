"""What lies on the disk is read again from time to time, and what was damaged is healed from others (docs/spec/blobs.md#care).

1. All blobs are read in the order of their ids, at a low rate, from a random place on: a node that is started every day would
   otherwise always read the same ones. A pass takes four days at most; between two passes there is a pause.
2. Damage is found by whoever reads: this pass, a peer, the owner. However it is found, it is healed at once: the chunks that are
   still good are kept, the others are fetched from any holder. Until then the blob is not served, and keeps its leases.
3. Where nobody who is there has it, that is said, and it is tried again: after a while, or when somebody comes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from p2pgrid.errors import P2PGridError, TryAgainError
from p2pgrid.model.blob import chunk_count, chunk_size
from p2pgrid.model.ids import DIGEST_BYTES, BlobId, NodeKey, short
from p2pgrid.model.reasons import Reason
from p2pgrid.services.caring import Caring
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.index import DAMAGED, HELD, BlobRow

BYTES_PER_S = 2_000_000.0
PASS_S = 4 * 24 * 3600.0
"""A pass takes no longer than this: what a large store needs for it is its rate."""
PAUSE_S = 12 * 3600.0
BEGIN_S = 30.0
BURST_S = 2.0
"""The disk is read for as many bytes as this many seconds allow, then rests for as long."""
PAGE = 64
HEALING_MAX = 1024
RETRY_S = 600.0
SOON_S = 30.0
"""Somebody came: that is a reason to try again, but not more often than this."""


class Scrubbing:
    """Reads what is here, and heals it."""

    def __init__(self, context: Context, peers: Peers, storing: Storing, caring: Caring, *, bytes_per_s: float = BYTES_PER_S) -> None:
        self._context = context
        self._peers = peers
        self._storing = storing
        self._bytes_per_s = bytes_per_s
        self._tasks = Tasks("scrubbing")
        self._waiting: dict[BlobId, tuple[bytes, ...]] = {}
        """Damaged blobs and who may have them."""
        self._poke = asyncio.Event()
        self._tried_s = 0.0
        self.passes = self.read_bytes = self.healed = 0
        caring.on_damaged(self._on_damaged)

    async def start(self) -> None:
        self._peers.on_came(self._on_came)
        self._tasks.spawn(self._scrub(), "scrub")
        self._tasks.spawn(self._heal_all(), "heal")

    async def close(self) -> None:
        await self._tasks.close()

    @property
    def waiting(self) -> int:
        """Damaged blobs that are not healed yet."""
        return len(self._waiting)

    # -- reading ---------------------------------------------------------------------------

    async def _scrub(self) -> None:
        context = self._context
        await asyncio.sleep(BEGIN_S * (0.5 + context.rng.random()))
        while True:
            try:
                await self._find_damaged()
                start = context.random_bytes(DIGEST_BYTES)
                await self._read_from(start, b"")
                await self._read_from(b"", start)
                self.passes += 1
            except P2PGridError as error:
                context.tell(error.reason, f"reading what is stored: {error}")
            await asyncio.sleep(PAUSE_S * (0.75 + context.rng.random() / 2))

    async def _find_damaged(self) -> None:
        """What a former life of this node left unhealed."""
        run, blobs = self._context.offload.run, self._context.blobs
        for row in await run(blobs.list, b"", HEALING_MAX, DAMAGED):
            self._on_damaged(row.id, ())

    async def _read_from(self, after: bytes, until: bytes) -> None:
        """Read all blobs behind an id, up to another one unless that is empty."""
        run, blobs = self._context.offload.run, self._context.blobs
        rate = max(self._bytes_per_s, (await run(blobs.usage)).used_bytes / PASS_S)
        spent_bytes = 0
        while page := list(await run(blobs.list, after, PAGE, HELD)):
            for row in page:
                after = row.id
                if until and after > until:
                    return
                for index in range(chunk_count(row.size_bytes)):
                    if not await self._read(row, index):
                        break
                    spent_bytes += chunk_size(row.size_bytes, index)
                    if spent_bytes >= rate * BURST_S:
                        await asyncio.sleep(spent_bytes / rate)
                        spent_bytes = 0

    async def _read(self, row: BlobRow, index: int) -> bool:
        """Read one chunk; False when the rest of the blob need not be read. Damage is told by the store."""
        context = self._context
        while True:
            try:
                self.read_bytes += len(await context.offload.run(context.blobs.read_chunk, row.id, index))
            except TryAgainError as error:
                if error.reason == Reason.SHUTDOWN:
                    raise
                await asyncio.sleep(BURST_S)
            except P2PGridError:
                return False
            else:
                return True

    # -- healing -----------------------------------------------------------------------------

    def _on_damaged(self, blob: BlobId, holders: tuple[bytes, ...]) -> None:
        if blob not in self._waiting and len(self._waiting) < HEALING_MAX:
            self._context.tell(Reason.CORRUPT, f"blob {short(blob)} is damaged on this disk", blob)
            self._waiting[blob] = holders
            self._poke.set()

    def _on_came(self, peer: NodeKey) -> None:
        if self._waiting and self._context.clock() - self._tried_s > SOON_S:
            self._poke.set()

    async def _heal_all(self) -> None:
        while True:
            self._poke.clear()
            self._tried_s = self._context.clock()
            for blob, holders in list(self._waiting.items()):
                if await self._heal(blob, holders):
                    self._waiting.pop(blob, None)
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if self._waiting else None):
                    await self._poke.wait()

    async def _heal(self, blob: BlobId, holders: tuple[bytes, ...]) -> bool:
        """Whether nothing is left to be done for a blob."""
        context = self._context
        run, blobs = context.offload.run, context.blobs
        try:
            ((row, leases),) = await run(blobs.look, [blob])
            if row is None or row.state != DAMAGED:
                return True
            await self._storing.fetch(blob, holders)
            if all(lease.owner != context.me for lease in leases):
                # Fetching took a lease for this node, which did not want the blob itself.
                await run(blobs.release, blob, context.me)
        except P2PGridError as error:
            context.tell(error.reason, f"blob {short(blob)} is damaged and cannot be healed now: {error}", blob)
            return False
        self.healed += 1
        context.tell(Reason.HEALED, f"blob {short(blob)} was damaged on this disk and is whole again", blob)
        return True
