"""Certificates put together by hand are those that a library for all of them makes, and keys are read out of any."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import IntegrityError
from p2pgrid.net import certificates
from p2pgrid.wire.keys import SigningKey

AUTHORITY = certificates.authority_key()


def usage(*, signs: bool) -> x509.KeyUsage:
    names = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"]
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **dict.fromkeys(names, False))


def by_the_library(name: str, public: Ed25519PublicKey, *, authority: bool) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    serial = int.from_bytes(hashlib.blake2b(public.public_bytes_raw(), digest_size=16).digest(), "big") | 1
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("p2pgrid public authority"))
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(usage(signs=authority), critical=True)
    )
    if not authority:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(AUTHORITY.public_key()), critical=False)
    return builder.sign(AUTHORITY, None).public_bytes(Encoding.DER)


class Shown:
    """The end of a handshake in which the peer showed a certificate."""

    def __init__(self, der: bytes) -> None:
        self.der = der

    def getpeercert(self, *, binary_form: bool) -> bytes:
        return self.der


@given(st.binary(min_size=32, max_size=32))
def test_a_nodes_certificate_is_the_one_that_the_library_makes(seed: bytes) -> None:
    key = SigningKey(seed)
    der = certificates.node_certificate(key.public)
    assert der == by_the_library("p2pgrid node", key.private.public_key(), authority=False)
    assert certificates.peer_key(Shown(der)) == key.public  # type: ignore[arg-type]


def test_the_authoritys_certificate_is_the_one_that_the_library_makes() -> None:
    made = by_the_library("p2pgrid public authority", AUTHORITY.public_key(), authority=True)
    assert certificates.authority_certificate() == made


def test_the_private_key_is_written_as_the_library_writes_it() -> None:
    key = SigningKey(b"k" * 32)
    written = certificates.pem("PRIVATE KEY", certificates._PRIVATE_KEY_HEAD + key.seed())
    assert written == key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def named(key: Ed25519PrivateKey, name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(7)
    ends = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
    return builder.not_valid_before(ends - dt.timedelta(days=1)).not_valid_after(ends).sign(key, None).public_bytes(Encoding.DER)


def test_the_key_of_another_form_of_certificate_is_read_too_and_never_out_of_its_name() -> None:
    own, other = SigningKey(b"o" * 32), SigningKey(b"v" * 32)
    decoy = (certificates._KEY_HEAD + other.public).decode("latin-1")
    for name in ("anybody", decoy[:60]):
        assert certificates.peer_key(Shown(named(own.private, name))) == own.public  # type: ignore[arg-type]


def test_a_certificate_of_another_kind_of_key_or_none_at_all_is_refused() -> None:
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "curve")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(7)
    ends = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
    from cryptography.hazmat.primitives.hashes import SHA256

    other = builder.not_valid_before(ends - dt.timedelta(days=1)).not_valid_after(ends).sign(key, SHA256()).public_bytes(Encoding.DER)
    for der in (other, b"", b"\x30\x82\x01\x00nonsense", certificates.node_certificate(SigningKey(b"c" * 32).public)[:-70]):
        with pytest.raises(IntegrityError):
            certificates.peer_key(Shown(der))  # type: ignore[arg-type]


def test_a_command_that_asks_its_node_imports_no_library_for_certificates_and_no_index() -> None:
    heavy = ["cryptography.x509", "sqlite3", "p2pgrid.store.ledger", "p2pgrid.client.running", "structlog", "rich"]
    code = f"import sys, p2pgrid.client.channel; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
