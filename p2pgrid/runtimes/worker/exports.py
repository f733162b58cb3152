"""Calling what an instance exports, with as little ceremony as the engine's library allows.

Its public way asks for the type of a function with each call, and lists all exports to find one: several times what a small unit takes.
Types were compared when the module was loaded, so here numbers are put where the engine wants them. This is the only
place that reaches behind the public names of the library.
"""

from __future__ import annotations

from ctypes import byref, c_uint8
from typing import Any, cast

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._func import enter_wasm

_I32 = ffi.WASMTIME_I32
_NONE, _ONE, _TWO = (ffi.wasmtime_val_t * count for count in range(3))


class Exports:
    """The exports of one instance."""

    def __init__(self, store: wasmtime.Store, instance: wasmtime.Instance) -> None:
        self._store = store
        self._instance = instance

    def memory(self) -> wasmtime.Memory | None:
        """The memory that is exported as ``memory``, if one is."""
        found = self._find("memory")
        return wasmtime.Memory._from_raw(found.of.memory) if found is not None and _is(found.kind, ffi.WASMTIME_EXTERN_MEMORY) else None

    def call(self, name: str, *numbers: int) -> int:
        """Call a function that takes up to two i32 and returns one number or none (0 then). Whoever calls knows its type.

        Raises what the engine raises, and what a call into the host raised.
        """
        found = self._find(name)
        if found is None or not _is(found.kind, ffi.WASMTIME_EXTERN_FUNC):
            raise wasmtime.WasmtimeError(f"no function {name} is exported")
        arguments = (_NONE, _ONE, _TWO)[len(numbers)]()
        for place, number in enumerate(numbers):
            arguments[place].kind = _I32
            arguments[place].of.i32 = number
        results = _ONE()
        results[0].kind = _I32
        count = 0 if name.startswith("_") else 1
        with enter_wasm(self._store) as trap:
            error: Any = ffi.wasmtime_func_call(self._store._context(), byref(found.of.func), arguments, len(numbers), results, count, trap)
            if error:
                raise wasmtime.WasmtimeError._from_ptr(error)
        if not count:
            return 0
        return int(results[0].of.i32 if _is(results[0].kind, _I32) else results[0].of.i64)

    def _find(self, name: str) -> ffi.wasmtime_extern_t | None:
        found = ffi.wasmtime_extern_t()
        encoded = name.encode()
        there = ffi.wasmtime_instance_export_get(
            self._store._context(), byref(self._instance._instance), encoded, len(encoded), byref(found)
        )
        return found if there else None


def _is(kind: c_uint8, wanted: c_uint8) -> bool:
    """Fields of a structure read as plain numbers, whatever their declaration says."""
    return cast(int, kind) == wanted.value
