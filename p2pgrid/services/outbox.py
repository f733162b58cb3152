"""Signed receipts on their way: to the lead that leased their units, or to whoever keeps the job.

1. The lead that granted the lease is tried first, then the newest lead that is known, then each keeper: a keeper's answer is as
   good as the lead's. Who did not grant gets the leases beside the receipts, since their author may be gone.
2. Each is tried once; then all of them again, after a pause, for two minutes from the first failure. When nobody can take a
   receipt ever, it is dropped at once.
3. Once a lead was away, those with a live session come first, and it gets its own leases back: it may have lost them.
4. What was answered is through, whatever was said of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid import logs
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import CODES, Reason
from p2pgrid.services.context import Context
from p2pgrid.services.knownjobs import KnownJob
from p2pgrid.services.peers import Peers
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.messages import Delivered, Delivery, DeliveryReply

_log = logging.getLogger(__name__)

DELIVERY_BYTES = 4 << 20
DELIVERY_ITEMS_MAX = 256
"""Receipts in one message: each costs its receiver a signature to check."""
OUTBOX_BYTES = 64 << 20
DELIVER_S = 30.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 4.0)
GIVE_UP_AFTER_S = 120.0


@dataclass(slots=True, eq=False)
class Course:
    """When a lease came and when its first unit began, on the node's clock."""

    leased_s: float
    began_s: float | None = None

    @property
    def queue_s(self) -> float:
        """How long its units waited."""
        return 0.0 if self.began_s is None else self.began_s - self.leased_s


class Facts(NamedTuple):
    """What a log says of a receipt."""

    units: int
    ok: int
    run_us: int
    fuel: int
    signed_s: float


class Source(NamedTuple):
    """Where results come from: a lease, and the job of which it leases units."""

    known: KnownJob
    lead: NodeKey
    """Who granted it."""
    grant: bytes
    """Its id."""
    lease: bytes = b""
    """The signed grant."""
    course: Course = Course(0.0)
    """Given by whoever took the lease; the default stands for a lease that is forgotten."""

    @property
    def job(self) -> bytes:
        return self.known.job.id

    @property
    def body(self) -> Job:
        return self.known.job.body

    @property
    def outbox(self) -> tuple[bytes, NodeKey]:
        return self.job, self.lead


class _Item(NamedTuple):
    source: Source
    delivered: Delivered
    facts: Facts | None

    @property
    def size_bytes(self) -> int:
        return len(self.delivered.receipt) + len(self.delivered.payload)


@dataclass
class _Outbox:
    """The receipts for one job under the leases of one lead."""

    items: list[_Item] = field(default_factory=list)
    sending: bool = False
    dropped: bool = False
    """Its items were given up, and their bytes are counted no more."""


