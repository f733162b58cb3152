"""What one run of :mod:`p2pgrid.testing.core.grid` is made of, and the oracles that all core runs share."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import S, Signed, statement_id

EXPIRES_MS = 1 << 50
LEAD = b"L" * 32
SUBMITTER = b"S" * 32


def oracle(body: S, author: bytes) -> Signed[S]:
    """A statement as if its signature had been made and verified."""
    raw = encode(body)
    return Signed(body, author, statement_id(author, raw), raw)


def truth(batch: int, unit: int) -> bytes:
    """The digest of the right answer."""
    return blake3(b"%d/%d" % (batch, unit)).digest()


@dataclass(frozen=True)
class Scenario:
    """What a run is made of. Rates are chances per message, unit or second; times are seconds."""

    batches: tuple[int, ...] = (20, 20)
    quorum: int = 1
    attempts: int = 3
    reduce: bool = False
    finish: bool = False
    workers: int = 5
    slots: int = 2
    keepers: int = 3
    unit_s: float = 0.3
    latency_s: float = 0.05
    loss: float = 0.0
    twice: float = 0.0
    crashes: float = 0.0
    flaps: float = 0.0
    slow: int = 0
    """Workers that take forty times as long."""
    liars: int = 0
    colluding: bool = False
    """Liars tell the same lie."""
    misses: float = 0.0
    forgeries: float = 0.0
    """Chance per second that somebody sends the lead a receipt, or a keeper a decision, that must not count."""
    faults_until_s: float = 60.0
    limit_s: float = 900.0
