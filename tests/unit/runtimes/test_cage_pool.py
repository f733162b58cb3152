"""The pool and its cages: which level units get, who shares a process, what lies where, and the process that stands ready."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import ConfigError, RefusedError, TryAgainError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.values import EXT_FILE, FileRef, decode_value, encode_value
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes import cages, furnishing
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.process import WorkerProcess
from p2pgrid.runtimes.sandbox import abilities, landlock
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind, Outcome, PoolPolicy
from tests.native import needs

PID = "import os\ndef work(x): return os.getpid()"


@pytest.fixture
async def pools(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Makes pools, and closes them."""
    made: list[WorkerPool] = []

    async def make(**options: Any) -> WorkerPool:
        pool = WorkerPool(tmp_path / f"pool{len(made)}", PoolPolicy(**{"spare_s": 0, **options}), InlineOffload())
        made.append(pool)
        await pool.start()
        return pool

    yield make
    for pool in made:
        await pool.close()
    for number in range(len(made)):
        assert os.listdir(tmp_path / f"pool{number}" / "processes") == []


def no_cage_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abilities.Abilities, "problem", lambda self, level, kind: "simulated")


async def run(pool: WorkerPool, source: str, item: Any = 0, *, job: bytes = b"job", **options: Any) -> Any:
    """The value of one unit."""
    chunks: list[BatchChunk] = []
    inputs = [msgspec.Raw(encode_value(item))]
    await pool.run(BatchTask(job=JobKey(b"s", job), code=Code(source=source), inputs=inputs, **options), chunks.append)
    value = decode_value(chunks[0].payloads[0])
    assert chunks[0].outcomes == bytes((Outcome.OK,)), value
    return value


async def test_without_a_cage_units_of_others_are_refused_and_the_owners_run(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    no_cage_here(monkeypatch)
    pool = await pools()
    with pytest.raises(RefusedError) as caught:
        await run(pool, PID)
    assert caught.value.reason == Reason.NO_CAGE
    assert "simulated" in caught.value.message
    assert await run(pool, PID, trusted=True) > 0


async def test_a_level_that_was_asked_for_is_not_replaced_by_a_weaker_one(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abilities.Abilities, "problem", lambda self, level, kind: "" if level == "landlock" else "simulated")
    made = abilities.Abilities("", (), 0, Path("/"))
    assert made.choose("auto", "function")[0] == "landlock"
    assert made.choose("namespaces", "function")[0] is None
    assert made.choose("bare", "function")[0] == "bare"
    monkeypatch.setattr(abilities.Abilities, "problem", lambda self, level, kind: "simulated")
    assert made.choose("auto", "function")[0] is None
    # An engine is a wall of its own.
    assert made.choose("auto", "engine")[0] == "bare"
    assert made.choose("landlock", "engine")[0] is None


def test_commands_need_signals_held_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(abilities.Abilities, "_missing", lambda self: "")
    monkeypatch.setattr(abilities.Abilities, "_tried", lambda self, level: "")
    made = abilities.Abilities("", (), 0, tmp_path)
    made.landlock_abi = 5
    assert made.problem("landlock", "function") == ""
    assert "signal" in made.problem("landlock", "command")
    assert made.problem("namespaces", "command") == ""
    made.landlock_abi = 6
    assert made.problem("landlock", "command") == ""


def test_a_kernel_without_landlock_holds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert "Landlock" in abilities.Abilities("", (), 0, tmp_path).problem("namespaces", "function")


async def test_jobs_of_others_never_share_a_process_and_the_owners_do(pools: Any) -> None:
    pool = await pools()
    first = await run(pool, PID, job=b"1")
    assert await run(pool, PID, job=b"1") == first
    assert await run(pool, PID, job=b"2") != first
    own = await run(pool, PID, job=b"3", trusted=True)
    assert await run(pool, PID, job=b"4", trusted=True) == own


async def test_what_python_offers_works_in_a_cage(pools: Any) -> None:
    pool = await pools(memory_bytes=512 << 20)
    source = """
import asyncio, decimal, hashlib, json, lzma, os, sqlite3, ssl, tempfile, threading, time, uuid, zlib
from concurrent.futures import ThreadPoolExecutor
async def nap():
    await asyncio.sleep(0.001)
    return await asyncio.to_thread(lambda: 7)
def work(x):
    with sqlite3.connect("a.db") as db:
        db.execute("create table t(x)")
        db.execute("insert into t values (5)")
        row = db.execute("select x from t").fetchone()[0]
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file, tempfile.TemporaryFile():
        open(os.path.join(folder, "x"), "w").close()
        file.write(b"x")
    with ThreadPoolExecutor(3) as pool:
        numbers = list(pool.map(abs, [-1, -2]))
    time.strftime("%c", time.localtime())
    return [row, asyncio.run(nap()), str(decimal.Decimal(2).sqrt())[:4], len(str(uuid.uuid4())), numbers, os.cpu_count() > 0]
"""
    assert await run(pool, source) == [5, 7, "1.41", 36, [1, 2], True]


async def test_copying_and_unpacking_go_on_where_modes_cannot_be_changed(pools: Any) -> None:
    source = """
import os, pathlib, shutil, tarfile
def work(x):
    pathlib.Path("d").mkdir()
    pathlib.Path("d/a").write_text("x")
    shutil.copy2("d/a", "b")
    shutil.copytree("d", "e")
    shutil.make_archive("t", "tar", "d")
    tarfile.open("t.tar").extractall("f")
    return [pathlib.Path("f/a").read_text(), os.listdir("e")]
"""
    for level in abilities.LEVELS:
        pool = await pools(cage=level)
        if level == (await asyncio.to_thread((await pool._known_cages()).choose, "function"))[0]:
            assert await run(pool, source) == ["x", ["a"]]


async def test_input_files_lie_where_the_unit_can_read_and_not_change_them(pools: Any, tmp_path: Path) -> None:
    pool = await pools()
    stored = tmp_path / "stored"
    stored.write_bytes(b"content")
    reference = FileRef(BlobId(b"b" * 32), 7, "input.txt")
    source = """
import os
def work(path):
    refused = 0
    for attempt in (lambda: path.write_text("x"), lambda: os.unlink(os.path.realpath(path)), lambda: os.truncate(path, 0)):
        try:
            attempt()
        except OSError:
            refused += 1
    return [path.read_text(), path.name, refused]
"""
    item = msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(reference))
    assert await run(pool, source, item, files={reference.blob: stored}) == ["content", "input.txt", 3]
    assert stored.read_bytes() == b"content"


