"""Many seeds of many scenarios, each in a process of its own kind, so that one that crashes or hangs is one failure.

1. Workers are ``python -m p2pgrid.testing.batches.batch``: a line (scenario, seed) goes in, a line with its verdict comes out.
   What the simulated code prints goes to stderr, whose end is shown when the process dies.
2. A seed has a bound of wall time; past it its process is killed and the seed has failed as ``stuck``.
3. ``twice``: a second process, with another PYTHONHASHSEED and another history of seeds behind it, runs the
   seed too, and both traces must have one hash.
4. Verdicts are handed over in the order of the runs, whichever ends first.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import msgspec

from p2pgrid.errors import BadDataError, UsageError
from p2pgrid.testing.plans.scenario import GridScenario, load
from p2pgrid.testing.verdict import Verdict, Violation

if TYPE_CHECKING:
    from p2pgrid.testing.batches.timeline import Timeline

ENGINE = "p2pgrid.testing.batches.batch:run_seed"
"""What workers run, as ``module:function``."""
WALL_S = {"whole": 300.0, "core": 900.0}
"""The bound of a seed's wall time, by the scenario's engine."""
HASH_SEEDS = ("1", "40961")
"""PYTHONHASHSEED of a first and of a second run."""
SEEDS_PER_PROCESS = (40, 17)
"""Then a fresh process takes over. Different, so that what one seed leaves behind for the next shows as another trace."""
LINE_BYTES_MAX = 64 << 20
TOLD_BYTES = 4000
"""How much of what a dead process said is kept."""
END_S = 5.0
LOOK_S = 2.0

Engine = Callable[[GridScenario, int], Verdict]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One seed of one scenario file, with its bound of wall time in seconds; ``twice``: in two processes."""

    path: str
    name: str
    seed: int
    wall_s: float = WALL_S["whole"]
    twice: bool = False


class Ran(msgspec.Struct, frozen=True):
    """What came of a run, and the seconds of wall time it took."""

    verdict: Verdict
    wall_s: float


class PlannedRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a batch file: ``scenario`` relative to that file, ``seeds`` the first and the last; so many of them run ``twice``."""

    scenario: str
    seeds: tuple[int, int]
    twice: int = 0


class BatchPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch file: which seeds of which scenarios, and whether together they must hit all that can be hit."""

    run: tuple[PlannedRun, ...]
    coverage: bool = False


def run_seed(scenario: GridScenario, seed: int, timeline: Timeline | None = None) -> Verdict:
    """Run one seed of a scenario in this process, on the engine it names, and fill ``timeline``.

    Raises UsageError for a timeline of a scenario of the core: its machines have no nodes, jobs are all alike there.
    """
    if scenario.engine == "core":
        if timeline is not None:
            raise UsageError(f"{scenario.name} runs on the core alone, which keeps no timeline", hint="trace a scenario of whole nodes")
        from p2pgrid.testing.core.scale import run_core

        return run_core(scenario, seed)
    from p2pgrid.testing.batches.timeline import TimelineOnlooker
    from p2pgrid.testing.grid import SimulatedGrid

    return SimulatedGrid(scenario, seed, onlookers=[TimelineOnlooker(timeline)] if timeline else []).run()


def runs_of(paths: Iterable[Path], seeds: Iterable[int], *, wall_s: float | None = None) -> list[Run]:
    """All seeds of all files. ``wall_s`` None: as the engine's default. Raises BadDataError for a file that is no scenario."""
    runs, numbers = list[Run](), list(seeds)
    for path in paths:
        scenario = load(path)
        bound_s = WALL_S[scenario.engine] if wall_s is None else wall_s
        runs += [Run(path=str(path), name=scenario.name, seed=seed, wall_s=bound_s) for seed in numbers]
    return runs


