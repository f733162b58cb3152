"""Whom a worker believes, and what it does when a lead is gone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pgrid.model.job import Cancel
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import UnitRange
from p2pgrid.services import leasing, working
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import CancelRequest, PullReply
from tests.unit.services.grid_in_process import until
from tests.unit.services.worker_world import GRID, WorkerWorld, leased, pull_of

WHOLE = UnitRange(0, 0, 4)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[WorkerWorld]:
    world = WorkerWorld(tmp_path)
    await world.working.start()
    yield world
    await world.working.close()


# -- whom it believes ---------------------------------------------------------------------


async def test_a_lead_that_a_keeper_named_is_believed_in_a_later_epoch(world: WorkerWorld) -> None:
    lead, keeper = world.party(), world.party()
    job, batches = world.job()
    chain = (world.keepers(job, lead, keeper).raw, world.keepers(job, keeper, lead, epoch=1, by=keeper.key).raw)
    grant = world.grant(job, keeper, WHOLE, epoch=1)
    keeper.replies = [PullReply(False, grant.raw, job.raw, chain, ((0, batches[0]),))]
    world.invite(job, keeper)
    await until(lambda: world.pool.started, "it runs")
    known = world.working._known[job.id]
    assert (known.epoch, known.leads_and_keepers) == (1, (keeper.me, lead.me))


@pytest.mark.parametrize(
    "what",
    ["forged", "other job", "not named", "epoch 0 by a keeper", "negative epoch", "broken", "not the lead", "foreign grant", "no chain"],
)
async def test_a_chain_that_does_not_hold_leads_to_nothing(world: WorkerWorld, what: str) -> None:
    lead, keeper, stranger = world.party(), world.party(), world.party()
    job, batches = world.job()
    other, _ = world.job()
    first = world.keepers(job, lead, keeper)
    second = world.keepers(job, keeper, lead, epoch=1, by=keeper.key)
    by_stranger = world.keepers(job, stranger, lead, epoch=1, by=stranger.key)
    grant, who = world.grant(job, keeper, WHOLE, epoch=1), keeper
    chain: list[bytes] = [first.raw, second.raw]
    if what == "forged":
        chain = [first.raw, second.raw[:-3] + bytes(3)]
    elif what == "other job":
        chain = [world.keepers(other, lead, keeper).raw, world.keepers(other, keeper, lead, epoch=1, by=keeper.key).raw]
    elif what == "not named":
        chain, grant, who = [first.raw, by_stranger.raw], world.grant(job, stranger, WHOLE, epoch=1), stranger
    elif what == "epoch 0 by a keeper":
        grant = world.grant(job, keeper, WHOLE, epoch=0)
    elif what == "negative epoch":
        grant = world.grant(job, keeper, WHOLE, epoch=-1)
    elif what == "broken":
        chain = [second.raw]
    elif what == "not the lead":
        grant, who = world.grant(job, stranger, WHOLE, epoch=1), stranger
    elif what == "foreign grant":
        grant = world.grant(job, lead, WHOLE)
    else:
        chain = []
    who.replies = [PullReply(False, grant.raw, job.raw, tuple(chain), ((0, batches[0]),))]
    world.invite(job, who)
    await until(lambda: world.told, "it was refused")
    await world.settle()
    assert world.told[0] in (Reason.BAD_GRANT, Reason.BAD_SIGNATURE, Reason.MALFORMED)
    assert not world.pool.started
    assert not any(known.busy for known in world.working._known.values())


async def test_a_chain_that_is_too_long_is_not_looked_at(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "CHAIN_MAX", 20)
    lead = world.party()
    job, batches = world.job()
    sets = [world.keepers(job, lead, epoch=epoch).raw for epoch in range(21)]
    for chain, ran in ((sets, False), (sets[1:], True)):
        lead.replies = [PullReply(False, world.grant(job, lead, WHOLE).raw, job.raw, tuple(chain), ((0, batches[0]),))]
        world.invite(job, lead)
        await until(lambda: world.told, "refused") if not ran else await until(lambda: world.pool.started, "it runs")
        assert bool(world.pool.started) == ran
    assert world.told == [Reason.MALFORMED]


async def test_a_new_lead_of_a_known_job_shows_its_chain_and_only_then_counts(world: WorkerWorld) -> None:
    lead, keeper = world.party(), world.party()
    job, batches = world.job()
    lead.replies = [
        PullReply(
            False, world.grant(job, lead, UnitRange(0, 0, 1)).raw, job.raw, (world.keepers(job, lead, keeper).raw,), ((0, batches[0]),)
        )
    ]
    world.invite(job, lead)
    await until(lambda: world.pool.running, "it runs")
    assert [(pull.need_job, pull.epoch) for pull in lead.pulls] == [(True, -1)]
    fresh = world.party()
    world.pool.end(0)
    await until(lambda: lead.deliveries, "delivered")
    await world.settle()
    grant = world.grant(job, fresh, UnitRange(0, 1, 1), epoch=2)
    fresh.replies = [PullReply(False, grant.raw)]
    world.invite(job, fresh)
    await until(lambda: world.told == [Reason.BAD_GRANT], "nobody named it")
    chain = (world.keepers(job, lead, keeper), world.keepers(job, keeper, fresh, epoch=1, by=keeper.key))
    newest = world.keepers(job, fresh, keeper, epoch=2, by=fresh.key)
    fresh.replies = [PullReply(False, grant.raw, b"", tuple(one.raw for one in (*chain, newest)))]
    world.invite(job, fresh)
    await until(lambda: len(world.pool.started) == 2, "now it is")
    assert [(pull.need_job, pull.epoch) for pull in fresh.pulls] == [(False, 0), (False, 0)]
    assert world.working._known[job.id].epoch == 2


async def test_a_lead_whose_leases_never_fit_is_asked_ever_less(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lease that is given back costs the lead a signed grant: a worker that cannot take any must not come back every time."""
    monkeypatch.setattr(leasing, "PASS_OVER_S", (0.0, 60.0))
    lead, other = world.party(), world.party()
    job, _ = world.job()
    foreign = world.grant(job, other, WHOLE).raw
    chain = (world.keepers(job, lead, other).raw,)
    for round_ in (1, 2):
        lead.replies = [PullReply(False, foreign, job.raw, chain)]
        world.invite(job, lead)
        await until(lambda count=round_: len(lead.returned) == count, "it gave it back")  # type: ignore[misc]
    asked = len(lead.pulls)
    world.invite(job, lead)
    await world.settle()
    assert len(lead.pulls) == asked
    assert set(world.told) == {Reason.BAD_GRANT}