async def test_files_are_placed_as_links_or_copies_and_go_with_their_batch(tmp_path: Path) -> None:
    folder = tmp_path / "1"
    furnishing.make_folder(folder)
    private, shared = tmp_path / "private", tmp_path / "shared"
    for file, mode in ((private, 0o600), (shared, 0o444)):
        file.write_text(file.name)
        file.chmod(mode)
    given = furnishing.Given(folder, for_others=True)
    places = given.replace({BlobId(b"p" * 32): private, BlobId(b"s" * 32): shared})
    assert os.stat(places[b"s" * 32]).st_ino == shared.stat().st_ino
    assert os.stat(places[b"p" * 32]).st_ino != private.stat().st_ino
    assert os.stat(places[b"p" * 32]).st_mode & 0o777 == 0o444
    assert private.stat().st_mode & 0o777 == 0o600
    assert given.replace({BlobId(b"s" * 32): shared}) == {b"s" * 32: places[b"s" * 32]}
    assert os.listdir(folder / "given") == [(b"s" * 32).hex()]
    given.replace({})
    assert given.empty
    own = furnishing.Given(folder, for_others=False).replace({BlobId(b"p" * 32): private})
    assert os.stat(own[b"p" * 32]).st_ino == private.stat().st_ino


async def test_a_file_that_cannot_be_placed_is_no_fault_of_the_unit(pools: Any, tmp_path: Path) -> None:
    pool = await pools()
    with pytest.raises(TryAgainError):
        await run(pool, PID, files={BlobId(b"b" * 32): tmp_path / "missing"})


