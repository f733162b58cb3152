"""Locking a script's dependencies where it is submitted, and fetching the wheels that its workers will need.

1. uv resolves once for all systems, wheels only; what is shipped are versions, markers and digests (docs/spec/environments.md).
2. For each kind of machine that the grid shows, and for this one, the wheels are fetched here and put into the grid: a worker
   needs no package index, and no worker asks a host that a submitter chose.
3. A kind of machine for which some package has no wheel gets none of the job's native units; that is said when the job is
   submitted. It is an error only when no kind is left.
4. Locks and wheels are kept: the second submit asks nobody. A lock is made anew after a day, if the index can be reached.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from blake3 import blake3

from p2pgrid.errors import BadDataError, UnreachableError
from p2pgrid.model.blob import BlobHasher, blob_id_of
from p2pgrid.model.environment import Environment, Wheel
from p2pgrid.model.ids import BlobId
from p2pgrid.model.limits import GIB, MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.model.script import JobScript
from p2pgrid.net.api import WallClock
from p2pgrid.offload import Offload
from p2pgrid.runtimes.interpreters import Target, interpreter_of, oldest_python, this_interpreter
from p2pgrid.runtimes.registry import Locked, LockedFile, download, resolve
from p2pgrid.wire.codec import encode

OLDEST_MINOR = 11
"""Nodes run on Python 3.11 or newer: nothing is resolved for older ones."""
LOCK_AGE_MS = 24 * 3600 * 1000
LOCKS_KEPT = 256
TARGETS_MAX = 32
_WITHOUT_EFFECT = ("UV_CACHE_DIR=", "UV_HTTP_", "UV_CONCURRENT_")
"""Settings of uv that change how it gets to a lock, not which."""
Report = Callable[[str], None]
"""Called with a sentence about what goes on."""


class LockLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a submitter sends along at most, and keeps."""

    wheels: int = 500
    wheel_bytes: int = GIB
    wheels_bytes: int = GIB
    """Of all wheels of one job, for all kinds of machines."""
    cache_bytes: int = 4 * GIB


DEFAULT_LIMITS = LockLimits()


@dataclass(frozen=True)
class JobEnvironment:
    """What a job with dependencies takes along: set ``Job.environment`` to ``blob``, and put ``encoded`` and ``files``."""

    environment: Environment
    blob: BlobId
    encoded: bytes
    files: dict[BlobId, Path]
    unserved: tuple[str, ...]
    """A sentence for each kind of machine that can run none of the job's native units."""


class _KeptLock(msgspec.Struct, frozen=True):
    made_ms: int
    locked: Locked


async def lock(
    script: JobScript,
    targets: Sequence[Target],
    cache: Path,
    report: Report,
    *,
    offload: Offload,
    wall_ms: WallClock,
    environment: Mapping[str, str] | None = None,
    limits: LockLimits = DEFAULT_LIMITS,
    step: Report | None = None,
) -> JobEnvironment | None:
    """Lock and fetch what a script depends on; None when it depends on nothing.

    ``targets``: the kinds of machines in the grid, this one need not be among them. ``cache``: a folder that this may fill up to
    ``limits.cache_bytes``. ``environment``: where the settings of uv and pip for indexes are looked up; None for this process's.
    ``step``: told what is being done now; None: ``report`` is told that, too.

    Raises BadDataError when there is no solution, no wheel for any machine, or too much; UnreachableError without a network;
    ConfigError without uv.
    """
    if not script.dependencies:
        return None
    told = dict(os.environ if environment is None else environment)
    python = oldest_python(script.requires_python, OLDEST_MINOR)
    if python is None:
        hint = f"nodes run on Python 3.{OLDEST_MINOR} or newer"
        raise BadDataError(f"no node can have the Python that {script.file_name} asks for: {script.requires_python}", hint=hint)
    work = _Locking(cache, report, step or report, offload, told, limits)
    locked = await work.locked(script, python, wall_ms())
    if not locked.pins:
        return None  # All of them are for systems that no node has.
    kinds = list(dict.fromkeys([this_interpreter().target, *targets]))[:TARGETS_MAX]
    files, unserved = _files_for(locked, kinds, script)
    for sentence in unserved:
        report(sentence)
    return await work.environment(script, locked, files, unserved)


