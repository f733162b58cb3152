"""One guest with Python inside, and its four functions: calls that cost microseconds, and answers that are trusted in nothing.

The package's own wrapper asks for the type of a function at every call and turns lists of bytes into Python objects one by one. Here a
call has its arguments laid out beforehand, and bytes cross as text of one character each (latin-1): the engine copies text as a whole.
"""

from __future__ import annotations

import ctypes
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime import component

from . import frames
from .engine import Engine, Failure, Limits, explain

INSTANCES_MAX = 64
TABLES_MAX = 64
MEMORIES_MAX = 8
"""The runner is a component of about twenty modules that share one memory and one table."""
_FUNCTIONS = {"compile": 2, "load": 1, "place": 1, "run": 1}
"""What a runner exports, and how many arguments each takes."""
_NOT_A_RUNNER = "the program is no Python runner of this version"


class Runner:
    """A compiled runner, linked: what guests are made of."""

    def __init__(self, engine: Engine, place: str) -> None:
        """``place``: the file of the compiled component. Raises Failure when it cannot be used."""
        self.engine = engine
        self._linker = component.Linker(engine.raw)  # With nothing in it: a component that imports anything does not start.
        try:
            self._component = component.Component.deserialize_file(engine.raw, place)
        except wasmtime.WasmtimeError as error:
            raise explain(error) from None
        self._exports: dict[str, Any] = {}
        for name in _FUNCTIONS:
            export = self._component.get_export_index(name)
            if export is None:
                raise Failure(frames.RAISED, "BadModule", _NOT_A_RUNNER)
            self._exports[name] = export

    def guest(self, memory_bytes: int, fuel: int) -> Guest:
        """A fresh guest; ``fuel`` 0 for as good as unbounded. Raises Failure."""
        limits = Limits(memory_bytes=memory_bytes, instances=INSTANCES_MAX, tables=TABLES_MAX, memories=MEMORIES_MAX)
        store = self.engine.store(limits, fuel)
        try:
            instance = self._linker.instantiate(store, self._component)
            functions = {name: instance.get_func(store, export) for name, export in self._exports.items()}
        except wasmtime.WasmtimeError as error:
            store.close()
            raise explain(error) from None
        if None in functions.values():
            store.close()
            raise Failure(frames.RAISED, "BadModule", _NOT_A_RUNNER)
        return Guest(self.engine, store, functions)


class Guest:
    """One instance. After an error it must be dropped: its memory is in an unknown state."""

    def __init__(self, engine: Engine, store: wasmtime.Store, functions: dict[str, Any]) -> None:
        self._engine = engine
        self._store = store
        self._context = store._context()
        self._functions = {name: function._func for name, function in functions.items()}
        self._arguments = {count: (ffi.wasmtime_component_val_t * count)() for count in sorted(set(_FUNCTIONS.values()))}
        for arguments in self._arguments.values():
            for argument in arguments:
                argument.kind = ffi.WASMTIME_COMPONENT_STRING
        self._result = ffi.wasmtime_component_val_t()

    @property
    def fuel(self) -> int:
        """What is left."""
        return self._store.get_fuel()

    @fuel.setter
    def fuel(self, fuel: int) -> None:
        self._store.set_fuel(fuel)

    def call(self, name: str, *arguments: str | bytes, timeout_s: float, answer_bytes_max: int) -> bytes:
        """Call a function; bytes cross as latin-1 text. Raises Failure when it traps, is late, or answers what it may not."""
        count = len(arguments)
        values = self._arguments[count]
        encoded = [(argument if isinstance(argument, str) else argument.decode("latin-1")).encode() for argument in arguments]
        for value, text in zip(values, encoded, strict=True):
            # Borrowed for the call: the engine copies it into the guest.
            value.of.string.size = len(text)
            value.of.string.data = ctypes.cast(ctypes.c_char_p(text), ctypes.POINTER(ffi.wasm_byte_t))
        result = self._result
        with self._engine.deadline(self._store, timeout_s):
            error = ffi.wasmtime_component_func_call(
                ctypes.byref(self._functions[name]), self._context, values, count, ctypes.byref(result), 1
            )
        if error:  # type: ignore[truthy-bool] # a null pointer is false
            raise _failure_of(error, timeout_s)
        try:
            return _answer(result, answer_bytes_max)
        finally:
            ffi.wasmtime_component_val_delete(ctypes.byref(result))

    def close(self) -> None:
        """Give its memory back."""
        self._store.close()


def _failure_of(pointer: Any, timeout_s: float) -> Failure:
    """What the engine says, in words for whoever wrote the unit. Components say in text alone which trap it was: behind its last colon."""
    error = wasmtime.WasmtimeError._from_ptr(pointer)
    reason = str(error).strip().rpartition("\n")[2].strip()
    if reason == "wasm trap: interrupt":
        return Failure(frames.TIMED_OUT, "TimedOut", f"the unit ran longer than its time-out of {timeout_s:g} s")
    if reason in _TRAPS:
        return Failure(frames.RAISED, *_TRAPS[reason])
    if reason.startswith("wasm trap: "):
        return Failure(frames.RAISED, "Trap", reason.removeprefix("wasm trap: "))
    return explain(error)


_TRAPS = {
    "wasm trap: all fuel consumed by WebAssembly": ("OutOfFuel", "the unit burnt all the fuel it was given"),
    "wasm trap: call stack exhausted": ("StackOverflow", "the unit's calls were nested too deep"),
    "wasm trap: wasm `unreachable` instruction executed": (
        "Unreachable",
        "the unit asked for something that only a system could give, or Python itself gave up",
    ),
}


def _answer(result: Any, bytes_max: int) -> bytes:
    """The bytes of an answer. Raises Failure for what a runner does not say."""
    if result.kind != ffi.WASMTIME_COMPONENT_STRING.value:
        raise Failure(frames.RAISED, "BadModule", _NOT_A_RUNNER)
    size_bytes = result.of.string.size
    if size_bytes > 2 * bytes_max:
        raise Failure(frames.RAISED, "Trap", f"the guest answered {size_bytes} bytes, more than {bytes_max} can be right")
    try:
        return ctypes.string_at(result.of.string.data, size_bytes).decode().encode("latin-1")
    except UnicodeError:
        raise Failure(frames.RAISED, "Trap", "the guest answered text that stands for no bytes") from None
