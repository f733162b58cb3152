"""The WebAssembly engine as every part of p2pgrid sets it up: deterministic, metered, and with a deadline.

Two honest workers must get equal bytes and burn equal fuel, whatever their processors are. Therefore NaNs are canonical, relaxed vector
instructions take their deterministic form, and what depends on the machine (threads, shared memory) does not exist. Features that few
programs need and that widen the surface (garbage collection, exceptions, 64-bit and multiple memories) are off.

A deadline is one increment of the engine's epoch by a timer thread, and only while it is armed: nothing ticks in between. Fuel bounds the
work of a unit exactly; the deadline bounds its wall time, and is therefore no result that two workers could agree on.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import wasmtime
from wasmtime import TrapCode

from . import frames

CONFIG_VERSION = 1
"""Raised with every change below that changes compiled code, so that what was compiled before is not looked for."""
STACK_BYTES_MAX = 1 << 20
"""The engine ends the whole process when this is more than the stack that it makes for a call, which is 2 MiB."""
MEMORY_RESERVATION_BYTES = 4 << 30
"""Address space for one memory, so that no access needs a check. Reserved space is not used memory, and no limit on data counts it."""
FUEL_UNBOUNDED = 1 << 62
"""What a store gets when only the deadline is to end it."""
ISAS = ("native", "baseline", "pulley")
_EPOCHS_NEVER = 1 << 40


class Limits(NamedTuple):
    """What one store may hold."""

    memory_bytes: int = 256 << 20
    """Of each linear memory."""
    table_elements: int = 1 << 20
    """Of each table; 8 bytes each."""
    instances: int = 1
    tables: int = 16
    memories: int = 1


class Failure(Exception):
    """How a unit ended instead of with a result: what goes into its frame."""

    def __init__(self, outcome: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.kind = kind
        self.message = message

    @property
    def payload(self) -> bytes:
        """The encoded description for the node."""
        return frames.describe(self.kind, self.message)


def make_config(isa: str = "native", *, parallel: bool = False) -> wasmtime.Config:
    """The configuration of an engine. Raises ValueError for an unknown ``isa``.

    ``isa``: ``native`` uses all that this processor can, ``baseline`` only what every processor of its kind can, ``pulley`` is an
    interpreter. All three give the same results and the same fuel. ``parallel``: compile with several threads.
    """
    config = wasmtime.Config()
    config.consume_fuel = True
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = True
    config.wasm_relaxed_simd_deterministic = True
    config.max_wasm_stack = STACK_BYTES_MAX
    config.memory_reservation = MEMORY_RESERVATION_BYTES
    config.parallel_compilation = parallel
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_custom_page_sizes = False
    config.wasm_stack_switching = False
    config.wasm_exceptions = False
    config.wasm_function_references = False
    config.wasm_gc = False
    config.gc_support = False
    target = _target(isa)
    if target:
        config.target = target
    return config


def _target(isa: str) -> str:
    """The triple to compile for: naming one turns the detection of processor features off. Empty for this very machine."""
    if isa == "native":
        return ""
    if isa == "pulley":
        return "pulley64"
    if isa != "baseline":
        raise ValueError(f"{isa!r} is no kind of engine: {', '.join(ISAS)}")
    machine = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}.get(platform.machine(), platform.machine())
    system = {"darwin": "apple-darwin", "win32": "pc-windows-msvc"}.get(sys.platform, "unknown-linux-gnu")
    if sys.platform == "linux" and platform.libc_ver()[0] != "glibc":
        system = "unknown-linux-musl"
    return f"{machine}-{system}"


def fingerprint(isa: str = "native") -> str:
    """Names all that decides whether compiled code can be used again: the engine's version, its configuration and the processor."""
    from importlib import metadata

    try:
        version = metadata.version("wasmtime")
    except metadata.PackageNotFoundError:
        version = "unknown"
    processor = hashlib.sha256(_processor().encode()).hexdigest()[:16] if isa == "native" else "any"
    return f"wasmtime-{version}/{CONFIG_VERSION}/{isa}/{sys.platform}-{platform.machine()}/{processor}"


