"""Faults against machines that only remember what was done to them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.testing import faults
from p2pgrid.testing.faults import FAULTS, Struck, Undoing
from p2pgrid.testing.plans.gridplan import FaultEvent
from p2pgrid.testing.plans.scenario import FAULT_KINDS
from p2pgrid.testing.world import World


class FakeAir:
    def __init__(self) -> None:
        self.loss = 0.01
        self.cuts: list[tuple[list[str], list[str], bool]] = []
        self.clogs: dict[str, float] = {}

    def partition(self, one: list[str], other: list[str], *, one_way: bool = False) -> None:
        self.cuts.append((one, other, one_way))

    def heal(self, one: list[str], other: list[str]) -> None:
        self.cuts = [cut for cut in self.cuts if cut[:2] != (one, other)]

    def clog(self, name: str, extra_s: float) -> None:
        self.clogs[name] = extra_s

    def unclog(self, name: str) -> None:
        del self.clogs[name]


class FakeCpu:
    def __init__(self) -> None:
        self.speed = 2.0


class FakeDisk:
    def __init__(self, name: str) -> None:
        self.folder = Path(name)
        self.free: int | None = None
        self.rotten = 0

    def fill(self, free_bytes: int) -> None:
        self.free = free_bytes

    def relieve(self) -> None:
        self.free = None

    def rot(self, rng: random.Random, below: Path) -> Path | None:
        assert below == self.folder / "blobs"
        self.rotten += 1
        return below / "one"


class FakeMachines:
    """Twelve machines: the founder, five desktops, six laptops."""

    def __init__(self, seed: int = 5) -> None:
        self.world = World(seed)
        self.network = FakeAir()
        self.rng = self.world.fork("faults")
        self.undoing: dict[Struck, Undoing] = {}
        self.kinds = {"founder-1": "founder"}
        self.kinds |= {f"desktop-{number}": "desktop" for number in range(1, 6)} | {f"laptop-{number}": "laptop" for number in range(1, 7)}
        self.on = dict.fromkeys(self.kinds, True)
        self.frozen: set[str] = set()
        self.cpus = {name: FakeCpu() for name in self.kinds}
        self.disks = {name: FakeDisk(name) for name in self.kinds}
        self.skews: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.calls: list[tuple[Any, ...]] = []
        self.causes: list[tuple[str, str]] = []

    def running(self, of: str = "", spare: str = "") -> list[str]:
        kinds = self.kinds
        return sorted(name for name, on in self.on.items() if on and (not of or kinds[name] == of) and kinds[name] not in spare.split())

    def kill(self, name: str, *, power: bool, disk_gone: bool) -> None:
        assert self.on[name]
        self.on[name] = False
        self.frozen.discard(name)
        self.calls.append(("kill", name, power, disk_gone))

    def start(self, name: str) -> None:
        assert not self.on[name]
        self.on[name] = True
        self.calls.append(("start", name))

    def leave(self, name: str) -> None:
        self.on[name] = False
        self.frozen.discard(name)
        self.calls.append(("leave", name))

    def freeze(self, name: str) -> None:
        self.frozen.add(name)

    def thaw(self, name: str) -> None:
        assert self.on[name], "a machine that is off was touched"
        self.frozen.discard(name)

    def cpu(self, name: str) -> FakeCpu:
        return self.cpus[name]

    def disk(self, name: str) -> FakeDisk:
        return self.disks[name]

    def skew(self, name: str, seconds: float) -> None:
        self.skews[name] += int(seconds * 1000)

    def add(self, kind: str, at_s: float) -> str:
        self.calls.append(("add", kind, at_s))
        return f"{kind}-new"

    def adversary(self, kind: str, strength: float, for_s: float) -> None:
        self.calls.append(("adversary", kind, strength, for_s))

    def count(self, kind: str) -> None:
        self.counted[kind] += 1

    def damaged(self, name: str, path: str) -> None:
        self.calls.append(("damaged", name, path))

    def cause(self, name: str, kind: str, for_s: float) -> None:
        self.causes.append((name, kind))

    def state(self) -> tuple[object, ...]:
        """All that faults change."""
        disks = {name: disk.free for name, disk in self.disks.items()}
        speeds = {name: cpu.speed for name, cpu in self.cpus.items()}
        skews = {name: skew for name, skew in self.skews.items() if skew}
        return (list(self.network.cuts), self.network.loss, dict(self.network.clogs), set(self.frozen), speeds, disks, skews, dict(self.on))


def event(kind: str, **fields: Any) -> FaultEvent:
    known: dict[str, Any] = {
        "at_s": 0.0,
        "for_s": 20.0,
        "nodes": 2,
        "share": 0.0,
        "of": "",
        "spare": "founder",
        "strength": 3.0,
        "table": 1,
        "turn": 1,
    }
    return FaultEvent(kind=kind, **(known | fields))


PASSING = ("restart", "power", "freeze", "slow", "partition", "one-way", "clog", "lossy", "clock-skew", "full-disk")
FOR_GOOD = ("crash", "leave")


def test_every_kind_that_a_scenario_may_name_is_there() -> None:
    assert set(FAULTS) == set(FAULT_KINDS)
    assert all(fault.about for fault in FAULTS.values())


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_undone_in_time(kind: str) -> None:
    machines = FakeMachines()
    before = machines.state()
    assert faults.apply(event(kind), machines) > 0
    assert machines.state() != before
    machines.world.run_for(19.9)
    assert machines.state() != before
    machines.world.run_for(0.2)
    assert machines.state() == before
    assert not machines.undoing
    assert machines.counted == {kind: 1}


@pytest.mark.parametrize("kind", PASSING)
def test_when_faults_are_over_everything_is_undone_at_once_and_only_once(kind: str) -> None:
    machines = FakeMachines()
    before = machines.state()
    faults.apply(event(kind), machines)
    machines.world.run_for(5.0)
    faults.calm(machines)
    assert machines.state() == before
    calls = list(machines.calls)
    machines.world.run_for(60.0)
    assert machines.state() == before
    assert machines.calls == calls
    faults.calm(machines)
    assert machines.calls == calls


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("ends_by", ["its time", "calm"])
def test_an_undoing_leaves_machines_alone_that_died_meanwhile(kind: str, ends_by: str) -> None:
    machines = FakeMachines()
    faults.apply(event(kind), machines)
    for name in machines.running():
        machines.kill(name, power=True, disk_gone=True)
    if ends_by == "calm":
        faults.calm(machines)
    machines.world.run_for(30.0)
    assert not machines.undoing
    assert not machines.frozen
    assert (machines.network.cuts, machines.network.loss, machines.network.clogs) == ([], 0.01, {})


@pytest.mark.parametrize("kind", ["restart", "power"])
def test_a_machine_that_came_back_by_itself_is_not_started_twice(kind: str) -> None:
    machines = FakeMachines()
    faults.apply(event(kind), machines)
    for name in sorted(machines.kinds):
        if not machines.on[name]:
            machines.start(name)
    machines.world.run_for(30.0)
    assert Counter(call[0] for call in machines.calls) == {"kill": 2, "start": 2}


@pytest.mark.parametrize(("kind", "power", "disk_gone"), [("crash", False, True), ("restart", False, False), ("power", True, False)])
def test_how_machines_end(kind: str, power: bool, disk_gone: bool) -> None:
    machines = FakeMachines()
    faults.apply(event(kind), machines)
    killed = [call for call in machines.calls if call[0] == "kill"]
    assert [call[2:] for call in killed] == [(power, disk_gone)] * 2


@pytest.mark.parametrize("kind", FOR_GOOD)
def test_who_crashed_or_left_does_not_return(kind: str) -> None:
    machines = FakeMachines()
    assert faults.apply(event(kind), machines) == 2
    faults.calm(machines)
    machines.world.run_for(100.0)
    assert len(machines.running()) == 10
    assert "start" not in {call[0] for call in machines.calls}


def test_victims_are_of_the_kind_asked_for_and_not_of_those_spared() -> None:
    machines = FakeMachines()
    faults.apply(event("crash", nodes=100, of="laptop"), machines)
    assert machines.running() == [*[f"desktop-{number}" for number in range(1, 6)], "founder-1"]
    faults.apply(event("crash", nodes=100, spare="founder desktop"), machines)
    assert len(machines.running()) == 6
    faults.apply(event("crash", nodes=100, spare=""), machines)
    assert machines.running() == []
    assert faults.apply(event("crash"), machines) == 0
    assert machines.counted == {"crash": 2}, "a fault that struck nobody does not count"


def test_a_share_counts_instead_of_a_number() -> None:
    machines = FakeMachines()
    assert faults.apply(event("crash", share=0.5, nodes=1, spare=""), machines) == 6


def test_victims_depend_on_the_seed_alone() -> None:
    def struck(seed: int) -> list[tuple[Any, ...]]:
        machines = FakeMachines(seed)
        for kind in ("crash", "power", "restart"):
            faults.apply(event(kind, nodes=3), machines)
        return machines.calls

    assert struck(1) == struck(1)
    assert len({str(struck(seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize("kind", ["freeze", "slow", "clog", "clock-skew", "full-disk"])
def test_a_machine_suffers_from_one_fault_of_a_kind_at_a_time(kind: str) -> None:
    machines = FakeMachines()
    before = machines.state()
    for turn in range(10):
        faults.apply(event(kind, nodes=3, for_s=5.0 + turn), machines)
    assert len(machines.undoing) == 11
    machines.world.run_for(100.0)
    assert machines.state() == before


@pytest.mark.parametrize("kind", ["partition", "one-way", "lossy"])
def test_what_concerns_everybody_happens_once_at_a_time(kind: str) -> None:
    machines = FakeMachines()
    before = machines.state()
    assert faults.apply(event(kind, strength=0.3), machines)
    during = machines.state()
    assert not faults.apply(event(kind, strength=0.9), machines)
    assert machines.state() == during
    machines.world.run_for(21.0)
    assert machines.state() == before
    assert faults.apply(event(kind, strength=0.3), machines)


def test_a_partition_parts_some_from_all_the_others() -> None:
    machines = FakeMachines()
    faults.apply(event("partition", share=0.5), machines)
    faults.apply(event("one-way", nodes=1), machines)
    (one, other, one_way), (lonely, rest, half) = machines.network.cuts
    assert (len(one), len(other), one_way) == (6, 6, False)
    assert (len(lonely), len(rest), half) == (1, 11, True)
    assert sorted([*one, *other]) == sorted([*lonely, *rest]) == machines.running()
    assert "founder-1" in other


def test_what_happens_to_machines_has_the_stated_strength() -> None:
    machines = FakeMachines()
    faults.apply(event("slow", nodes=1, strength=4.0), machines)
    faults.apply(event("clog", nodes=1, strength=0.7), machines)
    faults.apply(event("clock-skew", nodes=1, strength=-40.0), machines)
    faults.apply(event("full-disk", nodes=1, strength=4096.0), machines)
    faults.apply(event("lossy", strength=0.3), machines)
    assert sorted(cpu.speed for cpu in machines.cpus.values())[0] == 0.5
    assert list(machines.network.clogs.values()) == [0.7]
    assert list(machines.skews.values()) == [-40_000]
    assert [disk.free for disk in machines.disks.values() if disk.free is not None] == [4096]
    assert machines.network.loss == 0.3


def test_bits_rot_and_the_damage_is_told_and_has_a_cause() -> None:
    machines = FakeMachines()
    assert faults.apply(event("rot", nodes=2, strength=3.0), machines) == 2
    assert sorted(disk.rotten for disk in machines.disks.values())[-3:] == [0, 3, 3]
    assert len([call for call in machines.calls if call[0] == "damaged"]) == 6
    assert {kind for _, kind in machines.causes} == {"rot"}


def test_only_faults_of_disks_excuse_what_is_logged_as_an_error() -> None:
    machines = FakeMachines()
    for kind in FAULTS:
        faults.apply(event(kind, nodes=1, of="laptop"), machines)
    assert {kind for _, kind in machines.causes} == {"rot", "full-disk"}


def test_a_crowd_joins_within_the_stated_time() -> None:
    machines = FakeMachines()
    machines.world.run_for(7.0)
    faults.apply(event("flash-crowd", nodes=20, of="laptop", strength=3.0), machines)
    added = [call for call in machines.calls if call[0] == "add"]
    assert len(added) == 20
    assert all(kind == "laptop" and 7.0 <= at_s <= 10.0 for _, kind, at_s in added)


@pytest.mark.parametrize("kind", ["flood", "forge", "replay"])
def test_hostile_machines_are_asked_for(kind: str) -> None:
    machines = FakeMachines()
    assert faults.apply(event(kind, nodes=2, strength=50.0), machines) == 2
    assert machines.calls == [("adversary", kind, 50.0, 20.0)] * 2
    assert machines.counted == {kind: 1}


def test_all_kinds_at_once_are_undone_in_an_order_that_works() -> None:
    for seed in range(20):
        machines = FakeMachines(seed)
        for number, kind in enumerate(sorted(FAULTS)):
            machines.world.after(number * 0.7, faults.apply, event(kind, for_s=float(5 + number)), machines)
        machines.world.run_for(14.0)
        faults.calm(machines)
        state = machines.state()
        machines.world.run_for(100.0)
        assert machines.state() == state
        assert not machines.undoing
        assert (machines.network.cuts, machines.network.loss, machines.network.clogs, machines.frozen) == ([], 0.01, {}, set())
        assert all(cpu.speed == 2.0 for cpu in machines.cpus.values())
        starts = [at for at, call in enumerate(machines.calls) if call[0] == "start"]
        assert len(machines.running()) >= 12 - 4, starts


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(KeyError):
        faults.apply(event("earthquake"), FakeMachines())
