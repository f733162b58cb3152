"""A built and compiled runner for all tests, and short ways to run units in it.

Compiling the runner takes 15 to 60 s for each kind of engine. What was compiled is kept in a private folder below the system's temporary
one, under a name made of the component's content and the engine's fingerprint, so that only the first run pays.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from wasmtime import component as components

from p2pgrid.model.values import decode_value, encode_value
from p2pgrid.runtimes import runner as runners
from p2pgrid.runtimes.runner import building
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import Engine, fingerprint
from p2pgrid.runtimes.worker.files import Folders
from p2pgrid.runtimes.worker.guest import GuestRunner

COMPILE_S = 400
"""Time-out of tests that may be the first to need a compiled runner."""
SEED = bytes(range(32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and {"guests", "compiled"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(COMPILE_S))


def private_folder() -> Path:
    """Compiled code is machine code: it is read only from a folder that nobody else can write to."""
    folder = Path(tempfile.gettempdir(), f"p2pgrid-compiled-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    assert stat.S_ISDIR(state.st_mode)
    assert state.st_uid == os.getuid()
    assert not state.st_mode & 0o077
    return folder


@pytest.fixture(scope="session")
def component() -> Path:
    """The runner's component, built now if this tree has none."""
    try:
        current = building.is_current(building.HERE)
    except building.NoToolError:
        current = runners.path() is not None
    if current:
        return building.HERE / building.FILE_NAME
    folder = private_folder() / f"runner-{building.stamp()[:16]}"
    return folder / building.FILE_NAME if building.is_current(folder) else building.build(folder)


@pytest.fixture(scope="session")
def compiled(component: Path) -> Callable[[str], Path]:
    """The compiled component for a kind of engine."""
    content = hashlib.sha256(component.read_bytes()).hexdigest()

    def compile_for(isa: str) -> Path:
        name = hashlib.sha256(f"{content} {fingerprint(isa)}".encode()).hexdigest()
        file = private_folder() / f"{name}.cwasm"
        if not file.exists():
            engine = Engine(isa, parallel=True)
            draft = file.with_suffix(f".{os.getpid()}")
            draft.write_bytes(components.Component(engine.raw, component.read_bytes()).serialize())
            draft.replace(file)
        return file

    return compile_for


class Sink:
    """Takes frames as the node would get them."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def write(self, message: Any) -> None:
        self.frames.append(msgspec.msgpack.decode(msgspec.msgpack.encode(message)))


class Ended(NamedTuple):
    """All units of a run, flattened."""

    outcomes: list[int]
    values: list[Any]
    payloads: list[bytes]
    fuel: list[int]
    files: list[Any]
    frames: list[Any]


class Guests:
    """A runner over one job, as a worker process holds it."""

    def __init__(self, folder: Path, program: Path, source: str, isa: str, **options: Any) -> None:
        for part in ("scratch", "outbox", "inputs"):
            (folder / part).mkdir(parents=True)
        self.outbox = folder / "outbox"
        self.progress = bytearray(frames.SHARED_BYTES)
        self.sink = Sink()
        load = frames.Load(
            folder=str(folder),
            file_bytes_max=1 << 30,
            open_files_max=64,
            nice=0,
            runtime="python",
            source=source,
            file_name="job.py",
            entry="work",
            program=str(program),
            **{"memory_bytes": 0, **options},
        )
        self.runner = GuestRunner(load, Folders(str(folder), 1 << 30), self.progress, self.sink, isa=isa)

    def run(self, items: list[Any], *, files: dict[bytes, str] | None = None, on_path: Any = None, **options: Any) -> Ended:
        self.sink.frames.clear()
        raws = [msgspec.Raw(encode_value(item, on_path=on_path)) for item in items]
        return self.run_raw(msgspec.msgpack.encode(raws), files=files, **options)

    def run_raw(self, inputs: bytes, *, files: dict[bytes, str] | None = None, **options: Any) -> Ended:
        self.sink.frames.clear()
        wanted = {"kind": frames.MAP, "first": 0, "result_bytes_max": 1 << 20, "timeout_s": 10.0, "seed": SEED, **options}
        self.runner.run(frames.Run(sequence=3, files=files or {}, inputs=msgspec.Raw(inputs), **wanted))
        ended = Ended([], [], [], [], [], list(self.sink.frames))
        for frame in ended.frames:
            if frame[0] != frames.DONE_TAG:
                continue
            _, sequence, first, outcomes, payloads, run_us, files_out, fuel = frame
            assert sequence == 3
            assert first == wanted["first"] + len(ended.outcomes)
            assert len(outcomes) == len(payloads) == len(fuel) / 8
            assert run_us >= 0
            ended.outcomes.extend(outcomes)
            for payload in payloads:
                raw = msgspec.msgpack.encode(payload)
                ended.payloads.append(raw)
                ended.values.append(decode_value(raw))
            ended.fuel.extend(int.from_bytes(fuel[place : place + 8], "little") for place in range(0, len(fuel), 8))
            ended.files.extend(files_out)
        return ended


@pytest.fixture
def guests(compiled: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., Guests]]:
    made: list[Guests] = []

    def make(source: str, *, isa: str = "native", **options: Any) -> Guests:
        folder = tmp_path / f"guests-{len(made)}"
        guests = Guests(folder, compiled(isa), source, isa, **options)
        made.append(guests)
        return guests

    yield make
    for guests in made:
        guests.runner.close()
