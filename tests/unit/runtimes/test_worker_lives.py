"""Processes that die, hang, are cancelled or left idle: every unit is still reported once, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.errors import RefusedError, TryAgainError
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, PoolPolicy

KEY = JobKey(b"submitter", b"job")
OK, RAISED, TIMED_OUT, DIED = Outcome.OK, Outcome.RAISED, Outcome.TIMED_OUT, Outcome.DIED
HANG = "import time\ndef work(x):\n    if x: time.sleep(1000)\n    return x\n"


@pytest.fixture
def pool_policy() -> PoolPolicy:
    """No cage: the units here leave notes outside, start processes and are counted from outside."""
    return PoolPolicy(slots=2, idle_max=2, spare_s=0, cage="bare")


def is_alive(process_id: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        ("os._exit(7)", "exit status 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
    ],
)
async def test_a_crash_costs_the_unit_that_ran_and_no_other(run_units: Any, crash: str, said: str) -> None:
    source = f"import os, signal, ctypes\ndef work(x):\n    if x == 5: {crash}\n    return x\n"
    ended = await run_units(source, list(range(10)), first=100)
    assert ended.outcomes == [OK] * 5 + [DIED] + [OK] * 4
    assert said in ended.values[5]["message"]
    assert ended.values[:5] + ended.values[6:] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_segfault_tells_where_it_happened(run_units: Any) -> None:
    ended = await run_units("import ctypes\ndef work(x):\n    ctypes.string_at(0)\n", [1], code={"file_name": "mine.py"})
    assert 'File "mine.py", line 3 in work' in ended.values[0]["traceback"]


async def test_the_first_and_the_last_unit_may_crash_too(run_units: Any) -> None:
    source = "import os\ndef work(x):\n    if x: os._exit(1)\n    return x\n"
    ended = await run_units(source, [1, 0, 1, 1, 0, 1])
    assert ended.outcomes == [DIED, OK, DIED, DIED, OK, DIED]


@pytest.mark.parametrize(
    "hang",
    [
        "time.sleep(1000)",
        "spin()",
        "deaf()",
    ],
)
async def test_a_unit_over_its_deadline_is_ended_and_the_others_run(run_units: Any, hang: str) -> None:
    source = textwrap.dedent(
        f"""
        import os, signal, time
        def spin():
            while True: pass
        def deaf():
            for number in range(1, 65):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            spin()
        def work(x):
            if x == 2: {hang}
            return x
        """
    )
    ended = await run_units(source, [0, 1, 2, 3], timeout_s=0.3)
    assert ended.outcomes == [OK, OK, TIMED_OUT, OK]
    assert "0.3 s" in ended.values[2]["message"]


async def test_the_deadline_is_of_a_unit_and_not_of_the_batch(run_units: Any) -> None:
    ended = await run_units("import time\ndef work(x): time.sleep(0.1)", [0] * 8, timeout_s=0.5)
    assert ended.outcomes == [OK] * 8


async def test_loading_has_a_deadline(tmp_path: Path) -> None:
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(start_s=0.5, cage="bare", spare_s=0), InlineOffload())
    await pool.start()
    chunks: list[BatchChunk] = []
    task = BatchTask(job=KEY, code=Code(source="import time; time.sleep(1000)"), inputs=b"\x92\x01\x02")
    await pool.run(task, chunks.append)
    assert chunks[0].outcomes == bytes((TIMED_OUT, TIMED_OUT))
    await pool.close()


async def test_children_of_a_unit_end_with_it(run_units: Any, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    source = textwrap.dedent(
        f"""
        import os, subprocess, time
        def work(x):
            inside = subprocess.Popen(["sleep", "1000"])
            own_group = subprocess.Popen(["sleep", "1000"], process_group=0)
            open({str(note)!r}, "w").write(f"{{os.getpid()}} {{inside.pid}} {{own_group.pid}}")
            time.sleep(1000)
        """
    )
    ended = await run_units(source, [1], timeout_s=0.5)
    assert ended.outcomes == [TIMED_OUT]
    pids = [int(word) for word in note.read_text().split()]
    assert len(pids) == 3
    assert not any(map(is_alive, pids))


async def test_a_forked_child_that_holds_the_channel_cannot_keep_the_batch_waiting(run_units: Any) -> None:
    source = "import os, time\ndef work(x):\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(1)\n"
    ended = await run_units(source, [1])
    assert ended.outcomes == [DIED]


async def start_hanging(pool: WorkerPool, job: JobKey = KEY) -> tuple[asyncio.Task[None], int]:
    """A batch whose second unit hangs, and the id of its process; it flushes by the size of the first result."""
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    source = "import os, time\ndef work(x):\n    if x: time.sleep(1000)\n    return [os.getpid(), bytes(300_000)]\n"

    def on_results(chunk: BatchChunk) -> None:
        import msgspec

        told.set_result(msgspec.msgpack.decode(chunk.payloads[0])[0])

    running = asyncio.create_task(pool.run(BatchTask(job=job, code=Code(source=source), inputs=b"\x92\x00\x01"), on_results))
    return running, await asyncio.wait_for(told, 10)


async def test_cancel_ends_the_processes_of_the_job_and_only_those(pool: WorkerPool) -> None:
    running, process_id = await start_hanging(pool)
    other, other_id = await start_hanging(pool, JobKey(b"submitter", b"other"))
    waiting = asyncio.create_task(pool.run(BatchTask(job=KEY, code=Code(), inputs=b"\x91\x01"), lambda chunk: None))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await pool.cancel(b"job")
    assert not is_alive(process_id)
    assert is_alive(other_id)
    for task in (running, waiting):
        with pytest.raises(RefusedError):
            await task
    assert pool.busy == 1
    await pool.cancel(b"other")
    with pytest.raises(RefusedError):
        await other


async def test_cancelling_the_caller_ends_its_process_and_frees_the_slot(pool: WorkerPool) -> None:
    running, process_id = await start_hanging(pool)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not is_alive(process_id)
    assert pool.free == 2


async def test_an_error_of_the_receiver_is_passed_on_and_the_process_ended(pool: WorkerPool) -> None:
    def on_results(chunk: BatchChunk) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await pool.run(BatchTask(job=KEY, code=Code(source="def work(x): return x"), inputs=b"\x91\x01"), on_results)
    assert (pool.free, pool.idle) == (2, 0)


async def test_close_leaves_no_process_no_file_and_no_task(tmp_path: Path) -> None:
    before, tasks = open_files(), asyncio.all_tasks()
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(slots=1, cage="bare", spare_s=0), InlineOffload())
    await pool.start()
    await pool.run(BatchTask(job=KEY, code=Code(source="def work(x): return x"), inputs=b"\x91\x01"), lambda chunk: None)
    running, process_id = await start_hanging(pool)
    waiting = asyncio.create_task(pool.run(BatchTask(job=KEY, code=Code(), inputs=b"\x91\x01"), lambda chunk: None))
    await asyncio.sleep(0)
    await pool.close()
    for task in (running, waiting):
        with pytest.raises(TryAgainError):
            await task
    assert not is_alive(process_id)
    assert children() == ""
    assert open_files() == before
    assert asyncio.all_tasks() == tasks
    with pytest.raises(TryAgainError):
        await pool.run(BatchTask(job=KEY, code=Code(), inputs=b"\x90"), lambda chunk: None)


async def test_batches_wait_for_a_slot_in_order_and_the_queue_is_bounded(tmp_path: Path) -> None:
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(slots=1, waiting_max=2, cage="bare", spare_s=0), InlineOffload())
    await pool.start()
    order: list[int] = []

    async def one(number: int) -> None:
        await pool.run(
            BatchTask(job=KEY, code=Code(source="def work(x): return x"), inputs=b"\x91\x01"), lambda chunk: order.append(number)
        )

    tasks = [asyncio.create_task(one(number)) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(TryAgainError):
        await one(99)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
    await pool.close()


async def test_idle_processes_are_bounded_and_the_oldest_goes_first(pool: WorkerPool) -> None:
    source = "import os\ndef work(x): return os.getpid()"
    pids: dict[bytes, bytes] = {}

    async def run(job: bytes) -> bytes:
        chunks: list[BatchChunk] = []
        code = Code(source=f"{source} # {job!r}")
        await pool.run(BatchTask(job=JobKey(b"s", job), code=code, inputs=b"\x91\x00"), chunks.append)
        return bytes(chunks[0].payloads[0])

    for job in (b"1", b"2", b"3"):
        pids[job] = await run(job)
    assert pool.idle == 2
    assert await run(b"3") == pids[b"3"]
    assert await run(b"2") == pids[b"2"]
    assert await run(b"1") != pids[b"1"]


async def test_jobs_of_one_submitter_with_the_same_code_share_a_process_and_others_never_do(pool: WorkerPool) -> None:
    source = "import os\ndef work(x): return os.getpid()"

    async def run(submitter: bytes, job: bytes, seed: bytes) -> bytes:
        chunks: list[BatchChunk] = []
        task = BatchTask(job=JobKey(submitter, job), code=Code(source=source, seed=seed), inputs=b"\x91\x00", trusted=True)
        await pool.run(task, chunks.append)
        return bytes(chunks[0].payloads[0])

    first = await run(b"s", b"1", b"a" * 8)
    assert await run(b"s", b"2", b"b" * 8) == first
    assert await run(b"t", b"3", b"a" * 8) != first


async def test_an_idle_process_is_ended_after_a_while(tmp_path: Path) -> None:
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(idle_s=0.05, cage="bare", spare_s=0), InlineOffload())
    await pool.start()
    await pool.run(BatchTask(job=KEY, code=Code(source="def work(x): return x"), inputs=b"\x91\x01"), lambda chunk: None)
    async with asyncio.timeout(30):
        while children():
            await asyncio.sleep(0.01)
    assert pool.idle == 0
    await pool.close()


async def test_a_process_that_died_idle_costs_no_unit(run_units: Any) -> None:
    source = "import os, threading, time\ndef work(x):\n    if x: threading.Timer(0.1, os._exit, [1]).start()\n    return x\n"
    assert (await run_units(source, [1])).outcomes == [OK]
    async with asyncio.timeout(30):
        while children():
            await asyncio.sleep(0.01)
    assert (await run_units(source, [0])).outcomes == [OK]


PARENT = """
import asyncio, sys
from pathlib import Path
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import *

