"""Running the units of a WebAssembly job: each in a fresh instance, so that it depends on nothing but its input and its seed.

A module is used in one of two ways. A WASI program exports ``_start``: its units are commands, with arguments, standard input and
files. A module of functions exports ``alloc`` and ``work`` (or ``reduce``, ``finish``): input and result cross as msgpack in its memory.
Both are described in docs/spec/wasm-units.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from mmap import mmap
from typing import TYPE_CHECKING

import msgspec
import wasmtime
from wasmtime import FuncType, ValType

from ...errors import BadDataError, MalformedError
from ...model.values import FileRef, ValueDecoder
from . import frames
from .engine import Engine, Failure, Limits, explain
from .exports import Exports
from .files import Folders
from .outbound import Outbound
from .tree import Refused, Tree
from .wasi import CALLS, MODULE, Exit, Wasi
from .world import ERRORS_BYTES_MAX, World

if TYPE_CHECKING:
    from .outbound import Sink

MEMORY_BYTES_DEFAULT = 1 << 30
"""For a unit whose job does not say."""
IMPORTS_MAX = EXPORTS_MAX = 4096
_VALIDATED_BYTES_MAX = 1 << 20
"""Results up to this size are read as a value, larger ones only skipped through: reading may take many times their size."""
_ENTRIES = {frames.REDUCE: "reduce", frames.FINISH: "finish"}
_MASK = (1 << 32) - 1

Body = Callable[[Exports], bytes]


class CommandInput(msgspec.Struct, array_like=True, frozen=True):
    """The input of a unit of a WASI program: the same as that of a command."""

    argv: list[str]
    stdin: bytes | None = None
    files: list[tuple[FileRef, str]] = []


def prepare() -> None:
    """All that is slow, before the process is confined."""
    Engine().close()


def check_module(module: wasmtime.Module) -> None:
    """Raises Failure for a module that asks for what no unit is given."""
    imports, exports = module.imports, module.exports
    if len(imports) > IMPORTS_MAX or len(exports) > EXPORTS_MAX:
        raise Failure(frames.RAISED, "BadModule", f"the module has more than {EXPORTS_MAX} imports or exports")
    foreign = [f"{wanted.module}::{wanted.name}" for wanted in imports if wanted.module != MODULE or wanted.name not in CALLS]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        named = "".join(letter if letter.isprintable() else "?" for letter in ", ".join(foreign[:3])[:500])
        hint = f"units are given the functions of {MODULE}, and nothing else"
        raise Failure(frames.RAISED, "BadModule", f"the module imports {named}{more}: {hint}")


class Program:
    """A compiled module, linked: what fresh instances are made of."""

    def __init__(self, engine: Engine, module: wasmtime.Module) -> None:
        """Raises Failure when the module cannot be used."""
        check_module(module)
        self.wasi = Wasi()
        linker = wasmtime.Linker(engine.raw)
        self.wasi.define(linker)
        try:
            self._instances = linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            raise explain(error) from None
        self._functions = {export.name: _signature(export.type) for export in module.exports if isinstance(export.type, FuncType)}

    def has(self, name: str, parameters: str, results: str) -> bool:
        """Whether a function of this type is exported; one letter for each value, ``i`` of 32 bits and ``I`` of 64."""
        return self._functions.get(name) == (parameters, results)

    def instantiate(self, store: wasmtime.Store) -> Exports:
        """A fresh instance's exports, by name. Runs what the module runs at its start."""
        return Exports(store, self._instances.instantiate(store))


