"""Compiling a module in a process of its own: what happens there is decided by a stranger's bytes, so time and memory are bounded outside.

The process is confined like one that runs units. It reads the module from its private folder, writes the compiled form into its outbox
under the name ``0``, and is done: it serves no units.
"""

from __future__ import annotations

import os
from mmap import mmap
from typing import TYPE_CHECKING

import wasmtime

from . import frames
from .engine import Engine, Failure, explain
from .files import Folders
from .wasm import check_module

if TYPE_CHECKING:
    from .outbound import Sink

MODULE, COMPONENT = "module", "component"
PROGRAM_BYTES_MAX = 64 << 20
_MAGIC = b"\0asm"
_OUTPUT = "0"


def prepare() -> None:
    """All that is slow, before the process is confined."""
    import wasmtime.component  # noqa: F401

    Engine().close()


class CompileRunner:
    """Compiles one program while it is constructed."""

    def __init__(self, load: frames.Load, folders: Folders, progress: mmap | bytearray, channel: Sink, *, isa: str = "native") -> None:
        """Compiles ``load.program``; ``load.entry`` says what it is. Raises Failure when that cannot be done."""
        compiled = compile_program(load.program, load.entry, isa)
        _write(os.path.join(load.folder, "outbox", _OUTPUT), compiled)

    def run(self, run: frames.Run) -> None:
        """There is nothing to run here. Raises RuntimeError."""
        raise RuntimeError("a process that compiles runs no units")


def compile_program(place: str, kind: str, isa: str = "native") -> bytearray:
    """The compiled form of the module or component at ``place``. Raises Failure, in words for its author."""
    try:
        with open(place, "rb") as file:
            program = file.read(PROGRAM_BYTES_MAX + 1)
    except OSError as error:
        raise Failure(frames.RAISED, "BadModule", f"the module cannot be read: {error.strerror or error}") from None
    if len(program) > PROGRAM_BYTES_MAX:
        raise Failure(frames.RAISED, "BadModule", f"the module has more than the {PROGRAM_BYTES_MAX} bytes allowed")
    if not program.startswith(_MAGIC):
        # The engine would take anything else for the text format, which is not meant for strangers.
        raise Failure(frames.RAISED, "BadModule", "this is no WebAssembly: the file does not begin with \\0asm")
    if program[4:8] != (b"\1\0\0\0" if kind == MODULE else b"\r\0\1\0"):
        raise Failure(frames.RAISED, "BadModule", f"this is not a WebAssembly {kind}: it is of another kind or version")
    # A runner may use all processors, since everybody waits for it; what any stranger sends gets one.
    engine = Engine(isa, parallel=kind == COMPONENT)
    try:
        return _compiled(engine, program, kind)
    except (wasmtime.WasmtimeError, MemoryError) as error:
        raise explain(error) from None


def _compiled(engine: Engine, program: bytes, kind: str) -> bytearray:
    if kind == COMPONENT:
        from wasmtime import component

        return component.Component(engine.raw, program).serialize()
    module = wasmtime.Module(engine.raw, program)
    check_module(module)
    return module.serialize()


def _write(place: str, data: bytearray) -> None:
    try:
        number = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(number, "wb") as file:
            file.write(data)
    except OSError as error:
        raise Failure(frames.RAISED, "BadModule", f"the compiled module cannot be written: {error.strerror or error}") from None
