"""From results to acknowledged receipts: gathered, signed once a batch, delivered until somebody has them on disk.

Results of one lease are gathered for a tenth of a second or 1,024 units, or until its last task ends. Large results
and files are stored on several nodes before their receipt is signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from blake3 import blake3

from p2pgrid.core.checks import HOLDERS_MAX
from p2pgrid.errors import P2PGridError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import OK, RAISED, Receipt, ResultFile, UnitRange
from p2pgrid.runtimes.tasks import BatchChunk, FileOutput, Outcome
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.results import NIL, Failure, digest_of, value_digest
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.messages import Delivered, Delivery, DeliveryReply, Payload

GATHER_S = 0.1
GATHER_UNITS = 1024
GATHER_BYTES = 2 << 20
DELIVERY_BYTES = 4 << 20
DELIVERY_ITEMS_MAX = 256
"""Receipts in one message: each costs its receiver a signature to check."""
OUTBOX_BYTES = 64 << 20
DELIVER_S = 30.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 4.0)
GIVE_UP_AFTER_S = 120.0


class Source(NamedTuple):
    """Where results go: the lead that granted the lease, else the keepers."""

    job: bytes
    lead: NodeKey
    grant: bytes
    keepers: tuple[bytes, ...]
    body: Job

    @property
    def outbox(self) -> tuple[bytes, NodeKey]:
        return self.job, self.lead


@dataclass
class _Gathered:
    """Columns of a receipt in the making."""

    ranges: list[UnitRange] = field(default_factory=list)
    outcomes: bytearray = field(default_factory=bytearray)
    digests: bytearray = field(default_factory=bytearray)
    values: list[bytes | msgspec.Raw] = field(default_factory=list)
    files: list[ResultFile] = field(default_factory=list)
    holders: set[bytes] = field(default_factory=set)
    cpu_us: int = 0
    size_bytes: int = 0
    storing: int = 0
    """Chunks whose blobs are still being stored."""
    due: asyncio.TimerHandle | None = None


@dataclass
class _Outbox:
    items: list[Delivered] = field(default_factory=list)
    sending: bool = False
    dropped: bool = False
    """Its items were given up, and their bytes are counted no more."""


class Delivering:
    """Receipts of this node, until they are acknowledged."""

    def __init__(self, context: Context, peers: Peers, storing: Storing) -> None:
        self._context = context
        self._peers = peers
        self._storing = storing
        self._tasks = Tasks("delivering")
        self._gathered: dict[bytes, tuple[Source, _Gathered]] = {}
        self._outboxes: dict[tuple[bytes, NodeKey], _Outbox] = {}
        self._unsent_bytes = 0
        self._room = asyncio.Event()

    @property
    def congested(self) -> bool:
        """Too much is waiting to be acknowledged: no more work is taken until it is gone."""
        return self._unsent_bytes > OUTBOX_BYTES

    async def room(self) -> None:
        """Wait until less is waiting, at most as long as leads are waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                while self.congested:
                    self._room.clear()
                    await self._room.wait()

    def _count(self, size_bytes: int) -> None:
        self._unsent_bytes += size_bytes
        if not self.congested:
            self._room.set()

    # -- gathering ------------------------------------------------------------------

    def add(self, source: Source, unit_range: UnitRange, chunk: BatchChunk) -> None:
        """Results of consecutive units. Those that are blobs are stored first, beside the next units' run."""
        inline_max = self._context.limits.result_inline_bytes
        if chunk.files or any(len(memoryview(payload)) > inline_max for payload in chunk.payloads):
            gathered = self._open(source)
            gathered.storing += 1
            size_bytes = sum(len(memoryview(payload)) for payload in chunk.payloads)
            self._count(size_bytes)
            task = self._tasks.spawn(self._store(source, gathered, unit_range, chunk), "store")
            if task is not None:
                task.add_done_callback(lambda done: self._count(-size_bytes))
            return
        self._put(source, unit_range, _answered(chunk.outcomes), list(chunk.payloads), chunk.run_us)

    def add_missed(self, source: Source, unit_range: UnitRange, outcome: int, error: P2PGridError) -> None:
        """Units that could not even be started."""
        raw = encode(Failure(type(error).__name__, error.message, ""))
        self._put(source, unit_range, bytes([outcome]) * unit_range.units, [raw] * unit_range.units, 0)
        self.flush(source)

    def _open(self, source: Source) -> _Gathered:
        known = self._gathered.get(source.grant)
        if known is None:
            known = self._gathered[source.grant] = (source, _Gathered())
        return known[1]

    def _put(
        self,
        source: Source,
        unit_range: UnitRange,
        outcomes: bytes,
        values: Sequence[bytes | msgspec.Raw],
        cpu_us: int,
        digests: bytes | None = None,
    ) -> _Gathered:
        gathered = self._open(source)
        if digests is None:
            if outcomes.count(RAISED):
                digests = b"".join(digest_of(outcome, bytes(value)) for outcome, value in zip(outcomes, values, strict=True))
            else:
                digests = b"".join([value_digest(bytes(value)) for value in values])
        gathered.ranges.append(unit_range)
        gathered.outcomes += outcomes
        gathered.digests += digests
        gathered.values += values
        gathered.cpu_us += cpu_us
        gathered.size_bytes += sum([len(memoryview(value)) for value in values])
        if len(gathered.outcomes) >= GATHER_UNITS or gathered.size_bytes >= GATHER_BYTES:
            self.flush(source)
        elif gathered.due is None:
            gathered.due = asyncio.get_running_loop().call_later(GATHER_S, self.flush, source)
        return gathered

    async def _store(self, source: Source, opened: _Gathered, unit_range: UnitRange, chunk: BatchChunk) -> None:
        """Store results that do not fit into a receipt, on as many nodes as the job asks for."""
        inline_max = self._context.limits.result_inline_bytes
        outcomes = bytearray(_answered(chunk.outcomes))
        values: list[bytes] = [bytes(payload) for payload in chunk.payloads]
        digests = [digest_of(outcome, raw) for outcome, raw in zip(outcomes, values, strict=True)]
        holders: set[bytes] = set()
        files: list[ResultFile] = []
        prefer = (source.lead, *source.keepers)
        body = source.body
        for index, raw in enumerate(values):
            if len(raw) > inline_max and outcomes[index] == OK:
                try:
                    await self._storing.keep_bytes(raw, body.expires_ms, body.replicas, prefer, holders)
                    values[index] = NIL
                except P2PGridError as error:
                    self._failed(outcomes, values, digests, index, error)
        for output in chunk.files:
            index = output.index - chunk.first
            try:
                files.append(await self._take_file(source, output, index, prefer, holders))
            except P2PGridError as error:
                self._failed(outcomes, values, digests, index, error)
        opened.storing -= 1
        gathered = self._open(source)
        base = len(gathered.outcomes)
        gathered.holders |= holders
        gathered.files += [file._replace(unit=base + file.unit) for file in files]
        self._put(source, unit_range, bytes(outcomes), values, chunk.run_us, b"".join(digests))
        self.flush(source)

    async def _take_file(self, source: Source, output: FileOutput, index: int, prefer: Sequence[bytes], holders: set[bytes]) -> ResultFile:
        blob, size_bytes = await self._storing.take_file(output.path, source.body.expires_ms)
        if blob != output.blob:
            raise P2PGridError("a result file changed while it was stored", reason=Reason.CORRUPT)
        holders.update(await self._storing.replicate(blob, source.body.replicas, prefer, source.body.expires_ms))
        return ResultFile(index, blob, size_bytes)

    @staticmethod
    def _failed(outcomes: bytearray, values: list[bytes], digests: list[bytes], index: int, error: P2PGridError) -> None:
        outcomes[index] = Outcome.TOO_LARGE
        values[index] = encode(Failure(type(error).__name__, error.message, ""))
        digests[index] = blob_id_of(values[index])

    # -- signing and sending ----------------------------------------------------------

    def flush(self, source: Source) -> None:
        """Sign what was gathered for a lease and send it."""
        known = self._gathered.get(source.grant)
        if known is None:
            return
        gathered = known[1]
        if gathered.due is not None:
            gathered.due.cancel()
            gathered.due = None
        if not gathered.outcomes:
            if not gathered.storing:
                del self._gathered[source.grant]
            return
        del self._gathered[source.grant]
        payload = encode(Payload([value if isinstance(value, msgspec.Raw) else msgspec.Raw(value) for value in gathered.values]))
        statement = Receipt(
            expires_ms=source.body.expires_ms,
            job=source.job,
            grant=source.grant,
            ranges=tuple(gathered.ranges),
            outcomes=bytes(gathered.outcomes),
            digests=bytes(gathered.digests),
            cpu_us=gathered.cpu_us,
            payload=blake3(payload).digest(),
            holders=tuple(sorted(gathered.holders - {self._context.me})[:HOLDERS_MAX]),
            files=tuple(gathered.files),
        )
        receipt = seal(statement, self._context.key, self._context.grid.id)
        outbox = self._outboxes.setdefault(source.outbox, _Outbox())
        outbox.items.append(Delivered(receipt.raw, payload))
        self._count(len(receipt.raw) + len(payload))
        if not outbox.sending:
            outbox.sending = True
            self._tasks.spawn(self._send(source.outbox, outbox), "send")

    async def _send(self, where: tuple[bytes, NodeKey], outbox: _Outbox) -> None:
        """Deliver in order until the outbox is empty. A lead that stays away for two minutes is given up."""
        job, lead = where
        failing_since = 0.0
        attempt = 0
        while outbox.items:
            taken = _first(outbox.items)
            try:
                reply = await self._peers.call(lead, "job.deliver", Delivery(job, tuple(taken)), DeliveryReply, timeout_s=DELIVER_S)
            except P2PGridError as error:
                now = self._context.clock()
                failing_since = failing_since or now
                if not error.retryable or now - failing_since > GIVE_UP_AFTER_S:
                    self._context.tell(error.reason, f"results of job {short(job)} were not taken: {error}")
                    self._drop(where, outbox)
                    return
                await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                attempt += 1
                continue
            if outbox.dropped:
                return
            failing_since, attempt = 0.0, 0
            for reason in reply.refused:
                if reason:
                    self._context.tell(reason, f"a receipt of job {short(job)} was refused")
            del outbox.items[: len(taken)]
            self._count(-sum(len(item.receipt) + len(item.payload) for item in taken))
        self._forget(where, outbox)

    def _drop(self, where: tuple[bytes, NodeKey], outbox: _Outbox) -> None:
        self._count(-sum(len(item.receipt) + len(item.payload) for item in outbox.items))
        outbox.items.clear()
        outbox.dropped = True
        self._forget(where, outbox)

    def _forget(self, where: tuple[bytes, NodeKey], outbox: _Outbox) -> None:
        if self._outboxes.get(where) is outbox:
            del self._outboxes[where]

    def drop(self, job: bytes) -> None:
        """Forget everything about a job that was cancelled."""
        for where, outbox in [(where, outbox) for where, outbox in self._outboxes.items() if where[0] == job]:
            self._drop(where, outbox)
        for grant, (source, gathered) in list(self._gathered.items()):
            if source.job == job:
                if gathered.due is not None:
                    gathered.due.cancel()
                del self._gathered[grant]

    async def close(self) -> None:
        for _, gathered in self._gathered.values():
            if gathered.due is not None:
                gathered.due.cancel()
        self._gathered.clear()
        await self._tasks.close()


def _answered(outcomes: bytes) -> bytes:
    """A value that cannot travel is an answer of the unit's code, like an exception."""
    return outcomes.replace(bytes([Outcome.UNENCODABLE]), bytes([RAISED]))


def _first(items: list[Delivered]) -> list[Delivered]:
    """As many items as fit into one delivery, at least one."""
    taken: list[Delivered] = []
    total = 0
    for item in items:
        total += len(item.receipt) + len(item.payload)
        if taken and (total > DELIVERY_BYTES or len(taken) >= DELIVERY_ITEMS_MAX):
            break
        taken.append(item)
    return taken
