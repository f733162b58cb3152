"""The blob store on a disk that loses its power anywhere in anything it does.

Each story is played once undisturbed, which says what the store must look like after each of its steps. Then it is played
again and again with the power going before each operation of the disk, and at each byte written. Whatever was left must be
what one of the two steps around the cut leaves, with all the room counted, and the story must go on to its end.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from p2pgrid.errors import IntegrityError, P2PGridError
from p2pgrid.model.blob import CHUNK_BYTES, address_of
from p2pgrid.model.ids import BlobId
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.index import HELD, Index
from p2pgrid.testing.parts.disk import SimulatedDisk, temporary_folder

NOW_MS = 100
ALICE, BOB = b"alice", b"bob"
OLD = b"an earlier blob"
SMALL = b"0123456789" * 3
LARGE = random.Random(5).randbytes(CHUNK_BYTES + 5)
STRANGE = random.Random(6).randbytes(CHUNK_BYTES + 9)

Looks = dict[BlobId, tuple[str, int, frozenset[tuple[bytes, int]]]]
"""What a store has: by blob its state, its size and its live leases."""


class Rig:
    """One machine whose node opens its store again after each end."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder / str(seed)
        self.folder.mkdir()
        self.disk = SimulatedDisk(self.folder, random.Random(seed))
        self.index: Index | None = None
        self.rotten: set[BlobId] = set()
        """Blobs whose damage the store may not know yet."""
        self.disk.make_folder(self.folder / "blobs")
        self.disk.sync_folder(self.folder)
        self.store = self.open()

    def open(self) -> BlobStore:
        self.leave_index()
        self.index, report = Index.open(self.folder.with_suffix(".index"), sync=False)
        assert not report.was_clean
        return BlobStore(self.folder / "blobs", 1 << 30, self.index, now_ms=NOW_MS, disk=self.disk)

    def leave_index(self) -> None:
        if self.index is not None:
            self.index.abandon()
            self.index = None

    def next_life(self, *, power_cut: bool = True, lose_index: bool = False) -> None:
        (self.disk.crash if power_cut else self.disk.kill)()
        assert self.disk.open_descriptors == 0
        assert self.disk.outside == []
        self.disk = self.disk.revived()
        self.leave_index()
        if lose_index:
            for path in self.folder.parent.glob(f"{self.folder.name}.index*"):
                path.unlink()
        self.store = self.open()

    def looks(self) -> Looks:
        """What the store shows. All that it serves is whole, all that it counts is there, and nothing else is."""
        store, shown, owners = self.store, Looks(), dict[bytes, int]()
        for row in store.list():
            leases = store.leases(row.id)
            for lease in leases:
                owners[lease.owner] = owners.get(lease.owner, 0) + row.size_bytes
            live = frozenset((lease.owner, lease.expires_ms) for lease in leases if lease.expires_ms > NOW_MS)
            shown[row.id] = (row.state, row.size_bytes, live)
            if row.state == HELD and row.id not in self.rotten:
                assert address_of(store.path(row.id).read_bytes())[0] == row.id
        usage = store.usage()
        sizes = sum(size_bytes for _, size_bytes, _ in shown.values())
        assert (usage.blobs, usage.used_bytes, usage.reserved_bytes) == (len(shown), sizes, 0)
        assert {owner: store.owner_bytes(owner) for owner in (ALICE, BOB)} == {owner: owners.get(owner, 0) for owner in (ALICE, BOB)}
        self.check_files(shown)
        return shown

    def check_files(self, shown: Looks) -> None:
        """Each blob has its content, whole or not, and its metadata; nothing half-made lies about."""
        expected = set[str]()
        for blob, (state, _, _) in shown.items():
            expected |= {f"{blob.hex()}.meta", blob.hex() if state == HELD else f"{blob.hex()}.part"}
        assert {path.name for path in (self.folder / "blobs").rglob("*") if path.is_file()} == expected

    def rot(self, blob: BlobId) -> None:
        """A bit of the content is flipped behind the store's back."""
        raw = bytearray(self.store.path(blob).read_bytes())
        raw[len(raw) // 2] ^= 1
        self.store.path(blob).write_bytes(raw)
        self.rotten.add(blob)


Step = Callable[[Rig], object]


class Story(NamedTuple):
    """``before``: what is there already, undisturbed. Each step can be done again when nobody knows whether it was done."""

    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    lasting: bool = True
    """False when a power cut after the last step may take that one back: what goes by itself need not go durably."""


def put(data: bytes, owner: bytes = ALICE, expires_ms: int = 900) -> Step:
    return lambda rig: rig.store.put_bytes(data, owner=owner, expires_ms=expires_ms)


def put_file(data: bytes, *, strange: bool = False) -> Step:
    def act(rig: Rig) -> None:
        path = rig.folder.parent / f"source-{len(data)}"
        path.write_bytes(data)
        if strange:
            rig.store.ingest(path, len(data), owner=ALICE, expires_ms=900)
        else:
            rig.store.put_file(path, owner=ALICE, expires_ms=900)

    return act


def upload(data: bytes, *, chunks: int | None = None, end: str = "commit", owner: bytes = ALICE) -> Step:
    """Open a writer, write what is missing, at most so many chunks, and end it."""

    def act(rig: Rig) -> None:
        blob, root = address_of(data)
        writer = rig.store.writer(blob, len(data), root, owner=owner, expires_ms=900)
        for index in list(reversed(writer.missing()))[:chunks]:
            writer.write_chunk(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        getattr(writer, end)()

    return act


def lease(data: bytes, owner: bytes, expires_ms: int) -> Step:
    return lambda rig: rig.store.lease(address_of(data)[0], owner, expires_ms)


def release(data: bytes, owner: bytes) -> Step:
    return lambda rig: rig.store.release(address_of(data)[0], owner)


def delete(data: bytes) -> Step:
    return lambda rig: rig.store.delete(address_of(data)[0])


def expire(rig: Rig) -> None:
    rig.store.expire(NOW_MS)


def rot(data: bytes) -> Step:
    return lambda rig: rig.rot(address_of(data)[0])


def find_rot(data: bytes) -> Step:
    def act(rig: Rig) -> None:
        blob = address_of(data)[0]
        if rig.store.has(blob):
            with pytest.raises(IntegrityError):
                rig.store.read_all(blob, len(data))
            rig.rotten.discard(blob)

    return act


STORIES = {
    "put bytes": Story((put(OLD),), (put(SMALL), put(b""), put(SMALL, BOB))),
    "put bytes, large": Story((put(OLD),), (put(LARGE),)),
    "put a file": Story((put(OLD),), (put_file(SMALL), put_file(LARGE))),
    "ingest": Story((put(OLD),), (put_file(SMALL, strange=True), put_file(STRANGE, strange=True))),
    "upload": Story((put(OLD),), (upload(LARGE, chunks=0, end="close"), upload(LARGE, chunks=1, end="close"), upload(LARGE))),
    "upload, small": Story((put(OLD),), (upload(SMALL),)),
    "upload of two": Story(
        (upload(LARGE, chunks=1, end="close"),), (upload(LARGE, chunks=0, end="close", owner=BOB), upload(LARGE, owner=BOB))
    ),
    "upload, put meanwhile": Story((upload(LARGE, chunks=1, end="close"),), (put(LARGE, BOB),)),
    "abort": Story((put(OLD), upload(LARGE, chunks=1, end="close")), (upload(LARGE, chunks=0, end="abort"),), lasting=False),
    "lease": Story((put(OLD), put(SMALL)), (lease(OLD, BOB, 300), lease(OLD, BOB, 700), lease(SMALL, ALICE, 2000))),
    "release": Story((put(OLD), put(OLD, BOB), put(SMALL)), (release(OLD, ALICE), release(SMALL, ALICE), expire), lasting=False),
    "expire": Story(
        (put(OLD), put(SMALL, expires_ms=99), put(b"both", expires_ms=50), put(b"both", BOB), upload(LARGE, chunks=1, end="close")),
        (expire,),
        lasting=False,
    ),
    "delete": Story((put(OLD), put(SMALL), upload(LARGE, chunks=1, end="close")), (delete(SMALL), delete(LARGE))),
    "find rot": Story((put(OLD), put(SMALL), put(LARGE), rot(SMALL), rot(LARGE)), (find_rot(SMALL), find_rot(LARGE))),
    "heal": Story(
        (put(SMALL), put(LARGE), rot(SMALL), rot(LARGE), find_rot(SMALL), find_rot(LARGE)),
        (put(SMALL, BOB), upload(LARGE, chunks=0, end="close", owner=BOB), upload(LARGE, owner=BOB)),
    ),
    "heal by put": Story((put(LARGE), rot(LARGE), find_rot(LARGE)), (put(LARGE),)),
    "heal, given up": Story((put(LARGE), rot(LARGE), find_rot(LARGE)), (upload(LARGE, chunks=0, end="abort", owner=BOB),)),
}


@pytest.fixture
def rig() -> Iterator[Callable[[], Rig]]:
    made: list[Rig] = []

    def make() -> Rig:
        made.append(Rig(folder, len(made)))
        return made[-1]

    with temporary_folder() as folder:
        yield make
        for each in made:
            each.leave_index()
            each.disk.bury()


def prepare(machine: Rig, story: Story) -> None:
    for step in story.before:
        step(machine)
    machine.disk.settle()


def undisturbed(machine: Rig, story: Story) -> list[Looks]:
    """What the store looks like before the first step and after each."""
    prepare(machine, story)
    looks = [machine.looks()]
    for step in story.steps:
        step(machine)
        looks.append(machine.looks())
        machine.disk.settle()
    machine.next_life(lose_index=True)
    assert machine.looks() == looks[-1]
    return looks


def lies_between(left: Looks, before: Looks, after: Looks) -> bool:
    """Whether each blob is as it was or as it should become; its leases may have changed before its content."""

    def fits(blob: BlobId) -> bool:
        forms = [looks.get(blob) for looks in (before, after)]
        if left.get(blob) in forms:
            return True
        states, _, leases = zip(*(form for form in forms if form is not None), strict=True)
        return blob in left and left[blob][0] in states and left[blob][2] in leases

    return left.keys() <= before.keys() | after.keys() and all(fits(blob) for blob in before.keys() | after.keys())


def play(machine: Rig, story: Story, looks: list[Looks], number: int, plan: Callable[[SimulatedDisk], None]) -> bool:
    """Play the story with a power cut as planned; whether it came to its end undisturbed."""
    prepare(machine, story)
    plan(machine.disk)
    done = 0
    with suppress(P2PGridError):
        for step in story.steps:
            step(machine)
            done += 1
    ended = not machine.disk.dead
    if not story.lasting and done == len(story.steps):
        done -= 1
    machine.next_life(power_cut=number % 3 > 0, lose_index=number % 2 > 0)
    left = machine.looks()
    assert lies_between(left, looks[done], looks[min(done + 1, len(story.steps))])
    machine.next_life()
    assert machine.looks() == left
    for step in story.steps[done:]:
        step(machine)
    assert machine.looks() == looks[-1]
    machine.next_life(lose_index=True)
    assert machine.looks() == looks[-1] or (not story.lasting and lies_between(machine.looks(), looks[-2], looks[-1]))
    return ended


@pytest.mark.parametrize("name", STORIES)
def test_power_lost_before_any_operation_loses_nothing_that_was_acknowledged_and_no_room(rig: Callable[[], Rig], name: str) -> None:
    story = STORIES[name]
    looks = undisturbed(rig(), story)
    operations = 0
    for seed in range(3):
        for operations in itertools.count():
            if play(rig(), story, looks, seed, lambda disk: disk.crash_before(operations)):  # noqa: B023 - it is called at once
                break
    assert operations > 2


@pytest.mark.parametrize("name", STORIES)
def test_power_lost_at_any_byte_loses_nothing_that_was_acknowledged_and_no_room(rig: Callable[[], Rig], name: str) -> None:
    story = STORIES[name]
    looks = undisturbed(rig(), story)
    chance = random.Random(name)
    # Every byte of what is small; of large contents the borders of chunks and some bytes anywhere.
    places = set(range(700))
    if any(size_bytes > CHUNK_BYTES for look in looks for _, size_bytes, _ in look.values()):
        borders = [border + off for border in range(CHUNK_BYTES, 3 * CHUNK_BYTES, CHUNK_BYTES) for off in (-1, 0, 1)]
        places = {*range(0, 700, 41), *borders, *(chance.randrange(2 * CHUNK_BYTES) for _ in range(8))}
    for number, place in enumerate(sorted(places)):
        if play(rig(), story, looks, number, lambda disk: disk.crash_at(place)):  # noqa: B023 - it is called at once
            break
