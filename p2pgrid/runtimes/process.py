"""One worker process, as the node sees it: its start, its end, and the pipes between.

A process is started by Popen of a launcher that confines itself; nothing of ours runs between fork and exec. The end is
always the same: kill the group while the leader cannot have been reaped yet (so that its number is still its own), kill what else
lives in its session, reap, remove its folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.errors import ConfigError, TryAgainError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload, run_surely
from p2pgrid.runtimes.furnishing import Given, hand_over, make_folder
from p2pgrid.runtimes.link import FrameLink, LogTail
from p2pgrid.runtimes.tasks import Code, PoolPolicy
from p2pgrid.runtimes.watchdog import Watchdog, tree_of
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.files import empty_folder

_LAUNCHER = Path(__file__).with_name("worker") / "launch.py"
_COMMAND_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAGE_FAILED = 77
"""The exit status of a worker whose cage does not stand; it says why on its log."""
_COMPILED_BYTES_MAX = 512 << 20
_HOLD_AFTER_S = 0.05
_SWEEPS_MAX = 20
"""How often to look for what a bomb makes while it is ended."""
_TREE_MAX = 1000
"""Processes of a command that are ended one by one."""
LOOK_S = 0.25
"""How often to look for the end of a process where the kernel cannot tell it as an event."""
_TERMINATE_S = 0.5
"""What a command runner gets to end its commands before it is killed with them."""


class ProcessSpec(msgspec.Struct, frozen=True):
    """What a process is for. Only batches with an equal spec share one.

    Jobs of others have a process each; the owner's own share it by code, whatever the job.
    """

    submitter: bytes
    code: Code
    runtime: str
    memory_bytes: int
    job: bytes = b""
    """The job; empty where jobs of the submitter share the process."""
    trusted: bool = False
    """The owner's own code: it is not held still while it has no work."""
    level: str = "bare"
    """Of the cage: ``namespaces``, ``landlock`` or ``bare``."""
    program: Path | None = None
    """``wasm`` and ``python``: the compiled module."""
    fresh: bool = False
    fuel_max: int = 0


