"""Copies of this node's blobs on other nodes (docs/spec/blobs.md#blobwrite).

1. A copy counts when its receiver has verified every chunk and has it on disk.
2. Copies go to nodes with the role ``store``, preferred ones first, and never wait for a node that does not answer.
3. All copies of one blob that are made at one time share what is read from the disk.
4. What is sent is not hashed here: the receiver does that. When it finds a chunk that is not the blob's, the whole blob is
   verified here, and no longer served if the fault is this node's.
5. A copy that breaks in the middle goes on once at the same node, where the receiver says it ended.
"""

from __future__ import annotations

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from p2pgrid.errors import P2PGridError, RefusedError, UnreachableError
from p2pgrid.model.blob import BlobRoot, chunk_count, encode_root
from p2pgrid.model.ids import BlobId, NodeKey, short
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_framed
from p2pgrid.net.throttle import Pay
from p2pgrid.services.chunks import RUNS_MAX, STALL_S, Group, Run, check_runs, send_chunks
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.tasks import wind_up
from p2pgrid.wire.codec import decode
from p2pgrid.wire.messages import BlobHeld, BlobWant, BlobWrite

LENGTH = struct.Struct(">I")
WANT_BYTES_MAX = 4096 + RUNS_MAX * 16
GROUPS_SHARED = 3
"""Groups of chunks that wait in memory for the slower ones of those who are sent the same blob."""
TRIES = 2


class Terms(NamedTuple):
    """What is asked of a receiver: to keep the blob until ``expires_ms`` (Unix), as one of ``replicas`` copies."""

    expires_ms: int
    replicas: int = 1
    announce: bool = False


class Copying:
    """Sends copies."""

    def __init__(self, context: Context, peers: Peers) -> None:
        self._context = context
        self._peers = peers

    async def replicate(self, blob: BlobId, prefer: Sequence[bytes], terms: Terms) -> tuple[bytes, ...]:
        """Copy until as many nodes as the terms say have the blob, this one included, or nobody is left; returns the others."""
        wanted = terms.replicas - 1
        candidates = self._candidates(prefer) if wanted > 0 else []
        holders: list[bytes] = []
        outgoing = Outgoing(self._context, blob)
        try:
            while wanted > len(holders) and candidates and not outgoing.damaged:
                batch, candidates = candidates[: wanted - len(holders)], candidates[wanted - len(holders) :]
                pushes = [self._push(outgoing, NodeKey(peer), terms) for peer in batch]
                holders += [peer for peer, held in zip(batch, await asyncio.gather(*pushes), strict=True) if held]
        finally:
            await outgoing.close()
        return tuple(holders)

    async def copy_to(self, blob: BlobId, peer: NodeKey, terms: Terms) -> str:
        """Copy a blob of this node to one other; returns why it does not have it now, empty when it has."""
        outgoing = Outgoing(self._context, blob)
        try:
            return "" if await self._push(outgoing, peer, terms) else outgoing.refused
        finally:
            await outgoing.close()

    def _candidates(self, prefer: Sequence[bytes]) -> list[bytes]:
        willing = self._peers.with_role("store") - {self._context.me}
        first = [peer for peer in dict.fromkeys(prefer) if peer in willing]
        rest = sorted(willing - set(first))
        self._context.rng.shuffle(rest)
        return first + rest

    async def _push(self, outgoing: Outgoing, peer: NodeKey, terms: Terms) -> bool:
        """Send a blob to a peer; whether it now has it."""
        context = self._context
        try:
            for left in reversed(range(TRIES)):
                sent = Sent()
                try:
                    return await self._push_once(outgoing, peer, terms, sent)
                except UnreachableError:
                    if not left or not sent.begun:
                        raise
        except (P2PGridError, TimeoutError) as error:
            reason = error.reason if isinstance(error, P2PGridError) else Reason.TIMEOUT
            outgoing.refused = str(reason) or Reason.TIMEOUT
            context.tell(reason, f"blob {short(outgoing.blob)} was not copied to {short(peer)}: {error}", outgoing.blob, peer)
        return False

    async def _push_once(self, outgoing: Outgoing, peer: NodeKey, terms: Terms, sent: Sent) -> bool:
        context = self._context
        size_bytes, root = await outgoing.about()
        session = await self._peers.session(peer)
        header = BlobWrite(outgoing.blob, size_bytes, terms.expires_ms, terms.announce, terms.replicas)
        stream = await session.open_stream("blob.write", header)
        try:
            encoded = encode_root(root) if root is not None else b""
            stream.write_nowait(LENGTH.pack(len(encoded)) + encoded)
            async with asyncio.timeout(STALL_S):
                want = decode(await read_framed(stream, WANT_BYTES_MAX), BlobWant)
            if want.refused:
                raise RefusedError(want.message, reason=want.refused)
            check_runs(want.runs, chunk_count(size_bytes))
            sent.begun = True
            held = await _send(stream, want.runs, outgoing, context.throttle.upload)
        finally:
            stream.reset(Reason.CLOSED)
        if not held.held:
            await outgoing.doubt()
            raise RefusedError(held.reason or "it did not say why", reason=Reason.CORRUPT)
        return True


async def _send(stream: Stream, runs: Sequence[Run], outgoing: Outgoing, pay: Pay | None) -> BlobHeld:
    """Send chunks and take the receiver's last word whenever it comes: one that found a fault reads no further."""
    sending = asyncio.ensure_future(send_chunks(stream, runs, outgoing.read, STALL_S, pay))
    reading = asyncio.ensure_future(read_framed(stream, 4096))
    try:
        await asyncio.wait([sending, reading], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await sending
            stream.finish()
        async with asyncio.timeout(STALL_S):
            return decode(await asyncio.shield(reading), BlobHeld)
    finally:
        stream.reset(Reason.CLOSED)
        await wind_up(sending, reading)


class Sent:
    """Whether chunks were on their way when a copy broke: then it is worth going on."""

    begun = False


class Outgoing:
    """One blob while copies of it are made: a short memory of what was read, for all who are sent the same."""

    def __init__(self, context: Context, blob: BlobId) -> None:
        self.blob = blob
        self.damaged = False
        """This node's own copy turned out to be bad."""
        self.refused = ""
        """Why the latest copy failed."""
        self._context = context
        self._groups: OrderedDict[tuple[int, int], asyncio.Task[Sequence[bytes]]] = OrderedDict()
        self._doubted = False

    async def about(self) -> tuple[int, BlobRoot | None]:
        """Size in bytes and root. Raises RefusedError when the blob is not here."""
        run, blobs = self._context.offload.run, self._context.blobs
        return await run(blobs.size, self.blob), await run(blobs.root, self.blob)

    async def read(self, group: Group) -> Sequence[bytes]:
        """Chunks, read from the disk unless somebody else has just got them. Not verified."""
        key = (group[0], len(group))
        reading = self._groups.get(key)
        if reading is None:
            context = self._context
            reading = asyncio.ensure_future(context.offload.run(context.blobs.read_chunks, self.blob, group, verify=False))
            self._groups[key] = reading
            while len(self._groups) > GROUPS_SHARED:
                await asyncio.gather(self._groups.popitem(last=False)[1], return_exceptions=True)
        return await asyncio.shield(reading)

    async def doubt(self) -> None:
        """A receiver says that chunks were wrong: once, look at all of them."""
        if not self._doubted:
            self._doubted = True
            self.damaged = not await self._context.offload.run(self._context.blobs.verify, self.blob)

    async def close(self) -> None:
        """End what is being read."""
        groups = list(self._groups.values())
        self._groups.clear()
        await wind_up(*groups)
