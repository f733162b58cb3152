"""Ed25519 keys (RFC 8032), with the small-order points and the encodings that are not canonical refused.

OpenSSL verifies signatures under a small-order key for nearly any message, so such a key would be
"everybody's". The checks cost a few integer comparisons when a key is first met.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pgrid.errors import IntegrityError
from p2pgrid.model.ids import KEY_BYTES
from p2pgrid.model.reasons import Reason

_P = 2**255 - 19
# The y coordinates of the eight points of small order on edwards25519: 0, 1, -1 and the two of order eight.
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _Y8, _P - _Y8})


class SigningKey:
    """A private key. ``public`` is the 32-byte public key; the secret never leaves but by :meth:`seed`."""

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        """``seed``: 32 secret bytes."""
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of ``message``."""
        return self._private.sign(message)

    def seed(self) -> bytes:
        """The 32 secret bytes, for the key file and the TLS context only."""
        return self._private.private_bytes_raw()

    @property
    def private(self) -> Ed25519PrivateKey:
        """The key object, for signing the node's certificate."""
        return self._private


def is_small_order(public: bytes) -> bool:
    """Whether the 32 bytes encode a point of small order, in canonical form or not."""
    y = int.from_bytes(public, "little") & (2**255 - 1)
    return y % _P in _SMALL_ORDER_Y


def is_canonical(public: bytes) -> bool:
    """Whether the y coordinate is reduced: otherwise one key would have two encodings, and so two identities."""
    return int.from_bytes(public, "little") & (2**255 - 1) < _P


@lru_cache(maxsize=4096)
def _public(public: bytes) -> Ed25519PublicKey:
    if len(public) != KEY_BYTES or is_small_order(public) or not is_canonical(public):
        raise IntegrityError("not a usable public key", reason=Reason.BAD_SIGNATURE)
    try:
        return Ed25519PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise IntegrityError("not a public key", reason=Reason.BAD_SIGNATURE) from error


def check_public(public: bytes) -> bytes:
    """Return ``public`` if it is a usable Ed25519 key, else raise IntegrityError."""
    _public(public)
    return public


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Raise IntegrityError unless ``signature`` by ``public`` over ``message`` holds."""
    try:
        _public(public).verify(signature, message)
    except InvalidSignature as error:
        raise IntegrityError("a signature does not hold", reason=Reason.BAD_SIGNATURE) from error
