"""A worker process in the hands of its job: it may say anything on the channel, and must gain nothing but its own units.

The jobs here know where the protocol's file is, and write to it themselves. Each attack is followed by an honest unit, which must
come back as if nothing had happened.
"""

from __future__ import annotations

import os
import pickle
import resource
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.model.values import decode_value
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, PoolPolicy

KEY = JobKey(b"submitter", b"job")
CHANNEL = 64

TOOLS = f"""
import os, struct, sys, time
CHANNEL = {CHANNEL}
msgspec = sys.modules["msgspec"]
def raw(data):
    while data:
        data = data[os.write(CHANNEL, data):]
def send(message):
    body = msgspec.msgpack.encode(message)
    raw(struct.pack("<I", len(body)) + body)
def done(first=0, outcomes=b"\\0", payloads=(1,), sequence=1, files=()):
    send([5, sequence, first, outcomes, list(payloads), 0, list(files)])
"""


@pytest.fixture(params=["bare", "auto"])
def cage(request: pytest.FixtureRequest) -> str:
    """Without a cage the attacks reach the node's side as they are; in one some are stopped before."""
    return str(request.param)


@pytest.fixture
async def pool(tmp_path: Path, cage: str) -> AsyncIterator[WorkerPool]:
    policy = PoolPolicy(slots=1, file_bytes_max=1 << 40, spare_s=0, cage=cage)
    pool = WorkerPool(tmp_path / "pool", policy, InlineOffload())
    await pool.start()
    yield pool
    await pool.close()
    assert os.listdir(tmp_path / "pool" / "processes") == []


async def attack(pool: WorkerPool, body: str, **options: Any) -> tuple[bytes, list[Any], list[BatchChunk]]:
    """Run [attack, honest unit]; gives outcomes, payloads read, chunks."""
    source = (
        TOOLS
        + "def attack():\n"
        + textwrap.indent(textwrap.dedent(body), "    ")
        + "\ndef work(x):\n    return attack() if x else 'honest'\n"
    )
    chunks: list[BatchChunk] = []
    await pool.run(
        BatchTask(**{"job": KEY, "code": Code(source=source), "inputs": b"\x92\x01\x00", "timeout_s": 3.0, **options}), chunks.append
    )
    outcomes = b"".join(chunk.outcomes for chunk in chunks)
    assert len(outcomes) == 2
    assert [chunk.first for chunk in chunks] == ([0, 1] if len(chunks) == 2 else [0])
    return outcomes, [decode_value(payload) for chunk in chunks for payload in chunk.payloads], chunks


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


