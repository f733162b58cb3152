"""The main loop of a worker process: confine, load the job once, then run batch after batch until the channel closes."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from io import BufferedReader
from types import CodeType, ModuleType
from typing import Any

import msgspec

from ..sandbox import rlimits
from . import frames
from .files import Folders

MODULE_NAME = "p2pgrid_job"
"""The ``__name__`` the job's code runs under, so that ``if __name__ == "__main__"`` stays off."""


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
    # All that is slow comes before the process is confined and before the code of the job is there.
    import ctypes  # noqa: F401 - confining needs it

    from .units import UnitRunner

    loads, decoder = msgspec.msgpack.Decoder(frames.Load), msgspec.msgpack.Decoder(frames.Run)
    load = loads.decode(channel.read())
    folders = Folders(load.folder, load.file_bytes_max)
    _confine(load, parent_id, folders)
    sys.path[library:library] = load.path  # The job's packages win over those the node happens to have.
    if load.runtime == "command":
        from .command import CommandRunner

        runner: Any = CommandRunner(load, folders, progress, channel)
    else:
        module = _load_job(load, channel)
        runner = UnitRunner(load, module, folders, progress, channel)
    channel.write(frames.Ready())
    while True:
        runner.run(decoder.decode(channel.read()))
        _flush_output()


def _confine(load: frames.Load, parent_id: int, folders: Folders) -> None:
    """Everything that must hold before the job's first line runs."""
    command = load.runtime == "command"
    if command:
        # The runner must end its commands before it ends itself, so it is asked, not killed.
        rlimits.adopt_orphans()
    if not rlimits.die_with_parent(parent_id, by=signal.SIGTERM if command else signal.SIGKILL):
        os._exit(0)
    rlimits.lower_priority(load.nice)
    rlimits.limit_resources(file_bytes_max=load.file_bytes_max, open_files_max=load.open_files_max, memory_bytes=load.memory_bytes)
    rlimits.forbid_new_privileges()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Writing past the limit is an OSError the unit can report.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node, which then ends its workers in order.
    folders.enter()


def _load_job(load: frames.Load, channel: Channel) -> ModuleType:
    """Run the module's top level. When that fails the node is told, and the process ends."""
    import faulthandler

    faulthandler.enable()
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return load_module(load.source, load.file_name, load.entry)
    except BaseException as error:
        from .failures import describe_exception

        channel.write([4, msgspec.Raw(describe_exception(error, skip_frames=2))])
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
