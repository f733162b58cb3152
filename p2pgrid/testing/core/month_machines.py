"""Machines of a simulated month: when they are on, when they leave for good, what they see of one another.

Sessions are those of servers in the IPFS DHT (:mod:`p2pgrid.testing.plans.churn`): half are over within 2 hours, four in five within 8,
Weibull with k = 0.61 and a mean of 5.4 hours. How long they are away between two sessions was not published; it is drawn from an
exponential distribution whose mean is a setting. A share of the machines never leaves. The others leave the grid for good after an
exponential lifetime; each is replaced at once by a new machine with an empty disk, so that the number of members stays.

A machine that goes off keeps its disk and loses what it had in memory. Half say goodbye; the others are missed when they have been silent
for as long as heartbeats take. Who is back is met at the next round of discovery.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from p2pgrid.core.availability import Availability
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.core.population import GOODBYE_S, ORDERLY
from p2pgrid.testing.plans import distributions
from p2pgrid.testing.plans.churn import IPFS_SCALE_H, IPFS_SHAPE, Churn, Session, Staying, WeibullChurn, stationary

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
MET_S = 10.0
"""The longest that a machine that came is not known to the others."""


@dataclass(slots=True)
class Member:
    """One machine. ``life`` counts its departures: what was begun in an earlier life is lost."""

    key: NodeKey
    number: int
    stays: bool
    room_bytes: int
    leaves_at: float
    """When it leaves for good."""
    availability: Availability
    on: bool = False
    left: bool = False
    life: int = 0
    disk: dict[bytes, int] = field(default_factory=dict)
    """Sizes of the blobs of which it has a whole copy."""
    used_bytes: int = 0
    busy_until: float = 0.0
    """Of its uplink."""
    joined_at: float = 0.0
    on_since: float = 0.0
    on_s: float = 0.0
    """For how long it was on, before the present session."""

    def member_s(self, now: float) -> float:
        """For how long it has belonged to the grid."""
        return min(now, self.leaves_at) - self.joined_at


class Members:
    """All machines of a run, coming and going on the heap until ``until_s``."""

    def __init__(
        self, heap: EventHeap, *, nodes: int, stable: float, away_s: float, lifetime_s: float, room_bytes: int, until_s: float
    ) -> None:
        self._heap = heap
        self._away_s, self._lifetime_s, self._room_bytes, self._until_s = away_s, lifetime_s, room_bytes, until_s
        self.all: list[Member] = []
        self.by_key: dict[bytes, Member] = {}
        self.living: dict[bytes, Member] = {}
        """By key, in the order in which they came."""
        self.departures = 0
        self.on_up: list[Callable[[Member], None]] = []
        self.on_down: list[Callable[[Member], None]] = []
        """Told at once; the others notice later."""
        self.on_left: list[Callable[[Member], None]] = []
        """Told when a machine left for good, with its disk."""
        self.on_met: list[Callable[[Member], None]] = []
        """Told when the others notice that a machine is there."""
        self.on_missed: list[Callable[[Member], None]] = []
        """Told when they notice that it is not."""
        steady = round(nodes * stable)
        for number in range(nodes):
            self._join(number < steady, fresh=False)

    def live_s(self, now: float) -> float:
        """Seconds for which machines have been on, of all together."""
        return sum(member.on_s + (now - member.on_since if member.on else 0.0) for member in self.all)

    def _join(self, stays: bool, *, fresh: bool) -> None:
        number, now = len(self.all), self._heap.now
        rng = random.Random(f"{self._heap.seed}/member/{number}")
        churn: Churn = Staying() if stays else WeibullChurn(IPFS_SCALE_H * HOUR_S, IPFS_SHAPE, self._away_s)
        leaves_at = float("inf") if stays else now + distributions.exponential(self._lifetime_s, rng)
        key = NodeKey(blake3(b"month/%d/%d" % (self._heap.seed, number)).digest())
        member = Member(key, number, stays, self._room_bytes, leaves_at, Availability(now), joined_at=now)
        self.all.append(member)
        self.by_key[key] = member
        sessions = churn.sessions(rng, now, self._until_s, fresh=True) if fresh else stationary(churn, rng, self._until_s)
        self._next(member, sessions)
        if leaves_at < self._until_s:
            self._heap.after(leaves_at - now, lambda: self._leave(member), b"leave")

    def _next(self, member: Member, sessions: Iterator[Session]) -> None:
        session = next(sessions, None)
        if session is None:
            return

        def up() -> None:
            if member.left:
                return
            self._up(member)
            if session.off_s < self._until_s:
                self._heap.after(session.off_s - self._heap.now, down, b"off")

        def down() -> None:
            if not member.left:
                self._down(member)
                self._next(member, sessions)

        self._heap.after(session.on_s - self._heap.now, up, b"on")

    def _up(self, member: Member) -> None:
        now = self._heap.now
        member.on = True
        member.on_since = now
        member.busy_until = now
        self.living[member.key] = member
        member.availability.resume(now)
        for told in self.on_up:
            told(member)
        life = member.life
        self._heap.after(MET_S * self._heap.rng.random(), lambda: self._met(member, life), b"met")

    def _met(self, member: Member, life: int) -> None:
        """It and the others have dialled one another."""
        if not member.on or member.life != life:
            return
        now = self._heap.now
        for other in self.living.values():
            if other is not member:
                other.availability.came(member.key, now)
                member.availability.came(other.key, now)
        for told in self.on_met:
            told(member)

    def _down(self, member: Member) -> None:
        self.departures += 1
        now = self._heap.now
        member.on = False
        member.on_s += now - member.on_since
        member.life += 1
        del self.living[member.key]
        member.availability.pause(now)
        for told in self.on_down:
            told(member)
        rng = self._heap.rng
        silent_s = GOODBYE_S if rng.random() < ORDERLY else DEFAULT_LIMITS.dead_after_s - DEFAULT_LIMITS.heartbeat_s * rng.random()
        self._heap.after(silent_s, lambda: self._missed(member), b"missed")

    def _missed(self, member: Member) -> None:
        if member.on:
            return
        for other in self.living.values():
            other.availability.gone(member.key, self._heap.now)
        for told in self.on_missed:
            told(member)

    def _leave(self, member: Member) -> None:
        """A machine leaves for good, and takes its disk along. Nobody is told that it will not be back."""
        member.left = True
        if member.on:
            self._down(member)
        for told in self.on_left:
            told(member)
        self._join(False, fresh=True)
