"""Receipts on their way to a lead that is slow, away, or says no; and then to whoever keeps the job."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from p2pgrid.core.checks import HOLDERS_MAX
from p2pgrid.core.layout import Layout
from p2pgrid.core.lineage import Lineage
from p2pgrid.errors import P2PGridError, RefusedError, TryAgainError, UnreachableError
from p2pgrid.model.ids import GridId, NodeKey
from p2pgrid.model.job import KeeperSet
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import NO_INPUT, OK, Receipt, UnitRange
from p2pgrid.runtimes.tasks import BatchChunk
from p2pgrid.services import outbox
from p2pgrid.services.delivering import Delivering
from p2pgrid.services.knownjobs import KnownJob
from p2pgrid.services.outbox import Source
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import open_envelope, seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import Delivery, DeliveryReply
from tests.unit.services.grid_in_process import make_job, until

LEAD, NEXT, KEEPER = NodeKey(b"l" * 32), NodeKey(b"n" * 32), NodeKey(b"k" * 32)
GRID = GridId(b"g" * 32)
SUBMITTER = SigningKey(b"s" * 32)


class World:
    """A lead that answers as told, a clock that is set, and a store that gives every blob new holders."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[str] = []
        self.calls: list[Delivery] = []
        self.asked: list[NodeKey] = []
        self.away: set[NodeKey] = set()
        """Who has no session."""
        self.error: P2PGridError | None = None
        self.errors: dict[NodeKey, P2PGridError] = {}
        self.refused = ""
        self.gate = asyncio.Event()
        self.gate.set()
        key = SigningKey(os.urandom(32))
        context = SimpleNamespace(
            limits=DEFAULT_LIMITS,
            key=key,
            me=NodeKey(key.public),
            grid=SimpleNamespace(id=GRID),
            clock=lambda: self.now,
            tell=lambda reason, text, *about: self.told.append(reason),
        )
        self.delivering = Delivering(cast(Any, context), cast(Any, self), cast(Any, self))

    async def call(self, peer: NodeKey, method: str, request: Delivery, reply: type, *, timeout_s: float) -> DeliveryReply:
        self.calls.append(request)
        self.asked.append(peer)
        await self.gate.wait()
        error = self.errors.get(peer, self.error)
        if error is not None:
            raise error
        return DeliveryReply((self.refused,) * len(request.items))

    def is_live(self, peer: NodeKey) -> bool:
        return peer not in self.away

    async def keep_bytes(self, raw: bytes, expires_ms: int, replicas: int, prefer: Any, holders: set[bytes]) -> bytes:
        await self.gate.wait()
        holders.update(os.urandom(32) for _ in range(10))
        return b""

    def receipts(self) -> list[Receipt]:
        return [open_envelope(item.receipt, Receipt, GRID, None).body for call in self.calls for item in call.items]


@pytest.fixture
def world() -> World:
    return World()


def known_job(*keepers: bytes, lead: bytes = LEAD) -> KnownJob:
    job = seal(make_job([1])[0], SUBMITTER, GRID)
    known = KnownJob(job, Lineage(job), Layout(job.body))
    known.lineage.add(seal(KeeperSet(job.body.expires_ms, job.id, 0, lead, keepers), SUBMITTER, GRID))
    return known


ALONE = known_job()


def source(grant: bytes = b"g" * 32, known: KnownJob = ALONE) -> Source:
    return Source(known, LEAD, grant, b"lease " + grant)


def deliver(world: World, *sources: Source) -> None:
    """One receipt for each."""
    for number, one in enumerate(sources):
        world.delivering.add(one, UnitRange(0, number, 1), chunk(number, number))
        world.delivering.flush(one)


def chunk(first: int, *values: Any) -> BatchChunk:
    return BatchChunk(first, bytes([OK]) * len(values), [msgspec.Raw(encode(value)) for value in values], 1000)


async def test_results_of_a_lease_travel_in_one_receipt(world: World) -> None:
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 2), chunk(0, 1, 2))
    world.delivering.add(one, UnitRange(0, 2, 1), chunk(2, 3))
    world.delivering.flush(one)
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    (receipt,) = world.receipts()
    assert receipt.ranges == (UnitRange(0, 0, 2), UnitRange(0, 2, 1))
    assert (receipt.outcomes, world.delivering.outboxes.unsent_bytes) == (b"\0\0\0", 0)


async def test_a_lead_that_comes_back_gets_everything_in_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "BACKOFF_S", (0.001,))
    world.error = UnreachableError("away", reason=Reason.DEAD)
    for number in range(5):
        one = source(bytes([number]) * 32)
        world.delivering.add(one, UnitRange(0, number, 1), chunk(number, number))
        world.delivering.flush(one)
    await until(lambda: len(world.calls) > 3, "it was tried")
    world.now += outbox.GIVE_UP_AFTER_S - 1
    world.calls.clear()
    world.error = None
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert [receipt.ranges[0].start for receipt in world.receipts()][-5:] == [0, 1, 2, 3, 4]
    assert world.delivering.outboxes.unsent_bytes == 0


