"""Every error p2pgrid raises on purpose, in one tree.

    P2PGridError
    ├── UsageError        you asked for something that makes no sense        (local misuse)
    ├── ConfigError       a setting, a home folder or a port is unusable     (local misuse)
    ├── BadDataError      a script, an item or a file cannot be used         (local misuse)
    ├── RemoteError       a peer broke the protocol                          (remote fault)
    │   ├── MalformedError     bytes that do not parse, or are over a limit
    │   └── IntegrityError     a signature, a digest or a chain does not hold
    ├── UnreachableError  a peer cannot be reached, or went away             (resource)
    ├── NoPeersError      nobody is there who could do it                    (resource)
    ├── TryAgainError     busy, full or late: the same call may go through later (resource)
    └── RefusedError      somebody's policy says no                          (policy)

Foreign exceptions are mapped to these once, at the border that meets them.
"""

from __future__ import annotations


class P2PGridError(Exception):
    """Something went wrong in a way p2pgrid understands.

    ``reason`` is a code of :mod:`p2pgrid.model.reasons`, ``hint`` says what to do next, and
    ``retryable`` tells whether the same call may succeed later. ``remote`` is set on what another
    node answered: its text and hint are that node's words, and its code says nothing of this node.
    """

    retryable = False
    remote = False

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reason = reason


class UsageError(P2PGridError):
    """The command or call makes no sense as given."""


class ConfigError(P2PGridError):
    """A setting, a home folder or a port cannot be used."""


class BadDataError(P2PGridError):
    """A script, an item or a file cannot be used."""


class RemoteError(P2PGridError):
    """A peer did something the protocol forbids. Abstract: raise one of its children."""


class MalformedError(RemoteError):
    """Bytes from a peer do not parse, or are over a limit."""


class IntegrityError(RemoteError):
    """A signature, a digest or a membership chain from a peer does not hold."""


class UnreachableError(P2PGridError):
    """A peer could not be reached in time, or the connection to it ended."""

    retryable = True


class NoPeersError(P2PGridError):
    """Nobody in the grid can do this now."""

    retryable = True


class TryAgainError(P2PGridError):
    """Busy, full or late. The same call may go through later."""

    retryable = True


class RefusedError(P2PGridError):
    """A policy, here or at a peer, says no."""
