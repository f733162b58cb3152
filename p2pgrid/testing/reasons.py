"""Which reason codes were given while something ran, for coverage: a code that nothing ever gives has never been tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from p2pgrid.errors import P2PGridError
from p2pgrid.model import log
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import Decision
from p2pgrid.services.results import OUTCOME_REASONS
from p2pgrid.testing.observe import Onlooker
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import peek

if TYPE_CHECKING:
    from p2pgrid.node import Node

CODES = frozenset(reason.value for reason in Reason)


@contextmanager
def reasons_given() -> Iterator[Counter[str]]:
    """Count the reason of every error of our tree that is made inside the block."""
    counts: Counter[str] = Counter()
    plain = P2PGridError.__init__

    def counting(self: P2PGridError, message: str, *, hint: str = "", reason: str = "") -> None:
        plain(self, message, hint=hint, reason=reason)
        if reason:
            counts[str(reason)] += 1

    P2PGridError.__init__ = counting  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        P2PGridError.__init__ = plain  # type: ignore[method-assign]


class OutcomeCounter(Onlooker):
    """Counts what owners are told, and the outcomes that units were decided to have had, by the reason that people are told."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def on_start(self, name: str, node: Node) -> None:
        node.context.events.append(self._on_told)

    def _on_told(self, reason: str, sentence: str, about: tuple[bytes, ...]) -> None:
        if reason in CODES:
            self._counts[str(reason)] += 1

    def on_log(self, name: str, job: bytes, records: Sequence[tuple[int, bytes]]) -> None:
        for kind, raw in records:
            if kind != log.DECISION:
                continue
            for entry in decode(peek(raw).body, Decision).entries:
                reason = OUTCOME_REASONS.get(entry.outcome)
                if reason is not None:
                    self._counts[str(reason)] += entry.units
