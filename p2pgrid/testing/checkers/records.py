"""S6: a record is never replaced by a lower sequence at its holder, nor served after its expiry. S3: nor served if forged.

Datagrams are read as docs/spec/dht.md lays them out. All but replies that carry records are passed over after a look at
a few bytes, and a record that was met before is not read again. A datagram says itself who sent it: that is believed only
of one that comes from the address of that node's machine, since hostile machines send what they like from their own.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from blake3 import blake3

from p2pgrid.errors import MalformedError
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.journal import Journal
from p2pgrid.testing.observe import Onlooker
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Envelope

if TYPE_CHECKING:
    from p2pgrid.node import Node

VERSION, REPLY, VALUES = 1, 1, 3
CREDENTIAL, COOKIE, PADDING = 2, 8, 16
HEADER_BYTES, COOKIE_BYTES, REQUEST_ID_BYTES = 114, 8, 20
REMEMBERED = 50_000
_LENGTH = struct.Struct(">H")
_values = msgspec.msgpack.Decoder(tuple[int, list[bytes], bool])


class _Body(msgspec.Struct, frozen=True, array_like=True):
    expires_ms: int
    kind: int
    key: bytes
    seq: int


class _Known(NamedTuple):
    slot: tuple[int, bytes, bytes]
    seq: int
    expires_ms: int
    fault: str
    """Why nobody may believe it; empty for nothing."""


def records_in(data: bytes) -> list[bytes]:
    """The records that a datagram carries: those of a reply with values, of any other none."""
    if len(data) <= HEADER_BYTES or data[0] != VERSION:
        return []
    flags, at = data[1], HEADER_BYTES
    if flags & COOKIE:
        at += COOKIE_BYTES
    for block in (CREDENTIAL, PADDING):
        if flags & block:
            if at + 2 > len(data):
                return []
            at += 2 + _LENGTH.unpack_from(data, at)[0]
    message = at + 1 + REQUEST_ID_BYTES
    # A msgpack array of a few items, the first of them the tag.
    if len(data) < message + 2 or data[at] != REPLY or data[message] & 0xF0 != 0x90 or data[message + 1] != VALUES:
        return []
    try:
        return _values.decode(data[message:])[1]
    except msgspec.MsgspecError:
        return []


class RecordChecker(Onlooker):
    """S6, in what honest nodes serve."""

    invariant = "S6"

    def __init__(self, journal: Journal, facts: Facts) -> None:
        super().__init__()
        self._journal = journal
        self._facts = facts
        self._known: OrderedDict[bytes, _Known | None] = OrderedDict()
        self._served: OrderedDict[tuple[bytes, Any], tuple[int, int]] = OrderedDict()
        """By (holder, slot): the highest sequence it served, and when that record expires."""
        self.served = 0
        """Records that were looked at."""

    def on_start(self, name: str, node: Node) -> None:
        """Records are not kept over a restart: a holder may begin again with an older one."""
        key = node.key.public
        for known in [known for known in self._served if known[0] == key]:
            del self._served[known]

    def on_datagram(self, data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> None:
        found = records_in(data)
        if not found:
            return
        holder = data[10:42]
        name = self._journal.machines.get(holder)
        if name is None or name not in self._journal.up or not self.view.honest(name):
            return
        if source[0] != self._journal.nodes[name].config.host:
            return
        # By its own clock it must not serve it; nor long after the true time, however wrong that clock is.
        oldest_ms = max(self.view.wall_ms(name), self.view.wall_ms() - self._facts.limits.clock_skew_ms)
        for raw in found:
            known = self._look(raw)
            if known is None:
                continue
            self.served += 1
            where = f"record of {known.slot[2].hex()[:8]} under {known.slot[1].hex()[:8]}"
            if known.fault:
                self.violate(name, f"a {where} was served that {known.fault}", "S3")
            if known.expires_ms < oldest_ms:
                self.violate(name, f"a {where} was served {(oldest_ms - known.expires_ms) / 1000:.0f} s after it had expired")
            place = holder, known.slot
            seq, expires_ms = self._served.pop(place, (-1, 0))
            if known.seq < seq and expires_ms >= oldest_ms:
                self.violate(name, f"a {where} fell back from sequence {seq} to {known.seq}")
            self._served[place] = max((known.seq, known.expires_ms), (seq, expires_ms))
            if len(self._served) > REMEMBERED:
                self._served.popitem(last=False)

    def _look(self, raw: bytes) -> _Known | None:
        if raw in self._known:
            return self._known[raw]
        try:
            envelope = decode(raw, Envelope)
            body = decode(envelope.body, _Body)
            known = _Known((body.kind, body.key, envelope.author), body.seq, body.expires_ms, self._fault(raw, envelope))
        except MalformedError:
            known = None
        self._known[raw] = known
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known

    def _fault(self, raw: bytes, envelope: Envelope) -> str:
        if raw in self._facts.poisoned:
            return "was forged"
        message = b"p2pgrid/1/record\0" + self._facts.grid + blake3(envelope.author + envelope.body).digest()
        if envelope.type != "record" or not self._facts.holds(envelope.author, envelope.signature, message):
            return "has a signature that does not hold"
        return ""
