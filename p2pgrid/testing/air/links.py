"""How long bytes take between two simulated hosts, and whether they arrive at all.

1. Every pair of hosts has a distance of its own, drawn log-normal from the names of the two: it does not depend on
   which pair was asked about first. So does every other chance of a link: what happens elsewhere never changes it.
2. A host has one line up and one line down. Large segments wait for one another, small ones only for small ones, as
   behind a router with fair queues: a heartbeat does not wait for somebody else's megabytes.
3. What a stream loses is sent again after a time-out that doubles (RFC 6298): loss makes it late and never corrupt.
4. A cut stops bytes where they would arrive. Those of streams wait for the next sending again after the cut has
   healed; datagrams are gone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from p2pgrid.errors import UsageError

if TYPE_CHECKING:
    from p2pgrid.testing.air.network import Host
    from p2pgrid.testing.air.pipes import SimulatedPipe

LOCAL_S = 50e-6
"""One way between two programs of one host."""
PACKET_BYTES = 1448
SMALL_BYTES = 16 * 1024
_RTO_MIN_S = 0.2
_RTO_MAX_S = 120.0
_ROUNDS_MAX = 8
_BUFFER_BYTES = 1 << 20
_BUFFER_LOW_BYTES = 1 << 18
_FLIGHT_BYTES_MAX = 3 << 20


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """The air between all hosts. Seconds are one way; chances are per packet of a stream or per datagram."""

    latency_s: float = 0.02
    """Median over the pairs of hosts."""
    latency_sigma: float = 0.3
    """Spread of the log-normal around it; 0: all pairs alike."""
    jitter_s: float = 0.002
    """Up to this much more, drawn anew for each segment or datagram."""
    loss: float = 0.0
    duplicate: float = 0.0
    """Chance that a datagram arrives twice."""
    reorder: float = 0.0
    """Chance that a datagram is held up so long that later ones overtake it."""
    bandwidth_bytes_s: float = 12_500_000.0
    """Of each host's line, up and down alike; 0: without limit."""

    def __post_init__(self) -> None:
        spans = (self.latency_s, self.latency_sigma, self.jitter_s, self.bandwidth_bytes_s)
        if min(spans) < 0.0 or not all(0.0 <= chance <= 1.0 for chance in (self.loss, self.duplicate, self.reorder)):
            raise UsageError("a weather needs chances from 0 to 1, and no negative numbers")


class Line:
    """One direction of a host's line to the world: when is what was put on it now through?"""

    __slots__ = ("_large_free_s", "_small_free_s", "bytes_s")

    def __init__(self) -> None:
        self.bytes_s = 0.0
        """Bytes a second; 0: without limit."""
        self._large_free_s = 0.0
        self._small_free_s = 0.0

    def take(self, now: float, size_bytes: int) -> float:
        """Put bytes on the line; returns the moment at which the last of them has passed."""
        if not self.bytes_s:
            return now
        took_s = size_bytes / self.bytes_s
        free_s = self._large_free_s
        self._large_free_s = done_s = (free_s if free_s > now else now) + took_s
        if size_bytes <= SMALL_BYTES:
            free_s = self._small_free_s
            self._small_free_s = done_s = (free_s if free_s > now else now) + took_s
        return done_s


class Cut:
    """A partition: between its groups nothing passes, or nothing from the first to the others."""

    def __init__(self, groups: Sequence[Sequence[str]], *, one_way: bool) -> None:
        self._sides = {name: number for number, group in enumerate(groups) for name in group}
        # One group alone is cut off from everybody else, whoever that may come to be.
        self._others = 1 if len(groups) == 1 else None
        self._one_way = one_way

    def stops(self, source: str, target: str) -> bool:
        """Whether bytes from one host to the other are stopped."""
        one, other = self._sides.get(source, self._others), self._sides.get(target, self._others)
        if one is None or other is None or one == other:
            return False
        return one == 0 or not self._one_way


