"""How much of the time the others are there: what this node sees of it, kept over restarts (docs/spec/finding.md#watching).

1. Sessions that begin and end are all that is looked at; :mod:`p2pgrid.core.availability` weighs them.
2. While this node is off nothing is counted for or against the others, but all of it against the node itself.
3. What was seen is written from time to time and at the end. A file that is lost or damaged costs what was learned, no more.
"""

from __future__ import annotations

import asyncio

import msgspec

from p2pgrid.core.availability import Availability, Row
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import NodeKey
from p2pgrid.offload import run_surely
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.home import Home

SEEN_FILE = "seen.json"
SAVE_S = 900.0
OFF_MAX_S = 400 * 86_400.0


class Seen(msgspec.Struct, frozen=True):
    """What is written: when, what was seen of the others, and of the node itself."""

    wall_ms: int
    rows: list[Row]
    own: list[Row]


class Watching:
    """Measures shares of time."""

    def __init__(self, context: Context, peers: Peers, home: Home, *, keeps: bool = True) -> None:
        """``keeps``: write what was seen to the home."""
        self._context = context
        self._home, self._keeps = home, keeps
        self._tasks = Tasks("watching")
        now = context.clock()
        self._others = Availability(now)
        self._own = Availability(now)
        self._own.came(context.me, now)
        self._started = False
        peers.on_came(self._on_came)
        peers.on_gone(lambda peer: self._others.gone(peer, context.clock()))
        self._live = peers.live

    async def start(self) -> None:
        """Take up what an earlier life saw."""
        context = self._context
        seen = await self._load() if self._keeps else None
        now = context.clock()
        if seen is not None:
            off_s = min(max(0.0, (context.wall_ms() - seen.wall_ms) / 1000), OFF_MAX_S)
            self._others = Availability(now, seen.rows)
            self._own = Availability(now - off_s, seen.own)
            self._own.came(context.me, now)
        for peer in sorted(self._live()):
            self._others.came(peer, now)
        self._started = True
        if self._keeps:
            self._tasks.spawn(self._save_often(), "save")

    async def close(self) -> None:
        await self._tasks.close()
        if self._started and self._keeps:
            await self._save()

    def _on_came(self, peer: NodeKey) -> None:
        self._others.came(peer, self._context.clock())

    def knows(self, node: bytes) -> bool:
        """Whether a node was ever met; who was not has the share that is supposed of anybody."""
        return node in self._of(node)

    def share(self, node: bytes) -> float:
        """The part of the time that a node is there, 0 to 1; of this node itself too."""
        return self._of(node).share(node, self._context.clock())

    def score(self, node: bytes) -> float:
        """How good a holder a node is: the chance that it is there a day from now."""
        return self._of(node).score(node, self._context.clock())

    def _of(self, node: bytes) -> Availability:
        return self._own if node == self._context.me else self._others

    async def _load(self) -> Seen | None:
        try:
            raw = await self._context.offload.run(self._home.read_private, SEEN_FILE)
            return msgspec.json.decode(raw, type=Seen) if raw else None
        except (P2PGridError, msgspec.MsgspecError, ValueError):
            return None

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await self._save()

    async def _save(self) -> None:
        context = self._context
        now = context.clock()
        raw = msgspec.json.encode(Seen(context.wall_ms(), self._others.rows(now), self._own.rows(now)))
        try:
            await run_surely(context.offload, self._home.write_private, SEEN_FILE, raw)
        except P2PGridError as error:
            context.tell(error.reason, f"what was seen of other nodes was not written: {error}")
