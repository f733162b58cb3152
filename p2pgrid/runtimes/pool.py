"""The worker pool: at most ``slots`` batches run at one time, each on one warm process.

A process serves one job of another, or the jobs of the owner with one code: the same script run again finds its process warm.
Those without work stay for a while, bounded in number and time; the one unused for longest goes first. Most of what a small job
waits for is an interpreter to start, so while the pool is in use one more stands ready, bound to no job and in no cage yet. The pool owns
every process and every task it starts: ``close`` leaves none.
"""

from __future__ import annotations

import asyncio
import compileall
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, Protocol

import msgspec

from p2pgrid.errors import BadDataError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload, run_surely
from p2pgrid.runtimes.batch import BatchRun
from p2pgrid.runtimes.cages import Cages, is_root, kind_of
from p2pgrid.runtimes.link import LogTail
from p2pgrid.runtimes.process import ProcessSpec, WorkerProcess, library_folders
from p2pgrid.runtimes.slots import Slots
from p2pgrid.runtimes.tasks import BatchTask, OnResults, Outcome, PoolPolicy
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.files import empty_folder

_LOGS_KEPT = 64
_ENGINES = ("wasm", "python")


class Programs(Protocol):
    """Where modules are compiled, and kept once they are (see ``programs.ProgramCache``)."""

    async def compiled(self, program: Path, program_id: bytes, kind: str) -> Path:
        """The compiled form of a program; ``kind``: ``module`` or ``component``."""

    async def close(self) -> None:
        """End what is being compiled."""


class _BadProgramError(Exception):
    """A program cannot be compiled: what is said of each of its units."""

    def __init__(self, outcome: Outcome, payload: bytes) -> None:
        super().__init__()
        self.outcome = outcome
        self.payload = payload