class Outboxes:
    """Receipts of this node, until somebody has them on disk."""

    def __init__(self, context: Context, peers: Peers) -> None:
        self._context = context
        self._peers = peers
        self._tasks = Tasks("outbox")
        self._outboxes: dict[tuple[bytes, NodeKey], _Outbox] = {}
        self.unsent_bytes = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._outboxes)

    @property
    def congested(self) -> bool:
        """Too much is waiting to be acknowledged: no more work is taken until it is gone."""
        return self.unsent_bytes > OUTBOX_BYTES

    def count(self, size_bytes: int) -> None:
        """So many bytes more, or less, wait."""
        self.unsent_bytes += size_bytes
        self._changed.set()

    async def changed(self) -> None:
        """Wait until something was taken, given up or counted."""
        self._changed.clear()
        await self._changed.wait()

    async def room(self) -> None:
        """Wait until less is waiting, at most as long as leads are waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_AFTER_S):
                while self.congested:
                    await self.changed()

    def grants(self, job: bytes) -> list[bytes]:
        """Leases of a job whose receipts nobody has acknowledged yet."""
        return [item.source.grant for (of, _), outbox in self._outboxes.items() if of == job for item in outbox.items]

    def owes(self, grant: bytes) -> bool:
        """Whether receipts under a lease wait here."""
        return any(item.source.grant == grant for outbox in self._outboxes.values() for item in outbox.items)

    def put(self, source: Source, delivered: Delivered, facts: Facts | None = None) -> None:
        """Deliver one receipt. ``facts``: for the log, if that is to know."""
        outbox = self._outboxes.setdefault(source.outbox, _Outbox())
        item = _Item(source, delivered, facts)
        outbox.items.append(item)
        self.count(item.size_bytes)
        if not outbox.sending:
            outbox.sending = True
            self._tasks.spawn(self._send(source.outbox, outbox), "send")

    async def _send(self, where: tuple[bytes, NodeKey], outbox: _Outbox) -> None:
        """Deliver in order until the outbox is empty, or nobody took anything for two minutes."""
        job = where[0]
        failing_since: float | None = None
        attempt = 0
        while outbox.items:
            taken = list(_first(outbox.items))
            began = self._context.clock()
            try:
                reply = await self._deliver(where, outbox, taken, patient=attempt < len(BACKOFF_S))
            except P2PGridError as error:
                failing_since = began if failing_since is None else failing_since
                if not error.retryable or self._context.clock() - failing_since > GIVE_UP_AFTER_S:
                    if not outbox.dropped:
                        self._context.tell(error.reason, f"results of job {short(job)} were not taken: {error}", job)
                        self._say_ended(outbox.items, [error.reason] * len(outbox.items), attempt + 1)
                        self._drop(where, outbox)
                    return
                await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                attempt += 1
                continue
            if outbox.dropped:
                return
            refused = [_code(reason) for reason in reply.refused[: len(taken)]]
            for reason in dict.fromkeys(refused):
                if reason:
                    self._context.tell(reason, f"a receipt of job {short(job)} was refused", job)
            self._say_ended(taken, refused, attempt + 1)
            failing_since, attempt = None, 0
            del outbox.items[: len(taken)]
            self.count(-sum(item.size_bytes for item in taken))
        self._forget(where, outbox)

    def _say_ended(self, items: Sequence[_Item], refused: Sequence[str], attempt: int) -> None:
        """The one line of each receipt."""
        now = self._context.clock()
        for number, item in enumerate(items):
            facts, source = item.facts, item.source
            if facts is None:
                continue
            logs.line(
                _log,
                logging.INFO,
                logs.BATCH,
                job=source.job,
                lead=source.lead,
                units=facts.units,
                ok=facts.ok,
                failed=facts.units - facts.ok,
                run_s=facts.run_us / 1e6,
                queue_s=source.course.queue_s,
                deliver_s=now - facts.signed_s,
                bytes=item.size_bytes,
                fuel=facts.fuel,
                attempt=attempt,
                reason=refused[number] if number < len(refused) else "",
            )

    async def _deliver(self, where: tuple[bytes, NodeKey], outbox: _Outbox, taken: list[_Item], *, patient: bool) -> DeliveryReply:
        """One round. Raises what can pass if anything can, else what was said first. ``patient``: who is busy is not passed over."""
        job, lead = where
        known = taken[0].source.known
        failed: P2PGridError | None = None
        for target in self._targets(lead, known):
            grants = {item.source.lease: None for item in taken} if target != lead or lead in known.doubted else {}
            delivery = Delivery(job, tuple([item.delivered for item in taken]), tuple(lease for lease in grants if lease))
            try:
                return await self._peers.call(target, "job.deliver", delivery, DeliveryReply, timeout_s=DELIVER_S)
            except P2PGridError as error:
                if error.reason == Reason.JOB_OVER or (error.reason == Reason.BUSY and patient) or outbox.dropped:
                    raise
                if target == lead:
                    known.doubted.add(lead)
                if failed is None or (error.retryable and not failed.retryable):
                    failed = error
        assert failed is not None, "there is always the lead that granted"
        raise failed

    def _targets(self, lead: NodeKey, known: KnownJob) -> list[NodeKey]:
        targets = list(known.places(lead))
        if lead in known.doubted:
            targets.sort(key=lambda target: not self._peers.is_live(target))
        return targets

    def _drop(self, where: tuple[bytes, NodeKey], outbox: _Outbox) -> None:
        outbox.dropped = True
        size_bytes = sum(item.size_bytes for item in outbox.items)
        outbox.items.clear()
        self._forget(where, outbox)
        self.count(-size_bytes)

    def _forget(self, where: tuple[bytes, NodeKey], outbox: _Outbox) -> None:
        if self._outboxes.get(where) is outbox:
            del self._outboxes[where]
        self._changed.set()

    @property
    def wants_facts(self) -> bool:
        """Whether the log is to know what receipts say."""
        return _log.isEnabledFor(logging.INFO)

    def drop(self, job: bytes) -> None:
        """Forget the receipts of a job that was cancelled."""
        for where, outbox in [(where, outbox) for where, outbox in self._outboxes.items() if where[0] == job]:
            self._say_ended(outbox.items, [Reason.JOB_OVER] * len(outbox.items), 0)
            self._drop(where, outbox)

    async def close(self) -> None:
        await self._tasks.close()


def _code(said: str) -> str:
    """The code that a receiver gave, as a plain text since it is not this node's; one that is not registered is no code."""
    return said if not said or said in CODES else Reason.MALFORMED.value


def _first(items: list[_Item]) -> Iterator[_Item]:
    """As many items as fit into one delivery, at least one."""
    total = 0
    for number, item in enumerate(items):
        total += item.size_bytes
        if number and (total > DELIVERY_BYTES or number >= DELIVERY_ITEMS_MAX):
            return
        yield item
