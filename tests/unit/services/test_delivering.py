"""Receipts on their way to a lead that is slow, away, or says no."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from p2pgrid.core.checks import HOLDERS_MAX
from p2pgrid.errors import P2PGridError, RefusedError, UnreachableError
from p2pgrid.model.ids import GridId, NodeKey
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import NO_INPUT, OK, Receipt, UnitRange
from p2pgrid.runtimes.tasks import BatchChunk
from p2pgrid.services import delivering
from p2pgrid.services.delivering import Delivering, Source
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import open_envelope
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import Delivery, DeliveryReply
from tests.unit.services.grid_in_process import make_job, until

LEAD = NodeKey(b"l" * 32)
GRID = GridId(b"g" * 32)


class World:
    """A lead that answers as told, a clock that is set, and a store that gives every blob new holders."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[str] = []
        self.calls: list[Delivery] = []
        self.error: P2PGridError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        key = SigningKey(os.urandom(32))
        context = SimpleNamespace(
            limits=DEFAULT_LIMITS,
            key=key,
            me=NodeKey(key.public),
            grid=SimpleNamespace(id=GRID),
            clock=lambda: self.now,
            tell=lambda reason, text: self.told.append(reason),
        )
        self.delivering = Delivering(cast(Any, context), cast(Any, self), cast(Any, self))

    async def call(self, peer: NodeKey, method: str, request: Delivery, reply: type, *, timeout_s: float) -> DeliveryReply:
        self.calls.append(request)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return DeliveryReply(("",) * len(request.items))

    async def keep_bytes(self, raw: bytes, expires_ms: int, replicas: int, prefer: Any, holders: set[bytes]) -> bytes:
        await self.gate.wait()
        holders.update(os.urandom(32) for _ in range(10))
        return b""

    def receipts(self) -> list[Receipt]:
        return [open_envelope(item.receipt, Receipt, GRID, None).body for call in self.calls for item in call.items]


@pytest.fixture
def world() -> World:
    return World()


def source(grant: bytes = b"g" * 32, job: bytes = b"j" * 32) -> Source:
    return Source(job, LEAD, grant, (), make_job([1])[0])


def chunk(first: int, *values: Any) -> BatchChunk:
    return BatchChunk(first, bytes([OK]) * len(values), [msgspec.Raw(encode(value)) for value in values], 1000)


async def test_results_of_a_lease_travel_in_one_receipt(world: World) -> None:
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 2), chunk(0, 1, 2))
    world.delivering.add(one, UnitRange(0, 2, 1), chunk(2, 3))
    world.delivering.flush(one)
    await until(lambda: not world.delivering._outboxes, "delivered")
    (receipt,) = world.receipts()
    assert receipt.ranges == (UnitRange(0, 0, 2), UnitRange(0, 2, 1))
    assert (receipt.outcomes, world.delivering._unsent_bytes) == (b"\0\0\0", 0)


async def test_a_lead_that_comes_back_gets_everything_in_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "BACKOFF_S", (0.001,))
    world.error = UnreachableError("away", reason=Reason.DEAD)
    for number in range(5):
        one = source(bytes([number]) * 32)
        world.delivering.add(one, UnitRange(0, number, 1), chunk(number, number))
        world.delivering.flush(one)
    await until(lambda: len(world.calls) > 3, "it was tried")
    world.now += delivering.GIVE_UP_AFTER_S - 1
    world.calls.clear()
    world.error = None
    await until(lambda: not world.delivering._outboxes, "delivered")
    assert [receipt.ranges[0].start for receipt in world.receipts()][-5:] == [0, 1, 2, 3, 4]
    assert world.delivering._unsent_bytes == 0


@pytest.mark.parametrize("refused", [True, False])
async def test_a_lead_that_refuses_or_stays_away_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    monkeypatch.setattr(delivering, "BACKOFF_S", (0.001,))
    world.error = RefusedError("who?", reason=Reason.UNKNOWN_JOB) if refused else UnreachableError("away", reason=Reason.DEAD)
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 1), chunk(0, 1))
    world.delivering.flush(one)
    if not refused:
        await until(lambda: len(world.calls) > 1, "it was tried")
        world.now += delivering.GIVE_UP_AFTER_S + 1
    await until(lambda: not world.delivering._outboxes, "given up")
    assert (world.delivering._unsent_bytes, world.told) == (0, [world.error.reason])


async def test_what_is_dropped_while_it_travels_is_counted_once(world: World) -> None:
    world.gate.clear()
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 1), chunk(0, 1))
    world.delivering.flush(one)
    await until(lambda: world.calls, "it is under way")
    world.delivering.drop(one.job)
    assert world.delivering._unsent_bytes == 0
    world.delivering.add(one, UnitRange(0, 1, 1), chunk(1, 2))
    world.delivering.flush(one)
    kept = world.delivering._outboxes[one.outbox]
    world.gate.set()
    await until(lambda: not kept.sending or not kept.items, "the new one is delivered")
    await until(lambda: not world.delivering._outboxes, "nothing is left")
    assert world.delivering._unsent_bytes == 0
    assert len(world.receipts()) == 2


async def test_large_results_count_until_they_are_stored_and_hold_the_worker_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "OUTBOX_BYTES", 100_000)
    world.gate.clear()
    one = source()
    for number in range(3):
        world.delivering.add(one, UnitRange(0, number, 1), chunk(number, b"x" * 50_000))
    assert world.delivering.congested
    room = asyncio.ensure_future(world.delivering.room())
    await asyncio.sleep(0)
    assert not room.done()
    world.gate.set()
    await room
    await until(lambda: not world.delivering._outboxes and not world.delivering._gathered, "delivered")
    assert world.delivering._unsent_bytes == 0


async def test_a_receipt_names_no_more_holders_than_a_lead_takes(world: World) -> None:
    one = source()
    world.delivering.add(one, UnitRange(0, 0, 20), chunk(0, *[b"x" * 20_000] * 20))
    await until(lambda: world.calls, "delivered")
    (receipt,) = world.receipts()
    assert len(receipt.holders) == HOLDERS_MAX


async def test_one_message_carries_a_bounded_number_of_receipts(world: World) -> None:
    world.gate.clear()
    for number in range(delivering.DELIVERY_ITEMS_MAX + 10):
        one = source(number.to_bytes(32, "big"))
        world.delivering.add_missed(one, UnitRange(0, number, 1), NO_INPUT, RefusedError("no", reason=Reason.NO_BLOB))
    world.gate.set()
    await until(lambda: not world.delivering._outboxes, "delivered")
    assert max(len(call.items) for call in world.calls) <= delivering.DELIVERY_ITEMS_MAX
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
