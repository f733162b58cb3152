"""Node certificates: how TLS proves that a peer holds its node key.

Python's ssl module has no verify callback and cannot ask for a client certificate without checking it.
So a certificate authority whose private key is *public* signs every node's certificate, and the
certificate's key is the node key. Both sides demand a certificate of this authority and nothing older
than TLS 1.3. The authority proves nothing; the handshake's CertificateVerify (RFC 8446, 4.4.3) proves that
the peer holds the key, and the key is then read out of the certificate. Names are never looked at.

A certificate is the same bytes wherever it is made: a fixed form with the key in its places, put together here. The library that
could do it for any form takes longer to import than a command takes otherwise; it reads what is of another form.

The dates run from 1970 to 9999, so that a node with a wrong clock connects and can be told so.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import ssl
import tempfile
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pgrid.errors import ConfigError, IntegrityError
from p2pgrid.model.ids import KEY_BYTES, NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.keys import SigningKey, check_public

_AUTHORITY_SEED = hashlib.blake2b(b"p2pgrid: this authority proves nothing, its key is public", digest_size=32).digest()
_AUTHORITY_NAME = "p2pgrid public authority"
_NODE_NAME = "p2pgrid node"
_NOT_BEFORE, _NOT_AFTER = b"700101000000Z", b"99991231235959Z"

# Tags and object identifiers of X.509 (RFC 5280) in their binary form (X.690).
_BOOLEAN, _INTEGER, _BITS, _OCTETS, _OBJECT, _TEXT, _UTC, _TIME, _SEQUENCE, _SET = 1, 2, 3, 4, 6, 12, 23, 24, 48, 49
_VERSION, _EXTENSIONS, _KEY_ID = 0xA0, 0xA3, 0x80
_ED25519, _COMMON_NAME = bytes.fromhex("2b6570"), bytes.fromhex("550403")
_SUBJECT_KEY, _KEY_USAGE, _CONSTRAINTS, _AUTHORITY_KEY = (bytes.fromhex(f"551d{number:02x}") for number in (14, 15, 19, 35))
_SIGNS, _SIGNS_CERTIFICATES = b"\7\x80", b"\1\6"
"""What a key is for: how many bits of the last byte are not used, and the bits."""
_KEY_HEAD = bytes.fromhex("302a300506032b6570032100")
"""Of an Ed25519 public key in a certificate; its 32 bytes follow."""
_SIGNATURE_BYTES = 74
"""Of the algorithm and the signature behind what is signed."""
_PRIVATE_KEY_HEAD = bytes.fromhex("302e020100300506032b657004220420")
"""Of an Ed25519 private key (RFC 8410); its 32 bytes follow."""


def _of(tag: int, *parts: bytes) -> bytes:
    """One value with its tag and its length, which is below 65,536."""
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 128 else b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


def _named(name: str) -> bytes:
    return _of(_SEQUENCE, _of(_SET, _of(_SEQUENCE, _of(_OBJECT, _COMMON_NAME), _of(_TEXT, name.encode()))))


def _extension(kind: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return _of(_SEQUENCE, _of(_OBJECT, kind), _of(_BOOLEAN, b"\xff") if critical else b"", _of(_OCTETS, value))


def _key_id(public: bytes) -> bytes:
    """The usual name of a key in certificates; nothing depends on it."""
    return hashlib.sha1(public, usedforsecurity=False).digest()


def _serial(public: bytes) -> bytes:
    """A positive serial number that is a function of the key, so that certificates are deterministic."""
    number = int.from_bytes(hashlib.blake2b(public, digest_size=16).digest(), "big") | 1
    return _of(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _unsigned(name: str, public: bytes, extensions: list[bytes]) -> bytes:
    algorithm = _of(_SEQUENCE, _of(_OBJECT, _ED25519))
    return _of(
        _SEQUENCE,
        _of(_VERSION, _of(_INTEGER, b"\2")),
        _serial(public),
        algorithm,
        _named(_AUTHORITY_NAME),
        _of(_SEQUENCE, _of(_UTC, _NOT_BEFORE), _of(_TIME, _NOT_AFTER)),
        _named(name),
        _of(_SEQUENCE, algorithm, _of(_BITS, b"\0", public)),
        _of(_EXTENSIONS, _of(_SEQUENCE, _extension(_SUBJECT_KEY, _of(_OCTETS, _key_id(public))), *extensions)),
    )


def _signed(unsigned: bytes) -> bytes:
    signature = authority_key().sign(unsigned)
    return _of(_SEQUENCE, unsigned, _of(_SEQUENCE, _of(_OBJECT, _ED25519)), _of(_BITS, b"\0", signature))


@lru_cache(maxsize=1)
def authority_key() -> Ed25519PrivateKey:
    """The private key that everybody has."""
    return Ed25519PrivateKey.from_private_bytes(_AUTHORITY_SEED)


@lru_cache(maxsize=1)
def authority_certificate() -> bytes:
    """The certificate of the public authority (DER), the same bytes on every node."""
    constraints = _of(_SEQUENCE, _of(_BOOLEAN, b"\xff"), _of(_INTEGER, b"\0"))
    extensions = [
        _extension(_CONSTRAINTS, constraints, critical=True),
        _extension(_KEY_USAGE, _of(_BITS, _SIGNS_CERTIFICATES), critical=True),
    ]
    return _signed(_unsigned(_AUTHORITY_NAME, authority_key().public_key().public_bytes_raw(), extensions))


def _unsigned_node(public: bytes) -> bytes:
    authority = _key_id(authority_key().public_key().public_bytes_raw())
    extensions = [
        _extension(_CONSTRAINTS, _of(_SEQUENCE), critical=True),
        _extension(_KEY_USAGE, _of(_BITS, _SIGNS), critical=True),
        _extension(_AUTHORITY_KEY, _of(_SEQUENCE, _of(_KEY_ID, authority))),
    ]
    return _unsigned(_NODE_NAME, public, extensions)


def node_certificate(public: bytes) -> bytes:
    """A certificate (DER) for a node key of 32 bytes. Anybody can make one for any key; only the holder can use it."""
    return _signed(_unsigned_node(public))


def pem(what: str, der: bytes) -> bytes:
    """DER as text, the form that OpenSSL reads from files."""
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (what.encode(), base64.encodebytes(der), what.encode())


def _load(context: ssl.SSLContext, chain: bytes) -> None:
    """Load key and certificate through a file that only this user can read and that is gone at once."""
    descriptor, path = tempfile.mkstemp(prefix="p2pgrid-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(chain)
        context.load_cert_chain(path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _context(protocol: int, chain: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority_certificate())
    _load(context, chain)
    return context


def contexts(key: SigningKey) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts (for accepting, for dialling) of a node. Raises ConfigError when no temporary file can be made."""
    chain = pem("CERTIFICATE", node_certificate(key.public)) + pem("PRIVATE KEY", _PRIVATE_KEY_HEAD + key.seed())
    try:
        server = _context(ssl.PROTOCOL_TLS_SERVER, chain)
        client = _context(ssl.PROTOCOL_TLS_CLIENT, chain)
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
    return NodeKey(check_public(_usual_key(encoded) or _other_key(encoded)))


def _usual_key(encoded: bytes) -> bytes:
    """The key in a certificate that is as this module makes them, else nothing. The handshake has checked its signature."""
    head = encoded.find(_KEY_HEAD)
    public = encoded[head + len(_KEY_HEAD) :][:KEY_BYTES]
    if head < 0 or len(public) != KEY_BYTES:
        return b""
    usual = _unsigned_node(public)
    return public if encoded[4:-_SIGNATURE_BYTES] == usual else b""


def _other_key(encoded: bytes) -> bytes:
    """The key in any other certificate. Raises IntegrityError."""
    from cryptography.x509 import load_der_x509_certificate

    try:
        public = load_der_x509_certificate(encoded).public_key()
    except Exception as error:  # The parser's exceptions are not one family; whatever it is, the certificate is unusable.
        raise IntegrityError("the peer's certificate does not parse", reason=Reason.BAD_SIGNATURE) from error
    if not isinstance(public, Ed25519PublicKey):
        raise IntegrityError("the peer's certificate has no Ed25519 key", reason=Reason.BAD_SIGNATURE)
    return public.public_bytes_raw()
