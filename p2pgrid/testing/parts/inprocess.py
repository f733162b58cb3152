"""Units run in this process, by the very code that runs them in a worker process.

A worker process changes its working directory, its standard streams, the module table and the state of ``random``. Here
all of these are lent to the units for as long as they run, and put back before anything else does; and they find no event loop,
as in a process of their own.
"""

from __future__ import annotations

import io
import linecache
import os
import random
import shutil
import sys
import tempfile
import weakref
from asyncio import events as loops
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import msgspec

from p2pgrid.model.ids import BlobId
from p2pgrid.runtimes.tasks import BatchTask, Code, FileOutput
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.failures import describe_exception
from p2pgrid.runtimes.worker.files import Folders, empty_folder
from p2pgrid.runtimes.worker.serve import MODULE_NAME, load_module
from p2pgrid.runtimes.worker.units import UnitRunner

LOG_CHARS_MAX = 64 << 10
_raw_list = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Results(NamedTuple):
    """Consecutive units that have ended, as in a chunk."""

    outcomes: bytes
    payloads: list[msgspec.Raw]
    files: list[FileOutput]


class Frames:
    """Takes the frames of a runner."""

    def __init__(self) -> None:
        self.outcomes = bytearray()
        self.payloads: list[msgspec.Raw] = []
        self.files: list[tuple[int, bytes, int, str]] = []

    def clear(self) -> None:
        """Begin anew."""
        self.outcomes, self.payloads, self.files = bytearray(), [], []

    def write(self, message: Any) -> None:
        """Take one frame apart. When it came is of no interest here: that was real time."""
        _, _, _, outcomes, payloads, _, files = message
        self.outcomes += outcomes
        self.payloads += _raw_list.decode(payloads)
        self.files += files


class Log(io.TextIOBase):
    """The end of what units print."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._chars = 0

    def write(self, text: str) -> int:
        self._parts.append(text[-LOG_CHARS_MAX:])
        self._chars += len(self._parts[-1])
        if self._chars > 2 * LOG_CHARS_MAX:
            kept = self.text()
            self._parts, self._chars = [kept], len(kept)
        return len(text)

    def text(self) -> str:
        """At most LOG_CHARS_MAX characters."""
        return "".join(self._parts)[-LOG_CHARS_MAX:]


class Program:
    """A job's code, loaded for one submitter on one machine: a module of its own. ``failure`` when it could not be loaded."""

    def __init__(self, code: Code, folders: Folders) -> None:
        self.code = code
        self.frames = Frames()
        self.failure: msgspec.Raw | None = None
        self.runner: UnitRunner | None = None
        self._folders = folders
        self._module: Any = None

    def load(self, log: Log) -> None:
        """Run the top level of the code."""
        code = self.code
        with lent(self._folders, code, log, None):
            random.seed(0)
            try:
                self._module = load_module(code.source, code.file_name, code.entry, _compiled(code.source, code.file_name))
            except BaseException as error:  # noqa: BLE001 - somebody's code may raise anything
                self.failure = msgspec.Raw(describe_exception(error, skip_frames=2))
                return
        load = frames.Load("", 0, 0, 0, 0, "native", code.source, code.file_name, code.entry)
        self.runner = UnitRunner(load, self._module, self._folders, bytearray(frames.SHARED_BYTES), self.frames)

    def run(self, task: BatchTask, first: int, raws: Sequence[msgspec.Raw], log: Log) -> Frames:
        """Run some units of a task, the first of which is number ``first``."""
        assert self.runner is not None, "a program that could not be loaded runs nothing"
        self.frames.clear()
        inputs = frames.array_header(len(raws)) + b"".join(map(bytes, raws))
        run = frames.Run(
            sequence=0,
            kind=task.kind,
            first=first,
            result_bytes_max=task.result_bytes_max,
            timeout_s=0.0,
            seed=task.code.seed,
            files={blob: str(path) for blob, path in task.files.items()},
            inputs=msgspec.Raw(inputs),
        )
        with lent(self._folders, self.code, log, self._module):
            self.runner.run(run)
        return self.frames


