"""A cap on the bytes of one direction, shared by all transfers of a node (docs/reference/settings.md#network).

A token bucket that may be overdrawn: whoever moves bytes takes them all at once and then waits until the bucket would have had
them. So transfers go on in the order in which they asked, none holds a lock while it waits, and over any stretch of time no more
than the rate and one burst goes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from p2pgrid.model.limits import MIB

Pay = Callable[[int], Awaitable[None]]
"""Wait until so many bytes may be moved."""


class Bucket:
    """Tokens of one direction. ``now`` is monotonic seconds."""

    def __init__(self, bytes_per_s: int, burst_bytes: int = MIB) -> None:
        """``burst_bytes``: what may go at once after a rest."""
        self._rate = bytes_per_s
        self._burst = max(burst_bytes, 1)
        self._level = float(self._burst)
        self._at: float | None = None

    def take(self, size_bytes: int, now: float) -> float:
        """Take tokens; returns for how many seconds their bytes must wait."""
        if self._at is not None:
            self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now
        self._level -= size_bytes
        return max(0.0, -self._level / self._rate)


class Throttle:
    """Both directions of a node. Without a cap on one of them its ``pay`` is None, and nobody asks or waits."""

    def __init__(self, upload_bytes_per_s: int, download_bytes_per_s: int, clock: Callable[[], float]) -> None:
        """A rate of 0 is no cap."""
        self.upload = _pay(upload_bytes_per_s, clock)
        self.download = _pay(download_bytes_per_s, clock)


def _pay(bytes_per_s: int, clock: Callable[[], float]) -> Pay | None:
    if bytes_per_s <= 0:
        return None
    bucket = Bucket(bytes_per_s)

    async def pay(size_bytes: int) -> None:
        wait_s = bucket.take(size_bytes, clock())
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    return pay
