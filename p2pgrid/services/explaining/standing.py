"""How a node stands with the others of its grid: who is there and who is not, how it is reached, its clock, its membership."""

from __future__ import annotations

import ipaddress

from p2pgrid.dht.contact import Scope
from p2pgrid.dht.server import GridServer
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.node import ROLES, NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.net.pool import Pool
from p2pgrid.services.context import Context
from p2pgrid.services.explaining.words import because, code_of, count_text, fact, moment_text, named, names_text, said, span_text
from p2pgrid.services.health import ContactTried, Health, Trouble, dial_step
from p2pgrid.services.membership import HomeMembership
from p2pgrid.services.peers import Peers
from p2pgrid.wire.faces import Because

CLOCK_WARN_MS = 5_000.0
EXPIRES_SOON_MS = 14 * 86_400_000
SHOWN_MAX = 8
_DENIED = {
    "work": "it runs no units of others",
    "store": "it keeps nothing for others",
    "submit": "it submits no jobs",
    "native": "it gets no machine code of others",
}


class Standing:
    """Looks at what is known already; asks nobody."""

    def __init__(self, context: Context, peers: Peers, pool: Pool, dht: GridServer, health: Health, membership: HomeMembership) -> None:
        self._context = context
        self._peers = peers
        self._pool = pool
        self._dht = dht
        self._health = health
        self._membership = membership

    @property
    def connected(self) -> int:
        """How many other nodes are."""
        return len(self._peers.live())

    def trouble(self, trouble: Trouble, who: str, contact: ContactTried | None = None) -> Because:
        """A session that did not come to be, as a reason with its step. ``who``: the beginning of the sentence."""
        code = code_of(trouble.reason)
        ago = span_text((self._context.wall_ms() - trouble.wall_ms) / 1000)
        text = f"{who}: {said(trouble.text)}, {ago} ago"
        step = dial_step(trouble, contact.contact if contact else None)
        return because(code, text, next_step=step) if code is not None else fact(text)

    # -- who is there ----------------------------------------------------------------------

    def others(self) -> Because:
        """How many are connected; if nobody is, why.

        Whom this node dialled decides what comes first and what to do. Those who dialled it are strangers as often as not: they
        stand below, and under a line without a code.
        """
        live = self._peers.live()
        dials, refused = self._dials(), self._refused()
        if live:
            names = names_text([named(self._peers, key, self._context.me) for key in sorted(live)[:3]])
            more = f" and {len(live) - 3} more" if len(live) > 3 else ""
            return fact(f"connected to {count_text(len(live), 'other node')}: {names}{more}", [*dials, *refused])
        silent = [
            self.trouble(one.error, f"{one.contact.host} port {one.contact.port}", one)
            for one in self._health.contacts
            if one.error is not None
        ][:SHOWN_MAX]
        gone = [
            self.trouble(trouble, named(self._peers, node, self._context.me))
            for node, trouble in list(self._health.ended.items())[-SHOWN_MAX:]
        ]
        if silent or gone or dials:
            first = next((code_of(line.reason) for line in (*dials, *silent) if line.reason not in ("", Reason.TIMEOUT)), None)
            lines = [*dials, *silent, *gone, *refused]
            if first is not None and not gone:
                return because(first, f"no other node is connected: {first.sentence}", lines)
            return because(Reason.NO_CONTACT, "no other node is connected, and none that is known answers", lines)
        if self._health.contacts or self._health.dials:
            return because(Reason.NO_CONTACT, "no other node is connected", refused)
        return because(Reason.ALONE, "no other node is in the grid as far as this one knows", refused)

    def _dials(self) -> list[Because]:
        """Peers that cannot be dialled, or refuse this node: the newest."""
        me, lines = self._context.me, list[Because]()
        for node, trouble in list(self._health.dials.items())[-SHOWN_MAX:]:
            if not self._peers.is_live(node) and not self._is_contact(node):
                lines.append(self.trouble(trouble, f"{named(self._peers, node, me)} cannot be dialled"))
        return lines

    def _refused(self) -> list[Because]:
        """One line with the newest that dialled this node and came to nothing, if there are any."""
        me, lines = self._context.me, list[Because]()
        for node, trouble in list(self._health.refused.items())[-SHOWN_MAX:]:
            if not self._peers.is_live(node) and node not in self._health.dials:
                lines.append(self.trouble(trouble, f"{named(self._peers, node, me)} dialled and was not let in"))
        return [fact("who dialled this node and has no session", lines)] if lines else []

    def _is_contact(self, node: NodeKey) -> bool:
        """Whether the first contacts say it already."""
        return not self._peers.live() and any(one.contact.key == node and one.error is not None for one in self._health.contacts)

    # -- how it is reached -------------------------------------------------------------------

    def reach(self) -> Because:
        """Whether others can begin connections to this node, and how that is known."""
        addresses = self._pool.addresses()
        where = names_text([f"{address.host} port {address.port}" for address in addresses[:3]])
        live = self._peers.live()
        dialled_in = sum(not session.connection.dialled for session in live.values())
        under = [fact(f"it listens on {where}")]
        if dialled_in:
            under.append(fact(f"{count_text(dialled_in, 'node')} of those connected began the connection"))
        under += self._seen_from_outside({address.host for address in addresses})
        port = addresses[0].port if addresses else 0
        if addresses and all(_scope(address.host) is Scope.LOOPBACK for address in addresses):
            if live:
                return fact("reachable by nodes of this machine only: it listens on loopback", under)
            return because(Reason.LOOPBACK_ONLY, "", under)
        reach = self._dht.reach
        if live and not self._dht.stats()["contacts"]:
            text = f"{count_text(len(live), 'node')} connected over TCP, and nobody answers over UDP at port {port}"
            return because(Reason.NO_DATAGRAMS, text, under)
        if reach.assumed or (reach.proven is None and not live and not dialled_in):
            return fact("reachable or not: not known, as nobody could be asked to try", under)
        if reach.proven is None and dialled_in:
            return fact("others reach it over TCP; answers from places it never wrote to do not arrive over UDP", under)
        if reach.proven is None:
            text = f"nobody could begin a connection to port {port}: a peer was asked to answer from another place, and nothing arrived"
            step = f"open port {port} for TCP and UDP in the firewall, and at the router; {Reason.UNREACHABLE.next_step.partition('; ')[2]}"
            return because(Reason.UNREACHABLE, text, under, next_step=step)
        far = {Scope.LOOPBACK: "this machine", Scope.PRIVATE: "its own network", Scope.PUBLIC: "anywhere"}[reach.proven]
        how = "one peer was asked so far" if reach.provisional else "peers were asked to answer from a place that it never wrote to"
        return fact(f"reachable from {far}: {how}", under)

    def _seen_from_outside(self, own: set[str]) -> list[Because]:
        seen = sorted({place.host for place in self._dht.protocol.seen_as.values()} - own)
        if not seen or not own:
            return []
        return [fact(f"others see it at {names_text(seen[:3])}: there is a router in between that translates addresses")]

    # -- its clock -----------------------------------------------------------------------------

    def clock(self) -> Because | None:
        """This node's clock against those of the others; None while nobody's is known."""
        reading = self._health.clock()
        if reading is None:
            return None
        ahead = reading.ahead_ms < 0
        span = span_text(abs(reading.ahead_ms) / 1000)
        of_whom = "that of the one node it talked to" if reading.peers == 1 else f"the median of {reading.peers} nodes"
        text = f"its clock is {span} {'ahead of' if ahead else 'behind'} {of_whom}"
        if abs(reading.ahead_ms) > self._context.limits.clock_skew_ms:
            dropped = self._dht.protocol.gate.dropped[str(Reason.CLOCK_OFF)]
            under = [fact(f"{count_text(dropped, 'datagram')} of others were dropped for it")] if dropped else []
            return because(Reason.CLOCK_OFF, text, under, next_step=f"set the clock {'back' if ahead else 'forward'}: date -u shows it")
        if abs(reading.ahead_ms) >= CLOCK_WARN_MS:
            return fact(f"{text}; more than five minutes are refused")
        return fact(f"its clock agrees with {of_whom}")

    # -- its membership --------------------------------------------------------------------------

    def membership(self) -> Because:
        """Until when it is a member, and what it may not do."""
        context = self._context
        member, name = context.member, said(context.grid.name)
        left_ms = member.expires_ms - context.wall_ms()
        lacking = [role for role in ROLES[:4] if role not in member.roles]
        under = [because(Reason.NO_ROLE, f"it lacks the role {role}: {_DENIED[role]}") for role in lacking]
        if self._membership.root_seed:
            under.append(fact("it founded the grid"))
        until = moment_text(member.expires_ms)
        if left_ms <= 0:
            step = "ask for a new invite, then: p2pgrid leave, p2pgrid join INVITE"
            return because(Reason.EXPIRED, f"its membership of '{name}' ended at {until}", under, next_step=step)
        if left_ms < EXPIRES_SOON_MS:
            step = "ask for a new invite, then: p2pgrid leave, p2pgrid join INVITE"
            return because(
                Reason.EXPIRES_SOON, f"its membership of '{name}' ends in {span_text(left_ms / 1000)}, at {until}", under, next_step=step
            )
        return fact(f"member of '{name}' until {until}, as {short(context.me)}", under)


def offer_text(info: NodeInfo) -> str:
    """What a node offers, in a line."""
    offer = info.offer
    runtimes = f" for {names_text(offer.runtimes)}" if offer.runtimes else ", no runtime"
    cores = f"{count_text(offer.cores, 'core')}{runtimes}" if offer.cores else "no cores"
    return f"{cores}, {size_text(offer.memory_bytes)} of memory, {size_text(offer.storage_bytes)} of storage"


def size_text(size_bytes: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1000 or unit == "GiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} {unit}" if size_bytes >= 100 or unit == "B" else f"{size_bytes:.3g} {unit}"


def _scope(host: str) -> Scope:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Scope.PUBLIC
    return Scope.LOOPBACK if address.is_loopback else Scope.PRIVATE if address.is_private else Scope.PUBLIC
