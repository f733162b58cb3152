"""Whom a holder asks, when, and for which blobs and proofs: one question at a time to each peer, many blobs in each.

What cannot wait comes first (a copy just made, a copy that is checked before another one goes), then what was heard or is back,
then blobs that are short of copies and of which somebody may have one that nobody spoke of, then the round of probes.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import islice

from p2pgrid.core.care_events import Ask
from p2pgrid.core.copies import CLAIMS, Care, Peer, order
from p2pgrid.core.holdings import Holdings

RANKS = 1 << 16


class Questions:
    """Decides who is asked for what."""

    def __init__(self, holdings: Holdings, rng: random.Random) -> None:
        self._all = holdings
        self._terms = holdings.terms
        self._rng = rng
        self._searches: list[tuple[int, bytes]] = []
        """Blobs that fell short, in that order: each neighbour is asked for them from where it stands."""
        self._last_search = 0
        self._began = False

    def jitter(self, span_s: float) -> float:
        return span_s * (0.75 + self._rng.random() / 2)

    # -- what is to be asked ------------------------------------------------------------------------

    def soon(self, peer: Peer, blob: bytes) -> None:
        """Ask a peer for a blob with the next question."""
        if not peer.away:
            peer.todo.append(blob)
            self.schedule(peer)

    def at_once(self, peer: Peer, blob: bytes) -> None:
        """Ask a peer for a blob now, with a proof."""
        peer.urgent[blob] = None
        peer.ask_at = self._all.now
        self.schedule(peer)

    def all_again(self, peer: Peer) -> None:
        """A peer is there (again): ask for all that it may hold, and for what is missing."""
        peer.fails, peer.searched, peer.back_s = 0, 0, self._all.now
        peer.round.clear()
        peer.todo = deque(peer.blobs)
        peer.ask_at = self._all.now
        peer.probe_at = peer.round_at = self._all.now + self.jitter(self._terms.probe_s)
        self.schedule(peer)

    def later(self, peer: Peer, blobs: Sequence[bytes]) -> None:
        """A question was not answered."""
        peer.todo.extendleft(reversed(blobs))
        # A question to its former life says nothing of this one.
        peer.ask_at = self._all.now + (self._terms.ask_gap_s if peer.back_s >= peer.asked_s else self._terms.retry_s)
        self.schedule(peer)

    def lost(self, peer: Peer) -> None:
        """Nothing is asked of a peer that is away, but whether it is back."""
        for waiting in (peer.todo, peer.round):
            waiting.clear()
        peer.urgent.clear()
        peer.probe_at = peer.round_at = self._all.now + self.jitter(self._terms.away_retry_s)
        peer.due = math.inf
        self.schedule(peer)

    def search(self, care: Care) -> None:
        """Ask everybody who is near for copies of a blob."""
        care.searched_s = self._all.now
        if not self._terms.neighbours_max:
            return
        self._last_search += 1
        care.search = self._last_search
        self._searches.append((self._last_search, care.blob))
        self._began = True

    def spread(self) -> None:
        """After an event: if searches began, everybody who is near is to be asked."""
        if not self._began:
            return
        self._began = False
        cares = self._all.cares
        if len(self._searches) > 2 * len(cares) + 1024:
            self._searches = sorted((care.search, blob) for blob, care in cares.items() if care.short and care.search)
        for peer in self._all.peers.values():
            if peer.there:
                self.schedule(peer)

    def schedule(self, peer: Peer) -> None:
        """Set when a peer is asked next."""
        if peer.asking:
            return
        if peer.blobs and peer.probe_at == math.inf:
            peer.round_at = self._all.now + self.jitter(self._terms.probe_s)
            peer.probe_at = peer.round_at
        if peer.unproven and not peer.away and peer.probe_at > self._all.now + 2 * self._terms.prove_s:
            peer.probe_at = self._all.now + self.jitter(self._terms.prove_s)
        at = peer.probe_at if peer.blobs else math.inf
        if not peer.away and (peer.urgent or peer.todo or (peer.there and self._last_search > peer.searched)):
            at = min(at, peer.ask_at)
        self._all.set_peer_due(peer, max(at, self._all.now))

    # -- the question ----------------------------------------------------------------------------------

    def ask(self, peer: Peer) -> None:
        """The time of a peer has come."""
        every, terms = self._all, self._terms
        if peer.asking:
            return
        if peer.away and every.now - peer.away_since > terms.forget_s:
            every.forget(peer)
            return
        blobs: dict[bytes, None] = {}
        urgent = list(peer.urgent)[: terms.proofs_max]
        for blob in urgent:
            del peer.urgent[blob]
        self._fill(blobs, deque(urgent))
        self._fill(blobs, peer.todo)
        self._fill_searched(blobs, peer)
        if every.now >= peer.probe_at:
            self._probe(blobs, peer)
        prove = self._to_prove(peer, list(blobs))
        peer.ask_at = every.now + terms.ask_gap_s
        if not blobs:
            self.schedule(peer)
            return
        asked = tuple(blobs)
        peer.asked_s = every.now
        peer.asking, peer.proving = True, frozenset(asked[place] for place in prove)
        every.effects.append(Ask(peer.key, asked, tuple(every.cares[blob].expires_ms for blob in asked), prove))

    def _probe(self, blobs: dict[bytes, None], peer: Peer) -> None:
        """The next part of a round, or between two parts some of those that are not proven yet."""
        every, terms = self._all, self._terms
        if every.now >= peer.round_at:
            peer.round_at = every.now + self.jitter(terms.away_retry_s if peer.away else terms.probe_s)
            if not peer.round:
                peer.round.extend(peer.blobs)
            self._fill(blobs, peer.round)
        else:
            self._fill(blobs, deque(islice(peer.unproven, terms.proofs_max)))
        proofs_s = every.now + self.jitter(terms.prove_s) if peer.unproven and not peer.away else math.inf
        peer.probe_at = min(peer.round_at, proofs_s)

    def _fill(self, blobs: dict[bytes, None], waiting: deque[bytes]) -> None:
        while waiting and len(blobs) < self._terms.ask_max:
            blob = waiting.popleft()
            if blob in self._all.cares:
                blobs[blob] = None

    def _fill_searched(self, blobs: dict[bytes, None], peer: Peer) -> None:
        if not peer.there:
            return
        if not self._near(peer):
            peer.searched = self._last_search
        while peer.searched < self._last_search and (room := self._terms.ask_max - len(blobs)) > 0:
            at = bisect_right(self._searches, peer.searched, key=lambda search: search[0])
            page = self._searches[at : at + room]
            peer.searched = page[-1][0] if page else self._last_search
            for number, blob in page:
                care = self._all.cares.get(blob)
                if care is not None and care.short and care.search == number and not care.holders.get(peer.key, 0) & CLAIMS:
                    blobs[blob] = None

    def _near(self, peer: Peer) -> bool:
        """Among many neighbours, only some are asked for copies that nobody spoke of."""
        if len(self._all.peers) <= self._terms.neighbours_max:
            return True
        neighbours = sum(other.there for other in self._all.peers.values())
        rank = int.from_bytes(order(self._all.me, peer.key)[:2], "big")
        return rank * neighbours < RANKS * self._terms.neighbours_max

    def _to_prove(self, peer: Peer, blobs: Sequence[bytes]) -> tuple[int, ...]:
        """Places of what a peer must prove: what it was given or is checked for, what it never proved, and one at random."""
        most = self._terms.proofs_max
        checked = [place for place, blob in enumerate(blobs) if self._is_checked(blob, peer.key)]
        fresh = [place for place, blob in enumerate(blobs) if blob in peer.unproven]
        due = list(dict.fromkeys(checked + fresh))[:most]
        known = [place for place, blob in enumerate(blobs) if blob in peer.blobs and blob not in peer.unproven]
        if known and len(due) < most:
            due.append(self._rng.choice(known))
        return tuple(dict.fromkeys(due))

    def _is_checked(self, blob: bytes, key: bytes) -> bool:
        care = self._all.cares[blob]
        return key in care.checking or bool(care.copying.get(key))
