"""Why a peer does nothing for this node, or not more: whether it is there, what it offers, what it refused, what it holds.

The peer itself is asked how it is, and dialled if it is not connected: the answer of a dial is the best reason there is.
"""

from __future__ import annotations

from p2pgrid.errors import P2PGridError, UnreachableError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.node import NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.explaining.standing import CLOCK_WARN_MS, Standing, offer_text
from p2pgrid.services.explaining.words import because, code_of, count_text, fact, moment_text, named, names_text, said, span_text
from p2pgrid.services.happenings import Happenings
from p2pgrid.services.health import Health
from p2pgrid.services.leading import Leading
from p2pgrid.services.peers import Peers
from p2pgrid.services.watching import Watching
from p2pgrid.wire.faces import Because, Explanation
from p2pgrid.wire.messages import NodeStatus, StatusRequest

DIAL_S = 6.0
STATUS_S = 2.0
EVENTS_SHOWN = 5
JOBS_SHOWN = 5


class PeerState:
    """Explains other nodes."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        standing: Standing,
        health: Health,
        leading: Leading,
        watching: Watching,
        happenings: Happenings,
    ) -> None:
        self._context = context
        self._peers = peers
        self._standing = standing
        self._health = health
        self._leading = leading
        self._watching = watching
        self._happenings = happenings

    async def explain(self, node: NodeKey) -> Explanation:
        """What is known of a node, and what it says. Raises UnreachableError when nothing is known of it."""
        error = await self._dialled(node)
        session = self._peers.live().get(node)
        if session is None and not self._is_known(node):
            raise UnreachableError(
                f"nothing is known of node {short(node)}", reason=Reason.DEAD, hint="p2pgrid peers lists those that this node knows"
            )
        status = await self._status(node) if session is not None else None
        info, who = self._peers.info(node), named(self._peers, node, self._context.me)
        lines = self._there(node, session, status) if session is not None else self._away(node, error)
        lines += [self._offer(info), *self._clock(node), *self._declined(node), *self._holds(node), *self._share(node), *self._events(node)]
        problems = [line for line in lines if line.reason]
        state = "away" if session is None else "paused" if status is not None and status.paused else "live"
        text = f"{who} is {state}"
        return Explanation("peer", node, state, text, (*problems, *[line for line in lines if not line.reason]))

    def _is_known(self, node: NodeKey) -> bool:
        health = self._health
        return node in health.dials or node in health.refused or node in health.ended or self._peers.info(node) != NodeInfo()

    # -- asking ----------------------------------------------------------------------------

    async def _dialled(self, node: NodeKey) -> P2PGridError | None:
        """Dial a node that is not connected: an error that is old explains little."""
        if self._peers.is_live(node) or (node in self._health.refused and not self._peers.info(node).addresses):
            return None  # Who was not let in has told no address, and a lookup of it takes seconds.
        await self._peers.reachable([node], DIAL_S)
        return None if self._peers.is_live(node) else UnreachableError("it did not answer in time", reason=Reason.TIMEOUT)

    async def _status(self, node: NodeKey) -> NodeStatus | None:
        try:
            return await self._peers.call(node, "node.status", StatusRequest(), NodeStatus, timeout_s=STATUS_S)
        except P2PGridError:
            return None

    # -- telling ---------------------------------------------------------------------------

    def _there(self, node: NodeKey, session: Session, status: NodeStatus | None) -> list[Because]:
        path, wall_ms = session.path(), self._context.wall_ms()
        since_s = max(0.0, self._context.clock() - session.opened_s)
        rtt = f", {path.rtt_s * 1000:.3g} ms there and back" if path.rtt_s else ""
        who = "this node" if session.connection.dialled else "it"
        lines = [fact(f"connected for {span_text(since_s)}: {path.kind or 'direct'}{rtt}; {who} began the connection")]
        if status is None:
            return [because(Reason.BUSY, "it is connected and did not say how it is", next_step="try again in a moment"), *lines]
        code = code_of(status.paused)
        if code is not None:
            since = f", for {span_text((wall_ms - status.paused_since_ms) / 1000)}" if status.paused_since_ms else ""
            step = "its owner decides that: p2pgrid why me there says what ends it"
            lines.append(because(code, f"it takes no work: {code.sentence}{since}", next_step=step))
        busy = f"{count_text(status.running, 'unit')} running, {status.queued} waiting, {status.done} done"
        lines.append(fact(f"{busy} since it started {span_text(status.uptime_s)} ago; {count_text(status.free_cores, 'core')} free"))
        return lines

    def _away(self, node: NodeKey, error: P2PGridError | None) -> list[Because]:
        health, lines = self._health, list[Because]()
        dial, refused, ended = health.dials.get(node), health.refused.get(node), health.ended.get(node)
        if dial is not None:
            lines.append(self._standing.trouble(dial, "dialling it"))
        elif refused is None and not self._peers.info(node).addresses:
            text = "no address of it is known, so it cannot be dialled"
            lines.append(because(Reason.DEAD, text, next_step="wait until it dials this node"))
        elif refused is None and error is not None:
            lines.append(because(Reason.TIMEOUT, f"dialling it: {error.message}"))
        if refused is not None and (dial is None or dial.reason != refused.reason):
            lines.append(self._standing.trouble(refused, "it dialled this node"))
        if ended is not None and ended.reason == Reason.SHUTDOWN:
            ago = span_text((self._context.wall_ms() - ended.wall_ms) / 1000)
            lines.append(because(Reason.SHUTDOWN, f"it left, {ago} ago", next_step="start it again there: p2pgrid join"))
        elif ended is not None:
            lines.append(self._standing.trouble(ended, "it was connected"))
        return lines

    def _offer(self, info: NodeInfo) -> Because:
        if info == NodeInfo():
            return fact("what it offers is not known")
        places = names_text([f"{said(address.host)} port {address.port}" for address in info.addresses[:4]])
        under = [fact(f"addresses: {places or 'none known'}")]
        if info.offer.platform:
            under.append(fact(f"{said(info.offer.platform)}, Python {said(info.offer.python)}, p2pgrid {said(info.version)}"))
        if info.roles:
            under.append(fact(f"roles: {names_text([said(role) for role in info.roles[:8]])}"))
        if info.offer.cores and not info.offer.runtimes:
            text = f"it offers {offer_text(info)}"
            return because(Reason.NO_RUNTIME, text, under, next_step="p2pgrid why me there says which cage does not hold")
        return fact(f"it offers {offer_text(info)}", under)

    def _clock(self, node: NodeKey) -> list[Because]:
        ahead_ms = self._health.clock_of(node)
        if ahead_ms is None or abs(ahead_ms) < CLOCK_WARN_MS:
            return []
        text = f"its clock is {span_text(abs(ahead_ms) / 1000)} {'ahead of' if ahead_ms > 0 else 'behind'} this node's"
        if abs(ahead_ms) <= self._context.limits.clock_skew_ms:
            return [fact(text)]
        reading = self._health.clock()
        agree = reading is not None and reading.peers > 2 and abs(reading.ahead_ms) < CLOCK_WARN_MS
        step = "set the clock there: the other nodes agree with this one" if agree else "set the one that is wrong: date -u shows it"
        return [because(Reason.CLOCK_OFF, text, next_step=step)]

    def _declined(self, node: NodeKey) -> list[Because]:
        """What it said it takes no work of this node's jobs for."""
        lines = []
        for led in self._leading.jobs.values():
            code = code_of(led.declined.get(node, ""))
            if code is not None and not led.ended.is_set():
                lines.append(because(code, f"it declined job {short(led.id)}: {code.sentence}"))
        return lines[:JOBS_SHOWN]

    def _holds(self, node: NodeKey) -> list[Because]:
        """Units of jobs that this node leads which it has leased."""
        lines, now = [], self._context.clock()
        for led in self._leading.jobs.values():
            book = led.lead.book
            leases = [book.leases[lease] for lease in sorted(book.by_worker.get(node, ())) if lease in book.leases]
            if leases:
                units = count_text(sum(lease.open for lease in leases), "unit")
                oldest = span_text(now - min(lease.since for lease in leases))
                lines.append(fact(f"job {short(led.id)}: it has {units} leased, the oldest for {oldest}"))
        return lines[:JOBS_SHOWN]

    def _share(self, node: NodeKey) -> list[Because]:
        if not self._watching.knows(node):
            return []
        return [fact(f"it is there {self._watching.share(node):.0%} of the time, as this node has seen it")]

    def _events(self, node: NodeKey) -> list[Because]:
        events = self._happenings.about(node, EVENTS_SHOWN)
        if not events:
            return []
        lines = [fact(f"{moment_text(event.wall_ms)} {event.reason}: {said(event.text)}") for event in reversed(events)]
        return [fact("what happened here with it", lines)]
