"""How much of a job a pull gets (docs/spec/job.md#what-a-lead-does): pure arithmetic over what is pending and who is there.

1. At most half of its share of what is pending: the last units spread over everybody. Who delivered nothing yet, or fell
   silent, gets little.
2. Nobody gets a unit twice, unless everybody there had it, or nobody else took it for a while. Who answered it
   where answers are compared, or still owes it, never gets it again.
3. What is left at the end is not for a worker that would still be at it long after the others could have done it all. But
   nobody is held back for longer than that takes.
4. When nothing is pending for it, copies of what is late: :mod:`p2pgrid.core.speculation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from p2pgrid.core.lead_events import Pulled
from p2pgrid.core.leases import LeaseBook
from p2pgrid.core.ledger import Ledger
from p2pgrid.core.pace import Pace, WorkerState
from p2pgrid.core.speculation import PICKUP_S, Speculation
from p2pgrid.model.work import ANSWERS, UnitRange

UNITS_PER_PULL_MAX = 4096
BATCHES_PER_PULL_MAX = 6
"""A pull's reply carries the batches it needs, up to 1 MiB each, in one message of at most 8 MiB."""
UNITS_OWED_MAX = 2 * UNITS_PER_PULL_MAX
LEASES_OWED_MAX = 64
UNPROVEN_UNITS = 64
"""Units (or four for each core) that a worker may owe before its first receipt: nobody hoards a job."""
AGAIN_AFTER_S = 5.0
"""So long others may take a unit before somebody who had it gets it again."""
LAST_UNITS = 2
LAST_S = 1.0
"""Pending units for each core, or seconds of work for all, from which on a job is near its end."""
HOLD_FACTOR = 1.2
HOLD_EXTRA_S = 1.0


@dataclass(slots=True)
class Sharing:
    """Takes units of one job out of the book for those who pull. ``now`` is monotonic seconds."""

    ledger: Ledger
    book: LeaseBook
    pace: Pace
    workers: dict[bytes, WorkerState]
    speculation: Speculation
    _empty_at: float = -math.inf
    """When somebody last found nothing pending: whoever was held back before is held back anew, it is other units now."""

    def take(self, pull: Pulled, worker: WorkerState, present: Callable[[], frozenset[bytes]], now: float) -> list[UnitRange]:
        """What a pull gets, now owed by its worker. ``present``: the parties that are there."""
        slots = sum(other.slots for other in self.workers.values())
        owed = self.book.owed_by(pull.worker)
        room = self._owed_max(worker) - owed
        if room < 1 or len(self.book.by_worker.get(pull.worker, ())) >= LEASES_OWED_MAX:
            return []
        if not self.book.pending:
            self._empty_at = now
            return self._copies(pull, worker, room, now)
        room = min(room, self._last(worker, slots, owed, now))
        if room < 1:
            return []
        share = -(-self.book.pending // (2 * slots)) * worker.slots
        want = min(max(1, min(pull.want, share, UNITS_PER_PULL_MAX)), room)
        taken = self.book.take(worker.group, want, BATCHES_PER_PULL_MAX)
        if not taken:
            if worker.hungry_since is None:
                worker.hungry_since = now
            taken = self._take_again(worker, want, present(), now)
        if not taken and self.book.pending < slots:
            taken = self._copies(pull, worker, room, now)
        return taken

    @staticmethod
    def _owed_max(worker: WorkerState) -> int:
        if worker.silent:
            return worker.slots
        return UNITS_OWED_MAX if worker.proven else max(UNPROVEN_UNITS, 4 * worker.slots)

    def _last(self, worker: WorkerState, slots: int, owed: int, now: float) -> int:
        """How many of the last units this worker may take: those it ends not clearly later than the others end all the rest."""
        unit_s, pending = self.pace.unit_s(worker), self.book.pending
        others_per_s = self.pace.per_s - (worker.slots / unit_s if worker.units else 0.0)
        if not unit_s or others_per_s <= 0 or pending > max(LAST_UNITS * slots, LAST_S * others_per_s):
            return pending
        soon_s = pending / others_per_s + self.pace.fast_s + PICKUP_S
        room = int(HOLD_FACTOR * soon_s / unit_s) * worker.slots - owed
        if room > 0:
            return room
        if worker.hungry_since is None:
            worker.hungry_since = now
        if worker.held_since is None or worker.held_since <= self._empty_at:
            worker.held_since = now
        return 0 if now - worker.held_since < 2 * soon_s + HOLD_EXTRA_S else pending

    def _copies(self, pull: Pulled, worker: WorkerState, room: int, now: float) -> list[UnitRange]:
        left = self.speculation.room(self.answers)
        want = min(pull.want, room, UNITS_PER_PULL_MAX)
        return self.speculation.take(worker, want, left, self.ledger.missing, BATCHES_PER_PULL_MAX, now)

    def copies_for(self, now: float) -> list[bytes]:
        """Who waits for work and would get copies now."""
        return self.speculation.wanted(now, self.speculation.room(self.answers))

    @property
    def answers(self) -> int:
        """How many were needed so far."""
        return (self.ledger.done + self.ledger.failed) * self.ledger.job.body.quorum

    def _take_again(self, worker: WorkerState, want: int, present: frozenset[bytes], now: float) -> list[UnitRange]:
        """Units that this worker's party had and did not answer, if nobody else is there or wants them."""
        party = worker.group
        patient = worker.hungry_since is not None and now - worker.hungry_since >= AGAIN_AFTER_S
        owed = {
            (batch, unit)
            for key, other in self.workers.items()
            if other.group == party
            for lease in self.book.by_worker.get(key, ())
            for batch, start, count in self.book.unanswered(self.book.leases[lease])
            for unit in range(start, start + count)
        }

        def again(batch: int, unit: int, had: frozenset[bytes]) -> bool:
            if (batch, unit) in owed or not (patient or present <= had):
                return False
            return all(answer.group != party or answer.outcome not in ANSWERS for answer in self.ledger.answers(batch, unit))

        return self.book.take_again(party, want, again, BATCHES_PER_PULL_MAX)