async def test_what_is_said_of_receipts_is_looked_at_for_those_sent_and_only_by_its_registered_codes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(peer: NodeKey, method: str, request: Delivery, reply: type, *, timeout_s: float) -> DeliveryReply:
        return DeliveryReply(("x" * 100_000, *(f"made up {number}" for number in range(1000)), Reason.DISK_FULL.value))

    monkeypatch.setattr(world, "call", call)
    deliver(world, source())
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert world.told == [Reason.MALFORMED]
    assert not isinstance(world.told[0], Reason), "it is not this node that finds something"


@pytest.mark.parametrize("refused", [True, False])
async def test_a_lead_that_refuses_or_stays_away_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    monkeypatch.setattr(outbox, "BACKOFF_S", (0.001,))
    world.error = RefusedError("who?", reason=Reason.UNKNOWN_JOB) if refused else UnreachableError("away", reason=Reason.DEAD)
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 1), chunk(0, 1))
    world.delivering.flush(one)
    if not refused:
        await until(lambda: len(world.calls) > 1, "it was tried")
        world.now += outbox.GIVE_UP_AFTER_S + 1
    await until(lambda: not len(world.delivering.outboxes), "given up")
    assert (world.delivering.outboxes.unsent_bytes, world.told) == (0, [world.error.reason])


async def test_what_is_dropped_while_it_travels_is_counted_once(world: World) -> None:
    world.gate.clear()
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 1), chunk(0, 1))
    world.delivering.flush(one)
    await until(lambda: world.calls, "it is under way")
    world.delivering.drop(one.job)
    assert world.delivering.outboxes.unsent_bytes == 0
    world.delivering.add(one, UnitRange(0, 1, 1), chunk(1, 2))
    world.delivering.flush(one)
    kept = world.delivering.outboxes._outboxes[one.outbox]
    world.gate.set()
    await until(lambda: not kept.sending or not kept.items, "the new one is delivered")
    await until(lambda: not len(world.delivering.outboxes), "nothing is left")
    assert world.delivering.outboxes.unsent_bytes == 0
    assert len(world.receipts()) == 2


async def test_large_results_count_until_they_are_stored_and_hold_the_worker_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_BYTES", 100_000)
    world.gate.clear()
    one = source()
    for number in range(3):
        world.delivering.add(one, UnitRange(0, number, 1), chunk(number, b"x" * 50_000))
    assert world.delivering.outboxes.congested
    room = asyncio.ensure_future(world.delivering.outboxes.room())
    await asyncio.sleep(0)
    assert not room.done()
    world.gate.set()
    await room
    await until(lambda: not len(world.delivering.outboxes) and not world.delivering._gathered, "delivered")
    assert world.delivering.outboxes.unsent_bytes == 0


async def test_a_receipt_names_no_more_holders_than_a_lead_takes(world: World) -> None:
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 20), chunk(0, *[b"x" * 20_000] * 20))
    await until(lambda: world.calls, "delivered")
    (receipt,) = world.receipts()
    assert len(receipt.holders) == HOLDERS_MAX


async def test_one_message_carries_a_bounded_number_of_receipts(world: World) -> None:
    world.gate.clear()
    for number in range(outbox.DELIVERY_ITEMS_MAX + 10):
        one = source(number.to_bytes(32, "big"))
        world.delivering.add_missed(one, UnitRange(0, number, 1), NO_INPUT, RefusedError("no", reason=Reason.NO_BLOB))
    world.gate.set()
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert max(len(call.items) for call in world.calls) <= outbox.DELIVERY_ITEMS_MAX
    assert {receipt.outcomes for receipt in world.receipts()} == {bytes([NO_INPUT])}


async def test_closing_leaves_no_timer_and_no_task(world: World) -> None:
    world.gate.clear()
    world.delivering.add(source(), UnitRange(0, 0, 1), chunk(0, 1))
    world.delivering.add(source(b"o" * 32), UnitRange(0, 0, 1), chunk(0, b"x" * 50_000))
    due = [gathered.due for _, gathered in world.delivering._gathered.values() if gathered.due is not None]
    await world.delivering.close()
    assert due
    assert all(timer.cancelled() for timer in due)
    assert asyncio.all_tasks() == {asyncio.current_task()}


AWAY = UnreachableError("away", reason=Reason.DEAD)
WHO = RefusedError("who?", reason=Reason.UNKNOWN_JOB)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "BACKOFF_S", (0.001,))


@pytest.mark.parametrize("error", [AWAY, WHO])
async def test_a_keeper_takes_what_a_lead_cannot_with_each_lease_once(world: World, error: P2PGridError) -> None:
    known = known_job(KEEPER)
    world.errors = {LEAD: error}
    world.gate.clear()
    one, other = source(b"1" * 32, known), source(b"2" * 32, known)
    deliver(world, one, one, other)
    world.gate.set()
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert world.asked == [LEAD, KEEPER]
    assert [call.grants for call in world.calls] == [(), (one.lease, other.lease)]
    assert len({item.receipt for item in world.calls[1].items}) == 3
    assert not world.told


