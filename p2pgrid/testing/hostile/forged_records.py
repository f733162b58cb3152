"""Forged records and datagrams for the DHT, and what DHT nodes say to them.

A claimed DHT id that is not the hash of its key shows as a node record under a foreign key: ids themselves never cross
the wire.
"""

from __future__ import annotations

from typing import Any, cast

from p2pgrid.dht.datagram import HEADER_BYTES, REPLY, REQUEST, REQUEST_ID_BYTES, pack_payload, peek_datagram, seal_datagram, unpack_payload
from p2pgrid.dht.messages import Done, Nodes, Ping, Pong, Refused, Reply, Store
from p2pgrid.dht.records import Record, RecordKind
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import GridId, dht_id_of_key
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.node import Address, NodeInfo
from p2pgrid.testing.hostile.adversary import AdversaryHost, Target
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import Envelope, seal

SIGNATURE_BYTES = 64
MINUTE_MS = 60_000
_STALE_KEY = bytes(range(20))
"""Where the forger keeps one genuine record, to be followed by older ones."""
AUTHOR_AT = 10
"""Where the author's key stands in a datagram's header (docs/spec/dht.md)."""
KEY_BYTES = 32


def forged_record(host: AdversaryHost, target: Target) -> tuple[str, Store]:
    """What is wrong with it, and the request to keep it. All but those called stale are told to the grid."""
    rng, now_ms = host.rng, host.wall_ms()
    lie = encode(NodeInfo((Address("tls", "10.66.66.66", 6),), ("store",), "", "forged"))
    theirs, key = dht_id_of_key(target.key), rng.randbytes(20)
    later_ms, kind = now_ms + 10 * MINUTE_MS, RecordKind.BLOB_HOLDER
    ways: list[tuple[str, Record, bytes]] = [
        ("other author", Record(later_ms, RecordKind.NODE, theirs, now_ms + 1, b"", lie), target.key),
        ("foreign id", Record(later_ms, RecordKind.NODE, theirs, now_ms + 1, b"", lie), b""),
        ("foreign id", Record(later_ms, RecordKind.NODE, key, now_ms, b"", lie), b""),
        ("expired", Record(now_ms - MINUTE_MS, kind, key, now_ms, b"", b"\x01"), b""),
        ("immortal", Record(now_ms + 400 * 24 * 60 * MINUTE_MS, kind, key, now_ms, b"", b"\x01"), b""),
        ("other author", Record(later_ms, kind, key, now_ms, b"", b"\x01"), target.key),
        ("stale", Record(later_ms, kind, _STALE_KEY, rng.randrange(1 << 40), b"", b"\x01"), b""),
    ]
    name, record, author = rng.choice(ways)
    raw = seal(record, host.key, host.grid.id).raw
    if author:
        raw = encode(Envelope(Record.TYPE, encode(record), author, rng.randbytes(SIGNATURE_BYTES)))
    if name != "stale":
        host.poison(raw)
    return name, Store(raw)


def forged_datagram(host: AdversaryHost, target: Target) -> bytes:
    """A request or an answer in the name of another node, for another node, or unasked."""
    rng = host.rng
    frame, message = rng.choice([(REQUEST, Ping()), (REPLY, Pong(b"")), (REPLY, Nodes()), (REPLY, Done())])
    credential = encode(host.credentials) if rng.random() < 0.5 else None
    flags, payload = pack_payload(frame, rng.randbytes(REQUEST_ID_BYTES), encode(message), credential=credential)
    others = [other.key for other in host.targets() if other.key != target.key]
    way = rng.randrange(3)
    addressed = rng.choice(others) if way == 0 and others else target.key
    time_ms = host.wall_ms() + (rng.choice([-1, 1]) * 60 * MINUTE_MS if way == 1 else 0)
    raw = seal_datagram(host.key, host.grid.id, addressed, flags, time_ms, payload)
    if way == 2 and others:
        raw = raw[:AUTHOR_AT] + rng.choice(others) + raw[AUTHOR_AT + KEY_BYTES :]
    assert len(raw) > HEADER_BYTES
    return raw


def refusal_of(raw: bytes, grid: GridId) -> str:
    """The reason code of an answer that is a refusal, else an empty string."""
    try:
        datagram = peek_datagram(raw, grid, DEFAULT_LIMITS.datagram_bytes)
        payload = unpack_payload(datagram.flags, datagram.payload)
        message = decode(payload.message, cast(type[Any], Reply)) if payload.frame == REPLY else None
    except P2PGridError:
        return ""
    return f"dht-{message.reason}" if isinstance(message, Refused) else ""