BROKEN = {
    "a forged length of 4 GiB": "raw(b'\\xff\\xff\\xff\\xff' + b'x' * 1000); time.sleep(60)",
    "endless output": "while True: raw(b'\\x00\\x00\\x00\\x01' + bytes(1 << 20))",
    "endless empty frames": "while True: raw(bytes(1 << 16))",
    "bytes that are no msgpack": "raw(struct.pack('<I', 4) + b'\\xc1\\xc1\\xc1\\xc1'); time.sleep(60)",
    "nesting without end": "raw(struct.pack('<I', 100000) + b'\\x91' * 100000); time.sleep(60)",
    "text where numbers belong": "send(['5', 1, 2]); time.sleep(60)",
    "an unknown message": "send([99]); time.sleep(60)",
    "ready, again": "send([3]); time.sleep(60)",
    "load failed, after all": "send([4, 'x']); time.sleep(60)",
    "results of a unit before": "done(first=-1); time.sleep(60)",
    "results of a unit after": "done(first=1); time.sleep(60)",
    "results of another batch": "done(sequence=2); time.sleep(60)",
    "no results": "done(outcomes=b'', payloads=()); time.sleep(60)",
    "more results than units": "done(outcomes=bytes(3), payloads=(1, 2, 3)); time.sleep(60)",
    "more outcomes than payloads": "done(outcomes=bytes(2)); time.sleep(60)",
    "an outcome only the node can know": "done(outcomes=b'\\3'); time.sleep(60)",
    "a time-out only the node can know": "done(outcomes=b'\\2'); time.sleep(60)",
    "an unknown outcome": "done(outcomes=b'\\x77'); time.sleep(60)",
    "a result over the limit": "done(payloads=(b'x' * 1_100_000,)); time.sleep(60)",
    "a file that does not exist": "done(files=[(0, b'b' * 32, 5, '0')]); time.sleep(60)",
    "a file elsewhere": "done(files=[(0, b'b' * 32, 5, '../../../../../../etc/passwd')]); time.sleep(60)",
    "a file of another unit": "open('../outbox/0', 'w').close(); done(files=[(1, b'b' * 32, 0, '0')]); time.sleep(60)",
    "a file with a wrong digest": "open('../outbox/0', 'w').close(); done(files=[(0, b'b', 0, '0')]); time.sleep(60)",
    "a file of another size": "open('../outbox/0', 'w').close(); done(files=[(0, b'b' * 32, 9, '0')]); time.sleep(60)",
    "a link as a file": "os.symlink('/etc/passwd', '../outbox/0'); done(files=[(0, b'b' * 32, 0, '0')]); time.sleep(60)",
    "a pipe as a file": "os.mkfifo('../outbox/0'); done(files=[(0, b'b' * 32, 0, '0')]); time.sleep(60)",
    "a folder as a file": "os.mkdir('../outbox/0'); done(files=[(0, b'b' * 32, 4096, '0')]); time.sleep(60)",
    "a second name of a file": "open('../outbox/1', 'w').close(); os.link('../outbox/1', '../outbox/0'); "
    "done(files=[(0, b'b' * 32, 0, '0')]); time.sleep(60)",
    "the end of the channel while running on": "os.close(CHANNEL); time.sleep(60)",
}
STOPPED_BY_A_CAGE = ("a pipe as a file", "a second name of a file")


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_protocol_costs_the_unit_that_broke_it(pool: WorkerPool, cage: str, name: str) -> None:
    before = peak_bytes()
    outcomes, values, chunks = await attack(pool, BROKEN[name], result_bytes_max=1 << 20)
    assert outcomes[0] == Outcome.DIED or (cage != "bare" and name in STOPPED_BY_A_CAGE and outcomes[0] == Outcome.RAISED)
    assert outcomes[1] == Outcome.OK
    assert values[1] == "honest"
    assert all(chunk.files == [] for chunk in chunks)
    assert peak_bytes() - before < 64 << 20
    assert Path("/etc/passwd").exists()


async def test_half_a_frame_and_then_silence_ends_with_the_deadline(pool: WorkerPool) -> None:
    outcomes, values, _ = await attack(pool, "raw(struct.pack('<I', 1000) + b'x'); time.sleep(60)", timeout_s=0.5)
    assert outcomes == bytes((Outcome.TIMED_OUT, Outcome.OK))
    assert values[1] == "honest"


async def test_a_forged_result_of_its_own_unit_is_all_it_can_forge(pool: WorkerPool) -> None:
    outcomes, values, _ = await attack(pool, "done(payloads=('forged',)); return 'again'")
    # It answers twice for one unit: the first answer stands, the second is of no unit.
    assert values[0] == "forged"
    assert outcomes[0] == Outcome.OK
    assert len(outcomes) == 2