async def test_the_sets_remembered_of_a_job_are_bounded(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "SETS_MAX", 5)
    lead = world.party()
    job, batches = world.job()
    for epoch in range(12):
        grant = world.grant(job, lead, UnitRange(0, 0, 1), nonce=epoch)
        head = (job.raw, (world.keepers(job, lead, epoch=epoch).raw,))
        lead.replies = [PullReply(False, grant.raw, *head, ((0, batches[0]),))]
        world.invite(job, lead)
        await until(lambda: world.pool.running, "it runs")
        world.pool.end(0)
        await until(lambda: not world.working.worker.running, "it ended")
    lineage = world.working._known[job.id].lineage
    assert len(lineage.sets) <= 5
    assert world.working._known[job.id].epoch == 11


async def test_a_lead_without_the_roles_is_refused_and_the_next_one_is_not(world: WorkerWorld) -> None:
    lead, keeper = world.party(), world.party()
    job, batches = world.job()
    named = world.keepers(job, lead, keeper)
    chain = (named.raw, world.keepers(job, keeper, lead, epoch=1, by=keeper.key).raw)
    keeper.replies = [PullReply(False, world.grant(job, keeper, WHOLE, epoch=1).raw, job.raw, chain, ((0, batches[0]),))]
    world.roles = {"store", "work"}
    world.invite(job, keeper)
    await until(lambda: world.told == [Reason.NO_ROLE], "refused")
    await world.settle()
    world.roles = {"submit", "native"}
    world.invite(job, keeper)
    await world.settle()
    assert len(keeper.pulls) == 1
    lead.replies = [PullReply(False, world.grant(job, lead, WHOLE).raw, job.raw, (named.raw,), ((0, batches[0]),))]
    world.invite(job, lead)
    await until(lambda: world.pool.started, "it runs")


