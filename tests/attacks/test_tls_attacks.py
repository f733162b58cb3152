"""Who tries to pass for somebody else over TLS, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from p2pgrid.errors import IntegrityError, P2PGridError, UnreachableError
from p2pgrid.model.limits import Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net import certificates
from p2pgrid.net.tls import TlsTransport
from p2pgrid.wire.keys import SigningKey
from tests.unit.net.net_world import Node, Text, World, run_on, until

VICTIM, ATTACKER = SigningKey(b"V" * 32), SigningKey(b"M" * 32)
_PEM = serialization.Encoding.PEM


def key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def named_certificate(key: Ed25519PrivateKey, name: str, signer: Ed25519PrivateKey) -> x509.Certificate:
    """A certificate that claims any name, signed by anybody."""
    issuer = x509.load_der_x509_certificate(certificates.authority_certificate()).subject if signer is not key else None
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC))
        .sign(signer, None)
    )


def client_context(pem: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if pem is not None:
        certificates._load(context, pem)
    return context


async def knock(port: int, context: ssl.SSLContext) -> bytes:
    """Connect as a client and read until the server gives up on us."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"\0" * 9)
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


def test_an_impostor_with_its_own_key_is_refused_by_the_dialler() -> None:
    async def scenario(world: World) -> None:
        one, impostor = await world.node(1), await world.node(9)
        with pytest.raises(IntegrityError) as caught:
            await one.pool.session(Node(world, 2, Limits()).id, impostor.addresses)
        assert caught.value.reason == Reason.WRONG_PEER
        assert impostor.opened == []

    run_on("tls", scenario)


def test_a_certificate_that_claims_another_name_does_not_help_an_impostor() -> None:
    async def scenario(world: World) -> None:
        one, impostor = await world.node(1), await world.node(9)
        assert isinstance(impostor.transport, TlsTransport)
        authority = certificates.authority_key()
        named = named_certificate(ATTACKER.private, VICTIM.public.hex(), authority).public_bytes(_PEM)
        certificates._load(impostor.transport.server_context, named + key_pem(ATTACKER.private))
        with pytest.raises(IntegrityError) as caught:
            await one.pool.session(Node(world, 2, Limits()).id, impostor.addresses)
        assert caught.value.reason == Reason.WRONG_PEER

    run_on("tls", scenario)


def test_the_victims_certificate_cannot_be_used_with_another_key() -> None:
    certificate = certificates.pem("CERTIFICATE", certificates.node_certificate(VICTIM.public))
    with pytest.raises(ssl.SSLError):
        client_context(certificate + key_pem(ATTACKER.private))


@pytest.mark.parametrize("showing", ["nothing", "self-signed", "stranger-ca"])
def test_a_client_without_a_good_certificate_is_refused(showing: str) -> None:
    async def scenario(world: World) -> None:
        node = await world.node(1)
        pem: bytes | None = None
        if showing != "nothing":
            signer = ATTACKER.private if showing == "self-signed" else Ed25519PrivateKey.from_private_bytes(b"c" * 32)
            pem = named_certificate(ATTACKER.private, "M", signer).public_bytes(_PEM) + key_pem(ATTACKER.private)
        with pytest.raises((ssl.SSLError, OSError)):
            await knock(node.addresses[0].port, client_context(pem))
        assert node.opened == []
        assert isinstance(node.transport, TlsTransport)
        await until(lambda: not node.transport.pipes)

    run_on("tls", scenario)


def test_tls_1_2_is_refused() -> None:
    async def scenario(world: World) -> None:
        node = await world.node(1)
        context = client_context(None)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, OSError)):
            await knock(node.addresses[0].port, context)

    run_on("tls", scenario)


