"""A session: calls, notices and streams to one peer, over the first stream of a connection (docs/spec/transport.md).

1. Both sides say hello first. Nothing of a peer is acted on before its hello was accepted, and a session
   counts as open only when the peer has accepted ours: TLS 1.3 lets a dialler finish before it is refused.
2. One task reads the first stream. A handler that needs not wait is answered without another task.
3. Everything said in one tick of the loop leaves in one write.
4. A message over the limit of the first stream takes a stream of its own; callers do not notice.
5. Errors of our tree cross as themselves; anything else is a bug: logged here, ``bug`` there.
6. An answer that comes too late is dropped. Time-outs are swept by one timer, which runs only while calls wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import msgspec

from p2pgrid.errors import BadDataError, MalformedError, P2PGridError, TryAgainError, UnreachableError
from p2pgrid.model.ids import short
from p2pgrid.model.reasons import Reason
from p2pgrid.net import bulk
from p2pgrid.net.answering import Answerer
from p2pgrid.net.api import Connection, Path, Stream
from p2pgrid.net.hello import SessionSetup, judge
from p2pgrid.net.messages import (
    Bye,
    Failure,
    Hello,
    Member,
    Message,
    MessageReader,
    Notice,
    Ping,
    Pong,
    Reply,
    Request,
    StreamHeader,
    Welcome,
    append_message,
    bye_of,
    error_of,
    raw,
)
from p2pgrid.wire.codec import decode

_log = logging.getLogger("p2pgrid.net")

R = TypeVar("R", bound=msgspec.Struct)
M = TypeVar("M", bound=Message)

CALLS_MAX = 8192
"""Calls of this side that may wait for an answer at one time."""
_READ_BYTES = 64 * 1024
_SWEEP_S = 0.05
_RTT_MIN_S = 0.0001
"""A loop's clock may tick in milliseconds; 0 means that the round trip is unknown."""
_BULK_S = 60.0
_CLOSE_S = 2.0
_BACKLOG_BYTES = 4 << 20
_TASKS_MAX = 256


class _Waiting(NamedTuple):
    future: asyncio.Future[msgspec.Raw]
    deadline_s: float


