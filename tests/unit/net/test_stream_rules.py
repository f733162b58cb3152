"""The numbered rules of the stream layer, one by one, without I/O."""

from __future__ import annotations

import pytest

from p2pgrid.errors import MalformedError
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.frames import HEADER, FrameKind, pack, pack_number, pack_reason
from p2pgrid.net.streams import INITIAL_WINDOW_BYTES, Multiplexer

LIMITS = Limits(streams_per_connection=2, bulk_write_bytes=INITIAL_WINDOW_BYTES)


def data(stream: int, size_bytes: int) -> bytes:
    return HEADER.pack(size_bytes, stream, FrameKind.DATA) + b"d" * size_bytes


def opened(stream: int, extra: int = 0) -> bytes:
    return pack_number(FrameKind.OPEN, stream, extra)


def accepting(*, trusted: bool = False) -> Multiplexer:
    mux = Multiplexer(LIMITS, dialled=False)
    if trusted:
        mux.trust()
    return mux


def feed(mux: Multiplexer, *pieces: bytes) -> list[int]:
    return [int(frame.kind) for frame in mux.receive(b"".join(pieces))]


@pytest.mark.parametrize(
    "pieces",
    [
        [opened(1), data(1, INITIAL_WINDOW_BYTES), data(1, 1)],
        [opened(1), pack(FrameKind.FINISH, 1), data(1, 1)],
        [opened(1), pack(FrameKind.FINISH, 1), pack(FrameKind.FINISH, 1)],
        [opened(2)],
        [opened(0)],
        [opened(1), opened(1)],
        [opened(5), opened(3)],
        [data(1, 1)],
        [data(2, 1)],
        [opened(1, 2**31 + 1)],
        [opened(1), pack_number(FrameKind.WINDOW, 1, 2**31), pack_number(FrameKind.WINDOW, 1, 2**31)],
        [opened(1), HEADER.pack(INITIAL_WINDOW_BYTES + 1, 1, FrameKind.DATA)],
        [opened(1), HEADER.pack(0, 1, FrameKind.DATA)],
        [opened(1), HEADER.pack(0, 1, 9)],
        [opened(1), pack_reason(FrameKind.RESET, 1, "strange reason!")],
        [pack_reason(FrameKind.CLOSE, 1, "closed")],
    ],
)
def test_a_peer_that_breaks_a_rule_is_malformed(pieces: list[bytes]) -> None:
    with pytest.raises(MalformedError):
        feed(accepting(), *pieces)


def test_exactly_a_window_is_accepted_and_more_after_it_was_granted() -> None:
    mux = accepting(trusted=True)
    assert feed(mux, opened(1), data(1, INITIAL_WINDOW_BYTES)) == [FrameKind.OPEN, FrameKind.DATA]
    grant = HEADER.unpack_from(b"".join(mux.output(1)))
    assert grant == (4, 1, FrameKind.WINDOW)
    rest = LIMITS.stream_window_bytes - INITIAL_WINDOW_BYTES
    for _ in range(rest // INITIAL_WINDOW_BYTES):
        feed(mux, data(1, INITIAL_WINDOW_BYTES))
    with pytest.raises(MalformedError, match="window"):
        feed(mux, data(1, 1))


@pytest.mark.parametrize(("trusted", "allowed"), [(False, 1), (True, 2)])
def test_streams_over_the_limit_are_reset_and_the_rest_goes_on(trusted: bool, allowed: int) -> None:
    mux = accepting(trusted=trusted)
    feed(mux, *(opened(1 + 2 * n) for n in range(allowed)))
    mux.output(1)
    over = 1 + 2 * allowed
    assert feed(mux, opened(over), data(over, 5), data(1, 3)) == [FrameKind.DATA]
    assert b"".join(mux.output(1)) == pack_reason(FrameKind.RESET, over, Reason.BUSY)
    assert mux.count() == allowed


def test_a_sender_never_has_more_in_flight_than_granted() -> None:
    mux = Multiplexer(LIMITS, dialled=True)
    state = mux.open()
    mux.send(state, b"s" * (INITIAL_WINDOW_BYTES + 100))
    mux.finish(state)
    first = b"".join(mux.output(1 << 20))
    assert first == opened(1) + HEADER.pack(INITIAL_WINDOW_BYTES, 1, FrameKind.DATA) + b"s" * INITIAL_WINDOW_BYTES
    assert not mux.has_output()
    feed(mux, pack_number(FrameKind.WINDOW, 1, 60))
    assert b"".join(mux.output(1 << 20)) == HEADER.pack(60, 1, FrameKind.DATA) + b"s" * 60
    feed(mux, pack_number(FrameKind.WINDOW, 1, 1000))
    assert b"".join(mux.output(1 << 20)) == HEADER.pack(40, 1, FrameKind.DATA) + b"s" * 40 + pack(FrameKind.FINISH, 1)


def test_the_first_stream_goes_before_bulk_and_bulk_streams_take_turns() -> None:
    mux = Multiplexer(LIMITS, dialled=True)
    mux.trust()
    first = mux.open()
    second = mux.open()
    mux.output(1)
    mux.send(second, b"b" * 10)
    mux.send(first, b"a" * 10)
    sent = b"".join(mux.output(1 << 20))
    assert sent.index(b"a" * 10) < sent.index(b"b" * 10)


def test_closing_sends_what_is_queued_before_the_goodbye() -> None:
    mux = Multiplexer(LIMITS, dialled=True)
    state = mux.open()
    mux.send(state, b"last words")
    mux.close(Reason.SHUTDOWN)
    sent = b"".join(mux.output(1))
    assert sent.endswith(pack_reason(FrameKind.CLOSE, 0, Reason.SHUTDOWN))
    assert b"last words" in sent
