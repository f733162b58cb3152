"""A worker that its owner pauses: the processors are free at once, leases go back, and it works again when it may."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from p2pgrid.core import pausing as core
from p2pgrid.core.admission import Policy
from p2pgrid.core.pausing import Asked, Presence
from p2pgrid.core.speculation import Speculation
from p2pgrid.errors import MalformedError
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import UnitRange
from p2pgrid.runtimes.tasks import Kind
from p2pgrid.services import pausing
from p2pgrid.services.pausing import Pausing, hours_text, span_text, terms_told
from p2pgrid.store.home import Home
from p2pgrid.wire.messages import LeasesReturned, PullReply
from p2pgrid.wire.owner import Nothing, OwnPause, PauseRequest, WhyMe
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until
from tests.unit.services.worker_world import WorkerWorld, leased, pull_of

SESSION = cast(Any, None)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[WorkerWorld]:
    world = WorkerWorld(tmp_path)
    await world.working.start()
    yield world
    await world.working.close()


async def test_what_runs_is_stopped_and_goes_back_as_paused_and_counts_for_nothing(world: WorkerWorld) -> None:
    job, grant, lead, _ = await leased(world, UnitRange(0, 0, 4))
    world.pool.end(0)
    await until(lambda: 1 in world.pool.running, "the second one runs")
    await world.working.pause(0.01)
    assert world.pool.running == {}
    assert not world.working._runs
    await until(lambda: lead.returned, "the lease goes back")
    assert lead.units == [(0, 0)], "what had ended was delivered, and nothing else was answered"
    assert lead.returned == [LeasesReturned(job.id, (grant.id,), Reason.PAUSED)]
    assert not any(known.busy for known in world.working._known.values())
    assert not world.working._owed


async def test_what_ends_within_the_grace_counts(world: WorkerWorld) -> None:
    _, _, lead, _ = await leased(world, UnitRange(0, 0, 1))
    pause = asyncio.ensure_future(world.working.pause(5.0))
    await world.settle()
    assert not world.pool.stopped
    world.pool.end(0)
    await pause
    await until(lambda: lead.units, "delivered")
    assert (lead.units, lead.returned) == ([(0, 0)], [])


async def test_a_paused_worker_hears_no_invitation_and_gives_a_late_lease_back(world: WorkerWorld) -> None:
    job, _, lead, _ = await leased(world, UnitRange(0, 0, 1))
    late = world.grant(job, lead, UnitRange(0, 1, 1), nonce=2)
    lead.replies = [PullReply(False, late.raw)]
    lead.gate.clear()
    pull = asyncio.ensure_future(world.working._pull(pull_of(job.id, lead.me)))
    await world.settle()
    pause = asyncio.ensure_future(world.working.pause(0.01))
    lead.gate.set()
    await asyncio.gather(pull, pause)
    await until(lambda: len(lead.returned) == 2, "both leases go back")
    assert {returned.reason for returned in lead.returned} == {Reason.PAUSED}
    pulls = len(lead.pulls)
    world.invite(job, lead)
    await world.settle()
    assert len(lead.pulls) == pulls
    assert [number for number, _ in world.pool.started] == [0]


async def test_after_resume_it_pulls_and_runs_again(world: WorkerWorld) -> None:
    job, _, lead, _ = await leased(world, UnitRange(0, 0, 2))
    await world.working.pause(0.01)
    await until(lambda: lead.returned, "the lease goes back")
    world.working.resume()
    again = world.grant(job, lead, UnitRange(0, 0, 2), nonce=3)
    lead.replies = [PullReply(False, again.raw)]
    world.invite(job, lead)
    await until(lambda: 0 in world.pool.running, "it runs again")
    world.pool.end(0)
    await until(lambda: 1 in world.pool.running, "and the next")
    world.pool.end(1)
    await until(lambda: len(lead.units) == 2, "both are answered")
    assert lead.units == [(0, 0), (0, 1)]
    assert len(lead.returned) == 1


async def test_who_finishes_runs_what_it_has_and_pulls_nothing_more(world: WorkerWorld) -> None:
    job, _, lead, _ = await leased(world, UnitRange(0, 0, 2))
    world.working.finish()
    pulls = len(lead.pulls)
    world.invite(job, lead)
    world.pool.end(0)
    await until(lambda: 1 in world.pool.running, "the second one runs")
    assert not world.working.worker.idle
    world.pool.end(1)
    await until(lambda: world.working.worker.idle, "nothing is left")
    await until(lambda: len(lead.units) == 2, "both are answered")
    assert (lead.returned, len(lead.pulls)) == ([], pulls)


async def test_who_leaves_while_paused_does_not_work_again(world: WorkerWorld) -> None:
    await world.working.pause(0.01)
    await world.working.drain(0.01)
    world.working.resume()
    assert world.pool.stopped
    assert world.working.worker.closed


# The service


class Machine:
    """What the machine says."""

    def __init__(self) -> None:
        self.says = Presence(idle_s=1e6, on_battery=None, others_share=0.0, minute=720)
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Presence:
        self.asked.append(asked)
        return self.says


class Owned:
    """A worker with an owner who has terms."""

    def __init__(self, world: WorkerWorld, folder: Path, **terms: Any) -> None:
        world.context.policy = Policy(**({"cores": 1, "on_battery": True} | terms))
        world.context.submitter = world.submitter
        self.world = world
        self.machine = Machine()
        self.home = Home(folder, os.urandom)
        self.home.prepare()
        self.pausing = Pausing(world.context, world.working, self.home, self.machine)  # type: ignore[arg-type]

    async def call(self, method: str, request: Any = None) -> Any:
        return await self.world.context.methods.calls[method].handler(SESSION, request or Nothing())

    @property
    def told(self) -> tuple[str, str]:
        state = self.pausing.state
        return state.name, state.reason or ""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "LOOK_S", 0.01)


async def test_without_a_term_the_machine_is_never_looked_at(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home")
    await owned.pausing.start()
    assert (owned.machine.asked, owned.pausing._looking, owned.told) == ([], None, ("running", ""))
    await owned.pausing.close()


async def test_where_there_is_no_battery_the_machine_is_looked_at_once(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home", on_battery=False)
    await owned.pausing.start()
    assert owned.machine.asked == [Asked(idle=False, battery=True, load=False, hours=False)]
    assert owned.pausing._looking is None
    await owned.pausing.close()


async def test_the_owner_who_comes_back_has_the_machine_and_when_gone_it_works_again(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home", idle_s=60.0)
    await owned.pausing.start()
    job, grant, lead, _ = await leased(world, UnitRange(0, 0, 2))
    owned.machine.says = Presence(idle_s=0.0)
    await until(lambda: owned.told == ("paused", "owner-active"), "it pauses")
    await until(lambda: lead.returned, "the lease goes back")
    assert lead.returned == [LeasesReturned(job.id, (grant.id,), Reason.PAUSED)]
    assert not world.pool.running
    owned.machine.says = Presence(idle_s=61.0)
    await until(lambda: owned.told == ("running", ""), "it works again")
    assert not world.working.worker.closed
    assert world.told == ["owner-active", "owner-active"]
    await owned.pausing.close()


async def test_a_pause_holds_after_a_restart_and_its_end_too(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home")
    await owned.pausing.start()
    told: OwnPause = await owned.call("own.pause", PauseRequest(3600.0))
    assert (told.state, told.reason, told.until_ms - told.since_ms) == ("paused", "paused", 3_600_000)
    assert "by itself in 60 min" in told.ends
    await owned.pausing.close()
    later = WorkerWorld(tmp_path)
    again = Owned(later, tmp_path / "home")
    await again.pausing.start()
    assert again.told == ("paused", "paused")
    assert again.pausing.state.since_ms == told.since_ms
    assert later.working.worker.paused
    assert (await again.call("own.resume")).state == "running"
    await again.pausing.close()
    last = Owned(WorkerWorld(tmp_path), tmp_path / "home")
    await last.pausing.start()
    assert last.told == ("running", "")
    await last.pausing.close()
    await later.working.close()
    await last.world.working.close()


async def test_who_says_pause_and_hangs_up_gets_the_machine_all_the_same(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home")
    await owned.pausing.start()
    _, _, lead, _ = await leased(world, UnitRange(0, 0, 1))
    asking = asyncio.ensure_future(owned.call("own.pause", PauseRequest()))
    await world.settle()
    asking.cancel()
    await until(lambda: lead.returned, "the lease goes back")
    assert not world.pool.running
    await until(lambda: owned.home.read_private(pausing.PAUSE_FILE), "it is written")
    await owned.pausing.close()


async def test_a_pause_for_a_time_ends_by_itself(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home")
    await owned.pausing.start()
    await owned.call("own.pause", PauseRequest(0.05))
    assert owned.told == ("paused", "paused")
    await until(lambda: owned.told == ("running", ""), "it works again")
    await until(lambda: owned.pausing._looking is not None and owned.pausing._looking.done(), "nobody looks any more")
    await owned.pausing.close()


async def test_a_damaged_note_of_a_pause_is_a_pause(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home")
    owned.home.write_private(pausing.PAUSE_FILE, b"{half")
    await owned.pausing.start()
    assert owned.told == ("paused", "paused")
    await owned.pausing.close()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e12])
async def test_a_pause_that_cannot_be_is_refused(world: WorkerWorld, tmp_path: Path, seconds: float) -> None:
    owned = Owned(world, tmp_path / "home")
    with pytest.raises(MalformedError):
        await owned.call("own.pause", PauseRequest(seconds))
    assert owned.told == ("running", "")


async def test_finishing_becomes_a_pause_when_the_last_unit_has_ended(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home")
    await owned.pausing.start()
    _, _, lead, _ = await leased(world, UnitRange(0, 0, 1))
    assert (await owned.call("own.finish")).state == "finishing"
    world.pool.end(0)
    await until(lambda: owned.told == ("paused", "paused"), "it is paused")
    await until(lambda: lead.units, "the unit counts")
    assert (lead.units, lead.returned) == ([(0, 0)], [])
    await owned.pausing.close()


async def test_why_me_says_state_reason_end_runtimes_and_terms(world: WorkerWorld, tmp_path: Path) -> None:
    owned = Owned(world, tmp_path / "home", hours=((1320, 420),), nice=5, runtimes=("native",))
    world.context.terms = world.context.policy
    await owned.pausing.start()
    why: WhyMe = await owned.call("own.me")
    assert (why.pause.state, why.pause.reason, why.pause.ends) == ("paused", "outside-hours", "in the hours 22:00-07:00")
    assert why.pause.sentence == Reason.OUTSIDE_HOURS.sentence
    assert [(line.runtime, line.offered) for line in why.runtimes] == [("native", True)]
    assert why.terms == (("on-battery", "yes"), ("hours", "22:00-07:00"), ("nice", "5"))
    assert why.submitter == world.submitter.public
    await owned.pausing.close()


@pytest.mark.parametrize("reason", [*core.ORDER, Reason.PAUSED, Reason.FINISHING])
def test_every_reason_has_a_sentence_and_an_end(reason: Reason, tmp_path: Path) -> None:
    owner = cast(Any, Pausing.__new__(Pausing))
    owner._context = type("Context", (), {"policy": Policy(idle_s=600.0, busy_share=0.5, hours=((0, 60),)), "wall_ms": lambda: 0})
    assert reason.sentence
    assert owner._ends(reason, 0, 0)


def test_terms_are_told_in_words() -> None:
    policy = Policy(
        idle_s=600.0,
        on_battery=True,
        busy_share=0.3,
        upload_bytes_per_s=1 << 20,
        submitters=(b"s" * 32,),
        environments="listed",
        packages=("numpy",),
        native=False,
    )
    assert dict(terms_told(policy)) == {
        "only-idle": "10 min",
        "on-battery": "yes",
        "busy": "30%",
        "upload": "1 MiB/s",
        "accept-from": "1 submitters",
        "packages": "numpy",
        "native": "no",
    }
    assert terms_told(Policy()) == ()
    assert hours_text(((0, 61), (1320, 420))) == "00:00-01:01, 22:00-07:00"
    assert [span_text(seconds) for seconds in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]


def test_forms_from_before_the_terms_are_read() -> None:
    from p2pgrid.wire.messages import NodeStatus

    old = msgspec.msgpack.encode([1, 0, 0, 5, 100, 1.0, 0.5, 2])
    status = msgspec.msgpack.decode(old, type=NodeStatus)
    assert (status.jobs_kept, status.paused, status.paused_since_ms) == (2, "", 0)


# In a grid


async def test_a_pause_in_the_middle_of_a_job_loses_nothing_and_counts_nothing_twice(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the machine is slow the lead makes copies of the last units, which is another matter.
    monkeypatch.setattr(Speculation, "room", lambda self, answers: 0.0)
    await grid.grow(3, cores=1)
    pool.gate, counts = asyncio.Event(), Counter[int]()

    def compute(kind: Kind, item: int) -> int:
        counts[item] += 1
        return item

    pool.compute = staticmethod(compute)
    channel, job = await submit(grid, grid[0], list(range(60)), per_batch=20)
    paused = grid[2]
    await until(lambda: paused.working.worker.running, "it works")
    await paused.working.pause(0.01)
    assert paused.working.worker.running == 0
    pool.gate.set()
    paused.working.resume()
    values, _ = await results(channel, job)
    assert values == {number: number for number in range(60)}
    assert set(counts.values()) == {1}