class WasmRunner:
    """Runs batches of one module."""

    def __init__(self, load: frames.Load, folders: Folders, progress: mmap | bytearray, channel: Sink, *, isa: str = "native") -> None:
        """Loads the compiled module that ``load`` names. Raises Failure when it cannot be used."""
        self._entry = load.entry
        self._fuel_max = load.fuel_max
        self._limits = Limits(memory_bytes=load.memory_bytes or MEMORY_BYTES_DEFAULT)
        self._progress = progress
        self._channel = channel
        self._engine = Engine(isa)
        self._values = ValueDecoder()
        self._program = Program(self._engine, _deserialized(self._engine, load.program))

    def run(self, run: frames.Run) -> None:
        """Run the units of one frame and send what they return."""
        outbound = Outbound(run.sequence, run.first, self._channel)
        whole = True
        for position, raw in enumerate(msgspec.msgpack.decode(run.inputs, type=list[msgspec.Raw])):
            if self._progress[frames.STOP_AT]:
                whole = False
                break
            index = run.first + position
            frames.PROGRESS.pack_into(self._progress, 0, index, time.monotonic())
            outbound.add(*self._unit(run, index, raw))
        frames.PROGRESS.pack_into(self._progress, 0, frames.IDLE, 0.0)
        outbound.flush(time.monotonic())
        if not whole:
            self._channel.write(frames.Stopped(run.sequence))

    def close(self) -> None:
        """End the timer of the engine."""
        self._engine.close()

    def _unit(self, run: frames.Run, index: int, raw: msgspec.Raw) -> tuple[int, bytes, int]:
        """Outcome, payload and fuel of one unit."""
        tree = Tree()
        meter = _Meter()
        try:
            if run.kind == frames.COMMAND:
                return frames.OK, self._command(run, index, raw, tree, meter), meter.fuel
            return frames.OK, self._function(run, index, raw, tree, meter), meter.fuel
        except (BadDataError, MalformedError) as error:
            return frames.RAISED, frames.describe(type(error).__name__, error.message), meter.fuel
        except Exception as error:
            failure = explain(error, timeout_s=run.timeout_s)
            return failure.outcome, failure.payload, meter.fuel
        finally:
            tree.close()

    def _command(self, run: frames.Run, index: int, raw: msgspec.Raw, tree: Tree, meter: _Meter) -> bytes:
        """Run ``_start`` with arguments, input and files. Raises Failure when it fails, as a command does."""
        if not self._program.has("_start", "", ""):
            raise Failure(frames.RAISED, "NameError", "the module exports no function _start that takes and returns nothing")
        wanted = _parse(self._values, raw)
        for reference, place in wanted.files:
            _add_input(tree, run.files, reference, place)
        world = World(
            seed=run.seed,
            index=index,
            arguments=[argument.encode("utf-8", "surrogateescape") for argument in wanted.argv],
            stdin=wanted.stdin or b"",
            tree=tree,
            output_bytes_max=run.result_bytes_max,
        )
        status = 0
        try:
            self._execute(world, run, meter, _start)
        except Exit as end:
            status = end.status
        tail = world.errors.decode("utf-8", "replace")
        if status:
            how = f"exit status {status}"
            raise Failure(frames.RAISED, "CommandFailed", f"{how}: {tail.strip()}" if tail.strip() else how)
        return msgspec.msgpack.encode([0, world.output, tail])

    def _function(self, run: frames.Run, index: int, raw: msgspec.Raw, tree: Tree, meter: _Meter) -> bytes:
        """Hand the input to the module's function and take what it returns. Raises Failure."""
        name = _ENTRIES.get(run.kind, self._entry)
        for wanted, parameters, results in ((name, "ii", "I"), ("alloc", "i", "i")):
            if not self._program.has(wanted, parameters, results):
                kind = "(i32, i32) -> i64" if results == "I" else "(i32) -> i32"
                raise Failure(frames.RAISED, "NameError", f"the module exports no function {wanted} of type {kind}")
        if run.files:
            _add_mentioned(tree, run.files, raw)
        world = World(seed=run.seed, index=index, tree=tree, output_bytes_max=ERRORS_BYTES_MAX)
        call = _Call(world, bytes(raw), name, run.result_bytes_max, has_error=self._program.has("error", "", "I"))
        try:
            result = self._execute(world, run, meter, call)
        except Exit as end:
            raise Failure(frames.RAISED, "Exited", f"the unit ended itself with exit status {end.status}") from None
        _check_value(self._values, result)
        return result

    def _execute(self, world: World, run: frames.Run, meter: _Meter, body: Body) -> bytes:
        """Run ``body`` on a fresh instance under the unit's limits. Raises Exit, Failure, and what the engine raises."""
        store = self._engine.store(self._limits, self._fuel_max)
        meter.start(store)
        world.attach(store)
        self._program.wasi.world = world
        try:
            with self._engine.deadline(store, run.timeout_s):
                exports = self._program.instantiate(store)
                world.attach(store, exports.memory())
                if self._program.has("_initialize", "", ""):
                    exports.call("_initialize")
                return body(exports)
        finally:
            meter.stop(store)
            self._program.wasi.world = None
            world.close()
            store.close()


class _Meter:
    """What a unit burns."""

    def __init__(self) -> None:
        self.fuel = 0
        self._given = 0

    def start(self, store: wasmtime.Store) -> None:
        self._given = store.get_fuel()

    def stop(self, store: wasmtime.Store) -> None:
        self.fuel = max(0, self._given - store.get_fuel())


