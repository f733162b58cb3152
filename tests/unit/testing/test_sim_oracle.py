"""The stand-in for signatures: what it replaces, what it still refuses, and that it goes away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pgrid.dht.datagram import REQUEST, pack_payload, peek_datagram, seal_datagram, verify_datagram
from p2pgrid.errors import IntegrityError
from p2pgrid.model.ids import GridId, StatementId
from p2pgrid.model.job import Cancel
from p2pgrid.testing.parts.oracle import Oracle, OracleKeys, oracle_signatures
from p2pgrid.wire import keys
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Envelope, open_envelope, peek, seal
from p2pgrid.wire.keys import SigningKey, check_public, verify

GRID = GridId(b"g" * 32)
NOW_MS = 1_700_000_000_000


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    with oracle_signatures() as oracle:
        yield oracle


def cancel() -> Cancel:
    return Cancel(expires_ms=NOW_MS + 1000, job=StatementId(b"j" * 32))


def test_a_sealed_statement_opens_and_is_counted(oracle: Oracle) -> None:
    key = SigningKey(b"a" * 32)
    sealed = seal(cancel(), key, GRID)
    opened = open_envelope(sealed.raw, Cancel, GRID, NOW_MS)
    assert (opened.body, opened.author, opened.id) == (sealed.body, key.public, sealed.id)
    assert (oracle.signed, oracle.verified, oracle.refused) == (1, 1, 0)


def test_any_flipped_byte_of_a_statement_is_refused(oracle: Oracle) -> None:
    envelope = peek(seal(cancel(), SigningKey(b"a" * 32), GRID).raw)
    for at in range(len(envelope.signature)):
        flipped = bytearray(envelope.signature)
        flipped[at] ^= 1
        with pytest.raises(IntegrityError):
            open_envelope(encode(Envelope(envelope.type, envelope.body, envelope.author, bytes(flipped))), Cancel, GRID, NOW_MS)
    for signature in (b"", envelope.signature[:-1], envelope.signature + b"\0"):
        with pytest.raises(IntegrityError):
            open_envelope(encode(Envelope(envelope.type, envelope.body, envelope.author, signature)), Cancel, GRID, NOW_MS)
    assert oracle.refused == len(envelope.signature) + 3
    assert oracle.verified == 0


def test_a_statement_of_another_author_or_grid_is_refused(oracle: Oracle) -> None:
    mine, other = SigningKey(b"a" * 32), SigningKey(b"b" * 32)
    raw = seal(cancel(), mine, GRID).raw
    envelope = peek(raw)
    with pytest.raises(IntegrityError):
        open_envelope(encode(Envelope(envelope.type, envelope.body, other.public, envelope.signature)), Cancel, GRID, NOW_MS)
    with pytest.raises(IntegrityError):
        open_envelope(raw, Cancel, GridId(b"h" * 32), NOW_MS)


def test_a_signature_under_a_key_that_nobody_has_is_refused(oracle: Oracle) -> None:
    stranger = bytes(range(32))
    assert check_public(stranger) == stranger
    assert not oracle.knows(stranger)
    with pytest.raises(IntegrityError):
        verify(stranger, b"s" * 64, b"message")
    assert oracle.refused == 1


def test_a_key_that_becomes_known_later_is_believed_from_then_on(oracle: Oracle) -> None:
    apart = OracleKeys(Oracle()).from_private_bytes(b"l" * 32)
    public, signature = apart.public_key().public_bytes_raw(), apart.sign(b"message")
    with pytest.raises(IntegrityError):
        verify(public, signature, b"message")
    SigningKey(b"l" * 32)
    verify(public, signature, b"message")


def test_public_keys_pass_the_checks_of_the_product(oracle: Oracle) -> None:
    for number in range(200):
        public = SigningKey(number.to_bytes(32, "big")).public
        assert check_public(public) == public
        assert keys.is_canonical(public)
        assert not keys.is_small_order(public)


@pytest.mark.parametrize("public", [b"", b"k" * 31, b"k" * 33, b"\0" * 32, b"\xff" * 32])
def test_unusable_public_keys_are_refused_as_ever(oracle: Oracle, public: bytes) -> None:
    with pytest.raises(IntegrityError):
        check_public(public)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_seed_has_32_bytes(oracle: Oracle, length: int) -> None:
    with pytest.raises(ValueError):
        SigningKey(b"s" * length)


def test_a_datagram_means_something_to_its_destination_only(oracle: Oracle) -> None:
    key, destination = SigningKey(b"a" * 32), SigningKey(b"b" * 32).public
    flags, payload = pack_payload(REQUEST, b"r" * 20, b"hello")
    datagram = peek_datagram(seal_datagram(key, GRID, destination, flags, NOW_MS, payload), GRID, 1400)
    verify_datagram(datagram, GRID, destination)
    with pytest.raises(IntegrityError):
        verify_datagram(datagram, GRID, key.public)
    with pytest.raises(IntegrityError):
        verify_datagram(datagram._replace(payload=payload + b"!"), GRID, destination)
    with pytest.raises(IntegrityError):
        verify_datagram(datagram._replace(time_ms=NOW_MS + 1), GRID, destination)


def test_a_checker_can_ask_past_a_product_that_verifies_nothing(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    key = SigningKey(b"a" * 32)
    signature = key.sign(b"message")
    monkeypatch.setattr(keys, "verify", lambda *_: None)
    monkeypatch.setattr("p2pgrid.testing.parts.oracle.OraclePublicKey.verify", lambda *_: None)
    assert oracle.holds(key.public, signature, b"message")
    assert not oracle.holds(key.public, signature, b"another")
    assert not oracle.holds(key.public, b"s" * 64, b"message")
    assert not oracle.holds(b"k" * 32, signature, b"message")
    assert (oracle.verified, oracle.refused) == (0, 0)


def test_the_seed_comes_back_for_the_key_file(oracle: Oracle) -> None:
    assert SigningKey(b"a" * 32).seed() == b"a" * 32


def test_keys_are_real_again_afterwards_and_what_was_cached_is_forgotten() -> None:
    seed = b"a" * 32
    before = SigningKey(seed)
    verify(before.public, before.sign(b"m"), b"m")
    with oracle_signatures():
        inside = SigningKey(seed)
        signature = inside.sign(b"m")
        verify(inside.public, signature, b"m")
        assert inside.public != before.public
        with pytest.raises(IntegrityError):
            verify(before.public, before.sign(b"m"), b"m")
    assert isinstance(SigningKey(seed).private, Ed25519PrivateKey)
    assert SigningKey(seed).public == before.public
    verify(before.public, before.sign(b"m"), b"m")
    with pytest.raises(IntegrityError):
        verify(inside.public, signature, b"m")


def test_one_oracle_at_a_time_and_an_error_inside_ends_it() -> None:
    with oracle_signatures(), pytest.raises(RuntimeError), oracle_signatures():
        raise AssertionError("entered twice")
    with pytest.raises(KeyError), oracle_signatures():
        raise KeyError("inside")
    assert isinstance(SigningKey(b"a" * 32).private, Ed25519PrivateKey)
