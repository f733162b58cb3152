"""Who has each job whose log is here, whether the job is in memory or not: what a node must know to see to enough copies.

A job that has ended is read until its time is over, so its log is kept by as many nodes as that of a running one. Its lead, or
the keeper whose turn it is, brings it back into memory when somebody who had it is gone.
"""

from __future__ import annotations

from collections.abc import Container

from p2pgrid.core.keeping import K
from p2pgrid.core.takeover import Succession
from p2pgrid.errors import MalformedError
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import KeeperSet
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.store.index import JobRow
from p2pgrid.wire.codec import decode, encode

ABSENT_S = 10.0
"""Who has been away for so long is replaced as a keeper of jobs that have ended."""
AGAIN_S = 120.0
"""A job is not brought back more often than this."""


class Custody:
    """The newest keeper set of each job, by job."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._sets: dict[JobId, KeeperSet] = {}
        self._absent_since: dict[bytes, float] = {}
        self._not_before_s: dict[JobId, float] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def load(self, row: JobRow) -> None:
        """What the index says of a job."""
        try:
            epoch, lead, keepers = decode(row.detail, tuple[int, bytes, tuple[bytes, ...]])
        except MalformedError:
            return
        self._sets[row.id] = KeeperSet(row.expires_ms, row.id, epoch, lead, keepers)

    def note(self, kept: KeptJob) -> None:
        """A job in memory has these keepers now."""
        if kept.ledger.keepers is not None:
            self._sets[kept.id] = kept.ledger.keepers.body

    def forget(self, job: JobId) -> None:
        """The job's time is over."""
        self._sets.pop(job, None)
        self._not_before_s.pop(job, None)

    def due(self, in_memory: Container[JobId], there: Container[bytes], spare: bool, now: float, jobs_max: int) -> list[JobId]:
        """Jobs to bring back into memory now. ``spare``: whether there is anybody who could keep more."""
        named = {node for keepers in self._sets.values() for node in (keepers.lead, *keepers.keepers)}
        self._absent_since = {node: self._absent_since.get(node, now) for node in sorted(named) if node not in there}
        found: list[JobId] = []
        for job, keepers in self._sets.items():
            if len(found) >= jobs_max:
                break
            if job not in in_memory and self._not_before_s.get(job, 0.0) <= now and self._wanted(keepers, there, spare, now):
                self._not_before_s[job] = now + AGAIN_S
                found.append(job)
        return found

    def _wanted(self, keepers: KeeperSet, there: Container[bytes], spare: bool, now: float) -> bool:
        if keepers.lead == self._me:
            lost = any(now - self._absent_since.get(keeper, now) >= ABSENT_S for keeper in keepers.keepers)
            return spare and (lost or len(keepers.keepers) < K)
        away_s = now - self._absent_since.get(keepers.lead, now)
        return self._me in keepers.keepers and away_s >= ABSENT_S + Succession(self._me).wait_s(keepers, there)


def detail_of(kept: KeptJob) -> bytes:
    """What the index remembers of a job's keepers."""
    keepers = kept.ledger.keepers
    return encode((keepers.body.epoch, keepers.body.lead, keepers.body.keepers)) if keepers is not None else b""