class Room:
    """The folders of one machine's units, and the programs that are loaded there."""

    def __init__(self, folder: Path | None, file_bytes_max: int, programs_max: int) -> None:
        """``folder`` is the room's alone; without one a temporary folder is made. ``programs_max``: how many stay loaded.

        Nothing is made before the first program is loaded: most machines of a large simulation run no unit.
        """
        self._folder = folder
        self._file_bytes_max = file_bytes_max
        self._programs_max = programs_max
        self._programs: OrderedDict[tuple[bytes, Code], Program] = OrderedDict()
        self._folders: Folders | None = None
        # A machine that crashes closes nothing in good order; what is open must not outlive it all the same.
        self._endings: list[weakref.finalize[..., Room]] = []
        self._taken = 0

    def close(self) -> None:
        """Forget the programs. May be called again, and from anywhere."""
        self._programs.clear()
        self._folders = None
        while self._endings:
            self._endings.pop()()

    def knows(self, submitter: bytes, code: Code) -> bool:
        """Whether the program is loaded already."""
        return (submitter, _unseeded(code)) in self._programs

    def program(self, submitter: bytes, code: Code, log: Log) -> Program:
        """The program of a submitter; loaded when it is not there."""
        key = (submitter, _unseeded(code))
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = Program(code, self._opened())
            program.load(log)
            while len(self._programs) > self._programs_max:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return program

    def forget(self, submitter: bytes, code: Code) -> None:
        """Its process is gone: the next time it is loaded anew."""
        self._programs.pop((submitter, _unseeded(code)), None)

    def run(self, program: Program, task: BatchTask, first: int, raws: Sequence[msgspec.Raw], log: Log) -> Results:
        """Run some units of a task, the first of which is number ``first``."""
        ended = program.run(task, first, raws, log)
        files = []
        for index, blob, size_bytes, name in ended.files:
            assert self._folder is not None, "the program that brings files has folders"
            target = self._folder / "results" / str(self._taken)
            self._taken += 1
            os.rename(self._folder / "outbox" / name, target)
            files.append(FileOutput(index, BlobId(blob), size_bytes, target))
        return Results(bytes(ended.outcomes), ended.payloads, files)

    def _opened(self) -> Folders:
        if self._folders is None:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="p2pgrid-units-"))
                self._endings.append(weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True))
            for name in ("scratch", "outbox", "inputs", "results"):
                (self._folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
                empty_folder(str(self._folder / name))
            self._folders = Folders(str(self._folder), self._file_bytes_max)
            self._endings.append(weakref.finalize(self, _close, self._folders._scratch_number))
        return self._folders


@contextmanager
def lent(folders: Folders, code: Code, log: Log, module: Any) -> Iterator[None]:
    """Give the code of a job what it finds in a process of its own, and take it back."""
    before = os.getcwd()
    loop, chance, path = loops._get_running_loop(), random.getstate(), list(sys.path)
    neighbour, output, errors = sys.modules.get(MODULE_NAME), sys.stdout, sys.stderr
    numpy_random = sys.modules.get("numpy.random")
    numpy_chance = numpy_random.get_state() if numpy_random is not None else None
    loops._set_running_loop(None)
    linecache.cache.pop(code.file_name, None)  # Another job's text may be known under this name.
    sys.path[:0] = code.path
    sys.stdout = sys.stderr = log
    _set_module(module)
    try:
        folders.enter()
        yield
    finally:
        _set_module(neighbour)
        sys.stdout, sys.stderr = output, errors
        sys.path[:] = path
        random.setstate(chance)
        if numpy_random is not None:
            numpy_random.set_state(numpy_chance)
        loops._set_running_loop(loop)
        os.chdir(before)


def _set_module(module: Any) -> None:
    if module is None:
        sys.modules.pop(MODULE_NAME, None)
    else:
        sys.modules[MODULE_NAME] = module


def _close(number: int) -> None:
    with suppress(OSError):
        os.close(number)


def _unseeded(code: Code) -> Code:
    """A process may serve many jobs of one submitter's code; the seed belongs to the job."""
    return msgspec.structs.replace(code, seed=b"") if code.seed else code


@lru_cache(maxsize=64)
def _compiled(source: str, file_name: str) -> CodeType:
    return compile(source, file_name, "exec", dont_inherit=True)
