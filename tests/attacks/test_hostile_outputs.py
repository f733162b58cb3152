"""What a worker can do to the node with what it writes: too much, too deep, hidden, or in a shape that is no file.

Each trick is one unit of a batch, run in the strongest cage that this machine has and without any. It ends in a bounded time and
space, its process is replaced, and the honest units beside it come back as if nothing had happened.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.model.values import decode_value
from p2pgrid.offload import ThreadOffload
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, PoolPolicy

KEY = JobKey(b"submitter", b"job")
MIB = 1 << 20
FOLDER_BYTES_MAX = 32 * MIB
ENTRIES_MAX = 500
FILE_BYTES_MAX = 16 * MIB
NODE_BYTES_MAX = 48 * MIB
"""What the node itself may grow by while it is attacked."""
HONEST = [0, 0, 0]

TOOLS = """
import os, struct, sys, threading, time
CHANNEL = 64
msgspec = sys.modules["msgspec"]
def raw(data):
    while data:
        data = data[os.write(CHANNEL, data):]
def send(message):
    body = msgspec.msgpack.encode(message)
    raw(struct.pack("<I", len(body)) + body)
def before():
    send([5, 1, 0, b"\\0", ["honest"], 0, [], b""])  # The unit before has not been told yet: no frame is sent for so little.
def done(first=1, outcomes=b"\\0", payloads=(1,), sequence=1, files=(), fuel=b"", alone=False):
    if not alone: before()
    send([5, sequence, first, outcomes, list(payloads), 0, list(files), fuel])
def shared():
    frame = sys._getframe()
    while frame:
        runner = frame.f_locals.get("self")
        if type(runner).__name__ == "UnitRunner":
            return runner._progress
        frame = frame.f_back
def outbox(make):
    make("../outbox/0")
    done(files=[(1, b"b" * 32, os.lstat("../outbox/0").st_size, "0")])
    time.sleep(60)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Not below pytest's own folder, whose cleaning cannot cope with what is left here when a defence is missing."""
    folder = tempfile.mkdtemp(prefix="p2pgrid-test-")
    yield Path(folder)
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(params=["auto", "bare"])
async def pool(request: pytest.FixtureRequest, place: Path) -> AsyncIterator[WorkerPool]:
    policy = PoolPolicy(
        slots=1,
        cage=request.param,
        file_bytes_max=FILE_BYTES_MAX,
        folder_bytes_max=FOLDER_BYTES_MAX,
        folder_entries_max=ENTRIES_MAX,
        memory_bytes=512 * MIB,
    )
    offload = ThreadOffload()
    pool = WorkerPool(place / "pool", policy, offload)
    await pool.start()
    yield pool
    await pool.close()
    assert await offload.close()
    assert os.listdir(place / "pool" / "processes") == []


def trick_task(body: str, inputs: list[int], **options: Any) -> BatchTask:
    source = (
        TOOLS
        + "def trick():\n"
        + textwrap.indent(textwrap.dedent(body), "    ")
        + "\ndef work(x):\n    return trick() if x else 'honest'\n"
    )
    return BatchTask(
        **{
            "job": KEY,
            "code": Code(source=source),
            "inputs": msgspec.msgpack.encode(inputs),
            "timeout_s": 8.0,
            "result_bytes_max": MIB,
            "trusted": True,
            **options,
        }
    )


async def play(pool: WorkerPool, body: str, **options: Any) -> tuple[list[Outcome], list[Any], list[BatchChunk]]:
    """Run [honest, trick, honest, honest]; whatever the trick does, the honest ones must be told as they are."""
    chunks: list[BatchChunk] = []
    before, began = peak_bytes(), time.monotonic()
    await pool.run(trick_task(body, [0, 1, 0, 0], **options), chunks.append)
    assert time.monotonic() - began < 18
    assert peak_bytes() - before < NODE_BYTES_MAX
    outcomes = [Outcome(outcome) for chunk in chunks for outcome in chunk.outcomes]
    values = [decode_value(payload) for chunk in chunks for payload in chunk.payloads]
    assert outcomes[:1] + outcomes[2:] == [Outcome.OK] * 3
    assert values[:1] + values[2:] == ["honest"] * 3
    return outcomes, values, chunks


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


FILL = """
part = os.urandom(1 << 20)
def fill(path, mib=12):
    number = os.open(path, os.O_RDWR | os.O_CREAT)
    for _ in range(mib):
        os.write(number, part)
    return number
"""

