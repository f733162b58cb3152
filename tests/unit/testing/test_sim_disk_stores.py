"""What the real stores keep on a disk that loses its power, its node or its room at any moment."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import P2PGridError, RefusedError
from p2pgrid.model.blob import CHUNK_BYTES, address_of
from p2pgrid.model.ids import BlobId, JobId, StatementId
from p2pgrid.model.reasons import Reason
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.home import Home
from p2pgrid.store.index import Index
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES, Ledgers, Record
from p2pgrid.testing.parts.disk import SimulatedDisk, temporary_folder

JOB = JobId(StatementId(bytes(range(32))))
FIRST: list[Record] = [(1, b"first"), (2, b"")]
SECOND: list[Record] = [(3, b"x" * 40), (0, b"\0" * 30), (255, b"the last one")]
LARGE = random.Random(5).randbytes(2 * CHUNK_BYTES + 5)
random_bytes = random.Random(7).randbytes


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield folder


class Rig:
    """One machine whose node opens its stores again after each end."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder / f"machine-{seed}"
        self.folder.mkdir(exist_ok=True)
        self.disk = SimulatedDisk(self.folder, random.Random(seed))
        self.index: Index | None = None
        for name in ("ledger", "blobs"):
            self.disk.make_folder(self.folder / name)
        self.disk.sync_folder(self.folder)

    def ledgers(self) -> Ledgers:
        return Ledgers(self.folder / "ledger", random_bytes, disk=self.disk)

    def replay(self) -> list[Record]:
        found: list[Record] = []
        self.ledgers().open(JOB, lambda kind, data: found.append((kind, data)))
        return found

    def blobs(self) -> BlobStore:
        self.leave_index()
        self.index, report = Index.open(self.folder.with_suffix(".index"), sync=False)
        assert not report.was_clean
        return BlobStore(self.folder / "blobs", 1 << 30, self.index, now_ms=0, disk=self.disk)

    def leave_index(self) -> None:
        if self.index is not None:
            self.index.abandon()
            self.index = None

    def crash(self, *, lose_index: bool = False) -> None:
        self.disk.crash()
        self.next_life()
        if lose_index:
            for path in self.folder.parent.glob(f"{self.folder.name}.index*"):
                path.unlink()

    def kill(self) -> None:
        self.disk.kill()
        self.next_life()

    def next_life(self) -> None:
        """The stores close their descriptors whatever happens; only a node that was stopped in a call leaves one."""
        assert self.disk.open_descriptors == 0
        assert self.disk.outside == []
        self.disk = self.disk.revived()
        self.leave_index()


@pytest.fixture
def rig(folder: Path) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(seed: int = 0) -> Rig:
        made.append(Rig(folder, seed))
        return made[-1]

    yield make
    for each in made:
        each.leave_index()
        each.disk.bury()


def is_subsequence(part: list[Record], whole: list[Record]) -> bool:
    left = iter(whole)
    return all(record in left for record in part)


# -- the job log ------------------------------------------------------------------------------


def size_of(records: list[Record]) -> int:
    return sum(FRAME_BYTES + len(data) for _, data in records)


@pytest.mark.parametrize("seed", range(3))
def test_power_lost_at_any_byte_of_an_append_leaves_every_acknowledged_record_and_invents_none(rig: Callable[..., Rig], seed: int) -> None:
    outcomes = set[int]()
    for byte_number in range(size_of(SECOND) + 1):
        machine = rig(1000 * seed + byte_number)
        log = machine.ledgers().log(JOB)
        log.append(FIRST)
        machine.disk.crash_at(byte_number)
        with pytest.raises(P2PGridError):
            log.append(SECOND)
        with pytest.raises(P2PGridError):
            log.append(FIRST)
        machine.crash()
        found = machine.replay()
        assert found[: len(FIRST)] == FIRST
        assert is_subsequence(found[len(FIRST) :], SECOND)
        outcomes.add(len(found))
        machine.ledgers().log(JOB).append([(9, b"after")])
        machine.crash()
        assert machine.replay() == [*found, (9, b"after")]
    assert {len(FIRST), len(FIRST) + 1} <= outcomes


def test_power_lost_at_any_byte_of_a_new_log_leaves_a_log_that_can_be_used(rig: Callable[..., Rig]) -> None:
    for byte_number in range(HEADER_BYTES + size_of(FIRST) + 1):
        machine = rig(byte_number)
        machine.disk.crash_at(byte_number)
        with pytest.raises(P2PGridError):
            machine.ledgers().log(JOB).append(FIRST)
        machine.crash()
        found = machine.replay()
        assert is_subsequence(found, FIRST)
        machine.ledgers().log(JOB).append(SECOND)
        machine.crash()
        assert machine.replay() == [*found, *SECOND]


