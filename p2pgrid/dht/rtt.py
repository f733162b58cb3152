"""Round-trip estimates and the time-outs derived from them (RFC 6298, Karn's rule kept by the caller)."""

from __future__ import annotations

from p2pgrid.dht.settings import DhtSettings

_GAIN = 1 / 8
_GAIN_VARIANCE = 1 / 4
_SOFT_MIN_S = 0.05
_SOFT_START_S = 0.5


class RttEstimate:
    """A smoothed round trip and its variation, in seconds."""

    __slots__ = ("rtt_s", "variation_s")

    def __init__(self) -> None:
        self.rtt_s: float | None = None
        self.variation_s = 0.0

    def sample(self, measured_s: float) -> None:
        """Take in one round trip that was not ambiguous."""
        if self.rtt_s is None:
            self.rtt_s, self.variation_s = measured_s, measured_s / 2
            return
        self.variation_s += _GAIN_VARIANCE * (abs(measured_s - self.rtt_s) - self.variation_s)
        self.rtt_s += _GAIN * (measured_s - self.rtt_s)

    def timeout_s(self, settings: DhtSettings) -> float:
        """How long to wait for an answer before asking again."""
        if self.rtt_s is None:
            return settings.timeout_start_s
        return min(settings.timeout_max_s, max(settings.timeout_min_s, self.rtt_s + 4 * self.variation_s))

    def soft_timeout_s(self, settings: DhtSettings) -> float:
        """How long a lookup lets one peer hold a place in its row before it also asks the next."""
        if self.rtt_s is None:
            return _SOFT_START_S
        return min(settings.timeout_start_s, max(_SOFT_MIN_S, self.rtt_s + 2 * self.variation_s))
