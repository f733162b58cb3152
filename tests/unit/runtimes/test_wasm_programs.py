"""The cache of compiled programs: what it hands out, when it compiles, and what it does not trust."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import wasmtime

from p2pgrid.errors import BadDataError, ConfigError, RefusedError, TryAgainError
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes import programs
from p2pgrid.runtimes.link import FrameLink, LogTail
from p2pgrid.runtimes.process import ProcessSpec, WorkerProcess
from p2pgrid.runtimes.programs import COMPILE_BYTES_MAX, ProgramCache, ProgramError
from p2pgrid.runtimes.tasks import Outcome, PoolPolicy
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import Engine
from tests.unit.runtimes.wasm_units import WORK


class FakeCompiler:
    """A process that has made ``output`` and says ``said``; without anything to say it stays silent."""

    def __init__(self, folder: Path, output: bytes | None, said: object) -> None:
        self.link = FrameLink()
        self.log = LogTail()
        self.folder = folder
        self.ended = False
        self.cage_failed = False
        self.process_id = 1 << 30  # Nobody's.
        (folder / "outbox").mkdir(parents=True)
        if output is not None:
            (folder / "outbox" / "0").write_bytes(output)
        if said == "gone":
            self.link.eof_received()
        elif isinstance(said, bytes):
            self.link.data_received(said)
        elif said is not None:
            self.link.data_received(frames.frame(said))

    async def end(self) -> None:
        """As a process."""
        self.ended = True

    def exit_text(self) -> str:
        """As a process."""
        return "was killed by SIGKILL"


class Launcher:
    """Starts fakes, and remembers what for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.specs: list[ProcessSpec] = []
        self.made: list[FakeCompiler] = []
        self.output: bytes | None = b"compiled"
        self.said: object = frames.Ready()
        self.cage_failed = False
        self.prepare: Callable[[Path], None] | None = None

    async def __call__(self, spec: ProcessSpec) -> FakeCompiler:
        """Start one."""
        self.specs.append(spec)
        process = FakeCompiler(self.folder / str(len(self.specs)), self.output, self.said)
        if self.prepare is not None:
            self.prepare(process.folder / "outbox" / "0")
        process.cage_failed = self.cage_failed
        self.made.append(process)
        return process


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path / "processes")


@pytest.fixture
async def cache(tmp_path: Path, launcher: Launcher) -> AsyncIterator[ProgramCache]:
    cache = ProgramCache(tmp_path / "cache", launcher, InlineOffload(), compile_s=0.2)
    await cache.start()
    yield cache
    await cache.close()
    assert all(process.ended for process in launcher.made)
    assert not [name for name in os.listdir(tmp_path / "cache") if name.endswith(".tmp")]


MODULE = Path("module.wasm")


async def test_a_program_is_compiled_once_and_then_found(cache: ProgramCache, launcher: Launcher) -> None:
    first = await cache.compiled(MODULE, b"id", "module")
    assert first.read_bytes() == b"compiled"
    assert await cache.compiled(MODULE, b"id", "module") == first
    (spec,) = launcher.specs
    assert (spec.runtime, spec.code.program, spec.code.entry, spec.memory_bytes) == ("compile", MODULE, "module", COMPILE_BYTES_MAX)


async def test_another_program_and_another_kind_are_filed_apart(cache: ProgramCache, launcher: Launcher) -> None:
    places = {
        await cache.compiled(MODULE, b"id", "module"),
        await cache.compiled(MODULE, b"other", "module"),
        await cache.compiled(MODULE, b"id", "component"),
    }
    assert len(places) == len(launcher.specs) == 3


async def test_what_was_compiled_is_found_after_a_restart(tmp_path: Path, cache: ProgramCache, launcher: Launcher) -> None:
    place = await cache.compiled(MODULE, b"id", "module")
    (tmp_path / "cache" / "half.tmp").write_bytes(b"half")
    os.utime(tmp_path / "cache" / "half.tmp", (1.0, 1.0))  # A younger one might be another node's.
    again = ProgramCache(tmp_path / "cache", launcher, InlineOffload())
    await again.start()
    assert await again.compiled(MODULE, b"id", "module") == place
    assert again.size_bytes == len(b"compiled")
    assert len(launcher.specs) == 1


