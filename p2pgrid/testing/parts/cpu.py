"""How long units take in virtual time: a processor whose speed may change, and times drawn from a seed.

A unit's seconds depend on the seed, the job and the unit, and on nothing else: neither on the order in which units run nor on
the machine. So a unit that is run twice takes as long twice, up to the machines' speeds.
"""

from __future__ import annotations

import asyncio
import math
import struct
from statistics import NormalDist

from blake3 import blake3

_NORMAL = NormalDist()
_UNIT = struct.Struct(">BQ")


class UnitTimes:
    """Seconds of units at speed 1, log-normal around a median for each job."""

    def __init__(self, seed: int, median_s: float = 0.5, sigma: float = 0.3) -> None:
        """``median_s`` and ``sigma``: for jobs nobody registered."""
        self._default = (median_s, sigma)
        self._jobs: dict[bytes, tuple[float, float]] = {}
        self.spent_s: dict[bytes, float] = {}
        """Seconds at speed 1 that all machines together spent on the units of each job, whatever came of it."""
        self._key = blake3(str(seed).encode(), derive_key_context="p2pgrid/1/testing/unit-times").digest()

    def register(self, job: bytes, median_s: float, sigma: float) -> None:
        """Say how long units of a job take: the median in seconds, and the spread of the logarithm around it."""
        self._jobs[bytes(job)] = (median_s, sigma)

    def spend(self, job: bytes, work_s: float) -> None:
        """So much of a job was worked off."""
        self.spent_s[bytes(job)] = self.spent_s.get(bytes(job), 0.0) + work_s

    def base_s(self, job: bytes, kind: int, index: int) -> float:
        """Seconds of one unit at speed 1. ``kind``: which function; ``index``: its number in the job."""
        median_s, sigma = self._jobs.get(job, self._default)
        if sigma <= 0:
            return median_s
        digest = blake3(job + _UNIT.pack(kind, index), key=self._key).digest(length=8)
        # Odd multiples of 2^-53: strictly between 0 and 1, and exact.
        uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / (1 << 52)
        return median_s * math.exp(sigma * _NORMAL.inv_cdf(uniform))


class Cpu:
    """One processor of one machine, for all lives of that machine. All its cores are equally fast."""

    def __init__(self, speed: float = 1.0) -> None:
        """``speed``: against the machine on which the units' seconds are measured; 0 stands still."""
        self.busy_s = 0.0
        """Core-seconds spent on units, whatever came of them."""
        self.wasted_s = 0.0
        """The part of them that came to nothing: cancelled, too late, died, or lost with the machine."""
        self._speed = speed
        self._meters: dict[Meter, None] = {}

    @property
    def speed(self) -> float:
        """May be set at any moment, also from outside of the machine: what runs goes on at the new speed."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        meters = list(self._meters)
        for meter in meters:
            meter.settle(self._speed)
        self._speed = speed
        for meter in meters:
            meter.schedule(speed)

    def begin(self, loop: asyncio.AbstractEventLoop, work_s: float, limit_s: float = math.inf) -> Meter:
        """Begin some work on one core of the machine of ``loop``: seconds at speed 1. Await ``meter.over``, then :meth:`end` it.

        ``limit_s``: seconds of the loop's time after which it is over in any case.
        """
        meter = Meter(loop, work_s, limit_s)
        self._meters[meter] = None
        meter.schedule(self._speed)
        return meter

    def end(self, meter: Meter, *, wasted: bool) -> float:
        """The work has ended, or is given up; returns the seconds it took."""
        meter.settle(self._speed)
        self._meters.pop(meter, None)
        self.busy_s += meter.spent_s
        if wasted:
            self.wasted_s += meter.spent_s
        return meter.spent_s


class Meter:
    """Work in progress."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work_s: float, limit_s: float) -> None:
        self.over: asyncio.Future[bool] = loop.create_future()
        """True when the work is done, False when its limit came first."""
        self.spent_s = 0.0
        """Core-seconds so far. A machine that was suspended spends none."""
        self.worked_s = 0.0
        """Seconds at speed 1 of it that are done."""
        self._loop = loop
        self._left_s = work_s
        self._since = loop.time()
        self._deadline = self._since + limit_s
        self._speed = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, speed: float) -> None:
        """Go on at some speed."""
        if self.over.done():
            return
        self._speed = max(0.0, speed)
        needs_s = self._left_s / speed if speed > 0 else math.inf
        done_at = self._since + needs_s
        if done_at <= self._deadline and done_at < math.inf:
            self._timer = self._loop.call_at(done_at, self._finish, True, needs_s)
        elif self._deadline < math.inf:
            self._timer = self._loop.call_at(self._deadline, self._finish, False, self._deadline - self._since)

    def settle(self, speed: float) -> None:
        """Stand still; ``speed`` is the one it had."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.over.done() and not self.over.cancelled() and self.over.exception() is None:
            return  # Counted when it was over.
        now = self._loop.time()
        passed_s = min(now - self._since, self._left_s / speed) if speed > 0 else now - self._since
        self._since = now
        self._left_s -= passed_s * max(0.0, speed)
        self.worked_s += passed_s * max(0.0, speed)
        self.spent_s += passed_s

    def stop(self, why: BaseException) -> None:
        """Whoever waits for it raises ``why``."""
        if not self.over.done():
            self.over.set_exception(why)

    def _finish(self, done: bool, spent_s: float) -> None:
        self._timer = None
        if not self.over.done():
            self.spent_s += spent_s
            self.worked_s += self._left_s if done else spent_s * self._speed
            self.over.set_result(done)
