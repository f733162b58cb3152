"""Compiled WebAssembly, kept: compiling takes from milliseconds to many seconds, loading what was compiled takes next to nothing.

What lies here is machine code that processes will run, so: the folder is the owner's alone, a file is filed under the program, the engine
and the processor that it was made for, its digest stands in its name, and nothing is handed out that is not a regular file of ours with
that digest.

A stranger decides what is compiled, and a small module can take very long. It is done in a process of its own under the cage of all
foreign code, one at a time for each kind, within bounds of time, memory and size; what failed is not tried again for a while. Whoever
takes that process over can spoil the compiled form of their own program, which is run in the same kind of cage, and no other.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from blake3 import blake3

from p2pgrid.errors import BadDataError, ConfigError, MalformedError, RefusedError, TryAgainError
from p2pgrid.model.limits import GIB, MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload
from p2pgrid.runtimes.link import FrameLink, LogTail
from p2pgrid.runtimes.process import ProcessSpec
from p2pgrid.runtimes.tasks import Code, Outcome
from p2pgrid.runtimes.watchdog import Bounds, Watchdog
from p2pgrid.runtimes.worker import frames

MODULE, COMPONENT = "module", "component"
COMPILE_S = {MODULE: 120.0, COMPONENT: 600.0}
"""Wall time for one compilation. Components are the runners of grids: 20 s of a processor, and many times that where others use it."""
COMPILE_BYTES_MAX = 3 * GIB
"""Private memory of a process that compiles; a runner takes 0.4 GiB."""
COMPILED_BYTES_MAX = 256 * MIB
"""Largest compiled form."""
WAITING_MAX = 64
"""Programs that wait to be compiled; more are refused as busy."""
FAILED_KEPT = 256
FAILED_S = 600.0
"""For how long a program that could not be compiled is not tried again."""
_SUFFIX = ".cwasm"
_LEFT_S = 3600.0
"""A file in the making that is older was left by a node that was killed."""
_PART_BYTES = 1 << 20
_ENTRIES_MAX = 64
"""Files and folders that a process which compiles may make."""
_MESSAGE_CHARS_MAX = 1000
_replies = msgspec.msgpack.Decoder(frames.Ready | frames.LoadFailed)


class ProgramError(BadDataError):
    """A program that cannot be compiled."""

    def __init__(self, message: str, outcome: Outcome) -> None:
        """``outcome``: how its units are to be counted. As raised only when it would be the same on every machine."""
        super().__init__(message)
        self.outcome = outcome


class Compiler(Protocol):
    """A process that compiles (see :class:`~p2pgrid.runtimes.process.WorkerProcess`)."""

    link: FrameLink
    log: LogTail
    folder: Path

    async def end(self) -> None:
        """End it and remove its folder."""

    def exit_text(self) -> str:
        """How it ended."""

    @property
    def process_id(self) -> int:
        """Its number in the system."""

    @property
    def cage_failed(self) -> bool:
        """Whether it could not confine itself. Call after ``end``."""


Launch = Callable[[ProcessSpec], Awaitable[Compiler]]


class _Kept(NamedTuple):
    """A file of the cache."""

    name: str
    size_bytes: int


class _Failed(NamedTuple):
    """Why a program was not compiled, how its units count, and until when that holds (loop time)."""

    message: str
    outcome: Outcome
    until: float = 0.0


class ProgramCache:
    """The compiled programs of one node. ``folder`` is the cache's alone."""

    def __init__(
        self,
        folder: Path,
        launch: Launch,
        offload: Offload,
        *,
        bytes_max: int = 512 * MIB,
        compile_s: float = 0.0,
        isa: str = "native",
    ) -> None:
        """``launch`` starts a confined process of the runtime ``compile``.

        ``bytes_max``: what all files may take, the one unused for longest goes. ``compile_s``: wall seconds for one compilation; 0: as
        long as its kind may take.
        """
        self._folder = folder
        self._launch = launch
        self._offload = offload
        self._bytes_max = bytes_max
        self._compile_s = compile_s
        self._isa = isa
        self._fingerprint: str | None = None
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        """By key, the one unused for longest first."""
        self._checked: dict[str, tuple[int, ...]] = {}
        """By file name: what was seen of a file when its digest was found right."""
        self._making: dict[str, asyncio.Task[Path]] = {}
        self._failed: OrderedDict[str, _Failed] = OrderedDict()
        self._lanes = {MODULE: asyncio.Lock(), COMPONENT: asyncio.Lock()}
        self._numbers = itertools.count()
        self._open = False

    async def start(self) -> None:
        """Look at what is there. Raises ConfigError when the folder is not only ours."""
        for name, size_bytes in await self._offload.run(_look, self._folder):
            key = name.partition(".")[0]
            older = self._kept.pop(key, None)
            if older is not None:
                await self._offload.run(_unlink, self._folder / older.name)
            self._kept[key] = _Kept(name, size_bytes)
        self._open = True

    async def close(self) -> None:
        """End what is being compiled."""
        self._open = False
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def compiled(self, program: Path, program_id: bytes, kind: str) -> Path:
        """The compiled form of ``program``: a file of this cache, read-only, that may go at any time: link it at once.

        ``program_id`` names the bytes of ``program``; ``kind``: ``module`` or ``component``. Raises ProgramError when it cannot be
        compiled, RefusedError when no cage holds, TryAgainError when the node has no time, room or engine for it now.
        """
        if not self._open:
            raise TryAgainError("the node is stopping", reason=Reason.SHUTDOWN)
        key = await self._key_of(program_id, kind)
        self._raise_failed(key)
        kept = self._kept.get(key)
        if kept is not None and key not in self._making:
            if await self._offload.run(self._is_sound, kept):
                if key in self._kept:
                    self._kept.move_to_end(key)
                return self._folder / kept.name
            self._kept.pop(key, None)
        task = self._making.get(key)
        if task is None:
            if len(self._making) >= WAITING_MAX:
                raise TryAgainError("too many programs wait to be compiled", reason=Reason.BUSY)
            task = asyncio.get_running_loop().create_task(self._make(key, program, program_id, kind), name="compile")
            self._making[key] = task
            task.add_done_callback(lambda done: self._note_made(key, done))
        try:
            # Who asks may go away: others may wait for the same program.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise TryAgainError("the node is stopping", reason=Reason.SHUTDOWN) from None
            raise

    @property
    def size_bytes(self) -> int:
        """What the cache holds."""
        return sum(kept.size_bytes for kept in self._kept.values())

    async def _key_of(self, program_id: bytes, kind: str) -> str:
        if self._fingerprint is None:
            self._fingerprint = await self._offload.run(_fingerprint, self._isa)
        parts = msgspec.msgpack.encode([program_id, self._fingerprint, kind])
        return blake3(parts, derive_key_context="p2pgrid/1/compiled-program").hexdigest()[:40]

    def _raise_failed(self, key: str) -> None:
        failed = self._failed.get(key)
        if failed is None:
            return
        if asyncio.get_running_loop().time() < failed.until:
            raise ProgramError(failed.message, failed.outcome)
        del self._failed[key]

    def _note_failed(self, key: str, failed: _Failed) -> None:
        self._failed[key] = failed._replace(until=asyncio.get_running_loop().time() + FAILED_S)
        while len(self._failed) > FAILED_KEPT:
            self._failed.popitem(last=False)

    def _note_made(self, key: str, task: asyncio.Task[Path]) -> None:
        self._making.pop(key, None)
        if not task.cancelled():
            task.exception()  # Whoever waits gets it; when nobody does any more, it is not worth a word.

    async def _make(self, key: str, program: Path, program_id: bytes, kind: str) -> Path:
        """Compile and file. Raises as ``compiled``."""
        async with self._lanes[kind]:
            spec = ProcessSpec(
                submitter=b"",
                code=Code(program=program, program_id=program_id, entry=kind),
                runtime="compile",
                memory_bytes=COMPILE_BYTES_MAX,
            )
            process = await self._launch(spec)
            try:
                failure = await self._converse(process, self._compile_s or COMPILE_S[kind])
                if failure is None:
                    kept = await self._offload.run(self._take, process.folder / "outbox" / "0", key)
            except (BadDataError, OSError) as error:
                failure = _Failed(f"the program was compiled to something that cannot be used: {error}", Outcome.DIED)
            finally:
                await process.end()
        if failure is not None:
            if process.cage_failed:
                raise RefusedError("the process that was to compile the program could not be confined", reason=Reason.NO_CAGE)
            if failure is _ENDED:
                failure = _Failed(f"the program cannot be compiled here: the process that compiled it {process.exit_text()}", Outcome.DIED)
            self._note_failed(key, failure)
            raise ProgramError(failure.message, failure.outcome)
        await self._keep(key, kept)
        return self._folder / kept.name

    async def _converse(self, process: Compiler, compile_s: float) -> _Failed | None:
        """Wait until it is done. Why it failed, or None."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + compile_s
        watchdog = Watchdog(process.folder, process.process_id, Bounds(2 * COMPILED_BYTES_MAX, _ENTRIES_MAX))
        process.link.frame_bytes_max = frames.FRAME_SLACK_BYTES
        try:
            while True:
                body = process.link.take()
                if body is not None:
                    reply = _replies.decode(body)
                    return None if isinstance(reply, frames.Ready) else _Failed(_message_of(reply), Outcome.RAISED)
                left_s = deadline - loop.time()
                if left_s <= 0:
                    return _Failed(f"the program cannot be compiled within {compile_s:g} s", Outcome.TIMED_OUT)
                await process.link.wait(min(left_s, watchdog.due_s))
                if not process.link.waiting:
                    began = loop.time()
                    found = await self._offload.run(watchdog.look)
                    if found:
                        return _Failed(f"the process that compiled the program {found}", Outcome.DIED)
                    watchdog.looked(loop.time() - began)
        except EOFError:
            return _ENDED
        except (MalformedError, msgspec.MsgspecError, ValueError, RecursionError):
            return _Failed("the process that compiled the program broke its protocol", Outcome.DIED)

    def _take(self, output: Path, key: str) -> _Kept:
        """Copy what the process made into the cache. Raises BadDataError and OSError."""
        digest = blake3()
        source = os.open(output, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        # Nodes of one user share the folder, and may make the same at one time.
        temporary = self._folder / f"{key}.{os.getpid()}-{next(self._numbers)}.tmp"
        try:
            state = os.fstat(source)
            if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1 or not 0 < state.st_size <= COMPILED_BYTES_MAX:
                raise BadDataError(f"it is no plain file of at most {COMPILED_BYTES_MAX} bytes")
            temporary.unlink(missing_ok=True)
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            with open(target, "wb") as file:
                left_bytes = state.st_size
                while left_bytes:
                    part = os.read(source, min(left_bytes, _PART_BYTES))
                    if not part:
                        raise BadDataError("it became shorter")
                    digest.update(part)
                    file.write(part)
                    left_bytes -= len(part)
                # Processes run as another user may have to read it; the folder keeps all others out.
                os.fchmod(target, 0o444)
            name = f"{key}.{digest.hexdigest()}{_SUFFIX}"
            os.rename(temporary, self._folder / name)
            return _Kept(name, state.st_size)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(source)

    async def _keep(self, key: str, kept: _Kept) -> None:
        """Enter it, and make room: never by dropping what was just made."""
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while self.size_bytes > self._bytes_max and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._checked.pop(dropped.name, None)
            await self._offload.run(_unlink, self._folder / dropped.name)

    def _is_sound(self, kept: _Kept) -> bool:
        """Whether a file can be handed out; what cannot is removed. Its digest is computed when it looks other than last time."""
        path = self._folder / kept.name
        try:
            number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            state = os.fstat(number)
            seen = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_mode, state.st_uid)
            ours = stat.S_ISREG(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & 0o022
            if ours and (self._checked.get(kept.name) == seen or _digest(number) == kept.name.split(".")[1]):
                os.utime(number)
                self._checked[kept.name] = (*seen[:2], os.fstat(number).st_mtime_ns, *seen[3:])
                return True
        except OSError:
            pass
        finally:
            os.close(number)
        self._checked.pop(kept.name, None)
        _unlink(path)
        return False


_ENDED = _Failed("ended", Outcome.DIED)


def _fingerprint(isa: str) -> str:
    """Raises TryAgainError where there is no engine."""
    try:
        from p2pgrid.runtimes.worker.engine import fingerprint
    except (ImportError, RuntimeError, OSError) as error:
        raise TryAgainError(f"there is no WebAssembly engine for this machine: {error}", reason=Reason.NO_RUNTIME) from error
    return fingerprint(isa)


def _touched(folder: Path) -> Path:
    """The folder, its time set to now: what the file system calls now is what ages are told by."""
    os.utime(folder)
    return folder


def _look(folder: Path) -> list[tuple[str, int]]:
    """(name, size in bytes) of what is there, the one unused for longest first. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = os.lstat(folder)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
            raise ConfigError(f"the folder of compiled programs is somebody else's: {folder}", hint="remove it, or choose another home")
        if state.st_mode & 0o077:
            raise ConfigError(f"others can reach the compiled programs in {folder}", hint=f"chmod 700 {folder}, or remove it")
        found = []
        now_s = os.stat(_touched(folder)).st_mtime
        for entry in os.scandir(folder):
            parts = entry.name.split(".")
            state = entry.stat(follow_symlinks=False)
            if len(parts) == 3 and entry.name.endswith(_SUFFIX) and stat.S_ISREG(state.st_mode):
                found.append((state.st_mtime_ns, entry.name, state.st_size))
            elif not entry.is_dir(follow_symlinks=False) and now_s - state.st_mtime > _LEFT_S:
                _unlink(Path(entry.path))  # What is younger may be in the making, by another node of this user.
        return [(name, size_bytes) for _, name, size_bytes in sorted(found)]
    except OSError as error:
        raise ConfigError(f"the folder of compiled programs cannot be used: {error}") from error


def _digest(number: int) -> str:
    digest = blake3()
    while part := os.read(number, _PART_BYTES):
        digest.update(part)
    return digest.hexdigest()


def _message_of(reply: frames.LoadFailed) -> str:
    """What the process says of the program, in a bounded text."""
    try:
        told = msgspec.msgpack.decode(reply.error, type=dict[str, str])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "the program cannot be compiled"
    return told.get("message", "the program cannot be compiled")[:_MESSAGE_CHARS_MAX]


def _unlink(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        return