# -- a lead that is gone ----------------------------------------------------------------------


async def test_a_lease_of_a_lead_that_is_gone_is_worked_off_for_the_keepers(world: WorkerWorld) -> None:
    _, grant, lead, (keeper,) = await leased(world, UnitRange(0, 0, 2), UnitRange(1, 0, 2), units=4, per_batch=2)
    world.lose(lead)
    pulls = len(lead.pulls)
    for number in range(4):
        await until(lambda: number in world.pool.running, "the next one runs")  # noqa: B023
        world.pool.end(number)
    await until(lambda: len(keeper.units) == 4, "all delivered")
    assert keeper.units == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {delivery.grants for delivery in keeper.deliveries} == {(grant.raw,)}
    assert len(lead.pulls) == pulls
    assert (lead.deliveries, world.told) == ([], [])
    assert not any(known.busy for known in world.working._known.values())


async def test_a_lead_that_comes_back_is_pulled_from_and_delivered_to_again(world: WorkerWorld) -> None:
    job, _, lead, (keeper,) = await leased(world, UnitRange(0, 0, 1))
    world.lose(lead)
    lead.away = False
    lead.replies = [PullReply(False, world.grant(job, lead, UnitRange(0, 1, 1), nonce=2).raw)]
    world.invite(job, lead)
    assert not world.working._leadless
    world.pool.end(0)
    await until(lambda: 1 in world.pool.running, "the next lease runs")
    world.pool.end(1)
    await until(lambda: len(lead.units) == 2, "delivered")
    assert not keeper.deliveries


async def test_without_keepers_what_is_queued_for_a_lead_that_is_gone_is_dropped(world: WorkerWorld) -> None:
    _, _, lead, _ = await leased(world, UnitRange(0, 0, 1), UnitRange(0, 2, 1), keepers=0)
    assert world.working.worker.queued == 1
    world.lose(lead)
    assert world.working.worker.queued == 0
    world.pool.end(0)
    await until(lambda: not any(known.busy for known in world.working._known.values()), "nothing is held")
    assert len(world.pool.started) == 1


async def test_what_nobody_can_be_reached_for_any_more_is_dropped(world: WorkerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "GIVE_UP_AFTER_S", 0.01)
    _, _, lead, (keeper,) = await leased(world, UnitRange(0, 0, 1), UnitRange(0, 2, 1))
    world.lose(lead)
    (key,) = world.working._leadless
    timer = world.working._leadless[key]
    await until(lambda: world.working._leadless[key] is not timer, "it was looked at, and the keeper is there")
    assert world.working.worker.queued == 1
    keeper.away = True
    await until(lambda: world.working.worker.queued == 0, "dropped")
    assert not world.working._leadless


async def test_who_leads_next_ends_what_is_over(world: WorkerWorld) -> None:
    job, _, lead, (keeper,) = await leased(world, UnitRange(0, 0, 1), UnitRange(0, 2, 1))
    world.lose(lead)
    stranger = world.party()
    for party, queued in ((stranger, 1), (keeper, 0)):
        party.replies = [PullReply(True)]
        world.working.worker.sources[(job.id, lead.me)].mean_s = 0.001
        await world.working._pull(pull_of(job.id, party.me))
        assert world.working.worker.queued == queued


async def test_a_cancel_ends_what_is_queued_for_a_lead_that_is_gone(world: WorkerWorld) -> None:
    job, _, lead, _ = await leased(world, UnitRange(0, 0, 1), UnitRange(0, 2, 1))
    world.lose(lead)
    for key, queued in ((SigningKey(os.urandom(32)), 1), (world.submitter, 0)):
        cancel = seal(Cancel(job.body.expires_ms, job.id), key, GRID)
        world.working._on_cancelled(None, CancelRequest(cancel.raw))  # type: ignore[arg-type]
        await world.settle()
        assert world.working.worker.queued == queued
    assert world.pool.cancelled == [job.id]
    assert not world.working._leadless
