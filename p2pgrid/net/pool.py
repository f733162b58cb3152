"""All sessions of a node: dialled when needed, shared by everybody, bounded in number.

1. A peer has one session that is used. When both sides dialled at once there are two: the one opened by the
   smaller key is used, the other closes when it has been quiet for a heartbeat, so that no call on it fails.
2. A hello with a new instance id means that the peer has restarted: its older sessions are dead.
3. Over the limit the least recently used idle session is closed; when none is idle, the newcomer is refused.
4. The owner (a peer with this node's own key) is not a peer: its sessions stand beside the table.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from p2pgrid import logs
from p2pgrid.errors import P2PGridError, TryAgainError, UnreachableError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Connection, Transport, WallClock
from p2pgrid.net.heart import Heart
from p2pgrid.net.hello import Heard, SessionSetup
from p2pgrid.net.messages import Authorise, Hello
from p2pgrid.net.methods import Methods
from p2pgrid.net.rpc import Session, open_session

_log = logging.getLogger("p2pgrid.net")

OWNER_SESSIONS = 16
_CLOSE_S = 2.0

Opened = Callable[[Session], None]
Closed = Callable[[Session, str], None]
Trouble = Callable[[NodeKey, P2PGridError, bool], None]
"""Told of each dial that failed and each hello that was refused: the peer, why, and whether this side dialled."""


class Pool:
    """The sessions of one node. ``async start()`` before use, ``async close()`` after."""

    def __init__(
        self,
        own: NodeKey,
        transports: Sequence[Transport],
        methods: Methods,
        authorise: Authorise,
        hello: Callable[[], Hello],
        wall_ms: WallClock,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """``hello`` makes this node's hello anew for each session; ``wall_ms`` is Unix milliseconds."""
        self.limits = limits
        self._own = own
        self._transports = tuple(transports)
        self._setup = SessionSetup(own, hello, methods, authorise, limits, wall_ms, self._heard)
        self._peers: dict[NodeKey, list[Session]] = {}
        self._owners: list[Session] = []
        self._dials: dict[NodeKey, asyncio.Task[Session]] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._on_open: list[Opened] = []
        self._on_close: list[Closed] = []
        self._on_trouble: list[Trouble] = []
        self._on_hello: list[Heard] = []
        self._heart = Heart(limits, self._all, self._close_surplus)
        self._ended_sent = self._ended_received = 0
        """Bytes of sessions that have ended."""
        self._closed = False

    async def start(self) -> None:
        """Start the transports and begin to accept. Raises ConfigError."""
        for transport in self._transports:
            await transport.start()
            self._spawn(self._accept(transport))
        self._heart.start()

    def addresses(self) -> tuple[Address, ...]:
        """Where this node can be dialled, over all transports."""
        return tuple(address for transport in self._transports for address in transport.addresses())

    def on_open(self, callback: Opened) -> None:
        """Call ``callback(session)`` for each new session, owners' included."""
        self._on_open.append(callback)

    def on_close(self, callback: Closed) -> None:
        """Call ``callback(session, reason)`` for each session that ended."""
        self._on_close.append(callback)

    def on_trouble(self, callback: Trouble) -> None:
        """Call ``callback(peer, error, dialled)`` for each session that did not come to be."""
        self._on_trouble.append(callback)

    def on_hello(self, callback: Heard) -> None:
        """Call ``callback(peer, hello, dialled)`` for each hello, before it is known whether it is accepted."""
        self._on_hello.append(callback)

    def sessions(self) -> list[Session]:
        """One live session per connected peer; owners are not in it."""
        return [session for group in self._peers.values() if (session := self._best(group)) is not None]

    def live(self, peer: NodeKey) -> Session | None:
        """The session to use with this peer, if it is connected."""
        return self._best(self._peers.get(peer, []))

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received in sessions with other nodes since the start, encryption and the owner's not counted."""
        sent, received = self._ended_sent, self._ended_received
        for group in self._peers.values():
            for session in group:
                sent += session.connection.sent_bytes
                received += session.connection.received_bytes
        return sent, received

    async def session(self, peer: NodeKey, addresses: Sequence[Address] = ()) -> Session:
        """The live session with a peer, or a new one. Concurrent calls share one dial.

        Raises UnreachableError, IntegrityError (``wrong-peer``), TryAgainError (``too-many-connections``), or what the
        peer or this node has against the other.
        """
        known = self.live(peer)
        if known is not None:
            return known
        if self._closed:
            raise UnreachableError("the node is stopping", reason=Reason.SHUTDOWN)
        dial = self._dials.get(peer)
        if dial is None:
            if len(self._dials) >= self.limits.connections:
                raise TryAgainError("too many connections are being opened", reason=Reason.TOO_MANY)
            dial = self._dials[peer] = asyncio.get_running_loop().create_task(self._dial(peer, tuple(addresses)))
            dial.add_done_callback(lambda task: self._dialled(peer, task))
        try:
            return await asyncio.shield(dial)
        except asyncio.CancelledError:
            if dial.cancelled():
                raise UnreachableError("the node is stopping", reason=Reason.SHUTDOWN) from None
            raise
        except P2PGridError:
            # The peer may have dialled us while our own dial failed.
            known = self.live(peer)
            if known is None:
                raise
            return known

    async def close(self) -> None:
        """Close every session and transport. Takes a few seconds at most."""
        self._closed = True
        self._heart.stop()
        sessions = self._all()
        for session in sessions:
            session.close(Reason.SHUTDOWN)
        tasks = [*self._tasks, *self._dials.values()]
        for task in tasks:
            task.cancel()
        ends = [asyncio.ensure_future(closing) for closing in [transport.close() for transport in self._transports]]
        ends += [asyncio.ensure_future(session.wait_closed()) for session in sessions]
        if tasks or ends:
            await asyncio.wait([*tasks, *ends], timeout=2 * _CLOSE_S)
        for end in ends:
            if end.done() and end.exception() is not None:
                _log.warning("a transport did not close cleanly: %s", end.exception())

    # Dialling and accepting

    async def _dial(self, peer: NodeKey, addresses: tuple[Address, ...]) -> Session:
        error: P2PGridError = UnreachableError(f"no address of {short(peer)} is known", reason=Reason.TIMEOUT)
        kinds = {address.kind for address in addresses}
        for transport in self._transports:
            if transport.kind not in kinds:
                continue
            try:
                connection = await transport.dial(peer, addresses, self.limits.dial_s)
            except P2PGridError as failure:
                error = failure
                continue
            return await self._open(connection)
        raise error

    def _dialled(self, peer: NodeKey, task: asyncio.Task[Session]) -> None:
        self._dials.pop(peer, None)
        if not task.cancelled():
            # Those who waited have seen it; a dial that nobody waits for any more is told here alone.
            error = task.exception()
            if isinstance(error, P2PGridError):
                self._tell(peer, error, dialled=True)

    async def _accept(self, transport: Transport) -> None:
        try:
            while True:
                connection = await transport.accept()
                self._spawn(self._welcome(connection))
        except UnreachableError:
            return

    async def _welcome(self, connection: Connection) -> None:
        try:
            await self._open(connection)
        except P2PGridError as error:
            logs.line(_log, logging.INFO, logs.REFUSED, peer=connection.peer, reason=error.reason, text=error.message)
            self._tell(connection.peer, error, dialled=False)

    async def _open(self, connection: Connection) -> Session:
        if self._closed:
            connection.close(Reason.SHUTDOWN)
            raise UnreachableError("the node is stopping", reason=Reason.SHUTDOWN)
        session = await open_session(connection, self._setup)
        try:
            self._admit(session)
        except P2PGridError as error:
            session.refuse(error)
            raise
        return session

    def _tell(self, peer: NodeKey, error: P2PGridError, *, dialled: bool) -> None:
        if peer != self._own and not self._closed:
            for callback in self._on_trouble:
                callback(peer, error, dialled)

    def _heard(self, peer: NodeKey, hello: Hello, dialled: bool) -> None:
        if peer != self._own:
            for callback in self._on_hello:
                callback(peer, hello, dialled)

    # The table

    def _admit(self, session: Session) -> None:
        """Put a new session into the table. Raises TryAgainError when there is no room."""
        if self._closed or not session.live:
            raise UnreachableError(f"{short(session.peer)} went away", reason=Reason.SHUTDOWN if self._closed else Reason.CLOSED)
        if session.peer == self._own:
            group = self._owners
            if len(group) >= OWNER_SESSIONS:
                raise TryAgainError("too many owner's connections", reason=Reason.TOO_MANY)
        else:
            self._replace_restarted(session)
            self._make_room(session.peer)
            group = self._peers.setdefault(session.peer, [])
        group.append(session)
        session.on_end(self._ended)
        for callback in self._on_open:
            callback(session)

    def _replace_restarted(self, session: Session) -> None:
        instance = session.hello.instance if session.hello else b""
        for old in list(self._peers.get(session.peer, [])):
            if old.hello is not None and old.hello.instance != instance:
                old.close(Reason.DEAD)

    def _make_room(self, peer: NodeKey) -> None:
        group = self._peers.get(peer, [])
        if len(group) >= self.limits.connections_per_peer:
            # The one heard least recently is the likeliest to be dead without our knowing.
            min(group, key=lambda session: session.heard_s).close(Reason.CLOSED)
        if sum(map(len, self._peers.values())) < self.limits.connections:
            return
        idle = [session for group in self._peers.values() for session in group if session.idle]
        if not idle:
            raise TryAgainError("this node has no room for another connection", reason=Reason.TOO_MANY)
        min(idle, key=lambda session: session.used_s).close(Reason.IDLE)

    def _best(self, group: Sequence[Session]) -> Session | None:
        """Of two live sessions the one opened by the smaller key; both sides come to the same answer."""
        live = [session for session in group if session.live]
        if len(live) < 2:
            return live[0] if live else None
        preferred = [session for session in live if self._is_preferred(session)]
        return (preferred or live)[-1]

    def _is_preferred(self, session: Session) -> bool:
        return session.connection.dialled == (self._own < session.peer)

    def _close_surplus(self, now_s: float) -> None:
        for group in list(self._peers.values()):
            best = self._best(group)
            for session in list(group):
                quiet_s = now_s - max(session.used_s, session.opened_s)
                if session is not best and session.idle and quiet_s >= self.limits.heartbeat_s:
                    session.close(Reason.IDLE)

    def _ended(self, session: Session, reason: str) -> None:
        group = self._owners if session.peer == self._own else self._peers.get(session.peer, [])
        if session in group:
            group.remove(session)
            if session.peer != self._own:
                self._ended_sent += session.connection.sent_bytes
                self._ended_received += session.connection.received_bytes
        if not group:
            self._peers.pop(session.peer, None)
        for callback in self._on_close:
            callback(session, reason)
        self._say_ended(session, reason)

    def _say_ended(self, session: Session, reason: str) -> None:
        """The one line of a connection."""
        owner, connection, path = session.peer == self._own, session.connection, session.path()
        logs.line(
            _log,
            logging.DEBUG if owner else logging.INFO,
            logs.CONNECTION,
            peer=session.peer,
            direction="owner" if owner else "out" if connection.dialled else "in",
            path=path.kind,
            seconds=asyncio.get_running_loop().time() - session.opened_s,
            calls_out=session.calls_out,
            calls_in=session.calls_in,
            bytes_out=connection.sent_bytes,
            bytes_in=connection.received_bytes,
            rtt_ms=path.rtt_s * 1e3,
            reason=reason,
        )

    def _all(self) -> list[Session]:
        return [session for group in [*self._peers.values(), self._owners] for session in group]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