OVER = {
    "many files that are too much together": (
        "for number in range(9): os.close(fill(str(number)))\ntime.sleep(60)",
        "more than the 32 MiB allowed into its folder",
    ),
    "files beside the scratch folder": (
        "for number in range(9): os.close(fill(f'../outbox/{number}'))\ntime.sleep(60)",
        "more than the 32 MiB allowed into its folder",
    ),
    "files whose names were removed": (
        "held = [(fill('x'), os.unlink('x')) for _ in range(9)]\ntime.sleep(60)",
        "removed the names of the files",
    ),
    "a flood of empty files": (
        "for number in range(5000): open(str(number), 'w').close()\ntime.sleep(60)",
        "more than the 500 files and folders",
    ),
    "a flood of folders": (
        "for number in range(5000): os.mkdir(str(number))\ntime.sleep(60)",
        "more than the 500 files and folders",
    ),
    "folders inside of each other": (
        "for _ in range(400):\n    os.mkdir('d'); os.chdir('d')\ntime.sleep(60)",
        "inside of each other",
    ),
    "too much while it answers all the time": (
        "for number in range(9): os.close(fill(str(number)))\nwhile True:\n    os.write(2, b'busy')\n    time.sleep(0.01)",
        "more than the 32 MiB allowed into its folder",
    ),
}


@pytest.mark.parametrize("name", OVER)
async def test_too_much_on_the_disk_ends_the_process_and_is_the_outcome_of_the_unit(pool: WorkerPool, name: str) -> None:
    body, said = OVER[name]
    began = time.monotonic()
    outcomes, values, _ = await play(pool, FILL + body, timeout_s=0.0)
    assert outcomes[1] == Outcome.DIED
    assert said in values[1]["message"]
    assert time.monotonic() - began < 10


async def test_a_hostile_tree_of_folders_is_removed_with_its_process(pool: WorkerPool) -> None:
    body = """
    for _ in range(1200):  # Deeper than Python calls itself, and longer than any path: below, nothing can be named from the root.
        os.mkdir('deeper'); os.chdir('deeper')
    os._exit(1)
    """
    outcomes, _, _ = await play(pool, body)
    assert outcomes[1] == Outcome.DIED


async def test_short_batches_are_watched_like_a_long_one(pool: WorkerPool) -> None:
    # A thread goes on writing while each batch is over long before anybody looks.
    body = """
    global started
    if 'started' not in globals():
        started = threading.Thread(target=lambda: [fill(f'../outbox/{number}') for number in range(9)], daemon=True)
        started.start()
    time.sleep(0.02)
    return os.getpid()
    """
    task = trick_task(FILL + textwrap.dedent(body), [1])
    seen: list[Any] = []
    until = time.monotonic() + 30
    while len(set(seen)) < 2:
        chunks: list[BatchChunk] = []
        await pool.run(task, chunks.append)
        seen.append(decode_value(chunks[0].payloads[0]) if chunks[0].outcomes == b"\0" else "over")
        assert time.monotonic() < until


ODD = {
    "a link": "outbox(lambda path: os.symlink('/etc/passwd', path))",
    "a link to nowhere": "outbox(lambda path: os.symlink('nowhere', path))",
    "a pipe": "outbox(os.mkfifo)",
    "a folder": "outbox(os.mkdir)",
    "a folder with a link in it": "outbox(lambda path: (os.mkdir(path), os.symlink('/', path + '/x')))",
    "a device": "outbox(lambda path: os.mknod(path, 0o020666, os.makedev(1, 3)))",
    "a disk": "outbox(lambda path: os.mknod(path, 0o060666, os.makedev(7, 0)))",
    "a file with two names": "outbox(lambda path: (open('a', 'w').close(), os.link('a', path)))",
    "a file with a hole of a terabyte": "outbox(lambda path: open(path, 'w').truncate(1 << 40))",
    "a file that grows while it is taken": "open('../outbox/0', 'wb').close(); done(files=[(1, b'b' * 32, 1 << 40, '0')]); time.sleep(60)",
    "a socket": "import socket\noutbox(lambda path: socket.socket(socket.AF_UNIX).bind(path))",
    "a name that leads out": "done(files=[(1, b'b' * 32, 0, '../scratch/x')]); time.sleep(60)",
    "a name that was not agreed on": "open('../outbox/a', 'wb').close(); done(files=[(1, b'b' * 32, 0, 'a')]); time.sleep(60)",
    "a name that is no text": "done(files=[(1, b'b' * 32, 0, '\\0')]); time.sleep(60)",
    "a name of ten thousand": "done(files=[(1, b'b' * 32, 0, '1' * 10_000)]); time.sleep(60)",
    "a file of a negative size": "open('../outbox/0', 'wb').close(); done(files=[(1, b'b' * 32, -1, '0')]); time.sleep(60)",
    "the same file twice": "open('../outbox/0', 'wb').close(); done(files=[(1, b'b' * 32, 0, '0')] * 2); time.sleep(60)",
    "a hundred thousand files": "done(files=[(1, b'b' * 32, 0, '0')] * 20_000); time.sleep(60)",
    "a file of a unit that failed": "open('../outbox/0', 'wb').close(); "
    "done(outcomes=b'\\1', files=[(1, b'b' * 32, 0, '0')]); time.sleep(60)",
}