def test_an_append_that_returned_is_there_whatever_operation_the_power_went_before(rig: Callable[..., Rig]) -> None:
    for operations, seed in itertools.product(range(1, 12), range(4)):
        machine = rig(100 * operations + seed)
        machine.disk.crash_before(operations)
        acknowledged: list[Record] = []
        with suppress(P2PGridError):
            log = machine.ledgers().log(JOB)
            for record in FIRST + SECOND:
                log.append([record])
                acknowledged.append(record)
        assert machine.disk.dead
        machine.crash()
        found = machine.replay()
        assert found in (acknowledged, (FIRST + SECOND)[: len(acknowledged) + 1])


@pytest.mark.parametrize("batch", [FIRST, SECOND])
def test_records_that_a_killed_process_left_in_memory_are_durable_once_they_were_read_back(
    rig: Callable[..., Rig], batch: list[Record]
) -> None:
    for seed in range(20):
        machine = rig(seed)
        log = machine.ledgers().log(JOB)
        machine.disk.crash_at(size_of(batch))
        with pytest.raises(P2PGridError):
            log.append(batch)
        machine.kill()
        assert machine.replay() == batch
        machine.crash()
        assert machine.replay() == batch


def test_a_log_deleted_for_good_does_not_come_back(rig: Callable[..., Rig]) -> None:
    for seed in range(10):
        machine = rig(seed)
        ledgers = machine.ledgers()
        ledgers.log(JOB).append(FIRST)
        ledgers.remove(JOB)
        machine.crash()
        assert machine.ledgers().jobs() == []


# -- the blob store ----------------------------------------------------------------------------


def put_bytes(store: BlobStore, data: bytes, folder: Path) -> BlobId:
    return store.put_bytes(data, owner=b"me", expires_ms=9)


def put_file(store: BlobStore, data: bytes, folder: Path) -> BlobId:
    path = folder / "source"
    path.write_bytes(data)
    return store.put_file(path, owner=b"me", expires_ms=9)


