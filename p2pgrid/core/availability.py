"""How much of the time peers are there, as this node has seen it, and what follows for copies. The rules:

1. A peer counts as there while a session to it lives, and as away from its end until the next one begins. While this node is off
   itself (``pause`` to ``resume``) nothing is counted, neither for nor against anybody.
2. The share of time is weighed: what was seen ``HALF_LIFE_S`` ago counts half of what is seen now. A week holds every weekday
   and every night, so that the half-life of a week neither forgets a weekend nor believes for months in who has changed.
3. Whoever is met for the first time is taken for ``PRIOR_SHARE``, as if watched for ``PRIOR_S`` already. Half is what the machines of
   volunteers reach; the prior fades as everything does.
4. The table is bounded. Among too many, whoever has been away for longest is forgotten, then whoever was watched for the shortest time.

**Placing.** ``score`` is the chance that a peer is there one ``HORIZON_S`` from now: either it stays all the while, or it comes and
goes and is met by its share. Sessions have heavy tails: who has been there for an age a stays for another h with a chance of about
a / (a + h). Copies are drawn by the odds score / (1 - score), the time there for each hour away: steady nodes attract them, and yet
no single node gets all.

**Copies.** With holders that come and go independently of one another, the chance that all n of them are away is

    (1 - p1) (1 - p2) ... (1 - pn)

``plan_copies`` takes the smallest n for which it is at most the target. Nodes that fail together (one building, one night) break the
assumption; that is why copies prefer different network groups, and why there are never fewer than three. No single share is believed
beyond ``SHARE_MAX``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
HALF_LIFE_S = 7 * DAY_S
PRIOR_SHARE = 0.5
PRIOR_S = 12 * HOUR_S
HORIZON_S = DAY_S
PEERS_MAX = 1024
SHARE_MAX = 0.999
"""Nobody is believed to be there for more of the time: a week without a gap proves no more."""
COPIES_MIN = 3
TARGET = 1e-4
ODDS_MIN = 1e-3
"""Even who was never there is drawn now and then: it may have changed."""


class Row(NamedTuple):
    """What is known of one peer, to be kept over a restart. Both times are weighed, in seconds."""

    peer: bytes
    there_s: float
    watched_s: float


class CopiesPlan(NamedTuple):
    """How many copies, and why."""

    copies: int
    away_chance: float
    """That all their holders are away at a moment, by the formula of this module."""
    target: float
    shares: tuple[float, ...]
    """Of the holders, as they were reckoned with."""
    reached: bool
    """Whether the target is met; if not, there are too few nodes."""


@dataclass(slots=True)
class _Seen:
    there_s: float
    watched_s: float
    at: float
    """Until when it is counted."""
    live: bool
    since: float
    """When it came or went."""


class Availability:
    """Shares of time and ages of sessions of all peers. Times are seconds on any one clock that does not jump back."""

    def __init__(self, now: float, rows: Iterable[Row] = (), *, half_life_s: float = HALF_LIFE_S, peers_max: int = PEERS_MAX) -> None:
        """``rows``: what an earlier run of this node knew."""
        self._scale_s = half_life_s / math.log(2.0)
        self._peers_max = peers_max
        self._peers: dict[bytes, _Seen] = {}
        self._paused = False
        for row in rows:
            if len(self._peers) < peers_max:
                self._peers[row.peer] = _Seen(row.there_s, row.watched_s, now, False, now)

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._peers

    # -- what is seen ---------------------------------------------------------------

    def came(self, peer: bytes, now: float) -> None:
        """A session to a peer began."""
        seen = self._peers.get(peer)
        if seen is None:
            self._make_room()
            self._peers[peer] = _Seen(PRIOR_SHARE * PRIOR_S, PRIOR_S, now, True, now)
        elif not seen.live:
            self._count(seen, now)
            seen.live, seen.since = True, now

    def gone(self, peer: bytes, now: float) -> None:
        """The session to a peer ended and it does not answer."""
        seen = self._peers.get(peer)
        if seen is not None and seen.live:
            self._count(seen, now)
            seen.live, seen.since = False, now

    def forget(self, peer: bytes) -> None:
        """A peer is no member any more."""
        self._peers.pop(peer, None)

    def pause(self, now: float) -> None:
        """This node goes off, or sleeps: from now on it sees nobody, and that says nothing about the others."""
        for seen in self._peers.values():
            self._count(seen, now)
            if seen.live:
                seen.live, seen.since = False, now
        self._paused = True

    def resume(self, now: float) -> None:
        """This node is back. Who does not come is away from now on."""
        self._paused = False
        for seen in self._peers.values():
            seen.at = seen.since = now

    def _count(self, seen: _Seen, now: float) -> None:
        if not self._paused and now > seen.at:
            kept = math.exp((seen.at - now) / self._scale_s)
            passed_s = self._scale_s * (1.0 - kept)
            seen.watched_s = seen.watched_s * kept + passed_s
            seen.there_s = seen.there_s * kept + (passed_s if seen.live else 0.0)
        seen.at = max(now, seen.at)

    def _make_room(self) -> None:
        if len(self._peers) >= self._peers_max:
            away = [(seen.since, peer) for peer, seen in self._peers.items() if not seen.live]
            live = ((seen.watched_s, peer) for peer, seen in self._peers.items())
            del self._peers[min(away)[1] if away else min(live)[1]]

    # -- what is known ---------------------------------------------------------------

    def rows(self, now: float) -> list[Row]:
        """Everything that is to be kept over a restart."""
        for seen in self._peers.values():
            self._count(seen, now)
        return [Row(peer, seen.there_s, seen.watched_s) for peer, seen in self._peers.items()]

    def share(self, peer: bytes, now: float) -> float:
        """The share of time that a peer is there, 0 to 1; of one never met: the prior."""
        seen = self._peers.get(peer)
        if seen is None:
            return PRIOR_SHARE
        self._count(seen, now)
        return seen.there_s / seen.watched_s if seen.watched_s > 0.0 else PRIOR_SHARE

    def age_s(self, peer: bytes, now: float) -> float:
        """For how long the present session has lasted; 0 for who is away."""
        seen = self._peers.get(peer)
        return max(0.0, now - seen.since) if seen is not None and seen.live else 0.0

    def away_s(self, peer: bytes, now: float) -> float:
        """For how long a peer has been away; 0 for who is there or was never met."""
        seen = self._peers.get(peer)
        return max(0.0, now - seen.since) if seen is not None and not seen.live else 0.0

    def score(self, peer: bytes, now: float) -> float:
        """How good a holder a peer is: the chance that it is there one ``HORIZON_S`` from now."""
        age_s = self.age_s(peer, now)
        stays = age_s / (age_s + HORIZON_S)
        return stays + (1.0 - stays) * self.share(peer, now)

    def preferred(self, peers: Iterable[bytes], now: float, rng: random.Random) -> list[bytes]:
        """Peers in the order in which they should be asked to hold a copy: drawn one after the other, by their odds."""
        # The keys of a weighted draw without putting back (Efraimidis and Spirakis 2006), in logarithms.
        keyed = [(-math.log(1.0 - rng.random()) / odds(self.score(peer, now)), peer) for peer in peers]
        return [peer for _, peer in sorted(keyed)]


def odds(share: float) -> float:
    """Time there for each hour away, within what is believed."""
    share = min(max(share, 0.0), SHARE_MAX)
    return max(ODDS_MIN, share / (1.0 - share))


def away_chance(shares: Iterable[float]) -> float:
    """The chance that all of some independent nodes are away, from the shares of time that they are there."""
    return math.prod(1.0 - min(max(share, 0.0), SHARE_MAX) for share in shares)


def plan_copies(availabilities: Sequence[float], target: float = TARGET) -> CopiesPlan:
    """How many copies make it improbable enough that all holders are away.

    ``availabilities``: the shares of the nodes that may hold one, in the order in which they would be chosen. Never below
    ``COPIES_MIN``, never more than there are. Raises ValueError for a target that is no chance.
    """
    if not 0.0 < target < 1.0:
        raise ValueError(f"a target of {target} is no chance")
    copies, chance = 0, 1.0
    # What is equal to the target but for the last bit of a float meets it.
    while copies < len(availabilities) and (copies < COPIES_MIN or chance > target * (1.0 + 1e-9)):
        chance *= away_chance((availabilities[copies],))
        copies += 1
    return CopiesPlan(copies, chance, target, tuple(availabilities[:copies]), chance <= target * (1.0 + 1e-9))


def copies_for(availabilities: Sequence[float], target: float = TARGET) -> int:
    """The number of copies of :func:`plan_copies` alone."""
    return plan_copies(availabilities, target).copies