@pytest.mark.parametrize("pool", ["bare"], indirect=True)  # In a cage most of these cannot be made.
@pytest.mark.parametrize("name", ODD)
async def test_what_is_no_file_is_not_taken(pool: WorkerPool, place: Path, name: str) -> None:
    outcomes, _, chunks = await play(pool, ODD[name], timeout_s=2.0)
    assert outcomes[1] in (Outcome.DIED, Outcome.RAISED)  # Some of these cannot even be made everywhere.
    assert all(chunk.files == [] for chunk in chunks)
    assert os.listdir(place / "pool" / "results") == []
    assert Path("/etc/passwd").is_file()


async def test_a_file_that_would_run_as_its_owner_is_none_when_it_becomes_ours(pool: WorkerPool) -> None:
    body = """
    os.umask(0)
    try:
        number = os.open('../outbox/0', os.O_CREAT | os.O_RDWR, 0o6777)
    except PermissionError:  # A cage does not let it be made.
        number = os.open('../outbox/0', os.O_CREAT | os.O_RDWR, 0o777)
    os.write(number, b'program')
    done(files=[(1, b'b' * 32, 7, '0')])
    time.sleep(60)
    """
    chunks: list[BatchChunk] = []
    await pool.run(trick_task(body, [0, 1], timeout_s=1.0), chunks.append)
    (file,) = [file for chunk in chunks for file in chunk.files]
    state = file.path.stat()
    assert (state.st_mode & 0o7777, state.st_uid, state.st_nlink) == (0o600, os.geteuid(), 1)
    assert file.path.read_bytes() == b"program"


FORGED = {
    "fuel where nothing is counted": "done(fuel=bytes(8)); time.sleep(60)",
    "fuel of half a unit": "done(fuel=b'\\xff' * 4); time.sleep(60)",
    "a time-out": "done(outcomes=b'\\2'); time.sleep(60)",
    "its own death": "done(outcomes=b'\\3'); time.sleep(60)",
    "a unit that was told before": "done(first=0); time.sleep(60)",
    "a unit far away": "done(first=1 << 62); time.sleep(60)",
    "a unit below zero": "done(first=-1); time.sleep(60)",
    "another batch": "done(sequence=1 << 40); time.sleep(60)",
    "its answer, twice, in one piece": "before(); body = msgspec.msgpack.encode([5, 1, 1, b'\\0\\0\\0', ['f'] * 3, 0, [], b''])\n"
    "raw((struct.pack('<I', len(body)) + body) * 2); time.sleep(60)",
}


@pytest.mark.parametrize("pool", ["bare"], indirect=True)
@pytest.mark.parametrize("name", FORGED)
async def test_nothing_can_be_said_that_is_not_the_workers_to_say(pool: WorkerPool, name: str) -> None:
    chunks: list[BatchChunk] = []
    await pool.run(trick_task(FORGED[name], [0, 1, 0, 0], timeout_s=2.0), chunks.append)
    outcomes = b"".join(chunk.outcomes for chunk in chunks)
    assert len(outcomes) == 4
    assert outcomes[0] == Outcome.OK
    assert all(chunk.fuel == b"" for chunk in chunks)
    if "twice" not in name:
        assert outcomes == bytes((Outcome.OK, Outcome.DIED, Outcome.OK, Outcome.OK))


