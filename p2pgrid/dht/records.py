"""Records: small signed pointers that the DHT keeps, and the store that keeps them.

1. A record is a signed statement with an absolute expiry. Nobody extends it: a holder that hands a copy on
   hands on the same bytes. After its expiry it is not stored, served or copied.
2. Of one author there is one record per kind and key: the highest sequence. An empty value is a tombstone.
3. A node record is found only under its author's own id. Under all other keys each author has one entry.
4. Records are checked when they are stored and again when they are found, by everybody.
5. Bounds: bytes per record, records per key, per author and in all. A full key keeps those that live longest.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Annotated, ClassVar

from msgspec import Meta

from p2pgrid.dht.base import IStorage
from p2pgrid.dht.messages import ID_BYTES
from p2pgrid.errors import IntegrityError, MalformedError, RefusedError, TryAgainError
from p2pgrid.model.ids import DhtId, GridId, dht_id_of_key
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Signed, Statement, open_envelope, peek

SALT_BYTES_MAX = 16
_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS


class RecordKind(IntEnum):
    """What a record points at. The key of each is given by p2pgrid.model.ids."""

    NODE = 1
    """A node's addresses and offer, under its own id; the value is an encoded NodeInfo."""
    JOB_KEEPERS = 2
    """Who keeps a job, under the job's id."""
    BLOB_HOLDER = 3
    """Its author holds a blob, under the blob's id."""


LIFE_MAX_MS = {RecordKind.NODE: 30 * _MINUTE_MS, RecordKind.JOB_KEEPERS: 48 * _HOUR_MS, RecordKind.BLOB_HOLDER: 24 * _HOUR_MS}
REPUBLISH_S = {RecordKind.NODE: 600.0, RecordKind.JOB_KEEPERS: 12 * 3600.0, RecordKind.BLOB_HOLDER: 8 * 3600.0}


class Record(Statement, frozen=True, array_like=True):
    """One record. ``seq`` orders the records of one author; ``salt`` tells copies under several keys apart."""

    TYPE: ClassVar[str] = "record"

    kind: RecordKind
    key: Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    seq: Annotated[int, Meta(ge=0, lt=1 << 62)]
    salt: Annotated[bytes, Meta(max_length=SALT_BYTES_MAX)] = b""
    value: Annotated[bytes, Meta(max_length=DEFAULT_LIMITS.record_bytes)] = b""


SignedRecord = Signed[Record]
Slot = tuple[int, bytes, bytes]
"""(kind, key, author): where a record stands in the store."""


def slot_of(record: SignedRecord) -> Slot:
    """The place of a record, in which only its author's newest may stand."""
    return int(record.body.kind), record.body.key, record.author


