"""Who is believed to hold which blob, and what is due when: the tables that repairing and asking share. All are bounded."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush

from p2pgrid.core.care_events import Effect
from p2pgrid.core.copies import CLAIMS, Care, Peer, Terms

CARE, PEER = 0, 1
"""What something due is about."""


class Holdings:
    """The blobs of one node, the peers, and the links between them, kept from both sides."""

    def __init__(self, me: bytes, terms: Terms) -> None:
        self.me, self.terms = me, terms
        self.now = 0.0
        self.cares: dict[bytes, Care] = {}
        self.peers: dict[bytes, Peer] = {}
        self.effects: list[Effect] = []
        self._heap: list[tuple[float, int, bytes]] = []

    # -- holders -----------------------------------------------------------------------------

    def peer(self, key: bytes) -> Peer | None:
        """The line of a peer; a new one takes the place of one that nothing is believed of. None: there is no room."""
        if key == self.me:
            return None
        peer = self.peers.get(key)
        if peer is None:
            if len(self.peers) >= self.terms.peers_max:
                idle = next((known.key for known in self.peers.values() if not (known.blobs or known.there or known.asking)), None)
                if idle is None:
                    return None
                del self.peers[idle]
            peer = self.peers[key] = Peer(key)
        return peer

    def believe(self, care: Care, key: bytes) -> Peer | None:
        """Take a peer for a holder that is to be asked. Among too many, one that does not count is forgotten."""
        if key in care.holders:
            return self.peers[key]
        if len(care.holders) >= self.terms.holders_max:
            other = next((known for known, state in care.holders.items() if not state & CLAIMS and known not in care.copying), None)
            if other is None:
                return None
            self.disbelieve(care, other)
        peer = self.peer(key)
        if peer is not None:
            care.holders[key] = 0
            peer.blobs[care.blob] = None
            peer.unproven[care.blob] = None
        return peer

    def disbelieve(self, care: Care, key: bytes) -> None:
        """It does not hold the blob."""
        if care.holders.pop(key, None) is None:
            return
        care.checking.pop(key, None)
        peer = self.peers[key]
        for table in (peer.blobs, peer.unproven, peer.urgent):
            table.pop(care.blob, None)

    def drop(self, blob: bytes) -> None:
        """Care for a blob no longer."""
        care = self.cares.pop(blob, None)
        if care is not None:
            for key in list(care.holders):
                self.disbelieve(care, key)

    def forget(self, peer: Peer) -> None:
        """Believe nothing of a peer any more."""
        for blob in list(peer.blobs):
            self.disbelieve(self.cares[blob], peer.key)
        del self.peers[peer.key]

    # -- time ------------------------------------------------------------------------------------

    def set_due(self, care: Care, at: float) -> None:
        """Look at a blob again at a time, and not before."""
        if care.due != at:
            care.due = at
            self._push(at, CARE, care.blob)

    def set_end(self, care: Care, at: float) -> None:
        """Nobody wants copies of a blob from then on."""
        if care.ends != at:
            care.ends = at
            self._push(at, CARE, care.blob)

    def set_peer_due(self, peer: Peer, at: float) -> None:
        """Ask a peer at a time, or when it was to be asked before that."""
        if peer.due > at:
            peer.due = at
            self._push(at, PEER, peer.key)

    def _push(self, at: float, kind: int, key: bytes) -> None:
        if at == math.inf:
            return
        heappush(self._heap, (at, kind, key))
        if len(self._heap) > 4 * (len(self.cares) + len(self.peers)) + 1024:
            self._heap = [entry for entry in dict.fromkeys(self._heap) if self._stands(entry)]
            heapify(self._heap)

    def _stands(self, entry: tuple[float, int, bytes]) -> bool:
        at, kind, key = entry
        if kind == PEER:
            peer = self.peers.get(key)
            return peer is not None and peer.due == at
        care = self.cares.get(key)
        return care is not None and at in (care.due, care.ends)

    def next_due(self) -> float:
        """When something is due."""
        while self._heap and not self._stands(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def pop_due(self) -> Care | Peer | None:
        """The next of what is due by now."""
        if self.next_due() > self.now:
            return None
        _, kind, key = heappop(self._heap)
        if kind == PEER:
            peer = self.peers[key]
            peer.due = math.inf
            return peer
        return self.cares[key]
