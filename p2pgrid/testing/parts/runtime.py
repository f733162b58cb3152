"""Units on a simulated machine: their code really runs, their seconds are virtual.

:class:`SimulatedWorkers` stands for the worker processes of one machine (:class:`~p2pgrid.runtimes.pool.WorkerPool`) and keeps
their contract: every unit is reported exactly once and in order, in chunks as a worker flushes them; slots, the queue
for them, time-outs, limits and failures are the product's.

1. A unit takes its own seconds (:class:`UnitTimes`) over the speed of the :class:`Cpu`. Units shorter than a flush
   interval share a chunk. The code itself runs at the end of that time, within one callback.
2. What takes time in a worker beyond that is the start of a process, once for each program and whenever one was lost.
3. Commands are not run: every unit of such a batch is answered as died.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from p2pgrid.errors import P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.batch import split_inputs
from p2pgrid.runtimes.slots import Slots
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, FileOutput, Kind, OnResults, Outcome, PoolPolicy
from p2pgrid.runtimes.worker import frames
from p2pgrid.testing.parts.behaviour import LAZY, NOTHING, Behaviour
from p2pgrid.testing.parts.cpu import Cpu, Meter, UnitTimes
from p2pgrid.testing.parts.inprocess import Log, Results, Room

__all__ = ["Behaviour", "Cpu", "SimulatedWorkers", "UnitTimes"]

START_S = 0.05
"""Seconds, at speed 1, until a fresh process is ready."""
_LOGS_KEPT = 64
OnTask = Callable[[BatchTask], None]
OnTaskChunk = Callable[[BatchTask, BatchChunk], None]


def _unseen(*_: object) -> None:
    """Nobody looks on."""


class SimulatedWorkers:
    """Runs batches on one machine of a simulation. It lives as long as one node; the ``cpu`` is the machine's and stays."""

    def __init__(
        self,
        policy: PoolPolicy,
        cpu: Cpu,
        times: UnitTimes,
        behaviour: Behaviour | None = None,
        *,
        on_start: OnTask = _unseen,
        on_chunk: OnTaskChunk = _unseen,
        folder: Path | None = None,
        died: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        """``on_start`` hears of every batch that gets a slot, ``on_chunk`` of every chunk right before the node does.

        ``folder``: its alone; without one a temporary folder is made, and removed at the end. ``died``: the chance of each
        unit to take its process down, drawn from ``rng``; may be changed, for batches that begin later.
        """
        if died and rng is None:
            raise ValueError("units that die by chance need an rng")
        self.died = died
        self.behaviour = behaviour or Behaviour()
        self.cpu, self.times, self.rng = cpu, times, rng
        self.on_chunk = on_chunk
        self._on_start = on_start
        self.room = Room(folder, policy.file_bytes_max, policy.slots + policy.idle_max)
        self._slots = Slots(policy.slots, policy.waiting_max)
        self._runs: dict[_Run, None] = {}
        self._logs: OrderedDict[bytes, Log] = OrderedDict()
        self._open = False
        self._finished = asyncio.Event()

    async def start(self) -> None:
        """Call before anything else."""
        self._open = True

    def wind_down(self) -> None:
        """As :meth:`p2pgrid.runtimes.pool.WorkerPool.wind_down`."""
        self._open = False
        why = TryAgainError("the node takes no more work", reason=Reason.DRAINED)
        self._slots.refuse(why, lambda task: True)
        for run in list(self._runs):
            run.wind_down(why)

    async def stop(self) -> None:
        """End all runs; takes no virtual time."""
        self._open = False
        why = TryAgainError("the node is stopping", reason=Reason.SHUTDOWN)
        self._slots.refuse(why, lambda task: True)
        for run in list(self._runs):
            run.stop(why)
        await self._ended(self._runs)

    def resume(self) -> None:
        """As :meth:`p2pgrid.runtimes.pool.WorkerPool.resume`."""
        self._open = True

    async def close(self) -> None:
        """As :meth:`stop`; the folders go too."""
        await self.stop()
        self.abandon()

    def abandon(self) -> None:
        """The machine is no more: let go of what is open in this process. Needs no loop; may be called again."""
        self.room.close()

    async def run(self, task: BatchTask, on_results: OnResults) -> None:
        """As :meth:`p2pgrid.runtimes.pool.WorkerPool.run`, with the same errors."""
        run = _Run(self, task, on_results)
        if not self._open:
            raise TryAgainError("the worker pool is not running", reason=Reason.SHUTDOWN)
        await self._slots.take(task)
        self._runs[run] = None
        try:
            if not self._open:
                raise TryAgainError("the worker pool is not running", reason=Reason.SHUTDOWN)
            self._on_start(task)
            await run.run()
        finally:
            self._runs.pop(run, None)
            self._slots.give()
            self._finished.set()

    async def cancel(self, job: bytes) -> None:
        """As :meth:`p2pgrid.runtimes.pool.WorkerPool.cancel`."""
        why = RefusedError("the job was cancelled", reason=Reason.JOB_OVER)
        self._slots.refuse(why, lambda task: task.job.job == job)
        runs = {run: None for run in self._runs if run.task.job.job == job}
        for run in runs:
            run.stop(why)
        await self._ended(runs)

    async def _ended(self, runs: dict[_Run, None]) -> None:
        while any(run in self._runs for run in list(runs)):
            self._finished.clear()
            await self._finished.wait()

    def log(self, job: bytes) -> Log:
        """Where units of a job print to."""
        log = self._logs.setdefault(job, Log())
        self._logs.move_to_end(job)
        if len(self._logs) > _LOGS_KEPT:
            self._logs.popitem(last=False)
        return log

    def log_tail(self, job: bytes) -> str:
        """The end of what the job's units printed; at most 64 Ki characters, empty when nothing is known."""
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


class _Step(NamedTuple):
    """Units that run without a look between them."""

    units: int
    work_s: float
    """At speed 1."""
    limit_s: float
    dies: bool


class _Run:
    """One batch on its way."""

    def __init__(self, workers: SimulatedWorkers, task: BatchTask, on_results: OnResults) -> None:
        self.task = task
        self._workers = workers
        self._on_results = on_results
        self._raws = split_inputs(task.inputs)
        self._position = 0
        self._fates: list[float] = []
        """For each unit the share of its time after which its process dies; 1 when it lives. Empty when all do."""
        self._meter: Meter | None = None
        self._loading = False
        self._stopped: P2PGridError | None = None
        self._winding_down: P2PGridError | None = None

    def stop(self, why: P2PGridError) -> None:
        """``run`` raises ``why`` at once."""
        self._stopped = why
        if self._meter is not None:
            self._meter.stop(why)

    def wind_down(self, why: P2PGridError) -> None:
        """``run`` raises ``why`` when the units that run now have ended, unless they are the last."""
        self._winding_down = why
        if self._loading:
            self.stop(why)

    async def run(self) -> None:
        """Report every unit, or raise what ``stop`` or ``wind_down`` was given."""
        if self.task.kind == Kind.COMMAND or self.task.runtime == "command":
            self._report_all(Outcome.DIED, frames.describe("Died", "commands are not run in a simulation"))
        elif self._workers.behaviour.kind == LAZY:
            await asyncio.sleep(0)
            self._check_stopped()
            self._report_all(Outcome.OK, NOTHING)
        else:
            self._draw_fates()
            while self._position < len(self._raws):
                await self._segment()

    def _draw_fates(self) -> None:
        chance, rng = self._workers.died, self._workers.rng
        if chance > 0 and rng is not None:
            self._fates = [rng.random() if rng.random() < chance else 1.0 for _ in self._raws]

    async def _segment(self) -> None:
        """Run units in one process, to the end or up to where it is lost."""
        workers, task = self._workers, self.task
        log = workers.log(task.job.job)
        if not workers.room.knows(task.job.submitter, task.code):
            self._loading = True
            await self._spend(START_S, math.inf)
            self._loading = False
        program = workers.room.program(task.job.submitter, task.code, log)
        if program.failure is not None:
            self._report_all(Outcome.RAISED, program.failure)
            return
        while self._position < len(self._raws):
            step = self._next_step()
            done, spent_s = await self._spend(step.work_s, step.limit_s, dies=step.dies)
            if not done or step.dies:
                workers.room.forget(task.job.submitter, task.code)
                self._report_lost(done)
                return
            first = task.first + self._position
            raws = self._raws[self._position : self._position + step.units]
            self._report(workers.room.run(program, task, first, raws, log), spent_s)

    def _next_step(self) -> _Step:
        """The units up to the next look: a long one alone, short ones until a flush is due."""
        workers, task = self._workers, self.task
        speed, count, work_s = workers.cpu.speed, 0, 0.0
        timeout_s = task.timeout_s or math.inf
        limit_s = min(frames.FLUSH_S, timeout_s) * max(0.0, speed)
        for position in range(self._position, len(self._raws)):
            unit_s = workers.times.base_s(task.job.job, task.kind, task.first + position)
            fate = self._fates[position] if self._fates else 1.0
            if fate < 1.0 or unit_s > limit_s:
                if count:
                    break
                return _Step(1, unit_s * fate, timeout_s, fate < 1.0)
            count, work_s = count + 1, work_s + unit_s
            if work_s > limit_s:
                break
        return _Step(count, work_s, math.inf, False)

    async def _spend(self, work_s: float, limit_s: float, *, dies: bool = False) -> tuple[bool, float]:
        """Let the time of some work pass: whether it ended within its limit, and the seconds it took."""
        cpu, loop = self._workers.cpu, asyncio.get_running_loop()
        self._check_stopped()
        if self._winding_down is not None:
            raise self._winding_down
        meter = self._meter = cpu.begin(loop, work_s, limit_s)
        spent_s, done = 0.0, False
        try:
            done = await meter.over
            self._check_stopped()
        finally:
            self._meter = None
            spent_s = cpu.end(meter, wasted=dies or not done or self._stopped is not None)
            if not self._loading:
                self._workers.times.spend(self.task.job.job, meter.worked_s)
        return done, spent_s

    def _report(self, results: Results, spent_s: float) -> None:
        """Hand over units that have ended, cut where a worker's buffer would have been full."""
        count, start, size_bytes = len(results.outcomes), 0, 0
        run_us = int(spent_s * 1e6)
        payloads, files = self._told(results)
        for end, payload in enumerate(payloads, 1):
            size_bytes += len(payload)
            if size_bytes >= frames.FLUSH_BYTES or end == count:
                first = self.task.first + self._position
                part = [file for file in files if first <= file.index < first + end - start]
                took_us = run_us * end // count - run_us * start // count
                self._hand_over(BatchChunk(first, results.outcomes[start:end], payloads[start:end], took_us, part))
                start, size_bytes = end, 0

    def _told(self, results: Results) -> tuple[list[msgspec.Raw], list[FileOutput]]:
        """What the machine says the results are. Who lies brings no files."""
        behaviour, task = self._workers.behaviour, self.task
        if not behaviour.lies:
            return results.payloads, results.files
        for file in results.files:
            file.path.unlink()
        first = task.first + self._position
        lies = [
            behaviour.lie(payload, task.job.job, first + offset) if outcome == Outcome.OK else payload
            for offset, (outcome, payload) in enumerate(zip(results.outcomes, results.payloads, strict=True))
        ]
        return lies, []

    def _report_lost(self, in_time: bool) -> None:
        """Report the unit whose process was lost."""
        if in_time:
            payload = frames.describe("Died", "the process that ran the unit was killed by SIGKILL")
            outcome = Outcome.DIED
        else:
            payload = frames.describe("TimedOut", f"the unit ran longer than its time-out of {self.task.timeout_s:g} s")
            outcome = Outcome.TIMED_OUT
        self._hand_over(BatchChunk(self.task.first + self._position, bytes((outcome,)), [msgspec.Raw(payload)], 0))

    def _report_all(self, outcome: Outcome, payload: bytes | msgspec.Raw) -> None:
        """Report all units that are left in the same way."""
        count = len(self._raws) - self._position
        if count:
            raw = msgspec.Raw(payload) if isinstance(payload, bytes) else payload
            self._hand_over(BatchChunk(self.task.first + self._position, bytes((outcome,)) * count, [raw] * count, 0))

    def _hand_over(self, chunk: BatchChunk) -> None:
        self._position += len(chunk.outcomes)
        self._workers.on_chunk(self.task, chunk)
        self._on_results(chunk)

    def _check_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped
