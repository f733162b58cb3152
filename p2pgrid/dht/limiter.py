"""Token buckets: how many datagrams of one source, and of all, are worth a signature check.

The table of sources is bounded: a source that is pushed out starts with a full bucket again, which
is why there is also one bucket for everybody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable


class TokenBuckets:
    """``rate_per_s`` tokens a second for each source, at most ``burst`` saved up."""

    def __init__(self, clock: Callable[[], float], rate_per_s: float, burst: float, sources_max: int) -> None:
        self._clock = clock
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._sources_max = sources_max
        self._sources: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, source: Hashable, cost: float = 1.0) -> bool:
        """Whether ``source`` may spend ``cost`` tokens now; if so they are spent."""
        now = self._clock()
        tokens, at = self._sources.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate_per_s)
        allowed = tokens >= cost
        self._sources[source] = (tokens - cost if allowed else tokens, now)
        if len(self._sources) > self._sources_max:
            self._sources.popitem(last=False)
        return allowed
