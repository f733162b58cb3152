"""Whatever bytes come, the frame and message parsers give the same answer however they are cut, or MalformedError."""

from __future__ import annotations

import asyncio
import random
from itertools import groupby

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import MalformedError
from p2pgrid.model.limits import Limits
from p2pgrid.net.frames import HEADER, FrameKind, FrameReader, pack, pack_number, pack_reason
from p2pgrid.net.memory import MemoryNetwork
from p2pgrid.net.messages import Message, MessageReader, Ping, Request, append_message, raw
from p2pgrid.net.streams import INITIAL_WINDOW_BYTES, Multiplexer
from tests.unit.net.net_world import Text, World, run_on

MAX_BYTES = 300


def valid_frame(kind: int, stream: int, size_bytes: int) -> bytes:
    if kind == FrameKind.DATA:
        return HEADER.pack(size_bytes + 1, stream, kind) + b"d" * (size_bytes + 1)
    if kind in (FrameKind.OPEN, FrameKind.WINDOW):
        return pack_number(FrameKind(kind), stream, size_bytes)
    if kind == FrameKind.FINISH:
        return pack(FrameKind.FINISH, stream)
    return pack_reason(FrameKind(kind), stream, "closed")


frames = st.builds(valid_frame, st.integers(0, 5), st.integers(0, 6), st.integers(0, MAX_BYTES - 1))
inputs = st.lists(frames | st.binary(max_size=20), max_size=12).map(b"".join)


def parse(pieces: list[bytes]) -> list[tuple[int, int, bytes]]:
    """All frames, with pieces of one stream's data joined, and a last mark when the input was malformed."""
    reader = FrameReader(MAX_BYTES)
    got: list[tuple[int, int, bytes]] = []
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                got.append((frame.kind, frame.stream, frame.payload))  # noqa: PERF401 - what came before a failure counts
    except MalformedError:
        got.append((-1, 0, b""))
    merged: list[tuple[int, int, bytes]] = []
    for (kind, stream), group in groupby(got, key=lambda frame: frame[:2]):
        members = [frame[2] for frame in group]
        merged += [(kind, stream, b"".join(members))] if kind == FrameKind.DATA else [(kind, stream, member) for member in members]
    return merged


@given(inputs, st.integers(0, 2**32))
def test_frames_do_not_depend_on_how_the_bytes_are_cut(data: bytes, seed: int) -> None:
    rng = random.Random(seed)
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert parse([data]) == parse([data[i : i + 1] for i in range(len(data))]) == parse(pieces)


@given(st.lists(inputs, max_size=6), st.booleans())
def test_a_multiplexer_takes_any_bytes_or_raises_malformed(pieces: list[bytes], dialled: bool) -> None:
    limits = Limits(streams_per_connection=3)
    mux = Multiplexer(limits, dialled=dialled)
    mux.trust()
    own = mux.open()
    mux.send(own, b"x" * 100_000)
    try:
        for piece in pieces:
            for _ in mux.receive(piece):
                pass
            mux.output(1 << 20)
            assert mux.count() <= 1 + limits.streams_per_connection
    except MalformedError:
        pass


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_two_multiplexers_carry_every_byte_in_order_within_the_windows(seed: int) -> None:
    rng = random.Random(seed)
    limits = Limits(stream_window_bytes=100_000, bulk_write_bytes=30_000)
    left, right = Multiplexer(limits, dialled=True), Multiplexer(limits, dialled=False)
    left.trust()
    right.trust()
    states = [left.open() for _ in range(5)]
    sent = {state.id: rng.randbytes(rng.randrange(400_000)) for state in states}
    got: dict[int, bytearray] = {state.id: bytearray() for state in states}
    unread = dict.fromkeys(got, 0)
    for state in states:
        left.send(state, sent[state.id])
        left.finish(state)
    finished: set[int] = set()
    for _ in range(2000):
        data = b"".join(left.output(rng.randrange(1, 100_000)))
        for start in range(0, len(data), 7001):
            for frame in right.receive(data[start : start + 7001]):
                if frame.kind == FrameKind.DATA:
                    got[frame.stream] += frame.payload
                    unread[frame.stream] += len(frame.payload)
                    assert unread[frame.stream] <= limits.stream_window_bytes
                elif frame.kind == FrameKind.FINISH:
                    finished.add(frame.stream)
        for stream_id, waiting in unread.items():
            state_here = right.state(stream_id)
            if state_here is not None and rng.random() < 0.5:
                take = rng.randrange(waiting + 1)
                unread[stream_id] -= take
                right.took(state_here, take)
        for _frame in left.receive(b"".join(right.output(1 << 20))):
            pass
        if len(finished) == len(states):
            break
    assert {key: bytes(value) for key, value in got.items()} == sent
    assert INITIAL_WINDOW_BYTES <= limits.stream_window_bytes


def read_messages(pieces: list[bytes]) -> list[bytes | str]:
    reader = MessageReader(500)
    got: list[bytes | str] = []
    try:
        for piece in pieces:
            for message in reader.feed(piece):
                got.append(shown(message))  # noqa: PERF401 - what came before a failure counts
    except MalformedError:
        got.append("malformed")
    return got


def shown(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


def framed(number: int, body: bytes) -> bytes:
    out = bytearray()
    append_message(out, Ping(number) if number % 2 else Request(number, "m", raw([body])))
    return bytes(out)


messages = st.builds(framed, st.integers(0, 99), st.binary(max_size=600))


@given(st.lists(messages | st.binary(max_size=12), max_size=8).map(b"".join))
def test_messages_do_not_depend_on_how_the_bytes_are_cut(data: bytes) -> None:
    assert read_messages([data]) == read_messages([data[i : i + 1] for i in range(len(data))])


def test_random_bytes_on_a_connection_leave_the_other_connections_unharmed() -> None:
    async def scenario(world: World) -> None:
        rng = random.Random(11)
        node, friend, hostile = await world.node(1), await world.node(2), await world.node(3)
        node.methods.on("echo", Text, lambda _, request: request)
        session = await friend.to(node)
        assert isinstance(world.network, MemoryNetwork)
        for _ in range(40):
            connection = await hostile.transport.dial(node.id, node.addresses, 1.0)
            connection._pipe.send([rng.randbytes(rng.randrange(1, 300))])
            await asyncio.sleep(0)
            connection.close("closed")
            assert (await session.call("echo", Text(b"ok"), Text)).text == b"ok"

    run_on("memory", scenario)
