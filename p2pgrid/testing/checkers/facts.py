"""What the checkers must be told about a run: which grid it is, whose signatures hold, what is forged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.testing.plans.scenario import Expectations

Holds = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, message): whether it holds. Must not pass through the code under test."""


def ed25519_holds(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature holds, by the ``cryptography`` package itself: for runs with real signatures."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _nowhere() -> str:
    return ""


def _nothing() -> Sequence[str]:
    return ()


@dataclass(kw_only=True)
class Facts:
    """Given to every checker by whoever runs the grid."""

    grid: bytes = b""
    """The grid's id; empty: that of the first node that starts."""
    holds: Holds = ed25519_holds
    limits: Limits = DEFAULT_LIMITS
    expect: Expectations = field(default_factory=Expectations)
    settle_s: float = 90.0
    """The bound of the liveness phase."""
    behaviours: dict[str, str] = field(default_factory=dict)
    """By machine: what it does instead of the truth. Liars that are not in it are taken to collude."""
    outside: Callable[[], Sequence[str]] = _nothing
    """Paths that were written outside the folders of their machines."""
    machine: Callable[[], str] = _nowhere
    """The name of the machine whose code runs now; empty between them."""
    loss: float = 0.0
    """The chance of a datagram to be lost when the lookups are made at the end."""
    lookup_answers: int = 20
    """How many servers a lookup returns: the DHT's k."""
    poisoned: set[bytes] = field(default_factory=set)
    """Statements that were forged and must be seen in no log: see :meth:`poison`."""

    def poison(self, raw: bytes) -> None:
        """Register a forged statement by its bytes, before anybody hears of it."""
        self.poisoned.add(bytes(raw))
