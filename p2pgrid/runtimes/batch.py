"""Running one batch on worker processes, whatever they do.

1. Every unit of the batch is reported exactly once, in order.
2. Nothing a worker says is believed beyond its own units: frames must continue where the last one ended, and fit the caps.
3. A process that dies, hangs, breaks the protocol or takes more than it may costs the unit it was running; units that had ended
   but were not reported are run again (at most a flush interval's work), those after it run in a fresh process.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from p2pgrid.errors import BadDataError, MalformedError, P2PGridError, RefusedError
from p2pgrid.model.ids import DIGEST_BYTES, BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import FUEL_BYTES
from p2pgrid.offload import Offload
from p2pgrid.runtimes.deadline import KEEPS_DEADLINE, Deadline, Watch
from p2pgrid.runtimes.process import WorkerProcess
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, FileOutput, Kind, OnResults, Outcome, PoolPolicy
from p2pgrid.runtimes.watchdog import Bounds, Watchdog
from p2pgrid.runtimes.worker import frames

_LOOK_WAIT_S = 0.1
"""How long to wait for a look before deadlines are seen to again."""
_LAST_LOOK_S = 1.0
"""The same when the batch is over."""
_PAYLOAD_SLACK_BYTES = 64 << 10
"""What an error, or the frame around a command's output, may take beside the result itself."""
_DIED_LOG_CHARS = 2048

_UNIT_OUTCOMES = bytes((Outcome.OK, Outcome.RAISED, Outcome.TOO_LARGE, Outcome.UNENCODABLE))
"""What a process may say of a unit. That one died is for the node to say."""
_KEEPER_OUTCOMES = _UNIT_OUTCOMES + bytes((Outcome.TIMED_OUT,))
"""The same where the process keeps the time."""
_COUNTS_FUEL = frozenset({"wasm", "python"})

_replies = msgspec.msgpack.Decoder(frames.Reply)
_raw_list = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Verdict(NamedTuple):
    """How a unit ended that could not say so itself."""

    outcome: Outcome
    payload: msgspec.Raw


