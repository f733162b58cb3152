"""Care for the blobs of which several copies are wanted: who else holds them, and what is done when copies are lost
(docs/spec/blobs.md#care).

The decisions are those of :class:`p2pgrid.core.replication.Replication`; here they meet the store, the peers and the copies:

1. What the leases on the disk say is what is cared for. The store tells of every change, and from time to time all is compared.
2. A proof is the digest of a nonce and a chunk. The asker reads its own chunk to compare, so that only holders can ask for one.
3. Nothing is answered before the disk was read, and nothing before the latest change was heard: "I do not keep it" would make
   others copy at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from blake3 import blake3

from p2pgrid.core.care_events import (
    Answered,
    Ask,
    Asked,
    Came,
    Cared,
    Copied,
    Copy,
    Dropped,
    Effect,
    Event,
    Gone,
    Heard,
    Leaving,
    Silent,
    Tell,
    Tick,
    Trim,
)
from p2pgrid.core.copies import NOT_KEPT, BlobCare, Terms
from p2pgrid.core.replication import Replication
from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import MalformedError, P2PGridError, TryAgainError
from p2pgrid.model.blob import chunk_count
from p2pgrid.model.ids import DIGEST_BYTES, BlobId, NodeKey, dht_id_of_blob, short
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.files import Care
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import LEASE_MAX_MS, Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.index import DAMAGED, HELD, BlobRow, Lease
from p2pgrid.wire.messages import BlobHolders, BlobHolds, BlobHoldsReply, HoldersOf, ProofWanted

PAGE = 512
COMPARE_S = 600.0
"""All leases are compared with what is cared for so often, in case that a change was missed."""
CHANGES_MAX = 200_000
ASK_S = 20.0
BLOBS_MAX = 1024
PROOFS_MAX = 32
NONCE_BYTES = 16
NEWS_KEYS_MAX = 1500
"""Keys in one ``blob.holders``: 50 kB."""
TOLD_MAX = 256
"""Notices of one peer that wait, 50 kB each. What is left out is found by asking."""
RETRY_S = 1.0
EARLY_S = 0.001
RENEWED_MS = 24 * 3_600_000
"""A lease without end is asked for with a day less than the most that anybody grants, so that it is renewed daily."""
LOOK_UP_S = 2.0
LOOK_UP_APART_S = 0.25
ANNOUNCED_MAX = 10_000
HAND_OVER_COPIES = 4

Wanted = tuple[BlobId, int, bytes]
"""Blob, chunk, nonce."""

PINNED_MS = 200 * 24 * 3600 * 1000
"""A pin is prolonged to twice this every day."""


class Caring:
    """This node's share in keeping as many copies of each blob as are wanted."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        storing: Storing,
        dht: GridServer,
        *,
        terms: Terms | None = None,
        score: Callable[[bytes], float] | None = None,
    ) -> None:
        """``score``: how much of the time a node is there, as measured, 0 to 1."""
        self._context = context
        self._peers = peers
        self._storing = storing
        self._dht = dht
        self._tasks = Tasks("caring")
        self._machine = Replication(context.me, context.rng, terms, score)
        self._changes: deque[BlobId] = deque(maxlen=CHANGES_MAX)
        """Appended to by any thread."""
        self._replicated: deque[Heard] = deque(maxlen=CHANGES_MAX)
        self._news: dict[bytes, list[HoldersOf]] = {}
        self._told: dict[bytes, list[BlobHolders]] = {}
        """What each peer said of holders and nobody looked at yet: whoever says so last may have left by then."""
        self._damaged: list[Callable[[BlobId, tuple[bytes, ...]], None]] = []
        self._healing: dict[BlobId, tuple[bytes, ...]] = {}
        """Damaged blobs, and who else held them."""
        self._made: deque[tuple[BlobId, NodeKey, int]] = deque(maxlen=ANNOUNCED_MAX)
        """Copies that may have to be recorded."""
        self._made_one = asyncio.Event()
        self._answering: set[bytes] = set()
        self._refreshing = asyncio.Lock()
        self._poke = asyncio.Event()
        self._loaded = False
        context.methods.on("blob.holds", BlobHolds, self._on_holds)
        context.methods.on_notify("blob.holders", BlobHolders, self._on_holders)

    async def start(self) -> None:
        """Listen to the store and to the peers, and begin to care."""
        loop = asyncio.get_running_loop()

        def changed(blob: BlobId) -> None:
            self._changes.append(blob)
            with suppress(RuntimeError):  # The loop has ended: so has this node.
                loop.call_soon_threadsafe(self._poke.set)

        self._context.blobs.on_change(changed)
        self._storing.on_replicated(self._on_replicated)
        self._peers.on_came(self._came)
        self._peers.on_restarted(lambda peer: self._came(peer, anew=True))
        self._peers.on_gone(lambda peer: self._take(Gone(peer)))
        for peer in sorted(self._peers.live()):
            self._came(NodeKey(peer))
        self._tasks.spawn(self._run(), "care")
        self._tasks.spawn(self._announce(), "announce")

    async def close(self) -> None:
        await self._tasks.close()

    # -- what other services use ---------------------------------------------------------

    def view(self, blob: bytes) -> BlobCare | None:
        """How it stands with a blob; None when this node does not care for it."""
        return self._machine.view(blob)

    def report(self, blob: bytes) -> Care | None:
        """The same for the owner: by wall clock, and in words."""
        view = self._machine.view(blob)
        if view is None:
            return None
        now_ms = self._context.wall_ms()
        heard_ms = {key: now_ms - int(heard_s * 1000) for key, heard_s in zip(view.holders, view.heard_s, strict=True)}
        short_since_ms = 0 if view.short_s is None else now_ms - int(view.short_s * 1000)
        return Care(view.replicas, heard_ms, short_since_ms, ((view.reason, view.text),) if view.reason else ())

    def peer_leaving(self, peer: bytes) -> None:
        """A peer says that it goes: what it holds is copied soon, by itself or by others."""
        self._take(Leaving(peer))

    def on_damaged(self, callback: Callable[[BlobId, tuple[bytes, ...]], None]) -> None:
        """Call ``callback(blob, others)`` when a blob of this node turns out to be damaged; ``others`` may have it."""
        self._damaged.append(callback)

    def holders(self, blob: bytes) -> tuple[bytes, ...]:
        """Others that hold a blob, those that are there first."""
        view = self._machine.view(blob)
        return tuple(key for key in (*view.holders, *view.believed) if key != self._context.me) if view is not None else ()

    async def hand_over(self, within_s: float) -> int:
        """Before this node leaves: copy what would fall below its copies without it, most endangered first.

        Returns how many blobs have too few copies elsewhere when ``within_s`` seconds are over or all was tried.
        """
        todo = deque(self._machine.endangered())
        left = len(todo)

        async def serve() -> None:
            nonlocal left
            while todo:
                done = await self._hand_over_one(todo.popleft())
                left -= done

        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                for _ in range(min(HAND_OVER_COPIES, len(todo))):
                    group.create_task(serve())
        return left

    async def _hand_over_one(self, blob: bytes) -> bool:
        refused: tuple[bytes, ...] = ()
        while (copy := self._machine.copy_for(blob, refused)) is not None:
            if not await self._copied_to(copy):
                self._take(Heard(blob, (copy.peer,), sure=True))
                self._tell_news()
            refused += (copy.peer,)
        return not self._machine.needs(blob)

    # -- the loop ----------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._load()
        context = self._context
        compare_at = context.clock() + COMPARE_S
        while True:
            self._poke.clear()
            try:
                await self._refresh()
                await self._hear()
                if context.clock() >= compare_at:
                    compare_at = context.clock() + COMPARE_S
                    await self._compare()
            except P2PGridError as error:
                context.tell(error.reason, f"looking after copies: {error}")
                await asyncio.sleep(RETRY_S)
            self._take(Tick())
            self._tell_news()
            until_s = min(self._machine.wakes_at(), compare_at) - context.clock()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until_s) + EARLY_S):
                    await self._poke.wait()

    def _take(self, event: Event) -> None:
        """Tell the machine, and do what it says."""
        for effect in self._machine.handle(event, self._context.clock()):
            self._do(effect)
        if not isinstance(event, Tick):
            self._poke.set()

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, Ask):
            self._tasks.spawn(self._ask(effect), "ask")
        elif isinstance(effect, Copy):
            self._tasks.spawn(self._copy(effect), "copy")
        elif isinstance(effect, Tell):
            for peer in effect.peers:
                self._news.setdefault(peer, []).append(HoldersOf(effect.blob, effect.holders))
        else:
            self._tasks.spawn(self._trim(effect), "trim")

    # -- what is here ---------------------------------------------------------------------------

    async def _load(self) -> None:
        while True:
            try:
                await self._note_all(found=True)
            except P2PGridError as error:
                self._context.tell(error.reason, f"reading which copies are wanted: {error}")
                await asyncio.sleep(RETRY_S)
            else:
                self._loaded = True
                return

    async def _note_all(self, *, found: bool) -> set[bytes]:
        """Take all leases in; returns the blobs that are cared for."""
        context, after, seen = self._context, b"", set[bytes]()
        run, blobs = context.offload.run, context.blobs
        while page := await run(blobs.replicated, context.wall_ms(), after, PAGE):
            after = page[-1]
            seen.update(page)
            for blob, (row, leases) in zip(page, await run(blobs.look, page), strict=True):
                self._note(blob, row, leases, found=found)
        return seen

    async def _compare(self) -> None:
        seen = await self._note_all(found=False)
        self._changes.extend(BlobId(blob) for blob in self._machine.blobs() if blob not in seen)
        await self._refresh()

    async def _refresh(self) -> None:
        """Look at what changed."""
        async with self._refreshing:
            while self._changes:
                batch = list(dict.fromkeys(self._changes.popleft() for _ in range(min(PAGE, len(self._changes)))))
                try:
                    found = await self._context.offload.run(self._context.blobs.look, batch)
                except P2PGridError:
                    self._changes.extend(batch)
                    raise
                for blob, (row, leases) in zip(batch, found, strict=True):
                    self._note(blob, row, leases)
            while self._replicated:
                self._take(self._replicated.popleft())

    def _note(self, blob: BlobId, row: BlobRow | None, leases: Sequence[Lease], *, found: bool = False) -> None:
        now_ms, me = self._context.wall_ms(), self._context.me
        live = [lease for lease in leases if lease.expires_ms > now_ms]
        replicas = max((lease.replicas for lease in live), default=0)
        if row is None or row.state != HELD or replicas < 2:
            others = self.holders(blob)
            self._take(Dropped(blob))
            if row is not None and row.state == DAMAGED:
                if len(self._healing) < CHANGES_MAX:
                    self._healing.setdefault(blob, others)
                for callback in self._damaged:
                    callback(blob, others)
            return
        expires_ms = max(lease.expires_ms for lease in live if lease.replicas == replicas)
        fixed = any(_pinned(lease, me, now_ms) for lease in live)
        self._take(Cared(blob, row.size_bytes, replicas, expires_ms, (expires_ms - now_ms) / 1000, fixed, found))
        healed = self._healing.pop(blob, ())
        if healed:
            self._take(Heard(blob, healed))

    async def _hear(self) -> None:
        """Take in what peers said of holders; after the refresh, so that all blobs that are here are known."""
        told, self._told = self._told, {}
        for peer, notices in told.items():
            for notice in notices:
                for item in notice.items:
                    self._take(Heard(item.blob, item.holders, by=peer))
                await asyncio.sleep(0)  # Others have their turn, however much one says.

    def _on_replicated(self, blob: BlobId, holders: tuple[bytes, ...]) -> None:
        self._replicated.append(Heard(blob, holders, sure=True))
        self._poke.set()

    def _came(self, peer: NodeKey, *, anew: bool = False) -> None:
        member = self._peers.member(peer)
        if member is not None:
            self._take(Came(peer, "store" in member.roles, anew))

    # -- copies --------------------------------------------------------------------------------------

    async def _copy(self, copy: Copy) -> None:
        try:
            refused = await self._copied_to(copy)
        except Exception:
            self._take(Copied(copy.blob, copy.peer, Reason.BUG))
            raise
        self._take(Copied(copy.blob, copy.peer, refused))

    async def _copied_to(self, copy: Copy) -> str:
        """Make one copy; returns why there is none, empty when there is."""
        blob = BlobId(copy.blob)
        expires_ms = min(copy.expires_ms, self._context.wall_ms() + LEASE_MAX_MS)
        try:
            refused = await self._storing.copy_to(blob, NodeKey(copy.peer), expires_ms, copy.replicas)
        except P2PGridError as error:
            return str(error.reason) or Reason.BUG
        if not refused:
            self._made.append((blob, NodeKey(copy.peer), expires_ms))
            self._made_one.set()
        return refused

    async def _announce(self) -> None:
        """Where the holders of a blob are recorded in the DHT, new ones are recorded, too: later, and not all at once."""
        while True:
            await self._made_one.wait()
            self._made_one.clear()
            while self._made:
                blob, peer, expires_ms = self._made.popleft()
                with suppress(P2PGridError, TimeoutError):
                    async with asyncio.timeout(LOOK_UP_S):
                        recorded = await self._dht.get(dht_id_of_blob(blob), RecordKind.BLOB_HOLDER)
                    if recorded:
                        await self._storing.copy_to(blob, peer, expires_ms, 1, announce=True)
                await asyncio.sleep(LOOK_UP_APART_S)

    async def _trim(self, trim: Trim) -> None:
        """One copy too many: give it up. The room is free with the next expiry."""
        context, blob = self._context, BlobId(trim.blob)
        now_ms = context.wall_ms()
        run = context.offload.run
        try:
            for lease in await run(context.blobs.leases, blob):
                if lease.replicas > 1 and not _pinned(lease, context.me, now_ms):
                    await run(context.blobs.release, blob, lease.owner)
        except P2PGridError as error:
            context.tell(error.reason, f"giving up a copy of blob {short(blob)}: {error}", blob)

    # -- asking ------------------------------------------------------------------------------------------

    async def _ask(self, ask: Ask) -> None:
        context, peer = self._context, NodeKey(ask.peer)
        most_ms = context.wall_ms() + LEASE_MAX_MS - RENEWED_MS
        wanted = [self._wanted(ask.blobs[place]) for place in ask.prove]
        request = BlobHolds(
            b"".join(ask.blobs),
            tuple(min(until_ms, most_ms) for until_ms in ask.until_ms),
            tuple(ProofWanted(place, chunk, nonce) for place, (_, chunk, nonce) in zip(ask.prove, wanted, strict=True)),
        )
        try:
            reply = await self._peers.call(peer, "blob.holds", request, BlobHoldsReply, timeout_s=ASK_S)
            if len(reply.kept) != len(ask.blobs) or len(reply.proofs) != len(wanted):
                raise MalformedError("an answer to another question", reason=Reason.MALFORMED)
            # Of what it does not keep there is nothing to compare.
            said = [number for number, place in enumerate(ask.prove) if reply.kept[place] != NOT_KEPT]
            due = await context.offload.run(prove, context.blobs, [wanted[number] for number in said])
        except P2PGridError:
            self._take(Silent(peer, ask.blobs, gone=not self._peers.is_live(peer)))
            return
        pairs = [(ask.prove[number], reply.proofs[number], mine) for number, mine in zip(said, due, strict=True) if mine]
        proved = tuple(place for place, theirs, mine in pairs if theirs == mine)
        failed = tuple(place for place, theirs, mine in pairs if theirs != mine)
        if failed:
            blob = ask.blobs[failed[0]]
            context.tell(Reason.CORRUPT, f"{short(peer)} does not hold blob {short(blob)}, and says it does", blob, peer)
        self._take(Answered(peer, ask.blobs, reply.kept, proved, failed))

    def _wanted(self, blob: bytes) -> Wanted:
        chunk = self._context.rng.randrange(chunk_count(self._machine.size_bytes(blob)))
        return BlobId(blob), chunk, self._context.random_bytes(NONCE_BYTES)

    def _tell_news(self) -> None:
        """All that is new for each peer, in few messages."""
        news, self._news = self._news, {}
        for peer, items in news.items():
            part, keys = list[HoldersOf](), 0
            for item in items:
                if keys + len(item.holders) + 1 > NEWS_KEYS_MAX:
                    self._peers.notify(NodeKey(peer), "blob.holders", BlobHolders(tuple(part)))
                    part, keys = [], 0
                part.append(item)
                keys += len(item.holders) + 1
            self._peers.notify(NodeKey(peer), "blob.holders", BlobHolders(tuple(part)))

    # -- answering ----------------------------------------------------------------------------------------

    async def _on_holds(self, session: Session, request: BlobHolds) -> BlobHoldsReply:
        blobs = _parted(request)
        if not self._loaded or session.peer in self._answering:
            raise TryAgainError("one question at a time", reason=Reason.BUSY)
        self._answering.add(session.peer)
        try:
            await self._refresh()
            kept = bytearray(self._machine.kept(blob, until_ms) for blob, until_ms in zip(blobs, request.until_ms, strict=True))
            able = [number for number, wanted in enumerate(request.proofs) if kept[wanted.place] != NOT_KEPT]
            wanted = [(BlobId(blobs[p.place]), p.chunk, p.nonce) for p in (request.proofs[number] for number in able)]
            made = dict(zip(able, await self._context.offload.run(prove, self._context.blobs, wanted), strict=True))
        finally:
            self._answering.discard(session.peer)
        for number, proof in made.items():
            if not proof:
                kept[request.proofs[number].place] = NOT_KEPT
        self._take(Asked(session.peer, blobs))
        return BlobHoldsReply(bytes(kept), tuple(made.get(number, b"") for number in range(len(request.proofs))))

    def _on_holders(self, session: Session, notice: BlobHolders) -> None:
        keys = sum(len(item.holders) + 1 for item in notice.items)
        if keys > NEWS_KEYS_MAX or any(len(key) != DIGEST_BYTES for item in notice.items for key in item.holders):
            raise MalformedError("holders that cannot be", reason=Reason.MALFORMED)
        if self._loaded and len(told := self._told.setdefault(session.peer, [])) < TOLD_MAX:
            told.append(notice)
            self._poke.set()


