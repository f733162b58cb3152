"""Hostile machines among honest nodes in virtual time: refused with reasons, bounded, repeatable, and never believed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.core.invites import parse_invite
from p2pgrid.core.membership import admit
from p2pgrid.dht.carrier import UdpCarrier
from p2pgrid.errors import MalformedError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import Limits
from p2pgrid.model.membership import Grid as GridTerms
from p2pgrid.model.node import Address
from p2pgrid.model.work import Grant, UnitRange
from p2pgrid.net.tls import TlsTransport
from p2pgrid.testing import faults
from p2pgrid.testing.faults import FAULTS
from p2pgrid.testing.hostile import adversary as hostile
from p2pgrid.testing.hostile.adversaries import ADVERSARIES, Adversary, AdversaryHost, DigestLiar, Forger, Replayer, Target
from p2pgrid.testing.hostile.forging import Forgery, KnownJob
from p2pgrid.testing.plans.scenario import FaultPlan, JobPlan, NodePlan
from p2pgrid.wire.envelope import peek, seal
from p2pgrid.wire.keys import SigningKey
from tests.unit.services.grid_in_process import DAY_MS, Grid, make_job, use_in_place_pool, wall_ms
from tests.unit.testing.small_grid import SmallGrid, errors_of, small_grid

LONG = (JobPlan(units=60, unit_s=1.2, at_s=4.0), JobPlan(name="compared", units=20, unit_s=0.5, at_s=4.5, quorum=2))
KINDS = sorted(ADVERSARIES)
REASONS = {
    "flood": {"malformed", "unknown-job", "no-blob", "owner-only", "unsupported", "version"},
    "forge": {"bad-signature", "expired", "bad-grant", "no-role", "not-granted", "wrong-peer", "clock-off", "unknown-job", "malformed"},
    "replay": {"not-member", "wrong-peer"},
}


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not errors_of(caplog.get_records("call"))


def attacked(folder: Path, kind: str, *, seed: int = 1, per_second: float = 60.0, for_s: float = 12.0) -> Iterator[SmallGrid]:
    with small_grid(folder, seed=seed, jobs=LONG) as grid:
        grid.run(3.0)
        grid.crowd.adversary(kind, per_second, for_s)
        yield grid


def test_each_kind_of_fault_that_is_a_machine_has_an_adversary() -> None:
    assert set(ADVERSARIES) == {"flood", "forge", "replay"} < set(FAULTS)
    assert all(adversary.kind == kind for kind, adversary in ADVERSARIES.items())


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_are_refused_with_reasons_and_everybody_else_is_served(kind: str, tmp_path: Path) -> None:
    for grid in attacked(tmp_path, kind):
        assert grid.finished(90.0)
        assert [(job.state, job.failed) for job in grid.errands.jobs] == [("done", 0)] * 2
        grid.run(max(grid.world.now, 16.0) + 1.0)
        (adversary,) = grid.attackers.all
        given = set(grid.reasons) | {reason for node in grid.crowd.living().values() for reason in node.dht.protocol.gate.dropped}
        assert given >= REASONS[kind], REASONS[kind] - given
        assert adversary.sent.total() > 100
        assert getattr(adversary, "believed", 0) == 0
        assert grid.watch.believed == []
        assert len(grid.crowd.running()) == 4, "nobody was brought down"
        assert not any(loop.complaints for loop in grid.world.loops.values())


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_ends_when_it_is_told_and_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    for grid in attacked(tmp_path, kind, for_s=5.0):
        loop = grid.world.loops[f"{kind}-1"]
        (adversary,) = grid.attackers.all
        grid.run(8.5)
        sent = adversary.sent.total()
        assert not loop.unfinished()
        assert adversary not in grid.crowd.onlookers
        assert adversary.on_datagram not in grid.network.watchers
        grid.run(30.0)
        assert adversary.sent.total() == sent
        assert not loop.alive
        assert all(adversary.me not in node.peers.live() for node in grid.crowd.living().values())


@pytest.mark.parametrize("kind", KINDS)
def test_an_adversary_keeps_to_its_rate_and_its_bounds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    spawn = Adversary.spawn

    def counted(self: Adversary, work: Any) -> bool:
        nonlocal most
        done = spawn(self, work)
        most = max(most, len(self._tasks))
        return done

    monkeypatch.setattr(Adversary, "spawn", counted)
    turns = 0
    attack = ADVERSARIES[kind].attack

    def turned(self: Adversary) -> None:
        nonlocal turns
        turns += 1
        attack(self)

    monkeypatch.setattr(ADVERSARIES[kind], "attack", turned)
    for grid in attacked(tmp_path, kind, per_second=150.0, for_s=4.0):
        grid.run(8.0)
        assert 500 < turns <= 600
        assert 0 < most <= hostile.TASKS_MAX


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_attacks_byte_for_byte_alike(kind: str, tmp_path: Path) -> None:
    def one(number: int, seed: int) -> tuple[object, ...]:
        folder = tmp_path / str(number)
        folder.mkdir()
        with small_grid(folder, seed=seed, nodes=3, jobs=LONG) as grid:
            grid.run(3.0)
            grid.crowd.adversary(kind, 60.0, 4.0)
            bytes_sent: list[bytes] = []
            address = grid.network.hosts[f"{kind}-1"].address
            grid.network.watchers.append(lambda data, source, _: bytes_sent.append(data) if source[0] == address else None)
            grid.run(7.5)
            (adversary,) = grid.attackers.all
            return bytes_sent, sorted(grid.watch.poisoned), dict(adversary.sent), dict(adversary.answers), grid.world.trace_hash()

    first = one(1, 1)
    assert first[0]
    assert first == one(2, 1)
    assert first != one(3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_without_targets_and_with_dead_ones_an_adversary_waits(kind: str, tmp_path: Path) -> None:
    for grid in attacked(tmp_path, kind, for_s=10.0):
        grid.run(5.0)
        for name in grid.crowd.running():
            grid.crowd.kill(name, power=True, disk_gone=False)
        grid.run(20.0)
        assert not grid.world.loops[f"{kind}-1"].complaints
        assert grid.watch.believed == []


def test_attacks_come_as_faults_of_a_scenario(tmp_path: Path) -> None:
    plans = [FaultPlan(kind=kind, at_s=4.0 + number, for_s=3.0, strength=20.0) for number, kind in enumerate(KINDS)]
    with small_grid(tmp_path, faults=plans, jobs=()) as grid:
        for event in grid.plan.faults:
            grid.world.at(event.at_s, faults.apply, event, grid.crowd)
        grid.run(12.0)
        assert sorted(adversary.kind for adversary in grid.attackers.all) == KINDS
        assert dict(grid.crowd.faults) == dict.fromkeys(KINDS, 1)
        assert all(adversary.sent.total() > 20 for adversary in grid.attackers.all)


# -- the forger ------------------------------------------------------------------------------------


def test_a_forger_speaks_of_real_jobs_in_all_the_ways_that_do_not_hold(tmp_path: Path) -> None:
    for grid in attacked(tmp_path, "forge", for_s=14.0, per_second=80.0):
        grid.run(16.0)
        (forger,) = grid.attackers.all
        assert isinstance(forger, Forger)
        types = {type_of(raw) for raw in grid.watch.poisoned}
        assert types >= {"grant", "receipt", "decision", "keepers", "cancel", "settled", "job", "record"}
        assert {"delta", "deliver", "begin", "cancel", "lease", "junk", "foreign id", "other author", "stale"} <= set(forger.sent)
        assert len(forger._jobs) == 2
        assert all(job.grants and job.receipts and job.decisions for job in forger._jobs.values())


def type_of(raw: bytes) -> str:
    try:
        return peek(raw).type
    except MalformedError:
        return ""


def test_what_is_genuine_is_never_called_forged(tmp_path: Path) -> None:
    """Otherwise a checker would cry at what is right."""
    for grid in attacked(tmp_path, "forge", for_s=14.0):
        grid.run(22.0)
        logged = {data for _, _, data in grid.watch.logged}
        assert not logged & grid.watch.poisoned


def test_every_kind_of_statement_and_every_way_to_sign_it_wrongly_is_drawn() -> None:
    poisoned: list[bytes] = []
    host = fake_host(poisoned)
    forge = Forgery(host)
    job = KnownJob(id=host.grid.id, lead=NodeKey(b"l" * 32))  # type: ignore[arg-type]
    body, _ = make_job([1, 2, 3])
    job.job = seal(body, SigningKey(b"s" * 32), host.grid.id)
    lead = SigningKey(b"g" * 32)
    job.grants.append(seal(Grant(wall_ms() + DAY_MS, job.id, 0, b"w" * 32, b"w" * 32, (UnitRange(0, 0, 3),)), lead, host.grid.id))
    drawn = [forge.statement(job) for _ in range(400)]
    assert {kind for kind, _ in drawn} == {kinds.RECEIPT, kinds.GRANT, kinds.DECISION, kinds.KEEPERS, kinds.CANCEL, kinds.SETTLED}
    authors = {peek(raw).author for _, raw in drawn}
    assert host.key.public in authors
    assert job.lead in authors
    assert job.job.author in authors
    assert lead.public not in authors
    assert len(authors) == 5, "its own, a stranger's, the lead's, the submitter's, the worker's"


def fake_host(poisoned: list[bytes]) -> AdversaryHost:
    rng = random.Random(7)
    return AdversaryHost(
        name="x",
        network=None,  # type: ignore[arg-type]
        port=1,
        key=SigningKey(rng.randbytes(32)),
        submitter=SigningKey(rng.randbytes(32)),
        grid=GridTerms("g", rng.randbytes(32)),
        credentials=(b"a", b"b"),
        targets=list,
        rng=rng,
        wall_ms=wall_ms,
        poison=poisoned.append,
        per_second=1.0,
    )


# -- the replayer --------------------------------------------------------------------------------------


def test_a_replayer_repeats_every_kind_of_thing_and_it_counts_once(tmp_path: Path) -> None:
    for grid in attacked(tmp_path, "replay", for_s=20.0, per_second=80.0):
        assert grid.finished(60.0)
        (replayer,) = grid.attackers.all
        assert isinstance(replayer, Replayer)
        assert {"datagram", "log", "receipt", "hello"} <= set(replayer.sent)
        assert replayer.answers["not-member"] > 0
        for name in grid.crowd.running():
            receipts = [data for who, kind, data in grid.watch.logged if who == name and kind == kinds.RECEIPT]
            assert len(receipts) == len(set(receipts)), "a receipt was logged twice"


# -- the liar ----------------------------------------------------------------------------------------------


def test_receipts_with_wrong_digests_are_refused_and_others_do_the_work(tmp_path: Path) -> None:
    liars = (NodePlan(kind="liar"),)
    with small_grid(tmp_path, kinds=liars, jobs=(JobPlan(units=80, unit_s=0.3, at_s=5.0),)) as grid:
        grid.run(4.0)
        liar = DigestLiar(grid.crowd.living()["liar-1"], grid.watch.poison)
        assert grid.finished(120.0)
        grid.run(grid.world.now + 5.0)
        assert liar.lies > 0
        assert grid.reasons["corrupt"] > 0
        assert grid.watch.poisoned
        assert grid.watch.believed == []
        (job,) = grid.errands.jobs
        assert (job.state, job.failed) == ("done", 0)


# -- against real sockets -------------------------------------------------------------------------------------


class Loopback:
    """A host of real sockets."""

    def transport(self, loop: Any, key: SigningKey, port: int, limits: Limits) -> TlsTransport:
        return TlsTransport(key, "127.0.0.1", 0, limits)

    def carrier(self, loop: Any, port: int) -> UdpCarrier:
        return UdpCarrier("127.0.0.1")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_attacks_run_against_nodes_on_real_sockets(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_in_place_pool(monkeypatch)
    async with AsyncExitStack() as stack:
        grid = Grid(tmp_path, stack)
        node = await grid.add(cores=1, storage_bytes=8 << 20)
        await grid.add(storage_bytes=8 << 20)
        invite = parse_invite(node.invite(("work", "submit", "native"), wall_ms() + DAY_MS), wall_ms())
        key = SigningKey(os.urandom(32))
        targets = [Target(key=one.context.me, address=Address("tls", "127.0.0.1", one.port)) for one in grid.nodes]
        host = AdversaryHost(
            name=kind,
            network=Loopback(),
            port=0,
            key=key,
            submitter=SigningKey(os.urandom(32)),
            grid=invite.grid,
            credentials=(*invite.chain, admit(SigningKey(invite.secret), key.public, invite.grid, wall_ms() + DAY_MS)),
            targets=lambda: targets,
            rng=random.Random(5),
            wall_ms=wall_ms,
            poison=lambda raw: None,
            per_second=200.0,
        )
        adversary = ADVERSARIES[kind](host)
        adversary.start(asyncio.get_running_loop())
        deadline = time.monotonic() + 30
        while adversary.sent.total() < 60 or not adversary.answers:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        adversary.stop()
        await adversary.stopped()
        assert not adversary._tasks
        await grid.close_all()