def put_chunks(store: BlobStore, data: bytes, folder: Path) -> BlobId:
    blob, root = address_of(data)
    writer = store.writer(blob, len(data), root, owner=b"me", expires_ms=9)
    for index in reversed(writer.missing()):
        writer.write_chunk(index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    return writer.commit()


Put = Callable[[BlobStore, bytes, Path], BlobId]
PUTS: list[Put] = [put_bytes, put_file, put_chunks]
OLD = b"an earlier blob"


def check_blobs(store: BlobStore, acknowledged: dict[BlobId, bytes], tried: dict[BlobId, bytes]) -> None:
    """What was acknowledged is whole; of the rest nothing half is visible, and nothing else is there."""
    for blob, data in acknowledged.items():
        assert store.read_all(blob, len(data)) == data
    for blob, data in tried.items():
        if store.has(blob):
            assert store.read_all(blob, len(data)) == data
    assert {row.id for row in store.list()} <= set(acknowledged) | set(tried)


@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("data", [b"", b"small" * 20, LARGE], ids=["empty", "small", "large"])
def test_power_lost_before_any_operation_of_a_put_loses_no_acknowledged_blob_and_shows_no_half_one(
    rig: Callable[..., Rig], folder: Path, put: Put, data: bytes
) -> None:
    blob = address_of(data)[0]
    seeds = range(4) if len(data) < CHUNK_BYTES else range(2)
    for seed in seeds:
        for operations in itertools.count():
            machine = rig(1000 * seed + operations)
            store = machine.blobs()
            acknowledged = {put_bytes(store, OLD, folder): OLD}
            machine.disk.crash_before(operations)
            ended = False
            with suppress(P2PGridError):
                acknowledged[put(store, data, folder)] = data
                ended = not machine.disk.dead
            machine.crash(lose_index=seed % 2 == 1)
            store = machine.blobs()
            check_blobs(store, acknowledged, {blob: data})
            assert put(store, data, folder) == blob
            machine.crash()
            check_blobs(machine.blobs(), {**acknowledged, blob: data}, {})
            if ended:
                break
        assert operations > 8


@pytest.mark.parametrize("put", PUTS)
def test_power_lost_at_any_byte_of_a_small_put_shows_no_half_blob(rig: Callable[..., Rig], folder: Path, put: Put) -> None:
    data = b"0123456789" * 4
    for byte_number in itertools.count():
        machine = rig(byte_number)
        store = machine.blobs()
        acknowledged = {put_bytes(store, OLD, folder): OLD}
        machine.disk.crash_at(byte_number)
        with suppress(P2PGridError):
            acknowledged[put(store, data, folder)] = data
        ended = not machine.disk.dead
        machine.crash()
        check_blobs(machine.blobs(), acknowledged, {address_of(data)[0]: data})
        if ended:
            break
    assert byte_number > len(data)


@pytest.mark.parametrize("put", PUTS)
def test_a_blob_that_a_killed_process_left_is_durable_once_it_was_acknowledged_again(
    rig: Callable[..., Rig], folder: Path, put: Put
) -> None:
    for operations, seed in itertools.product(range(25), range(3)):
        machine = rig(100 * operations + seed)
        store = machine.blobs()
        machine.disk.crash_before(operations)
        with suppress(P2PGridError):
            put(store, OLD, folder)
        machine.kill()
        store = machine.blobs()
        blob = put(store, OLD, folder)
        machine.crash()
        check_blobs(machine.blobs(), {blob: OLD}, {})


def test_an_upload_is_resumed_after_a_power_cut_with_no_wrong_chunk(rig: Callable[..., Rig]) -> None:
    blob, root = address_of(LARGE)
    for seed in range(12):
        machine = rig(seed)
        writer = machine.blobs().writer(blob, len(LARGE), root, owner=b"me", expires_ms=9)
        for index in (2, 0):
            writer.write_chunk(index, LARGE[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        machine.crash()
        store = machine.blobs()
        writer = store.writer(blob, len(LARGE), root, owner=b"me", expires_ms=9)
        for index in writer.missing():
            writer.write_chunk(index, LARGE[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
        writer.commit()
        machine.crash()
        check_blobs(machine.blobs(), {blob: LARGE}, {})


@pytest.mark.parametrize("put", PUTS)
def test_a_full_disk_refuses_and_loses_nothing(rig: Callable[..., Rig], folder: Path, put: Put) -> None:
    machine = rig()
    store = machine.blobs()
    log = machine.ledgers().log(JOB)
    log.append(FIRST)
    acknowledged = {put_bytes(store, OLD, folder): OLD}
    for free_bytes in (0, 1, 37, 300, CHUNK_BYTES, 2 * CHUNK_BYTES):
        machine.disk.fill(free_bytes)
        with pytest.raises(RefusedError) as refused:
            put(store, LARGE, folder)
        assert refused.value.reason == Reason.DISK_FULL
        machine.disk.fill(free_bytes % 40)
        with pytest.raises(RefusedError) as refused:
            log.append(SECOND)
        assert refused.value.reason == Reason.DISK_FULL
    # What is left of a batch that did not fit must not show behind a shorter one.
    machine.disk.fill(FRAME_BYTES + 10)
    log.append([(9, b"")])
    machine.disk.relieve()
    assert machine.ledgers().open(JOB).sound
    log.append(SECOND)
    assert put(store, LARGE, folder) == address_of(LARGE)[0]
    machine.crash()
    assert machine.replay() == [*FIRST, (9, b""), *SECOND]
    check_blobs(machine.blobs(), {**acknowledged, address_of(LARGE)[0]: LARGE}, {})


def test_rot_of_a_blob_is_found_by_verify(rig: Callable[..., Rig], folder: Path) -> None:
    for seed in range(10):
        machine = rig(seed)
        store = machine.blobs()
        blobs = [put_bytes(store, data, folder) for data in (OLD, LARGE)]
        struck = machine.disk.rot(random.Random(seed), machine.folder / "blobs")
        assert struck is not None
        if struck.suffix:
            continue
        assert [store.verify(blob) for blob in blobs] == [blob.hex() != struck.name for blob in blobs]


def test_rot_of_a_log_costs_one_record_and_is_reported(rig: Callable[..., Rig]) -> None:
    machine = rig()
    machine.ledgers().log(JOB).append(FIRST + SECOND)
    machine.disk.rot(random.Random(1), machine.folder / "ledger")
    report = machine.ledgers().open(JOB)
    assert not report.sound
    assert report.records >= 4


def test_a_home_keeps_its_identity_over_power_cuts(folder: Path) -> None:
    for operations, seed in itertools.product(range(36), range(3)):
        disk = SimulatedDisk(folder, random.Random(seed))
        path = folder / f"home-{operations}-{seed}"
        disk.crash_before(operations)
        known = b""
        with suppress(P2PGridError):
            known = open_home(path, disk)
        if disk.dead:
            (disk.kill if seed else disk.crash)()
            disk = disk.revived()
            seen, known = known, open_home(path, disk)
            assert seen in (b"", known)
        disk.crash()
        disk = disk.revived()
        assert open_home(path, disk) == known
        assert disk.outside == []
        disk.settle()


def open_home(path: Path, disk: SimulatedDisk) -> bytes:
    home = Home(path, random_bytes, disk=disk)
    try:
        home.prepare()
        home.lock()
        return home.node_key().public
    finally:
        home.close()


# -- anything, in any order -------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3)),
        st.tuples(st.just("put"), st.integers(0, 4)),
        st.tuples(st.just("lease"), st.integers(0, 4)),
        st.tuples(st.just("delete"), st.integers(0, 4)),
        st.tuples(st.just("crash"), st.integers(0, 1)),
        st.tuples(st.just("kill"), st.integers(0, 1)),
        st.tuples(st.just("crash at"), st.integers(0, 250)),
        st.tuples(st.just("crash before"), st.integers(0, 12)),
    ),
    max_size=30,
)


class Life:
    """The stores on one machine, and all that they acknowledged or may have done."""

    def __init__(self, machine: Rig) -> None:
        self.machine = machine
        self.durable: list[Record] = []
        self.tried: list[Record] = []
        self.blobs: dict[BlobId, bytes] = {}
        self.leases: dict[BlobId, int] = {}
        self.gone: dict[BlobId, bytes] = {}
        self.count = 0
        self.open()

    def open(self) -> None:
        self.store = self.machine.blobs()
        found = self.machine.replay()
        assert found[: len(self.durable)] == self.durable
        assert is_subsequence(found[len(self.durable) :], self.tried)
        # What was read back is believed from now on.
        self.durable, self.tried = found, []
        self.log = self.machine.ledgers().log(JOB)
        check_blobs(self.store, self.blobs, self.gone)
        for blob, until_ms in self.leases.items():
            assert max(lease.expires_ms for lease in self.store.leases(blob)) >= until_ms

    def step(self, what: str, number: int) -> None:
        if what in ("crash", "kill"):
            self.end(what, number)
        elif what == "crash at":
            self.machine.disk.crash_at(number)
        elif what == "crash before":
            self.machine.disk.crash_before(number)
        else:
            try:
                getattr(self, what)(number)
            except P2PGridError:
                if not self.machine.disk.dead:
                    raise
                self.end("crash" if number % 2 else "kill", number % 2)

    def end(self, what: str, number: int) -> None:
        if what == "kill":
            self.machine.kill()
        else:
            self.machine.crash(lose_index=bool(number))
        self.open()

    def append(self, number: int) -> None:
        batch: list[Record] = [(self.count % 256, bytes([self.count % 256]) * 9) for self.count in range(self.count, self.count + number)]
        self.count += 1
        self.tried += batch
        self.log.append(batch)
        self.durable, self.tried = self.durable + batch, []

    def put(self, number: int) -> None:
        data = bytes([number]) * (number * 11)
        blob = address_of(data)[0]
        self.gone.setdefault(blob, data)
        assert put_bytes(self.store, data, self.machine.folder) == blob
        self.blobs[blob] = self.gone[blob]
        self.leases[blob] = max(9, self.leases.get(blob, 0))

    def lease(self, number: int) -> None:
        blob = address_of(bytes([number]) * (number * 11))[0]
        if blob in self.blobs:
            self.count += 1
            self.store.lease(blob, b"me", 10 + self.count)
            self.leases[blob] = 10 + self.count

    def delete(self, number: int) -> None:
        blob = address_of(bytes([number]) * (number * 11))[0]
        if self.blobs.pop(blob, None) is not None:
            del self.leases[blob]
            self.store.delete(blob)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 20), steps=STEPS)
def test_whatever_happens_in_whatever_order_acknowledged_data_stays(seed: int, steps: list[tuple[str, int]]) -> None:
    with temporary_folder() as folder:
        machine = Rig(folder, seed)
        life = Life(machine)
        try:
            for what, number in steps:
                life.step(what, number)
            life.end("crash", seed % 2)
        finally:
            machine.leave_index()
            machine.disk.bury()
