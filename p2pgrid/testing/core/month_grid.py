"""Blobs of a simulated month: put, copied, trimmed, counted.

What moves bytes is a delay on the sender's uplink, one copy after the other. A copy that is under way when one of its two machines goes
off is not made. All copies of a blob are known here, so that the census is of what is so and not of what anybody believes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from blake3 import blake3

from p2pgrid.core.copies import Terms
from p2pgrid.model.limits import KIB, MIB
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.core.month_census import Census
from p2pgrid.testing.core.month_machines import DAY_S, HOUR_S, Member, Members

STEPS_MAX = 100_000_000


def patient(grace_s: float) -> Terms:
    """The terms of holders that wait for so long before they replace a copy.

    Sessions say who comes and goes; of the probes of every minute those that tell nothing new are not simulated, so that the machine
    asks for them twice a day, and the same holds for asking everybody for copies that nobody spoke of. Writers and repairers have the
    time that slow uplinks take.
    """
    half_day_s = 12 * HOUR_S
    return Terms(
        grace_s=grace_s,
        young_bytes_per_s=2e5,
        step_bytes_per_s=3e5,
        probe_s=half_day_s,
        away_retry_s=half_day_s,
        forget_s=4 * half_day_s,
        neighbours_max=0,
    )


class MonthPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a month is made of."""

    days: float = 30.0
    nodes: int = 200
    seed: int = 1
    blobs: int = 2000
    replicas: int = 3
    stable: float = 0.1
    away_s: float = 8 * HOUR_S
    """Mean time between two sessions of a machine."""
    lifetime_s: float = 30 * DAY_S
    """Mean time until a machine that comes and goes leaves for good, with its disk."""
    room_bytes: int = 2048 * MIB
    """What each machine stores for others."""
    median_bytes: int = MIB
    sigma: float = 1.8
    """Sizes are log-normal."""
    size_bytes_max: int = 1024 * MIB
    uplink_bytes_s: float = 1_250_000.0
    """10 Mbit/s."""
    latency_s: float = 0.05
    lost: float = 0.01
    """Share of questions that stay without an answer though the peer is there."""
    before_s: float = 7 * DAY_S
    """For so long the grid has run when the month begins: machines know one another, and nothing is stored yet."""
    owners_keep: bool = False
    """Whoever put a blob keeps it for itself, whatever the others have: its copy is never one too many."""
    puts_until: float = 0.95
    """Share of the month within which blobs are put."""
    terms: Terms = patient(HOUR_S)


@dataclass(slots=True)
class Tally:
    """What was done."""

    puts: int = 0
    failed: int = 0
    repairs: int = 0
    repair_bytes: int = 0
    put_bytes: int = 0
    broken: int = 0
    """Copies that were under way when one end went off."""
    refused: int = 0
    trims: int = 0
    trim_bytes: int = 0
    messages: int = 0
    message_bytes: int = 0
    sent: dict[bytes, int] = field(default_factory=dict)
    """Repair bytes by sender."""


class Caring(Protocol):
    """What looks after copies."""

    def stored(self, member: Member, blob: bytes, holders: Sequence[bytes]) -> None:
        """A member has a copy now; ``holders`` as far as the sender knows them."""

    def acknowledged(self, source: Member, blob: bytes) -> None:
        """Whoever put a blob was told that it is stored."""

    def probe_bytes_s(self) -> float:
        """Bytes a second that a machine that is on takes to probe its co-holders."""