@pytest.mark.parametrize(
    "forging",
    [
        "struct.pack('<Qd', 1, time.monotonic() + 1e9)",
        "struct.pack('<Qd', 0, float('inf'))",
        "struct.pack('<Qd', 0, float('nan'))",
        "struct.pack('<Qd', (1 << 64) - 1, 0.0)",
        "struct.pack('<Qd', 1 << 40, -1e300)",
    ],
)
async def test_forged_progress_does_not_move_the_deadline(pool: WorkerPool, forging: str) -> None:
    body = f"""
    frame = sys._getframe()
    while frame:
        runner = frame.f_locals.get('self')
        if type(runner).__name__ == 'UnitRunner':
            runner._progress[:16] = {forging}
        frame = frame.f_back
    while True: pass
    """
    outcomes, _, _ = await attack(pool, body, timeout_s=0.4)
    # The liar may choose which of its units is blamed, never whether one is.
    assert Outcome.TIMED_OUT in outcomes


async def test_cutting_the_shared_bytes_does_not_hurt_the_node(pool: WorkerPool) -> None:
    body = """
    frame = sys._getframe()
    while frame:
        runner = frame.f_locals.get('self')
        if type(runner).__name__ == 'UnitRunner':
            runner._progress.resize(1)
        frame = frame.f_back
    while True: pass
    """
    outcomes, _, _ = await attack(pool, body, timeout_s=0.4)
    assert len(outcomes) == 2


async def test_endless_prints_keep_a_tail_and_no_more(pool: WorkerPool) -> None:
    before = peak_bytes()
    outcomes, _, _ = await attack(pool, "while True: print('flood' * 1000)", timeout_s=0.5)
    assert outcomes == bytes((Outcome.TIMED_OUT, Outcome.OK))
    assert len(pool.log_tail(KEY.job)) <= 64 << 10
    assert peak_bytes() - before < 32 << 20


async def test_prints_of_all_kinds_do_not_reach_the_protocol(pool: WorkerPool) -> None:
    body = """
    print('x' * 100); sys.stderr.write('y'); sys.stdout.buffer.write(b'\\xff' * 100)
    for number in (0, 1, 2):
        try: os.write(number, b'\\xff' * 100)
        except OSError: pass
    sys.stdout.close(); os.close(1); os.close(0); os.close(2)
    return 'fine'
    """
    outcomes, values, _ = await attack(pool, body)
    assert outcomes == bytes((Outcome.OK, Outcome.OK))
    assert values == ["fine", "honest"]


async def test_a_pickle_in_a_result_stays_bytes(pool: WorkerPool, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    bomb = pickle.dumps(Bomb())
    outcomes, values, _ = await attack(pool, f"return {bomb!r}")
    assert outcomes == bytes((Outcome.OK, Outcome.OK))
    assert values[0] == bomb
    assert not (tmp_path / "exploded").exists()


async def test_a_huge_result_is_too_large_and_not_carried(pool: WorkerPool) -> None:
    before = peak_bytes()
    outcomes, _values, _ = await attack(pool, "return bytes(100 << 20)", result_bytes_max=1 << 20)
    assert outcomes == bytes((Outcome.TOO_LARGE, Outcome.OK))
    assert peak_bytes() - before < 32 << 20


async def test_a_sparse_terabyte_is_refused(tmp_path: Path) -> None:
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(file_bytes_max=1 << 30, spare_s=0), InlineOffload())
    await pool.start()
    outcomes, _, _ = await attack(pool, "from pathlib import Path\nopen('big', 'w').truncate(1 << 40)\nreturn Path('big')")
    assert outcomes == bytes((Outcome.RAISED, Outcome.OK))
    await pool.close()


async def test_the_limits_cannot_be_raised_again(pool: WorkerPool) -> None:
    body = """
    import resource
    return [resource.getrlimit(kind) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]
    """
    _, values, _ = await attack(pool, body)
    assert values[0][0] == [0, 0]
    assert values[0][1][0] == values[0][1][1] <= 256


def test_the_frames_of_this_file_are_those_of_the_protocol() -> None:
    from p2pgrid.runtimes.worker import frames

    body = msgspec.msgpack.encode([5, 1, 0, b"\0", [1], 0, []])
    assert isinstance(msgspec.msgpack.decode(body, type=frames.Reply), frames.Done)