def test_a_client_that_claims_a_name_is_seen_as_its_own_key() -> None:
    async def scenario(world: World) -> None:
        node, attacker = await world.node(1), await world.node(9)
        assert isinstance(attacker.transport, TlsTransport)
        key = attacker.key.private
        named = named_certificate(key, VICTIM.public.hex(), certificates.authority_key()).public_bytes(_PEM)
        certificates._load(attacker.transport.client_context, named + key_pem(key))
        await attacker.to(node)
        await until(lambda: len(node.opened) == 1)
        assert node.opened[0].peer == attacker.id

    run_on("tls", scenario)


class Splice:
    """A proxy that sees every byte and may change some."""

    def __init__(self, target: Address, change: Callable[[bytes], bytes]) -> None:
        self.target = target
        self.change = change
        self.active = False
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Address:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return Address("tls", "127.0.0.1", self.server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self.target.host, self.target.port)
        self.tasks += [asyncio.ensure_future(self._pass(reader, back)), asyncio.ensure_future(self._pass(there, writer))]

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(self.change(data) if self.active else data)
        except OSError:
            pass
        finally:
            writer.close()


def test_a_splice_may_pass_bytes_on_but_one_flipped_bit_ends_the_connection() -> None:
    async def scenario(world: World) -> None:
        one, other = await world.node(1), await world.node(2)
        other.methods.on("echo", Text, lambda _, request: request)
        splice = Splice(other.addresses[0], lambda data: data[:-1] + bytes([data[-1] ^ 1]))
        async with splice as place:
            session = await one.pool.session(other.id, [place])
            assert (await session.call("echo", Text(b"whole"), Text)).text == b"whole"
            splice.active = True
            with pytest.raises(UnreachableError):
                await session.call("echo", Text(b"damaged"), Text)
            assert not session.live
            splice.active = False
            # The harm is to that connection alone.
            assert (await (await one.to(other)).call("echo", Text(b"direct"), Text)).text == b"direct"

    run_on("tls", scenario)


def test_strangers_are_few_and_are_dropped_in_time() -> None:
    async def scenario(world: World) -> None:
        limits = Limits(unauthenticated=3, unauthenticated_s=0.3)
        node, friend = await world.node(1, limits=limits), await world.node(2)
        writers = [(await asyncio.open_connection("127.0.0.1", node.addresses[0].port))[1] for _ in range(10)]
        assert isinstance(node.transport, TlsTransport)
        await until(lambda: len(node.transport.pipes) == 3)
        with pytest.raises(P2PGridError):
            await friend.to(node)
        await until(lambda: not node.transport.pipes)
        assert (await friend.to(node)).live
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    run_on("tls", scenario)


def test_a_member_key_that_never_says_hello_is_dropped_in_time() -> None:
    async def scenario(world: World) -> None:
        node = await world.node(1, limits=Limits(unauthenticated_s=0.3))
        silent = TlsTransport(ATTACKER)
        connection = await silent.dial(node.id, node.addresses, 2.0)
        async with asyncio.timeout(5):
            assert await connection.wait_closed() in (Reason.TIMEOUT, Reason.NOT_MEMBER)
        await silent.close()

    run_on("tls", scenario)


def test_calls_before_the_hello_and_oversize_frames_end_only_their_own_connection() -> None:
    async def scenario(world: World) -> None:
        node, friend = await world.node(1), await world.node(2)
        node.methods.on("echo", Text, lambda _, request: request)
        session = await friend.to(node)
        rude = TlsTransport(ATTACKER)
        attacks = [
            (9).to_bytes(4, "big") + bytes([0x94, 2, 1, 0xA4]) + b"echo\x90",
            (10 << 20).to_bytes(4, "big") + b"x" * 100,
            (5).to_bytes(4, "big") + b"\xc1\xc1\xc1\xc1\xc1",
        ]
        for attack in attacks:
            connection = await rude.dial(node.id, node.addresses, 2.0)
            stream = await connection.open()
            stream.write_nowait(attack)
            async with asyncio.timeout(5):
                assert await connection.wait_closed() == Reason.MALFORMED
        assert (await session.call("echo", Text(b"unharmed"), Text)).text == b"unharmed"
        await rude.close()

    run_on("tls", scenario)
