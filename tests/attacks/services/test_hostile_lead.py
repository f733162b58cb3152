"""A hostile lead against a worker: nothing runs that does not fit, each lease gets its answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

import pytest

from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.job import BatchRef, Derive, UnitLimits
from p2pgrid.model.work import Receipt, UnitRange
from p2pgrid.services import leasing, outbox, working
from p2pgrid.services.inputs import FILE, VALUE, blob_value, encode_batch
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Signed, open_envelope, seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import (
    Delivery,
    DeliveryReply,
    JobInvite,
    PullReply,
    PullRequest,
)
from tests.unit.services.grid_in_process import DAY_MS, Grid, InPlacePool, results, submit, until, wall_ms
from tests.unit.services.outsider import Enter, Outsider, connected, is_served


async def test_floods_of_invitations_take_a_bounded_room_and_crowd_nobody_out(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    bad = await enter()

    async def never(session: Any, request: PullRequest) -> PullReply:
        await asyncio.Event().wait()
        return PullReply(False)

    bad.methods.on("job.pull", PullRequest, never)
    await connected(stack, bad)
    node = grid[0]
    for number in range(2000):
        bad.session.notify("job.invite", JobInvite(os.urandom(32 if number % 3 else 5000), "native", 0, wall_ms() + DAY_MS))
    await is_served(bad)
    assert len(node.working.worker.sources) <= working.JOBS_PER_LEAD_MAX
    channel, job = await submit(grid, node, [1, 2, 3])
    values, _ = await results(channel, job)
    assert values == {0: 1, 1: 2, 2: 3}


class HostileLead:
    """Answers the pulls of a worker with whatever it is told to, and collects what comes back."""

    def __init__(self, outsider: Outsider) -> None:
        self.outsider = outsider
        self.reply = PullReply(False)
        self.pulled = 0
        self.receipts: list[Receipt] = []
        outsider.methods.on("job.pull", PullRequest, self._on_pull)
        outsider.methods.on("job.deliver", Delivery, self._on_deliver)

    def _on_pull(self, session: Any, request: PullRequest) -> PullReply:
        self.pulled += 1
        reply, self.reply = self.reply, PullReply(False)
        return reply

    def _on_deliver(self, session: Any, delivery: Delivery) -> DeliveryReply:
        self.receipts += [open_envelope(item.receipt, Receipt, self.outsider.grid.id, None).body for item in delivery.items]
        return DeliveryReply(("",) * len(delivery.items))

    async def offer(self, job: Signed[Any], reply: PullReply) -> None:
        """Invite, and wait until the answer to the pull was taken."""
        node, before = self.outsider.node, self.pulled
        self.reply = reply
        self.outsider.session.notify("job.invite", JobInvite(job.id, "native", 0, wall_ms() + DAY_MS))
        await until(lambda: self.pulled > before, "the worker pulled")
        key = (job.id, self.outsider.me)
        await until(lambda: key not in node.working.worker.sources or not node.working.worker.sources[key].pulling, "it is taken")


async def a_lead(stack: AsyncExitStack, enter: Enter) -> HostileLead:
    lead = HostileLead(await enter())
    await connected(stack, lead.outsider)
    return lead


async def test_leases_that_do_not_fit_run_nothing(grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]) -> None:
    lead = await a_lead(stack, enter)
    bad, me = lead.outsider, grid[0].context.me
    other, _ = bad.job()
    first = UnitRange(0, 0, 2)
    outside = [(0, 0, 3), (0, -1, 2), (7, 0, 1), (-1, 0, 1), (0, 0, 0), (0, 1, 1 << 60)]
    odd_ranges: list[list[UnitRange]] = [[UnitRange(*one)] for one in outside]
    odd_ranges += [[UnitRange(0, 0, 1)] * 2, [UnitRange(0, 0, 1)] * 3000, []]

    def replies(job: Signed[Any], batches: list[bytes]) -> list[PullReply]:
        good, keepers, pair = bad.grant(job, me, first), (bad.keepers(job, me).raw,), tuple(enumerate(batches))
        forged = seal(good.body, SigningKey(os.urandom(32)), bad.grid.id)
        grants = [bad.grant(job, b"w" * 32, first), bad.grant(other, me, first), forged]
        grants += [bad.grant(job, me, *ranges) for ranges in odd_ranges]
        heads: list[tuple[bytes, tuple[bytes, ...]]] = [
            *[(other.raw, keepers), (b"junk", ()), (job.raw, ()), (b"", keepers), (job.raw, (b"junk",))],
            (job.raw, (bad.keepers(job, me, key=bad.key).raw,)),
        ]
        contents: list[Any] = [((0, batches[1]),), ((5, batches[0]),), ((-1, batches[0]),), (), ((0, b"\x91" * 100_000),)]
        return [
            *[PullReply(False, grant.raw, job.raw, keepers, pair) for grant in grants],
            *[PullReply(False, good.raw, *head, pair) for head in heads],
            *[PullReply(False, good.raw, job.raw, keepers, content) for content in contents],
            PullReply(False, b"junk", job.raw, keepers, pair),
        ]

    for number in range(len(replies(*bad.job(per_batch=2)))):
        job, batches = bad.job(per_batch=2)
        await lead.offer(job, replies(job, batches)[number])
    assert pool.ran == []
    assert not any(known.busy for known in grid[0].working._known.values())
    job, batches = bad.job(per_batch=2)
    await lead.offer(job, PullReply(False, bad.grant(job, me, first).raw, job.raw, (bad.keepers(job).raw,), tuple(enumerate(batches))))
    await until(lambda: lead.receipts, "the right one runs")
    await is_served(bad)


async def test_a_lease_cannot_replace_a_batch_of_the_manifest(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    lead = await a_lead(stack, enter)
    bad, node = lead.outsider, grid[0]
    job, _ = bad.job([1], derive=Derive(finish=True))
    evil = encode_batch([encode("evil")])
    blob = node.blobs.put_bytes(evil, owner=node.context.me, expires_ms=wall_ms() + DAY_MS)
    for number in (0, 7, -1, 1 << 40):
        grant = bad.grant(job, node.context.me, UnitRange(0, 0, 1), derived=((number, blob),))
        await lead.offer(job, PullReply(False, grant.raw, job.raw, (bad.keepers(job).raw,)))
    assert pool.ran == []


async def test_a_derived_batch_that_nobody_has_is_answered_with_a_reason(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    lead = await a_lead(stack, enter)
    bad, node = lead.outsider, grid[0]
    job, _ = bad.job([1], derive=Derive(finish=True))
    two = node.blobs.put_bytes(encode_batch([b"\x01", b"\x02"]), owner=node.context.me, expires_ms=wall_ms() + DAY_MS)
    for blob in (os.urandom(32), b"short", two):
        lead.receipts.clear()
        grant = bad.grant(job, node.context.me, UnitRange(1, 0, 1), derived=((1, blob),))
        await lead.offer(job, PullReply(False, grant.raw, job.raw, (bad.keepers(job).raw,)))
        receipt = (await until(lambda: lead.receipts, "an answer"))[0]
        assert (receipt.grant, receipt.outcomes) == (grant.id, b"\x05")
    assert pool.ran == []


@pytest.mark.parametrize(
    "fields",
    [
        {"code": b"\xff\xfe not text"},
        {"code": b"", "code_blob": b"short"},
        {"code": b"", "code_blob": b"n" * 32},
    ],
)
async def test_code_that_is_no_text_or_not_there_is_an_answer(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool], fields: dict[str, bytes]
) -> None:
    lead = await a_lead(stack, enter)
    bad, me = lead.outsider, grid[0].context.me
    job, batches = bad.job([1, 2], **fields)
    grant = bad.grant(job, me, UnitRange(0, 0, 2))
    await lead.offer(job, PullReply(False, grant.raw, job.raw, (bad.keepers(job).raw,), ((0, batches[0]),)))
    receipt = (await until(lambda: lead.receipts, "an answer"))[0]
    assert receipt.outcomes == b"\x05\x05"
    assert pool.ran == []


async def test_batches_full_of_blob_uses_are_answered_and_leave_nothing(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    lead = await a_lead(stack, enter)
    bad, node = lead.outsider, grid[0]
    held = node.blobs.put_bytes(encode(b"v" * 100_000), owner=node.context.me, expires_ms=wall_ms() + DAY_MS)
    small = encode(b"s")
    many = encode_batch([b"\x01"], [(0, VALUE, os.urandom(32), 1)] * 20_000)
    unlisted = encode_batch([blob_value(b"u" * 32)], [(0, VALUE, held, 1)])
    lying = encode_batch([b"\x01"], [(0, FILE, blob_id_of(small), 1)], [(blob_id_of(small), b"other content")])
    odd = encode_batch([b"\x01"], [(1 << 50, "strange", b"", -1)])
    fine = encode_batch([b"\x01"], [(0, FILE, blob_id_of(small), 1)], [(blob_id_of(small), small)])
    for content, outcome in ((many, b"\x05"), (unlisted, b"\x05"), (lying, b"\x05"), (odd, b"\0"), (fine, b"\0")):
        lead.receipts.clear()
        job, _ = bad.job(manifest=(BatchRef(blob_id_of(content), 1, len(content)),))
        grant = bad.grant(job, node.context.me, UnitRange(0, 0, 1))
        await lead.offer(job, PullReply(False, grant.raw, job.raw, (bad.keepers(job).raw,), ((0, content),)))
        receipt = (await until(lambda: lead.receipts, "an answer"))[0]
        assert receipt.outcomes == outcome
    assert not list((node.home.work / "inputs").iterdir())


async def test_jobs_outside_the_limits_and_policies_are_refused(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    lead = await a_lead(stack, enter)
    bad, me = lead.outsider, grid[0].context.me
    for fields in (
        {"limits": UnitLimits(timeout_s=float("nan"))},
        {"limits": UnitLimits(timeout_s=1e300)},
        {"quorum": 10**9},
        {"replicas": 10**9},
        {"runtime": "assembly"},
        {"runtime": "python"},  # Without naming a runner.
        {"expires_ms": wall_ms() - 10_000_000},
    ):
        job, batches = bad.job([1], **fields)
        grant = bad.grant(job, me, UnitRange(0, 0, 1))
        await lead.offer(job, PullReply(False, grant.raw, job.raw, (bad.keepers(job).raw,), ((0, batches[0]),)))
    assert pool.ran == []
    assert not grid[0].working._known


async def test_leads_that_come_and_go_leave_nothing_behind(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    pool.gate = asyncio.Event()
    node = grid[0]
    for _ in range(5):
        lead = HostileLead(await enter())
        bad = lead.outsider
        await bad.connect()
        job, batches = bad.job(list(range(6)), per_batch=2)
        grant = bad.grant(job, node.context.me, UnitRange(0, 0, 2), UnitRange(1, 0, 2), UnitRange(2, 0, 2))
        await lead.offer(job, PullReply(False, grant.raw, job.raw, (bad.keepers(job).raw,), tuple(enumerate(batches))))
        await bad.close()
        await until(lambda: node.peers.live() == {}, "it is gone")
    await until(lambda: node.working.worker.queued == 0, "nothing waits")
    pool.gate.set()
    await until(lambda: not any(known.busy for known in node.working._known.values()), "nothing is held")


async def test_nobody_can_lease_units_of_a_job_for_which_nobody_named_it(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leasing, "PASS_OVER_S", (0.0,))  # Each of its tries is to be heard.
    lead, thief = await a_lead(stack, enter), await a_lead(stack, enter)
    good, bad, me = lead.outsider, thief.outsider, grid[0].context.me
    job, batches = good.job(per_batch=4)
    first = good.keepers(job)
    content = tuple(enumerate(batches))
    await lead.offer(job, PullReply(False, good.grant(job, me, UnitRange(0, 0, 1)).raw, job.raw, (first.raw,), content))
    await until(lambda: lead.receipts, "the lead's own lease runs")
    ran = len(pool.ran)
    stolen = bad.keepers(job, good.me, epoch=7, key=bad.key)
    resigned = seal(stolen.body, good.submitter, bad.grid.id)
    other, _ = good.job()
    chains: list[tuple[bytes, ...]] = [(), (first.raw,), (stolen.raw,), (first.raw, stolen.raw), (good.keepers(other).raw, stolen.raw)]
    chains += [(first.raw, resigned.raw[:-1] + bytes([resigned.raw[-1] ^ 1])), (first.raw,) * 600, (b"junk",) * 512]
    for chain in chains:
        for epoch in (0, 1, 8):
            grant = bad.grant(job, me, UnitRange(0, 1, 1), epoch=epoch)
            await thief.offer(job, PullReply(False, grant.raw, job.raw, chain, content))
    relayed = good.grant(job, me, UnitRange(0, 2, 1), nonce=2)
    await thief.offer(job, PullReply(False, relayed.raw, b"", (first.raw,)))
    assert len(pool.ran) == ran
    assert thief.receipts == []
    assert grid[0].working._known[job.id].leads_and_keepers == (good.me,)
    await is_served(bad)


async def test_leads_that_name_keepers_nobody_knows_and_leave_hold_nothing_for_long(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "GIVE_UP_AFTER_S", 0.05)
    monkeypatch.setattr(outbox, "GIVE_UP_AFTER_S", 0.05)
    pool.gate = asyncio.Event()
    node = grid[0]
    for _ in range(3):
        lead = HostileLead(await enter())
        bad = lead.outsider
        await bad.connect()
        job, batches = bad.job(list(range(6)), per_batch=2)
        named = bad.keepers(job, os.urandom(32), os.urandom(32))
        grant = bad.grant(job, node.context.me, UnitRange(0, 0, 2), UnitRange(1, 0, 2), UnitRange(2, 0, 2))
        await lead.offer(job, PullReply(False, grant.raw, job.raw, (named.raw,), tuple(enumerate(batches))))
        await bad.close()
        await until(lambda: node.peers.live() == {}, "it is gone")
    await until(lambda: node.working.worker.queued == 0, "nothing waits")
    assert not node.working._leadless
    pool.gate.set()
    await until(lambda: not any(known.busy for known in node.working._known.values()), "nothing is held")
    await until(lambda: not len(node.working._delivering.outboxes), "nothing is tried for ever", 20.0)
