"""A checked stand-in for Ed25519, tens of times as fast, for simulations that sign and verify all the time.

1. Whoever has no seed cannot sign: a signature is a BLAKE3 of the message under a key derived from the signer's seed,
   and the only table from public keys to seeds lies in the oracle. Forged, cut, flipped and moved signatures fail.
2. Only the arithmetic is replaced. All checks of :mod:`p2pgrid.wire.keys` stay in force: public keys pass those on
   canonical form and small order, and a signature that fails is refused by the product's own code.
3. Checkers ask :meth:`Oracle.holds`. It does not pass through the product, so a product that forgets to verify is found out.

Sessions in the simulator carry no TLS; :mod:`p2pgrid.net.certificates` keeps the real keys and is not used there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blake3 import blake3
from cryptography.exceptions import InvalidSignature

from p2pgrid.model.ids import KEY_BYTES
from p2pgrid.wire import keys

SIGNATURE_BYTES = 64
_PUBLIC_CONTEXT = "p2pgrid/1/testing/oracle-public"
_SIGNING_CONTEXT = "p2pgrid/1/testing/oracle-signing"
_REPLACED = ("Ed25519PrivateKey", "Ed25519PublicKey")


class Oracle:
    """Knows every seed that was made into a key while it was in charge, and counts."""

    def __init__(self) -> None:
        self.signed = 0
        """Signatures made."""
        self.verified = 0
        """Signatures that the product looked at and that held."""
        self.refused = 0
        """Signatures that the product looked at and that did not hold."""
        self._signing_keys: dict[bytes, bytes] = {}
        """By public key."""

    def holds(self, public: bytes, signature: bytes, message: bytes) -> bool:
        """Whether ``signature`` was made for ``message`` with the seed of ``public``. Not counted, and never raises."""
        key = self._signing_keys.get(bytes(public))
        return key is not None and _signature(key, message) == bytes(signature)

    def knows(self, public: bytes) -> bool:
        """Whether the seed of this public key was ever made into a key here."""
        return bytes(public) in self._signing_keys

    def register(self, seed: bytes) -> tuple[bytes, bytes]:
        """The (public key, signing key) of a seed, known from now on. Raises ValueError unless it is 32 bytes."""
        if len(seed) != KEY_BYTES:
            raise ValueError("a private key has 32 bytes")
        public = bytearray(blake3(seed, derive_key_context=_PUBLIC_CONTEXT).digest())
        public[-1] &= 0x3F  # The y coordinate is below 2^254, and so reduced; the sign bit is clear.
        signing = blake3(seed, derive_key_context=_SIGNING_CONTEXT).digest()
        self._signing_keys[bytes(public)] = signing
        return bytes(public), signing


class OracleKeys:
    """Stands for the class ``Ed25519PrivateKey``, and for ``Ed25519PublicKey``."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def from_private_bytes(self, data: bytes) -> OraclePrivateKey:
        """As the real one. Raises ValueError for a wrong length."""
        return OraclePrivateKey(self._oracle, bytes(data))

    def from_public_bytes(self, data: bytes) -> OraclePublicKey:
        """As the real one, which takes any 32 bytes: a key without a known seed fails when it is used."""
        if len(data) != KEY_BYTES:
            raise ValueError("a public key has 32 bytes")
        return OraclePublicKey(self._oracle, bytes(data))


class OraclePrivateKey:
    """Signs with a seed."""

    __slots__ = ("_oracle", "_public", "_seed", "_signing")

    def __init__(self, oracle: Oracle, seed: bytes) -> None:
        self._oracle = oracle
        self._seed = seed
        self._public, self._signing = oracle.register(seed)

    def public_key(self) -> OraclePublicKey:
        """As the real one."""
        return OraclePublicKey(self._oracle, self._public)

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes that only this seed gives for ``data``."""
        self._oracle.signed += 1
        return _signature(self._signing, data)

    def private_bytes_raw(self) -> bytes:
        """The seed."""
        return self._seed


class OraclePublicKey:
    """Verifies what the seed behind a public key has signed."""

    __slots__ = ("_oracle", "_public")

    def __init__(self, oracle: Oracle, public: bytes) -> None:
        self._oracle = oracle
        self._public = public

    def public_bytes_raw(self) -> bytes:
        """The 32 bytes."""
        return self._public

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raises InvalidSignature unless the signature holds; also when nobody here ever had the seed."""
        if not self._oracle.holds(self._public, signature, data):
            self._oracle.refused += 1
            raise InvalidSignature
        self._oracle.verified += 1


def _signature(signing: bytes, message: bytes) -> bytes:
    return blake3(message, key=signing).digest(length=SIGNATURE_BYTES)


@contextmanager
def oracle_signatures() -> Iterator[Oracle]:
    """While this lasts, keys of this process are the oracle's. Raises RuntimeError when one is in charge already.

    Keys made before are worthless inside, and those made inside are worthless afterwards.
    """
    real = {name: getattr(keys, name) for name in _REPLACED}
    if any(isinstance(kind, OracleKeys) for kind in real.values()):
        raise RuntimeError("an oracle is in charge already")
    oracle = Oracle()
    stand_in = OracleKeys(oracle)
    keys._public.cache_clear()
    vars(keys).update(dict.fromkeys(_REPLACED, stand_in))
    try:
        yield oracle
    finally:
        vars(keys).update(real)
        keys._public.cache_clear()
