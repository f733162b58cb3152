"""What is told of a job that is led here: once when it begins to be so, with the ids it is about, and never more than is bounded."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from p2pgrid.core import lead as core
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.job import UnitLimits
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DISAGREED, OK, TIMED_OUT, DecisionEntry
from p2pgrid.node import Node
from p2pgrid.services import noticing
from p2pgrid.services.declining import Declining
from p2pgrid.services.ledjob import LedJob
from p2pgrid.wire.messages import JobDeclined
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until


def told(node: Node, led: LedJob, reason: Reason) -> list[str]:
    return [event.text for event in node.happenings.about(led.id, 100) if event.reason == reason]


async def led_job(grid: Grid, **fields: object) -> tuple[Node, LedJob]:
    node = await grid.add()
    _, job = await submit(grid, node, list(range(8)), **fields)
    return node, node.leading.jobs[job]


async def test_a_worker_that_fails_at_many_units_is_told_once_for_each_way(grid: Grid) -> None:
    node, led = await led_job(grid)
    notices = node.leading._noticing
    worker = b"w" * 32
    for _ in range(3):
        notices.answered(led, worker, bytes([OK, TIMED_OUT, TIMED_OUT]))
    notices.answered(led, worker, bytes([OK, OK]))
    assert len(told(node, led, Reason.RETRIED)) == 1
    assert node.happenings.about(worker, 10), "it is found by the node, too"
    notices.answered(led, b"v" * 32, bytes([TIMED_OUT]))
    assert len(told(node, led, Reason.RETRIED)) == 2


async def test_units_that_fail_are_told_once_for_each_outcome_with_the_first_number(grid: Grid) -> None:
    node, led = await led_job(grid)
    entries = (
        DecisionEntry(1, 2, 1, DISAGREED, b"", (0,)),
        DecisionEntry(0, 0, 4, OK, b"", (0,)),
        DecisionEntry(1, 3, 1, DISAGREED, b"", (0,)),
    )
    node.leading._noticing.decided(led, entries)
    node.leading._noticing.decided(led, entries)
    assert len(told(node, led, Reason.DISAGREED)) == 1
    assert "unit 6 " in told(node, led, Reason.DISAGREED)[0]


async def test_a_dispute_is_told_when_it_begins_and_again_when_another_does(grid: Grid) -> None:
    node, led = await led_job(grid)
    notices, contested = node.leading._noticing, led.lead.disputes.contested
    contested[0, 1] = 0.0
    notices.look(led)
    contested[0, 2] = 0.0
    notices.look(led)
    assert len(told(node, led, Reason.ANSWERS_DIFFER)) == 1
    contested.clear()
    notices.look(led)
    contested[0, 3] = 0.0
    notices.look(led)
    assert len(told(node, led, Reason.ANSWERS_DIFFER)) == 2
    led.ledger.conflicts.add((0, 1))
    notices.look(led)
    notices.look(led)
    assert len(told(node, led, Reason.CONFLICT)) == 1


async def test_a_worker_that_goes_away_with_units_is_told_with_their_number(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    node, led = await led_job(grid)
    worker = await grid.add(cores=1)
    await until(lambda: led.lead.book.by_worker, "it has units")
    await grid.close(worker)
    await until(lambda: told(node, led, Reason.WORKER_LOST), "it is told")
    assert " went away with 1 unit of job " in told(node, led, Reason.WORKER_LOST)[0]
    assert not led.lead.book.leases


async def test_leases_that_are_given_up_for_lost_are_told_once_for_each_worker(grid: Grid) -> None:
    node, led = await led_job(grid)
    late = core.Late(((b"w" * 32, 5), (b"v" * 32, 1)))
    node.leading._noticing.late(led, late)
    node.leading._noticing.late(led, late)
    assert len(told(node, led, Reason.LEASE_LATE)) == 2


async def test_what_is_declined_is_bounded_and_only_registered_codes_count(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noticing, "DECLINED_MAX", 3)
    monkeypatch.setattr(noticing, "TOLD_MAX", 4)
    node, led = await led_job(grid)
    notices = node.leading._noticing
    notices.declined(led, b"w" * 32, "\x1b[2J no code")
    assert led.declined == {}
    for number in range(10):
        notices.declined(led, bytes([number]) * 32, Reason.NO_WHEEL)
    assert list(led.declined) == [bytes([number]) * 32 for number in (7, 8, 9)]
    assert len(notices._told) <= 4


async def test_what_workers_decline_is_told_under_one_code_and_a_few_times_each(grid: Grid) -> None:
    """Else a worker could make events that pass for this node's own: its full disk, its wrong clock."""
    node, led = await led_job(grid)
    for _ in range(2):
        for reason in Reason:
            node.leading._noticing.declined(led, b"w" * 32, reason.value)
    node.leading._noticing.declined(led, b"v" * 32, Reason.DISK_FULL.value)
    events = [event for event in node.happenings.about(led.id, 1000) if b"w" * 32 in event.about or b"v" * 32 in event.about]
    assert [event.reason for event in events] == [Reason.DECLINED] * (noticing.DECLINES_TOLD + 1)
    assert events[-1].text.endswith(f"takes nothing of job {short(led.id)}: {Reason.DISK_FULL.sentence} (disk-full)")
    assert led.declined[b"v" * 32] == Reason.DISK_FULL