def _files_for(locked: Locked, targets: Sequence[Target], script: JobScript) -> tuple[list[LockedFile], tuple[str, ...]]:
    """The files that the targets need together, and a sentence for each that cannot be served."""
    files: dict[str, LockedFile] = {}
    unserved: list[str] = []
    candidates = [(file.file_name, file.sha256, file) for file in locked.files]
    for target in targets:
        interpreter = interpreter_of(target)
        shown = f"{target.platform} with Python {target.python}"
        if interpreter is None or not interpreter.allows(script.requires_python):
            unserved.append(f"{script.file_name} cannot run on {shown}")
            continue
        wanted = [pin for pin in locked.pins if interpreter.wants(pin)]
        chosen = [(pin, interpreter.best(pin, candidates)) for pin in wanted]
        missing = sorted({f"{pin.name} {pin.version}" for pin, file in chosen if file is None})
        if missing:
            unserved.append(f"{', '.join(missing)}: no wheel for {shown}")
            continue
        files.update({file.file_name.lower(): file for _, file in chosen if file is not None})
    if len(unserved) == len(targets):
        hint = "packages are never built from source on other people's machines: use versions that have wheels for these"
        raise BadDataError("; ".join(unserved), reason=Reason.NO_WHEEL, hint=hint)
    return [files[name] for name in sorted(files)], tuple(unserved)