class WorkerPool:
    """Runs batches on processes. ``folder`` is the pool's alone: what lies there at the start is removed."""

    def __init__(self, folder: Path, policy: PoolPolicy, offload: Offload) -> None:
        """``offload``: where the disk work goes. It may be closed before the pool is."""
        self._folder = folder
        self._policy = policy
        self._offload = offload
        self._slots = Slots(policy.slots, policy.waiting_max)
        self._runs: dict[BatchRun, None] = {}
        self._idle: deque[tuple[float, WorkerProcess]] = deque()
        """(idle since, process), the one unused for longest first."""
        self._endings: dict[asyncio.Task[None], None] = {}
        self._idle_timer: asyncio.TimerHandle | None = None
        self._logs: OrderedDict[bytes, LogTail] = OrderedDict()
        self._launched = 0
        self._cages: Cages | None = None
        self._chosen: dict[str, tuple[str | None, str]] = {}
        """The level for each kind of cage: asking anew is a thread's work, and this is done for every batch."""
        self._programs: Programs | None = None
        self._programs_lock = asyncio.Lock()
        self._compiling: dict[BatchRun, asyncio.Task[Path]] = {}
        self._spare: WorkerProcess | None = None
        self._spare_starting = False
        self._spare_timer: asyncio.TimerHandle | None = None
        self._open = False
        self._finished = asyncio.Event()

    async def start(self) -> None:
        """Prepare the folder. Call before anything else."""
        await self._offload.run(self._prepare)
        self._open = True

    def _prepare(self) -> None:
        # Users without rights pass through on the way to the folder that is theirs, where processes become such users.
        way = 0o711 if is_root() else 0o700
        for folder, mode in ((self._folder, way), (self._folder / "processes", way), (self._folder / "results", 0o700)):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
            if folder is not self._folder:
                empty_folder(str(folder))
            folder.chmod(mode)
        for name in ("worker", "sandbox"):
            # Bytecode once, here: worker processes must not write where the code lies. What cannot be written is compiled by each.
            compileall.compile_dir(Path(__file__).with_name(name), maxlevels=0, quiet=2)

    def wind_down(self) -> None:
        """Start no unit any more: what waits raises at once, what runs behind the unit it is at, which is reported. Nothing new is taken.

        They raise TryAgainError (drained).
        """
        self._open = False
        why = TryAgainError("the node takes no more work", reason=Reason.DRAINED)
        self._slots.refuse(why, lambda task: True)
        for run in self._runs:
            run.wind_down(why)

    def resume(self) -> None:
        """Take work again, after ``stop``. Harmless while the pool is open."""
        self._open = True

    async def close(self) -> None:
        """As :meth:`stop`, and nothing is left behind on the disk."""
        await self.stop()
        await run_surely(self._offload, empty_folder, str(self._folder / "results"))

    async def stop(self) -> None:
        """End all runs and processes, at once. Bounded by the time-outs of the policy. Files that units returned stay."""
        self._open = False
        why = TryAgainError("the node is stopping", reason=Reason.SHUTDOWN)
        self._slots.refuse(why, lambda task: True)
        for run in self._runs:
            self._stop_run(run, why)
        while self._idle:
            self._end_later(self._idle.popleft()[1])
        self._set_idle_timer()
        self._end_spare()
        programs, self._programs = self._programs, None
        if programs is not None:
            await programs.close()
        while self._runs:
            self._finished.clear()
            await self._finished.wait()
        while self._endings:
            await asyncio.gather(*self._endings, return_exceptions=True)

    async def run(self, task: BatchTask, on_results: OnResults) -> None:
        """Run a batch. ``on_results`` is called with every unit exactly once, in order, from the event loop.

        Raises BadDataError for inputs that are no array, TryAgainError when too many batches wait, when no process can be started or
        when the pool closes, RefusedError when the job is cancelled meanwhile. Cancelling the caller ends the process.
        """
        run = BatchRun(
            task,
            on_results,
            acquire=lambda: self._acquire(run),
            release=self._release,
            load_s=self._policy.start_s,
            results_folder=self._folder / "results",
            policy=self._policy,
            offload=self._offload,
        )
        if not self._open:
            raise TryAgainError("the worker pool is not running", reason=Reason.SHUTDOWN)
        await self._slots.take(task)
        self._runs[run] = None
        try:
            if not self._open:  # It was closed at the moment the slot came.
                raise TryAgainError("the worker pool is not running", reason=Reason.SHUTDOWN)
            await run.run()
        except _BadProgramError as error:
            run.fail_rest(error.outcome, error.payload)
        finally:
            self._runs.pop(run, None)
            self._slots.give()
            self._finished.set()
            self._want_spare()

    async def cancel(self, job: bytes) -> None:
        """Stop everything of a job: its waiting and running batches raise RefusedError, its processes are gone when this returns."""
        why = RefusedError("the job was cancelled", reason=Reason.JOB_OVER)
        self._slots.refuse(why, lambda task: task.job.job == job)
        runs = [run for run in self._runs if run.task.job.job == job]
        for run in runs:
            self._stop_run(run, why)
        endings = list(self._endings)
        while any(run in self._runs for run in runs):
            self._finished.clear()
            await self._finished.wait()
        await asyncio.gather(*endings, return_exceptions=True)

    def log_tail(self, job: bytes) -> str:
        """The end of what the job's latest process printed; at most 64 KiB, empty when nothing is known."""
        log = self._logs.get(job)
        return log.text() if log is not None else ""

    def compiling(self, job: bytes) -> bool:
        """Whether a batch of this job waits for its program to be compiled."""
        return any(run.task.job.job == job for run in self._compiling)

    @property
    def busy(self) -> int:
        """Batches that run now."""
        return len(self._runs)

    @property
    def free(self) -> int:
        """Slots that nobody uses or waits for."""
        return self._slots.free

    @property
    def idle(self) -> int:
        """Warm processes without work."""
        return len(self._idle)

    def _stop_run(self, run: BatchRun, why: P2PGridError) -> None:
        run.stop(why)
        compiling = self._compiling.get(run)
        if compiling is not None:
            compiling.cancel()

    async def _acquire(self, run: BatchRun) -> WorkerProcess:
        """The warm process that was used last, or a new one."""
        task = run.task
        spec = await self._spec(run)
        for position in range(len(self._idle) - 1, -1, -1):
            process = self._idle[position][1]
            if process.spec == spec:
                del self._idle[position]
                self._set_idle_timer()
                process.on_exit = None
                process.reused = True
                process.go_on()
                return process
        process = await self._launch(spec)
        self._logs[task.job.job] = process.log
        self._logs.move_to_end(task.job.job)
        if len(self._logs) > _LOGS_KEPT:
            self._logs.popitem(last=False)
        return process

    async def _spec(self, run: BatchRun) -> ProcessSpec:
        """What a process must be for to run this. Raises RefusedError when no cage holds."""
        task = run.task
        level = await self._level(task)
        program = await self._compiled(run) if task.runtime in _ENGINES else None
        # The seed belongs to the job, and a process may serve many jobs of one submitter's code.
        return ProcessSpec(
            submitter=task.job.submitter,
            code=msgspec.structs.replace(task.code, seed=b""),
            runtime=task.runtime,
            memory_bytes=task.memory_bytes,
            job=b"" if task.trusted else task.job.job,
            trusted=task.trusted,
            level=level,
            program=program,
            fresh=task.fresh,
            fuel_max=task.fuel_max,
        )

    async def _level(self, task: BatchTask) -> str:
        kind = kind_of(task.runtime)
        chosen = self._chosen.get(kind)
        if chosen is None:
            cages = await self._known_cages()
            chosen = self._chosen[kind] = await self._offload.run(cages.choose, kind)
        level, reason = chosen
        if level is None and not task.trusted:
            raise RefusedError(f"no cage holds for units of others: {reason}", reason=Reason.NO_CAGE)
        return level or "bare"

    async def _known_cages(self) -> Cages:
        if self._cages is None:
            self._cages = await self._offload.run(Cages, self._policy, self._folder / "processes", library_folders())
        return self._cages

    async def _compiled(self, run: BatchRun) -> Path | None:
        """The compiled program of a task. A run that is stopped meanwhile does not wait for it."""
        task = run.task
        if task.code.program is None:
            return None
        async with self._programs_lock:
            if self._programs is None and self._open:
                self._programs = await self._start_programs()
        if self._programs is None or not self._open:  # Stopped meanwhile: nothing is begun any more.
            raise TryAgainError("the worker pool is not running", reason=Reason.SHUTDOWN)
        kind = "component" if task.runtime == "python" else "module"
        compiling = asyncio.get_running_loop().create_task(self._programs.compiled(task.code.program, task.code.program_id, kind))
        self._compiling[run] = compiling
        try:
            await asyncio.wait([compiling])
        finally:
            del self._compiling[run]
            compiling.cancel()
        if compiling.cancelled():
            raise TryAgainError("the run was stopped while its program was compiled", reason=Reason.DRAINED)
        try:
            return compiling.result()
        except BadDataError as error:
            # Only what would be the same everywhere is the unit's own: a machine that was too slow must not vote against the others.
            raise _BadProgramError(getattr(error, "outcome", Outcome.RAISED), frames.describe("BadModule", error.message)) from error

    async def _start_programs(self) -> Programs:
        from p2pgrid.runtimes.programs import ProgramCache

        programs = ProgramCache(self._policy.programs or self._folder.parent / "programs", self._launch_compiler, self._offload)
        await programs.start()
        return programs

    async def _launch_compiler(self, spec: ProcessSpec) -> WorkerProcess:
        cages = await self._known_cages()
        level, _ = await self._offload.run(cages.choose, "engine")
        spec = msgspec.structs.replace(spec, level=level or "bare")
        process = await WorkerProcess.start(self._next_folder(), self._policy, self._offload)
        await process.take(spec, cages.order(spec))
        return process

    async def _launch(self, spec: ProcessSpec) -> WorkerProcess:
        """A process for this, made of the spare one when there is one. Raises as ``WorkerProcess.launch``."""
        cages = await self._known_cages()
        process, self._spare = self._spare, None
        if process is not None:
            process.on_exit = None
        if process is None or process.look():
            if process is not None:
                self._end_later(process)
            process = await WorkerProcess.start(self._next_folder(), self._policy, self._offload)
        await process.take(spec, cages.order(spec))
        return process

    def _want_spare(self) -> None:
        """Work was done: more may come, and finds an interpreter that is up."""
        if self._policy.spare_s <= 0 or not self._open:
            return
        if self._spare_timer is not None:
            self._spare_timer.cancel()
        loop = asyncio.get_running_loop()
        self._spare_timer = loop.call_later(self._policy.spare_s, self._end_spare)
        if self._spare is None and not self._spare_starting:
            self._spare_starting = True
            self._own(loop.create_task(self._start_spare()))

    async def _start_spare(self) -> None:
        try:
            process = await WorkerProcess.start(self._next_folder(), self._policy, self._offload)
        except P2PGridError:
            return  # Whoever needs a process is told.
        finally:
            self._spare_starting = False
        if not self._open or self._spare_timer is None:
            await process.end()
            return
        self._spare = process
        process.on_exit = self._end_spare

    def _end_spare(self) -> None:
        if self._spare_timer is not None:
            self._spare_timer.cancel()
            self._spare_timer = None
        process, self._spare = self._spare, None
        if process is not None:
            self._end_later(process)

    def _next_folder(self) -> Path:
        self._launched += 1
        return self._folder / "processes" / str(self._launched)

    def _release(self, process: WorkerProcess) -> None:
        if not self._open or process.look():
            self._end_later(process)
            return
        process.on_exit = lambda: self._drop(process)
        process.hold_still()
        self._idle.append((asyncio.get_running_loop().time(), process))
        while len(self._idle) > self._policy.idle_max:
            self._end_later(self._idle.popleft()[1])
        self._set_idle_timer()

    def _drop(self, process: WorkerProcess) -> None:
        """An idle process ended by itself."""
        for entry in list(self._idle):
            if entry[1] is process:
                self._idle.remove(entry)
                self._end_later(process)
        self._set_idle_timer()

    def _end_later(self, process: WorkerProcess) -> None:
        process.on_exit = None
        self._own(asyncio.get_running_loop().create_task(process.end()))

    def _own(self, task: asyncio.Task[None]) -> None:
        self._endings[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._endings.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            context: dict[str, Any] = {"message": "a worker process could not be started or ended", "exception": error}
            task.get_loop().call_exception_handler(context)

    def _set_idle_timer(self) -> None:
        """One timer for all: it waits for the oldest."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._idle:
            self._idle_timer = asyncio.get_running_loop().call_at(self._idle[0][0] + self._policy.idle_s, self._end_oldest)

    def _end_oldest(self) -> None:
        self._idle_timer = None
        if self._idle:
            self._end_later(self._idle.popleft()[1])
        self._set_idle_timer()
