"""Finding nodes without a directory: a random sample, or all of a small grid.

**Sample**: look up a random id and ask the servers nearest to it for random node records each. No key is
hotter than another, and nodes that are in no table (behind NAT) are found as well as others.

**Enumerate**: go through the id space region by region. A lookup of k servers around an id shows all servers
that share a longer prefix with it than the farthest of them. A record in that region is kept by the ``copies``
servers nearest to it, so of m servers in the region it is enough to hear m - copies + 1.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from p2pgrid.dht.contact import GridNode
from p2pgrid.dht.messages import SAMPLE_MAX
from p2pgrid.dht.protocol import GridProtocol
from p2pgrid.dht.records import RecordKind, SignedRecord, newest, open_record, peek_slot
from p2pgrid.errors import IntegrityError, MalformedError
from p2pgrid.model.ids import DhtId

Lookup = Callable[[DhtId], Awaitable[list[GridNode]]]
_ID_BYTES = 20
_LAST_ID = (1 << 160) - 1
_SAMPLED_SERVERS = 8
_WALKS_AT_ONCE = 8
_PAGES_MAX = 256


def _checked(protocol: GridProtocol, raws: list[bytes]) -> list[SignedRecord]:
    context = protocol.context
    good = []
    for raw in raws:
        try:
            record = open_record(raw, context.grid, context.wall_clock_ms(), context.limits)
        except (IntegrityError, MalformedError):
            protocol.gate.dropped["bad-record"] += 1
            continue
        if record.body.kind is RecordKind.NODE:
            good.append(record)
    return good


def without_tombstones(records: list[SignedRecord]) -> list[SignedRecord]:
    """Of each author the newest record, unless that one says that there is none any more."""
    return [record for record in newest(records) if record.body.value]


async def sample_nodes(protocol: GridProtocol, lookup: Lookup, rng: random.Random) -> list[SignedRecord]:
    """Up to three random node records from each of the eight servers nearest to a random id, this node's own included."""
    servers = (await lookup(DhtId(rng.randbytes(_ID_BYTES))))[:_SAMPLED_SERVERS]
    results = await asyncio.gather(*(protocol.sample((node.key, node.place), SAMPLE_MAX) for node in servers))
    raws = list(dict.fromkeys(raw for result in results for raw in result.value))
    records = _checked(protocol, raws)
    if len(servers) < _SAMPLED_SERVERS:
        records += protocol.storage.sample(rng, SAMPLE_MAX)
    return without_tombstones(records)


def _common_bits(one: int, other: int) -> int:
    return 160 - (one ^ other).bit_length()


class Enumeration:
    """One walk over the whole id space."""

    def __init__(self, protocol: GridProtocol, lookup: Lookup, count_max: int) -> None:
        self._protocol = protocol
        self._lookup = lookup
        self._count_max = count_max
        self._raws: dict[bytes, None] = {}
        self._slots = asyncio.Semaphore(_WALKS_AT_ONCE)
        self._complete = True

    async def run(self) -> tuple[list[SignedRecord], bool]:
        """The node records found, at most ``count_max``, and whether these are all there are."""
        cursor = 0
        while cursor <= _LAST_ID and len(self._raws) <= 2 * self._count_max:
            cursor = await self._region(cursor) + 1
        records = without_tombstones(_checked(self._protocol, list(self._raws)))
        complete = self._complete and cursor > _LAST_ID and len(records) <= self._count_max
        records.sort(key=lambda record: record.body.key)
        return records[: self._count_max], complete

    async def _region(self, cursor: int) -> int:
        """Collect the region that starts at ``cursor``; returns its last id."""
        protocol = self._protocol
        servers = await self._lookup(DhtId(cursor.to_bytes(_ID_BYTES, "big")))
        start, end = 0, _LAST_ID
        if len(servers) >= protocol.settings.k:
            mask = (1 << max(0, 160 - _common_bits(servers[-1].long_id, cursor) - 1)) - 1
            start, end = cursor & ~mask, cursor | mask
        inside = [node for node in servers if start <= node.long_id <= end]
        own = protocol.gate.proven is not None and start <= protocol.source_node.long_id <= end
        members = len(inside) + own
        if members == 0:
            self._complete = False  # Nobody lives here; its records are spread over more servers than were seen.
            inside = servers
        for record in protocol.storage.walk(cursor.to_bytes(_ID_BYTES, "big"), end.to_bytes(_ID_BYTES, "big")):
            self._raws[record.raw] = None
        unheard_max = min(protocol.settings.copies, members) - 1
        outcomes = await asyncio.gather(*(self._walk(node, cursor, end) for node in inside))
        if outcomes.count(False) > unheard_max and inside:
            self._complete = False
        return end

    async def _walk(self, node: GridNode, cursor: int, end: int) -> bool:
        """All pages of one server; whether it answered to the last."""
        async with self._slots:
            at = cursor
            for _ in range(_PAGES_MAX):
                address = (node.key, node.place)
                page = (await self._protocol.walk(address, at.to_bytes(_ID_BYTES, "big"), end.to_bytes(_ID_BYTES, "big"))).value
                if page is None:
                    return False
                self._raws.update(dict.fromkeys(page.records))
                if not page.more:
                    return True
                last = _key_of(page.records[-1]) if page.records else at - 1
                if last < at - 1 or last >= end:
                    return False
                at = last + 1
        return False


def _key_of(raw: bytes) -> int:
    try:
        return int.from_bytes(peek_slot(raw)[1], "big")
    except MalformedError:
        return -2