class _Locking:
    """One lock being made, in a cache that outlives it."""

    def __init__(self, cache: Path, report: Report, step: Report, offload: Offload, told: dict[str, str], limits: LockLimits) -> None:
        self._locks, self._wheels = cache / "locks", cache / "wheels"
        self._report, self._step, self._offload, self._told, self._limits = report, step, offload, told, limits

    async def locked(self, script: JobScript, python: str, now_ms: int) -> Locked:
        """What the dependencies resolve to, kept or asked for now."""
        await self._offload.run(self._prepare)
        path = self._locks / f"{self._key(script, python)}.lock"
        kept = await self._offload.run(_read_kept, path)
        if kept is not None and 0 <= now_ms - kept.made_ms < LOCK_AGE_MS:
            return kept.locked
        many = len(script.dependencies)
        self._step(f"looking for versions of {many} package{'s' if many > 1 else ''} and of what {'they need' if many > 1 else 'it needs'}")
        executable = this_interpreter().executable
        try:
            locked = await resolve(script.dependencies, python, executable=executable, environment=self._told)
        except UnreachableError:
            if kept is None:
                raise
            self._report("the package index cannot be reached: the versions found earlier are used")
            return kept.locked
        await self._offload.run(_write, path, encode(_KeptLock(now_ms, locked)))
        return locked

    async def environment(
        self, script: JobScript, locked: Locked, files: Sequence[LockedFile], unserved: tuple[str, ...]
    ) -> JobEnvironment:
        """Fetch the files and put all together."""
        self._check_many(files)
        wheels: list[Wheel] = []
        places: dict[BlobId, Path] = {}
        left_bytes = self._limits.wheels_bytes
        for number, file in enumerate(files):
            wheel, place = await self._wheel(file, left_bytes, f"{number + 1} of {len(files)}")
            left_bytes -= wheel.size_bytes
            wheels.append(wheel)
            places[BlobId(wheel.blob)] = place
        await self._offload.run(self._prune, {place.name for place in places.values()})
        try:
            found = Environment("".join(f"{pin.line()}\n" for pin in locked.pins), script.requires_python, tuple(wheels))
        except ValueError as error:
            raise BadDataError(f"the dependencies of {script.file_name} cannot be shipped: {error}") from error
        encoded = encode(found)
        return JobEnvironment(found, blob_id_of(encoded), encoded, places, unserved)

    def _check_many(self, files: Sequence[LockedFile]) -> None:
        total_bytes = sum(file.size_bytes for file in files)
        if len(files) > self._limits.wheels or total_bytes > self._limits.wheels_bytes:
            raise BadDataError(
                f"the packages are {len(files)} files of {total_bytes / MIB:.0f} MiB together, and at most {self._limits.wheels} "
                f"of {self._limits.wheels_bytes / MIB:.0f} MiB are sent",
                reason=Reason.TOO_LARGE,
                hint="depend on less, or on smaller variants of the packages",
            )

    async def _wheel(self, file: LockedFile, left_bytes: int, shown: str) -> tuple[Wheel, Path]:
        """A wheel in the cache, downloaded when it is not there or was damaged."""
        place = self._wheels / f"{file.sha256}.whl"
        found = await self._offload.run(_measure, place)
        if found is None or found[0] != file.sha256:
            self._step(f"fetching {file.file_name} ({shown})")
            limit = min(left_bytes, self._limits.wheel_bytes)
            await self._offload.run(download, file, place, limit, self._told)
            found = await self._offload.run(_measure, place)
        if found is None or found[0] != file.sha256:
            raise BadDataError(f"{file.file_name} could not be kept in {self._wheels}", hint="is there room on the disk?")
        _, size_bytes, blob = found
        if size_bytes > left_bytes:
            raise BadDataError(f"the packages are larger than {self._limits.wheels_bytes} bytes together", reason=Reason.TOO_LARGE)
        try:
            return Wheel(file.file_name, bytes.fromhex(file.sha256), size_bytes, blob), place
        except ValueError as error:
            raise BadDataError(f"{file.file_name} cannot be shipped: {error}") from error

    def _key(self, script: JobScript, python: str) -> str:
        told = [f"{name}={self._told[name]}" for name in sorted(self._told) if name.startswith("UV_") or name == "PIP_INDEX_URL"]
        settings = [setting for setting in told if not setting.startswith(_WITHOUT_EFFECT)]
        return blake3(encode(["lock 1", sorted(script.dependencies), python, settings])).hexdigest()

    def _prepare(self) -> None:
        try:
            for folder in (self._locks, self._wheels):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadDataError(f"the cache for packages cannot be written: {error}", hint="is there room on the disk?") from error

    def _prune(self, used: set[str]) -> None:
        """Keep the caches within their bounds; what was unused for longest goes first."""
        _prune_files(self._wheels, used, self._limits.cache_bytes, 1 << 30)
        _prune_files(self._locks, set(), 1 << 40, LOCKS_KEPT)


def _read_kept(path: Path) -> _KeptLock | None:
    try:
        kept = msgspec.msgpack.decode(path.read_bytes(), type=_KeptLock)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    with suppress(OSError):
        os.utime(path)
    return kept


def _write(path: Path, content: bytes) -> None:
    """Blocking. That it cannot be kept is no reason to fail."""
    temporary = path.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):
        temporary.write_bytes(content)
        temporary.replace(path)


def _measure(path: Path) -> tuple[str, int, BlobId] | None:
    """(SHA-256, size in bytes, address) of a file; None when it is not there."""
    digest, hasher, size_bytes = hashlib.sha256(), BlobHasher(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(MIB):
                digest.update(piece)
                hasher.update(piece)
                size_bytes += len(piece)
        os.utime(path)
    except OSError:
        return None
    return digest.hexdigest(), size_bytes, hasher.finish()[0]


def _prune_files(folder: Path, used: set[str], bytes_max: int, count_max: int) -> None:
    with suppress(OSError):
        found = sorted(((entry.stat(), entry) for entry in os.scandir(folder)), key=lambda row: row[0].st_mtime, reverse=True)
        total_bytes = 0
        for number, (facts, entry) in enumerate(found):
            total_bytes += facts.st_size
            if (total_bytes > bytes_max or number >= count_max) and entry.name not in used:
                os.unlink(entry.path)
