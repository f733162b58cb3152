"""Who is there: sessions to other nodes, what they offer, and how they are found (docs/spec/finding.md).

1. What is told by a live session counts; the DHT only says where to dial.
2. A small grid (up to 256 nodes) is enumerated and, up to a bound, kept connected; beyond it, nodes are sampled.
3. A peer is gone when its session ended and it cannot be dialled again at once.
4. Calls to oneself take the same handlers without a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from p2pgrid.dht.records import RecordKind, SignedRecord
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import MalformedError, P2PGridError, UnreachableError
from p2pgrid.model.ids import NodeKey, dht_id_of_key, short
from p2pgrid.model.job import AUTO, Job
from p2pgrid.model.node import NodeInfo, Offer
from p2pgrid.model.reasons import Reason
from p2pgrid.net.messages import Member
from p2pgrid.net.pool import Pool
from p2pgrid.net.rpc import Session
from p2pgrid.services.calm import Calm
from p2pgrid.services.context import Context
from p2pgrid.services.statuses import Meetings, Statuses
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.messages import InfoNotice, NodeStatus, StatusRequest

R = TypeVar("R", bound=msgspec.Struct)

DISCOVER_S = 10.0
NEIGHBOURS_MAX = 64
"""Nodes that are kept connected without a job in common."""
KNOWN_MAX = 1024
INFO_BYTES_MAX = 4096
"""What a node says of itself in its hello; it is told to everybody in 900 bytes."""
ENUMERATE_MAX = 256
RETRY_AFTER_S = 30.0
REDIAL_S = 1.5
STATUS_S = 2.0
WITHDRAW_S = 1.0
NODE_TTL_S = 1800.0


class Peer(NamedTuple):
    """A line of ``peers``. ``status`` is None for a node that does not answer, or was not asked yet."""

    key: NodeKey
    info: NodeInfo
    status: NodeStatus | None
    rtt_s: float
    path: str
    since_ms: int = 0
    """Since when it is connected, or was last seen; 0: never met."""
    status_ms: int = 0
    """When it said that."""
    roles: frozenset[str] = frozenset()
    """What its membership grants, as it proved."""


class SelfSession:
    """Stands for the session when a node calls itself."""

    def __init__(self, peer: NodeKey, member: Member) -> None:
        self.peer = peer
        self.member = member


class Peers:
    """The node's view of the others."""

    def __init__(self, context: Context, pool: Pool, dht: GridServer, own_info: Callable[[], NodeInfo]) -> None:
        self._context = context
        self._pool = pool
        self._dht = dht
        self._own_info = own_info
        self._tasks = Tasks("peers")
        self._self = cast(Session, SelfSession(context.me, Member(context.member.roles, context.member.lineage)))
        self._infos: dict[bytes, NodeInfo] = {}
        self._failed_s: dict[bytes, float] = {}
        self._gone: list[Callable[[NodeKey], None]] = []
        self._restarted: list[Callable[[NodeKey], None]] = []
        self._calm = Calm(context.clock)
        self._instances: dict[bytes, bytes] = {}
        """Which run of each peer was met last."""
        self._came: list[Callable[[NodeKey], None]] = []
        self.meetings = Meetings(context.wall_ms)
        self._started_ms = context.wall_ms()
        self.statuses = Statuses(context, self._status, self._tasks)
        self.complete = True
        context.methods.on_notify("node.info", InfoNotice, self._on_info)
        pool.on_open(self._on_open)
        pool.on_close(self._on_close)

    async def start(self, *, discover: bool = True) -> None:
        """Publish this node's record and begin to look for others."""
        await self.publish()
        if discover:
            self._tasks.spawn(self._discover(), "discover")

    async def close(self) -> None:
        await self._tasks.close()

    async def publish(self) -> None:
        """Put this node's addresses and offer into the DHT; it is repeated by itself."""
        info = encode(self._own_info())
        await self._dht.publish(RecordKind.NODE, dht_id_of_key(self._context.me), info, NODE_TTL_S)

    def renew(self) -> None:
        """This node's offer has changed: tell those who are connected, and those who look."""
        notice = InfoNotice(encode(self._own_info()))
        for peer in self.live():
            self.notify(NodeKey(peer), "node.info", notice)
        self._tasks.spawn(self.publish(), "publish")

    def _on_info(self, session: Session, notice: InfoNotice) -> None:
        if session.peer != self._context.me and len(notice.info) <= INFO_BYTES_MAX:
            self._note(session.peer, decode(notice.info, NodeInfo))

    async def withdraw(self) -> None:
        """Take this node's record out of the DHT: it is leaving."""
        with contextlib.suppress(P2PGridError, TimeoutError):
            async with asyncio.timeout(WITHDRAW_S):
                await self._dht.withdraw(RecordKind.NODE, dht_id_of_key(self._context.me))

    def on_gone(self, callback: Callable[[NodeKey], None]) -> None:
        """Call ``callback(peer)`` whenever a peer is gone."""
        self._gone.append(callback)

    def on_restarted(self, callback: Callable[[NodeKey], None]) -> None:
        """Call ``callback(peer)`` whenever a peer is back that has lost what it had in memory, perhaps before it was missed."""
        self._restarted.append(callback)

    def on_came(self, callback: Callable[[NodeKey], None]) -> None:
        """Call ``callback(peer)`` whenever a session to a peer opened."""
        self._came.append(callback)

    # -- who is there ------------------------------------------------------------

    def live(self) -> dict[bytes, Session]:
        """Members with a live session."""
        return {session.peer: session for session in self._pool.sessions() if session.peer != self._context.me}

    def is_live(self, peer: bytes) -> bool:
        return peer == self._context.me or self._pool.live(NodeKey(peer)) is not None

    def info(self, peer: bytes) -> NodeInfo:
        """What a node says of itself, as far as it is known."""
        return self._own_info() if peer == self._context.me else self._infos.get(peer, NodeInfo())

    def member(self, peer: bytes) -> Member | None:
        """The membership that a live peer proved."""
        if peer == self._context.me:
            return self._self.member
        session = self._pool.live(NodeKey(peer))
        return session.member if session else None

    def with_role(self, role: str) -> frozenset[bytes]:
        """Live nodes, this one included, whose membership grants a role."""
        found = {key for key, session in self.live().items() if role in session.member.roles}
        return frozenset(found | ({self._context.me} if role in self._context.member.roles else set()))

    def workers_for(self, job: Job, *, own: bool) -> frozenset[bytes]:
        """Live nodes whose offer matches a job. ``own``: the owner of this node signed it, so that here it needs no tested cage."""
        here = self._context.policy.runtimes
        return frozenset(
            key
            for key in self.with_role("work")
            if _matches(offer := self.info(key).offer, job, here if own and key == self._context.me else offer.runtimes)
        )

    # -- talking -------------------------------------------------------------------

    async def call(self, peer: NodeKey, method: str, request: msgspec.Struct, reply: type[R], *, timeout_s: float | None = None) -> R:
        """Call a method at a peer, dialling it if needed. Raises what the call raises."""
        if peer == self._context.me:
            entry = self._context.methods.calls[method]
            answer = entry.handler(self._self, request)
            return cast(R, await answer if inspect.isawaitable(answer) else answer)
        session = await self.session(peer)
        return await session.call(method, request, reply, timeout_s=timeout_s)

    def notify(self, peer: NodeKey, method: str, request: msgspec.Struct) -> bool:
        """Tell a peer something if it is there. Returns whether it went out; nobody learns whether it arrived."""
        if peer == self._context.me:
            asyncio.get_running_loop().call_soon(self._notify_self, method, request)
            return True
        session = self._pool.live(peer)
        if session is None:
            return False
        try:
            session.notify(method, request)
        except P2PGridError:
            return False
        return True

    def _notify_self(self, method: str, request: msgspec.Struct) -> None:
        answer = self._context.methods.notices[method].handler(self._self, request)
        if inspect.isawaitable(answer):
            self._tasks.spawn(_await(answer), method)

    async def session(self, peer: NodeKey) -> Session:
        """A live session to a peer. Raises UnreachableError when no address is known or none answers."""
        session = self._pool.live(peer)
        if session is not None:
            return session
        addresses = self._infos[peer].addresses if peer in self._infos else ()
        if not addresses:
            await self._look_up(peer)
            addresses = self._infos[peer].addresses if peer in self._infos else ()
        if not addresses:
            raise UnreachableError(f"no address of node {short(peer)} is known", reason=Reason.DEAD)
        return await self._pool.session(peer, addresses)

    async def reachable(self, peers: Iterable[bytes], timeout_s: float = 3.0) -> list[bytes]:
        """Those of some nodes that are there, dialled if nobody talked to them lately; in the given order."""
        wanted = list(dict.fromkeys(peers))
        dials = [self._tasks.spawn(self._dial(NodeKey(peer)), "dial") for peer in wanted if not self.is_live(peer)]
        tasks = [dial for dial in dials if dial is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
            for task in tasks:
                task.cancel()
        return [peer for peer in wanted if self.is_live(peer)]

    async def _look_up(self, peer: NodeKey) -> None:
        for record in await self._dht.get(dht_id_of_key(peer), RecordKind.NODE):
            self._learn(record)

    # -- finding -------------------------------------------------------------------

    def _learn(self, record: SignedRecord) -> None:
        try:
            info = decode(record.body.value, NodeInfo)
        except MalformedError:
            return
        if record.author == self._context.me:
            return
        self._note(record.author, info)

    def _note(self, peer: bytes, info: NodeInfo) -> None:
        """Remember what a node says of itself; among too many, one without a session is forgotten."""
        if peer not in self._infos and len(self._infos) >= KNOWN_MAX:
            away = next((key for key in self._infos if self._pool.live(NodeKey(key)) is None), next(iter(self._infos)))
            del self._infos[away]
        self._infos[peer] = info

    def _note_failed(self, peer: bytes) -> None:
        while len(self._failed_s) >= KNOWN_MAX:
            self._failed_s.pop(next(iter(self._failed_s)))
        self._failed_s[peer] = self._context.clock() + RETRY_AFTER_S

    async def refresh(self, timeout_s: float = 2.0) -> None:
        """Look for nodes now and dial those without a session."""
        records, self.complete = await self._dht.enumerate_nodes(ENUMERATE_MAX)
        if not self.complete:
            records += await self._dht.sample_nodes()
        for record in records:
            self._learn(record)
        live = self.live()
        if self.complete:
            listed = {record.author for record in records} | set(live)
            self._infos = {key: info for key, info in self._infos.items() if key in listed}
        now = self._context.clock()
        missing = [
            NodeKey(record.author)
            for record in records
            if record.author not in live and record.author in self._infos and self._failed_s.get(record.author, 0.0) <= now
        ]
        chosen = dict.fromkeys(missing[: max(0, NEIGHBOURS_MAX - len(live))])
        dials = [self._tasks.spawn(self._dial(peer), "dial") for peer in chosen]
        tasks = [dial for dial in dials if dial is not None]
        if tasks:
            try:
                await asyncio.wait(tasks, timeout=timeout_s)
            finally:
                for task in tasks:
                    task.cancel()

    async def _dial(self, peer: NodeKey) -> None:
        try:
            await self.session(peer)
        except P2PGridError:
            self._note_failed(peer)

    async def _look(self) -> None:
        before = self._scene()
        try:
            await self.refresh()
        except P2PGridError as error:
            self._context.tell(error.reason, f"looking for nodes: {error}")
        infos, live = scene = self._scene()
        self._calm.looked(found_nothing=self.complete and scene == before and infos <= live)

    def _scene(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Who is known and who is there."""
        return frozenset(self._infos), frozenset(self.live())

    async def _discover(self) -> None:
        while True:
            if self._calm.is_due():
                await self._look()
            jitter = 0.75 + self._context.rng.random() / 2
            await asyncio.sleep(DISCOVER_S * jitter)

    async def list(self, *, refresh: bool = True) -> Sequence[Peer]:
        """Every node that is known, this one first, after all live ones were asked for their state."""
        await self.ask_all(refresh=refresh)
        return self.known()

    async def ask_all(self, *, refresh: bool = True) -> None:
        """Ask every live peer for its state. ``refresh``: look for nodes first."""
        if refresh:
            await self.refresh()
        await asyncio.gather(*(self.statuses.ask(key) for key in [self._context.me, *self.live()]))

    def known(self) -> Sequence[Peer]:
        """Every node that is known, this one first; live ones with the state that they told last."""
        me, live = self._context.me, self.live()
        said = self.statuses.of(me)
        own = Peer(me, self._own_info(), said.status if said else None, 0.0, "self", self._started_ms, said.wall_ms if said else 0)
        found, infos, since_ms = [own], self._infos, self.meetings.since_ms
        for key in sorted({*live, *infos} - {me}):
            if key in live:
                found.append(self._line(NodeKey(key), live[key]))
            else:
                found.append(Peer(NodeKey(key), infos[key], None, 0.0, "", since_ms(key)))
        return found

    def renew_statuses(self) -> None:
        """Somebody looks: ask a few live peers for their state again, in the background."""
        self.statuses.renew(self.live())

    def _line(self, key: NodeKey, session: Session) -> Peer:
        path, said = session.path(), self.statuses.of(key)
        status, status_ms = (said.status, said.wall_ms) if said else (None, 0)
        return Peer(key, self.info(key), status, path.rtt_s, path.kind, self.meetings.since_ms(key), status_ms, session.member.roles)

    def count(self) -> int:
        """How many peers are live."""
        return len(self._pool.sessions())

    def dialled_by(self) -> int:
        """How many live peers opened a session to this node: they can reach it."""
        return sum(map(self.meetings.dialled_us, self.live()))

    def traffic(self) -> tuple[int, int]:
        """Bytes sent to and received from other nodes since the start, datagrams included."""
        sessions, datagrams = self._pool.traffic(), self._dht.traffic()
        return sessions[0] + datagrams[0], sessions[1] + datagrams[1]

    async def _status(self, key: NodeKey) -> NodeStatus:
        if not self.is_live(key):
            raise UnreachableError(f"node {short(key)} is not there", reason=Reason.DEAD)
        return await self.call(key, "node.status", StatusRequest(), NodeStatus, timeout_s=STATUS_S)

    # -- coming and going ------------------------------------------------------------

    def _on_open(self, session: Session) -> None:
        if session.peer == self._context.me or session.hello is None:
            return
        self._failed_s.pop(session.peer, None)
        self.meetings.note(session.peer, live=True, dialled_us=not session.connection.dialled)
        self._calm.stir()
        self._note_instance(session.peer, session.hello.instance)
        info = NodeInfo()
        if len(session.hello.info) <= INFO_BYTES_MAX:
            with contextlib.suppress(MalformedError):
                info = decode(session.hello.info, NodeInfo)
        self._note(session.peer, info)
        for came in self._came:
            came(session.peer)

    def _note_instance(self, peer: NodeKey, instance: bytes) -> None:
        before = self._instances.pop(peer, instance)
        while len(self._instances) >= KNOWN_MAX:
            self._instances.pop(next(iter(self._instances)))
        self._instances[peer] = instance
        if before != instance:
            for restarted in self._restarted:
                restarted(peer)

    def _on_close(self, session: Session, reason: str) -> None:
        if session.peer != self._context.me:
            if not self.is_live(session.peer):
                self.meetings.note(session.peer, live=False)
                self.statuses.forget(session.peer)
            self._calm.stir()
            self._tasks.spawn(self._redial(session.peer, reason), "redial")

    async def _redial(self, peer: NodeKey, reason: str) -> None:
        """A session ended: one more try before the peer counts as gone."""
        if self.is_live(peer):
            return
        addresses = self._infos[peer].addresses if peer in self._infos else ()
        if addresses and reason not in (Reason.SHUTDOWN, Reason.DEAD):
            try:
                async with asyncio.timeout(REDIAL_S):
                    await self._pool.session(peer, addresses)
                return
            except (P2PGridError, TimeoutError):
                pass
        self._note_failed(peer)
        self._calm.stir(lost=reason != Reason.SHUTDOWN)
        for gone in self._gone:
            gone(peer)


async def _await(answer: Any) -> None:
    await answer


def _matches(offer: Offer, job: Job, offered: tuple[str, ...]) -> bool:
    """``offered``: the runtimes there; to itself a node offers what has not been tested, too."""
    runtimes = ("native", "python") if job.runtime == AUTO else (job.runtime,)
    if offer.cores < 1 or not any(runtime in offered for runtime in runtimes):
        return False
    return not job.limits.memory_bytes or job.limits.memory_bytes <= offer.memory_bytes // offer.cores
