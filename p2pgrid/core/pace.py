"""What a lead knows of its workers, and of how long units of its job take."""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.model.work import Receipt


@dataclass(slots=True)
class WorkerState:
    """A worker that pulled. Times are monotonic seconds."""

    slots: int
    group: bytes
    pulled_at: float
    hungry: bool = False
    """It pulled and got nothing: it waits for the next invitation."""
    hungry_since: float | None = None
    """When it first got nothing although something was pending."""
    proven: bool = False
    """It delivered a receipt that counted."""


@dataclass(slots=True)
class Pace:
    """How long units of this job take: mean and longest so far, in seconds of CPU; the slowest lease, in seconds."""

    units: int = 0
    cpu_s: float = 0.0
    longest_s: float = 0.0
    lease_s: float = 0.0

    def note(self, receipt: Receipt, timeout_s: float) -> None:
        """Add a receipt. What it claims is held within what its units could have taken."""
        units = len(receipt.outcomes)
        cpu_s = min(max(0.0, receipt.cpu_us / 1e6), units * timeout_s)
        self.units += units
        self.cpu_s += cpu_s
        self.longest_s = max(self.longest_s, cpu_s / units)