async def test_what_was_declined_is_said_again_after_the_lead_was_away_and_once_it_is_there(grid: Grid) -> None:
    sent, there = list[tuple[bytes, str]](), False

    class Line:
        def notify(self, peer: NodeKey, method: str, notice: JobDeclined) -> bool:
            if there:
                sent.append((peer, notice.reason))
            return there

    declining = Declining(cast(Any, Line()))
    one, other = NodeKey(b"1" * 32), NodeKey(b"2" * 32)
    declining.tell(b"j" * 32, one, Reason.NO_WHEEL)
    there = True
    for _ in range(2):
        declining.tell(b"j" * 32, one, Reason.NO_WHEEL)
        declining.tell(b"j" * 32, other, Reason.NO_WHEEL)
    assert sent == [(one, Reason.NO_WHEEL), (other, Reason.NO_WHEEL)], "what did not go out was not told"
    declining.forget_lead(one)
    declining.tell(b"j" * 32, one, Reason.NO_WHEEL)
    declining.tell(b"j" * 32, other, Reason.NO_WHEEL)
    assert sent[2:] == [(one, Reason.NO_WHEEL)]


async def test_a_worker_forgets_what_it_told_a_lead_that_went(grid: Grid) -> None:
    lead, worker = await grid.add(), await grid.add(cores=1, native=False)
    _, job = await submit(grid, lead, [1])
    led = lead.leading.jobs[job]
    await until(lambda: led.declined, "it declined")
    assert worker.working._declining._told
    await grid.close(lead)
    await until(lambda: not worker.working._declining._told, "it would say it again")


async def test_who_was_not_invited_declines_nothing(grid: Grid) -> None:
    node, led = await led_job(grid)
    other = await grid.add()
    lead = NodeKey(node.context.me)
    other.peers.notify(lead, "job.declined", JobDeclined(led.id, Reason.NO_WHEEL))
    other.peers.notify(lead, "job.declined", JobDeclined(b"x" * 32, Reason.NO_WHEEL))
    await other.peers.list(refresh=False)
    assert led.declined == {}


async def test_who_asks_for_units_after_all_has_declined_nothing(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    lead, worker = await grid.add(), await grid.add(cores=1, native=False)
    channel, job = await submit(grid, lead, [1])
    led = lead.leading.jobs[job]
    await until(lambda: led.declined == {worker.context.me: Reason.NATIVE_REFUSED}, "it declined")
    worker.context.policy = worker.context.policy.__class__(cores=1, memory_bytes=worker.context.policy.memory_bytes)
    worker.working.think_again()
    await until(lambda: led.lead.book.leases, "it takes it after all")
    assert led.declined == {}
    pool.gate.set()
    await results(channel, job)


async def test_a_lease_that_is_refused_goes_back_at_once(grid: Grid) -> None:
    """Else its units would wait for its deadline, an hour and more."""
    lead, _ = await grid.add(), await grid.add(cores=1, native=False)
    _, job = await submit(grid, lead, [1, 2, 3], limits=UnitLimits(timeout_s=3600.0))
    led = lead.leading.jobs[job]
    await until(lambda: led.declined, "it declined")
    await until(lambda: not led.lead.book.leases, "its lease is back")
    assert led.lead.book.pending == 3
