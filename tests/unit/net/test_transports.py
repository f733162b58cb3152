"""What is particular to each transport: sockets and certificates of TLS, faults of the memory network."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import tempfile
from pathlib import Path

import pytest
from cryptography import x509

from p2pgrid.errors import ConfigError, RefusedError, UnreachableError, UsageError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net import certificates
from p2pgrid.net.inbox import Inbox
from p2pgrid.net.memory import MemoryNetwork, MemoryTransport
from p2pgrid.net.messages import Bye, error_of, failure_of
from p2pgrid.net.sockets import addresses_of, is_numeric
from p2pgrid.net.tls import TlsTransport
from p2pgrid.wire.keys import SigningKey
from tests.unit.net.net_world import Text, World, run_on, until

ONE, OTHER = SigningKey(b"1" * 32), SigningKey(b"2" * 32)


def has_ipv6() -> bool:
    return addresses_of("::1") == ["::1"] and Path("/proc/net/if_inet6").exists()


def test_the_authority_is_the_same_on_every_node_and_outlives_every_clock() -> None:
    made = certificates.authority_certificate()
    certificates.authority_certificate.cache_clear()
    assert certificates.authority_certificate() == made
    authority = x509.load_der_x509_certificate(made)
    leaf = x509.load_der_x509_certificate(certificates.node_certificate(ONE.public))
    for certificate in (authority, leaf):
        assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (1970, 9999)
    assert leaf.public_key().public_bytes_raw() == ONE.public  # type: ignore[union-attr]
    leaf.verify_directly_issued_by(authority)


def test_making_contexts_leaves_no_key_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server, client = certificates.contexts(ONE)
    assert list(tmp_path.iterdir()) == []
    for context in (server, client):
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert server.num_tickets == 0


def test_an_unwritable_temporary_folder_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(ConfigError):
        certificates.contexts(ONE)


@pytest.mark.parametrize(
    ("host", "numeric"), [("127.0.0.1", True), ("::1", True), ("fe80::1%eth0", True), ("localhost", False), ("", False), ("1.2.3", False)]
)
def test_only_numeric_hosts_are_taken(host: str, numeric: bool) -> None:
    assert is_numeric(host) is numeric
    if not numeric:
        with pytest.raises(UsageError):
            TlsTransport(ONE, host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "127.0.0.1"])
async def test_each_kind_of_listening_address_can_be_dialled(host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    server, client = TlsTransport(ONE, host), TlsTransport(OTHER)
    await server.start()
    await client.start()
    assert client.addresses() == ()
    places = list(server.addresses())
    assert places
    assert all(is_numeric(place.host) and place.port for place in places)
    if host in ("0.0.0.0", "::"):
        places = [places[0]._replace(host="127.0.0.1")]
    connection = await client.dial(NodeKey(ONE.public), places, 3.0)
    accepted = await server.accept()
    assert (connection.peer, accepted.peer) == (ONE.public, OTHER.public)
    assert (connection.dialled, accepted.dialled) == (True, False)
    connection.close(Reason.CLOSED)
    assert await accepted.wait_closed() == Reason.CLOSED
    await client.close()
    await server.close()
    with pytest.raises(UnreachableError):
        await server.accept()


async def test_a_name_that_is_not_found_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of such an error is below 0, and no number of the system's errors."""

    async def fail(*args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail)
    client = TlsTransport(ONE)
    await client.start()
    with pytest.raises(UnreachableError, match=r"nobody answers at .*: Name or service not known$"):
        await client.dial(NodeKey(OTHER.public), [Address("tls", "fe80::1%none", 4000)], 3.0)
    await client.close()


def test_an_error_that_crossed_is_marked_and_its_code_is_no_member_of_the_registry() -> None:
    """What members of the registry say is of this node."""
    assert not RefusedError("here", reason=Reason.NO_ROLE).remote
    for crossed in (failure_of(1, RefusedError("there", reason=Reason.DISK_FULL)), Bye("RefusedError", Reason.DISK_FULL)):
        error = error_of(crossed)
        assert error.remote
        assert (error.reason, isinstance(error.reason, Reason)) == (Reason.DISK_FULL, False)


def test_a_cut_holds_bytes_until_it_heals() -> None:
    async def scenario(world: World) -> None:
        one, other = await world.node(1), await world.node(2)
        other.methods.on("echo", Text, lambda _, request: request)
        session = await one.to(other)
        world.network.cut(one.id, other.id)
        call = asyncio.ensure_future(session.call("echo", Text(b"late"), Text))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not call.done()
        world.network.heal(other.id, one.id)
        assert (await call).text == b"late"

    run_on("memory", scenario)


def test_dialling_across_a_cut_is_unreachable_in_time() -> None:
    async def scenario(world: World) -> None:
        limits = Limits(dial_s=0.1)
        one, other = await world.node(1, limits=limits), await world.node(2)
        world.network.cut(one.id, other.id)
        with pytest.raises(UnreachableError) as caught:
            await one.to(other)
        assert caught.value.reason == Reason.TIMEOUT

    run_on("memory", scenario)


def test_latency_delays_and_keeps_the_order() -> None:
    async def scenario(world: World) -> None:
        one, other = await world.node(1), await world.node(2)
        got: list[int] = []
        other.methods.on_notify("note", Text, lambda _, request: got.append(request.number))
        other.methods.on("echo", Text, lambda _, request: request)
        session = await one.to(other)
        world.network.latency_s, world.network.jitter_s = 0.02, 0.02
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        for number in range(50):
            session.notify("note", Text(number=number))
            await asyncio.sleep(0)
        await session.call("echo", Text(), Text)
        assert loop.time() - started_s >= 0.039
        assert got == list(range(50))

    run_on("memory", scenario)


async def test_a_key_is_in_the_network_once() -> None:
    network = MemoryNetwork(random.Random(1))
    first, second = MemoryTransport(network, NodeKey(b"k" * 32)), MemoryTransport(network, NodeKey(b"k" * 32))
    await first.start()
    with pytest.raises(ConfigError):
        await second.start()
    await first.close()
    await second.start()
    await second.close()


async def test_an_inbox_loses_nothing_when_a_reader_is_cancelled() -> None:
    inbox: Inbox[int] = Inbox()
    first, second = asyncio.ensure_future(inbox.get()), asyncio.ensure_future(inbox.get())
    await asyncio.sleep(0)
    inbox.put(1)
    first.cancel()
    assert await asyncio.wait_for(second, 1) == 1
    inbox.put(2)
    inbox.close(UnreachableError("over", reason=Reason.SHUTDOWN))
    with pytest.raises(UnreachableError):
        await inbox.get()


def test_streams_over_the_limit_wait_for_a_free_place() -> None:
    async def scenario(world: World) -> None:
        limits = Limits(streams_per_connection=4)
        one, other = await world.node(1, limits=limits), await world.node(2, limits=limits)
        other.methods.on("echo", Text, lambda _, request: request)
        session = await one.to(other)
        answers = await asyncio.gather(*(session.call("echo", Text(b"b" * 70_000, n), Text) for n in range(20)))
        assert [answer.number for answer in answers] == list(range(20))
        await until(lambda: session.idle)

    run_on("memory", scenario)