async def test_another_engine_or_processor_compiles_anew(
    cache: ProgramCache, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await cache.compiled(MODULE, b"id", "module")
    monkeypatch.setattr(programs, "_fingerprint", lambda isa: "another processor")
    other = ProgramCache(tmp_path / "cache", launcher, InlineOffload())
    await other.start()
    await other.compiled(MODULE, b"id", "module")
    assert len(launcher.specs) == 2


async def test_files_are_read_only_in_a_folder_that_is_only_ours(tmp_path: Path, cache: ProgramCache) -> None:
    place = await cache.compiled(MODULE, b"id", "module")
    assert place.stat().st_mode & 0o777 == 0o444
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def rewrite(place: Path, data: bytes) -> None:
    place.chmod(0o600)
    place.write_bytes(data)
    place.chmod(0o444)


async def test_a_file_that_was_changed_is_made_again(cache: ProgramCache, launcher: Launcher) -> None:
    place = await cache.compiled(MODULE, b"id", "module")
    rewrite(place, b"c0mpiled")
    os.utime(place, (1, 1))
    assert (await cache.compiled(MODULE, b"id", "module")).read_bytes() == b"compiled"
    assert len(launcher.specs) == 2


async def test_a_file_that_was_replaced_is_made_again(cache: ProgramCache, launcher: Launcher, tmp_path: Path) -> None:
    place = await cache.compiled(MODULE, b"id", "module")
    await cache.compiled(MODULE, b"id", "module")
    (tmp_path / "elsewhere").write_bytes(b"compiled")
    for replace in (lambda: None, lambda: place.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(place)):
        place.unlink()
        replace()
        assert (await cache.compiled(MODULE, b"id", "module")).read_bytes() == b"compiled"
        assert place.is_file()
        assert not place.is_symlink()
    assert len(launcher.specs) == 4


async def test_a_file_that_others_could_have_written_is_made_again(cache: ProgramCache, launcher: Launcher) -> None:
    place = await cache.compiled(MODULE, b"id", "module")
    place.chmod(0o666)
    await cache.compiled(MODULE, b"id", "module")
    assert len(launcher.specs) == 2
    assert place.stat().st_mode & 0o777 == 0o444


async def test_a_folder_that_others_can_reach_is_refused(tmp_path: Path, launcher: Launcher) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="others can reach"):
        await ProgramCache(tmp_path / "open", launcher, InlineOffload()).start()


async def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, launcher: Launcher) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError):
        await ProgramCache(tmp_path / "link", launcher, InlineOffload()).start()


async def test_the_program_unused_for_longest_goes_first(tmp_path: Path, launcher: Launcher) -> None:
    launcher.output = bytes(100)
    cache = ProgramCache(tmp_path / "small", launcher, InlineOffload(), bytes_max=250)
    await cache.start()
    first = await cache.compiled(MODULE, b"1", "module")
    second = await cache.compiled(MODULE, b"2", "module")
    await cache.compiled(MODULE, b"1", "module")
    third = await cache.compiled(MODULE, b"3", "module")
    assert [place.exists() for place in (first, second, third)] == [True, False, True]
    assert cache.size_bytes == 200
    launcher.output = bytes(1000)
    assert (await cache.compiled(MODULE, b"4", "module")).exists(), "one that is larger than all room is still handed out"


async def test_what_was_compiled_is_told_apart_from_what_was_not(cache: ProgramCache, launcher: Launcher) -> None:
    launcher.said = frames.LoadFailed(msgspec.Raw(frames.describe("BadModule", "this is no module")))
    for _ in range(3):
        with pytest.raises(BadDataError, match="this is no module"):
            await cache.compiled(MODULE, b"id", "module")
    assert len(launcher.specs) == 1, "a failure is remembered"


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (frames.LoadFailed(msgspec.Raw(b"\xc0")), Outcome.RAISED),
        (None, Outcome.TIMED_OUT),
        ("gone", Outcome.DIED),
        (b"\xff\xff\xff\xff", Outcome.DIED),
    ],
)
async def test_only_what_is_the_same_everywhere_counts_as_raised(
    cache: ProgramCache, launcher: Launcher, said: object, outcome: Outcome
) -> None:
    launcher.said = said
    for _ in range(2):
        with pytest.raises(ProgramError) as caught:
            await cache.compiled(MODULE, b"id", "module")
        assert caught.value.outcome == outcome