def check_record(record: SignedRecord, now_ms: int, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raise IntegrityError or MalformedError unless a verified record keeps the rules at this time."""
    body = record.body
    if len(record.raw) > limits.record_bytes:
        raise MalformedError("a record is too large", reason=Reason.MALFORMED)
    if body.expires_ms <= now_ms:
        raise IntegrityError("the record has expired", reason=Reason.EXPIRED)
    if body.expires_ms > now_ms + LIFE_MAX_MS[body.kind] + limits.clock_skew_ms:
        raise IntegrityError("the record would live too long", reason=Reason.MALFORMED)
    if body.kind is RecordKind.NODE and (body.key != dht_id_of_key(record.author) or body.salt):
        raise IntegrityError("a node record under a foreign key", reason=Reason.WRONG_PEER)


def open_record(raw: bytes, grid: GridId, now_ms: int, limits: Limits = DEFAULT_LIMITS) -> SignedRecord:
    """Verify and check one record's bytes. Raises IntegrityError or MalformedError."""
    if len(raw) > limits.record_bytes:
        raise MalformedError("a record is too large", reason=Reason.MALFORMED)
    record = open_envelope(raw, Record, grid, now_ms)
    check_record(record, now_ms, limits)
    return record


def peek_slot(raw: bytes) -> Slot:
    """Where a record's bytes would stand. Nothing is verified. Raises MalformedError."""
    envelope = peek(raw)
    body = decode(envelope.body, Record)
    return int(body.kind), body.key, envelope.author


def newest(records: list[SignedRecord]) -> list[SignedRecord]:
    """Of each slot the highest sequence (on equal ones the smaller id), in the order of their authors."""
    best: dict[Slot, SignedRecord] = {}
    for record in records:
        known = best.get(slot_of(record))
        if known is None or (-record.body.seq, record.id) < (-known.body.seq, known.id):
            best[slot_of(record)] = record
    return [best[slot] for slot in sorted(best)]


class _Kept:
    __slots__ = ("copied_at", "record")

    def __init__(self, record: SignedRecord, copied_at: float) -> None:
        self.record = record
        self.copied_at = copied_at


class RecordStore(IStorage):
    """The records this node keeps for others. ``validate`` may refuse more, by raising one of our errors."""

    def __init__(
        self,
        grid: GridId,
        clock: Callable[[], float],
        wall_clock_ms: Callable[[], int],
        limits: Limits = DEFAULT_LIMITS,
        validate: Callable[[SignedRecord], None] | None = None,
    ) -> None:
        self._grid = grid
        self._clock = clock
        self._wall_clock_ms = wall_clock_ms
        self._limits = limits
        self._validate = validate
        self._kept: dict[Slot, _Kept] = {}
        self._by_key: dict[tuple[int, bytes], dict[bytes, _Kept]] = {}
        self._per_author: Counter[bytes] = Counter()
        self._node_ids: list[bytes] = []
        self._expiries: list[tuple[int, Slot]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, raw: bytes) -> SignedRecord:
        """Keep a record. Raises IntegrityError, MalformedError, RefusedError (stale, quota) or TryAgainError (full)."""
        now_ms = self._wall_clock_ms()
        record = open_record(raw, self._grid, now_ms, self._limits)
        if self._validate is not None:
            self._validate(record)
        self.purge()
        slot = slot_of(record)
        kept = self._kept.get(slot)
        if kept is not None:
            self._replace(kept, record, slot)
            return record
        self._make_room(record)
        self._insert(slot, record)
        return record

    def put_again(self, raw: bytes, slot: Slot) -> bool:
        """Whether exactly these bytes are kept already; then nobody needs to verify them again."""
        kept = self._kept.get(slot)
        if kept is None or kept.record.raw != raw or kept.record.body.expires_ms <= self._wall_clock_ms():
            return False
        kept.copied_at = self._clock()
        return True

    def _replace(self, kept: _Kept, record: SignedRecord, slot: Slot) -> None:
        known = kept.record
        if (record.body.seq, known.id) < (known.body.seq, record.id):
            raise RefusedError("a newer record is known", reason=Reason.STALE)
        kept.copied_at = self._clock()
        if record.id != known.id:
            kept.record = record
            self._expect(record, slot)

    def _make_room(self, record: SignedRecord) -> None:
        if len(self._kept) >= self._limits.records:
            raise TryAgainError("no room for another record", reason=Reason.STORE_FULL)
        if self._per_author[record.author] >= self._limits.records_per_author:
            raise RefusedError("too many records of one author", reason=Reason.STORE_FULL)
        same_key = self._by_key.get((int(record.body.kind), record.body.key), {})
        if len(same_key) >= self._limits.records_per_key:
            first = min(same_key.values(), key=lambda kept: (kept.record.body.expires_ms, kept.record.author))
            if first.record.body.expires_ms >= record.body.expires_ms:
                raise RefusedError("the key is full of records that live longer", reason=Reason.STORE_FULL)
            self._drop(slot_of(first.record))

    def _insert(self, slot: Slot, record: SignedRecord) -> None:
        kept = self._kept[slot] = _Kept(record, self._clock())
        self._by_key.setdefault(slot[:2], {})[record.author] = kept
        self._per_author[record.author] += 1
        if record.body.kind is RecordKind.NODE:
            insort(self._node_ids, record.body.key)
        self._expect(record, slot)

    def _expect(self, record: SignedRecord, slot: Slot) -> None:
        heapq.heappush(self._expiries, (record.body.expires_ms, slot))
        if len(self._expiries) > 2 * len(self._kept) + 64:  # Replaced records leave their old expiry behind.
            self._expiries = [(kept.record.body.expires_ms, other) for other, kept in self._kept.items()]
            heapq.heapify(self._expiries)

    def _drop(self, slot: Slot) -> None:
        kept = self._kept.pop(slot)
        same_key = self._by_key[slot[:2]]
        del same_key[slot[2]]
        if not same_key:
            del self._by_key[slot[:2]]
        self._per_author[slot[2]] -= 1
        if not self._per_author[slot[2]]:
            del self._per_author[slot[2]]
        if kept.record.body.kind is RecordKind.NODE:
            del self._node_ids[bisect_left(self._node_ids, slot[1])]

    def purge(self) -> None:
        """Drop what has expired."""
        now_ms = self._wall_clock_ms()
        while self._expiries and self._expiries[0][0] <= now_ms:
            _, slot = heapq.heappop(self._expiries)
            kept = self._kept.get(slot)
            if kept is not None and kept.record.body.expires_ms <= now_ms:
                self._drop(slot)

    def find(self, kind: int, key: bytes) -> list[SignedRecord]:
        """The live records of a kind under a key, in the order of their authors."""
        self.purge()
        same_key = self._by_key.get((kind, key), {})
        return [same_key[author].record for author in sorted(same_key)]

    def sample(self, rng: random.Random, count: int) -> list[SignedRecord]:
        """Up to ``count`` random node records."""
        self.purge()
        ids = rng.sample(self._node_ids, min(count, len(self._node_ids)))
        return [self._node(node_id) for node_id in ids]

    def walk(self, cursor: bytes, end: bytes) -> Iterator[SignedRecord]:
        """The node records with cursor <= id <= end, by id. Not to be held across other calls."""
        self.purge()
        for index in range(bisect_left(self._node_ids, cursor), len(self._node_ids)):
            if self._node_ids[index] > end:
                return
            yield self._node(self._node_ids[index])

    def _node(self, node_id: bytes) -> SignedRecord:
        same_key = self._by_key[(int(RecordKind.NODE), node_id)]
        return next(iter(same_key.values())).record

    def keys(self) -> list[bytes]:
        """The keys under which something is kept, each once."""
        return list(dict.fromkeys(key for _, key in self._by_key))

    def under(self, key: bytes) -> list[SignedRecord]:
        """All live records under a key, of any kind."""
        return [record for kind in RecordKind for record in self.find(int(kind), key)]

    # What the package's storage interface asks for. Values are the raw bytes of signed records.

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Called by the inherited ``rpc_store``. The key must be the one in the record."""
        if peek_slot(value)[1] != key:
            raise IntegrityError("a record under a foreign key", reason=Reason.MALFORMED)
        self.put(value)

    def __getitem__(self, key: bytes) -> list[bytes]:
        found = self.get(key)
        if not found:
            raise KeyError(key)
        return found

    def get(self, key: bytes, default: list[bytes] | None = None) -> list[bytes]:
        return [record.raw for record in self.under(key)] or default or []

    def iter_older_than(self, seconds_old: float) -> list[tuple[DhtId, SignedRecord]]:
        """The live records of which no copy was made or came in for so long."""
        self.purge()
        before = self._clock() - seconds_old
        return [(DhtId(slot[1]), kept.record) for slot, kept in self._kept.items() if kept.copied_at <= before]

    def mark_copied(self, record: SignedRecord) -> None:
        """Note that a record's other holders have just been given it again."""
        kept = self._kept.get(slot_of(record))
        if kept is not None:
            kept.copied_at = self._clock()

    def __iter__(self) -> Iterator[tuple[DhtId, list[bytes]]]:
        return iter([(DhtId(key), self.get(key)) for key in self.keys()])
