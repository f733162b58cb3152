"""The simulated disk: what a power cut, a kill and a full medium do to files and names."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pgrid.errors import UsageError
from p2pgrid.testing.parts.disk import PowerLoss, SimulatedDisk, temporary_folder
from p2pgrid.testing.parts.unsynced import CHANGES_MAX, EFFECTS_MAX


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


def outcomes(folder: Path, act: Callable[[SimulatedDisk, Path], None], seeds: int = 60) -> set[tuple[tuple[str, bytes], ...]]:
    """What a power cut after ``act`` can leave in a folder where ``old`` is durable and holds OLD."""
    found = set()
    for seed in range(seeds):
        place = folder / str(seed)
        place.mkdir()
        disk = SimulatedDisk(place, random.Random(seed))
        disk.write_file(place / "old", b"OLD")
        disk.sync_folder(place)
        act(disk, place)
        disk.crash()
        found.add(tuple(sorted((path.name, path.read_bytes()) for path in place.iterdir())))
    return found


def test_a_replaced_file_is_the_old_or_the_new_one(folder: Path) -> None:
    def replace(disk: SimulatedDisk, place: Path) -> None:
        disk.replace_file(place / "old", b"NEW!", sync_name=False)

    old, new = ("old", b"OLD"), ("old", b"NEW!")
    assert outcomes(folder, replace) == {(old,), (new,), (old, ("old.tmp", b"NEW!"))}


def test_a_rename_ahead_of_its_content_is_found_torn(folder: Path) -> None:
    def careless(disk: SimulatedDisk, place: Path) -> None:
        descriptor = disk.create(place / "tmp")
        disk.write_at(descriptor, b"NEW!", 0)
        disk.close(descriptor)
        disk.rename(place / "tmp", place / "old")
        disk.sync_folder(place)

    contents = {content for ((_, content),) in outcomes(folder, careless)}
    assert contents <= {b"", b"N", b"NE", b"NEW", b"NEW!", bytes(4)}
    assert contents >= {b"", b"NEW!", bytes(4)}
    assert contents & {b"N", b"NE", b"NEW"}


def test_unsynced_names_are_kept_as_a_prefix(folder: Path) -> None:
    def three(disk: SimulatedDisk, place: Path) -> None:
        disk.write_file(place / "a", b"A")
        disk.unlink(place / "old")
        disk.link(place / "a", place / "b")

    a, b, old = ("a", b"A"), ("b", b"A"), ("old", b"OLD")
    assert outcomes(folder, three) == {(old,), (a, old), (a,), (a, b)}


def test_overwritten_and_cut_content_comes_back_in_any_mixture(folder: Path) -> None:
    def change(disk: SimulatedDisk, place: Path) -> None:
        descriptor = disk.modify(place / "old")
        disk.write_at(descriptor, b"xy", 0)
        disk.truncate(descriptor, 1)
        disk.close(descriptor)

    contents = {content for ((_, content),) in outcomes(folder, change)}
    assert contents <= {b"OLD", b"xLD", b"xyD", b"x", b"O"}
    assert {b"OLD", b"x", b"xyD", b"O"} <= contents


def test_a_rename_between_folders_made_durable_by_one_is_so_for_the_other(folder: Path) -> None:
    for seed in range(40):
        place = folder / str(seed)
        disk = SimulatedDisk(folder, random.Random(seed))
        for name in ("from", "to"):
            disk.make_folder(place / name)
        disk.settle()
        disk.write_file(place / "from" / "a", b"A")
        disk.rename(place / "from" / "a", place / "to" / "a")
        disk.write_file(place / "from" / "b", b"B")
        disk.sync_folder(place / "to")
        disk.crash()
        assert (place / "to" / "a").read_bytes() == b"A"
        assert not (place / "from" / "a").exists()


def test_what_is_synced_stays_and_a_kill_loses_nothing_but_the_node(folder: Path) -> None:
    disk = SimulatedDisk(folder, random.Random(0))
    descriptor = disk.create(folder / "a")
    disk.write_at(descriptor, b"unsynced", 0)
    disk.kill()
    for change in (
        lambda: disk.write_at(descriptor, b"x", 0),
        lambda: disk.create(folder / "b"),
        lambda: disk.unlink(folder / "a"),
        lambda: disk.sync(descriptor),
        lambda: disk.sync_folder(folder),
    ):
        with pytest.raises(OSError, match="down") as refused:
            change()
        assert refused.value.errno == errno.EIO
    assert (folder / "a").read_bytes() == b"unsynced"
    disk.close(descriptor)
    disk.close(descriptor)
    assert disk.open_descriptors == 0
    life = disk.revived()
    assert life.unsynced == 2
    life.settle()
    life.crash()
    assert (folder / "a").read_bytes() == b"unsynced"
    assert life.counters.bytes_written == 8
    with pytest.raises(UsageError):
        SimulatedDisk(folder, random.Random(0)).revived()


def test_descriptors_left_open_are_counted_and_buried(folder: Path) -> None:
    disk = SimulatedDisk(folder, random.Random(0))
    left = [disk.create(folder / "a"), disk.modify(folder / "a")]
    assert disk.open_descriptors == 2
    disk.crash()
    disk.bury()
    assert disk.open_descriptors == 0
    for descriptor in left:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)
    with pytest.raises(OSError, match="not a descriptor"):
        SimulatedDisk(folder, random.Random(0)).close(left[0])


def test_planned_power_loss_is_told_and_stops_the_write_at_its_byte(folder: Path) -> None:
    disk = SimulatedDisk(folder, random.Random(0))
    told: list[bool] = []
    disk.on_power_loss = lambda: told.append(disk.dead)
    disk.crash_at(5)
    with pytest.raises(PowerLoss):
        disk.write_file(folder / "a", b"1234567")
    assert (folder / "a").read_bytes() == b"12345"
    assert told == [True]


def test_paths_outside_are_noted_and_not_changed(folder: Path) -> None:
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    disk = SimulatedDisk(inside, random.Random(0))
    wanted = [outside / "a", inside / ".." / "outside" / "a", inside / "link" / "a", Path("relative")]
    for path in wanted:
        with pytest.raises(PermissionError):
            disk.create(path)
        with pytest.raises(PermissionError):
            disk.make_folder(path)
    assert disk.outside == [str(path) for path in wanted for _ in range(2)]
    assert list(outside.iterdir()) == []
    disk.make_folder(inside)
    assert disk.unsynced == 0


def test_room_is_counted_to_the_byte(folder: Path) -> None:
    (folder / "there").write_bytes(bytes(100))
    disk = SimulatedDisk(folder, random.Random(0), capacity_bytes=110)
    assert disk.free_bytes == 10
    descriptor = disk.create(folder / "a")
    with pytest.raises(OSError, match="space"):
        disk.write_at(descriptor, b"0123456789abc", 0)
    assert disk.full
    assert (folder / "a").read_bytes() == b"0123456789"
    disk.write_at(descriptor, b"over", 2)
    disk.truncate(descriptor, 4)
    assert disk.free_bytes == 6
    disk.close(descriptor)
    disk.rename(folder / "a", folder / "there")
    assert disk.free_bytes == 106
    disk.unlink(folder / "there")
    assert disk.free_bytes == 110
    disk.fill(0)
    disk.kill()
    disk = disk.revived()
    assert disk.full
    disk.relieve()
    assert disk.free_bytes == 110


def test_what_was_never_synced_stays_within_bounds(folder: Path) -> None:
    disk = SimulatedDisk(folder, random.Random(0))
    descriptor = disk.create(folder / "log")
    for number in range(3 * EFFECTS_MAX):
        disk.write_at(descriptor, b"x", number)
    for number in range(3 * CHANGES_MAX):
        disk.close(disk.create(folder / f"{number}"))
        disk.unlink(folder / f"{number}")
    assert disk.unsynced <= EFFECTS_MAX + CHANGES_MAX
    assert len(list(folder.with_name(f"{folder.name}.limbo").iterdir())) <= CHANGES_MAX
    disk.crash()
    assert not folder.with_name(f"{folder.name}.limbo").exists()
    disk.bury()


def test_the_same_seed_leaves_the_same_disk(folder: Path) -> None:
    def run(place: Path) -> list[tuple[str, bytes]]:
        place.mkdir()
        disk = SimulatedDisk(place, random.Random(3))
        rng = random.Random(4)
        for _ in range(200):
            path = place / f"{rng.randrange(9)}"
            if rng.random() < 0.3:
                disk.unlink(path)
                continue
            descriptor = disk.create(path)
            disk.write_at(descriptor, rng.randbytes(20), rng.randrange(20))
            disk.close(descriptor)
        disk.rot(rng, place)
        disk.crash()
        return sorted((path.name, path.read_bytes()) for path in place.iterdir())

    assert run(folder / "one") == run(folder / "two")


def test_a_temporary_folder_leaves_nothing_behind() -> None:
    with temporary_folder() as folder:
        disk = SimulatedDisk(folder, random.Random(0))
        disk.write_file(folder / "a", b"A")
        disk.unlink(folder / "a")
        limbo = folder.with_name(f"{folder.name}.limbo")
        assert limbo.exists()
    assert not folder.exists()
    assert not limbo.exists()
