"""A hostile machine: a member in good standing that speaks as it likes, without a node behind it.

1. It has a key, a valid membership, a place in the network and a rate, and nothing else: no more than an attacker has.
2. All its chance comes from one generator, so that a seed repeats an attack byte for byte.
3. Everything it holds is bounded: what it does at once, what it remembers, how much it says in a second.
4. Statements that it forges are told to the grid first (``poison``): a checker then knows that they may never be
   believed. Statements that are genuine, but stale or not its own, are not.
5. What honest nodes answer is counted by reason code.

The kinds of attack are in :mod:`p2pgrid.testing.hostile.adversaries`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from p2pgrid.dht.carrier import Carrier
from p2pgrid.dht.contact import Place, place_of
from p2pgrid.dht.datagram import REQUEST, REQUEST_ID_BYTES, pack_payload, seal_datagram
from p2pgrid.errors import MalformedError, P2PGridError, TryAgainError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.membership import Grid
from p2pgrid.model.node import Address, NodeInfo, Offer
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Connection, Transport, WallClock
from p2pgrid.net.hello import SessionSetup
from p2pgrid.net.messages import Hello, Member
from p2pgrid.net.methods import Methods
from p2pgrid.net.rpc import Session, open_session
from p2pgrid.testing.observe import Onlooker
from p2pgrid.wire.codec import encode
from p2pgrid.wire.keys import SigningKey

TASKS_MAX = 64
"""Things that an adversary does at one time; over it, it waits for its next turn."""
PER_SECOND_MAX = 2000.0
TURN_S = 0.05
"""Many messages a second are sent in as many bursts as this fits into it."""
CALL_S = 5.0
CLOSE_S = 2.0
_log = logging.getLogger("p2pgrid.testing")


class AttackerHost(Protocol):
    """An adversary's place in the network, as :class:`p2pgrid.testing.air.network.Host`."""

    def transport(self, loop: Any, key: SigningKey, port: int, limits: Limits) -> Transport:
        """Connections from and to this machine."""

    def carrier(self, loop: Any, port: int) -> Carrier:
        """Datagrams from and to this machine."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An honest node and where it listens, by TLS and for datagrams."""

    key: NodeKey
    address: Address

    @property
    def place(self) -> Place:
        """Where its datagrams go."""
        return place_of(self.address.host, self.address.port)


@dataclass(frozen=True, kw_only=True)
class AdversaryHost:
    """What the grid gives to an adversary."""

    name: str
    network: AttackerHost
    port: int
    key: SigningKey
    submitter: SigningKey
    grid: Grid
    credentials: tuple[bytes, ...]
    """The chain of a valid membership of ``key``, without the role ``store``: what a keeper says would not be forged."""
    targets: Callable[[], list[Target]]
    """The honest nodes that run now, in a stable order."""
    rng: random.Random
    wall_ms: WallClock
    poison: Callable[[bytes], None]
    """Told of the bytes of each forged statement before anybody hears them."""
    per_second: float
    """Messages, at most 2,000."""
    spoof: Callable[[bytes, tuple[str, int], tuple[str, int]], None] | None = None
    """Sends a datagram that bears any source, where the network lets that happen: (data, source, destination)."""


