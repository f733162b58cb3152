"""TLS 1.3 over TCP: the direct way to a node whose address is known.

TLS runs here over memory buffers, inside one asyncio protocol. So everything of one loop tick leaves in
one write on any event loop, a handshake counts against the limit for strangers from its first byte,
and closing is bounded by our own timer.

1. Hosts are numeric. A name would be looked up, and a lookup can hang or lie.
2. The dialler compares the proven key with the one it wants before it sends a byte.
3. A connection that no membership vouches for in time is dropped, and so is one over the limit.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from p2pgrid.errors import IntegrityError, P2PGridError, UnreachableError, UsageError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net.certificates import contexts, peer_key
from p2pgrid.net.connection import MuxConnection
from p2pgrid.net.inbox import Inbox
from p2pgrid.net.sockets import addresses_of, is_numeric, listeners
from p2pgrid.net.streams import Bytes
from p2pgrid.wire.keys import SigningKey

TLS_KIND = "tls"
_SCRATCH_BYTES = 256 * 1024
_JOIN_BYTES = 16 * 1024
_WRITE_BUFFER_BYTES = 1 << 20
_LINGER_S = 1.0
_STAGGER_S = 0.25
_ADDRESSES_MAX = 8


class _TlsPipe(asyncio.Protocol):
    """One TCP connection with TLS on it: the pipe under a MuxConnection."""

    path_kind = "direct"

    def __init__(self, owner: TlsTransport, *, dialled: bool) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = owner.client_context if dialled else owner.server_context
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=not dialled)
        self._transport: asyncio.Transport | None = None
        self._dialled = dialled
        self._full = False
        self._shut = False
        self._stranger = False
        self._handshake_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.secured: asyncio.Future[NodeKey] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.connection: MuxConnection | None = None

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio.Transport, but have its methods.
        tcp = cast(asyncio.Transport, transport)
        self._transport = tcp
        self._owner.pipes[self] = None
        tcp.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        if not self._dialled:
            if not self._owner.take_stranger():
                self._abort()
                return
            self._stranger = True
            self._timer = self._loop.call_later(self._owner.limits.unauthenticated_s, self._expire)
        self._handshake()

    def data_received(self, data: bytes) -> None:
        if self._shut:
            return
        self._incoming.write(data)
        if self.connection is None:
            self._handshake_bytes += len(data)
            if self._handshake_bytes > self._owner.limits.unauthenticated_bytes:
                self._fail(IntegrityError("a handshake that is too long", reason=Reason.MALFORMED))
                return
            self._handshake()
        if self.connection is not None:
            self._pump(self.connection)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.trusted()
        self._owner.pipes.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        if not self.secured.done():
            self._settle(UnreachableError("the connection ended during the handshake", reason=Reason.CLOSED))
        if self.connection is not None:
            self.connection.lost(Reason.CLOSED)
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self.connection is not None:
            self.connection.resume()

    # What the connection asks

    def is_full(self) -> bool:
        """Whether the socket has a backlog."""
        return self._full

    def send(self, chunks: list[Bytes]) -> None:
        """Encrypt and write everything in one go."""
        transport = self._transport
        if transport is None or self._shut or transport.is_closing() or not chunks:
            return
        write = self._tls.write
        try:
            small: list[Bytes] = []
            for chunk in chunks:
                if len(chunk) <= _JOIN_BYTES:
                    small.append(chunk)
                    continue
                if small:
                    write(b"".join(small))
                    small = []
                write(chunk)
            if small:
                write(small[0] if len(small) == 1 else b"".join(small))
        except ssl.SSLError:
            self._abort()
            return
        transport.write(self._outgoing.read())

    def shut(self) -> None:
        """Flush for a moment, then cut.

        Only this side's direction is ended at first: a socket closed with unread bytes in it answers with a TCP
        reset, and that would destroy the goodbye on its way to the peer.
        """
        transport = self._transport
        if transport is None or self.gone.done() or self._shut:
            return
        self._shut = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_LINGER_S, transport.abort)
        if transport.is_closing():
            return
        try:
            transport.write_eof()
        except (OSError, RuntimeError):
            transport.close()

    def trusted(self) -> None:
        """Give up the place among the strangers."""
        if self._stranger:
            self._stranger = False
            self._owner.leave_stranger()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    # Inside

    def _handshake(self) -> None:
        if self.secured.done():
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._write_out()
            return
        except ssl.SSLError as error:
            self._write_out()
            self._fail(IntegrityError(f"the handshake failed: {error.reason or error}", reason=Reason.BAD_SIGNATURE))
            return
        self._write_out()
        try:
            peer = peer_key(self._tls)
        except IntegrityError as error:
            self._fail(error)
            return
        if self._dialled:
            # The dialler decides in dial() whether this is whom it wants; until then nothing is read.
            self._settle(peer)
        else:
            self.connection = MuxConnection(self, peer, self._owner.limits, dialled=False)
            self._settle(peer)
            self._owner.accepted.put(self.connection)

    def adopt(self, peer: NodeKey) -> MuxConnection:
        """The dialler's decision: this is the peer. Reads what has come meanwhile."""
        self.connection = MuxConnection(self, peer, self._owner.limits, dialled=True)
        if self._transport is None or self._transport.is_closing():
            self.connection.lost(Reason.CLOSED)
        else:
            self._pump(self.connection)
        return self.connection

    def _pump(self, connection: MuxConnection) -> None:
        """Decrypt everything that has come and hand it on."""
        scratch = self._owner.scratch
        # With a buffer, read() returns a count; the type stubs know only the other form.
        read = cast(Callable[[int, memoryview], int], self._tls.read)
        ended = False
        while not ended:
            filled = 0
            try:
                while filled < _SCRATCH_BYTES:
                    taken = read(_SCRATCH_BYTES - filled, scratch[filled:])
                    if not taken:
                        ended = True
                        break
                    filled += taken
            except ssl.SSLWantReadError:
                ended = True
            except ssl.SSLError:
                # Somebody on the way changed bytes, or the peer broke off: nothing after this can be trusted.
                connection.feed(bytes(scratch[:filled]))
                connection.lost(Reason.CLOSED)
                self._write_out()
                self.shut()
                return
            if filled:
                connection.feed(bytes(scratch[:filled]))

    def _write_out(self) -> None:
        transport = self._transport
        if self._outgoing.pending and transport is not None and not self._shut and not transport.is_closing():
            transport.write(self._outgoing.read())

    def _fail(self, error: P2PGridError) -> None:
        self._settle(error)
        self.shut()

    def _settle(self, outcome: NodeKey | P2PGridError) -> None:
        if self.secured.done():
            return
        if isinstance(outcome, P2PGridError):
            self.secured.set_exception(outcome)
            # A handshake nobody waits for may fail without a warning about it.
            self.secured.exception()
        else:
            self.secured.set_result(outcome)

    def _expire(self) -> None:
        if self._stranger:
            if self.connection is not None:
                self.connection.close(Reason.NOT_MEMBER)
            else:
                self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class TlsTransport:
    """Nodes reached by TLS on TCP. With ``host=None`` it only dials."""

    kind = TLS_KIND

    def __init__(self, key: SigningKey, host: str | None = None, port: int = 0, limits: Limits = DEFAULT_LIMITS) -> None:
        """``host``: a numeric address to listen on (``::`` means IPv4 too); ``port`` 0 picks a free one. Raises UsageError."""
        if host is not None and not is_numeric(host):
            raise UsageError(f"'{host}' is not a numeric address", hint="listen on an address such as 0.0.0.0 or ::")
        self.key = NodeKey(key.public)
        self.limits = limits
        self.server_context, self.client_context = contexts(key)
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.pipes: dict[_TlsPipe, None] = {}
        self.accepted: Inbox[MuxConnection] = Inbox()
        self._host = host
        self._port = port
        self._strangers = 0
        self._servers: list[asyncio.Server] = []
        self._addresses: tuple[Address, ...] = ()
        self._closed = False

    async def start(self) -> None:
        """Begin to accept. Raises ConfigError when the address cannot be used."""
        if self._host is None:
            return
        loop = asyncio.get_running_loop()
        sockets = listeners(self._host, self._port)
        self._port = sockets[0].getsockname()[1]
        for listener in sockets:
            self._servers.append(await loop.create_server(lambda: _TlsPipe(self, dialled=False), sock=listener))
        self._addresses = tuple(Address(TLS_KIND, host, self._port) for host in addresses_of(self._host))

    def addresses(self) -> Sequence[Address]:
        """Where this node listens; for a wildcard, the addresses this machine would use to talk to others."""
        return self._addresses

    async def dial(self, peer: NodeKey, addresses: Sequence[Address], timeout_s: float) -> MuxConnection:
        """Try the addresses, each a moment after the one before; the first with the right key wins.

        Raises UnreachableError, or IntegrityError when only others answered.
        """
        places = [place for place in addresses if place.kind == TLS_KIND and is_numeric(place.host) and 0 < place.port < 65536]
        if not places or self._closed:
            raise UnreachableError(f"no usable address of {short(peer)} is known", reason=Reason.TIMEOUT)
        failures: list[P2PGridError] = []
        attempts: list[asyncio.Task[_TlsPipe]] = []
        queue = places[:_ADDRESSES_MAX]
        try:
            async with asyncio.timeout(timeout_s):
                while queue or attempts:
                    if queue:
                        attempts.append(asyncio.ensure_future(self._attempt(peer, queue.pop(0))))
                    pause_s = _STAGGER_S if queue else None
                    done, _ = await asyncio.wait(attempts, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                    ended, attempts = [task for task in attempts if task in done], [task for task in attempts if task not in done]
                    for task in ended:
                        error = task.exception()
                        if error is None:
                            return task.result().adopt(peer)
                        if not isinstance(error, P2PGridError):
                            raise error
                        failures.append(error)
        except TimeoutError:
            failures.append(UnreachableError(f"{short(peer)} did not answer in {timeout_s:g} s", reason=Reason.TIMEOUT))
        finally:
            await _abandon(attempts)
        raise next((error for error in failures if error.reason == Reason.WRONG_PEER), failures[-1])

    async def accept(self) -> MuxConnection:
        """The next connection a peer opened. Raises UnreachableError after close()."""
        return await self.accepted.get()

    async def close(self) -> None:
        """Stop accepting and close every connection; takes a second and a half at most."""
        self._closed = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        self.accepted.close(UnreachableError("the transport is closed", reason=Reason.SHUTDOWN))
        pipes = list(self.pipes)
        for pipe in pipes:
            if pipe.connection is not None:
                pipe.connection.close(Reason.SHUTDOWN)
            pipe.shut()
        if pipes:
            await asyncio.wait([pipe.gone for pipe in pipes], timeout=_LINGER_S * 1.5)

    def take_stranger(self) -> bool:
        """A place for a connection without a membership yet, if there is one."""
        if self._closed or self._strangers >= self.limits.unauthenticated:
            return False
        self._strangers += 1
        return True

    def leave_stranger(self) -> None:
        """Give such a place back."""
        self._strangers -= 1

    async def _attempt(self, peer: NodeKey, place: Address) -> _TlsPipe:
        loop = asyncio.get_running_loop()
        try:
            _, pipe = await loop.create_connection(lambda: _TlsPipe(self, dialled=True), place.host, place.port)
        except OSError as error:
            # The loops word it differently; the number of the error is the same. Those of names that are not found are below 0.
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
            raise UnreachableError(f"nobody answers at {place}: {why}", reason=Reason.TIMEOUT) from error
        kept = False
        try:
            found = await pipe.secured
            if found != peer:
                raise IntegrityError(f"{short(found)} answers at {place}, not {short(peer)}", reason=Reason.WRONG_PEER)
            kept = True
        finally:
            if not kept:
                pipe.shut()
        return pipe


async def _abandon(attempts: list[asyncio.Task[_TlsPipe]]) -> None:
    """Cancel the attempts that lost, and close what they reached."""
    for task in attempts:
        task.cancel()
    if attempts:
        await asyncio.wait(attempts, timeout=_LINGER_S)
    for task in attempts:
        if task.done() and not task.cancelled() and task.exception() is None:
            task.result().shut()
