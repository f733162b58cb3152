"""Running commands: each unit starts one program in a fresh folder, captures what it prints, and ends all it started.

No shell is involved. Each command has its own process group; this process adopts whatever a command leaves behind, and ends it before
the unit is reported. The wall deadline is kept here, so that the commands that follow find their runner; the node keeps the same
deadline some time later, and counts what memory and how many processes there are. Limits and cage are inherited by the commands.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from mmap import mmap
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from ...errors import BadDataError, MalformedError
from ...model.values import FileRef, ValueDecoder
from . import frames
from .descendants import Descendants
from .files import CHUNK_BYTES, Folders, empty_folder

if TYPE_CHECKING:
    from .serve import Channel

STDERR_BYTES_MAX = 4096
_PIPE_BYTES = 1 << 16
_DRAIN_S = 1.0
"""How long to wait for the end of the output once everything that could write it was ended."""
_TICK_S = 0.02
"""How often to look for the command's end where the kernel has no better way to tell."""
_descendants: Descendants | None = None


def prepare() -> None:
    """Called before the process is confined."""
    global _descendants  # noqa: PLW0603 (one runner in a process)
    _descendants = Descendants()


class CommandInput(msgspec.Struct, array_like=True, frozen=True):
    """The input of a command unit."""

    argv: list[str]
    stdin: bytes | None = None
    files: list[tuple[FileRef, str]] = []
    """Files, and where the command finds them: relative to its folder."""


class CommandRunner:
    """Runs batches of commands."""

    def __init__(self, load: frames.Load, folders: Folders, progress: mmap, channel: Channel) -> None:
        self._scratch = folders.scratch
        self._progress = progress
        self._channel = channel
        self._decoder = ValueDecoder()
        self._descendants = _descendants or Descendants()
        self._descendants.enter(load.cage)
        # Inside of a cage there is no other place to write to.
        self._environment = {**os.environ, "HOME": self._scratch, "TMPDIR": self._scratch}
        signal.signal(signal.SIGTERM, self._on_terminate)

    def run(self, run: frames.Run) -> None:
        """Run the commands of one frame; each is reported when it ends, since a command is never short."""
        for position, raw in enumerate(msgspec.msgpack.decode(run.inputs, type=list[msgspec.Raw])):
            if self._progress[frames.STOP_AT]:
                self._channel.write(frames.Stopped(run.sequence))
                break
            index = run.first + position
            started = time.monotonic()
            frames.PROGRESS.pack_into(self._progress, 0, index, started)
            outcome, payload = self._unit(raw, run)
            run_us = int((time.monotonic() - started) * 1e6)
            self._channel.write([frames.DONE_TAG, run.sequence, index, bytes((outcome,)), [msgspec.Raw(payload)], run_us, []])
        frames.PROGRESS.pack_into(self._progress, 0, frames.IDLE, 0.0)

    def _unit(self, raw: msgspec.Raw, run: frames.Run) -> tuple[int, bytes]:
        try:
            wanted = self._parse(raw)
            self._place_files(wanted, run.files)
            return self._command(wanted, run)
        except (BadDataError, MalformedError) as error:
            return frames.RAISED, frames.describe(type(error).__name__, error.message)
        except OSError as error:
            return frames.RAISED, frames.describe("OSError", f"the command could not be prepared: {error}")
        finally:
            self._descendants.end()
            empty_folder(self._scratch)

    def _parse(self, raw: msgspec.Raw) -> CommandInput:
        value: Any = self._decoder.decode(raw)
        try:
            wanted = msgspec.convert(value, CommandInput, builtin_types=(bytes,))
        except msgspec.ValidationError as error:
            raise BadDataError(f"the input is not a command: {error}") from error
        if not wanted.argv or any("\0" in argument for argument in wanted.argv):
            raise BadDataError("the command is empty, or has a zero byte in it")
        return wanted

    def _place_files(self, wanted: CommandInput, files: dict[bytes, str]) -> None:
        for reference, relative in wanted.files:
            parts = relative.split("/")
            if "\\" in relative or "\0" in relative or any(part in ("", ".", "..") for part in parts):
                raise BadDataError(f"the file place {relative[:200]!r} is not a plain relative path")
            source = files.get(reference.blob)
            if source is None:
                raise BadDataError(f"the file {reference.name} was not brought along")
            target = os.path.join(self._scratch, *parts)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _copy(source, target)

    def _command(self, wanted: CommandInput, run: frames.Run) -> tuple[int, bytes]:
        try:
            process = subprocess.Popen(
                wanted.argv,
                cwd=self._scratch,
                env=self._environment,
                stdin=subprocess.DEVNULL if wanted.stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                process_group=0,
            )
        except FileNotFoundError:
            return frames.RAISED, frames.describe("FileNotFoundError", f"the command {wanted.argv[0]!r} was not found")
        except (OSError, ValueError) as error:
            return frames.RAISED, frames.describe(type(error).__name__, f"the command {wanted.argv[0]!r} could not be started: {error}")
        deadline = time.monotonic() + run.timeout_s if run.timeout_s > 0 else float("inf")
        conversation = _Conversation(process, wanted.stdin or b"", run.result_bytes_max, deadline, self._descendants)
        try:
            verdict = conversation.run()
        finally:
            conversation.end()
        if verdict is not None:
            return verdict
        return _result(process.returncode, bytes(conversation.output), bytes(conversation.errors))

    def _on_terminate(self, number: int, frame: FrameType | None) -> NoReturn:
        self._descendants.end()
        os._exit(0)


