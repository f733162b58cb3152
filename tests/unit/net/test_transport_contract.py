"""What every transport must do, run over memory, TLS, and TLS on uvloop."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid import errors
from p2pgrid.errors import BadDataError, ConfigError, IntegrityError, P2PGridError, RefusedError, TryAgainError, UnreachableError
from p2pgrid.model.limits import Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.messages import PROTOCOL_MAX
from p2pgrid.net.rpc import Session
from tests.unit.net.net_world import Node, Text, World, on_every_transport, on_tls, until

FAST = Limits(heartbeat_s=0.1, dead_after_s=0.4, dial_s=1.0, call_s=2.0, unauthenticated_s=2.0)


def echo(_: Session, request: Text) -> Text:
    return request


async def _drain(stream: Stream) -> None:
    while await stream.read(1 << 20):
        pass


async def pair(world: World, limits: Limits | None = None) -> tuple[Node, Node, Session]:
    one, other = await world.node(1, limits=limits), await world.node(2, limits=limits)
    other.methods.on("echo", Text, echo)
    one.methods.on("echo", Text, echo)
    return one, other, await one.to(other)


@on_every_transport
async def test_a_call_is_answered(world: World) -> None:
    one, other, session = await pair(world)
    assert (await session.call("echo", Text(b"hello", 7), Text)) == Text(b"hello", 7)
    await until(lambda: len(other.opened) == 1)
    back = other.opened[0]
    assert back.peer == one.id
    assert (await back.call("echo", Text(b"back"), Text)).text == b"back"
    assert session.path().kind == ("simulated" if world.kind == "memory" else "direct")
    await until(lambda: session.path().rtt_s > 0)


@on_every_transport
async def test_a_thousand_concurrent_calls_are_each_given_their_own_answer(world: World) -> None:
    _, _, session = await pair(world)
    answers = await asyncio.gather(*(session.call("echo", Text(b"x" * (n % 300), n), Text) for n in range(1000)))
    assert [answer.number for answer in answers] == list(range(1000))


@on_every_transport
async def test_large_messages_take_streams_of_their_own(world: World) -> None:
    _, _, session = await pair(world)
    for size_bytes in (65_000, 65_536, 70_000, 3_000_000):
        answer = await session.call("echo", Text(b"y" * size_bytes), Text)
        assert answer.text == b"y" * size_bytes
    many = await asyncio.gather(*(session.call("echo", Text(bytes([n]) * 200_000), Text) for n in range(30)))
    assert [answer.text[0] for answer in many] == list(range(30))
    with pytest.raises(BadDataError, match="over the limit"):
        await session.call("echo", Text(b"z" * 9_000_000), Text)
    assert (await session.call("echo", Text(b"still"), Text)).text == b"still"


@on_every_transport
async def test_a_long_transfer_arrives_whole_and_waits_for_a_slow_reader(world: World) -> None:
    one, other, session = await pair(world)
    total_bytes, chunk = 64 << 20, bytes(range(256)) * 1024
    sent = 0

    async def give(_: Session, request: Text, stream: Stream) -> None:
        nonlocal sent
        while sent < total_bytes:
            await stream.write(chunk)
            sent += len(chunk)

    other.methods.on_stream("give", Text, give)
    stream = await session.open_stream("give", Text())
    stream.finish()
    first = await stream.read(1000)
    await session.call("echo", Text(), Text)
    await session.call("echo", Text(), Text)
    # Nobody reads: what is under way is bounded by windows, not by the size of the transfer.
    assert sent <= 4 * Limits().stream_window_bytes
    got, matches = len(first), first == chunk[:1000]
    while data := await stream.read(1 << 18):
        matches = matches and data[:8] == (chunk + chunk)[got % len(chunk) :][:8][: len(data)]
        got += len(data)
    assert matches
    assert got == total_bytes
    assert one.pool.live(other.id) is session


@on_every_transport
async def test_bytes_flow_both_ways_on_one_stream(world: World) -> None:
    _, other, session = await pair(world)

    async def upper(_: Session, request: Text, stream: Stream) -> None:
        while data := await stream.read(1 << 16):
            await stream.write(data.upper())

    other.methods.on_stream("upper", Text, upper)
    stream = await session.open_stream("upper", Text())
    await stream.write(b"some words")
    stream.finish()
    got = b""
    while data := await stream.read(4):
        got += data
    assert got == b"SOME WORDS"
    await until(lambda: session.idle)


@on_every_transport
async def test_an_unknown_method_is_unsupported(world: World) -> None:
    _, _, session = await pair(world)
    with pytest.raises(RefusedError) as caught:
        await session.call("no-such", Text(), Text)
    assert caught.value.reason == Reason.UNSUPPORTED
    stream = await session.open_stream("no-such", Text())
    with pytest.raises(UnreachableError) as ended:
        await stream.read(1)
    assert ended.value.reason == Reason.UNSUPPORTED
    assert (await session.call("echo", Text(b"on"), Text)).text == b"on"


@on_every_transport
async def test_errors_of_a_handler_cross_as_themselves(world: World) -> None:
    _, other, session = await pair(world)
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, P2PGridError) and kind not in (P2PGridError, errors.RemoteError)
    ]

    def fail(_: Session, request: Text) -> Text:
        raise kinds[request.number]("the message", hint="a hint", reason=Reason.NO_BLOB)

    async def fail_later(_: Session, request: Text) -> Text:
        await asyncio.sleep(0)
        return fail(_, request)

    other.methods.on("fail", Text, fail)
    other.methods.on("fail-later", Text, fail_later)
    assert len(kinds) > 8
    for number, kind in enumerate(kinds):
        for method in ("fail", "fail-later"):
            with pytest.raises(kind) as caught:
                await session.call(method, Text(number=number), Text)
            assert type(caught.value) is kind
            assert (caught.value.message, caught.value.hint, caught.value.reason) == ("the message", "a hint", "no-blob")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@on_every_transport
async def test_a_bug_in_a_handler_is_told_without_details(world: World) -> None:
    _, other, session = await pair(world)

    def bug(_: Session, request: Text) -> Text:
        raise ValueError("a secret detail")

    async def late_bug(_: Session, request: Text) -> Text:
        raise KeyError("a secret detail")

    other.methods.on("bug", Text, bug)
    other.methods.on("late-bug", Text, late_bug)
    for method in ("bug", "late-bug"):
        with pytest.raises(TryAgainError) as caught:
            await session.call(method, Text(), Text)
        assert caught.value.reason == Reason.BUG
        assert "secret" not in str(caught.value)


@on_every_transport
async def test_a_body_of_the_wrong_form_is_malformed_and_nothing_else_breaks(world: World) -> None:
    _, _, session = await pair(world)

    class Other(Text, frozen=True, array_like=True):
        pass

    wrong = Other(text=["no", "bytes"])  # type: ignore[arg-type]
    with pytest.raises(errors.MalformedError):
        await session.call("echo", wrong, Text)
    assert (await session.call("echo", Text(b"fine"), Text)).text == b"fine"


@on_every_transport
async def test_roles_and_the_owner_are_checked(world: World) -> None:
    one, other, session = await pair(world)
    other.methods.on("for-workers", Text, echo, role="work")
    other.methods.on("for-owner", Text, echo, owner_only=True)
    with pytest.raises(RefusedError) as caught:
        await session.call("for-workers", Text(), Text)
    assert caught.value.reason == Reason.NO_ROLE
    with pytest.raises(RefusedError) as caught:
        await session.call("for-owner", Text(), Text)
    assert caught.value.reason == Reason.OWNER_ONLY
    assert one.id != other.id


@on_tls
async def test_the_holder_of_the_nodes_own_key_is_its_owner_and_no_peer(world: World) -> None:
    node = await world.node(1)
    node.methods.on("for-owner", Text, echo, owner_only=True)
    shells = [Node(world, 1, Limits(), grid=b"?" * 32) for _ in range(2)]
    for shell in shells:
        session = await shell.pool.session(node.id, node.addresses)
        assert (await session.call("for-owner", Text(b"mine"), Text)).text == b"mine"
    assert node.pool.sessions() == []
    assert len(node.opened) == 2
    for shell in shells:
        await shell.pool.close()
    await until(lambda: len(node.closed) == 2)


@on_every_transport
async def test_calls_over_the_limit_of_a_peer_are_busy(world: World) -> None:
    _, other, session = await pair(world, Limits(requests_per_peer=4))
    release = asyncio.Event()

    async def wait(_: Session, request: Text) -> Text:
        await release.wait()
        return request

    other.methods.on("wait", Text, wait)
    calls = [asyncio.ensure_future(session.call("wait", Text(number=n), Text)) for n in range(6)]
    await session.call("echo", Text(), Text)
    release.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Text] * 4 + [TryAgainError] * 2
    assert isinstance(answers[-1], TryAgainError)
    assert answers[-1].reason == Reason.BUSY


@on_every_transport
async def test_a_call_times_out_and_a_late_answer_is_dropped(world: World) -> None:
    _, other, session = await pair(world)
    release, answered = asyncio.Event(), asyncio.Event()

    async def wait(_: Session, request: Text) -> Text:
        await release.wait()
        answered.set()
        return request

    other.methods.on("wait", Text, wait)
    with pytest.raises(TryAgainError) as caught:
        await session.call("wait", Text(), Text, timeout_s=0.05)
    assert caught.value.reason == Reason.TIMEOUT
    release.set()
    await answered.wait()
    assert (await session.call("echo", Text(b"next"), Text)).text == b"next"
    assert session.idle


@on_every_transport
async def test_a_cancelled_call_leaves_the_connection_usable(world: World) -> None:
    _, other, session = await pair(world)
    release = asyncio.Event()

    async def wait(_: Session, request: Text) -> Text:
        await release.wait()
        return request

    other.methods.on("wait", Text, wait)
    for payload in (b"small", b"large" * 50_000):
        call = asyncio.ensure_future(session.call("wait", Text(payload), Text))
        await session.call("echo", Text(), Text)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    release.set()
    assert (await session.call("echo", Text(b"alive"), Text)).text == b"alive"
    await until(lambda: session.idle)


@on_every_transport
async def test_a_peer_that_closes_fails_the_calls_that_wait(world: World) -> None:
    one, other, session = await pair(world)

    async def leave(asker: Session, request: Text) -> Text:
        asker.close(Reason.SHUTDOWN)
        await asyncio.sleep(0)
        return request

    other.methods.on("leave", Text, leave)
    with pytest.raises(UnreachableError) as caught:
        await session.call("leave", Text(), Text)
    assert caught.value.reason == Reason.SHUTDOWN
    await until(lambda: one.closed == [Reason.SHUTDOWN])
    with pytest.raises(UnreachableError):
        await session.call("echo", Text(), Text)
    assert (await (await one.to(other)).call("echo", Text(b"again"), Text)).text == b"again"


@on_every_transport
async def test_notices_arrive_in_order(world: World) -> None:
    _, other, session = await pair(world)
    got: list[int] = []
    other.methods.on_notify("note", Text, lambda _, request: got.append(request.number))
    for number in range(500):
        session.notify("note", Text(number=number))
    session.notify("unknown", Text())
    await session.call("echo", Text(), Text)
    assert got == list(range(500))
    session.notify("note", Text(b"L" * 200_000, 500))
    await until(lambda: got[-1] == 500)


@on_every_transport
async def test_a_wrong_key_at_the_right_address_is_refused(world: World) -> None:
    one, other = await world.node(1), await world.node(2)
    third = Node(world, 3, Limits())
    expected = UnreachableError if world.kind == "memory" else IntegrityError
    with pytest.raises(expected) as caught:
        await one.pool.session(third.id, other.addresses)
    assert caught.value.reason == (Reason.TIMEOUT if world.kind == "memory" else Reason.WRONG_PEER)
    assert other.opened == []


@on_every_transport
async def test_both_sides_learn_why_a_hello_is_refused(world: World) -> None:
    home = await world.node(1)
    cases = [
        (await world.node(2, grid=b"h" * 32), Reason.OTHER_GRID),
        (await world.node(3, clock_ms=1_000_000 + 6 * 60 * 1000), Reason.CLOCK_OFF),
    ]
    strict = await world.node(4, refuse=RefusedError("no chain", reason=Reason.NOT_MEMBER, hint="join"))
    for stranger, reason in cases:
        for dialler, target in ((stranger, home), (home, stranger)):
            with pytest.raises(RefusedError) as caught:
                await dialler.to(target)
            assert caught.value.reason == reason
    for dialler, target in ((home, strict), (strict, home)):
        with pytest.raises(RefusedError) as caught:
            await dialler.to(target)
        assert (caught.value.reason, caught.value.hint) == (Reason.NOT_MEMBER, "join")
    assert home.opened == []
    assert PROTOCOL_MAX >= 1


@on_every_transport
async def test_a_silent_peer_is_given_up_in_time(world: World) -> None:
    if world.kind != "memory":
        return
    one, other, session = await pair(world, FAST)
    loop = asyncio.get_running_loop()
    await session.call("echo", Text(), Text)
    started_s = loop.time()
    world.network.kill(other.id)
    with pytest.raises(UnreachableError) as caught:
        await session.call("echo", Text(), Text, timeout_s=5)
    assert caught.value.reason == Reason.DEAD
    assert loop.time() - started_s < FAST.dead_after_s + 2 * FAST.heartbeat_s + 0.3
    assert one.closed == [Reason.DEAD]
    with pytest.raises(UnreachableError):
        await one.to(other)


@on_every_transport
async def test_an_idle_session_stays_alive_by_heartbeats(world: World) -> None:
    one, other, session = await pair(world, FAST)
    started_s = session.heard_s
    await until(lambda: session.heard_s - started_s > 2.5 * FAST.dead_after_s)
    assert session.live
    assert one.pool.sessions() == [session]
    assert other.closed == []


@on_tls
async def test_a_node_restarts_on_the_same_port_and_is_reached_again(world: World) -> None:
    one, other, session = await pair(world)
    place = other.addresses
    await other.pool.close()
    await until(lambda: not session.live)
    again = await world.node(2, port=place[0].port)
    again.methods.on("echo", Text, echo)
    assert again.addresses == place
    assert (await (await one.to(again)).call("echo", Text(b"back"), Text)).text == b"back"


@on_tls
async def test_a_port_in_use_is_a_config_error_with_a_hint(world: World) -> None:
    node = await world.node(1)
    with pytest.raises(ConfigError) as caught:
        await world.node(2, port=node.addresses[0].port)
    assert "--listen" in caught.value.hint


@on_tls
async def test_a_dead_address_is_unreachable_and_a_good_one_beside_it_is_found(world: World) -> None:
    one, other = await world.node(1), await world.node(2)
    dead = Address("tls", "127.0.0.1", 1)
    for hopeless in ((dead,), (Address("tls", "localhost", other.addresses[0].port),), (Address("carrier-pigeon", "127.0.0.1", 9),), ()):
        with pytest.raises(UnreachableError):
            await one.pool.session(other.id, hopeless)
    assert (await one.pool.session(other.id, (dead, *other.addresses))).live


@on_every_transport
async def test_simultaneous_dials_end_in_one_session_and_no_call_fails(world: World) -> None:
    one, other = await world.node(1, limits=FAST), await world.node(2, limits=FAST)
    for node in (one, other):
        node.methods.on("echo", Text, echo)

    async def calls(near: Node, far: Node) -> list[Text]:
        session = await near.to(far)
        return list(await asyncio.gather(*(session.call("echo", Text(number=n), Text) for n in range(20))))

    results = await asyncio.gather(calls(one, other), calls(other, one), calls(one, other))
    assert all([answer.number for answer in answers] == list(range(20)) for answers in results)
    await until(lambda: len(one.opened) - len(one.closed) == 1 == len(other.opened) - len(other.closed))
    left, right = one.pool.live(other.id), other.pool.live(one.id)
    assert left is not None
    assert right is not None
    assert left.connection.dialled != right.connection.dialled
    if len(one.opened) == 2:
        assert left.connection.dialled == (one.id < other.id)
    assert (await left.call("echo", Text(b"!"), Text)).text == b"!"


@on_every_transport
async def test_concurrent_requests_for_a_session_share_one_dial(world: World) -> None:
    one, other = await world.node(1), await world.node(2)
    sessions = await asyncio.gather(*(one.to(other) for _ in range(50)))
    assert len(set(map(id, sessions))) == 1
    assert len(one.opened) == 1


@on_every_transport
async def test_a_restarted_peer_replaces_its_dead_sessions(world: World) -> None:
    home = await world.node(1)
    old = await world.node(2, instance=b"first")
    await old.to(home)
    await until(lambda: len(home.opened) == 1)
    world.network.kill(old.id)
    new = await world.node(2, instance=b"second")
    await new.to(home)
    await until(lambda: len(home.opened) == 2)
    assert home.closed == [Reason.DEAD]
    assert home.pool.sessions() == [home.opened[1]]


@on_every_transport
async def test_over_the_limit_the_idle_session_used_least_recently_is_closed(world: World) -> None:
    hub = await world.node(1, limits=Limits(connections=2))
    release = asyncio.Event()

    async def wait(_: Session, request: Text) -> Text:
        await release.wait()
        return request

    leaves = [await world.node(seed) for seed in (2, 3, 4, 5)]
    for leaf in leaves:
        leaf.methods.on("echo", Text, echo)
        leaf.methods.on("wait", Text, wait)
    first, second = await hub.to(leaves[0]), await hub.to(leaves[1])
    loop = asyncio.get_running_loop()
    await until(lambda: loop.time() > second.used_s)
    await first.call("echo", Text(), Text)
    third = await hub.to(leaves[2])
    assert (first.live, second.live, third.live) == (True, False, True)
    assert hub.closed == [Reason.IDLE]
    calls = [asyncio.ensure_future(session.call("wait", Text(), Text)) for session in (first, third)]
    await first.call("echo", Text(), Text)
    with pytest.raises(TryAgainError) as caught:
        await hub.to(leaves[3])
    assert caught.value.reason == Reason.TOO_MANY
    release.set()
    await asyncio.gather(*calls)


@on_every_transport
async def test_closing_while_calls_and_streams_are_open_is_quick_and_leaves_nothing(world: World) -> None:
    one, other, session = await pair(world)

    async def forever(_: Session, request: Text) -> Text:
        await asyncio.Event().wait()
        return request

    async def pour(_: Session, request: Text, stream: Stream) -> None:
        while True:
            await stream.write(b"w" * 100_000)

    other.methods.on("forever", Text, forever)
    other.methods.on_stream("pour", Text, pour)
    calls = [asyncio.ensure_future(session.call("forever", Text(), Text)) for _ in range(10)]
    stream = await session.open_stream("pour", Text())
    assert await stream.read(1000)
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    await other.pool.close()
    await one.pool.close()
    assert loop.time() - started_s < 4
    assert all(isinstance(end, UnreachableError) for end in await asyncio.gather(*calls, return_exceptions=True))
    with pytest.raises(UnreachableError):
        await _drain(stream)
    with pytest.raises(UnreachableError):
        await one.to(other)