class WorkerProcess:
    """A running worker. ``launch`` or ``start`` makes one; ``end`` must be awaited for each."""

    def __init__(self, folder: Path, policy: PoolPolicy, offload: Offload) -> None:
        self.spec: ProcessSpec | None = None
        """What it was given to do; None while it is a spare."""
        self.folder = folder
        self.link = FrameLink()
        self.log = LogTail()
        self.loaded = False
        self.reused = False
        self.sequence = 0
        self.watchdog: Watchdog | None = None
        """Made by the first batch that runs here, and kept for the next."""
        self.on_exit: Callable[[], None] | None = None
        self._policy = policy
        self._offload = offload
        self._given: Given | None = None
        self._held = False
        self._hold_timer: asyncio.TimerHandle | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_number = -1
        self._exited = asyncio.Event()
        self._progress_number = -1

    @classmethod
    async def launch(
        cls, spec: ProcessSpec, folder: Path, policy: PoolPolicy, offload: Offload, cage: frames.Cage | None = None
    ) -> WorkerProcess:
        """Start a process and send it its job.

        Raises TryAgainError when the system has no room, ConfigError when it cannot work at all.
        """
        self = await cls.start(folder, policy, offload)
        await self.take(spec, cage or frames.Cage())
        return self

    @classmethod
    async def start(cls, folder: Path, policy: PoolPolicy, offload: Offload) -> WorkerProcess:
        """Start a process that waits for what it is to do. Raises as ``launch``."""
        self = cls(folder, policy, offload)
        await self._or_ended(self._start())
        return self

    async def take(self, spec: ProcessSpec, cage: frames.Cage) -> None:
        """Send it its job, and how it is to confine itself. It is ended when that fails. Raises as ``launch``."""
        self.spec = spec
        await self._or_ended(self._furnish(spec, cage))

    async def _or_ended(self, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except BaseException as error:
            await self.end()
            if isinstance(error, FileNotFoundError):
                raise ConfigError(f"a worker cannot be started: {error}", hint="is the interpreter still there?") from error
            if isinstance(error, OSError):
                raise TryAgainError(f"a worker cannot be started: {error}", reason=Reason.BUSY) from error
            raise

    async def _furnish(self, spec: ProcessSpec, cage: frames.Cage) -> None:
        if cage.uid:
            hand_over(self.folder, cage.uid)
        self._given = Given(self.folder, for_others=bool(cage.uid))
        program = ""
        if spec.runtime == "compile" and spec.code.program is not None:
            program = await self._offload.run(self._given.program, spec.code.program, "program.wasm")
        elif spec.program is not None:
            program = await self._offload.run(self._given.program, spec.program, "program.cwasm")
        self.link.send(self._load(spec, cage, program))

    async def place(self, files: Mapping[BlobId, Path]) -> dict[bytes, str]:
        """Put the input files of a batch where the process can read them, and take away those of the last. Gives their places.

        Raises TryAgainError when the disk does not take them.
        """
        given = self._given
        if given is None or (not files and given.empty):
            return {}
        try:
            return await self._offload.run(given.replace, files)
        except OSError as error:
            raise TryAgainError(f"the input files cannot be placed: {error}", reason=Reason.DISK_FAILED) from error

    async def _start(self) -> None:
        make_folder(self.folder)
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        log_reader, log_writer = os.pipe()
        try:
            self._progress_number = _shared_file(self.folder)
            self._process = self._spawn(theirs.fileno(), log_writer)
        except BaseException:
            ours.close()
            os.close(log_reader)
            raise
        finally:
            theirs.close()
            os.close(log_writer)
        ours.setblocking(False)
        await loop.connect_read_pipe(lambda: self.log, os.fdopen(log_reader, "rb", buffering=0))
        await loop.create_unix_connection(lambda: self.link, sock=ours)
        self._watch_exit(loop)

    def _spawn(self, channel: int, log: int) -> subprocess.Popen[bytes]:
        scratch = str(self.folder / "scratch")
        numbers = (channel, self._progress_number)
        return subprocess.Popen(
            [
                self._policy.python or sys.executable,
                "-P",
                "-s",
                "-S",
                str(_LAUNCHER),
                *(str(number) for number in numbers),
                str(os.getpid()),
                *library_folders(),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,  # What units print goes where their warnings go; the protocol has a file of its own.
            stderr=log,
            pass_fds=numbers,
            env=_environment(scratch),
            cwd=scratch,
            start_new_session=True,
        )

    def _load(self, spec: ProcessSpec, cage: frames.Cage, program: str) -> frames.Load:
        policy = self._policy
        path = [*spec.code.path, *policy.path]
        return frames.Load(
            folder=os.path.realpath(self.folder),
            file_bytes_max=max(policy.file_bytes_max, _COMPILED_BYTES_MAX) if spec.runtime == "compile" else policy.file_bytes_max,
            open_files_max=policy.open_files_max,
            # What a guest may have is the job's to say, and no default of ours: it decides where its memory ends, and so its result.
            memory_bytes=spec.memory_bytes or (0 if spec.runtime in ("wasm", "python") else policy.memory_bytes),
            nice=policy.nice,
            runtime=spec.runtime,
            source=spec.code.source,
            file_name=spec.code.file_name,
            entry=spec.code.entry,
            path=path if cage.level == "bare" else [os.path.realpath(part) for part in path],
            cage=cage,
            program=program,
            fresh=spec.fresh,
            fuel_max=spec.fuel_max,
        )

    def _watch_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._process is not None
        try:
            self._exit_number = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):
            return
        loop.add_reader(self._exit_number, self._note_exit)

    def _note_exit(self) -> None:
        if self._exited.is_set():
            return
        self._exited.set()
        if self._exit_number >= 0:
            asyncio.get_running_loop().remove_reader(self._exit_number)
        # Its children may hold the channel open: end them, and the channel tells its end after the last frame.
        self.kill()
        self.link.wake()
        if self.on_exit is not None:
            self.on_exit()

    def look(self) -> bool:
        """Whether the process has ended; asks the system where there are no events. It is not reaped by this."""
        process = self._process
        if self._exited.is_set() or self._exit_number >= 0 or process is None or process.returncode is not None:
            return self._exited.is_set()
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self._note_exit()
        return self._exited.is_set()

    @property
    def process_id(self) -> int:
        """Of what was started; 0 when it is gone. All that runs descends from it."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    @property
    def cage_failed(self) -> bool:
        """Whether it ended because its cage did not stand. Ask after ``end``."""
        return self._process is not None and self._process.returncode == CAGE_FAILED

    @property
    def look_s(self) -> float:
        """How long one may wait before ``look`` is due, in seconds."""
        return LOOK_S if self._exit_number < 0 else 3600.0

    def progress(self) -> tuple[int, float]:
        """(index of the running unit, when it started) as the worker claims. Read, not mapped: it may have been truncated."""
        raw = os.pread(self._progress_number, frames.PROGRESS.size, 0)
        if len(raw) < frames.PROGRESS.size:
            return frames.IDLE, 0.0
        index, started = frames.PROGRESS.unpack(raw)
        return index, started

    def reset_progress(self) -> None:
        """Before a batch: no unit runs yet."""
        os.pwrite(self._progress_number, frames.PROGRESS.pack(frames.IDLE, 0.0), 0)

    def ask_to_stop(self) -> None:
        """Have it start no further unit. It cannot be taken back: the process is good for nothing else."""
        os.pwrite(self._progress_number, b"\1", frames.STOP_AT)

    def kill(self) -> None:
        """SIGKILL to the group and to all else in its session. Harmless when it is gone."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        if self.spec is not None and self.spec.runtime == "command":
            _kill_below(process.pid)
        _send(process.pid, signal.SIGKILL)
        for process_id in _session_members(process.pid):
            _send(process_id, signal.SIGKILL, group=False)

    def hold_still(self) -> None:
        """Let nothing of it run from soon on until ``go_on``: it has no work, and its code is somebody else's."""
        if self._may_be_held:
            # Not at once: the next batch of the same job usually follows, and stopping costs as much as a short batch.
            self._hold_timer = asyncio.get_running_loop().call_later(_HOLD_AFTER_S, self._hold)

    def _hold(self) -> None:
        self._hold_timer = None
        self._held = True
        _send(self.process_id, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        if self._held:
            self._held = False
            _send(self.process_id, signal.SIGCONT)

    @property
    def _may_be_held(self) -> bool:
        # A runner of commands has ended them all, and could not be asked to end while it stands still.
        spec = self.spec
        return spec is not None and not spec.trusted and spec.level != "bare" and spec.runtime != "command" and self.process_id > 0

    def exit_text(self) -> str:
        """How the process ended, for people. Call after ``end``."""
        status = self._process.returncode if self._process is not None else None
        if status is None:
            return "could not be ended"
        if status >= 0:
            return f"ended with exit status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"

    async def end(self) -> None:
        """Kill, reap, and remove everything of it; within ``kill_s`` seconds. May be called again."""
        self.go_on()
        if self._process is not None and self._process.returncode is None:
            if self.spec is not None and self.spec.runtime == "command" and not self.look():
                _send(self._process.pid, signal.SIGTERM, group=False)
                await self._wait_exit(min(_TERMINATE_S, self._policy.kill_s / 2))
            self.kill()
            await self._wait_exit(self._policy.kill_s / 2)
            self._process.poll()
        self.link.abort()
        self.log.stop()
        loop = asyncio.get_running_loop()
        if self._exit_number >= 0:
            loop.remove_reader(self._exit_number)
            os.close(self._exit_number)
            self._exit_number = -1
        if self._progress_number >= 0:
            os.close(self._progress_number)
            self._progress_number = -1
        # Closing takes a turn of the loop; nothing else can delay it.
        await self.link.closed.wait()
        await self.log.closed.wait()
        await run_surely(self._offload, _remove, self.folder)

    async def _wait_exit(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while not self.look():
            left_s = deadline - loop.time()
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(min(left_s, 0.02 if self._exit_number < 0 else left_s)):
                    await self._exited.wait()
            except TimeoutError:
                continue


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of the node's own environment: it may hold secrets, and would make results differ from machine to machine."""
    return {
        "PATH": _COMMAND_PATH,
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def library_folders() -> list[str]:
    """Where the worker finds msgspec and blake3, and the engine if it is there."""
    import blake3

    files = [msgspec.__file__, blake3.__file__]
    engine = importlib.util.find_spec("wasmtime")
    if engine is not None and engine.origin is not None:
        files.append(engine.origin)
    return list(dict.fromkeys(str(Path(file).resolve().parent.parent) for file in files if file))


def _shared_file(folder: Path) -> int:
    """An open file without a name, for the progress of the worker."""
    if sys.platform == "linux":
        number = os.memfd_create("progress", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        number, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
    os.pwrite(number, frames.PROGRESS.pack(frames.IDLE, 0.0) + bytes(1), 0)
    if sys.platform == "linux":
        # Its pages count as nobody's memory: the worker must not make it grow.
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return number


def _send(process_id: int, number: int, *, group: bool = True) -> None:
    if process_id <= 0:
        return
    try:
        if group:
            os.killpg(process_id, number)
        else:
            os.kill(process_id, number)
    except OSError:
        return


def _kill_below(process_id: int) -> None:
    """SIGKILL to all that descends from a process, as long as that one lives and so adopts what loses its parent."""
    for _ in range(_SWEEPS_MAX):
        below = [found for found in tree_of(process_id, _TREE_MAX) if found != process_id]
        for found in below:
            _send(found, signal.SIGKILL, group=False)
        if not below:
            return


def _session_members(session: int) -> list[int]:
    """Processes of a session, by the process table (Linux; elsewhere the group must do)."""
    if sys.platform != "linux":
        return []
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if len(fields) > 3 and int(fields[3]) == session:
            found.append(int(entry))
    return found


def _remove(folder: Path) -> None:
    empty_folder(str(folder))
    try:
        folder.rmdir()
    except OSError:
        return
