"""What this node remembers of other nodes: membership, cookies, round trips. Bounded, least recently used out first.

An entry is made only for a key we chose to call, or one whose signature and membership were verified:
datagrams of strangers leave nothing behind.
"""

from __future__ import annotations

from collections import OrderedDict

from p2pgrid.dht.contact import Place
from p2pgrid.dht.rtt import RttEstimate
from p2pgrid.dht.settings import DhtContext
from p2pgrid.model.ids import NodeKey


class Peer:
    """One other node. ``member`` says whether its credential has been verified."""

    __slots__ = (
        "answered_from",
        "asked_from",
        "checked_at",
        "cookie",
        "cookie_given",
        "credential",
        "key",
        "knows_me",
        "member",
        "newest_ms",
        "rtt",
        "server",
    )

    def __init__(self, key: NodeKey) -> None:
        self.key = key
        self.member = False
        self.credential = b""
        self.checked_at = 0.0
        self.knows_me = False
        """Whether it has verified our credential."""
        self.cookie = b""
        """What it wants to see before it sends more than a little to our address."""
        self.cookie_given: tuple[Place, bytes] | None = None
        """What we want to see from it, and from where."""
        self.server = False
        self.answered_from: Place | None = None
        """Where it last answered a call of ours: an address that is proven to be its own."""
        self.asked_from: Place | None = None
        self.newest_ms = 0
        self.rtt = RttEstimate()


class PeerBook:
    """The table of peers."""

    def __init__(self, context: DhtContext) -> None:
        self._context = context
        self._peers: OrderedDict[NodeKey, Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def get(self, key: bytes) -> Peer | None:
        """The entry of a peer, if there is one."""
        return self._peers.get(NodeKey(key))

    def meet(self, key: NodeKey) -> Peer:
        """The entry of a peer we are about to call, made if need be."""
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = Peer(key)
            if len(self._peers) > self._context.settings.peers_known:
                self._peers.popitem(last=False)
        else:
            self._peers.move_to_end(key)
        return peer

    def admit(self, key: NodeKey, credential: bytes | None) -> Peer | None:
        """The entry of a member; None when this key has not shown a credential that holds.

        The caller has verified that the datagram is signed by ``key``.
        """
        now = self._context.clock()
        peer = self._peers.get(key)
        if peer is not None and peer.member:
            if now - peer.checked_at < self._context.settings.credential_check_s:
                self._peers.move_to_end(key)
                return peer
            peer.member = False
            credential = peer.credential if credential is None else credential
        shown = credential or b""
        if not self._context.authorise(key, shown):
            return None
        peer = self.meet(key)
        peer.member, peer.credential, peer.checked_at = True, shown, now
        return peer
