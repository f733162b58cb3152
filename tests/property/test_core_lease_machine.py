"""The lease book against dictionaries: what is pending, who owes what, and who had what."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pgrid.core.leases import Lease, LeaseBook
from p2pgrid.model.work import UnitRange

UNITS = 9
BATCHES = 3
WORKERS = [bytes([number]) * 32 for number in range(1, 5)]


class LeaseMachine(RuleBasedStateMachine):
    """Wants, takes, answers and ends in any order."""

    @initialize(shuffle=st.booleans(), seed=st.integers(0, 100))
    def begin(self, shuffle: bool, seed: int) -> None:
        self.book = LeaseBook(random.Random(seed), shuffle=shuffle)
        self.pending: dict[tuple[int, int], int] = {}
        self.had: dict[tuple[int, int], set[bytes]] = {}
        self.owes: dict[bytes, set[tuple[int, int]]] = {}
        self.leases: dict[bytes, Lease] = {}
        self.made = 0
        for batch in range(BATCHES):
            self.book.open(batch, UNITS)
            self.pending |= {(batch, unit): 0 for unit in range(UNITS)}

    def out(self, key: tuple[int, int]) -> int:
        return sum(key in owed for owed in self.owes.values())

    @rule(batch=st.integers(0, BATCHES), start=st.integers(0, UNITS - 1), count=st.integers(1, UNITS), wanted=st.integers(0, 4))
    def want(self, batch: int, start: int, count: int, wanted: int) -> None:
        count = min(count, UNITS - start)
        self.book.want(batch, start, count, wanted)
        for unit in range(start, start + count):
            if (batch, unit) in self.pending:
                self.pending[batch, unit] = max(0, wanted - self.out((batch, unit)))

    @rule(worker=st.sampled_from(WORKERS), units=st.integers(1, 20), batches=st.integers(1, BATCHES))
    def take(self, worker: bytes, units: int, batches: int) -> None:
        able = {key for key, number in self.pending.items() if number and worker not in self.had.get(key, ())}
        taken = self.book.take(worker, units, batches)
        keys = self._units(taken)
        assert len(keys) == len(set(keys)) <= units
        assert set(keys) <= able
        assert bool(keys) == bool(able)
        assert len({batch for batch, _ in keys}) <= batches
        self._lend(worker, taken, keys)

    @rule(worker=st.sampled_from(WORKERS), units=st.integers(1, 20))
    def take_again(self, worker: bytes, units: int) -> None:
        owed = {key for lease, keys in self.owes.items() if self.leases[lease].worker == worker for key in keys}
        able = {key for key, number in self.pending.items() if number and worker in self.had.get(key, ()) and key not in owed}
        taken = self.book.take_again(worker, units, lambda batch, unit, had: worker in had and (batch, unit) not in owed)
        keys = self._units(taken)
        assert set(keys) <= able
        assert len(keys) == min(units, len(able))
        self._lend(worker, taken, keys)

    @staticmethod
    def _units(ranges: list[UnitRange]) -> list[tuple[int, int]]:
        return [(batch, unit) for batch, start, count, _ in ranges for unit in range(start, start + count)]

    def _lend(self, worker: bytes, taken: list[UnitRange], keys: list[tuple[int, int]]) -> None:
        if not taken:
            return
        self.made += 1
        lease = Lease(self.made.to_bytes(32, "big"), worker, tuple(taken), 10.0, len(keys))
        self.book.lease(lease)
        self.leases[lease.id] = lease
        self.owes[lease.id] = set(keys)
        for key in keys:
            self.pending[key] -= 1
            self.had.setdefault(key, set()).add(worker)

    @precondition(lambda self: self.owes)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        lease = self.leases[data.draw(st.sampled_from(sorted(self.owes)))]
        whole = data.draw(st.booleans())
        ranges = lease.ranges
        if not whole:
            batch, start, count, attempt = data.draw(st.sampled_from(lease.ranges))
            first = data.draw(st.integers(0, count - 1))
            ranges = (UnitRange(batch, start + first, data.draw(st.integers(1, count - first)), attempt),)
        self.book.answered(lease, ranges)
        self.owes[lease.id] -= set(self._units(list(ranges)))
        if not self.owes[lease.id]:
            del self.owes[lease.id]

    @precondition(lambda self: self.owes)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        lease = self.leases[data.draw(st.sampled_from(sorted(self.owes)))]
        left = self.book.end(lease)
        assert {(batch, unit) for batch, start, count in left for unit in range(start, start + count)} == self.owes.pop(lease.id)
        assert self.book.end(lease) == []

    @rule(batch=st.integers(0, BATCHES - 1))
    def drop(self, batch: int) -> None:
        self.book.drop_batch(batch)
        self.pending = {key: number for key, number in self.pending.items() if key[0] != batch}

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "book"):
            return
        self.book.check()
        assert self.book.pending == sum(self.pending.values())
        assert set(self.book.leases) == set(self.owes)
        for key, number in self.pending.items():
            assert self.book.outstanding(*key) == number + self.out(key)
            assert self.book.had(*key, 1) == self.had.get(key, set())
        for worker in WORKERS:
            assert self.book.owed_by(worker) == sum(len(keys) for lease, keys in self.owes.items() if self.leases[lease].worker == worker)


LeaseMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30)
test_a_lease_book_agrees_with_dictionaries = LeaseMachine.TestCase