class _Conversation:
    """The pipes of one running command."""

    def __init__(
        self, process: subprocess.Popen[bytes], stdin: bytes, output_bytes_max: int, deadline: float, descendants: Descendants
    ) -> None:
        self._process = process
        self._descendants = descendants
        self._stdin = memoryview(stdin)
        self._output_bytes_max = output_bytes_max
        self._deadline = deadline
        self.output = bytearray()
        self.errors = bytearray()
        """The end of what came on stderr."""
        self._poll = select.poll()
        self._open: set[int] = set()
        self._exit_number = _open_exit_event(process.pid)
        for pipe, events in ((process.stdin, select.POLLOUT), (process.stdout, select.POLLIN), (process.stderr, select.POLLIN)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._poll.register(pipe.fileno(), events)
                self._open.add(pipe.fileno())
        if self._exit_number >= 0:
            self._poll.register(self._exit_number, select.POLLIN)
        self._poll.register(descendants.ended, select.POLLIN)
        self._input_number = process.stdin.fileno() if process.stdin else -1
        self._output_number = process.stdout.fileno() if process.stdout else -1

    def run(self) -> tuple[int, bytes] | None:
        """Talk until the command ends. A verdict when it was late or said too much, else None."""
        exited = False
        while not exited:
            left = self._deadline - time.monotonic()
            if left <= 0:
                return frames.TIMED_OUT, frames.describe("TimedOut", "the command ran longer than its time-out")
            exited = self._step(left)
            if len(self.output) > self._output_bytes_max:
                return self._too_large()
        _end_group(self._process.pid)  # Before it is reaped: until then nobody else can get this number.
        self._process.wait()
        self._descendants.end()
        drained_by = time.monotonic() + _DRAIN_S
        while self._open - {self._input_number} and time.monotonic() < drained_by:
            self._step(_TICK_S)
            if len(self.output) > self._output_bytes_max:
                return self._too_large()
        return None

    def end(self) -> None:
        """End whatever runs, and close the pipes."""
        if self._process.returncode is None:
            _end_group(self._process.pid)
            self._process.wait()
        if self._exit_number >= 0:
            os.close(self._exit_number)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue

    def _too_large(self) -> tuple[int, bytes]:
        return frames.TOO_LARGE, frames.describe("TooLarge", f"the output has more than the {self._output_bytes_max} bytes allowed")

    def _step(self, left_s: float) -> bool:
        """Wait once and move bytes. True when the command has ended."""
        wait_s = min(left_s, 3600.0 if self._exit_number >= 0 else _TICK_S)
        exited = False
        for number, _ in self._poll.poll(max(1, int(wait_s * 1000))):
            if number == self._exit_number:
                exited = True
            elif number == self._descendants.ended:
                self._descendants.reap(self._process.pid)
            elif number == self._input_number:
                self._feed()
            else:
                self._take(number)
        return exited or (self._exit_number < 0 and _has_exited(self._process.pid))

    def _feed(self) -> None:
        try:
            self._stdin = self._stdin[os.write(self._input_number, self._stdin[:_PIPE_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:
            self._stdin = self._stdin[:0]  # It does not want to read on, which is its right.
        if not self._stdin and self._process.stdin is not None:
            self._forget(self._input_number)
            self._process.stdin.close()

    def _take(self, number: int) -> None:
        try:
            data = os.read(number, _PIPE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._forget(number)
        elif number == self._output_number:
            self.output += data
        else:
            self.errors += data
            del self.errors[:-STDERR_BYTES_MAX]

    def _forget(self, number: int) -> None:
        self._poll.unregister(number)
        self._open.discard(number)


def _result(status: int, output: bytes, errors: bytes) -> tuple[int, bytes]:
    tail = errors.decode("utf-8", "replace")
    if status:
        how = f"exit status {status}" if status > 0 else f"killed by {_signal_name(-status)}"
        return frames.RAISED, frames.describe("CommandFailed", f"{how}: {tail.strip()}" if tail.strip() else how)
    return frames.OK, msgspec.msgpack.encode([status, output, tail])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _copy(source: str, target: str) -> None:
    """A private read-only copy. Not a hard link: the command could write through it into the node's store."""
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The mode is given at once: a cage may forbid to change it later. What is open for writing stays so.
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            while os.sendfile(writer, reader, None, 8 * CHUNK_BYTES) if sys.platform == "linux" else _copy_part(writer, reader):
                continue
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_part(writer: int, reader: int) -> int:
    data = os.read(reader, CHUNK_BYTES)
    view = memoryview(data)
    while view:
        view = view[os.write(writer, view) :]
    return len(data)


def _open_exit_event(process_id: int) -> int:
    try:
        return os.pidfd_open(process_id)
    except (AttributeError, OSError):
        return -1


def _has_exited(process_id: int) -> bool:
    """Whether a child has ended, without reaping it."""
    try:
        return os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        return