async def test_a_cage_that_does_not_stand_is_not_the_fault_of_the_program(cache: ProgramCache, launcher: Launcher) -> None:
    launcher.said, launcher.cage_failed = "gone", True
    with pytest.raises(RefusedError):
        await cache.compiled(MODULE, b"id", "module")
    launcher.said, launcher.cage_failed = frames.Ready(), False
    assert (await cache.compiled(MODULE, b"id", "module")).exists()


async def test_a_failure_is_forgotten_after_a_while(cache: ProgramCache, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "FAILED_S", -1.0)
    launcher.said = frames.LoadFailed(msgspec.Raw(b"\xc0"))
    with pytest.raises(BadDataError, match="cannot be compiled"):
        await cache.compiled(MODULE, b"id", "module")
    launcher.said = frames.Ready()
    assert (await cache.compiled(MODULE, b"id", "module")).exists()


async def test_failures_are_bounded_in_number(cache: ProgramCache, launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "FAILED_KEPT", 2)
    launcher.said = "gone"
    for name in (b"1", b"2", b"3", b"1"):
        with pytest.raises(BadDataError, match="was killed by SIGKILL"):
            await cache.compiled(MODULE, name, "module")
    assert len(launcher.specs) == 4


async def test_a_process_that_says_nothing_is_ended_at_the_deadline(cache: ProgramCache, launcher: Launcher) -> None:
    launcher.said = None
    with pytest.raises(BadDataError, match=r"within 0\.2 s"):
        await cache.compiled(MODULE, b"id", "module")
    assert launcher.made[0].ended


@pytest.mark.parametrize("said", [b"\xff\xff\xff\xff", b"\2\0\0\0\xc1\xc1", frames.frame([5, 1, 2]), frames.frame(None)])
async def test_a_process_that_talks_nonsense_is_ended(cache: ProgramCache, launcher: Launcher, said: bytes) -> None:
    launcher.said = said
    with pytest.raises(BadDataError, match="protocol"):
        await cache.compiled(MODULE, b"id", "module")


def _link_to_secret(place: Path) -> None:
    place.unlink()
    place.symlink_to("/etc/hostname")


def _second_name(place: Path) -> None:
    os.link(place, place.with_name("second"))


def _pipe(place: Path) -> None:
    place.unlink()
    os.mkfifo(place)


def _empty(place: Path) -> None:
    place.write_bytes(b"")


def _huge(place: Path) -> None:
    os.truncate(place, 1 << 40)


@pytest.mark.parametrize("prepare", [Path.unlink, _link_to_secret, _second_name, _pipe, _empty, _huge])
async def test_an_output_that_is_no_plain_file_is_not_taken(
    cache: ProgramCache, launcher: Launcher, prepare: Callable[[Path], None], tmp_path: Path
) -> None:
    launcher.prepare = prepare
    with pytest.raises(BadDataError, match="cannot be used"):
        await cache.compiled(MODULE, b"id", "module")
    assert os.listdir(tmp_path / "cache") == []


async def test_a_process_that_fills_the_disk_while_it_compiles_is_ended(cache: ProgramCache, launcher: Launcher, tmp_path: Path) -> None:
    slow = ProgramCache(tmp_path / "slow", launcher, InlineOffload(), compile_s=20.0)
    await slow.start()
    launcher.said, launcher.prepare = None, _many_files
    with pytest.raises(ProgramError, match="files and folders"):
        await slow.compiled(MODULE, b"id", "module")


def _many_files(place: Path) -> None:
    for number in range(100):
        place.with_name(str(number)).touch()


async def test_those_who_want_the_same_program_wait_for_one_compilation(cache: ProgramCache, launcher: Launcher) -> None:
    places = await asyncio.gather(*(cache.compiled(MODULE, b"id", "module") for _ in range(5)))
    assert len(set(places)) == len(launcher.specs) == 1


