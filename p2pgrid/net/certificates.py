"""Node certificates: how TLS proves that a peer holds its node key.

Python's ssl module has no verify callback and cannot ask for a client certificate without checking it.
So a certificate authority whose private key is *public* signs every node's certificate, and the
certificate's key is the node key. Both sides demand a certificate of this authority and nothing older
than TLS 1.3. The authority proves nothing; the handshake's CertificateVerify (RFC 8446, 4.4.3) proves that
the peer holds the key, and the key is then read out of the certificate. Names are never looked at.

The dates run from 1970 to 9999, so that a node with a wrong clock connects and can be told so.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import ssl
import tempfile
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from p2pgrid.errors import ConfigError, IntegrityError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.keys import SigningKey, check_public

_AUTHORITY_SEED = hashlib.blake2b(b"p2pgrid: this authority proves nothing, its key is public", digest_size=32).digest()
_NOT_BEFORE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
_AUTHORITY_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pgrid public authority")])
_NODE_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pgrid node")])


def _serial(public: bytes) -> int:
    """A positive serial number that is a function of the key, so that certificates are deterministic."""
    return int.from_bytes(hashlib.blake2b(public, digest_size=16).digest(), "big") | 1


def _builder(subject: x509.Name, public: Ed25519PublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_AUTHORITY_NAME)
        .public_key(public)
        .serial_number(_serial(public.public_bytes_raw()))
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def authority_key() -> Ed25519PrivateKey:
    """The private key that everybody has."""
    return Ed25519PrivateKey.from_private_bytes(_AUTHORITY_SEED)


@lru_cache(maxsize=1)
def authority_certificate() -> x509.Certificate:
    """The certificate of the public authority, the same bytes on every node."""
    key = authority_key()
    return (
        _builder(_AUTHORITY_NAME, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, None)
    )


def node_certificate(public: Ed25519PublicKey) -> x509.Certificate:
    """A certificate for a node key. Anybody can make one for any key; only the holder can use it."""
    authority = authority_key()
    return (
        _builder(_NODE_NAME, public)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, None)
    )


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Load key and certificate through a file that only this user can read and that is gone at once."""
    descriptor, path = tempfile.mkstemp(prefix="p2pgrid-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        context.load_cert_chain(path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _context(protocol: int, pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority_certificate().public_bytes(serialization.Encoding.DER))
    _load(context, pem)
    return context


def contexts(key: SigningKey) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts (for accepting, for dialling) of a node. Raises ConfigError when no temporary file can be made."""
    certificate = node_certificate(key.private.public_key())
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        server = _context(ssl.PROTOCOL_TLS_SERVER, pem)
        client = _context(ssl.PROTOCOL_TLS_CLIENT, pem)
    except OSError as error:
        raise ConfigError(f"the node's TLS key cannot be loaded: {error}", hint="is the temporary folder writable?") from error
    # Tickets would let a session resume without the key being proven again.
    server.num_tickets = 0
    return server, client


def peer_key(tls: ssl.SSLObject | ssl.SSLSocket) -> NodeKey:
    """The key the peer proved to hold. Raises IntegrityError when the certificate has no usable Ed25519 key."""
    encoded = tls.getpeercert(binary_form=True)
    if not encoded:
        raise IntegrityError("the peer showed no certificate", reason=Reason.BAD_SIGNATURE)
    try:
        public = x509.load_der_x509_certificate(encoded).public_key()
    except Exception as error:  # The parser's exceptions are not one family; whatever it is, the certificate is unusable.
        raise IntegrityError("the peer's certificate does not parse", reason=Reason.BAD_SIGNATURE) from error
    if not isinstance(public, Ed25519PublicKey):
        raise IntegrityError("the peer's certificate has no Ed25519 key", reason=Reason.BAD_SIGNATURE)
    return NodeKey(check_public(public.public_bytes_raw()))
