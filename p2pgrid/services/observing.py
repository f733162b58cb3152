"""How this node is, for its owner: the picture that ``top`` shows, and what it is made of (docs/spec/owner.md#looking).

1. A picture costs little, so that it can be looked at four times a second. It waits for no peer: states of others are those
   that were told last, and some are asked for again behind it (:mod:`p2pgrid.services.statuses`). Jobs come from memory; the
   index, which knows the older ones, is read every two seconds at most.
2. A pulse is taken every two seconds whether somebody looks or not, so that the last minutes are there when somebody does.
   That is one timer and two small files of the system; the pulses are bounded in number.
3. Of a thousand peers most are as they were a moment ago: a session that has one picture gets of the next the peers that
   have changed.
4. Who asks for more, ``own.peers`` and ``own.jobs``, is answered from a look at everything.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from p2pgrid import __version__
from p2pgrid.core.pausing import Usage
from p2pgrid.dht.server import GridServer
from p2pgrid.model.node import NodeInfo
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.following import job_line
from p2pgrid.services.happenings import Happenings
from p2pgrid.services.keeping import Keeping
from p2pgrid.services.leading import Leading
from p2pgrid.services.pausing import Pausing
from p2pgrid.services.peers import Peer, Peers
from p2pgrid.services.standing import reach_words, trust_word
from p2pgrid.services.working import Working
from p2pgrid.wire.faces import DhtHealth, Pulse
from p2pgrid.wire.messages import NodeStatus, StatusRequest
from p2pgrid.wire.owner import JobLine, JobsReply, Nothing, OwnStatus, PeerLine, PeersReply, PeersRequest, Snapshot, SnapshotRequest

PULSE_S = 2.0
PULSES_MAX = 150
"""Five minutes."""
JOBS_SHOWN = 50
EVENTS_SHOWN = 50
INDEX_AGAIN_S = 2.0


class Gauges(Protocol):
    """What is read of the machine."""

    def load(self) -> float:
        """Processes that want to run."""

    def usage(self) -> Usage:
        """How much of it is in use."""


class _Shown(NamedTuple):
    """What a session was shown last."""

    number: int
    lines: dict[bytes, PeerLine]


class Observing:
    """Serves the owner's looks at the node, and everybody's ``node.status``."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        dht: GridServer,
        leading: Leading,
        keeping: Keeping,
        working: Working,
        pausing: Pausing,
        happenings: Happenings,
        gauges: Gauges,
        info: Callable[[], NodeInfo],
        home: Path,
    ) -> None:
        """``info``: what this node tells others of itself."""
        self._context = context
        self._peers = peers
        self._dht = dht
        self._leading = leading
        self._keeping = keeping
        self._working = working
        self._pausing = pausing
        self._happenings = happenings
        self._gauges = gauges
        self._info = info
        self._home = home
        self._started_s = context.clock()
        self._pulses: deque[Pulse] = deque(maxlen=PULSES_MAX)
        self._timer: asyncio.TimerHandle | None = None
        self._rows: dict[bytes, JobLine] = {}
        """Jobs as the index knows them."""
        self._rows_at = float("-inf")
        self._lines: dict[bytes, tuple[Peer, PeerLine]] = {}
        """The lines made last: one that is still right is not made anew."""
        self._shown: WeakKeyDictionary[Session, _Shown] = WeakKeyDictionary()
        methods = context.methods
        methods.on("node.status", StatusRequest, lambda session, request: self.status())
        methods.on("own.status", Nothing, lambda session, request: self._own_status(), owner_only=True)
        methods.on("own.peers", PeersRequest, self._on_peers, owner_only=True)
        methods.on("own.jobs", Nothing, self._on_jobs, owner_only=True)
        methods.on("own.snapshot", SnapshotRequest, self._on_snapshot, owner_only=True)

    async def start(self) -> None:
        """Begin to take pulses."""
        self._timer = asyncio.get_running_loop().call_later(PULSE_S, self._beat)

    async def close(self) -> None:
        """Take no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- this node ---------------------------------------------------------------------

    def status(self) -> NodeStatus:
        """This node's live state."""
        context, worker, pause = self._context, self._working.worker, self._pausing.state
        running = worker.running
        return NodeStatus(
            free_cores=max(0, context.policy.cores - running) if pause.reason is None else 0,
            running=running,
            queued=worker.queued,
            done=self._working.done,
            storage_used_bytes=context.blobs.usage().used_bytes,
            uptime_s=context.clock() - self._started_s,
            load=self._gauges.load(),
            jobs_kept=len(self._keeping.jobs),
            paused=pause.reason or "",
            paused_since_ms=pause.since_ms,
        )

    def _own_status(self) -> OwnStatus:
        context = self._context
        info = self._info()
        return OwnStatus(
            node=context.me,
            name=info.name,
            grid=context.grid.name,
            grid_id=context.grid.id,
            roles=tuple(sorted(context.member.roles)),
            info=info,
            status=self.status(),
            pid=os.getpid(),
            version=__version__,
            home=str(self._home),
            dht_server=self._dht.is_server,
            dht_contacts=len(self._dht.router),
            dht_records=len(self._dht.storage),
            expires_ms=context.member.expires_ms,
        )

    # -- pulses ------------------------------------------------------------------------

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PULSE_S, self._beat)
        self._pulses.append(self._pulse())

    def _pulse(self) -> Pulse:
        context, worker, usage = self._context, self._working.worker, self._gauges.usage()
        sent_bytes, received_bytes = self._peers.traffic()
        return Pulse(
            wall_ms=context.wall_ms(),
            peers=self._peers.count(),
            running=worker.running,
            queued=worker.queued,
            done=self._working.done,
            cpu_share=usage.cpu_share,
            memory_bytes=usage.memory_bytes,
            storage_bytes=context.blobs.usage().used_bytes,
            sent_bytes=sent_bytes,
            received_bytes=received_bytes,
        )

    # -- peers -------------------------------------------------------------------------

    async def _on_peers(self, session: Session, request: PeersRequest) -> PeersReply:
        await self._peers.ask_all(refresh=request.refresh)
        return PeersReply(tuple(self._peer_lines(self.status()).values()), self._peers.complete)

    def _peer_lines(self, own: NodeStatus) -> dict[bytes, PeerLine]:
        """Every node that is known, this one first. A line that has not changed is the same object as before."""
        me, native = self._context.me, self._context.policy.native
        line, *others = self._peers.known()
        now_ms = self._context.wall_ms()
        own_line = PeerLine(me, line.info, own, 0.0, line.path, line.since_ms, trust_word(None, native=native), status_ms=now_ms)
        found: dict[bytes, PeerLine] = {me: own_line}
        before, self._lines = self._lines, {}
        for peer in others:
            made = before.get(peer.key)
            if made is None or made[0] != peer:
                made = peer, _peer_line(peer, native)
            self._lines[peer.key] = made
            found[peer.key] = made[1]
        return found

    # -- jobs --------------------------------------------------------------------------

    async def _on_jobs(self, session: Session, request: Nothing) -> JobsReply:
        await self._read_index()
        return JobsReply(self._job_lines())

    async def _read_index(self) -> None:
        self._rows_at = self._context.clock()
        rows: dict[bytes, JobLine] = {}
        for row in await self._context.offload.run(self._context.index.jobs):
            state = row.state if row.state != "running" else "unknown"
            counts = (row.units, row.done, row.failed, 0)
            rows.setdefault(row.id, JobLine(row.id, row.name, state, *counts, row.created_ms, row.expires_ms, row.role))
        self._rows = rows

    def _job_lines(self) -> tuple[JobLine, ...]:
        """Every job known here, newest first: live ones in full, the others from the index."""
        now = self._context.clock()
        lines = dict(self._rows)
        for kept in self._keeping.jobs.values():
            lines[kept.id] = job_line(kept, self._leading.jobs.get(kept.id), now)
        return tuple(sorted(lines.values(), key=lambda line: -line.created_ms))

    # -- everything --------------------------------------------------------------------

    async def _on_snapshot(self, session: Session, request: SnapshotRequest) -> Snapshot:
        if request.refresh:
            await self._peers.ask_all(refresh=True)
        else:
            self._peers.renew_statuses()
        if self._context.clock() - self._rows_at >= INDEX_AGAIN_S:
            await self._read_index()
        status = self._own_status()
        lines, before = self._peer_lines(status.status), self._shown.get(session)
        changes = before is not None and before.number == request.have
        known = before.lines if before is not None and changes else {}
        number = before.number + 1 if before is not None else 1
        self._shown[session] = _Shown(number, lines)
        return Snapshot(
            status=status,
            peers=tuple([line for key, line in lines.items() if known.get(key) is not line]),
            complete=self._peers.complete,
            jobs=self._jobs_shown(),
            events=self._happenings.recent(EVENTS_SHOWN),
            wall_ms=self._context.wall_ms(),
            units_done=status.status.done,
            pulses=(*self._pulses, self._pulse()),
            dht=self._dht_health(),
            reach=self._reach(),
            number=number,
            since=request.have if changes else 0,
            gone=tuple([key for key in known if key not in lines]),
        )

    def _jobs_shown(self) -> tuple[JobLine, ...]:
        """The newest, and before those that have ended the ones that run."""
        lines = self._job_lines()
        if len(lines) > JOBS_SHOWN:
            chosen = sorted(lines, key=lambda line: (line.state != "running", -line.created_ms))[:JOBS_SHOWN]
            lines = tuple(sorted(chosen, key=lambda line: -line.created_ms))
        return lines

    def _dht_health(self) -> DhtHealth:
        stats = self._dht.stats()
        return DhtHealth(
            server=stats["server"] is not None,
            buckets=stats["buckets"],
            contacts=stats["contacts"],
            records=stats["records"],
            lookups=stats["lookups"],
            p50_ms=stats["lookup_p50_ms"] or 0.0,
            p95_ms=stats["lookup_p95_ms"] or 0.0,
        )

    def _reach(self) -> str:
        return reach_words(
            self._info().addresses,
            dialled_by=self._peers.dialled_by(),
            live=self._peers.count(),
            proven=self._dht.is_server and not self._dht.reach.assumed,
            seen_as=self._dht.seen_from_outside(),
        )


def _peer_line(peer: Peer, native: bool) -> PeerLine:
    trust = trust_word(peer.roles, native=native) if peer.path else ""
    return PeerLine(peer.key, peer.info, peer.status, peer.rtt_s, peer.path, peer.since_ms, trust, status_ms=peer.status_ms)
