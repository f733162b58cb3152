"""The worker pool: at most ``slots`` batches run at one time, each on one warm process.

A process serves the jobs of one submitter with one code, and nobody else: most of what a small job waits for is an interpreter
to start, and the same script run again finds its process warm. Those without work stay for a while, bounded in number and
time; the one unused for longest goes first. The pool owns every process and every task it starts: ``close`` leaves none.
"""

from __future__ import annotations

import asyncio
import importlib
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.errors import RefusedError, TryAgainError
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload, run_surely
from p2pgrid.runtimes.batch import BatchRun
from p2pgrid.runtimes.link import LogTail
from p2pgrid.runtimes.process import ProcessSpec, WorkerProcess
from p2pgrid.runtimes.slots import Slots
from p2pgrid.runtimes.tasks import BatchTask, OnResults, PoolPolicy
from p2pgrid.runtimes.worker.files import empty_folder

_LOGS_KEPT = 64
_WORKER_MODULES = ("launch", "serve", "units", "files", "failures", "command")


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
        self._open = False
        self._finished = asyncio.Event()

    async def start(self) -> None:
        """Prepare the folder. Call before anything else."""
        await self._offload.run(self._prepare)
        self._open = True

    def _prepare(self) -> None:
        for folder in (self._folder, self._folder / "processes", self._folder / "results"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty_folder(str(self._folder / "processes"))
        empty_folder(str(self._folder / "results"))
        for name in _WORKER_MODULES:
            # Once here, so that the bytecode is cached: worker processes must not write where the code lies.
            importlib.import_module(f"p2pgrid.runtimes.worker.{name}")

    def wind_down(self) -> None:
        """Start no unit any more: what waits raises at once, what runs behind the unit it is at, which is reported. Nothing new is taken.

        They raise TryAgainError (drained).
        """
        self._open = False
        why = TryAgainError("the node takes no more work", reason=Reason.DRAINED)
        self._slots.refuse(why, lambda task: True)
        for run in self._runs:
            run.wind_down(why)

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
            run.stop(why)
        while self._idle:
            self._end_later(self._idle.popleft()[1])
        self._set_idle_timer()
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
        # The seed belongs to the job, and a process may serve many jobs of one submitter's code.
        spec = ProcessSpec(task.job.submitter, msgspec.structs.replace(task.code, seed=b""), task.runtime, task.memory_bytes)
        run = BatchRun(
            task,
            on_results,
            acquire=lambda: self._acquire(spec, task.job.job),
            release=self._release,
            load_s=self._policy.start_s,
            results_folder=self._folder / "results",
        )
        if not self._open:
            raise TryAgainError("the worker pool is not running", reason=Reason.SHUTDOWN)
        await self._slots.take(task)
        self._runs[run] = None
        try:
            if not self._open:  # It was closed at the moment the slot came.
                raise TryAgainError("the worker pool is not running", reason=Reason.SHUTDOWN)
            await run.run()
        finally:
            self._runs.pop(run, None)
            self._slots.give()
            self._finished.set()

    async def cancel(self, job: bytes) -> None:
        """Stop everything of a job: its waiting and running batches raise RefusedError, its processes are gone when this returns."""
        why = RefusedError("the job was cancelled", reason=Reason.JOB_OVER)
        self._slots.refuse(why, lambda task: task.job.job == job)
        runs = [run for run in self._runs if run.task.job.job == job]
        for run in runs:
            run.stop(why)
        endings = list(self._endings)
        while any(run in self._runs for run in runs):
            self._finished.clear()
            await self._finished.wait()
        await asyncio.gather(*endings, return_exceptions=True)

    def log_tail(self, job: bytes) -> str:
        """The end of what the job's latest process printed; at most 64 KiB, empty when nothing is known."""
        log = self._logs.get(job)
        return log.text() if log is not None else ""

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

    async def _acquire(self, spec: ProcessSpec, job: bytes) -> WorkerProcess:
        """The warm process that was used last, or a new one."""
        for position in range(len(self._idle) - 1, -1, -1):
            process = self._idle[position][1]
            if process.spec == spec:
                del self._idle[position]
                self._set_idle_timer()
                process.on_exit = None
                process.reused = True
                return process
        process = await WorkerProcess.launch(spec, self._next_folder(), self._policy, self._offload)
        self._logs[job] = process.log
        self._logs.move_to_end(job)
        if len(self._logs) > _LOGS_KEPT:
            self._logs.popitem(last=False)
        return process

    def _next_folder(self) -> Path:
        self._launched += 1
        return self._folder / "processes" / str(self._launched)

    def _release(self, process: WorkerProcess) -> None:
        if not self._open or process.look():
            self._end_later(process)
            return
        process.on_exit = lambda: self._drop(process)
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