async def test_answers_of_the_last_batch_are_worth_nothing_in_the_next(pool: WorkerPool) -> None:
    # It says beforehand what the next batch will have given: the frame lies there when the node asks.
    body = "for _ in range(2): done(first=0, payloads=('forged',), alone=True)\ntime.sleep(60)"
    chunks: list[BatchChunk] = []
    await pool.run(trick_task(body, [1], timeout_s=2.0), chunks.append)
    assert decode_value(chunks[0].payloads[0]) == "forged"  # Its own unit, for which it may say what it likes.
    chunks.clear()
    await pool.run(trick_task(body, [0], timeout_s=2.0), chunks.append)
    assert (chunks[0].outcomes, decode_value(chunks[0].payloads[0])) == (b"\0", "honest")


async def test_a_worker_that_does_not_read_its_next_batch_is_ended_by_the_deadline(pool: WorkerPool) -> None:
    body = "done(first=0, payloads=('mine',), alone=True); time.sleep(60)"
    chunks: list[BatchChunk] = []
    await pool.run(trick_task(body, [1], timeout_s=1.0), chunks.append)
    assert decode_value(chunks[0].payloads[0]) == "mine"
    chunks.clear()
    # More than its pipe holds. Its deadline ends it; which of the two units is blamed does not matter, both are its submitter's.
    inputs = msgspec.msgpack.encode([0, bytes(8 * MIB), 0])
    before = peak_bytes()
    source = trick_task(body, [1]).code
    await pool.run(BatchTask(job=KEY, code=source, inputs=inputs, timeout_s=1.0, result_bytes_max=MIB, trusted=True), chunks.append)
    outcomes = b"".join(chunk.outcomes for chunk in chunks)
    assert len(outcomes) == 3
    assert outcomes.count(Outcome.OK) >= 1
    assert peak_bytes() - before < NODE_BYTES_MAX


async def test_threads_without_end_are_ended_by_the_deadline_if_by_nothing_else(pool: WorkerPool) -> None:
    body = """
    threading.stack_size(65536)
    made = 0
    try:
        while made < 3000:
            threading.Thread(target=time.sleep, args=[60], daemon=True).start()
            made += 1
    except (RuntimeError, MemoryError):
        pass
    while True: pass
    """
    outcomes, _, _ = await play(pool, body, timeout_s=1.5)
    assert outcomes[1] in (Outcome.TIMED_OUT, Outcome.DIED)


async def test_progress_that_races_through_all_units_gains_a_time_out_for_each_and_no_more(pool: WorkerPool) -> None:
    body = """
    progress = shared()
    while True:
        for index in range(4):
            progress[:16] = struct.pack("<Qd", index, time.monotonic() + 1000)
    """
    began = time.monotonic()
    chunks: list[BatchChunk] = []
    await pool.run(trick_task(body, [0, 1, 0, 0], timeout_s=0.4), chunks.append)
    outcomes = b"".join(chunk.outcomes for chunk in chunks)
    assert Outcome.TIMED_OUT in outcomes
    assert len(outcomes) == 4
    assert time.monotonic() - began < 12


async def test_a_result_that_would_run_when_unpickled_stays_bytes_of_its_receiver(pool: WorkerPool, tmp_path: Path) -> None:
    target = tmp_path / "exploded"
    body = f"""
    import pickle
    class Bomb:
        def __reduce__(self): return os.mkdir, ({str(target)!r},)
    return [pickle.dumps(Bomb()), {{"b": pickle.dumps(Bomb(), protocol=0)}}]
    """
    outcomes, values, _ = await play(pool, body)
    assert outcomes[1] == Outcome.OK
    assert b"mkdir" in values[1][0]
    assert not target.exists()


async def test_a_stream_of_prints_stays_a_tail(pool: WorkerPool) -> None:
    outcomes, _, _ = await play(pool, "while True: os.write(1, b'x' * 65536); os.write(2, b'y' * 65536)", timeout_s=1.0)
    assert outcomes[1] == Outcome.TIMED_OUT
    assert len(pool.log_tail(KEY.job)) <= 64 << 10


async def test_the_job_goes_on_however_often_it_is_attacked(pool: WorkerPool) -> None:
    body = "raw(b'\\xff' * 8); time.sleep(60)"
    chunks: list[BatchChunk] = []
    await pool.run(trick_task(body, [0, 1] * 5), chunks.append)
    assert b"".join(chunk.outcomes for chunk in chunks) == bytes((Outcome.OK, Outcome.DIED)) * 5
