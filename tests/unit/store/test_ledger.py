"""The job log: what a crash or a bad sector may do to it, and what not."""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pgrid.errors import ConfigError, MalformedError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.store import ledger
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES, WINDOW_BYTES, JobLog, Ledgers, Record, ReplayReport

JOB = JobId(StatementId(bytes(range(32))))
OTHER = JobId(StatementId(bytes(32)))
RECORDS: list[Record] = [(1, b"first"), (2, b""), (255, b"x" * 40), (0, b"\0" * 30), (3, b"last one")]
random_bytes = random.Random(7).randbytes


def open_log(path: Path, job: JobId = JOB, **options: object) -> tuple[JobLog, ReplayReport, list[Record]]:
    found: list[Record] = []
    log, report = JobLog.open(path, job, random_bytes, each=lambda kind, data: found.append((kind, data)), **options)  # type: ignore[arg-type]
    return log, report, found


def boundaries(records: list[Record]) -> list[int]:
    """The offsets at which records start, and the end."""
    return list(itertools.accumulate((FRAME_BYTES + len(data) for _, data in records), initial=HEADER_BYTES))


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """The bytes of a log with all of RECORDS."""
    log, report, _ = open_log(tmp_path / "original.log")
    assert report.sound
    assert log.append(RECORDS[:2]) == boundaries(RECORDS)[2]
    log.append(RECORDS[2:])
    raw = (tmp_path / "original.log").read_bytes()
    assert len(raw) == log.end == boundaries(RECORDS)[-1]
    return raw


def test_what_was_appended_is_replayed_in_order(written: bytes, tmp_path: Path) -> None:
    log, report, found = open_log(tmp_path / "original.log")
    assert found == RECORDS
    assert report == ReplayReport(records=5)
    log.append([(9, b"more")])
    assert open_log(tmp_path / "original.log")[2] == [*RECORDS, (9, b"more")]


