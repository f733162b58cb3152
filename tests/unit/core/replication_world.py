"""Machines that care for blobs, joined by messages that take time: who fails, comes back, is full or lies is up to the test."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

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
from p2pgrid.core.copies import KEPT, NOT_KEPT, Terms
from p2pgrid.core.replication import Replication
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.codec import digest_of

LIFE_S = 30 * 86400.0
EXPIRES_MS = 2_600_000_000
NOTICE_S = 1.5
"""How long a connection that broke is dialled again before its peer counts as gone."""


def blob_id(number: int) -> bytes:
    return digest_of(b"blob %d" % number)


@dataclass
class Node:
    key: bytes
    machine: Replication
    on: bool = True
    life: int = 0
    stores: bool = True
    room: int = 1 << 62
    leases: dict[bytes, tuple[int, int, bool]] = field(default_factory=dict)
    """By blob: copies wanted, end, whether its owner wants it."""
    sizes: dict[bytes, int] = field(default_factory=dict)
    liar: bool = False
    stuck: bool = False
    """The copies that it makes never end."""
    waking: float = math.inf


class World:
    """``run(until)`` plays events in order of time; ``log`` is what was done."""

    def __init__(self, nodes: int, seed: int = 1, terms: Terms | None = None, bytes_per_s: float = 50e6, **options: Any) -> None:
        self.rng = random.Random(seed)
        self.seed, self.terms, self.options = seed, terms or Terms(), options
        self.now = 0.0
        self.bytes_per_s = bytes_per_s
        self.nodes: dict[bytes, Node] = {}
        self.log: list[tuple[float, str, str]] = []
        self.copies = self.asks = self.asked_blobs = self.trims = 0
        self._heap: list[tuple[float, int, Any]] = []
        self._numbers = count()
        for number in range(nodes):
            self.add(digest_of(b"node %d" % number))

    def add(self, key: bytes) -> Node:
        node = Node(key, self._machine(key))
        others = [other for other in self.nodes.values() if other.on]
        self.nodes[key] = node
        self._meet(node, others)
        return node

    def _machine(self, key: bytes) -> Replication:
        return Replication(key, random.Random(f"{self.seed}/{key.hex()}"), self.terms, **self.options)

    def _meet(self, node: Node, others: list[Node]) -> None:
        for other in others:
            self.tell(node, Came(other.key, other.stores))
            self.tell(other, Came(node.key, node.stores, anew=node.life > 0))

    @property
    def keys(self) -> list[bytes]:
        return list(self.nodes)

    def live(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.on]

    # -- the world's side of things ------------------------------------------------------------

    def at(self, when: float, call: Any) -> None:
        heappush(self._heap, (when, next(self._numbers), call))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, call = heappop(self._heap)
            call()
        self.now = until

    def tell(self, node: Node, event: Event) -> None:
        for effect in node.machine.handle(event, self.now):
            self._do(node, effect)
        at = node.machine.wakes_at()
        if at < math.inf and at != node.waking:
            node.waking = at
            life = node.life
            self.at(max(at, self.now), lambda: self._wake(node, life, at))

    def _wake(self, node: Node, life: int, at: float) -> None:
        if node.on and node.life == life and node.waking == at:
            node.waking = math.inf
            self.tell(node, Tick())

    def put(self, number: int, holders: list[bytes], replicas: int = 3, size_bytes: int = 1000, own: bool = True) -> bytes:
        """The first holder wrote a blob to the others."""
        blob = blob_id(number)
        for key in holders:
            self.hold(self.nodes[key], blob, size_bytes, replicas, EXPIRES_MS, fixed=own and key == holders[0])
        self.tell(self.nodes[holders[0]], Heard(blob, tuple(holders[1:]), sure=True))
        return blob

    def hold(self, node: Node, blob: bytes, size_bytes: int, replicas: int, expires_ms: int, *, fixed: bool = False) -> None:
        wanted, end_ms, was_fixed = node.leases.get(blob, (1, 0, False))
        node.leases[blob] = max(wanted, replicas), max(end_ms, expires_ms), was_fixed or fixed
        node.sizes[blob] = size_bytes
        self._report(node, blob)

    def _report(self, node: Node, blob: bytes, *, found: bool = False) -> None:
        wanted, end_ms, fixed = node.leases[blob]
        self.tell(node, Cared(blob, node.sizes[blob], wanted, end_ms, LIFE_S - self.now, fixed, found))

    def crash(self, key: bytes) -> None:
        node = self.nodes[key]
        node.on, node.life = False, node.life + 1
        for other in self.live():
            self.at(self.now + NOTICE_S, lambda other=other: self._notice(other, node))

    def _notice(self, other: Node, gone: Node) -> None:
        if other.on and not gone.on:
            self.tell(other, Gone(gone.key))

    def wipe(self, key: bytes) -> None:
        self.nodes[key].leases.clear()
        self.nodes[key].sizes.clear()

    def restart(self, key: bytes) -> None:
        node = self.nodes[key]
        node.on, node.waking = True, math.inf
        node.machine = self._machine(key)
        for blob in list(node.leases):
            self._report(node, blob, found=True)
        self._meet(node, [other for other in self.live() if other is not node])

    def leave(self, key: bytes) -> None:
        for other in self.live():
            if other.key != key:
                self.tell(other, Leaving(key))

    def forget_blob(self, key: bytes, blob: bytes) -> None:
        """The owner of a node deletes what it holds."""
        del self.nodes[key].leases[blob]
        self.tell(self.nodes[key], Dropped(blob))

    # -- effects -----------------------------------------------------------------------------------

    def _do(self, node: Node, effect: Effect) -> None:
        self.log.append((self.now, node.key.hex()[:6], repr(effect)))
        delay = 0.002 + self.rng.random() * 0.02
        life = node.life
        if isinstance(effect, Ask):
            self.asks += 1
            self.asked_blobs += len(effect.blobs)
            self.at(self.now + delay, lambda: self._asked(node, life, effect))
        elif isinstance(effect, Copy) and not node.stuck:
            self.at(self.now + delay + node.sizes[effect.blob] / self.bytes_per_s, lambda: self._copied(node, life, effect))
        elif isinstance(effect, Tell):
            for peer in effect.peers:
                self.at(self.now + delay, lambda peer=peer: self._told(self.nodes[peer], node, effect))
        elif isinstance(effect, Trim):
            self.trims += 1
            node.leases.pop(effect.blob)

    def _back(self, node: Node, life: int, event: Event) -> None:
        if node.on and node.life == life:
            self.tell(node, event)

    def _asked(self, node: Node, life: int, ask: Ask) -> None:
        peer = self.nodes.get(ask.peer)
        if peer is None or not peer.on:
            self.at(self.now + NOTICE_S, lambda: self._back(node, life, Silent(ask.peer, ask.blobs, gone=peer is None or not peer.on)))
            return
        pairs = zip(ask.blobs, ask.until_ms, strict=True)
        kept = bytes(KEPT if peer.liar else peer.machine.kept(blob, until_ms) for blob, until_ms in pairs)
        self.tell(peer, Asked(node.key, ask.blobs))
        able = [place for place in ask.prove if kept[place] != NOT_KEPT]
        proved = tuple(place for place in able if ask.blobs[place] in peer.leases)
        failed = tuple(place for place in able if ask.blobs[place] not in peer.leases)
        self.at(self.now + 0.01, lambda: self._back(node, life, Answered(ask.peer, ask.blobs, kept, proved, failed)))

    def _copied(self, node: Node, life: int, copy: Copy) -> None:
        peer = self.nodes[copy.peer]
        if not node.on or node.life != life:
            return
        refused = ""
        size_bytes = node.sizes[copy.blob]
        if not peer.on or copy.blob not in node.leases:
            refused = Reason.DEAD
        elif copy.blob not in peer.leases and sum(peer.sizes[blob] for blob in peer.leases) + size_bytes > peer.room:
            refused = Reason.STORE_FULL
        elif not peer.liar:
            self.copies += 1
            self.hold(peer, copy.blob, size_bytes, copy.replicas, copy.expires_ms)
        self.tell(node, Copied(copy.blob, copy.peer, refused))

    def _told(self, peer: Node, by: Node, tell: Tell) -> None:
        if peer.on:
            self.tell(peer, Heard(tell.blob, tell.holders, by=by.key))

    # -- what is true ------------------------------------------------------------------------------

    def holders(self, blob: bytes) -> list[bytes]:
        return [node.key for node in self.live() if blob in node.leases]

    def counts(self) -> dict[bytes, int]:
        blobs = dict.fromkeys(blob for node in self.nodes.values() for blob in node.leases)
        return {blob: len(self.holders(blob)) for blob in blobs}
