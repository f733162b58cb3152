"""``python -m bench sandbox``: what a cage costs, beside no cage, and what the engines of strangers' code give.

All levels of this machine are alive in one process of this bench, and take turns in short slices whose order is turned around each
time: what the machine does beside hits all alike. Ratios are of slices of the same round.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from p2pgrid.errors import P2PGridError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.offload import ThreadOffload
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, PoolPolicy

LEVELS = ("bare", "landlock", "namespaces")
BARE = "bare"
SOURCE = "def work(x):\n    return x\n"
ECHO = """
(module
  (memory (export "memory") 2)
  (global $next (mut i32) (i32.const 1024))
  (func (export "alloc") (param $size i32) (result i32)
    (global.get $next) (global.set $next (i32.add (global.get $next) (local.get $size))))
  (func (export "work") (param $at i32) (param $size i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $size)))))
"""
RATIO_FLOOR = 0.9
FRESH_MS_CEILING = 5.0
PYTHON_RATE_FLOOR = 20_000
ENGINE_ROUNDS = 9
PYTHON_BATCH = 2048
FRESH_UNITS = 50
WASM_BATCH = 500
_PUBLIC = "/var/tmp"  # noqa: S108 (a folder of a random name is made there)
SPARE_WAIT_S = 0.4
"""Until a spare interpreter is up, and nothing else runs."""


class Options(NamedTuple):
    """What the command line asks for."""

    rounds: int = 25
    units: int = 5_000
    """No-ops in a slice: many short ones, since the median of many pairs stands more noise than that of few."""
    batch: int = 256
    """Units in a batch, as they are leased."""
    starts: int = 9
    """Cold starts of each kind."""
    folder: Path | None = None
    python: str = ""
    """The interpreter for workers, if not this one: without namespaces, root needs one that every user can reach."""
    as_json: bool = False
    check: bool = False


class Figures(msgspec.Struct, kw_only=True):
    """All that was measured, raw."""

    units_per_s: dict[str, list[float]] = {}
    """By level, one for each round."""
    cold_ms: dict[str, list[float]] = {}
    """A job of one unit whose process must be started, by level."""
    ready_ms: dict[str, list[float]] = {}
    """The same where an interpreter stands ready."""
    engines: dict[str, dict[str, list[float]]] = {}
    """Of ``python`` and ``wasm``: figures by name."""
    missing: dict[str, str] = {}
    """What could not be measured here, and why."""


def run(options: Options, say: Callable[[str], None]) -> int:
    """Measure, print, judge; returns the exit code. ``say`` gets progress."""
    # As root, caged processes are users without rights, who must be able to reach their folders.
    with tempfile.TemporaryDirectory(prefix="p2pgrid-bench-sandbox-", dir=options.folder or _PUBLIC) as name:
        os.chmod(name, 0o711)  # noqa: S103 (they pass through, and cannot list it)
        figures = asyncio.run(_Bench(options, Path(name), say).run())
    if options.as_json:
        print(json.dumps(document(options, figures), indent=2))
    else:
        print(table(options, figures))
    results = verdicts(figures)
    for met, sentence in results if options.check else ():
        say(f"{'ok  ' if met else 'MISS'} {sentence}")
    return 0 if not options.check or all(met for met, _ in results) else 1


class _Bench:
    """The pools, and the order of things."""

    def __init__(self, options: Options, folder: Path, say: Callable[[str], None]) -> None:
        self._options = options
        self._folder = folder
        self._say = say
        self._figures = Figures()
        self._jobs = 0

    async def run(self) -> Figures:
        """Everything, one after the other."""
        await self._warm()
        for level in self._figures.units_per_s:
            self._say(f"starts, {level}")
            self._figures.cold_ms[level] = await self._starts(level, ready=False)
            self._figures.ready_ms[level] = await self._starts(level, ready=True)
        for runtime, measure in (("python", self._python), ("wasm", self._wasm)):
            self._say(f"runtime {runtime}")
            try:
                self._figures.engines[runtime] = await measure()
            except (P2PGridError, ImportError, _Missing) as error:
                self._figures.missing[runtime] = str(error)
        return self._figures

    async def _warm(self) -> None:
        options, rates = self._options, self._figures.units_per_s
        pools = {}
        async with AsyncExitStack() as stack:
            for level in LEVELS:
                pool = await stack.enter_async_context(self._pool(level, level))
                try:
                    await self._slice(pool, level, 2 * options.batch)
                except (P2PGridError, _Missing) as error:
                    self._figures.missing[level] = str(error)
                    continue
                pools[level], rates[level] = pool, []
            for number in range(options.rounds):
                if number % 5 == 0:
                    self._say(f"warm, round {number + 1}/{options.rounds} (load {os.getloadavg()[0]:.1f})")
                for level in list(pools) if number % 2 else reversed(list(pools)):
                    rates[level].append(options.units / await self._slice(pools[level], level, options.units))

    async def _slice(self, pool: WorkerPool, level: str, units: int) -> float:
        """Seconds for so many no-ops on a warm process."""
        task = self._task(level, self._options.batch)
        began = time.perf_counter()
        for _ in range(-(-units // self._options.batch)):
            await run_all(pool, task)
        return time.perf_counter() - began

    async def _starts(self, level: str, *, ready: bool) -> list[float]:
        """Milliseconds of jobs of one unit, each in a process of its own."""
        taken = []
        async with self._pool(level, f"{level}-{ready}", spare_s=3600.0 if ready else 0.0, idle_max=0) as pool:
            await run_all(pool, self._task(level, 1))
            for _ in range(self._options.starts):
                await asyncio.sleep(SPARE_WAIT_S)
                self._jobs += 1
                taken.append(1e3 * await timed(pool, self._task(level, 1, source=f"{SOURCE}# {self._jobs}")))
        return taken

    async def _python(self) -> dict[str, list[float]]:
        from p2pgrid.runtimes import runner

        program = runner.path()
        if program is None:
            raise _Missing("this installation has no Python runner")
        return await self._engine("python", program, PYTHON_BATCH)

    async def _wasm(self) -> dict[str, list[float]]:
        import wasmtime

        program = self._folder / "echo.wasm"
        program.write_bytes(wasmtime.wat2wasm(ECHO))
        return await self._engine("wasm", program, WASM_BATCH)

    async def _engine(self, runtime: str, program: Path, batch: int) -> dict[str, list[float]]:
        """A runtime with a compiled program: the first job here, the first of another submitter, and units when warm."""
        source = SOURCE if runtime == "python" else ""
        code = Code(source=source, program=program, program_id=await asyncio.to_thread(_blob_id, program))
        figures: dict[str, list[float]] = {}
        async with self._pool("auto", runtime, spare_s=0.0) as pool:
            one = self._engine_task(runtime, code, 1)
            figures["first_job_ms"] = [1e3 * await timed(pool, one)]
            figures["next_job_ms"] = [1e3 * await timed(pool, self._engine_task(runtime, code, 1)) for _ in range(3)]
            many = self._engine_task(runtime, code, batch)
            await run_all(pool, many)
            figures["units_per_s"] = [batch / await timed(pool, many) for _ in range(ENGINE_ROUNDS)]
            if runtime == "python":
                few = self._engine_task(runtime, code, FRESH_UNITS, fresh=True)
                await run_all(pool, few)
                figures["fresh_ms"] = [1e3 * await timed(pool, few) / FRESH_UNITS for _ in range(ENGINE_ROUNDS)]
        return figures

    @asynccontextmanager
    async def _pool(self, level: str, name: str, **policy: Any) -> AsyncIterator[WorkerPool]:
        offload = ThreadOffload()
        settings = {"cage": level, "spare_s": 0.0, "nice": 0, "python": self._options.python, **policy}
        pool = WorkerPool(self._folder / name / "pool", PoolPolicy(**settings), offload)
        try:
            await pool.start()
            yield pool
        finally:
            await pool.close()
            await offload.close()

    def _task(self, level: str, units: int, source: str = SOURCE) -> BatchTask:
        return BatchTask(
            job=JobKey(b"bench", b"job" if source == SOURCE else source.encode()),
            code=Code(source=source),
            inputs=msgspec.msgpack.encode(list(range(units))),
            timeout_s=30.0,
            trusted=level == BARE,
        )

    def _engine_task(self, runtime: str, code: Code, units: int, *, fresh: bool = False) -> BatchTask:
        self._jobs += 1
        return BatchTask(
            job=JobKey(b"bench", str(self._jobs).encode()),
            code=code,
            runtime=runtime,
            inputs=msgspec.msgpack.encode(list(range(units))),
            timeout_s=60.0,
            fresh=fresh,
        )


class _Missing(Exception):
    """Something cannot be measured here; the text says why."""


async def run_all(pool: WorkerPool, task: BatchTask) -> None:
    """Run a batch, all of whose units must be fine. Raises _Missing when they are not."""
    chunks: list[BatchChunk] = []
    await pool.run(task, chunks.append)
    for chunk in chunks:
        for outcome, payload in zip(chunk.outcomes, chunk.payloads, strict=True):
            if outcome != Outcome.OK:
                raise _Missing(f"a unit ended with {Outcome(outcome).name}: {msgspec.msgpack.decode(payload)}"[:2000])


async def timed(pool: WorkerPool, task: BatchTask) -> float:
    """Seconds that a batch takes."""
    began = time.perf_counter()
    await run_all(pool, task)
    return time.perf_counter() - began


def _blob_id(path: Path) -> bytes:
    return blob_id_of(path.read_bytes())


def beside_bare(figures: Figures, level: str) -> float:
    """The median of the rates of a level by those without a cage in the same round."""
    rates = figures.units_per_s
    return statistics.median(caged / bare for caged, bare in zip(rates[level], rates[BARE], strict=True))


def table(options: Options, figures: Figures) -> str:
    """Medians, as Markdown."""
    lines = [
        f"| level | no-ops/s (min-max), batches of {options.batch} | beside bare | start of a job, ms | with a spare, ms |",
        "|---|--:|--:|--:|--:|",
    ]
    for level, rates in figures.units_per_s.items():
        ratio = f"{beside_bare(figures, level):.2f} x" if BARE in figures.units_per_s else ""
        cold, ready = _median_ms(figures.cold_ms, level), _median_ms(figures.ready_ms, level)
        lines.append(f"| {level} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) | {ratio} | {cold} | {ready} |")
    if figures.engines:
        lines += ["", "| runtime | units/s, warm | fresh guest, ms | first job here, ms | next job, ms |", "|---|--:|--:|--:|--:|"]
    for runtime, found in figures.engines.items():
        shown = [_median_ms(found, name) for name in ("fresh_ms", "first_job_ms", "next_job_ms")]
        lines.append(f"| {runtime} | {statistics.median(found['units_per_s']):,.0f} | {' | '.join(shown)} |")
    lines += [f"\nNot measured here: {what}: {why}" for what, why in figures.missing.items()]
    return "\n".join(lines)


def _median_ms(values: Mapping[str, Sequence[float]], name: str) -> str:
    return f"{statistics.median(values[name]):,.1f}" if values.get(name) else ""


def verdicts(figures: Figures) -> list[tuple[bool, str]]:
    """(met, sentence) for each floor. What could not be measured is not met."""
    found = []
    for level in LEVELS[1:]:
        if level in figures.units_per_s and BARE in figures.units_per_s:
            ratio = beside_bare(figures, level)
            found.append((ratio >= RATIO_FLOOR, f"no-ops at level {level}: {ratio:.2f} x of bare, at least {RATIO_FLOOR} wanted"))
    if not found:
        found.append((False, "no cage could be measured"))
    python = figures.engines.get("python")
    if python is None:
        return [*found, (False, f"the Python runner could not be measured: {figures.missing.get('python', 'not tried')}")]
    fresh, rate = statistics.median(python["fresh_ms"]), statistics.median(python["units_per_s"])
    found.append((fresh <= FRESH_MS_CEILING, f"a fresh Python guest takes {fresh:.1f} ms, at most {FRESH_MS_CEILING:g} wanted"))
    found.append((rate >= PYTHON_RATE_FLOOR, f"warm Python guests run {rate:,.0f} units/s, at least {PYTHON_RATE_FLOOR:,} wanted"))
    return found


def document(options: Options, figures: Figures) -> dict[str, Any]:
    """Everything, raw figures included, for ``--json``."""
    levels = {
        level: {
            "units_per_s": statistics.median(rates),
            "beside_bare": beside_bare(figures, level) if BARE in figures.units_per_s else None,
            "cold_ms": statistics.median(figures.cold_ms[level]) if figures.cold_ms.get(level) else None,
            "ready_ms": statistics.median(figures.ready_ms[level]) if figures.ready_ms.get(level) else None,
        }
        for level, rates in figures.units_per_s.items()
    }
    engines = {runtime: {name: statistics.median(values) for name, values in found.items()} for runtime, found in figures.engines.items()}
    return {
        "batch": options.batch,
        "levels": levels,
        "engines": engines,
        "missing": figures.missing,
        "floors": [{"met": met, "what": sentence} for met, sentence in verdicts(figures)],
        "rounds": msgspec.to_builtins(figures),
    }
