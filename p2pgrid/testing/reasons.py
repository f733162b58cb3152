"""Which reason codes were given while something ran, for coverage: a code that nothing ever gives has never been tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from p2pgrid.errors import P2PGridError


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