def _pinned(lease: Lease, me: bytes, now_ms: int) -> bool:
    """Whether the owner of this node wants a blob here and nowhere else: it never asked for copies, or keeps it for good.

    What was put with copies is as safe elsewhere: if its copy here is one too many, it goes like any other.
    """
    return lease.owner == me and (lease.replicas < 2 or lease.expires_ms - now_ms >= PINNED_MS)


def _parted(request: BlobHolds) -> tuple[bytes, ...]:
    """The ids of a question. Raises MalformedError when it contradicts itself or is over a limit."""
    count, rest = divmod(len(request.blobs), DIGEST_BYTES)
    proofs = request.proofs
    if rest or not 0 < count <= BLOBS_MAX or len(request.until_ms) != count or len(proofs) > PROOFS_MAX:
        raise MalformedError("a question for blobs that cannot be", reason=Reason.MALFORMED)
    if any(not 0 <= proof.place < count or proof.chunk < 0 or len(proof.nonce) != NONCE_BYTES for proof in proofs):
        raise MalformedError("proofs that cannot be", reason=Reason.MALFORMED)
    return tuple(request.blobs[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES] for place in range(count))


def prove(blobs: BlobStore, wanted: Sequence[Wanted]) -> list[bytes]:
    """The digests of nonces and chunks; empty where a chunk is not here, or is no longer what it was. Blocks on the disk."""
    proofs = []
    for blob, chunk, nonce in wanted:
        try:
            proofs.append(blake3(nonce + blobs.read_chunk(blob, chunk)).digest())
        except P2PGridError:
            proofs.append(b"")
    return proofs