class Session:
    """One live conversation with an authenticated, authorised peer. Made by :func:`open_session`."""

    def __init__(self, connection: Connection, stream: Stream, setup: SessionSetup) -> None:
        self.connection = connection
        self.peer = connection.peer
        self.hello: Hello | None = None
        """What the peer said first; set once it was accepted."""
        self.member = Member()
        self.opened_s = 0.0
        self.used_s = 0.0
        self.heard_s = 0.0
        self.calls_out = 0
        """Calls, notices and streams that this side began."""
        self.calls_in = 0
        """Those that the peer began."""
        self._setup = setup
        self._limits = setup.limits
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._reader = MessageReader(setup.limits.unauthenticated_bytes)
        self._out = bytearray()
        self._message_bytes_max = setup.limits.unauthenticated_bytes
        self._flush_due = False
        self._next_id = 0
        self._pending: dict[int, _Waiting] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._answerer = Answerer(self, setup.methods, setup.limits)
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended: P2PGridError | None = None
        self._on_end: list[Callable[[Session, str], None]] = []
        self._ping: tuple[int, float] | None = None
        self._rtt_s = 0.0
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Request: self._answerer.on_request,
            Reply: self._on_reply,
            Failure: self._on_failure,
            Notice: self._answerer.on_notice,
            Ping: self._on_ping,
            Pong: self._on_pong,
        }

    # Calling

    async def call(self, method: str, request: msgspec.Struct, reply: type[R], *, timeout_s: float | None = None) -> R:
        """Ask the peer and wait for the answer, at most ``timeout_s`` seconds (Limits.call_s when None).

        Raises what the peer's handler raised, UnreachableError when the connection ends, TryAgainError
        (``timeout``, ``busy``), MalformedError when the answer is no ``reply``, BadDataError (``too-large``).
        """
        self._check_open()
        if len(self._pending) >= CALLS_MAX:
            raise TryAgainError(f"too many calls to {short(self.peer)} wait for an answer", reason=Reason.BUSY)
        now_s = self._loop.time()
        deadline_s = now_s + (self._limits.call_s if timeout_s is None else timeout_s)
        self.used_s = now_s
        self.calls_out += 1
        self._next_id = call_id = self._next_id + 1
        future: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        try:
            if self._stream.unsent() + len(self._out) > _BACKLOG_BYTES:
                await self._drain(deadline_s)
            self._pending[call_id] = _Waiting(future, deadline_s)
            large = self.post(Request(call_id, method, raw(request)))
            if large:
                await self._send_large(large, deadline_s)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
            body = await future
        except BaseException:
            if future.done() and not future.cancelled():
                future.exception()  # It is told already; the loop need not complain that nobody looked.
            raise
        finally:
            self._pending.pop(call_id, None)
        return decode(body, reply)

    def notify(self, method: str, request: msgspec.Struct) -> None:
        """Tell the peer without waiting. Raises UnreachableError, or TryAgainError when too much is unsent."""
        self._check_open()
        if self._stream.unsent() + len(self._out) > _BACKLOG_BYTES:
            raise TryAgainError(f"too much is unsent to {short(self.peer)}", reason=Reason.BUSY)
        self.used_s = self._loop.time()
        self.calls_out += 1
        large = self.post(Notice(method, raw(request)))
        if large:
            self.spawn_bounded(self.send_quietly(large))

    async def open_stream(self, method: str, request: msgspec.Struct) -> Stream:
        """A fresh stream whose other end is served by ``method``. The caller ends it by ``finish`` or ``reset``.

        Raises UnreachableError, TryAgainError (``timeout``). A refusal is seen as the reason of the
        UnreachableError that the first read raises.
        """
        self._check_open()
        self.used_s = self._loop.time()
        self.calls_out += 1
        header = bulk.header_bytes(StreamHeader(method, raw(request)))
        if len(header) > self._limits.control_frame_bytes:
            raise BadDataError("the request that opens a stream is too large", reason=Reason.TOO_LARGE)
        try:
            async with asyncio.timeout(self._limits.call_s):
                stream = await self.connection.open()
        except TimeoutError as error:
            raise TryAgainError(f"too many streams to {short(self.peer)} are open", reason=Reason.BUSY) from error
        stream.write_nowait(header)
        return stream

    # State

    @property
    def live(self) -> bool:
        """Whether calls can be made."""
        return self._ended is None

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything here: no call, no answer, no stream."""
        return not self._pending and not self._answerer.active and self.connection.streams_open() <= 1

    def path(self) -> Path:
        """How the peer is reached, and the smoothed round trip in seconds (0.0 while unknown)."""
        return Path(self.connection.path().kind, self._rtt_s or self.connection.path().rtt_s)

    def on_end(self, callback: Callable[[Session, str], None]) -> None:
        """Call ``callback(session, reason)`` when the session ends; at once if it has."""
        if self._ended is not None:
            callback(self, self._ended.reason)
        else:
            self._on_end.append(callback)

    def beat(self, now_s: float) -> None:
        """The node's heartbeat timer: ping a silent peer, give up a dead one. ``now_s``: the loop's clock."""
        if self._ended is not None or not self._ready.done():
            return
        silent_s = now_s - self.heard_s
        if silent_s >= self._limits.dead_after_s:
            self.close(Reason.DEAD)
        elif silent_s >= self._limits.heartbeat_s or not self._rtt_s:
            self._send_ping(now_s)

    def close(self, reason: str = Reason.CLOSED) -> None:
        """End the session and its connection. Idempotent; calls that wait get UnreachableError."""
        self._end(UnreachableError(f"the connection to {short(self.peer)} was closed ({reason})", reason=reason))

    async def wait_closed(self) -> None:
        """Wait, a bounded time, until the session's tasks have ended."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)

    # Opening

    async def _open(self) -> None:
        """Say hello, wait until both sides have accepted. Raises what either side had against it."""
        try:
            self.post(self._setup.hello())
            self.spawn(self._read())
            async with asyncio.timeout(self._limits.unauthenticated_s):
                await asyncio.shield(self._ready)
        except TimeoutError as error:
            self.close(Reason.TIMEOUT)
            raise UnreachableError(f"{short(self.peer)} did not say hello in time", reason=Reason.TIMEOUT) from error
        except BaseException:
            self.close(Reason.CLOSED)
            raise
        finally:
            if self._ready.done() and not self._ready.cancelled():
                self._ready.exception()
        self.opened_s = self.used_s = self._loop.time()
        self.spawn(self._accept_streams())
        self._send_ping(self.opened_s)

    def _on_opening(self, message: Message) -> None:
        if type(message) is Hello and self.hello is None:
            self._setup.heard(self.peer, message, self.connection.dialled)
            self.member = judge(self.peer, message, self._setup)
            self.hello = message
            self._reader.limit_bytes = self._limits.control_frame_bytes
            self.connection.trust()
            self.post(Welcome())
        elif type(message) is Welcome and self.hello is not None:
            self._message_bytes_max = self._limits.control_frame_bytes
            if not self._ready.done():
                self._ready.set_result(None)
        else:
            raise MalformedError("a message before the hello", reason=Reason.MALFORMED)

    # Reading

    async def _read(self) -> None:
        stream, feed = self._stream, self._reader.feed
        handlers = self._handlers
        try:
            while data := await stream.read(_READ_BYTES):
                self.heard_s = self._loop.time()
                for message in feed(data):
                    kind = type(message)
                    if kind is Bye:
                        self._end(self._goodbye(message))
                        return
                    if not self._ready.done():
                        self._on_opening(message)
                    elif kind in handlers:
                        handlers[kind](message)
                    else:
                        raise MalformedError("a second hello", reason=Reason.MALFORMED)
                self._flush()
                if stream.unsent() > _BACKLOG_BYTES:
                    await stream.drain()
            self.close(Reason.CLOSED)
        except UnreachableError as error:
            self._end(error)
        except P2PGridError as error:
            self.refuse(error)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - logged, and the peer is told
            _log.exception("the reader of a session failed")
            self.close(Reason.BUG)

    def _goodbye(self, message: Message) -> P2PGridError:
        assert isinstance(message, Bye)
        if not self._ready.done() and message.kind:
            return error_of(message)
        reason = message.reason or Reason.CLOSED
        return UnreachableError(f"{short(self.peer)} closed the connection ({reason})", reason=reason)

    def refuse(self, error: P2PGridError) -> None:
        """Tell the peer why, then end."""
        if self._ended is None:
            self.post(bye_of(error))
            self._end(error)

    def _on_ping(self, message: Ping) -> None:
        self.post(Pong(message.id))

    def _on_pong(self, message: Pong) -> None:
        if self._ping is not None and self._ping[0] == message.id:
            rtt_s = max(self._loop.time() - self._ping[1], _RTT_MIN_S)
            self._rtt_s = rtt_s if not self._rtt_s else 0.875 * self._rtt_s + 0.125 * rtt_s
            self._ping = None

    def _send_ping(self, now_s: float) -> None:
        self._next_id += 1
        self._ping = (self._next_id, now_s)
        self.post(Ping(self._next_id))

    def _on_reply(self, message: Reply) -> None:
        waiting = self._pending.get(message.id)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(message.body)

    def _on_failure(self, message: Failure) -> None:
        waiting = self._pending.get(message.id)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_exception(error_of(message))

    async def _accept_streams(self) -> None:
        with contextlib.suppress(UnreachableError):  # The reader ends the session, once it has read what had come.
            while True:
                stream = await self.connection.accept_stream()
                self.spawn(self._answerer.serve_stream(stream))

    def dispatch(self, message: Message) -> None:
        """Act on a message that came on a stream of its own."""
        self._handlers[type(message)](message)

    # Sending

    def post(self, message: Message) -> bytes:
        """Queue a message for this tick's write. Returns its bytes instead when it needs a stream of its own.

        Raises BadDataError when it is too large even for that.
        """
        out = self._out
        start = len(out)
        try:
            size_bytes = append_message(out, message)
        except BaseException:
            del out[start:]
            raise
        if size_bytes > self._message_bytes_max:
            large = bytes(memoryview(out)[-size_bytes:])
            del out[start:]
            if size_bytes > self._limits.bulk_message_bytes or not self._ready.done():
                raise BadDataError(f"a message of {size_bytes} bytes is over the limit", reason=Reason.TOO_LARGE)
            return large
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        return b""

    def _flush(self) -> None:
        self._flush_due = False
        if self._out:
            data = bytes(self._out)
            self._out.clear()
            # The reader ends the session, once it has read the peer's last words.
            with contextlib.suppress(UnreachableError):
                self._stream.write_nowait(data, flush=True)

    async def _send_large(self, large: bytes, deadline_s: float) -> None:
        try:
            await bulk.send_message(self.connection, large, deadline_s)
        except TimeoutError as error:
            raise TryAgainError(f"{short(self.peer)} did not take a message in time", reason=Reason.TIMEOUT) from error
        except UnreachableError as error:
            if self._ended is not None:
                raise
            raise TryAgainError(f"{short(self.peer)} did not take a message ({error.reason})", reason=error.reason) from error

    async def send_quietly(self, large: bytes) -> None:
        try:
            await bulk.send_message(self.connection, large, self._loop.time() + _BULK_S)
        except (TimeoutError, P2PGridError) as error:
            _log.debug("a large message to %s was lost: %s", short(self.peer), error)

    async def _drain(self, deadline_s: float) -> None:
        try:
            async with asyncio.timeout_at(deadline_s):
                self._flush()
                await self._stream.drain()
        except TimeoutError as error:
            raise TryAgainError(f"{short(self.peer)} does not read", reason=Reason.BUSY) from error

    def _sweep(self) -> None:
        """Time out the calls whose deadline has passed."""
        now_s = self._loop.time()
        for waiting in self._pending.values():
            if waiting.deadline_s <= now_s and not waiting.future.done():
                waiting.future.set_exception(TryAgainError(f"{short(self.peer)} did not answer in time", reason=Reason.TIMEOUT))
        going_on = bool(self._pending) and self._ended is None
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep) if going_on else None

    # Ending

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]

    def spawn_bounded(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if len(self._tasks) >= _TASKS_MAX:
            work.close()
            raise TryAgainError("too much is being done for this peer", reason=Reason.BUSY)
        return self.spawn(work)

    def _check_open(self) -> None:
        if self._ended is not None:
            reason = self._ended.reason or Reason.CLOSED
            raise UnreachableError(f"the connection to {short(self.peer)} has ended ({reason})", reason=reason)

    def _end(self, error: P2PGridError) -> None:
        if self._ended is not None:
            return
        self._ended = error
        self._flush()
        if self._sweeper is not None:
            self._sweeper.cancel()
        reason = error.reason or Reason.CLOSED
        self.connection.close(reason)
        for waiting in self._pending.values():
            if not waiting.future.done():
                waiting.future.set_exception(UnreachableError(f"{short(self.peer)} went away ({reason})", reason=reason))
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()
        current = asyncio.current_task()
        for task in list(self._tasks):
            if task is not current:
                task.cancel()
        callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback(self, reason)


async def open_session(connection: Connection, setup: SessionSetup) -> Session:
    """Make a session of a fresh connection. Raises what either side has against it; the connection is closed then."""
    try:
        async with asyncio.timeout(setup.limits.unauthenticated_s):
            stream = await (connection.open() if connection.dialled else connection.accept_stream())
    except TimeoutError as error:
        connection.close(Reason.TIMEOUT)
        raise UnreachableError(f"{short(connection.peer)} opened no stream in time", reason=Reason.TIMEOUT) from error
    except BaseException:
        connection.close(Reason.CLOSED)
        raise
    session = Session(connection, stream, setup)
    session.heard_s = asyncio.get_running_loop().time()
    await session._open()
    return session
