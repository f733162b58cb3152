"""Who works on what: units still to be leased, and leases that are out.

1. Every unit has a number of parties still to be found for it (``pending``), and a number of leases that
   owe an answer for it (``out``). What is wanted of a unit is set, never added: pending = wanted - out.
2. A party gets a unit it had before only if the caller says so. A party is whoever counts as one: a worker's group.
3. A lease that ends owes nothing any more; the caller sets anew what is wanted of its units.
4. With replicas, units come from a place drawn at random; without, in order, and those wanted again come last.

Memory: three bytes a unit, and a shared tuple of those who had it, until the batch is dropped. Runs of units
are handled as slices; only units with a history are looked at one by one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from p2pgrid.model.work import UnitRange

RANGES_MAX = 64
"""Ranges in one lease: bounds the grant statement."""
AGAIN_SCAN_UNITS = 4096
"""Units looked at in one search for what a party may have a second time; the next search goes on behind them."""

_ABOVE = bytes(range(256))
_ZERO_RUN = re.compile(rb"\x00+")
_PENDING_RUN = re.compile(rb"[^\x00]+")

Again = Callable[[int, int, frozenset[bytes]], bool]
"""(batch, unit, parties that had it) -> whether the asking party may have it again."""


@dataclass(slots=True)
class Lease:
    """``open`` counts the units without a receipt; ``party`` is who the worker counts as."""

    id: bytes
    worker: bytes
    ranges: tuple[UnitRange, ...]
    deadline: float
    open: int
    party: bytes = b""
    since: float = 0.0
    touched: float = 0.0
    """When a receipt for it last came."""
    ahead: int = 0
    """Units its worker owed when it was granted."""
    forecast_s: float = 0.0
    """How long it was expected to take; 0: nothing was known."""
    charged: float = 0.0
    """Of copies: as how many units they count."""
    answered: bytearray | None = field(default=None, repr=False)
    """One byte a unit, in the order of the ranges, once a part is answered."""


class _Shelf:
    """The units of one batch."""

    __slots__ = ("blocked", "had", "out", "pending", "tries", "waiting")

    def __init__(self, units: int) -> None:
        self.pending = bytearray(units)
        self.out = bytearray(units)
        self.tries = bytearray(units)
        self.had: list[tuple[int, ...]] = [()] * units
        self.waiting = 0
        """Units with something pending."""
        self.blocked: dict[int, int] = {}
        """How many waiting units each party had before: a party blocked on all of them need not look."""


class LeaseBook:
    """Pending units and leases of one job."""

    def __init__(self, rng: random.Random, *, shuffle: bool) -> None:
        self._rng = rng
        self._shuffle = shuffle
        self._shelves: dict[int, _Shelf] = {}
        self._waiting: dict[int, None] = {}
        self._parties: dict[bytes, int] = {}
        self._names: list[bytes] = []
        self.pending = 0
        self.leases: dict[bytes, Lease] = {}
        self.by_worker: dict[bytes, set[bytes]] = {}

    # -- what is wanted --------------------------------------------------------

    def open(self, batch: int, units: int) -> None:
        """Make room for a batch; nothing of it is wanted yet."""
        self._shelves.setdefault(batch, _Shelf(units))

    def want(self, batch: int, start: int, count: int, wanted: int) -> None:
        """``wanted`` more answers are needed for each of these units; leases that are out count towards them."""
        shelf = self._shelves.get(batch)
        if shelf is None:
            return
        stop = start + count
        out, pending, had = shelf.out[start], shelf.pending[start], shelf.had[start]
        alike = count == 1 or shelf.out.count(out, start, stop) == shelf.pending.count(pending, start, stop) == count
        value = min(255, max(0, wanted - out))
        if alike and value == pending:
            return
        if alike and shelf.had[start:stop].count(had) == count:
            self._set_run(shelf, start, stop, value)
        else:
            for unit in range(start, stop):
                self._set(shelf, unit, min(255, max(0, wanted - shelf.out[unit])))
        self._note_waiting(batch, shelf)

    def _set_run(self, shelf: _Shelf, start: int, stop: int, value: int) -> None:
        """Set what is pending of units that are alike: the same pending, the same history."""
        old, count = shelf.pending[start], stop - start
        shelf.pending[start:stop] = bytes([value]) * count
        self.pending += (value - old) * count
        if bool(old) != bool(value):
            step = count if value else -count
            shelf.waiting += step
            for party in shelf.had[start]:
                self._block(shelf, party, step)

    def _set(self, shelf: _Shelf, unit: int, value: int) -> None:
        old = shelf.pending[unit]
        if old == value:
            return
        shelf.pending[unit] = value
        self.pending += value - old
        if bool(old) != bool(value):
            step = 1 if value else -1
            shelf.waiting += step
            for party in shelf.had[unit]:
                self._block(shelf, party, step)

    @staticmethod
    def _block(shelf: _Shelf, party: int, step: int) -> None:
        left = shelf.blocked.get(party, 0) + step
        if left:
            shelf.blocked[party] = left
        else:
            shelf.blocked.pop(party, None)

    def _note_waiting(self, batch: int, shelf: _Shelf) -> None:
        if shelf.waiting:
            self._waiting.setdefault(batch)
        else:
            self._waiting.pop(batch, None)

    def note_had(self, batch: int, unit: int, party: bytes) -> None:
        """A party had this unit under an earlier lead."""
        self._mark(self._shelves[batch], unit, self._index(party))

    def _mark(self, shelf: _Shelf, unit: int, party: int) -> None:
        if party not in shelf.had[unit]:
            shelf.had[unit] = (*shelf.had[unit], party)
            if shelf.pending[unit]:
                self._block(shelf, party, 1)

    def _index(self, party: bytes) -> int:
        index = self._parties.get(party)
        if index is None:
            index = self._parties[party] = len(self._names)
            self._names.append(party)
        return index

    # -- leasing -----------------------------------------------------------------

    def take(self, party: bytes, units: int, batches_max: int = 1 << 30) -> list[UnitRange]:
        """Up to ``units`` units of at most ``batches_max`` batches that ``party`` never had, now owed by it."""
        index = self._index(party)
        taken: list[UnitRange] = []
        batches = 0
        for batch in self._order():
            shelf = self._shelves[batch]
            if shelf.blocked.get(index, 0) >= shelf.waiting:
                continue
            runs = self._fresh_runs(shelf, index, units, RANGES_MAX - len(taken))
            taken += [self._lend(batch, shelf, index, start, count) for start, count in runs]
            units -= sum(count for _, count in runs)
            batches += 1
            if units <= 0 or len(taken) >= RANGES_MAX or batches >= batches_max:
                break
        return taken

    def take_again(self, party: bytes, units: int, again: Again, batches_max: int = 1 << 30) -> list[UnitRange]:
        """As :meth:`take`, for units that ``party`` had before and ``again`` lets it have once more."""
        index = self._index(party)
        taken: list[UnitRange] = []
        looked = 0
        for batch in list(self._waiting):
            shelf = self._shelves[batch]
            looked += len(shelf.pending)
            found = [unit for unit in self._blocked_units(shelf, index) if again(batch, unit, self.had(batch, unit, 1))]
            room = min(units, RANGES_MAX - len(taken))
            taken += [self._lend(batch, shelf, index, unit, 1) for unit in found[:room]]
            units -= min(len(found), room)
            if batch in self._waiting:
                self._waiting[batch] = self._waiting.pop(batch)
            if units <= 0 or len(taken) >= RANGES_MAX or looked >= AGAIN_SCAN_UNITS or len({one.batch for one in taken}) >= batches_max:
                break
        return taken

    def _order(self) -> Iterator[int]:
        """Batches with something pending: in order, or from a place drawn at random."""
        batches = list(self._waiting)
        if self._shuffle and len(batches) > 1:
            first = self._rng.randrange(len(batches))
            batches = batches[first:] + batches[:first]
        return iter(batches)

    def _blocked_units(self, shelf: _Shelf, party: int) -> Iterator[int]:
        for run in list(_PENDING_RUN.finditer(shelf.pending)):
            for unit in range(*run.span()):
                if party in shelf.had[unit]:
                    yield unit

    def _fresh_runs(self, shelf: _Shelf, party: int, units: int, ranges: int) -> list[tuple[int, int]]:
        """(start, count) of pending runs that a party never had, from a random place on where replicas are compared."""
        size = len(shelf.pending)
        first = self._rng.randrange(size) if self._shuffle else 0
        runs: list[tuple[int, int]] = []
        for low, high in ((first, size), (0, first)):
            for run in _PENDING_RUN.finditer(bytes(shelf.pending), low, high):
                for start, count in self._never_had(shelf, party, *run.span()):
                    runs.append((start, min(count, units)))
                    units -= count
                    if units <= 0 or len(runs) >= ranges:
                        return runs
        return runs

    @staticmethod
    def _never_had(shelf: _Shelf, party: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a run to the parts that a party never had."""
        if party not in shelf.blocked:
            yield start, stop - start
            return
        first = start
        for unit in range(start, stop):
            if party in shelf.had[unit]:
                if unit > first:
                    yield first, unit - first
                first = unit + 1
        if stop > first:
            yield first, stop - first

    def _lend(self, batch: int, shelf: _Shelf, party: int, start: int, count: int) -> UnitRange:
        """Move one pending of each of these units to what is owed by a party."""
        stop = start + count
        attempt = max(shelf.tries[start:stop])
        pending, had = shelf.pending[start], shelf.had[start]
        alike = shelf.pending.count(pending, start, stop) == count and shelf.had[start:stop].count(had) == count
        if alike and party not in had:
            self._set_run(shelf, start, stop, pending - 1)
            shelf.had[start:stop] = [(*had, party)] * count
            if pending > 1:
                self._block(shelf, party, count)
        else:
            for unit in range(start, stop):
                self._set(shelf, unit, shelf.pending[unit] - 1)
                self._mark(shelf, unit, party)
        for column in (shelf.tries, shelf.out):
            _step(column, start, stop, 1)
        self._note_waiting(batch, shelf)
        return UnitRange(batch, start, count, attempt)

    def copy(self, party: bytes, run: UnitRange, copies: int, missing: Callable[[int, int], int], ranges_max: int) -> list[UnitRange]:
        """Those of a run that ``party`` never had and at most ``copies`` have beyond what is ``missing``, now owed by it, too."""
        batch, start, count, _ = run
        shelf = self._shelves.get(batch)
        if shelf is None:
            return []
        index = self._index(party)
        taken: list[UnitRange] = []
        for unit in range(start, start + count):
            if shelf.pending[unit] or index in shelf.had[unit] or not 0 < shelf.out[unit] <= _beyond(missing(batch, unit), copies):
                continue
            last = taken[-1] if taken else None
            follows = last is not None and last.start + last.units == unit
            if not follows and len(taken) >= ranges_max:
                break
            attempt = shelf.tries[unit]
            self._mark(shelf, unit, index)
            for column in (shelf.tries, shelf.out):
                _step(column, unit, unit + 1, 1)
            if last is not None and follows:
                taken[-1] = last._replace(units=last.units + 1, attempt=max(last.attempt, attempt))
            else:
                taken.append(UnitRange(batch, unit, 1, attempt))
        return taken

    def lease(self, lease: Lease) -> None:
        """Note a lease that was granted for units just taken."""
        self.leases[lease.id] = lease
        self.by_worker.setdefault(lease.worker, set()).add(lease.id)

    def adopt(self, lease: Lease, answered: Iterable[tuple[UnitRange, ...]]) -> None:
        """Note a lease that an earlier lead granted, and what of it was answered. The caller sets anew what is wanted of its units."""
        party = self._index(lease.party)
        for batch, start, count, _ in lease.ranges:
            shelf = self._shelves.get(batch)
            if shelf is not None:
                for unit in range(start, start + count):
                    self._mark(shelf, unit, party)
                for column in (shelf.tries, shelf.out):
                    _step(column, start, start + count, 1)
        self.lease(lease)
        for ranges in answered:
            self.answered(lease, ranges)

    # -- answers and ends ----------------------------------------------------------

    def answered(self, lease: Lease, ranges: tuple[UnitRange, ...]) -> None:
        """Receipts came for these units of a lease."""
        if ranges == lease.ranges and lease.answered is None:
            self.end(lease)
            return
        if lease.answered is None:
            lease.answered = bytearray(sum(unit_range.units for unit_range in lease.ranges))
        for batch, start, count, _ in ranges:
            base = 0
            for known, first, units, _ in lease.ranges:
                low, high = max(start, first), min(start + count, first + units)
                if known == batch and low < high:
                    self._answer(lease, batch, base - first, low, high)
                base += units
        if lease.open <= 0:
            self.end(lease)

    def _answer(self, lease: Lease, batch: int, shift: int, low: int, high: int) -> None:
        assert lease.answered is not None
        shelf = self._shelves.get(batch)
        for unit in range(low, high):
            if not lease.answered[unit + shift]:
                lease.answered[unit + shift] = 1
                lease.open -= 1
                if shelf is not None:
                    shelf.out[unit] -= 1

    def unanswered(self, lease: Lease) -> list[tuple[int, int, int]]:
        """(batch, start, count) runs of a lease that have no receipt."""
        runs: list[tuple[int, int, int]] = []
        base = 0
        for batch, start, count, _ in lease.ranges:
            if lease.answered is None:
                runs.append((batch, start, count))
            else:
                found = _ZERO_RUN.finditer(bytes(lease.answered[base : base + count]))
                runs.extend((batch, start + run.start(), run.end() - run.start()) for run in found)
            base += count
        return runs

    def end(self, lease: Lease) -> list[tuple[int, int, int]]:
        """Forget a lease: it owes nothing any more. Returns the runs it leaves without a receipt."""
        if self.leases.pop(lease.id, None) is None:
            return []
        left = self.unanswered(lease)
        for batch, start, count in left:
            shelf = self._shelves.get(batch)
            if shelf is not None:
                _step(shelf.out, start, start + count, -1)
        mine = self.by_worker[lease.worker]
        mine.discard(lease.id)
        if not mine:
            del self.by_worker[lease.worker]
        return left

    def drop_batch(self, batch: int) -> None:
        """A batch is decided: nothing of it is worth keeping."""
        shelf = self._shelves.pop(batch, None)
        if shelf is not None:
            self.pending -= sum(shelf.pending)
            self._waiting.pop(batch, None)

    # -- reading ---------------------------------------------------------------------

    def had(self, batch: int, start: int, count: int) -> frozenset[bytes]:
        """Every party that ever had one of these units."""
        shelf = self._shelves.get(batch)
        if shelf is None:
            return frozenset()
        return frozenset(self._names[party] for had in shelf.had[start : start + count] for party in had)

    def outstanding(self, batch: int, unit: int) -> int:
        """Answers still expected for a unit: leases that owe one, and parties still to be found."""
        shelf = self._shelves.get(batch)
        return shelf.out[unit] + shelf.pending[unit] if shelf is not None else 0

    def owed(self, batch: int, unit: int) -> int:
        """Leases that owe an answer for a unit."""
        shelf = self._shelves.get(batch)
        return shelf.out[unit] if shelf is not None else 0

    def uncopied(self, batch: int, start: int, count: int, most: int) -> int:
        """How many of these units are left without those at their end that more than ``most`` leases owe."""
        shelf = self._shelves.get(batch)
        return len(shelf.out[start : start + count].rstrip(_ABOVE[min(most, 254) + 1 :])) if shelf is not None else 0

    def batches(self) -> list[int]:
        """Batches that are not dropped."""
        return list(self._shelves)

    def owed_by(self, worker: bytes) -> int:
        """Units that a worker has and has not answered."""
        return sum(self.leases[lease].open for lease in self.by_worker.get(worker, ()))

    def check(self) -> None:
        """Assert that all sums agree with what they are sums of."""
        assert self.pending == sum(sum(shelf.pending) for shelf in self._shelves.values())
        out: dict[int, bytearray] = {batch: bytearray(len(shelf.out)) for batch, shelf in self._shelves.items()}
        for lease in self.leases.values():
            runs = self.unanswered(lease)
            assert lease.open == sum(count for _, _, count in runs) > 0
            assert lease.id in self.by_worker[lease.worker]
            for batch, start, count in runs:
                if batch in out:
                    _step(out[batch], start, start + count, 1)
        assert sum(len(leases) for leases in self.by_worker.values()) == len(self.leases)
        for batch, shelf in self._shelves.items():
            assert shelf.out == out[batch], batch
            assert shelf.waiting == len(shelf.pending) - shelf.pending.count(0)
            assert (batch in self._waiting) == (shelf.waiting > 0)
            blocked: dict[int, int] = {}
            for unit, had in enumerate(shelf.had):
                for party in had if shelf.pending[unit] else ():
                    blocked[party] = blocked.get(party, 0) + 1
            assert blocked == shelf.blocked


def _beyond(missing: int, copies: int) -> int:
    """How many leases may owe a unit before one more: none of what is decided."""
    return missing + copies if missing else 0


def _step(column: bytearray, start: int, stop: int, step: int) -> None:
    """Add ``step`` to each byte of a run, within 0 .. 255."""
    value = column[start]
    if column.count(value, start, stop) == stop - start:
        column[start:stop] = bytes([min(255, max(0, value + step))]) * (stop - start)
        return
    for unit in range(start, stop):
        column[unit] = min(255, max(0, column[unit] + step))
