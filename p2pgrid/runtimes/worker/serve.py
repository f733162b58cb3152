"""The main loop of a worker process: confine, load the job once, then run batch after batch until the channel closes."""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import sys
from collections.abc import Callable
from io import BufferedReader
from types import CodeType, ModuleType
from typing import Any, NoReturn

import msgspec

from ..sandbox import cage
from . import frames
from .files import Folders, leave_modes_alone

MODULE_NAME = "p2pgrid_job"
"""The ``__name__`` the job's code runs under, so that ``if __name__ == "__main__"`` stays off."""

_GUEST_BYTES = 1 << 30
"""What a guest may have whose job does not say."""
_ENGINE_BYTES = 448 << 20
"""Interpreter, engine, compiled code, and results on their way out, which lie in memory several times."""
_RUNNERS = {
    "command": ("command", "CommandRunner"),
    "wasm": ("wasm", "WasmRunner"),
    "python": ("guest", "GuestRunner"),
    "compile": ("compiling", "CompileRunner"),
}


class Channel:
    """Blocking frames over the inherited socket. The end of the stream, or any failure of it, ends the process."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._reader: BufferedReader = open(number, "rb", closefd=False)  # noqa: SIM115 (lives as long as the process)

    def read(self) -> bytes:
        """The next frame."""
        try:
            prefix = self._reader.read(frames.LENGTH.size)
            if prefix is None or len(prefix) < frames.LENGTH.size:
                os._exit(0)
            (size_bytes,) = frames.LENGTH.unpack(prefix)
            body = self._reader.read(size_bytes)
        except OSError:
            os._exit(0)
        if body is None or len(body) < size_bytes:
            os._exit(0)
        return body

    def write(self, message: Any) -> None:
        """Send one frame, waiting for room."""
        view = memoryview(frames.frame(message))
        try:
            while view:
                view = view[os.write(self._number, view) :]
        except OSError:
            os._exit(0)


def serve(channel_number: int, progress_number: int, parent_id: int, library: int) -> None:
    """Serve one job; ends the process when the channel closes. ``library`` is how many entries of sys.path are the interpreter's own."""
    channel = Channel(channel_number)
    progress = mmap.mmap(progress_number, frames.SHARED_BYTES)
    os.close(progress_number)
    # All that is slow comes before the process is confined and before the code of the job is there: most of it while it waits for its load.
    import ctypes  # noqa: F401 - confining needs it

    from .units import UnitRunner  # noqa: F401 - most jobs need it

    loads, decoder = msgspec.msgpack.Decoder(frames.Load), msgspec.msgpack.Decoder(frames.Run)
    load = loads.decode(channel.read())
    make_runner = _runner_for(load.runtime)
    _confine(load, parent_id)
    # Not before: a folder that was open could be a way out of the cage.
    folders = Folders(load.folder, load.file_bytes_max)
    folders.enter()
    sys.path[library:library] = load.path  # The job's packages win over those the node happens to have.
    runner = make_runner(load, folders, progress, channel)
    channel.write(frames.Ready())
    while True:
        runner.run(decoder.decode(channel.read()))
        _flush_output()


def _runner_for(runtime: str) -> Callable[[frames.Load, Folders, mmap.mmap, Channel], Any]:
    """What makes the runner once the process is confined; all it needs is imported and opened here."""
    if runtime == "native":
        return _native_runner
    module_name, class_name = _RUNNERS[runtime]
    module = importlib.import_module(f".{module_name}", __package__)
    prepare: Callable[[], None] | None = getattr(module, "prepare", None)
    if prepare is not None:
        prepare()
    runner_class = getattr(module, class_name)

    def make(load: frames.Load, folders: Folders, progress: mmap.mmap, channel: Channel) -> Any:
        try:
            return runner_class(load, folders, progress, channel)
        except Exception as error:
            # The engines say what is wrong with the code in a payload of their own; anything else is told as it is.
            payload = getattr(error, "payload", None)
            _load_failed(channel, error, payload if isinstance(payload, bytes) else None)

    return make


def _native_runner(load: frames.Load, folders: Folders, progress: mmap.mmap, channel: Channel) -> Any:
    from .units import UnitRunner

    if load.cage.level == "landlock" and not load.cage.uid:
        leave_modes_alone(folders.scratch)
    return UnitRunner(load, _load_job(load, channel), folders, progress, channel)


def _confine(load: frames.Load, parent_id: int) -> None:
    """Everything that must hold before the job's first line runs."""
    plan = cage.Plan(
        level=load.cage.level,
        kind=load.cage.kind,
        user=load.cage.uid,
        read=load.cage.read,
        folder=load.folder,
        file_bytes_max=load.file_bytes_max,
        open_files_max=load.open_files_max,
        memory_bytes=_private_bytes(load),
        nice=load.nice,
        processes_max=load.cage.processes_max,
    )
    cage.confine(plan, parent_id)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Writing past the limit is an OSError the unit can report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which then ends its workers in order.


def _private_bytes(load: frames.Load) -> int:
    """What the whole process may have; 0 for no limit. An engine holds its guest to the byte itself, and needs room of its own."""
    if load.runtime not in ("wasm", "python"):
        return load.memory_bytes
    return (load.memory_bytes or _GUEST_BYTES) + _ENGINE_BYTES


def _load_job(load: frames.Load, channel: Channel) -> ModuleType:
    """Run the module's top level. When that fails the node is told, and the process ends."""
    import faulthandler

    faulthandler.enable()
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return load_module(load.source, load.file_name, load.entry)
    except BaseException as error:
        _load_failed(channel, error, None)


def _load_failed(channel: Channel, error: BaseException, payload: bytes | None) -> NoReturn:
    from .failures import describe_exception

    channel.write([4, msgspec.Raw(payload if payload is not None else describe_exception(error, skip_frames=2))])
    _flush_output()
    os._exit(0)


def load_module(source: str, file_name: str, entry: str, program: CodeType | None = None) -> ModuleType:
    """Run a job's top level; its module is ``sys.modules[MODULE_NAME]`` from then on. ``program``: the compiled source, if it is there.

    Raises whatever the code raises, SyntaxError, and NameError when there is no function ``entry``.
    """
    module = ModuleType(MODULE_NAME)
    module.__file__ = file_name
    # Tracebacks and inspect find the text through the loader; nothing is read from a disk.
    module.__loader__ = _Text(source)  # type: ignore[assignment]
    sys.modules[MODULE_NAME] = module
    exec(program or compile(source, file_name, "exec", dont_inherit=True), module.__dict__)
    if not callable(getattr(module, entry, None)):
        raise NameError(f"the job defines no function {entry}")
    return module


class _Text:
    """The loader of a module that exists as text only."""

    def __init__(self, source: str) -> None:
        self._source = source

    def get_source(self, name: str) -> str:
        """As importlib's loaders."""
        return self._source


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            # The unit may have closed or replaced it: its own loss.
            continue