class _Call:
    """One call of a function that takes and returns msgpack."""

    def __init__(self, world: World, raw: bytes, name: str, result_bytes_max: int, *, has_error: bool) -> None:
        self._world = world
        self._raw = raw
        self._name = name
        self._result_bytes_max = result_bytes_max
        self._has_error = has_error

    def __call__(self, exports: Exports) -> bytes:
        """The result's bytes. Raises Failure, and what the engine raises."""
        address = exports.call("alloc", len(self._raw)) & _MASK
        if not address:
            raise Failure(frames.RAISED, "MemoryLimit", f"alloc gave no memory for an input of {len(self._raw)} bytes")
        try:
            self._world.write(address, self._raw)
        except Refused:
            raise Failure(
                frames.RAISED, "BadPointer", "alloc returned a place outside of the memory that is exported as 'memory'"
            ) from None
        packed = exports.call(self._name, address, len(self._raw))
        if not packed:
            raise Failure(frames.RAISED, "UnitFailed", self._error_text(exports))
        size_bytes = packed & _MASK
        if size_bytes > self._result_bytes_max:
            raise Failure(
                frames.TOO_LARGE, "TooLarge", f"the result has {size_bytes} bytes, more than the {self._result_bytes_max} allowed"
            )
        return self._taken(packed)

    def _taken(self, packed: int) -> bytes:
        """The bytes that a packed place and size stand for."""
        try:
            return self._world.read((packed >> 32) & _MASK, packed & _MASK)
        except Refused:
            raise Failure(frames.RAISED, "BadPointer", "the result lies outside of the memory that is exported as 'memory'") from None

    def _error_text(self, exports: Exports) -> str:
        silent = f"{self._name} returned no result"
        if not self._has_error:
            return self._world.errors.decode("utf-8", "replace").strip() or silent
        packed = exports.call("error")
        packed = packed & ~_MASK | min(packed & _MASK, 4 * frames.ERROR_CHARS_MAX)
        return self._taken(packed).decode("utf-8", "replace").strip() or silent


def _start(exports: Exports) -> bytes:
    exports.call("_start")
    return b""


def _deserialized(engine: Engine, place: str) -> wasmtime.Module:
    """The compiled module. Raises Failure."""
    try:
        return wasmtime.Module.deserialize_file(engine.raw, place)
    except wasmtime.WasmtimeError as error:
        raise explain(error) from None


def _signature(kind: FuncType) -> tuple[str, str]:
    return "".join(map(_letter, kind.params)), "".join(map(_letter, kind.results))


def _letter(kind: ValType) -> str:
    return "i" if kind == ValType.i32() else "I" if kind == ValType.i64() else "?"


def _parse(values: ValueDecoder, raw: msgspec.Raw) -> CommandInput:
    """Raises BadDataError and MalformedError."""
    try:
        wanted = msgspec.convert(values.decode(raw), CommandInput, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise BadDataError(f"the input is not a command: {error}") from error
    if not wanted.argv or any("\0" in argument for argument in wanted.argv):
        raise BadDataError("the command is empty, or has a zero byte in it")
    return wanted


def _add_input(tree: Tree, places: dict[bytes, str], reference: FileRef, place: str) -> None:
    """Raises BadDataError."""
    parts = place.split("/")
    if "\\" in place or "\0" in place or any(part in ("", ".", "..") for part in parts):
        raise BadDataError(f"the file place {place[:200]!r} is not a plain relative path")
    source = places.get(reference.blob)
    if source is None:
        raise BadDataError(f"the file {reference.name} was not brought along")
    try:
        tree.add_input(place, source)
    except Refused:
        raise BadDataError(f"the file cannot be placed at {place[:200]!r}: something is there, or the path is too long") from None
    except OSError as error:
        raise BadDataError(f"the file {reference.name} cannot be read: {error.strerror or error}") from None


def _add_mentioned(tree: Tree, places: dict[bytes, str], raw: msgspec.Raw) -> None:
    """Put the files that an input refers to where its function finds them: at the hexadecimal form of their blob id."""
    mentioned: dict[bytes, FileRef] = {}

    def note(reference: FileRef) -> FileRef:
        mentioned[reference.blob] = reference
        return reference

    ValueDecoder(note).decode(raw)
    for blob, reference in mentioned.items():
        _add_input(tree, places, reference, blob.hex())


def _check_value(values: ValueDecoder, result: bytes) -> None:
    """Raises Failure for what is not exactly one value."""
    try:
        if len(result) <= _VALIDATED_BYTES_MAX:
            values.decode(result)
        else:
            msgspec.msgpack.decode(result, type=msgspec.Raw)
    except (MalformedError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        text = error.message if isinstance(error, MalformedError) else str(error)
        raise Failure(frames.UNENCODABLE, "BadDataError", f"the result is not one msgpack value: {text}") from None