async def test_a_process_stands_ready_and_is_taken_for_the_next_job(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ready: list[int] = []
    start = WorkerProcess.start.__func__  # type: ignore[attr-defined]

    async def starting(*arguments: Any) -> WorkerProcess:
        process: WorkerProcess = await start(*arguments)
        ready.append(process.process_id)
        return process

    monkeypatch.setattr(WorkerProcess, "start", classmethod(starting))
    pool = await pools(spare_s=60)
    assert await run(pool, PID, job=b"1") == ready[0]
    assert pool.idle == 1
    async with asyncio.timeout(30):
        while len(ready) < 2:
            await asyncio.sleep(0)
    assert pool.idle == 1
    assert await run(pool, PID, job=b"2") == ready[1]


async def test_the_process_that_stands_ready_is_ended_when_nothing_comes(pools: Any, tmp_path: Path) -> None:
    pool = await pools(spare_s=0.3, idle_max=0)
    await run(pool, PID)
    processes = tmp_path / "pool0" / "processes"
    async with asyncio.timeout(30):
        while os.listdir(processes) != ["2"]:
            await asyncio.sleep(0.005)
        while os.listdir(processes):
            await asyncio.sleep(0.005)


async def test_a_process_that_stood_ready_and_died_is_replaced(pools: Any, tmp_path: Path) -> None:
    pool = await pools(spare_s=60, idle_max=0)
    await run(pool, PID)
    async with asyncio.timeout(30):
        while pool._spare is None:
            await asyncio.sleep(0)
        pool._spare.kill()
        while pool._spare is not None:
            await asyncio.sleep(0.001)
    assert await run(pool, PID, job=b"2") > 0


async def test_a_pool_that_was_stopped_takes_work_again(pools: Any) -> None:
    pool = await pools()
    first = await run(pool, PID)
    pool.wind_down()
    await pool.stop()
    with pytest.raises(TryAgainError):
        await run(pool, PID)
    pool.resume()
    assert await run(pool, PID) != first


async def test_foreign_code_does_not_run_on_between_its_batches(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pgrid.runtimes.process._HOLD_AFTER_S", 0.01)
    pool = await pools()
    counting = """
import os, threading, time
count = 0
def run():
    global count
    while True:
        count += 1
        time.sleep(0.001)
threading.Thread(target=run, daemon=True).start()
def work(x): return [os.getpid(), count]
"""
    process_id, _ = await run(pool, counting)

    def state() -> str:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]

    async with asyncio.timeout(30):
        while state() != "T":
            await asyncio.sleep(0.005)
    again, _ = await run(pool, counting)
    assert again == process_id
    # The owner's own goes on.
    own, _ = await run(pool, counting, trusted=True, job=b"own")
    assert own != process_id


async def test_the_default_memory_is_the_policys_and_a_job_may_have_less(pools: Any) -> None:
    pool = await pools(memory_bytes=300 << 20)
    source = "import resource\ndef work(x): return resource.getrlimit(resource.RLIMIT_DATA)[0]"
    assert await run(pool, source) == 300 << 20
    assert await run(pool, source, memory_bytes=200 << 20, job=b"2") == 200 << 20


async def test_a_cage_that_does_not_stand_hands_the_units_back(pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = await pools()
    level, _ = await asyncio.to_thread((await pool._known_cages()).choose, "function")
    needs(level, "no cage holds here")
    order = cages.Cages.order
    monkeypatch.setattr(cages.Cages, "order", lambda self, spec: msgspec.structs.replace(order(self, spec), level="no such level"))
    with pytest.raises(RefusedError) as caught:
        await run(pool, PID)
    assert caught.value.reason == Reason.NO_CAGE
    assert "no level" in caught.value.message


async def test_a_command_finds_the_programs_of_the_system_and_not_the_owners_files(pools: Any, tmp_path: Path) -> None:
    from p2pgrid.runtimes.command import decode_command_result, encode_command

    secret = tmp_path / "secret"
    secret.write_text("x")
    script = f"cat {secret} /etc/passwd /proc/1/environ; echo $?; echo done | sort"
    chunks: list[BatchChunk] = []
    pool = await pools()
    inputs = [msgspec.Raw(encode_command(["sh", "-c", script]))]
    await pool.run(BatchTask(job=JobKey(b"s", b"j"), code=Code(), runtime="command", kind=Kind.COMMAND, inputs=inputs), chunks.append)
    assert decode_command_result(chunks[0].payloads[0]).stdout == b"1\ndone\n"


def test_users_for_cages_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cages, "is_root", lambda: True)
    users = cages.Users()
    span = cages.USERS_END - cages.USERS_FIRST
    seen = [users.next() for _ in range(span + 1)]
    assert len(set(seen)) == span
    assert seen[0] == seen[-1]
    assert min(seen) == cages.USERS_FIRST
    monkeypatch.setattr(cages, "is_root", lambda: False)
    assert users.next() == 0


def test_a_function_reads_no_configuration_and_a_command_finds_programs() -> None:
    interpreter = abilities.interpreter()
    function = cages.readable("function", interpreter, ["/some/packages"])
    command = cages.readable("command", interpreter, [])
    assert "/some/packages" in function
    assert "/usr/bin" not in function
    assert "/usr" in command
    for path in (*function, *command):
        assert path not in ("/", "/etc", "/proc", "/home", "/root")


def test_the_folder_of_units_lies_in_the_home_but_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cages, "is_root", lambda: False)
    assert cages.units_folder(tmp_path) == tmp_path
    needs(os.geteuid() == 0, "only root keeps them elsewhere")
    monkeypatch.setattr(cages, "is_root", lambda: True)
    monkeypatch.setattr(cages, "_UNITS_BASE", tmp_path)
    homes = tmp_path / "homes"
    homes.mkdir()
    folder = cages.units_folder(homes / "one")
    assert folder.parent.parent == tmp_path
    assert folder == cages.units_folder(homes / "one") != cages.units_folder(homes / "two")
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o711
    (folder / "left").mkdir()
    cages.units_folder(tmp_path / "other")
    assert (folder / "left").exists()
    homes.rmdir()
    cages.units_folder(tmp_path / "other")
    assert not folder.exists()
    folder.mkdir()
    os.chown(folder, 61184, 61184)
    with pytest.raises(ConfigError):
        cages.units_folder(homes / "one")