SOURCE = '''
import os
def work(x):
    open({note!r}, "w").write(str(os.getpid()))
    while True: pass
'''

async def main():
    pool = WorkerPool(Path({folder!r}), PoolPolicy(cage="bare", spare_s=0), InlineOffload())
    await pool.start()
    if {runtime!r} == "native":
        task = BatchTask(job=JobKey(b"s", b"j"), code=Code(source=SOURCE), inputs=b"\\x91\\x01")
    else:
        from p2pgrid.runtimes.command import encode_command
        import msgspec
        command = encode_command(["sh", "-c", "echo $$ > {note}; sleep 1000; true"])
        task = BatchTask(job=JobKey(b"s", b"j"), code=Code(), runtime="command", kind=Kind.COMMAND, inputs=[msgspec.Raw(command)])
    await pool.run(task, lambda chunk: None)

asyncio.run(main())
"""


@pytest.mark.parametrize("runtime", ["native", "command"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children of a killed parent")
async def test_kill_9_of_the_node_ends_its_workers(tmp_path: Path, runtime: str) -> None:
    note = tmp_path / "note"
    program = PARENT.format(note=str(note), folder=str(tmp_path / "pool"), runtime=runtime)
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[3])
    try:
        async with asyncio.timeout(30):
            while not note.exists() or not note.read_text().strip():
                await asyncio.sleep(0.01)
        worker = int(note.read_text())
        assert is_alive(worker)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    async with asyncio.timeout(20):
        while is_alive(worker):
            await asyncio.sleep(0.01)