async def test_the_newest_lead_comes_before_the_keepers_and_each_is_asked_once_a_round(world: World, quick: None) -> None:
    known = known_job(KEEPER, NEXT, lead=NEXT)
    world.error = AWAY
    deliver(world, source(known=known))
    await until(lambda: len(world.asked) >= 6, "two rounds")
    assert world.asked[:6] == [LEAD, NEXT, KEEPER] * 2
    world.error = None
    await until(lambda: not len(world.delivering.outboxes), "delivered")


async def test_who_has_a_session_comes_first_once_something_failed_and_the_lead_again_when_it_is_back(world: World, quick: None) -> None:
    known = known_job(KEEPER)
    world.away, world.errors = {LEAD}, {LEAD: AWAY}
    one = source(known=known)
    deliver(world, one)
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    deliver(world, one)
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert world.asked == [LEAD, KEEPER, KEEPER]
    world.away, world.errors = set(), {}
    deliver(world, one)
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert world.asked[3:] == [LEAD]
    assert world.calls[-1].grants == (one.lease,)


async def test_a_lead_that_lost_its_memory_is_sent_the_leases_too(world: World) -> None:
    one = source(known=known_job())
    deliver(world, one)
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    one.known.doubt(b"?" * 32)
    one.known.doubt(LEAD)
    deliver(world, one)
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert [call.grants for call in world.calls] == [(), (one.lease,)]
    assert one.known.doubted == {LEAD}


async def test_keepers_that_learn_more_are_asked_while_an_outbox_waits(world: World, quick: None) -> None:
    known = known_job()
    world.errors = {LEAD: AWAY}
    deliver(world, source(known=known))
    await until(lambda: len(world.asked) > 2, "it waits for its lead")
    newer = KeeperSet(known.job.body.expires_ms, known.job.id, 1, NEXT, (KEEPER,))
    known.lineage.add(seal(newer, SUBMITTER, GRID))
    await until(lambda: not len(world.delivering.outboxes), "delivered")
    assert world.asked[-1] == NEXT


async def test_a_keeper_that_refuses_a_receipt_ends_it(world: World) -> None:
    world.errors, world.refused = {LEAD: AWAY}, Reason.NOT_GRANTED
    deliver(world, source(known=known_job(KEEPER)))
    await until(lambda: not len(world.delivering.outboxes), "through")
    assert (world.asked, world.told) == ([LEAD, KEEPER], [Reason.NOT_GRANTED])


async def test_a_job_that_is_over_ends_its_receipts_and_nobody_else_is_asked(world: World) -> None:
    world.error = RefusedError("over", reason=Reason.JOB_OVER)
    deliver(world, source(known=known_job(KEEPER)))
    await until(lambda: not len(world.delivering.outboxes), "given up")
    assert (world.asked, world.told) == ([LEAD], [Reason.JOB_OVER])


async def test_when_all_say_no_it_is_given_up_at_once_and_when_one_is_away_after_two_minutes(world: World, quick: None) -> None:
    known = known_job(KEEPER)
    world.error = WHO
    deliver(world, source(known=known))
    await until(lambda: not len(world.delivering.outboxes), "given up")
    assert world.asked == [LEAD, KEEPER]
    world.errors = {KEEPER: AWAY}
    deliver(world, source(known=known))
    await until(lambda: len(world.asked) > 6, "it is tried")
    world.now += outbox.GIVE_UP_AFTER_S + 1
    await until(lambda: not len(world.delivering.outboxes), "given up")
    assert world.told == [Reason.UNKNOWN_JOB, Reason.DEAD]
    assert world.delivering.outboxes.unsent_bytes == 0


async def test_a_lead_that_is_busy_is_waited_for(world: World, quick: None) -> None:
    world.errors = {LEAD: TryAgainError("busy", reason=Reason.BUSY)}
    deliver(world, source(known=known_job(KEEPER)))
    await until(lambda: KEEPER in world.asked, "not for ever")
    assert world.asked == [LEAD, LEAD, KEEPER]


async def test_a_lease_is_settled_when_its_receipts_are_answered(world: World) -> None:
    world.gate.clear()
    one, other = source(b"1" * 32), source(b"2" * 32)
    deliver(world, one)
    world.delivering.add(other, UnitRange(0, 1, 1), chunk(1, b"x" * 50_000))
    assert not await world.delivering.settled(one.grant, 0.0)
    assert not await world.delivering.settled(other.grant, 0.0)
    assert await world.delivering.settled(b"3" * 32, 0.0)
    finished = asyncio.ensure_future(world.delivering.finished(5.0))
    world.gate.set()
    assert await finished
    assert await world.delivering.settled(one.grant, 0.0)
    assert await world.delivering.settled(other.grant, 0.0)