def test_a_log_cut_at_any_byte_keeps_every_whole_record(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.log"
    starts = boundaries(RECORDS)
    for size in range(len(written)):
        path.write_bytes(written[:size])
        log, report, found = open_log(path)
        whole = sum(1 for end in starts[1:] if end <= size)
        assert found == RECORDS[:whole]
        if size >= HEADER_BYTES:
            assert report.cut_bytes == size - starts[whole]
        else:
            # One of the two copies of the header is enough to go on with the file.
            assert report.header_repaired if size >= HEADER_BYTES // 2 else report.cut_bytes == size
        assert report.damaged == ()
        log.append([(7, b"after the crash")])
        assert open_log(path)[1:] == (ReplayReport(records=whole + 1), [*RECORDS[:whole], (7, b"after the crash")])


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_costs_at_most_its_own_record_and_is_reported(written: bytes, tmp_path: Path, flip: int) -> None:
    path = tmp_path / "flipped.log"
    starts = boundaries(RECORDS)
    for place in range(len(written)):
        raw = bytearray(written)
        raw[place] ^= flip
        path.write_bytes(raw)
        _, report, found = open_log(path)
        if place < HEADER_BYTES:
            assert found == RECORDS
            assert report.header_repaired
            assert path.read_bytes() == written
            continue
        hit = sum(1 for end in starts[1:] if end <= place)
        assert found == RECORDS[:hit] + RECORDS[hit + 1 :]
        if hit == len(RECORDS) - 1:
            assert report.cut_bytes == starts[-1] - starts[-2]
        else:
            assert [(span.start, span.end) for span in report.damaged] == [(starts[hit], starts[hit + 1])]


def test_damage_in_the_middle_stays_reported_and_later_appends_are_found(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "original.log"
    starts = boundaries(RECORDS)
    raw = bytearray(written)
    raw[starts[1] : starts[3]] = bytes(starts[3] - starts[1])
    path.write_bytes(raw)
    log, report, found = open_log(path)
    assert found == [RECORDS[0], *RECORDS[3:]]
    assert log.read(0, 1 << 20) == (found, log.end)
    log.append([(5, b"new")])
    assert open_log(path)[1].damaged == report.damaged
    assert open_log(path)[2] == [*found, (5, b"new")]


def test_records_at_a_wrong_place_or_in_another_log_are_no_records(written: bytes, tmp_path: Path) -> None:
    starts = boundaries(RECORDS)
    path = tmp_path / "copied.log"
    path.write_bytes(written + written[starts[2] : starts[3]])
    assert open_log(path)[1:] == (ReplayReport(records=5, cut_bytes=starts[3] - starts[2]), RECORDS)
    other, _, _ = open_log(tmp_path / "other.log", OTHER)
    other.append(RECORDS)
    foreign = (tmp_path / "other.log").read_bytes()
    path.write_bytes(written[: starts[1]] + foreign[starts[1] : starts[2]] + written[starts[2] :])
    assert open_log(path)[2] == [RECORDS[0], *RECORDS[2:]]


def test_a_log_of_another_job_or_with_a_lost_header_is_set_aside_not_overwritten(written: bytes, tmp_path: Path) -> None:
    for number, (raw, job) in enumerate([(written, OTHER), (bytes(HEADER_BYTES) + written[HEADER_BYTES:], JOB)]):
        path = tmp_path / f"{number}.log"
        path.write_bytes(raw)
        log, report, found = open_log(path, job)
        assert (found, report.set_aside) == ([], f"{number}.damaged")
        assert (tmp_path / f"{number}.damaged").read_bytes() == raw
        log.append([(1, b"fresh")])
        assert open_log(path, job)[2] == [(1, b"fresh")]


def test_a_log_of_a_newer_format_is_refused_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.log"
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "FORMAT", 2)
        open_log(path)
    raw = path.read_bytes()
    with pytest.raises(ConfigError):
        open_log(path)
    assert path.read_bytes() == raw


def test_reading_goes_on_from_its_cursor(written: bytes, tmp_path: Path) -> None:
    log, _, _ = open_log(tmp_path / "original.log")
    cursor, found, turns = 0, list[Record](), 0
    while cursor < log.end:
        records, cursor = log.read(cursor, 45)
        assert records
        found += records
        turns += 1
    assert found == RECORDS
    assert 1 < turns < 5
    assert log.read(cursor, 10) == ([], log.end)
    assert log.read(1 << 60, 10) == ([], log.end)
    assert log.read(0, 0) == (RECORDS[:1], boundaries(RECORDS)[1])


def test_any_cursor_of_a_peer_finds_only_true_records(written: bytes, tmp_path: Path) -> None:
    log, _, _ = open_log(tmp_path / "original.log")
    starts = boundaries(RECORDS)
    for cursor in range(-3, log.end + 3):
        behind = sum(1 for start in starts[:-1] if start < cursor)
        assert log.read(cursor, 1 << 20) == (RECORDS[behind:], log.end)


def test_records_far_over_the_window_are_read(tmp_path: Path) -> None:
    records = [(1, bytes([number]) * size) for number, size in enumerate([3 << 20, 10, (1 << 20) - FRAME_BYTES, 1 << 20, 5 << 20])]
    log, _, _ = open_log(tmp_path / "large.log")
    log.append(records)
    assert open_log(tmp_path / "large.log")[2] == records
    raw = bytearray((tmp_path / "large.log").read_bytes())
    raw[HEADER_BYTES + 100] ^= 1
    (tmp_path / "large.log").write_bytes(raw)
    assert open_log(tmp_path / "large.log")[2] == records[1:]


@pytest.mark.parametrize("over", range(6))
def test_a_record_behind_damage_is_found_across_the_edge_of_a_window(tmp_path: Path, over: int) -> None:
    log, _, _ = open_log(tmp_path / "a.log")
    # The search begins one byte behind the damaged record's start; the next record starts `over` bytes before its window ends.
    log.append([(1, bytes(WINDOW_BYTES + 1 - over - FRAME_BYTES)), (2, b"behind")])
    raw = bytearray((tmp_path / "a.log").read_bytes())
    raw[HEADER_BYTES] ^= 1
    (tmp_path / "a.log").write_bytes(raw)
    assert open_log(tmp_path / "a.log")[2] == [(2, b"behind")]


def test_data_cannot_pass_for_a_record_without_the_salt_of_the_file(tmp_path: Path) -> None:
    forger, _, _ = open_log(tmp_path / "forger.log")
    # The forger knows the job, the format and the very offset at which its bytes will lie.
    forger.append([(1, bytes(FRAME_BYTES)), (6, b"forged")])
    inner = (tmp_path / "forger.log").read_bytes()[HEADER_BYTES + FRAME_BYTES :]
    log, _, _ = open_log(tmp_path / "victim.log")
    log.append([(1, inner), (2, b"behind")])
    raw = bytearray((tmp_path / "victim.log").read_bytes())
    raw[HEADER_BYTES] ^= 1
    (tmp_path / "victim.log").write_bytes(raw)
    assert open_log(tmp_path / "victim.log")[2] == [(2, b"behind")]


def test_limits_of_records_and_logs_are_kept(tmp_path: Path) -> None:
    log, _, _ = open_log(tmp_path / "a.log", limits=Limits(ledger_bytes=HEADER_BYTES + 2 * FRAME_BYTES + 10, bulk_message_bytes=10))
    for record in ((1, bytes(11)), (256, b""), (-1, b"")):
        with pytest.raises(MalformedError):
            log.append([record])
    log.append([(1, bytes(10)), (2, b"")])
    with pytest.raises(RefusedError) as caught:
        log.append([(1, b"")])
    assert caught.value.reason == Reason.KEEPER_FULL


def test_a_full_disk_leaves_no_half_batch_and_the_log_usable(tmp_path: Path, failing_disk: type) -> None:
    disk = failing_disk(10_000)
    log, _, _ = open_log(tmp_path / "a.log", disk=disk)
    log.append(RECORDS[:1])
    disk.kinds, disk.operations, disk.fail_at = frozenset({"write"}), 0, 1
    with pytest.raises(RefusedError) as caught:
        log.append(RECORDS[1:])
    assert caught.value.reason == Reason.DISK_FULL
    log.append(RECORDS[2:3])
    assert open_log(tmp_path / "a.log")[1:] == (ReplayReport(records=2), [RECORDS[0], RECORDS[2]])


def test_after_a_failed_sync_nothing_is_acknowledged_until_the_log_is_opened_again(tmp_path: Path, failing_disk: type) -> None:
    disk = failing_disk(10_000, code=errno.EIO)
    log, _, _ = open_log(tmp_path / "a.log", disk=disk)
    disk.kinds, disk.operations, disk.fail_at = frozenset({"sync"}), 0, 1
    with pytest.raises(P2PGridError):
        log.append(RECORDS[:1])
    with pytest.raises(TryAgainError):
        log.append(RECORDS[:1])
    assert log.read(0, 100)[0] == []
    log, _, _ = open_log(tmp_path / "a.log", disk=disk)
    log.append(RECORDS[1:2])


def test_a_removed_log_is_not_brought_back_by_a_late_append(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path / "ledger", random_bytes)
    log = ledgers.log(JOB)
    log.append(RECORDS)
    assert ledgers.jobs() == [JOB]
    ledgers.remove(JOB)
    with pytest.raises(P2PGridError):
        log.append(RECORDS)
    assert ledgers.jobs() == []
    assert ledgers.log(JOB).read(0, 100)[0] == []


def test_strange_files_between_the_logs_are_passed_over(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path / "ledger", random_bytes)
    ledgers.log(JOB).append(RECORDS)
    for name in ("notes.log", JOB.hex().upper() + ".log", "ab.log", JOB.hex() + ".damaged"):
        (tmp_path / "ledger" / name).write_bytes(b"?")
    assert ledgers.jobs() == [JOB]
    found: list[Record] = []
    assert Ledgers(tmp_path / "ledger", random_bytes).open(JOB, lambda kind, data: found.append((kind, data))).sound
    assert found == RECORDS


def test_the_number_of_open_logs_is_bounded(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path / "ledger", random_bytes, limits=Limits(jobs_kept=1, jobs_led=1))
    for number in range(2):
        ledgers.log(JobId(StatementId(bytes([number]) * 32)))
    with pytest.raises(RefusedError) as caught:
        ledgers.log(JobId(StatementId(bytes([9]) * 32)))
    assert caught.value.reason == Reason.KEEPER_FULL


WRITER = """
import os, sys
from pathlib import Path
from p2pgrid.store.ledger import Ledgers
from p2pgrid.store.ledger_writer import LedgerWriter
job = bytes(range(32))
writer = LedgerWriter(Ledgers(Path(sys.argv[1]), os.urandom))
def acknowledge(number):
    return lambda error: os.write(1, b"%d\\n" % number) if error is None else os._exit(3)
for number in range(10_000_000):
    try:
        writer.submit(job, [(1, b"%d " % number + bytes(300))], acknowledge(number))
    except Exception:
        pass
"""


def test_every_acknowledged_record_survives_a_kill(tmp_path: Path) -> None:
    project = Path(__file__).parents[3]
    for turn in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "ledger")],
            stdout=subprocess.PIPE,
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(project)},
        )
        assert process.stdout is not None
        acknowledged = list[int]()
        while len(acknowledged) < 200 * (turn + 1):
            acknowledged.append(int(process.stdout.readline()))
        process.kill()
        acknowledged += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
        process.wait(10)
        process.stdout.close()
        found: list[int] = []
        report = Ledgers(tmp_path / "ledger", random_bytes).open(JOB, lambda _, data, found=found: found.append(int(data.split()[0])))  # type: ignore[misc]
        assert set(acknowledged) <= set(found)
        assert report.damaged == ()
        assert found == sorted(found)
        Ledgers(tmp_path / "ledger", random_bytes).remove(JOB)


def test_a_damaged_log_is_searched_in_linear_time(tmp_path: Path) -> None:
    # Data made of plausible lengths, in a record whose own head is destroyed: each byte could be a record's start.
    log, _, _ = open_log(tmp_path / "a.log")
    log.append([(1, b"\x00\x0f\x00\x00" * (1 << 19)), (2, b"behind")])
    raw = bytearray((tmp_path / "a.log").read_bytes())
    raw[HEADER_BYTES] ^= 1
    (tmp_path / "a.log").write_bytes(raw)
    started_s = time.process_time()
    assert open_log(tmp_path / "a.log")[2] == [(2, b"behind")]
    assert time.process_time() - started_s < 2
