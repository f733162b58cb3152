"""The engine: its configurations, its deadlines and how what it raises is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import wasmtime

from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import FUEL_UNBOUNDED, ISAS, Engine, Failure, Limits, explain, fingerprint, make_config

SPIN = """(module (memory (export "memory") 1)
  (func (export "spin") (loop $on (br $on)))
  (func (export "short") (result i32) (i32.const 7)))"""

ROOMY = Limits(instances=100, memories=100)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


def call(engine: Engine, store: wasmtime.Store, name: str) -> object:
    exports = wasmtime.Linker(engine.raw).instantiate(store, wasmtime.Module(engine.raw, SPIN)).exports(store)
    function = exports[name]
    assert isinstance(function, wasmtime.Func)
    return function(store)


def spin(engine: Engine, timeout_s: float) -> float:
    """Run without end; how long it took to be ended."""
    store = engine.store(Limits())
    started = time.monotonic()
    with pytest.raises(wasmtime.Trap) as caught, engine.deadline(store, timeout_s):
        call(engine, store, "spin")
    assert explain(caught.value, timeout_s=timeout_s).outcome == frames.TIMED_OUT
    return time.monotonic() - started


def test_deadlines_are_kept_in_whatever_order_they_come(engine: Engine) -> None:
    for timeout_s in (0.3, 0.05, 0.2, 0.05):
        assert timeout_s <= spin(engine, timeout_s) < timeout_s + 2.0


def test_a_deadline_that_was_left_in_time_hits_nobody_later(engine: Engine) -> None:
    """A unit that ends just before its deadline must not have the next one interrupted."""
    module = wasmtime.Module(engine.raw, SPIN)
    linker = wasmtime.Linker(engine.raw)
    until = time.monotonic() + 0.4
    while time.monotonic() < until:
        store = engine.store(Limits())
        try:
            with engine.deadline(store, 0.0005):
                linker.instantiate(store, module)
        except wasmtime.Trap:
            continue
        store = engine.store(ROOMY)
        with engine.deadline(store, 60.0):
            linker.instantiate(store, module)
            assert call(engine, store, "short") == 7


def test_the_timer_does_nothing_while_no_deadline_is_armed(engine: Engine) -> None:
    with engine.deadline(engine.store(Limits()), 0.02):
        pass
    store = engine.store(Limits())
    function = wasmtime.Linker(engine.raw).instantiate(store, wasmtime.Module(engine.raw, SPIN)).exports(store)["short"]
    assert isinstance(function, wasmtime.Func)
    store.set_epoch_deadline(1)
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        assert function(store) == 7


def test_there_is_a_timer_only_once_there_was_a_deadline_and_close_ends_it() -> None:
    before = threading.active_count()
    engine = Engine()
    store = engine.store(ROOMY)
    with engine.deadline(store, 0.0):
        assert call(engine, store, "short") == 7
    assert threading.active_count() == before
    for _ in range(3):
        with engine.deadline(store, 10.0):
            assert call(engine, store, "short") == 7
    assert threading.active_count() == before + 1
    engine.close()
    assert threading.active_count() == before


def test_a_store_has_as_much_fuel_as_it_was_given(engine: Engine) -> None:
    assert engine.store(Limits(), 1234).get_fuel() == 1234
    assert engine.store(Limits()).get_fuel() == FUEL_UNBOUNDED


@pytest.mark.parametrize("isa", ISAS)
def test_each_kind_of_engine_loads_what_it_compiled_and_nothing_else(isa: str) -> None:
    compiled = wasmtime.Module(Engine(isa).raw, SPIN).serialize()
    assert wasmtime.Module.deserialize(Engine(isa).raw, compiled).exports
    assert wasmtime.Engine(make_config(isa)).is_pulley() == (isa == "pulley")
    changed = wasmtime.Config()
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module.deserialize(wasmtime.Engine(changed), compiled)


def test_an_unknown_kind_of_engine_is_an_error() -> None:
    with pytest.raises(ValueError, match="native, baseline, pulley"):
        make_config("fast")


def test_the_fingerprint_tells_engines_apart() -> None:
    assert len({fingerprint(isa) for isa in ISAS}) == 3
    assert fingerprint() == fingerprint("native")
    assert "wasmtime-" in fingerprint()
    assert "unknown" not in fingerprint()


def test_everything_that_is_raised_can_be_told() -> None:
    known = Failure(frames.TOO_LARGE, "TooLarge", "it is")
    assert explain(known) is known
    for error in (
        wasmtime.WasmtimeError("odd\n\nCaused by:\n    odder"),
        wasmtime.Trap("by hand"),
        MemoryError(),
        RuntimeError("x\ny"),
        ValueError(),
    ):
        failure = explain(error)
        assert failure.outcome == frames.RAISED
        assert failure.payload
        assert "\n" not in failure.message
