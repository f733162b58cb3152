"""The flooder: a member that asks too much, leaves streams lying, and sends garbage of every kind.

Honest nodes must refuse it with reasons (``busy``, ``malformed``, ``unsupported``, ...), drop its datagrams, close its
connections, and serve everybody else meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from p2pgrid.dht.messages import FindNode, FindValue, Ping, Sample, Walk
from p2pgrid.errors import P2PGridError
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.connection import MuxConnection
from p2pgrid.net.frames import HEADER, FrameKind
from p2pgrid.net.messages import LENGTH
from p2pgrid.net.rpc import Session
from p2pgrid.testing.hostile.adversary import Adversary, Target
from p2pgrid.wire.messages import (
    BlobInfo,
    BlobRead,
    BlobRequest,
    BlobWrite,
    JobReadReply,
    JobReadRequest,
    NodeStatus,
    PullReply,
    PullRequest,
    StatusRequest,
)
from p2pgrid.wire.messages import Message as Body

STREAMS_HELD = 256
SEEN_MAX = 128
GARBAGE_BYTES_MAX = 600
DAY_MS = 86_400_000


class Nonsense(Body, frozen=True):
    """A body that fits no method."""

    one: Any = None
    other: Any = None


class Flooder(Adversary):
    """See the module."""

    kind = "flood"

    def prepare(self) -> None:
        self._streams: deque[Stream] = deque(maxlen=STREAMS_HELD)
        self._seen: deque[bytes] = deque(maxlen=SEEN_MAX)
        self._ways: tuple[tuple[float, str, Callable[[Target], None]], ...] = (
            (0.45, "request", self._request),
            (0.15, "stream", lambda target: self._try(self._leave_stream(target))),
            (0.10, "garbage", lambda target: self._try(self._garbage(target))),
            (0.05, "long", lambda target: self._try(self._long(target))),
            (0.10, "datagram", self._garbage_datagram),
            (0.10, "question", self._question),
            (0.05, "silent", lambda target: self._try(self._silent(target))),
        )

    def on_datagram(self, data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> None:
        if not self._seen or self.rng.random() < 0.1:
            self._seen.append(data)

    def on_arrived(self, data: bytes, place: Any) -> None:
        self._seen.append(data)

    def attack(self) -> None:
        target = self.target()
        if target is None:
            return
        weights = [way[0] for way in self._ways]
        _, name, way = self.rng.choices(self._ways, weights)[0]
        self.sent[name] += 1
        way(target)

    def _try(self, work: Any) -> None:
        if not self.spawn(work):
            self.sent["skipped"] += 1

    # -- requests ------------------------------------------------------------------------

    def _request(self, target: Target) -> None:
        rng = self.rng
        job, blob, odd = rng.randbytes(32), rng.randbytes(32), rng.randbytes(rng.randrange(64))
        method, body, reply = rng.choice(
            [
                ("node.status", StatusRequest(), NodeStatus),
                ("job.read", JobReadRequest(job, rng.getrandbits(40)), JobReadReply),
                ("job.pull", PullRequest(job, 1 << 40, 1 << 40, True), PullReply),
                ("blob.info", BlobRequest(blob), BlobInfo),
                ("blob.info", BlobRequest(odd), BlobInfo),
                ("own.leave", Nonsense(), NodeStatus),
                ("job.delta", Nonsense(odd, [odd]), NodeStatus),
                ("job.deliver", Nonsense(7, {"a": odd}), NodeStatus),
                ("no.such", Nonsense(odd), NodeStatus),
            ]
        )
        self._try(self.call(target, method, body, reply))

    # -- streams and frames ------------------------------------------------------------------

    async def _leave_stream(self, target: Target) -> None:
        """Open a stream and never say another word on it."""
        session = await self.session(target)
        rng = self.rng
        write = BlobWrite(rng.randbytes(32), rng.randrange(1, 1 << 22), self.host.wall_ms() + DAY_MS, False)
        method, body = rng.choice([("blob.write", write), ("blob.read", BlobRead(rng.randbytes(32), 0, 1)), ("own.put", Nonsense())])
        stream = await session.open_stream(method, body)
        if len(self._streams) == STREAMS_HELD:
            self._streams.popleft().reset(Reason.CLOSED)
        self._streams.append(stream)

    async def _garbage(self, target: Target) -> None:
        """Bytes that are no frames, no messages, or messages of no kind; before the hello or after it."""
        rng = self.rng
        junk = rng.randbytes(rng.randrange(1, GARBAGE_BYTES_MAX))
        way = rng.randrange(4)
        if way == 0:
            connection = await self.dial(target)
            stream = await connection.open()
            await self._say(stream, junk)
            connection.close(Reason.CLOSED)
        elif way == 1:
            connection = await self.dial(target)
            _raw(connection, junk)
            self._loop.call_later(1.0, connection.close, Reason.CLOSED)
        elif way == 2:
            stream = await (await self.session(target)).connection.open()
            await self._say(stream, rng.choice([b"\x00", b"\x01", b""]) + junk)
            stream.reset(Reason.CLOSED)
        else:
            body = encode_framed(junk)
            await self._break(target, lambda session: session._stream.write_nowait(body, flush=True))

    async def _long(self, target: Target) -> None:
        """Lengths that promise gigabytes."""
        rng = self.rng
        length = rng.choice([0xFFFFFFFF, 1 << 31, (64 << 10) + 1, 8 << 20])
        if rng.random() < 0.5:
            await self._break(target, lambda session: session._stream.write_nowait(LENGTH.pack(length) + b"\x90", flush=True))
        else:
            kind = rng.choice([int(FrameKind.DATA), int(FrameKind.OPEN), int(FrameKind.RESET), 77])
            frame = HEADER.pack(length, rng.getrandbits(16), kind)
            await self._break(target, lambda session: _raw(session.connection, frame))

    async def _break(self, target: Target, say: Callable[[Session], object]) -> None:
        """Say something after which the node must end the session: a session of its own, so that the others stay."""
        session = await self.open(target, self.hello)
        say(session)
        self._loop.call_later(1.0, session.close)

    async def _silent(self, target: Target) -> None:
        """Connect and say nothing: it takes the place of a stranger until the node loses its patience."""
        connection = await self.dial(target)
        await connection.wait_closed()

    async def _say(self, stream: Stream, data: bytes) -> None:
        if data:
            stream.write_nowait(data, flush=True)

    # -- datagrams ------------------------------------------------------------------------------

    def _garbage_datagram(self, target: Target) -> None:
        """Noise, or a datagram that was seen with some bytes changed."""
        rng = self.rng
        if self._seen and rng.random() < 0.7:
            raw = bytearray(rng.choice(self._seen))
            for _ in range(rng.randrange(1, 4)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            cut = rng.choice([len(raw), rng.randrange(1, len(raw) + 1)])
            self.datagram(target, bytes(raw[:cut]))
        else:
            self.datagram(target, rng.randbytes(rng.randrange(1, 1400)))

    def _question(self, target: Target) -> None:
        """Well-formed questions, more of them than anybody needs."""
        rng = self.rng
        questions = [
            Ping(),
            FindNode(rng.randbytes(20)),
            FindValue(rng.randbytes(20), rng.randrange(4)),
            Sample(),
            Walk(bytes(20), b"\xff" * 20),
        ]
        self.ask(target, rng.choice(questions))


def encode_framed(junk: bytes) -> bytes:
    """A message of the right length that decodes to nothing known."""
    return LENGTH.pack(len(junk)) + junk


def _raw(connection: object, data: bytes) -> None:
    """Put bytes below the stream layer, where only frames may be."""
    assert isinstance(connection, MuxConnection)
    with suppress(P2PGridError):
        connection._pipe.send([data])