def _processor() -> str:
    """What this processor can do, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as listing:
            for line in listing:
                if line.startswith(("flags", "Features")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


class Engine:
    """An engine, and the timer of its deadlines. One unit runs at a time."""

    def __init__(self, isa: str = "native", *, parallel: bool = False) -> None:
        self.raw = wasmtime.Engine(make_config(isa, parallel=parallel))
        self._wake = threading.Condition()
        self._deadline: float | None = None
        """Monotonic seconds; None while nothing is armed."""
        self._planned = 0.0
        """When the timer will look next."""
        self._timer: threading.Thread | None = None
        self._closed = False

    def store(self, limits: Limits, fuel: int = 0) -> wasmtime.Store:
        """A fresh store with these bounds. ``fuel`` 0: as good as unbounded."""
        store = wasmtime.Store(self.raw)
        store.set_limits(
            memory_size=limits.memory_bytes,
            table_elements=limits.table_elements,
            instances=limits.instances,
            tables=limits.tables,
            memories=limits.memories,
        )
        store.set_fuel(fuel or FUEL_UNBOUNDED)
        store.set_epoch_deadline(_EPOCHS_NEVER)
        return store

    @contextmanager
    def deadline(self, store: wasmtime.Store, timeout_s: float) -> Iterator[None]:
        """What runs in ``store`` inside of this is interrupted after ``timeout_s`` seconds of wall time; 0 for never.

        A call into the host is not interrupted: it must be short by itself.
        """
        if timeout_s <= 0:
            store.set_epoch_deadline(_EPOCHS_NEVER)
            yield
            return
        self._arm(store, timeout_s)
        try:
            yield
        finally:
            with self._wake:
                self._deadline = None

    def _arm(self, store: wasmtime.Store, timeout_s: float) -> None:
        with self._wake:
            store.set_epoch_deadline(1)
            self._deadline = time.monotonic() + timeout_s
            if self._timer is None:
                self._planned = self._deadline
                self._timer = threading.Thread(target=self._watch, name="deadline", daemon=True)
                self._timer.start()
            elif self._deadline < self._planned:
                # Deadlines of units that follow each other only move on: the timer is rarely woken.
                self._planned = self._deadline
                self._wake.notify()

    def _watch(self) -> None:
        """The timer: sleeps until the deadline that it knew, then looks for a later one."""
        with self._wake:
            while not self._closed:
                now = time.monotonic()
                if self._deadline is None:
                    self._planned = float("inf") if now >= self._planned else self._planned
                elif now >= self._deadline:
                    self._deadline = None
                    # Under the lock: the next unit cannot be hit by the end of the one before it.
                    self.raw.increment_epoch()
                    self._planned = float("inf")
                else:
                    self._planned = self._deadline
                self._wake.wait(None if self._planned == float("inf") else max(0.0, self._planned - now))

    def close(self) -> None:
        """End the timer."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._timer is not None:
            self._timer.join(1.0)


_TRAPS = {
    TrapCode.OUT_OF_FUEL: ("OutOfFuel", "the unit burnt all the fuel it was given"),
    TrapCode.STACK_OVERFLOW: ("StackOverflow", "the unit's calls were nested too deep"),
    TrapCode.UNREACHABLE: ("Unreachable", "the unit gave up: it reached an instruction that must not be reached (a panic or an abort)"),
    TrapCode.MEMORY_OUT_OF_BOUNDS: ("MemoryOutOfBounds", "the unit touched memory outside of its own"),
    TrapCode.TABLE_OUT_OF_BOUNDS: ("TableOutOfBounds", "the unit called through a table entry that does not exist"),
    TrapCode.INDIRECT_CALL_TO_NULL: ("IndirectCallToNull", "the unit called through an empty table entry"),
    TrapCode.BAD_SIGNATURE: ("BadSignature", "the unit called a function with arguments of another function"),
    TrapCode.INTEGER_OVERFLOW: ("IntegerOverflow", "an integer of the unit overflowed"),
    TrapCode.INTEGER_DIVISION_BY_ZERO: ("DivisionByZero", "the unit divided an integer by zero"),
    TrapCode.BAD_CONVERSION_TO_INTEGER: ("BadConversion", "the unit made an integer of a number that is none"),
}


def explain(error: BaseException, *, timeout_s: float = 0.0) -> Failure:
    """Put what the engine raised into our words. ``timeout_s`` is for the message."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, wasmtime.Trap):
        code = error.trap_code
        if code == TrapCode.INTERRUPT:
            return Failure(frames.TIMED_OUT, "TimedOut", f"the unit ran longer than its time-out of {timeout_s:g} s")
        if code in _TRAPS:
            kind, message = _TRAPS[code]
            return Failure(frames.RAISED, kind, message)
        return Failure(frames.RAISED, "Trap", _first_line(error.message))
    if isinstance(error, wasmtime.WasmtimeError):
        return _explain_refusal(str(error))
    if isinstance(error, MemoryError):
        return Failure(frames.RAISED, "MemoryLimit", "there is no memory left for the unit")
    return Failure(frames.RAISED, type(error).__name__, _first_line(str(error)))


_OVER_LIMITS = ("exceeds memory limits", "exceeds table limits", "resource limit exceeded", "Cannot allocate memory")


def _explain_refusal(text: str) -> Failure:
    """The engine would not load or start a module; it tells why in words only."""
    what = _last_line(text)
    if any(sign in text for sign in _OVER_LIMITS):
        return Failure(frames.RAISED, "MemoryLimit", f"the unit wants more than it may have: {what}")
    return Failure(frames.RAISED, "BadModule", f"the module cannot be used: {what}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _last_line(text: str) -> str:
    """The innermost cause, which the engine writes last, behind the outermost line."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip() and line.strip() != "Caused by:"]
    return lines[0] if len(lines) < 2 else f"{lines[0]}: {lines[-1]}"
