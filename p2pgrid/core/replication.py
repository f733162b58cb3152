"""Who copies a blob again when a holder is lost, and whose copy goes when there is one too many (docs/spec/blobs.md#care).

1. Every holder whose leases want r > 1 copies cares for the blob. A co-holder counts while it is there and says that it keeps the
   blob for as long as is wanted here. Of who was caught with a claim it could not prove, proven copies alone count. A copy that
   was made to repair counts once it is proven.
2. The holders of a blob stand in the order of ``digest(blob, key)``. When fewer than r count for longer than a grace, the last
   of them copies to the first candidate: by score, then by the same order, so that two who repair choose the same one. Each
   holder before the last waits a step longer, for the case that the last one cannot, or sees it differently.
3. Before that, everybody who is near is asked whether it has a copy that nobody spoke of. Who has one for a shorter time is
   the first candidate: it only needs the lease.
4. Only a holder with r others before it in the order, all there and proven anew, lets its copy go, after a long while. So of all
   who let go at one time, the first in the order has r others before it, who stay: r copies are left, whatever each one knew.
   What the owner of this node wants here never goes.
5. Co-holders are asked about every minute, at once when they come back (:mod:`p2pgrid.core.questions`). What is heard of holders
   is a reason to ask them, never a copy.
6. Copies are begun at a bounded rate, most endangered blob first. All tables are bounded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from heapq import heappop, heappush

from p2pgrid.core.care_events import (
    Answered,
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
from p2pgrid.core.copies import CLAIMS, HAS, KEPT, KEPT_SHORTER, NOT_KEPT, PROVEN, BlobCare, Care, Peer, Terms, order
from p2pgrid.core.holdings import Holdings
from p2pgrid.core.questions import Questions
from p2pgrid.model.reasons import Reason

SAME_END_MS = 3_600_000
"""Leases that end within an hour of each other end together."""
FAILS_MAX = 3
"""Questions in a row without an answer: the peer is taken for away."""
LASTING = frozenset({Reason.STORE_FULL, Reason.DISK_FULL, Reason.NO_ROLE, Reason.UNSUPPORTED, Reason.TOO_LARGE})
"""Refusals that stand for a while; everything else may be better in a moment."""
FOR_WANT_OF_ROOM = frozenset({Reason.STORE_FULL, Reason.DISK_FULL, Reason.TOO_LARGE})
"""Refusals that do not stand for smaller blobs."""


class Replication:
    """The blobs of one node and their other holders. ``handle`` is to be called with a clock that never runs back."""

    def __init__(self, me: bytes, rng: random.Random, terms: Terms | None = None, score: Callable[[bytes], float] | None = None) -> None:
        """``score``: how much of the time a peer is there, 0 to 1; steps of a tenth count."""
        self._me = me
        self._terms = terms or Terms()
        self._score = score
        self._all = Holdings(me, self._terms)
        self._questions = Questions(self._all, rng)
        self._ready: list[tuple[int, bytes]] = []
        """(copies there are, blob) of what may be copied now."""
        self._flying = 0
        self._free_at = 0.0
        self.uncared = 0
        """Blobs for which there was no room in the table."""
        self.made = self.made_bytes = self.trimmed = 0

    # -- what others ask of it ---------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event at a time in seconds; returns what is to be done."""
        self._all.now = now
        self._HANDLERS[type(event)](self, event)
        self._questions.spread()
        while (due := self._all.pop_due()) is not None:
            if isinstance(due, Peer):
                self._questions.ask(due)
            else:
                self._care_due(due)
        self._begin_copies()
        effects, self._all.effects = self._all.effects, []
        return effects

    def wakes_at(self) -> float:
        """When the next Tick is due."""
        at = self._all.next_due()
        return min(at, self._free_at) if self._ready and self._flying < self._terms.copies_max else at

    def kept(self, blob: bytes, until_ms: int) -> int:
        """What to answer a co-holder that wants a blob kept until a time."""
        care = self._all.cares.get(blob)
        if care is None:
            return NOT_KEPT
        return KEPT if care.expires_ms + SAME_END_MS >= until_ms else KEPT_SHORTER

    def size_bytes(self, blob: bytes) -> int:
        """The size of a blob that is cared for, else 0."""
        care = self._all.cares.get(blob)
        return care.size_bytes if care is not None else 0

    def blobs(self) -> list[bytes]:
        """All that is cared for."""
        return list(self._all.cares)

    def endangered(self) -> list[bytes]:
        """What would fall below its copies without this node, fewest other copies first."""
        others = [(len(care.live()), blob) for blob, care in self._all.cares.items()]
        return [blob for count, blob in sorted(others) if self.needs(blob)]

    def needs(self, blob: bytes) -> bool:
        """Whether a blob would have too few copies without this node."""
        care = self._all.cares.get(blob)
        return care is not None and len(care.live()) < care.replicas

    def copy_for(self, blob: bytes, refused: tuple[bytes, ...] = ()) -> Copy | None:
        """The copy to make before this node leaves; None when enough others keep it, or nobody takes it."""
        care = self._all.cares.get(blob)
        target = self._candidate(care, refused) if care is not None and len(care.live()) < care.replicas else None
        return Copy(blob, target, care.expires_ms, care.replicas) if care is not None and target is not None else None

    def view(self, blob: bytes) -> BlobCare | None:
        """How it stands with a blob, as of the latest event; None: not cared for here."""
        care = self._all.cares.get(blob)
        if care is None:
            return None
        now = self._all.now
        ranked = sorted((self._me, *care.holders), key=lambda key: order(blob, key))
        live = tuple(key for key in ranked if key == self._me or care.holders[key] & CLAIMS)
        due = max(self._free_at, now) if care.ready else care.due
        reason, text = self._why(care)
        return BlobCare(
            blob,
            care.size_bytes,
            care.replicas,
            holders=live,
            proven=tuple(key for key in live if key == self._me or care.holders[key] & PROVEN),
            believed=tuple(key for key in ranked if key not in live),
            heard_s=tuple(0.0 if key == self._me else now - self._all.peers[key].heard_s for key in live),
            copying=tuple(care.copying),
            short_s=now - care.short_since if care.short else None,
            repair_in_s=max(0.0, due - now) if care.short and due < math.inf else None,
            reason=reason,
            text=text,
        )

    def _why(self, care: Care) -> tuple[str, str]:
        missing = care.replicas - care.count()
        if missing <= 0:
            return "", ""
        said = f"{missing} of {care.replicas} copies are missing"
        if care.copying:
            return Reason.REPAIRING, f"{said}; this node is making {len(care.copying)}"
        if self._candidate(care) is not None:
            return Reason.HOLDER_AWAY, f"{said}; they are made again unless holders come back"
        full = [peer for peer in self._all.peers.values() if peer.takes and peer.refuses(care.size_bytes, self._all.now)]
        if full:
            return full[0].refused_why, f"{said}; {len(full)} nodes were asked and refused"
        return Reason.FEW_COPIES, f"{said}, and no other node that stores is there"

    # -- events ----------------------------------------------------------------------------------

    def _on_cared(self, event: Cared) -> None:
        every = self._all
        care = every.cares.get(event.blob)
        if care is None:
            if len(every.cares) >= self._terms.blobs_max:
                self.uncared += 1
                return
            care = every.cares[event.blob] = Care(event.blob, event.size_bytes, event.replicas, event.expires_ms)
            if event.found:
                self._questions.search(care)
        if event.expires_ms > care.expires_ms + SAME_END_MS:
            # Whoever kept it for the former time may not keep it for this one.
            for key in care.live():
                self._questions.soon(every.peers[key], care.blob)
        care.replicas, care.expires_ms, care.fixed = event.replicas, event.expires_ms, event.fixed
        every.set_end(care, every.now + event.life_s)
        self._judge(care)

    def _on_dropped(self, event: Dropped) -> None:
        care = self._all.cares.get(event.blob)
        if care is not None:
            self._give_up(care)

    def _on_heard(self, event: Heard) -> None:
        care = self._all.cares.get(event.blob)
        if care is None:
            return
        for key in event.holders:
            peer = self._all.believe(care, key)
            if peer is None or care.holders[key] & CLAIMS:
                continue
            if event.sure and not (peer.away or peer.leaving or peer.lied):
                care.holders[key] |= CLAIMS
                peer.heard_s = self._all.now
                self._questions.schedule(peer)
            else:
                self._questions.soon(peer, event.blob)
        if event.by in care.holders and event.by not in event.holders:
            self._questions.soon(self._all.peers[event.by], event.blob)
        self._judge(care)
        if event.sure:
            self._tell(care, self._me)

    def _on_asked(self, event: Asked) -> None:
        peer = self._all.peer(event.peer)
        if peer is None:
            return
        if peer.away:
            self._back(peer)
        for blob in event.blobs:
            care = self._all.cares.get(blob)
            if care is not None and not care.holders.get(event.peer, 0) & CLAIMS and self._all.believe(care, event.peer) is not None:
                self._questions.soon(peer, blob)

    def _on_came(self, event: Came) -> None:
        peer = self._all.peer(event.peer)
        if peer is None:
            return
        fresh = not peer.there or event.anew
        peer.there, peer.stores = True, event.stores
        if event.anew:
            peer.lied = False
        if fresh:
            self._back(peer)

    def _back(self, peer: Peer) -> None:
        peer.away = peer.leaving = False
        peer.refused_until = 0.0
        self._questions.all_again(peer)
        for care in self._all.cares.values():
            if care.short and care.stuck_until > self._all.now:
                care.stuck_until = self._all.now + self._terms.answers_s
                self._judge(care)

    def _on_gone(self, event: Gone) -> None:
        peer = self._all.peers.get(event.peer)
        if peer is not None:
            self._lose(peer)

    def _lose(self, peer: Peer) -> None:
        if not peer.away:
            peer.away_since = self._all.now
        peer.there, peer.away, peer.leaving = False, True, False
        self._questions.lost(peer)
        self._without(peer, self._terms.grace_s)
        if not peer.blobs and not peer.asking:
            del self._all.peers[peer.key]

    def _on_leaving(self, event: Leaving) -> None:
        peer = self._all.peers.get(event.peer)
        if peer is not None and not peer.away:
            peer.leaving, peer.leaving_since = True, self._all.now
            self._without(peer, self._terms.leaving_s)

    def _without(self, peer: Peer, grace_s: float) -> None:
        """A peer does not count any more."""
        for blob in peer.blobs:
            care = self._all.cares[blob]
            held = care.holders[peer.key] & CLAIMS
            care.holders[peer.key] &= ~CLAIMS
            pending = care.copying.get(peer.key)
            if pending:
                del care.copying[peer.key]
            if held or pending:
                self._judge(care, grace_s)

    def _on_answered(self, event: Answered) -> None:
        peer = self._all.peer(event.peer)
        if peer is None:
            return
        peer.asking, peer.fails, peer.heard_s = False, 0, self._all.now
        peer.leaving = peer.leaving and self._all.now - peer.leaving_since < self._terms.believed_s
        failed, proved = {event.blobs[place] for place in event.failed}, {event.blobs[place] for place in event.proved}
        if failed:
            self._caught(peer)
        for place, blob in enumerate(event.blobs):
            care = self._all.cares.get(blob)
            if care is not None:
                kept = event.kept[place] if place < len(event.kept) and blob not in failed else NOT_KEPT
                self._take_answer(care, peer, kept, blob in proved)
        peer.proving = frozenset()
        self._questions.schedule(peer)

    def _take_answer(self, care: Care, peer: Peer, kept: int, proved: bool) -> None:
        blob, key = care.blob, peer.key
        before = care.holders.get(key, 0) & CLAIMS
        pending = care.copying.get(key, False)
        if pending and blob not in peer.proving:
            # It was asked before it was given the copy.
            self._questions.at_once(peer, blob)
            return
        if pending:
            del care.copying[key]
        if kept == NOT_KEPT:
            self._all.disbelieve(care, key)
        elif self._all.believe(care, key) is not None:
            counts = kept == KEPT and not (peer.leaving or peer.away) and (proved or not (peer.lied or pending))
            proven = PROVEN if proved else care.holders[key] & PROVEN
            care.holders[key] = proven | (CLAIMS if counts else 0) | (HAS if kept == KEPT_SHORTER else 0)
            if proven:
                peer.unproven.pop(blob, None)
        after = care.holders.get(key, 0) & CLAIMS
        if proved and after and key in care.checking:
            del care.checking[key]
            if not care.checking:
                self._let_go(care)
                return
        if before and not after:
            care.stuck_until = 0.0
        self._judge(care, self._terms.grace_s if before and not after else 0.0)

    def _caught(self, peer: Peer) -> None:
        """It claimed what it does not have: none of its claims counts any more until it is proven."""
        peer.lied = True
        for blob in peer.unproven:
            care = self._all.cares[blob]
            care.holders[peer.key] &= ~CLAIMS
            self._judge(care, self._terms.grace_s)

    def _on_silent(self, event: Silent) -> None:
        peer = self._all.peers.get(event.peer)
        if peer is None:
            return
        peer.asking, peer.proving = False, frozenset()
        peer.fails += 1
        if event.gone or peer.fails >= FAILS_MAX:
            self._lose(peer)
        else:
            self._questions.later(peer, event.blobs)

    def _on_copied(self, event: Copied) -> None:
        self._flying -= 1
        care, peer = self._all.cares.get(event.blob), self._all.peers.get(event.peer)
        if event.refused and peer is not None:
            lasting = event.refused in LASTING
            peer.refused_until = self._all.now + (self._terms.refused_s if lasting else self._terms.busy_s)
            peer.refused_bytes = care.size_bytes if care is not None and event.refused in FOR_WANT_OF_ROOM else 0
            peer.refused_why = event.refused
        if care is None:
            return
        care.copying.pop(event.peer, None)
        if not event.refused:
            self.made += 1
            self.made_bytes += care.size_bytes
            peer = self._all.believe(care, event.peer)
            if peer is not None and not peer.away:
                care.copying[event.peer] = True
                self._questions.at_once(peer, event.blob)
            self._tell(care, self._me)
        self._judge(care)

    def _on_tick(self, event: Tick) -> None:
        """All that is due is done after every event."""

    _HANDLERS: dict[type, Callable[..., None]] = {  # noqa: RUF012 - it never changes
        Cared: _on_cared,
        Dropped: _on_dropped,
        Heard: _on_heard,
        Asked: _on_asked,
        Came: _on_came,
        Gone: _on_gone,
        Leaving: _on_leaving,
        Answered: _on_answered,
        Silent: _on_silent,
        Copied: _on_copied,
        Tick: _on_tick,
    }

    def _tell(self, care: Care, *too: bytes) -> None:
        """Tell those who hold a blob of each other, and of ``too``."""
        others = tuple(key for key, state in care.holders.items() if state & CLAIMS or key in care.copying)
        if others:
            self._all.effects.append(Tell(care.blob, others, (*too, *others)))

    def _give_up(self, care: Care) -> None:
        """It is not kept here any more: those who count on it are told."""
        self._tell(care)
        self._all.drop(care.blob)

    # -- too few or too many ------------------------------------------------------------------------

    def _judge(self, care: Care, grace_s: float = 0.0) -> None:
        """Look at the copies of a blob anew, and set when something is to be done. ``grace_s``: one was lost for certain."""
        count = care.count()
        if count < care.replicas:
            self._judge_short(care, count, grace_s)
            return
        care.full, care.ready = True, False
        care.short_since, care.stuck_until = math.inf, 0.0
        if care.fixed or count == care.replicas or self._before(care) < care.replicas:
            care.surplus_since = math.inf
            care.checking.clear()
            self._all.set_due(care, math.inf)
            return
        if care.surplus_since == math.inf:
            care.surplus_since = self._all.now
        if not care.checking:
            self._all.set_due(care, max(care.surplus_since + self._terms.trim_s, self._all.now))

    def _judge_short(self, care: Care, count: int, grace_s: float) -> None:
        terms, now = self._terms, self._all.now
        care.surplus_since = math.inf
        care.checking.clear()
        if not care.full:
            grace_s = terms.young_s + care.size_bytes / terms.young_bytes_per_s
        if not care.short:
            care.short_since = now
            care.grace_until = now + (grace_s or terms.grace_s)
            if care.full:
                self._questions.search(care)
        elif grace_s:
            care.grace_until = min(care.grace_until, now + grace_s)
        at = math.inf
        if count + len(care.copying) < care.replicas:
            behind = len(care.live()) - self._before(care)
            waits_s = behind * (terms.step_s + care.size_bytes / terms.step_bytes_per_s)
            # Whoever was asked for a copy that nobody spoke of has time to answer.
            at = max(care.grace_until + waits_s, care.stuck_until, care.searched_s + terms.answers_s)
        if not (care.ready and at <= now):
            care.ready = False
            self._all.set_due(care, at)

    def _before(self, care: Care) -> int:
        """How many of those who count stand before this node."""
        mine = order(care.blob, self._me)
        return sum(order(care.blob, key) < mine for key in care.live())

    def _care_due(self, care: Care) -> None:
        now, terms = self._all.now, self._terms
        if care.ends <= now:
            self._all.drop(care.blob)
            return
        if care.due > now:
            return
        care.due = math.inf
        if not care.short:
            self._check(care)
        elif care.ends - now < terms.worth_s:
            return
        elif now - care.searched_s > terms.fresh_s:
            # What was learnt when it fell short is old by now: whoever is near is asked once more.
            self._questions.search(care)
            self._questions.spread()
            self._judge(care)
        else:
            care.ready = True
            if len(self._ready) > 2 * len(self._all.cares) + 64:
                self._ready = sorted((known.count(), blob) for blob, known in self._all.cares.items() if known.ready)
            heappush(self._ready, (care.count(), care.blob))

    def _begin_copies(self) -> None:
        terms, now = self._terms, self._all.now
        while self._ready and self._flying < terms.copies_max and self._free_at <= now:
            _, blob = heappop(self._ready)
            care = self._all.cares.get(blob)
            if care is None or not care.ready:
                continue
            target = self._candidate(care)
            if target is None:
                self._stick(care)
                continue
            care.copying[target] = False
            self._flying += 1
            self._free_at = max(self._free_at, now) + care.size_bytes / terms.bytes_per_s
            self._all.effects.append(Copy(blob, target, care.expires_ms, care.replicas))
            made = care.count() + len(care.copying)
            care.ready = made < care.replicas
            if care.ready:
                heappush(self._ready, (made, blob))

    def _candidate(self, care: Care, refused: tuple[bytes, ...] = ()) -> bytes | None:
        """Whom to copy a blob to: who needs only the lease, then by score, then by the order of the blob."""
        best: tuple[bool, int, bytes] | None = None
        found = None
        for key, peer in self._all.peers.items():
            state = care.holders.get(key, 0)
            if not peer.takes or state & CLAIMS or key in care.copying or key in refused or peer.refuses(care.size_bytes, self._all.now):
                continue
            score = round(self._score(key) * 10) if self._score is not None else 0
            rank = (not state & HAS, -score, order(care.blob, key))
            if best is None or rank < best:
                best, found = rank, key
        return found

    def _stick(self, care: Care) -> None:
        """Nobody takes it now: wait for who refused, or for who comes."""
        care.ready = False
        refusals = [
            peer.refused_until
            for peer in self._all.peers.values()
            if peer.takes and peer.refuses(care.size_bytes, self._all.now) and not care.holders.get(peer.key, 0) & CLAIMS
        ]
        care.stuck_until = min(refusals, default=math.inf)
        self._all.set_due(care, care.stuck_until)

    def _check(self, care: Care) -> None:
        """Before this copy goes, the r first ones must prove theirs once more."""
        if care.checking:
            # Somebody did not answer in time: the while begins anew.
            care.checking.clear()
            care.surplus_since = math.inf
            self._judge(care)
            return
        first = sorted(care.live(), key=lambda key: order(care.blob, key))[: care.replicas]
        care.checking = dict.fromkeys(first)
        for key in first:
            self._questions.at_once(self._all.peers[key], care.blob)
        self._all.set_due(care, self._all.now + self._terms.check_s)

    def _let_go(self, care: Care) -> None:
        mine = order(care.blob, self._me)
        proven = [key for key in care.live() if care.holders[key] & PROVEN]
        if care.fixed or sum(order(care.blob, key) < mine for key in proven) < care.replicas:
            care.surplus_since = math.inf
            self._judge(care)
            return
        self.trimmed += 1
        self._all.effects.append(Trim(care.blob))
        self._give_up(care)