class Link:
    """The way from one host to another, in this direction."""

    __slots__ = (
        "_factor",
        "_rng",
        "blocked",
        "clog_s",
        "held",
        "latency_s",
        "local",
        "low_bytes",
        "room_bytes",
        "source",
        "target",
        "weather",
    )

    def __init__(self, source: Host, target: Host, base: int) -> None:
        """``base``: what all links of a network derive their chance from."""
        self.source = source
        self.target = target
        self.local = source is target
        self._rng = random.Random(f"{base}/link/{source.name}/{target.name}")
        one, other = sorted((source.name, target.name))
        self._factor = random.Random(f"{base}/pair/{one}/{other}").gauss(0.0, 1.0)
        self.weather = Weather()
        self.clog_s = 0.0
        self.latency_s = 0.0
        self.room_bytes = 0
        """A stream with more than this under way is full."""
        self.low_bytes = 0
        """A full one goes on below this."""
        self.blocked = False
        self.held: dict[SimulatedPipe, None] = {}
        """Streams with bytes that wait for a cut to heal."""

    def refresh(self, weather: Weather) -> None:
        """Something that lasts has changed: take over the weather, and work out what segments need."""
        source, target = self.source, self.target
        self.weather = weather
        if self.local:
            self.latency_s, speed = LOCAL_S, 0.0
        else:
            distance_s = weather.latency_s * math.exp(weather.latency_sigma * self._factor) * source.slowness * target.slowness
            self.latency_s = distance_s + source.extra_latency_s + target.extra_latency_s + self.clog_s
            speed = min((line.bytes_s for line in (source.up, target.down) if line.bytes_s), default=0.0)
        # What TCP keeps in the air besides the buffer of the program.
        flight = min(_FLIGHT_BYTES_MAX, int(speed * 2 * self.latency_s)) if speed else _FLIGHT_BYTES_MAX
        self.room_bytes = _BUFFER_BYTES + flight
        self.low_bytes = _BUFFER_LOW_BYTES + flight

    def flight_s(self, now: float, size_bytes: int) -> float:
        """When bytes sent now arrive if none is lost. The lines of both ends are taken for them."""
        if self.local:
            return now + LOCAL_S
        up, down = self.source.up.take(now, size_bytes), self.target.down.take(now, size_bytes)
        jitter_s = self.weather.jitter_s
        delay_s = self.latency_s + self._rng.random() * jitter_s if jitter_s else self.latency_s
        return (up if up > down else down) + delay_s

    def repairs_s(self, size_bytes: int) -> float:
        """How much later a segment of a stream arrives because parts of it were lost and sent again."""
        loss = self.weather.loss
        if not loss or self.local:
            return 0.0
        packets = -(-size_bytes // PACKET_BYTES)
        late_s, rto_s = 0.0, self.rto_s()
        for _ in range(_ROUNDS_MAX):
            if self._rng.random() < (1.0 - loss) ** packets:
                break
            late_s += rto_s
            rto_s = min(_RTO_MAX_S, rto_s * 2)
            packets = max(1, int(packets * loss))
        return late_s

    def rto_s(self) -> float:
        """How long a stream waits for an acknowledgement before it sends again."""
        return max(_RTO_MIN_S, 4 * self.latency_s)

    def again_s(self, due_s: float, now: float) -> float:
        """When bytes that should have arrived at ``due_s`` do, after a cut that heals now."""
        rto_s = self.rto_s()
        while due_s <= now:
            due_s += rto_s
            rto_s = min(_RTO_MAX_S, rto_s * 2)
        return due_s

    def loses(self, packets: int = 1) -> bool:
        """Whether one of so many packets gets lost. Draws nothing where nothing is lost."""
        loss = self.weather.loss
        return bool(loss) and not self.local and self._rng.random() >= (1.0 - loss) ** packets

    def doubles(self) -> bool:
        """Whether a datagram arrives twice."""
        chance = self.weather.duplicate
        return bool(chance) and not self.local and self._rng.random() < chance

    def detour_s(self) -> float:
        """How much later a datagram arrives because it took another way; mostly 0."""
        chance = self.weather.reorder
        if not chance or self.local or self._rng.random() >= chance:
            return 0.0
        return (1.0 + self._rng.random()) * (self.latency_s + self.weather.jitter_s)
