"""The gate: which datagrams come in, and how ours are made. No sockets here.

Inbound, cheapest check first:
1. size, version, grid; 2. the source's token bucket, then everybody's; 3. the clock, within the allowed skew;
4. an answer must match a call that is outstanding; 5. the signature; 6. membership; 7. a request from a
new address must be newer than all before it, so that a recorded one cannot be played from elsewhere;
8. the message itself, decoded by type.
What fails is counted by reason and leaves nothing behind. A stranger's request gets only `Who`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from p2pgrid.dht.contact import Place, Scope, pack_place, scope_of, source_of
from p2pgrid.dht.datagram import (
    COOKIE_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    REPLY,
    REQUEST,
    Datagram,
    Flag,
    Payload,
    overhead_bytes,
    pack_payload,
    peek_datagram,
    seal_datagram,
    unpack_payload,
    verify_datagram,
)
from p2pgrid.dht.limiter import TokenBuckets
from p2pgrid.dht.messages import Message, Reply, Request, Who
from p2pgrid.dht.peers import Peer, PeerBook
from p2pgrid.dht.settings import CREDENTIAL_BYTES_MAX, DhtContext
from p2pgrid.errors import IntegrityError, P2PGridError, RefusedError, UsageError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.codec import decoder, encode

_AMPLIFICATION_MAX = 3
_PADDED_BYTES = 400
"""Size of a request to a peer whose cookie we lack: it may then answer with a whole datagram."""


class Arrival(NamedTuple):
    """A datagram that passed. ``peer`` is None for a stranger, whose message is then not to be acted on."""

    place: Place
    author: NodeKey
    request_id: bytes
    message: Any
    is_reply: bool
    peer: Peer | None
    size_bytes: int
    validated: bool
    """Whether the author has shown that it receives what is sent to ``place``."""


_decode_request = decoder(Request)
_decode_reply = decoder(Reply)
Awaited = Callable[[bytes, bytes, Place], bool]
"""Whether an answer with this request id, of this key and from this place, is being waited for."""


class Gate:
    """Opens and seals datagrams for one node."""

    def __init__(self, context: DhtContext, book: PeerBook, awaited: Awaited) -> None:
        if len(context.credential) > CREDENTIAL_BYTES_MAX:
            raise UsageError(f"a credential is larger than {CREDENTIAL_BYTES_MAX} bytes")
        settings = context.settings
        self._context = context
        self._book = book
        self._awaited = awaited
        self._sources = TokenBuckets(context.clock, settings.source_per_s, settings.source_burst, settings.sources_limited)
        self._total = TokenBuckets(context.clock, settings.total_per_s, settings.total_per_s, 1)
        self._cookie_secret = context.rng.randbytes(32)
        self._bytes_max = context.limits.datagram_bytes
        self.dropped: Counter[str] = Counter()
        self.sent_bytes = 0
        self.received_bytes = 0
        """Of all datagrams, those that were dropped too."""
        self.proven: Scope | None = None
        """The scope from which this node was shown to be reachable; it calls itself a server within it."""

    def sources_len(self) -> int:
        """How many sources the limiter remembers."""
        return len(self._sources)

    def open(self, raw: bytes, place: Place) -> Arrival | None:
        """The datagram that just arrived from ``place``, or None when it is not wanted."""
        self.received_bytes += len(raw)
        try:
            return self._open(raw, place)
        except P2PGridError as error:
            self.dropped[str(error.reason) or "other"] += 1
            return None

    def _open(self, raw: bytes, place: Place) -> Arrival | None:
        context = self._context
        datagram = peek_datagram(raw, context.grid, self._bytes_max)
        if datagram.author == context.key.public:
            raise IntegrityError("a datagram of our own", reason=Reason.WRONG_PEER)
        if not self._sources.take(source_of(place)) or not self._total.take(None):
            raise RefusedError("too many datagrams", reason=Reason.BUSY)
        if abs(datagram.time_ms - context.wall_clock_ms()) > context.limits.clock_skew_ms:
            raise IntegrityError("the clock of a peer is off", reason=Reason.CLOCK_OFF)
        payload = unpack_payload(datagram.flags, datagram.payload)
        is_reply = payload.frame == REPLY
        if is_reply and not self._awaited(payload.request_id, datagram.author, place):
            raise IntegrityError("an answer nobody waits for", reason=Reason.WRONG_PEER)
        verify_datagram(datagram, context.grid, context.key.public)
        author = NodeKey(datagram.author)
        peer = self._book.admit(author, payload.credential)
        if peer is None:
            return self._stranger(payload, place, author, len(raw))
        self._note(peer, datagram, payload, place)
        message = _decode_reply(payload.message) if is_reply else _decode_request(payload.message)
        validated = is_reply or payload.cookie == self._cookie(peer, place)
        return Arrival(place, author, payload.request_id, message, is_reply, peer, len(raw), validated)

    def _stranger(self, payload: Payload, place: Place, author: NodeKey, size_bytes: int) -> Arrival:
        """A request is answered by `Who`; of its answers only `Who` is taken, for the stranger may be us."""
        if payload.frame == REQUEST:
            self.dropped[Reason.NOT_MEMBER] += 1
            return Arrival(place, author, payload.request_id, None, False, None, size_bytes, False)
        message = _decode_reply(payload.message)
        if not isinstance(message, Who):
            raise IntegrityError("an answer of a stranger", reason=Reason.NOT_MEMBER)
        return Arrival(place, author, payload.request_id, message, True, None, size_bytes, False)

    def _note(self, peer: Peer, datagram: Datagram, payload: Payload, place: Place) -> None:
        if payload.frame == REQUEST:
            if place != peer.asked_from and datagram.time_ms <= peer.newest_ms:
                raise IntegrityError("an old request from a new address", reason=Reason.STALE)
            peer.asked_from = place
            peer.newest_ms = max(peer.newest_ms, datagram.time_ms)
        elif payload.cookie is not None:
            peer.cookie = payload.cookie
        peer.server = bool(datagram.flags & Flag.SERVER)
        peer.knows_me = bool(datagram.flags & Flag.KNOWS_YOU)

    def _cookie(self, peer: Peer, place: Place) -> bytes:
        if peer.cookie_given is None or peer.cookie_given[0] != place:
            cookie = hashlib.blake2b(peer.key + pack_place(place), digest_size=COOKIE_BYTES, key=self._cookie_secret).digest()
            peer.cookie_given = (place, cookie)
        return peer.cookie_given[1]

    def fits(self, peer: Peer, message: bytes) -> bool:
        """Whether a request with this message, and all it has to carry, fits in one datagram."""
        credential_bytes = None if peer.knows_me else len(self._context.credential)
        return overhead_bytes(cookie=bool(peer.cookie), credential_bytes=credential_bytes) + len(message) <= self._bytes_max

    def seal_request(self, peer: Peer, place: Place, request_id: bytes, message: bytes) -> bytes:
        """A request for ``peer``, which :meth:`fits`."""
        credential = None if peer.knows_me else self._context.credential
        size_bytes_min = 0 if peer.cookie else _PADDED_BYTES - HEADER_BYTES
        flags, payload = pack_payload(
            REQUEST, request_id, message, cookie=peer.cookie, credential=credential, payload_bytes_min=size_bytes_min
        )
        return self._seal(peer, place, flags, payload)

    def room_bytes(self, arrival: Arrival) -> int:
        """How large the encoded answer to ``arrival`` may be."""
        peer = arrival.peer
        shown = None if peer is not None and peer.knows_me else len(self._context.credential)
        size_bytes = self._bytes_max if arrival.validated else min(self._bytes_max, _AMPLIFICATION_MAX * arrival.size_bytes)
        room_bytes = size_bytes - overhead_bytes(cookie=not arrival.validated, credential_bytes=shown)
        if room_bytes < FRAME_BYTES and shown:
            room_bytes += shown  # The credential is left out rather than the answer.
        return room_bytes

    def seal_reply(self, arrival: Arrival, message: Message) -> bytes:
        """The answer to ``arrival``: with our credential if its author lacks it, and a cookie if it showed none."""
        body = encode(message)
        peer = arrival.peer
        credential = None
        cookie = b"" if arrival.validated or peer is None else self._cookie(peer, arrival.place)
        if peer is not None and not peer.knows_me:
            size_bytes = overhead_bytes(cookie=bool(cookie), credential_bytes=len(self._context.credential)) + len(body)
            if size_bytes <= self._bytes_max and (arrival.validated or size_bytes <= _AMPLIFICATION_MAX * arrival.size_bytes):
                credential = self._context.credential
        flags, payload = pack_payload(REPLY, arrival.request_id, body, cookie=cookie, credential=credential)
        return self._seal(peer, arrival.place, flags, payload, arrival.author)

    def seal_unasked_reply(self, key: NodeKey, place: Place, request_id: bytes, message: Message) -> bytes:
        """An answer to a question that somebody else put to us on behalf of ``key`` (a relayed probe)."""
        flags, payload = pack_payload(REPLY, request_id, encode(message), credential=self._context.credential)
        return self._seal(self._book.get(key), place, flags, payload, key)

    def _seal(self, peer: Peer | None, place: Place, flags: int, payload: bytes, author: NodeKey | None = None) -> bytes:
        if self.proven is not None and scope_of(place) <= self.proven:
            flags |= Flag.SERVER
        if peer is not None and peer.member:
            flags |= Flag.KNOWS_YOU
        destination = author if author is not None else cast(Peer, peer).key
        context = self._context
        datagram = seal_datagram(context.key, context.grid, destination, flags, context.wall_clock_ms(), payload)
        self.sent_bytes += len(datagram)
        return datagram
