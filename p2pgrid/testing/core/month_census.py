"""What becomes of blobs in the course of a month: how many copies there are of each, for how long.

A copy is *kept* while it lies whole on the disk of a machine that still belongs to the grid, on or off. It is *live* while that
machine is on. Machines that left for good take their copies with them. Counting is exact: every change is weighed by the time for
which the count before it held.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(slots=True)
class Entry:
    """One acknowledged blob."""

    size_bytes: int
    begun_at: float
    counted_at: float
    live: int
    kept: int
    below_since: float = -1.0
    """Since when fewer than r are live; negative: enough are."""
    none_since: float = -1.0


class Day(msgspec.Struct, frozen=True):
    """Averages over one day, over all blobs acknowledged by then."""

    day: int
    blobs: int
    live: float
    kept: float
    readable: float
    """Share of blob time with at least one live copy."""
    whole: float
    """Share of blob time with r live copies."""


@dataclass(slots=True)
class Sums:
    """Blob seconds, by what held in them."""

    total: float = 0.0
    live: float = 0.0
    kept: float = 0.0
    readable: float = 0.0
    whole: float = 0.0

    def since(self, before: Sums) -> Sums:
        """What was added after an earlier copy was taken."""
        return Sums(
            self.total - before.total,
            self.live - before.live,
            self.kept - before.kept,
            self.readable - before.readable,
            self.whole - before.whole,
        )

    def copy(self) -> Sums:
        return Sums(self.total, self.live, self.kept, self.readable, self.whole)


class Census:
    """All acknowledged blobs of a run with their counts."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self.entries: dict[bytes, Entry] = {}
        self.sums = Sums()
        self.lost: list[bytes] = []
        self.below_s: list[float] = []
        """How long each time with fewer than r live copies lasted."""
        self.none_s: list[float] = []
        """How long each time without a live copy lasted."""
        self.days: list[Day] = []
        self._day_before = Sums()

    def acknowledged(self, blob: bytes, size_bytes: int, live: int, kept: int, now: float) -> None:
        """Whoever put a blob was told that it is stored."""
        entry = self.entries[blob] = Entry(size_bytes, now, now, live, kept)
        self._judge(blob, entry, now)

    def changed(self, blob: bytes, live: int, kept: int, now: float) -> None:
        """So many copies came to those that are live, and to those that are kept; negative: went."""
        entry = self.entries.get(blob)
        if entry is None:
            return
        self._count(entry, now)
        entry.live += live
        entry.kept += kept
        assert 0 <= entry.live <= entry.kept, "more copies are live than there are"
        self._judge(blob, entry, now)

    def _count(self, entry: Entry, now: float) -> None:
        passed, sums = now - entry.counted_at, self.sums
        sums.total += passed
        sums.live += passed * entry.live
        sums.kept += passed * entry.kept
        sums.readable += passed * (entry.live > 0)
        sums.whole += passed * (entry.live >= self._replicas)
        entry.counted_at = now

    def _judge(self, blob: bytes, entry: Entry, now: float) -> None:
        if entry.live >= self._replicas and entry.below_since >= 0:
            self.below_s.append(now - entry.below_since)
            entry.below_since = -1.0
        elif entry.live < self._replicas and entry.below_since < 0:
            entry.below_since = now
        if entry.live and entry.none_since >= 0:
            self.none_s.append(now - entry.none_since)
            entry.none_since = -1.0
        elif not entry.live and entry.none_since < 0:
            entry.none_since = now
        if not entry.kept and blob not in self.lost:
            self.lost.append(blob)

    def day(self, number: int, now: float) -> None:
        """A day is over."""
        for entry in self.entries.values():
            self._count(entry, now)
        one = self.sums.since(self._day_before)
        self._day_before = self.sums.copy()
        if one.total:
            shares = (round(value / one.total, 5) for value in (one.live, one.kept, one.readable, one.whole))
            self.days.append(Day(number, len(self.entries), *shares))

    def end(self, now: float) -> None:
        """The run is over: what still lasts is counted as if it ended here."""
        for entry in self.entries.values():
            self._count(entry, now)
            if entry.below_since >= 0:
                self.below_s.append(now - entry.below_since)
            if entry.none_since >= 0:
                self.none_s.append(now - entry.none_since)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of the values does not exceed; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
