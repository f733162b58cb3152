"""What this node has published, and when it must be said again.

A record expires on its own, so its author publishes it anew, with a higher sequence, well before that.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pgrid.dht.records import REPUBLISH_S, RecordKind
from p2pgrid.errors import TryAgainError
from p2pgrid.model.ids import DhtId
from p2pgrid.model.reasons import Reason

_RETRY_S = 30.0
_PER_LIFE = 3
_AT_ONCE = 16
Subject = tuple[RecordKind, DhtId]


@dataclass
class Publication:
    """One value under one key, kept alive until it is withdrawn."""

    kind: RecordKind
    key: DhtId
    value: bytes
    ttl_s: float
    due_at: float = 0.0

    def published(self, now: float, acks: int) -> None:
        """Plan the next time: a third of its life or the usual interval, and soon if nobody took it."""
        interval_s = min(REPUBLISH_S[self.kind], self.ttl_s / _PER_LIFE)
        self.due_at = now + (interval_s if acks else min(_RETRY_S, interval_s))


class Publications:
    """All publications of a node, bounded, and the sequence numbers it used."""

    def __init__(self, publications_max: int) -> None:
        self._publications_max = publications_max
        self._all: dict[Subject, Publication] = {}
        self._last_seq = 0

    def __len__(self) -> int:
        return len(self._all)

    def next_seq(self, now_ms: int) -> int:
        """Higher than every one before, also across restarts as long as the clock does not run back."""
        self._last_seq = max(self._last_seq + 1, now_ms)
        return self._last_seq

    def remember(self, publication: Publication) -> None:
        """Keep a publication alive from now on. Raises TryAgainError when there are too many."""
        subject = (publication.kind, publication.key)
        if subject not in self._all and len(self._all) >= self._publications_max:
            raise TryAgainError("too many publications", reason=Reason.STORE_FULL)
        self._all[subject] = publication

    def forget(self, kind: RecordKind, key: DhtId) -> Publication | None:
        """Stop keeping it alive."""
        return self._all.pop((kind, key), None)

    def holds(self, publication: Publication) -> bool:
        """Whether this very publication still stands."""
        return self._all.get((publication.kind, publication.key)) is publication

    def due(self, now: float) -> list[Publication]:
        """The publications whose time has come, a bounded number at once, the longest overdue first."""
        due = [publication for publication in self._all.values() if publication.due_at <= now]
        return sorted(due, key=lambda publication: publication.due_at)[:_AT_ONCE]
