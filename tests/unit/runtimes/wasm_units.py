"""Short ways to run WebAssembly units in this process: a module in text form goes in, outcomes, values and fuel come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import wasmtime

from p2pgrid.model.values import decode_value, encode_value
from p2pgrid.runtimes.command import CommandResult, decode_command_result, encode_command
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.compiling import compile_program
from p2pgrid.runtimes.worker.engine import Engine, Limits
from p2pgrid.runtimes.worker.files import Folders
from p2pgrid.runtimes.worker.wasi import CALLS
from p2pgrid.runtimes.worker.wasm import Program, WasmRunner
from p2pgrid.runtimes.worker.world import World

SEED = bytes(range(32))
_WASM_TYPES = {"i": "i32", "I": "i64"}


class Unit(NamedTuple):
    """How one unit ended."""

    outcome: int
    payload: bytes
    fuel: int

    @property
    def value(self) -> Any:
        """The decoded payload."""
        return decode_value(self.payload)

    @property
    def error(self) -> tuple[str, str]:
        """(type, message) of a unit that failed."""
        assert self.outcome != frames.OK, self.value
        return self.value["type"], self.value["message"]

    @property
    def command(self) -> CommandResult:
        """The result of a command."""
        assert self.outcome == frames.OK, self.value
        return decode_command_result(self.payload)


class Frames:
    """Takes the frames of a runner, as the node would read them."""

    def __init__(self) -> None:
        self.done: list[frames.Done] = []
        self.first = 0
        self.stopped = False

    def write(self, message: Any) -> None:
        """Take one frame."""
        reply = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=frames.Reply)
        if isinstance(reply, frames.Done):
            self.done.append(reply)
        else:
            assert isinstance(reply, frames.Stopped)
            self.stopped = True

    def units(self) -> list[Unit]:
        """All units, in order."""
        units: list[Unit] = []
        for done in self.done:
            assert done.first == self.first + len(units)
            assert len(done.outcomes) == len(done.payloads) == len(done.fuel) // 8
            fuel = [int.from_bytes(done.fuel[place : place + 8], "little") for place in range(0, len(done.fuel), 8)]
            units += [Unit(*unit) for unit in zip(done.outcomes, map(bytes, done.payloads), fuel, strict=True)]
        return units


class Bench:
    """A loaded module."""

    def __init__(self, folder: Path, module: str | bytes, isa: str = "native", **load: Any) -> None:
        """Raises Failure when the module cannot be compiled or used."""
        program, compiled = folder / "program.wasm", folder / "program.cwasm"
        program.write_bytes(wasmtime.wat2wasm(module) if isinstance(module, str) else module)
        compiled.write_bytes(compile_program(str(program), "module", isa))
        for name in ("scratch", "outbox"):
            (folder / name).mkdir(exist_ok=True)
        defaults: dict[str, Any] = {"memory_bytes": 64 << 20, "entry": "work"}
        self.progress = bytearray(frames.SHARED_BYTES)
        self.frames = Frames()
        self.runner = WasmRunner(
            frames.Load(
                folder=str(folder),
                file_bytes_max=1 << 30,
                open_files_max=64,
                nice=0,
                runtime="wasm",
                source="",
                file_name="",
                program=str(compiled),
                **{**defaults, **load},
            ),
            Folders(str(folder), 1 << 30),
            self.progress,
            self.frames,
            isa=isa,
        )

    def run(self, kind: int, inputs: list[bytes], **run: Any) -> list[Unit]:
        """Run units with these encoded inputs."""
        self.frames.done.clear()
        self.frames.first = run.get("first", 0)
        defaults: dict[str, Any] = {"first": 0, "result_bytes_max": 1 << 20, "timeout_s": 10.0, "seed": SEED, "files": {}}
        raws = msgspec.Raw(msgspec.msgpack.encode([msgspec.Raw(raw) for raw in inputs]))
        self.runner.run(frames.Run(sequence=1, kind=kind, inputs=raws, **{**defaults, **run}))
        return self.frames.units()

    def map(self, *items: Any, **run: Any) -> list[Unit]:
        """Run the exported function on these values."""
        return self.run(frames.MAP, [encode_value(item) for item in items], **run)

    def command(self, *argv: str, stdin: bytes | None = None, **run: Any) -> Unit:
        """Run ``_start`` once."""
        return self.run(frames.COMMAND, [encode_command(argv or ["unit"], stdin=stdin)], **run)[0]


def imports(*names: str) -> str:
    """Imports of WASI calls, each under its own name."""
    lines = []
    for name in names:
        parameters = " ".join(_WASM_TYPES[letter] for letter in CALLS[name][0])
        result = "" if name == "proc_exit" else "(result i32)"
        lines.append(f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {parameters}) {result}))')
    return "\n".join(lines)


def program(body: str, *names: str, data: str = "", pages: int = 1, more: str = "") -> str:
    """A WASI program with this body of ``_start``; ``$check`` ends it with the number of a call that did not return ``expected``.

    ``$print`` writes memory to stdout. Memory from 60000 on is theirs.
    """
    wanted = sorted({*names, "fd_write", "proc_exit"})
    return f"""(module
      {imports(*wanted)}
      (memory (export "memory") {pages})
      {data}
      (func $print (param $at i32) (param $size i32)
        (i32.store (i32.const 60000) (local.get $at)) (i32.store (i32.const 60004) (local.get $size))
        (drop (call $fd_write (i32.const 1) (i32.const 60000) (i32.const 1) (i32.const 60008))))
      (func $number (param $value i32)
        (i32.store (i32.const 60012) (local.get $value)) (call $print (i32.const 60012) (i32.const 4)))
      {more}
      (func (export "_start") {body}))"""


def numbers(output: bytes) -> list[int]:
    """What ``$number`` printed."""
    return [int.from_bytes(output[place : place + 4], "little") for place in range(0, len(output), 4)]


WORK = """(module
  (memory (export "memory") 2)
  (global $next (mut i32) (i32.const 1024))
  (func (export "alloc") (param $size i32) (result i32)
    (global.get $next) (global.set $next (i32.add (global.get $next) (local.get $size))))
  (func (export "work") (param $at i32) (param $size i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $size)))))"""
"""Returns its input."""


def function(body: str, *, more: str = "", pages: int = 2) -> str:
    """A module whose ``work`` has this body; ``$at`` and ``$size`` say where its input lies, and ``$pack`` makes its result."""
    return f"""(module
      (memory (export "memory") {pages})
      (func $pack (param $at i32) (param $size i32) (result i64)
        (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $size))))
      {more}
      (func (export "alloc") (param $size i32) (result i32) (i32.const 1024))
      (func (export "work") (param $at i32) (param $size i32) (result i64) {body}))"""


def _thunks() -> str:
    functions = []
    for name, (signature, _) in CALLS.items():
        parameters = " ".join(_WASM_TYPES[letter] for letter in signature)
        result = "" if name == "proc_exit" else "(result i32)"
        loads = " ".join(f"(local.get {place})" for place in range(len(signature)))
        functions.append(f'(func (export "{name}") (param {parameters}) {result} (call ${name} {loads}))')
    return "\n".join(functions)


EVERY_CALL = f'(module {imports(*CALLS)} (memory (export "memory") 2) {_thunks()})'
"""Exports a function for each WASI call, which makes that call."""


class Host:
    """One unit's world, whose calls are made by the test instead of by a program."""

    engine = Engine()
    module: wasmtime.Module | None = None

    def __init__(self, *, fuel: int = 0, **world: Any) -> None:
        if Host.module is None:
            Host.module = wasmtime.Module(self.engine.raw, EVERY_CALL)
        self.program = Program(self.engine, Host.module)
        self.store = self.engine.store(Limits(memory_bytes=4 << 20), fuel)
        self.world = World(**{"seed": SEED, "index": 0, "output_bytes_max": 1 << 16, **world})
        self.world.attach(self.store)
        self.program.wasi.world = self.world
        linker = wasmtime.Linker(self.engine.raw)
        self.program.wasi.define(linker)
        self.exports: dict[str, Any] = dict(linker.instantiate(self.store, Host.module).exports(self.store))
        self.memory = self.exports["memory"]
        self.world.attach(self.store, self.memory)

    def __call__(self, name: str, *numbers: int) -> int:
        """Make one call; its error number."""
        result = self.exports[name](self.store, *(number - (1 << 64) if number >> 63 else number for number in numbers))
        return 0 if result is None else int(result)

    def put(self, address: int, data: bytes) -> None:
        """Write into the unit's memory."""
        self.memory.write(self.store, data, address)

    def get(self, address: int, size_bytes: int) -> bytes:
        """Read from the unit's memory."""
        return bytes(self.memory.read(self.store, address, address + size_bytes))

    def u32(self, address: int) -> int:
        """Read a number."""
        return int.from_bytes(self.get(address, 4), "little")

    def u64(self, address: int) -> int:
        """Read a number."""
        return int.from_bytes(self.get(address, 8), "little")

    def open(self, path: bytes, *, how: int = 0, rights: int = 2, flags: int = 0, base: int = 3) -> int:
        """Open a path; its descriptor, or an error number below zero."""
        self.put(4096, path)
        error = self("path_open", base, 0, 4096, len(path), how, rights, 0, flags, 4000)
        return -error if error else self.u32(4000)

    def read(self, number: int, size_bytes: int = 1000) -> bytes:
        """Read on from a descriptor."""
        self.put(5000, (8192).to_bytes(4, "little") + size_bytes.to_bytes(4, "little"))
        error = self("fd_read", number, 5000, 1, 5008)
        assert error == 0, error
        return self.get(8192, self.u32(5008))

    def write(self, number: int, data: bytes) -> int:
        """Write on to a descriptor; the error number."""
        self.put(8192, data)
        self.put(5000, (8192).to_bytes(4, "little") + len(data).to_bytes(4, "little"))
        return self("fd_write", number, 5000, 1, 5008)

    def path(self, name: str, path: bytes, *numbers: int, base: int = 3) -> int:
        """Make a call about one path; further numbers come behind it."""
        self.put(4096, path)
        return self(name, base, 4096, len(path), *numbers)

    def listing(self, number: int = 3, size_bytes: int = 4096) -> list[tuple[str, int]]:
        """(name, kind) of all entries of a folder, read part by part."""
        entries, cookie = [], 0
        while True:
            assert self("fd_readdir", number, 16384, size_bytes, cookie, 5008) == 0
            data, used = self.get(16384, self.u32(5008)), 0
            while used + 24 <= len(data):
                length = int.from_bytes(data[used + 16 : used + 20], "little")
                if used + 24 + length > len(data):
                    break
                cookie = int.from_bytes(data[used : used + 8], "little")
                entries.append((data[used + 24 : used + 24 + length].decode(), data[used + 20]))
                used += 24 + length
            if len(data) < size_bytes:
                return entries
            assert used, "the buffer holds no entry"