async def test_who_goes_away_does_not_stop_it_for_the_others(cache: ProgramCache, launcher: Launcher) -> None:
    launcher.said = None
    leaver = asyncio.ensure_future(cache.compiled(MODULE, b"id", "module"))
    stayer = asyncio.ensure_future(cache.compiled(MODULE, b"id", "module"))
    while not launcher.made:
        await asyncio.sleep(0)
    leaver.cancel()
    launcher.made[0].link.data_received(frames.frame(frames.Ready()))
    assert (await stayer).exists()
    assert leaver.cancelled()


async def test_compilations_wait_for_each_other_and_too_many_are_busy(
    cache: ProgramCache, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "WAITING_MAX", 3)
    launcher.said = None
    waiting = [asyncio.ensure_future(cache.compiled(MODULE, b"%d" % number, "module")) for number in range(3)]
    while not launcher.made:
        await asyncio.sleep(0)
    with pytest.raises(TryAgainError):
        await cache.compiled(MODULE, b"4", "module")
    assert len(launcher.made) == 1
    await cache.close()
    for task in waiting:
        with pytest.raises(TryAgainError):
            await task
    with pytest.raises(TryAgainError):
        await cache.compiled(MODULE, b"id", "module")


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Callable[..., ProgramCache]]:
    """Makes caches that compile in processes."""
    caches: list[ProgramCache] = []
    started: list[Path] = []

    def make(memory_bytes: int = COMPILE_BYTES_MAX, **options: Any) -> ProgramCache:
        async def launch(spec: ProcessSpec) -> WorkerProcess:
            folder = tmp_path / "processes" / str(len(started))
            folder.parent.mkdir(mode=0o711, exist_ok=True)
            started.append(folder)
            limited = msgspec.structs.replace(spec, memory_bytes=memory_bytes)
            return await WorkerProcess.launch(limited, folder, PoolPolicy(), InlineOffload())

        cache = ProgramCache(tmp_path / "cache", launch, InlineOffload(), **options)
        caches.append(cache)
        return cache

    yield make
    for cache in caches:
        await cache.close()
    assert not [folder for folder in started if folder.exists()]


async def test_a_process_compiles_what_the_engine_can_load(tmp_path: Path, real: Callable[..., ProgramCache]) -> None:
    cache = real()
    await cache.start()
    (tmp_path / "work.wasm").write_bytes(wasmtime.wat2wasm(WORK))
    place = await cache.compiled(tmp_path / "work.wasm", b"id", "module")
    module = wasmtime.Module.deserialize_file(Engine().raw, str(place))
    assert [export.name for export in module.exports] == ["memory", "alloc", "work"]
    (tmp_path / "bad.wasm").write_bytes(b"(module)")
    with pytest.raises(BadDataError, match="this is no WebAssembly"):
        await cache.compiled(tmp_path / "bad.wasm", b"bad", "module")


async def test_a_small_module_that_takes_all_time_or_memory_is_ended(tmp_path: Path, real: Callable[..., ProgramCache]) -> None:
    place = tmp_path / "bomb.wasm"
    place.write_bytes(bomb(2000, 300))
    slow = real(compile_s=1.5)
    await slow.start()
    with pytest.raises(BadDataError, match=r"within 1\.5 s"):
        await slow.compiled(place, b"slow", "module")
    place.write_bytes(bomb(10_000, 300))
    wide = real(memory_bytes=160 << 20)
    await wide.start()
    with pytest.raises(BadDataError, match="was killed by SIGABRT"):
        await wide.compiled(place, b"wide", "module")
    place.write_bytes(wasmtime.wat2wasm(WORK))
    assert (await wide.compiled(place, b"small", "module")).exists(), "the same room is enough for an honest one"


def bomb(variables: int, depth: int) -> bytes:
    """A module whose compilation takes memory and time as the product of both numbers, and whose size is their sum."""
    code = b"\x03\x40" * depth
    code += b"".join(b"\x20" + _number(place) + b"\x41\x01\x6a\x21" + _number(place) for place in range(variables))
    code += b"\x20\x00\x0d\x00\x0b" * depth + b"\x0b"
    body = b"\x01" + _number(variables) + b"\x7f" + code
    functions = b"\x01" + _number(len(body)) + body
    return b"\0asm\1\0\0\0\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x0a" + _number(len(functions)) + functions


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))