class MonthGrid:
    """Machines, blobs and the counting of them. Somebody else takes care."""

    def __init__(self, plan: MonthPlan) -> None:
        self.plan = plan
        self.heap = EventHeap(plan.seed)
        self.begins_s = plan.before_s
        self.live_before_s = 0.0
        self.departures_before = 0
        self.end_s = plan.before_s + plan.days * DAY_S
        self.members = Members(
            self.heap,
            nodes=plan.nodes,
            stable=plan.stable,
            away_s=plan.away_s,
            lifetime_s=plan.lifetime_s,
            room_bytes=plan.room_bytes,
            until_s=self.end_s,
        )
        self.census = Census(plan.replicas)
        self.tally = Tally()
        self.probe_bytes_s: list[float] = []
        """At the end of each day."""
        self.holders: dict[bytes, dict[bytes, Member]] = {}
        """Of every blob, all members with a copy, on or off."""
        self.sizes: dict[bytes, int] = {}
        self.sources: dict[bytes, Member] = {}
        self.care: Caring | None = None
        self.members.on_up.append(lambda member: self._switched(member, 1))
        self.members.on_down.append(lambda member: self._switched(member, -1))
        self.members.on_left.append(self._left)
        self._rng = random.Random(f"{plan.seed}/blobs")
        """Of the blobs alone, so that they are the same under all settings."""
        for number in range(plan.blobs):
            at = self.begins_s + self._rng.random() * plan.puts_until * plan.days * DAY_S
            size_bytes = KIB + int(plan.median_bytes * self._rng.lognormvariate(0.0, plan.sigma))
            self._plan_put(blake3(b"blob/%d/%d" % (plan.seed, number)).digest(), at, min(plan.size_bytes_max, size_bytes))
        self._days = 0
        self.heap.after(plan.before_s, lambda: self.heap.every(DAY_S, self._day, b"day"), b"begins")

    def run(self, begins: Callable[[], None]) -> None:
        """Run it all; ``begins`` is called when the month begins."""
        self.heap.run(lambda: False, self.begins_s, steps_max=STEPS_MAX)
        self.heap.now = self.begins_s
        self.live_before_s = self.members.live_s(self.heap.now)
        self.departures_before = self.members.departures
        begins()
        self.heap.run(lambda: False, self.end_s, steps_max=STEPS_MAX)
        self.census.end(self.end_s)

    # -- copies -------------------------------------------------------------------

    def store(self, member: Member, blob: bytes, holders: Sequence[bytes]) -> bool:
        """A whole copy is on a member's disk, if there is room."""
        if blob in member.disk:
            return True
        size_bytes = self.sizes[blob]
        if member.used_bytes + size_bytes > member.room_bytes:
            self.tally.refused += 1
            return False
        member.disk[blob] = size_bytes
        member.used_bytes += size_bytes
        self.holders[blob][member.key] = member
        self.census.changed(blob, 1, 1, self.heap.now)
        if self.care is not None:
            self.care.stored(member, blob, holders)
        return True

    def trim(self, member: Member, blob: bytes) -> None:
        """A member deletes its copy."""
        size_bytes = member.disk.pop(blob)
        member.used_bytes -= size_bytes
        del self.holders[blob][member.key]
        self.tally.trims += 1
        self.tally.trim_bytes += size_bytes
        self.census.changed(blob, -1, -1, self.heap.now)

    def copy(self, sender: Member, receiver: Member, blob: bytes, holders: Sequence[bytes], done: Callable[[bool], None]) -> None:
        """Send a copy; ``done`` hears, unless the sender is off by then, whether the receiver has it."""
        heap, size_bytes = self.heap, self.sizes[blob]
        begins = max(heap.now, sender.busy_until)
        sender.busy_until = begins + size_bytes / self.plan.uplink_bytes_s
        lives = (sender.life, receiver.life)

        def arrived() -> None:
            if sender.life != lives[0] or not sender.on:
                self.tally.broken += 1
                return
            whole = receiver.on and receiver.life == lives[1] and blob in sender.disk
            self.tally.broken += not whole
            done(whole and self.store(receiver, blob, holders))

        heap.after(sender.busy_until - heap.now + self.plan.latency_s, arrived, b"copy")

    def repaired(self, sender: Member, size_bytes: int) -> None:
        """A copy was made to repair, or was refused (0 bytes)."""
        if size_bytes:
            self.tally.repairs += 1
            self.tally.repair_bytes += size_bytes
            self.tally.sent[sender.key] = self.tally.sent.get(sender.key, 0) + size_bytes

    def _switched(self, member: Member, live: int) -> None:
        for blob in member.disk:
            self.census.changed(blob, live, 0, self.heap.now)

    def _left(self, member: Member) -> None:
        for blob in member.disk:
            del self.holders[blob][member.key]
            self.census.changed(blob, 0, -1, self.heap.now)
        member.disk.clear()

    def _day(self) -> None:
        self._days += 1
        if self.care is not None:
            self.probe_bytes_s.append(self.care.probe_bytes_s())
        self.census.day(self._days, self.heap.now)

    # -- puts ------------------------------------------------------------------------

    def _plan_put(self, blob: bytes, at: float, size_bytes: int) -> None:
        self.sizes[blob] = size_bytes
        self.holders[blob] = {}
        self.heap.after(at, lambda: self._put(blob), b"put")

    def _put(self, blob: bytes) -> None:
        rng = self.heap.rng
        source = self.sources[blob] = rng.choice(list(self.members.living.values()))
        self.tally.puts += 1
        if not self.store(source, blob, ()):
            self.tally.failed += 1
            return
        others = [key for key in self.members.living if key != source.key]
        self._spread(source, blob, source.availability.preferred(others, self.heap.now, rng))

    def _spread(self, source: Member, blob: bytes, waiting: list[bytes]) -> None:
        """One copy after the other, until there are enough or nobody is left. Who goes off meanwhile leaves the put unacknowledged."""
        holders = self.holders[blob]
        if len(holders) >= self.plan.replicas or not waiting:
            live = sum(member.on for member in holders.values())
            self.census.acknowledged(blob, self.sizes[blob], live, len(holders), self.heap.now)
            if self.care is not None:
                self.care.acknowledged(source, blob)
            return
        receiver = self.members.by_key[waiting.pop(0)]
        self.tally.put_bytes += self.sizes[blob]
        self.copy(source, receiver, blob, (*holders,), lambda _: self._spread(source, blob, waiting))
