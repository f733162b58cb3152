"""Bytes from a worker, as they come: cut anywhere, spoilt anywhere."""

from __future__ import annotations

import asyncio
import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import MalformedError
from p2pgrid.model.values import decode_value, encode_value
from p2pgrid.runtimes.link import FrameLink
from p2pgrid.runtimes.worker import frames


def read_all(link: FrameLink) -> tuple[list[bytes], Exception | None]:
    bodies: list[bytes] = []
    try:
        while (body := link.take()) is not None:
            bodies.append(body)
    except (EOFError, MalformedError) as error:
        return bodies, error
    return bodies, None


@given(bodies=st.lists(st.binary(max_size=300), max_size=8), cuts=st.lists(st.integers(0, 2000), max_size=10))
def test_frames_survive_any_cutting(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frames.LENGTH.pack(len(body)) + body for body in bodies)
    link = FrameLink()
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    got: list[bytes] = []
    for start, end in itertools.pairwise(edges):
        link.data_received(stream[start:end])
        got += read_all(link)[0]
    assert got == bodies
    link.eof_received()
    assert isinstance(read_all(link)[1], EOFError)


@given(st.binary(max_size=4000))
def test_any_bytes_end_as_frames_or_as_malformed(data: bytes) -> None:
    link = FrameLink()
    link.frame_bytes_max = 1000
    link.data_received(data)
    bodies, error = read_all(link)
    assert all(len(body) <= 1000 for body in bodies)
    assert error is None or isinstance(error, MalformedError)
    if error is not None:
        link.data_received(data)
        assert read_all(link)[0] == []


@given(st.binary(max_size=500))
def test_any_frame_decodes_to_a_reply_or_to_a_known_error(body: bytes) -> None:
    try:
        reply = msgspec.msgpack.decode(body, type=frames.Reply)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return
    assert isinstance(reply, (frames.Ready, frames.LoadFailed, frames.Done))


@given(st.binary(max_size=500))
def test_any_payload_decodes_to_a_value_or_is_malformed(raw: bytes) -> None:
    try:
        value = decode_value(raw)
    except MalformedError:
        return
    del value


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_plain_values_come_back_equal(value: object) -> None:
    assert decode_value(encode_value(value)) == value


@given(st.sets(st.integers() | st.text(max_size=4) | st.binary(max_size=4), max_size=8), st.randoms())
def test_equal_sets_have_equal_bytes(members: set[object], chance: object) -> None:
    shuffled = list(members)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert encode_value(set(shuffled)) == encode_value(members) == encode_value([frozenset(members)])[1:]


def test_reading_pauses_while_nobody_takes() -> None:
    class Pipe(asyncio.Transport):
        paused = False

        def pause_reading(self) -> None:
            self.paused = True

        def resume_reading(self) -> None:
            self.paused = False

        def is_closing(self) -> bool:
            return False

    link, pipe = FrameLink(), Pipe()
    link.connection_made(pipe)
    body = bytes(400_000)
    for _ in range(3):
        link.data_received(frames.LENGTH.pack(len(body)) + body)
    assert pipe.paused
    assert len(read_all(link)[0]) == 3
    assert not pipe.paused
