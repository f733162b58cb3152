"""The one place where errors become exit codes (docs/reference/exit-codes.md)."""

from __future__ import annotations

from p2pgrid.errors import (
    BadDataError,
    ConfigError,
    IntegrityError,
    NoPeersError,
    P2PGridError,
    RefusedError,
    RemoteError,
    TryAgainError,
    UnreachableError,
    UsageError,
)

OK = 0
UNIT_FAILED = 1
USAGE = 2
BAD_DATA = 65
NO_PEERS = 69
BUG = 70
TRY_AGAIN = 75
REFUSED = 77
BAD_CONFIG = 78
INTERRUPTED = 130

_CODES: tuple[tuple[type[P2PGridError], int], ...] = (
    (UsageError, USAGE),
    (ConfigError, BAD_CONFIG),
    (BadDataError, BAD_DATA),
    (IntegrityError, REFUSED),
    (RemoteError, BAD_DATA),
    (UnreachableError, NO_PEERS),
    (NoPeersError, NO_PEERS),
    (TryAgainError, TRY_AGAIN),
    (RefusedError, REFUSED),
)


def code_of(error: P2PGridError) -> int:
    """The exit code of an error."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return BUG
