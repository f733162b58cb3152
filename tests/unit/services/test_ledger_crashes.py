"""A real job's log on a disk that loses its power at every byte, or loses bytes that were acknowledged long ago.

Each time the log is opened as a node opens it, read as a keeper reads it, and merged as what it says is believed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from p2pgrid.errors import P2PGridError
from p2pgrid.model import log as kinds
from p2pgrid.model.job import Job
from p2pgrid.services.absorbing import KeptJob, absorb
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES, Ledgers, Record, ReplayReport
from p2pgrid.testing.parts.disk import SimulatedDisk, temporary_folder
from p2pgrid.wire.envelope import open_envelope
from p2pgrid.wire.messages import LogRecord
from tests.unit.services.job_records import GRID, UNITS, SmallJob, small_job

AFTER: Record = (kinds.PAYLOAD, b"written after the crash")
BATCHES = 2
JOB_LOG = small_job(BATCHES)
READ_BYTES = 1000


class Reading(NamedTuple):
    """What a node finds in a log."""

    report: ReplayReport
    records: list[Record]


class Machine:
    """One machine whose disk holds one job log."""

    def __init__(self, folder: Path, seed: int, content: bytes | None = None) -> None:
        """``content``: the log as an earlier life left it, all of it synced."""
        self.folder = folder / str(seed)
        self.folder.mkdir()
        self.path = self.folder / f"{JOB_LOG.id.hex()}.log"
        if content is not None:
            self.path.write_bytes(content)
        self._random = random.Random(seed)
        self.disk = SimulatedDisk(self.folder, self._random)

    def ledgers(self) -> Ledgers:
        return Ledgers(self.folder, self._random.randbytes, disk=self.disk)

    def next_life(self, *, power_cut: bool = True) -> None:
        if power_cut:
            self.disk.crash()
        else:
            self.disk.kill()
        assert self.disk.open_descriptors == 0
        self.disk = self.disk.revived()

    def read(self) -> Reading:
        """Replay the log and read it in pieces, as a keeper does."""
        ledgers = self.ledgers()
        replayed: list[Record] = []
        report = ledgers.open(JOB_LOG.id, lambda kind, data: replayed.append((kind, data)))
        log, cursor, found = ledgers.log(JOB_LOG.id), HEADER_BYTES, list[Record]()
        while cursor < log.end:
            records, cursor = log.read(cursor, READ_BYTES)
            found += records
        assert found == replayed
        assert report.records == len(found)
        return Reading(report, found)

    def append(self, records: Sequence[Record]) -> None:
        self.ledgers().log(JOB_LOG.id).append(records)


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(content: bytes | None = None) -> Machine:
        made.append(Machine(folder, len(made), content))
        return made[-1]

    with temporary_folder() as folder:
        yield make
        for each in made:
            each.disk.bury()


@cache
def image(appends: int = len(JOB_LOG.appends)) -> bytes:
    """The bytes of the log after so many appends; the salt is always the same one."""
    with temporary_folder() as folder:
        machine = Machine(folder, 0)
        log = machine.ledgers().log(JOB_LOG.id)
        for records in JOB_LOG.appends[:appends]:
            log.append(records)
        return machine.path.read_bytes()


def starts(records: Sequence[Record]) -> list[int]:
    """Where each record starts, and the end."""
    offsets = [HEADER_BYTES]
    for _, data in records:
        offsets.append(offsets[-1] + FRAME_BYTES + len(data))
    return offsets


def believed(records: Sequence[Record]) -> tuple[int, str]:
    """Units whose results a keeper believes in after reading these records, and the state it says the job is in."""
    return _believed(tuple(records))


@cache
def _believed(records: tuple[Record, ...]) -> tuple[int, str]:
    jobs = [number for number, (kind, _) in enumerate(records) if kind == kinds.JOB]
    if not jobs:
        return 0, "unknown"
    kept = KeptJob(open_envelope(records[jobs[0]][1], Job, GRID, None), cast(Any, SimpleNamespace(end=HEADER_BYTES)))
    for kind, data in records[jobs[0] + 1 :]:
        absorb(kept, [LogRecord(kind, data)], GRID, None)
    return kept.ledger.done, kept.state


def decided_by(records: Sequence[Record]) -> int:
    return UNITS * sum(1 for kind, _ in records if kind == kinds.DECISION)


def is_subsequence(part: Sequence[Record], whole: Sequence[Record]) -> bool:
    left = iter(whole)
    return all(record in left for record in part)


def check_recovered(machine: Machine, acknowledged: Sequence[Record], tried: Sequence[Record]) -> None:
    """All that was acknowledged is there in order; nothing else but whole records of what was being written.

    And the log goes on: what is written after the recovery survives the next power cut, and so does all the rest.
    """
    reading = machine.read()
    assert reading.records[: len(acknowledged)] == list(acknowledged)
    late = reading.records[len(acknowledged) :]
    assert is_subsequence(late, tried)
    assert believed(reading.records)[0] >= decided_by(acknowledged)
    machine.next_life()
    assert machine.read().records == reading.records
    machine.append([AFTER])
    machine.next_life()
    again = machine.read()
    assert again.records == [*reading.records, AFTER]
    assert again.report.cut_bytes == 0


# -- the power goes while something is written -------------------------------------------------------


def test_the_small_job_says_what_a_whole_job_says() -> None:
    assert {kind for kind, _ in JOB_LOG.records} == set(kinds.NAMES) - {kinds.CANCEL}
    assert believed(JOB_LOG.records) == (BATCHES * UNITS, "done")
    assert len(image()) == starts(JOB_LOG.records)[-1] > 2500


@pytest.mark.parametrize("number", range(len(JOB_LOG.appends)))
def test_power_lost_at_every_byte_of_a_job_loses_nothing_that_was_acknowledged(machine: Callable[..., Machine], number: int) -> None:
    acknowledged = [record for append in JOB_LOG.appends[:number] for record in append]
    tried = JOB_LOG.appends[number]
    size_bytes = starts(tried)[-1] - HEADER_BYTES + (0 if number else HEADER_BYTES)
    outcomes = set[int]()
    for place in range(size_bytes + 1):
        one = machine(image(number) if number else None)
        one.disk.crash_at(place)
        with pytest.raises(P2PGridError):
            one.append(tried)
        one.next_life(power_cut=place % 5 > 0 and place < size_bytes)
        outcomes.add(one.read().report.records - len(acknowledged))
        check_recovered(one, acknowledged, tried)
    assert {0, len(tried)} <= outcomes


def test_power_lost_before_any_operation_of_a_job_loses_nothing_that_was_acknowledged(machine: Callable[..., Machine]) -> None:
    met = 0
    for _ in range(6):
        operations, ended = 1, False
        while not ended:
            one = machine()
            one.disk.crash_before(operations)
            acknowledged: list[Record] = []
            tried: list[Record] = []
            with suppress(P2PGridError):
                log = one.ledgers().log(JOB_LOG.id)
                for tried in JOB_LOG.appends:
                    log.append(tried)
                    acknowledged += tried
            ended = not one.disk.dead
            one.next_life()
            check_recovered(one, acknowledged, tried)
            operations, met = operations + 1, met + 1
    assert met > 6 * 2 * len(JOB_LOG.appends)


def test_power_lost_again_while_the_log_is_recovered_loses_nothing(machine: Callable[..., Machine]) -> None:
    number = 4
    acknowledged, tried = [record for append in JOB_LOG.appends[:number] for record in append], JOB_LOG.appends[number]
    for place in range(1, starts(tried)[-1] - HEADER_BYTES, 5):
        for operations in range(6):
            one = machine(image(number))
            one.disk.crash_at(place)
            with pytest.raises(P2PGridError):
                one.append(tried)
            one.next_life(power_cut=False)
            one.disk.crash_before(operations)
            with suppress(P2PGridError):
                one.read()
            one.next_life()
            check_recovered(one, acknowledged, tried)


# -- what was acknowledged long ago is damaged --------------------------------------------------------


def check_damaged(machine: Machine, expected: Sequence[Record]) -> ReplayReport:
    """What is whole is found, that something is wrong is said, and the log goes on behind the damage. Returns what was said."""
    reading = machine.read()
    assert reading.records == list(expected)
    assert not reading.report.sound
    assert reading.report.why
    machine.append([AFTER])
    machine.next_life()
    again = machine.read()
    assert again.records == [*expected, AFTER]
    assert again.report.damaged == reading.report.damaged
    return reading.report


def without(first: int, last: int) -> list[Record]:
    """The records of which no byte lies in ``[first, last)``."""
    offsets = starts(JOB_LOG.records)
    return [record for record, start, end in zip(JOB_LOG.records, offsets, offsets[1:], strict=False) if end <= first or start >= last]


def test_a_flipped_bit_at_every_byte_costs_at_most_its_own_record_and_is_said(machine: Callable[..., Machine]) -> None:
    whole = image()
    for place in range(len(whole)):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        report = check_damaged(machine(bytes(raw)), without(place, place + 1))
        assert report.header_repaired == (place < HEADER_BYTES)


@pytest.mark.parametrize("size_bytes", [64, 512])
def test_a_zeroed_block_costs_what_lay_in_it_and_is_said(machine: Callable[..., Machine], size_bytes: int) -> None:
    whole = image()
    for place in range(HEADER_BYTES // 2, len(whole), 3):
        raw = bytearray(whole)
        raw[place : place + size_bytes] = bytes(len(raw[place : place + size_bytes]))
        check_damaged(machine(bytes(raw)), without(place, place + size_bytes))


def test_a_log_cut_off_at_every_byte_with_garbage_behind_keeps_what_was_before(machine: Callable[..., Machine]) -> None:
    whole, chance = image(), random.Random(3)
    for place in range(HEADER_BYTES, len(whole)):
        garbage = chance.randbytes(chance.choice((1, 16, 17, 18, 100, 600)))
        report = check_damaged(machine(whole[:place] + garbage), without(place, len(whole)))
        assert report.cut_bytes
        assert not report.damaged


def test_old_bytes_of_the_same_log_behind_a_cut_are_no_records(machine: Callable[..., Machine]) -> None:
    whole = image()
    offsets = starts(JOB_LOG.records)
    for place in range(HEADER_BYTES, len(whole), 7):
        # As a file system that gives back an old block: records of this very log, at places where they never were.
        stale = whole[offsets[2] : offsets[9]]
        check_damaged(machine(whole[:place] + b"\0" + stale), without(place, len(whole)))


def test_a_log_cut_off_at_every_byte_keeps_what_was_before(machine: Callable[..., Machine]) -> None:
    whole, ends = image(), starts(JOB_LOG.records)
    for place in range(len(whole)):
        one = machine(whole[:place])
        if place in ends:
            # Nothing tells a log that lost its last records from one that never had them.
            assert one.read() == Reading(ReplayReport(records=ends.index(place)), without(place, len(whole)))
        else:
            check_damaged(one, without(place, len(whole)))


@pytest.mark.parametrize("harm", ["zeroed", "missing", "both copies flipped", "of another job"])
def test_a_log_without_a_header_is_set_aside_and_that_is_said(machine: Callable[..., Machine], harm: str) -> None:
    raw = bytearray(image())
    if harm == "zeroed":
        raw[:HEADER_BYTES] = bytes(HEADER_BYTES)
    elif harm == "missing":
        del raw[:HEADER_BYTES]
    elif harm == "both copies flipped":
        raw[20] ^= 1
        raw[HEADER_BYTES // 2 + 20] ^= 1
    one = machine(bytes(raw))
    if harm == "of another job":
        one.path.unlink()
        other = SmallJob(cast(Any, bytes(32)), JOB_LOG.appends)
        one.ledgers().log(other.id).append(other.records)
        (one.folder / f"{other.id.hex()}.log").rename(one.path)
        raw = bytearray(one.path.read_bytes())
    report = check_damaged(one, [])
    aside = one.folder / report.set_aside
    assert report.set_aside
    assert aside.read_bytes() == raw
    one.ledgers().remove(JOB_LOG.id)
    assert list(one.folder.iterdir()) == []