class Adversary(Onlooker):
    """Base of all kinds. ``start(loop)`` on its machine's loop, ``stop()`` at its end; neither waits.

    It is an onlooker of the grid, for those kinds that need to have seen something.
    """

    kind = ""

    def __init__(self, host: AdversaryHost) -> None:
        super().__init__()
        self.host = host
        self.rng = host.rng
        self.sent: Counter[str] = Counter()
        """Messages by what they were."""
        self.answers: Counter[str] = Counter()
        """What came of calls: reason codes, or ``ok``."""
        self.believed = 0
        """How often somebody took what it said for true. It may be never."""
        self.methods = Methods()
        self.me = NodeKey(host.key.public)
        self._transport: Transport
        self._carrier: Carrier
        self._loop: asyncio.AbstractEventLoop
        self._main: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._sessions: dict[NodeKey, Session] = {}
        self._dialling: dict[NodeKey, None] = {}
        self.prepare()

    def prepare(self) -> None:
        """For kinds that have something to set up."""

    def attack(self) -> None:
        """Send about one message, without waiting: called at the given rate."""
        raise NotImplementedError

    def on_arrived(self, data: bytes, place: Place) -> None:
        """A datagram came in."""

    # -- life ---------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin."""
        self._loop = loop
        self._main = loop.create_task(self._run())

    def stop(self) -> None:
        """End: connections are closed, nothing is left running."""
        if self._main is not None:
            self._main.cancel()

    async def stopped(self) -> None:
        """Wait for the end after :meth:`stop`."""
        if self._main is not None:
            await asyncio.wait([self._main])

    async def _run(self) -> None:
        host = self.host
        self._transport = host.network.transport(self._loop, host.key, host.port, DEFAULT_LIMITS)
        self._carrier = host.network.carrier(self._loop, host.port)
        rate = min(max(host.per_second, 0.01), PER_SECOND_MAX)
        pause_s = max(1.0 / rate, TURN_S)
        owed = 0.0
        try:
            await self._transport.start()
            await self._carrier.open(self.on_arrived)
            while True:
                await asyncio.sleep(pause_s)
                owed += rate * pause_s
                while owed >= 1.0:
                    owed -= 1.0
                    self.attack()
        finally:
            await self._close()

    async def _close(self) -> None:
        self._carrier.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        sessions = list(self._sessions.values())
        for session in sessions:
            session.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*tasks, *[session.wait_closed() for session in sessions], return_exceptions=True)
                await self._transport.close()

    def spawn(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do something that waits. False, and it is not done, when too much is being done."""
        if len(self._tasks) >= TASKS_MAX:
            work.close()
            return False
        task = self._loop.create_task(self._counted(work))
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return True

    async def _counted(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except P2PGridError as error:
            self.answers[str(error.reason) or type(error).__name__] += 1
        except TimeoutError:
            self.answers[str(Reason.TIMEOUT)] += 1
        except Exception:  # noqa: BLE001 - a bug of the attack must not pass for an attack that was withstood
            _log.exception("the adversary %s failed", self.host.name)
        else:
            self.answers["ok"] += 1

    # -- whom it speaks to ------------------------------------------------------------------

    def target(self) -> Target | None:
        """One of the honest nodes."""
        targets = self.host.targets()
        return self.rng.choice(targets) if targets else None

    def hello(self) -> Hello:
        """What it says first: the truth, and that it would like to work."""
        offer = Offer(1, 1 << 30, 0, "linux-x86_64", "3.11", ("native", "command"))
        info = NodeInfo((), ("work", "submit", "native"), "", self.host.name, offer)
        return Hello(grid=self.host.grid.id, wall_ms=self.host.wall_ms(), credentials=self.host.credentials, info=encode(info))

    async def dial(self, target: Target) -> Connection:
        """A connection on which nothing was said yet. Raises UnreachableError."""
        return await self._transport.dial(target.key, [target.address], CALL_S)

    async def open(self, target: Target, hello: Callable[[], Hello]) -> Session:
        """A session of its own, beside those that it has. Raises what either side has against it."""
        limits = Limits(requests_per_peer=4096)
        setup = SessionSetup(self.me, hello, self.methods, _anybody, limits, self.host.wall_ms)
        return await open_session(await self.dial(target), setup)

    async def session(self, target: Target) -> Session:
        """The session with a node, opened if there is none. Raises TryAgainError while that is being done."""
        session = self._sessions.get(target.key)
        if session is not None and session.live:
            return session
        if target.key in self._dialling:
            raise TryAgainError("it is being dialled", reason=Reason.BUSY)
        self._dialling[target.key] = None
        try:
            session = self._sessions[target.key] = await self.open(target, self.hello)
        finally:
            del self._dialling[target.key]
        return session

    async def call(self, target: Target, method: str, request: Any, reply: type[Any]) -> Any:
        """Call a method of a node. Raises what it answers; a node that does not answer is dialled anew next time."""
        session = await self.session(target)
        try:
            return await session.call(method, request, reply, timeout_s=CALL_S)
        except TryAgainError as error:
            if error.reason == Reason.TIMEOUT:
                session.close(Reason.DEAD)
            raise

    def datagram(self, target: Target, raw: bytes) -> None:
        """Send any bytes to the place of a node."""
        with suppress(MalformedError):
            self._carrier.sendto(raw, target.place)

    def ask(self, target: Target, message: Any) -> None:
        """A well-formed question to a DHT node, with a valid signature and credential."""
        host = self.host
        flags, payload = pack_payload(
            REQUEST, self.rng.randbytes(REQUEST_ID_BYTES), encode(message), credential=encode(host.credentials), payload_bytes_min=300
        )
        self.datagram(target, seal_datagram(host.key, host.grid.id, target.key, flags, host.wall_ms(), payload))


def _anybody(peer: NodeKey, hello: Hello) -> Member:
    return Member(frozenset(("work", "store", "submit", "native")))


__all__ = ["Adversary", "AdversaryHost", "AttackerHost", "Target"]