class BatchRun:
    """The run of one batch. ``acquire`` gives a process for it; the run gives it back to ``release`` or ends it."""

    def __init__(
        self,
        task: BatchTask,
        on_results: OnResults,
        *,
        acquire: Callable[[], Awaitable[WorkerProcess]],
        release: Callable[[WorkerProcess], None],
        load_s: float,
        results_folder: Path,
        policy: PoolPolicy,
        offload: Offload,
    ) -> None:
        self._task = task
        self._on_results = on_results
        self._acquire = acquire
        self._release = release
        self._load_s = load_s
        self._results_folder = results_folder
        self._policy = policy
        self._offload = offload
        self._raws = split_inputs(task.inputs)
        self._position = 0
        self._frame_bytes = 0
        self._blamed: dict[int, Verdict] = {}
        self._process: WorkerProcess | None = None
        self._has_units = False
        """Whether the process has been sent units."""
        self._stopped: P2PGridError | None = None
        self._winding_down: P2PGridError | None = None

    @property
    def task(self) -> BatchTask:
        """What is run."""
        return self._task

    def stop(self, why: P2PGridError) -> None:
        """End the run at once: ``run`` ends its process and raises ``why``."""
        self._stopped = why
        if self._process is not None:
            self._process.link.wake()

    def wind_down(self, why: P2PGridError) -> None:
        """Start no further unit: the one that runs ends and is reported, then ``run`` raises ``why``, unless it was the last."""
        self._winding_down = why
        if self._process is not None and self._has_units:
            self._process.ask_to_stop()
        else:
            self.stop(why)

    async def run(self) -> None:
        """Report every unit. Raises what ``stop`` or ``wind_down`` was given, or what stands in the way of starting any process."""
        while self._position < len(self._raws):
            verdict = self._blamed.pop(self._position, None)
            if verdict is not None:
                self._report(1, verdict)
                continue
            self._check_stopped()
            if self._winding_down is not None:
                raise self._winding_down
            end = min((place for place in self._blamed if place > self._position), default=len(self._raws))
            await self._segment(end)

    async def _segment(self, end: int) -> None:
        """Run the units up to ``end`` on one process, or up to where it fails."""
        process = self._process = await self._acquire()
        whole = False
        try:
            self._check_stopped()
            if not process.loaded and not await self._load(process):
                return
            trouble = await self._converse(process, end)
            self._check_stopped()
            if trouble is None:
                whole = True
                return
            # A process that died while it waited for us is nobody's fault.
            if not (process.reused and trouble.outcome == Outcome.DIED and process.progress()[0] == frames.IDLE):
                culprit = self._culprit(process, end)  # Asked before the process is ended.
                self._blamed.setdefault(culprit, await self._told(process, trouble))
        finally:
            self._process, self._has_units = None, False
            if whole:
                self._release(process)
            else:
                await process.end()

    async def _load(self, process: WorkerProcess) -> bool:
        """Wait until the job's code is loaded. False, with all remaining units reported, when that fails."""
        process.link.frame_bytes_max = frames.FRAME_SLACK_BYTES
        deadline = asyncio.get_running_loop().time() + self._load_s
        failure: _Trouble | msgspec.Raw | None
        try:
            reply = await self._next(process, deadline)
            if isinstance(reply, frames.Ready):
                process.loaded = True
                return True
            failure = reply.error if isinstance(reply, frames.LoadFailed) else _Trouble(Outcome.DIED, "answered out of turn while loading")
            if isinstance(failure, msgspec.Raw) and len(failure) > _PAYLOAD_SLACK_BYTES:
                failure = _Trouble(Outcome.DIED, "sent an error that is too long")
        except _Late:
            failure = _Trouble(Outcome.TIMED_OUT, f"did not load the job's code within {self._load_s:g} s")
        except _Gone as error:
            failure = _Trouble(Outcome.DIED, str(error))
        self._check_stopped()
        if isinstance(failure, msgspec.Raw):
            verdict = Verdict(Outcome.RAISED, failure)
        else:
            verdict = await self._told(process, failure)
            if process.cage_failed:
                why = process.log.text().strip()[-_DIED_LOG_CHARS:] or "the cage does not stand"
                raise RefusedError(f"no unit of others runs without a cage: {why}", reason=Reason.NO_CAGE)
        self._blamed.clear()
        self._report(len(self._raws) - self._position, verdict)
        return False

    async def _converse(self, process: WorkerProcess, end: int) -> _Trouble | None:
        """Send the units, report what comes back. None when all came, else what went wrong."""
        task = self._task
        process.link.frame_bytes_max = task.result_bytes_max + frames.FRAME_SLACK_BYTES
        process.sequence += 1
        process.reset_progress()
        loop = asyncio.get_running_loop()
        files = await process.place(task.files)
        self._check_stopped()
        watchdog = self._watchdog(process)
        process.link.send(self._run_frame(process.sequence, end, files))
        self._has_units = True
        watch = Watch(Deadline(task, end + task.first, loop.time()), watchdog, loop.time())
        try:
            while self._position < end:
                reply = await self._next_watched(process, watch)
                if self._winding_down is not None and isinstance(reply, frames.Stopped) and reply.sequence == process.sequence:
                    raise self._winding_down
                if not isinstance(reply, frames.Done):
                    return _Trouble(Outcome.DIED, "broke its protocol: it answered out of turn")
                chunk = self._checked(process, reply, end, watch.deadline)
                self._position += len(chunk.outcomes)
                watch.deadline.reported(task.first + self._position)
                self._on_results(chunk)
            if watch.looking is not None:
                await self._look(watch, _LAST_LOOK_S)
        except _Late:
            return _Trouble(Outcome.TIMED_OUT, f"the unit ran longer than its time-out of {task.timeout_s:g} s")
        except (_Gone, MalformedError) as error:
            return _Trouble(Outcome.DIED, str(error))
        finally:
            await watch.end()
        watchdog.ran(loop.time() - watch.seen)
        return None

    def _watchdog(self, process: WorkerProcess) -> Watchdog:
        """It stays with the process, so that many short batches are seen like a long one."""
        if process.watchdog is None:
            process.watchdog = Watchdog(process.folder, process.process_id, Bounds.of(self._task, self._policy))
        return process.watchdog

    def _run_frame(self, sequence: int, end: int, files: dict[bytes, str]) -> frames.Run:
        task = self._task
        whole = self._position == 0 and end == len(self._raws) and isinstance(task.inputs, bytes)
        part = self._raws[self._position : end]
        inputs = task.inputs if whole else frames.array_header(len(part)) + b"".join(map(bytes, part))
        return frames.Run(
            sequence=sequence,
            kind=task.kind,
            first=task.first + self._position,
            result_bytes_max=task.result_bytes_max,
            timeout_s=task.timeout_s,
            seed=task.code.seed,
            files=files,
            inputs=msgspec.Raw(inputs),  # type: ignore[arg-type]
        )

    async def _next(self, process: WorkerProcess, deadline: float) -> frames.Reply:
        """The next reply before ``deadline`` (loop time). Raises _Late or _Gone."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                body = process.link.take()
                if body is not None:
                    self._frame_bytes = len(body)
                    reply: frames.Reply = _replies.decode(body)
                    return reply
            except EOFError:
                raise _Gone("ended") from None
            except (MalformedError, msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise _Gone(f"broke its protocol: {error}") from error
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise _Late
            await process.link.wait(min(left_s, process.look_s))
            self._check_stopped()
            process.look()

    async def _next_watched(self, process: WorkerProcess, watch: Watch) -> frames.Reply:
        """The next reply, while the running unit keeps its deadline and the process its bounds. Raises _Late or _Gone."""
        loop = asyncio.get_running_loop()
        while True:
            reply: frames.Reply | None = None
            try:
                reply = await self._next(process, min(loop.time() + watch.deadline.look_s, watch.look_at))
            except _Late:
                # Frames that wait go first: the unit may have ended in time.
                if not process.link.waiting and watch.deadline.is_late(process, loop.time()):
                    raise
            if loop.time() >= watch.look_at:
                await self._look(watch)
            if reply is not None:
                return reply

    async def _look(self, watch: Watch, patience_s: float = _LOOK_WAIT_S) -> None:
        """Have the process looked at, or see what came of the look that is under way. Raises _Gone when it has too much of something."""
        loop = asyncio.get_running_loop()
        if watch.looking is None:
            watch.began = loop.time()
            watch.looking = loop.create_task(self._offload.run(watch.watchdog.look))
        # Not for long: the unit has a deadline, and the run may be stopped.
        await asyncio.wait({watch.looking}, timeout=patience_s)
        self._check_stopped()
        found = watch.found(loop.time())
        if found:
            raise _Gone(found)

    def _checked(self, process: WorkerProcess, done: frames.Done, end: int, deadline: Deadline) -> BatchChunk:
        """The chunk, if it is what an honest worker could have sent. Raises MalformedError."""
        task, count = self._task, len(done.outcomes)
        if done.sequence != process.sequence or done.first != task.first + self._position:
            raise MalformedError("broke its protocol: results of other units")
        if not 0 < count <= end - self._position or count != len(done.payloads):
            raise MalformedError("broke its protocol: a wrong number of results")
        allowed = _KEEPER_OUTCOMES if task.runtime in KEEPS_DEADLINE else _UNIT_OUTCOMES
        if done.outcomes.translate(None, allowed):
            raise MalformedError("broke its protocol: an outcome it cannot know")
        if done.fuel and (task.runtime not in _COUNTS_FUEL or len(done.fuel) != FUEL_BYTES * count):
            raise MalformedError("broke its protocol: fuel of no unit")
        if self._frame_bytes > task.result_bytes_max:  # Else none of its parts can be over the limit.
            for outcome, payload in zip(done.outcomes, done.payloads, strict=True):
                slack = 0 if outcome == Outcome.OK and task.kind != Kind.COMMAND else _PAYLOAD_SLACK_BYTES
                if len(payload) > task.result_bytes_max + slack:
                    raise MalformedError("broke its protocol: a result over the limit")
        run_us = max(0, min(done.run_us, deadline.wall_us(asyncio.get_running_loop().time())))
        return BatchChunk(done.first, done.outcomes, done.payloads, run_us, self._taken_files(process, done), done.fuel)

    def _taken_files(self, process: WorkerProcess, done: frames.Done) -> list[FileOutput]:
        """Move the files that came with a frame out of the worker's folder. Raises MalformedError for what is no file."""
        taken: list[FileOutput] = []
        try:
            for index, blob, size_bytes, name in done.files:
                offset = index - done.first
                if not 0 <= offset < len(done.outcomes) or done.outcomes[offset] != Outcome.OK or not (name.isascii() and name.isdigit()):
                    raise MalformedError("broke its protocol: a file of no unit")
                target = self._results_folder / f"{process.folder.name}-{name}"
                os.rename(process.folder / "outbox" / name, target)
                taken.append(FileOutput(index, BlobId(blob), size_bytes, target))
                state = os.lstat(target)  # Not before: what has left the worker's folders it cannot replace any more.
                if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1 or state.st_size != size_bytes or len(blob) != DIGEST_BYTES:
                    raise MalformedError("broke its protocol: a returned file is not what it was said to be")
                if size_bytes > self._policy.file_bytes_max:
                    raise MalformedError("broke its protocol: a returned file is over the limit")
                os.chmod(target, 0o600)  # Before it changes hands: a file of ours that runs as its owner would be a way out.
                if state.st_uid != os.geteuid():
                    os.chown(target, os.geteuid(), os.getegid(), follow_symlinks=False)
        except (OSError, ValueError, MalformedError) as error:
            for file in taken:
                _give_back(file.path, process.folder)
            raise error if isinstance(error, MalformedError) else MalformedError(f"broke its protocol: {error}") from error
        return taken

    def _culprit(self, process: WorkerProcess, end: int) -> int:
        """The position of the unit to blame: the one that the worker said is running, if that can be true."""
        running = process.progress()[0] - self._task.first
        return running if self._position <= running < end else self._position

    async def _told(self, process: WorkerProcess, trouble: _Trouble) -> Verdict:
        """End the process and put what happened into words."""
        await process.end()
        if trouble.outcome == Outcome.TIMED_OUT:
            payload = frames.describe("TimedOut", trouble.what)
        else:
            what = trouble.what if trouble.what != "ended" else process.exit_text()
            payload = frames.describe("Died", f"the process that ran the unit {what}", process.log.text()[-_DIED_LOG_CHARS:])
        return Verdict(trouble.outcome, msgspec.Raw(payload))

    def fail_rest(self, outcome: Outcome, payload: bytes) -> None:
        """Report all units that are left as ended in the same way: there is nothing to run them with."""
        self._blamed.clear()
        if self._position < len(self._raws):
            self._report(len(self._raws) - self._position, Verdict(outcome, msgspec.Raw(payload)))

    def _report(self, count: int, verdict: Verdict) -> None:
        """Report ``count`` units that ended in the same way."""
        first = self._task.first + self._position
        self._position += count
        self._on_results(BatchChunk(first, bytes((verdict.outcome,)) * count, [verdict.payload] * count, 0))

    def _check_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped


class _Trouble(NamedTuple):
    """What went wrong with a process, and how its unit is to be counted."""

    outcome: Outcome
    what: str


class _Late(Exception):
    """A deadline passed."""


class _Gone(Exception):
    """The process ended, or can no longer be talked to."""


def split_inputs(inputs: bytes | list[msgspec.Raw]) -> list[msgspec.Raw]:
    """The encoded input of each unit. Raises BadDataError for bytes that are no array."""
    if isinstance(inputs, list):
        return inputs
    try:
        return _raw_list.decode(inputs)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadDataError(f"the inputs of a batch are not an array of values: {error}") from error


def _give_back(path: Path, folder: Path) -> None:
    """Have a refused file removed with the folder of its process: it may be a folder itself, with whatever inside."""
    try:
        os.rename(path, folder / f"refused-{path.name}")
    except OSError:
        return