def read_plan(path: Path, *, wall_s: float | None = None) -> tuple[list[Run], bool]:
    """The runs of a batch file, and whether it asks for coverage. Raises BadDataError."""
    try:
        plan = msgspec.toml.decode(path.read_bytes(), type=BatchPlan)
    except OSError as error:
        raise BadDataError(f"'{path}' cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadDataError(f"'{path}' is no batch: {error}", hint='[[run]] with scenario = "FILE" and seeds = [FIRST, LAST]') from error
    runs = []
    for line in plan.run:
        first, last = line.seeds
        if first > last:
            raise BadDataError(f"'{path}': seeds of {line.scenario} end before they begin")
        # Lexically, so that the command that repeats a seed reads well.
        found = runs_of([Path(os.path.normpath(path.parent / line.scenario))], range(first, last + 1), wall_s=wall_s)
        runs += [msgspec.structs.replace(run, twice=number < line.twice) for number, run in enumerate(found)]
    return runs, plan.coverage


async def run_batch(
    runs: Sequence[Run],
    *,
    jobs: int = 0,
    twice: bool = False,
    engine: str = "",
    on_done: Callable[[int], None] = lambda done: None,
    on_verdict: Callable[[Ran], None] = lambda ran: None,
) -> list[Ran]:
    """Run all of them, ``jobs`` at a time (0: one for each core). ``twice``: each of them, not only those that say so.

    ``on_done`` is told how many have ended whenever one ends, ``on_verdict`` each outcome in the order of ``runs``.
    Cancelling it kills every process it started.
    """
    if twice:
        runs = [msgspec.structs.replace(run, twice=True) for run in runs]
    batch = _Batch(runs, engine or ENGINE, on_done)
    try:
        return await batch.run(min(jobs or cores(), len(runs)), on_verdict)
    finally:
        await batch.close()


def cores() -> int:
    """How many processes can work at one time here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Batch:
    """Owns the tasks that feed the processes, one task for each place in which a seed can run."""

    def __init__(self, runs: Sequence[Run], engine: str, on_done: Callable[[int], None]) -> None:
        self._roles = 2 if any(run.twice for run in runs) else 1
        self._engine, self._on_done = engine, on_done
        self._folder = Path(tempfile.mkdtemp(prefix="p2pgrid-batch-"))
        self._results: list[asyncio.Future[Ran]] = [asyncio.get_running_loop().create_future() for _ in runs]
        self._queue = deque(zip(runs, self._results, strict=True))
        self._places: list[asyncio.Task[None]] = []
        self._workers: list[_Worker] = []
        self._done = 0

    async def run(self, places: int, on_verdict: Callable[[Ran], None]) -> list[Ran]:
        loop = asyncio.get_running_loop()
        for number in range(places):
            workers = [_Worker(role, self._engine, self._folder) for role in range(self._roles)]
            self._workers += workers
            self._places.append(loop.create_task(self._place(workers), name=f"place {number}"))
        found = []
        for future in self._results:
            # A seed's own bound ends each of these waits.
            found.append(await future)
            on_verdict(found[-1])
        return found

    async def _place(self, workers: Sequence[_Worker]) -> None:
        while self._queue:
            run, future = self._queue.popleft()
            try:
                ran = await workers[0].ask(run)
                for second in workers[1:] if run.twice else ():
                    ran = compared(ran, await second.ask(run))
            except Exception as error:  # noqa: BLE001 - raised where the result is waited for
                future.set_exception(error)
                return
            self._done += 1
            self._on_done(self._done)
            future.set_result(ran)

    async def close(self) -> None:
        for place in self._places:
            place.cancel()
        await asyncio.gather(*self._places, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers), return_exceptions=True)
        for future in self._results:
            if not future.cancel() and not future.cancelled():
                future.exception()  # Told already, or of no interest to whoever stopped the batch.
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


class _Worker:
    """A process that runs seeds one after the other; replaced when it died, was killed, or has run enough of them."""

    def __init__(self, role: int, engine: str, folder: Path) -> None:
        self._role, self._engine, self._folder = role, engine, folder
        self._process: asyncio.subprocess.Process | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._asked = 0

    async def ask(self, run: Run) -> Ran:
        """Run one seed. A process that dies or hangs gives a failed verdict; nothing is raised for it."""
        if self._process is None or self._asked >= SEEDS_PER_PROCESS[self._role]:
            await self._end()
            self._process = await self._start()
        self._asked += 1
        before, began = os.fstat(self._said.fileno()).st_size, time.monotonic()
        try:
            async with asyncio.timeout(run.wall_s):
                return await self._answer(self._process, run)
        except TimeoutError:
            await self._end()
            text = f"stuck: no verdict within {run.wall_s:g} s of wall time" + self._told(before)
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError, ValueError) as error:
            # The pipe broke, ended, or carried no verdict.
            code = await self._end()
            text = f"the process ended with {code} instead of a verdict ({type(error).__name__})" + self._told(before)
        return Ran(failed(run.name, run.seed, text), time.monotonic() - began)

    async def _answer(self, process: asyncio.subprocess.Process, run: Run) -> Ran:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(run) + b"\n")
        await process.stdin.drain()
        return msgspec.json.decode(await process.stdout.readuntil(b"\n"), type=Ran)

    async def _start(self) -> asyncio.subprocess.Process:
        self._asked = 0
        # Files of a process that is killed must go with the batch.
        environment = {**os.environ, "PYTHONHASHSEED": HASH_SEEDS[self._role], "TMPDIR": str(self._folder)}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "p2pgrid.testing.batches.batch", self._engine, str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._said,
            env=environment,
            limit=LINE_BYTES_MAX,
            start_new_session=True,
        )

    def _told(self, start: int) -> str:
        size = os.fstat(self._said.fileno()).st_size
        start = max(start, size - TOLD_BYTES)
        return "\n" + os.pread(self._said.fileno(), size - start, start).decode(errors="replace").strip() if size > start else ""

    async def _end(self) -> int | None:
        """Kill the process; its exit code, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()
        with suppress(TimeoutError):
            # One that died by itself is given the time to say with what.
            async with asyncio.timeout(END_S if process.stdout is None or process.stdout.at_eof() else 0):
                return await process.wait()
        with suppress(ProcessLookupError):
            process.kill()
        async with asyncio.timeout(END_S):
            return await process.wait()

    async def close(self) -> None:
        await self._end()
        self._said.close()


def failed(name: str, seed: int, text: str) -> Verdict:
    """The verdict of a run that came to none."""
    return Verdict(scenario=name, seed=seed, violations=[Violation("log", 0.0, "process", text)])


def compared(first: Ran, second: Ran) -> Ran:
    """The first of two runs of one seed, failed when the second one went another way."""
    ours, theirs = first.verdict, second.verdict
    if ours.trace_hash == theirs.trace_hash and ours.events == theirs.events:
        return first
    text = f"two runs of one seed differ: {ours.events} events, trace {ours.trace_hash}; {theirs.events} events, trace {theirs.trace_hash}"
    violations = [*ours.violations, *theirs.violations, Violation("determinism", 0.0, "trace", text)]
    return Ran(msgspec.structs.replace(ours, ok=False, violations=violations), first.wall_s)


# -- the process that runs seeds -----------------------------------------------------------


def engine_named(name: str) -> Engine:
    """The function that ``module:function`` means."""
    module, _, function = name.partition(":")
    return cast(Engine, getattr(importlib.import_module(module), function))


def answer(engine: Engine, run: Run) -> Ran:
    """Run one seed; whatever is raised becomes a violation with its traceback."""
    began = time.monotonic()
    try:
        verdict = engine(load(Path(run.path)), run.seed)
    except Exception:  # noqa: BLE001 - it is the outcome of this seed
        verdict = failed(run.name, run.seed, traceback.format_exc())
    return Ran(verdict, time.monotonic() - began)


def _end_with(parent: int) -> None:
    """Look again and again whether whoever asked is still there: a seed in its middle would not notice that stdin ended."""

    def look(number: int, frame: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)


def main(words: Sequence[str]) -> None:
    """Answer lines of stdin until it ends. ``words``: the engine, and the process that asks."""
    _end_with(int(words[1]))
    # Whatever else writes to stdout, a job's own code included, must not mix with the verdicts.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        engine = engine_named(words[0])
        for line in sys.stdin.buffer:
            out.write(msgspec.json.encode(answer(engine, msgspec.json.decode(line, type=Run))) + b"\n")
            out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
