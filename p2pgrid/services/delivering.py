"""From results to receipts: gathered, signed once a batch, handed to the outboxes (:mod:`p2pgrid.services.outbox`).

Results of one lease are gathered for a tenth of a second or 1,024 units, or until its last task ends. Large results
and files are stored on several nodes before their receipt is signed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
from blake3 import blake3

from p2pgrid.core.checks import HOLDERS_MAX
from p2pgrid.errors import P2PGridError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import FUEL_BYTES, OK, RAISED, Receipt, ResultFile, UnitRange
from p2pgrid.runtimes.tasks import BatchChunk, FileOutput, Outcome
from p2pgrid.services.context import Context
from p2pgrid.services.outbox import Facts, Outboxes, Source
from p2pgrid.services.peers import Peers
from p2pgrid.services.results import NIL, Failure, digest_of, value_digest
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.messages import Delivered, Payload

GATHER_S = 0.1
GATHER_UNITS = 1024
GATHER_BYTES = 2 << 20


@dataclass
class _Gathered:
    """Columns of a receipt in the making."""

    ranges: list[UnitRange] = field(default_factory=list)
    outcomes: bytearray = field(default_factory=bytearray)
    digests: bytearray = field(default_factory=bytearray)
    values: list[bytes | msgspec.Raw] = field(default_factory=list)
    files: list[ResultFile] = field(default_factory=list)
    holders: set[bytes] = field(default_factory=set)
    fuel: bytearray = field(default_factory=bytearray)
    """As in a receipt; shorter than the outcomes while no unit of the rest burnt any."""
    cpu_us: int = 0
    size_bytes: int = 0
    due: asyncio.TimerHandle | None = None


class Delivering:
    """Receipts of this node, until they are acknowledged."""

    def __init__(self, context: Context, peers: Peers, storing: Storing) -> None:
        self._context = context
        self._peers = peers
        self._storing = storing
        self._tasks = Tasks("delivering")
        self._gathered: dict[bytes, tuple[Source, _Gathered]] = {}
        self._being_stored: Counter[bytes] = Counter()
        """Chunks of each lease whose blobs are still being stored."""
        self.outboxes = Outboxes(context, peers)

    def owes(self, grant: bytes) -> bool:
        """Whether results under a lease are gathered, stored or delivered here."""
        return grant in self._gathered or self._being_stored[grant] > 0 or self.outboxes.owes(grant)

    def grants(self, job: bytes) -> list[bytes]:
        """Leases of a job whose results are gathered, stored or delivered here."""
        gathered = [grant for grant, (source, _) in self._gathered.items() if source.job == job]
        return [*gathered, *self._being_stored, *self.outboxes.grants(job)]

    async def settled(self, grant: bytes, timeout_s: float) -> bool:
        """Wait until all results under a lease were answered or given up; whether that came in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.owes(grant):
                    await self.outboxes.changed()
        return not self.owes(grant)

    async def finished(self, timeout_s: float) -> bool:
        """Sign what is gathered, and wait until nothing is left; whether that came in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    for source, _ in list(self._gathered.values()):
                        self.flush(source)
                    if not self._being_stored and not len(self.outboxes):
                        return True
                    await self.outboxes.changed()
        return False

    # -- gathering ------------------------------------------------------------------

    def add(self, source: Source, unit_range: UnitRange, chunk: BatchChunk) -> None:
        """Results of consecutive units. Those that are blobs are stored first, beside the next units' run."""
        inline_max = self._context.limits.result_inline_bytes
        if chunk.files or any(len(memoryview(payload)) > inline_max for payload in chunk.payloads):
            size_bytes = sum(len(memoryview(payload)) for payload in chunk.payloads)
            self._being_stored[source.grant] += 1
            self.outboxes.count(size_bytes)
            task = self._tasks.spawn(self._store(source, unit_range, chunk), "store")
            if task is not None:
                task.add_done_callback(lambda done: self._stored(source, size_bytes))
            return
        self._put(source, unit_range, _answered(chunk.outcomes), list(chunk.payloads), chunk.run_us, fuel=chunk.fuel)

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
        fuel: bytes = b"",
    ) -> _Gathered:
        gathered = self._open(source)
        if fuel:
            gathered.fuel += bytes(FUEL_BYTES * len(gathered.outcomes) - len(gathered.fuel)) + fuel
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

    def _stored(self, source: Source, size_bytes: int) -> None:
        self._being_stored[source.grant] -= 1
        self._being_stored += Counter()
        self.outboxes.count(-size_bytes)

    async def _store(self, source: Source, unit_range: UnitRange, chunk: BatchChunk) -> None:
        """Store results that do not fit into a receipt, on as many nodes as the job asks for."""
        inline_max = self._context.limits.result_inline_bytes
        outcomes = bytearray(_answered(chunk.outcomes))
        values: list[bytes] = [bytes(payload) for payload in chunk.payloads]
        digests = [digest_of(outcome, raw) for outcome, raw in zip(outcomes, values, strict=True)]
        holders: set[bytes] = set()
        files: list[ResultFile] = []
        prefer = source.known.places(source.lead)
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
        gathered = self._open(source)
        base = len(gathered.outcomes)
        gathered.holders |= holders
        gathered.files += [file._replace(unit=base + file.unit) for file in files]
        self._put(source, unit_range, bytes(outcomes), values, chunk.run_us, b"".join(digests), chunk.fuel)
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
        del self._gathered[source.grant]
        if not gathered.outcomes:
            return
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
            fuel=bytes(gathered.fuel).ljust(FUEL_BYTES * len(gathered.outcomes), b"\0") if gathered.fuel else b"",
        )
        receipt = seal(statement, self._context.key, self._context.grid.id)
        self.outboxes.put(source, Delivered(receipt.raw, payload), self._facts(gathered) if self.outboxes.wants_facts else None)

    def _facts(self, gathered: _Gathered) -> Facts:
        """What the log says of a receipt."""
        outcomes, burnt = gathered.outcomes, gathered.fuel
        fuel = sum(int.from_bytes(burnt[at : at + FUEL_BYTES], "little") for at in range(0, len(burnt), FUEL_BYTES))
        return Facts(len(outcomes), outcomes.count(OK), gathered.cpu_us, fuel, self._context.clock())

    def drop(self, job: bytes) -> None:
        """Forget everything about a job that was cancelled."""
        self.outboxes.drop(job)
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
        await self.outboxes.close()


def _answered(outcomes: bytes) -> bytes:
    """A value that cannot travel is an answer of the unit's code, like an exception."""
    return outcomes.replace(bytes([Outcome.UNENCODABLE]), bytes([RAISED]))
