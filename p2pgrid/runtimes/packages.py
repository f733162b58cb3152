"""Setting up the packages of jobs: a folder for ``sys.path`` from locked wheels, built once, shared, never run from here.

1. The owner's policy is asked first: off, listed names only, or any.
2. Wheels are read to their last byte by :mod:`p2pgrid.runtimes.wheels` before uv unpacks them; uv gets the lock with its digests,
   one folder of files, no network, no settings, and an interpreter that is the node's own.
3. They are unpacked with ``--target`` into a folder that is no environment of any interpreter: nothing in it is ever run by the
   node, ``.pth`` files in it mean nothing to processes that run without ``site``, and scripts and data stay below it.
4. A folder appears under its name only when it is whole, and is used only while it holds what it held then. It is named by its
   lock and the kind of interpreter, so that two jobs with one lock share it, and nobody can put another thing in its place.
5. What is used, or was used a moment ago, is never removed; of the rest, what was unused for longest.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from blake3 import blake3

from p2pgrid.errors import ConfigError, IntegrityError, RefusedError, TryAgainError
from p2pgrid.model.environment import Environment, Pin, Wheel, normalised
from p2pgrid.model.limits import GIB
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload, run_surely
from p2pgrid.runtimes.interpreters import Interpreter, choose, this_interpreter
from p2pgrid.runtimes.uv import bare_environment, run_uv
from p2pgrid.runtimes.wheels import WheelBounds, check_wheel

Mode = Literal["off", "listed", "any"]
_PACKAGES, _MARK, _BUILDING = "packages", "mark", "building-"
_KEY_LENGTH = 64


class EnvironmentPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a node allows to be set up for native units, on top of allowing these units."""

    mode: Mode = "any"
    """``off``: jobs with packages are refused; ``listed``: every distribution of the lock must be in ``names``."""
    names: frozenset[str] = frozenset()
    """Distributions, in any spelling."""
    online: bool = False
    """Whether a wheel that no peer has may be asked of a package index, the owner's own."""
    index: str = ""
    """Address of that index; empty for the one everybody uses."""
    wheels_bytes_max: int = GIB
    """Of the wheels that one environment needs here."""
    bounds: WheelBounds = WheelBounds()
    """Of what they unpack to, together."""
    cache_bytes_max: int = 4 * GIB
    """Of all environments kept on the disk."""
    build_s: float = 300.0
    """Seconds that unpacking may take."""
    kept_s: float = 300.0
    """For how long an environment stays after its last use, whatever else wants its room: warm processes still import from it."""

    def refusal(self, environment: Environment) -> RefusedError | None:
        """Why this environment is not set up here, if it is not."""
        if self.mode == "off":
            return RefusedError("this node sets up no packages for jobs", reason=Reason.NO_ENVIRONMENT)
        allowed = {normalised(name) for name in self.names}
        unlisted = sorted(environment.names - allowed) if self.mode == "listed" else []
        if unlisted:
            shown = ", ".join(unlisted[:5]) + (f" and {len(unlisted) - 5} more" if len(unlisted) > 5 else "")
            return RefusedError(
                f"the owner of this node does not allow the package{'s' * (len(unlisted) > 1)} {shown}", reason=Reason.PACKAGE_REFUSED
            )
        return None


class _Mark(msgspec.Struct, frozen=True, array_like=True):
    """What a folder held when it was whole: less or more of it is not used."""

    entries: int
    size_bytes: int


class _Kept(NamedTuple):
    used_s: float
    size_bytes: int
    checked: bool
    """Whether it was compared with its mark since this node started: a crash may have cost it some bytes."""


class Environments:
    """The environments of one node, in a folder of theirs alone. Belongs to one event loop."""

    def __init__(
        self,
        folder: Path,
        policy: EnvironmentPolicy,
        offload: Offload,
        clock: Callable[[], float],
        interpreter: Interpreter | None = None,
    ) -> None:
        """``clock``: monotonic seconds. ``interpreter``: the one that units run in; None for the one that runs this."""
        self.policy = policy
        self._interpreter = interpreter
        self._folder = folder
        self._offload = offload
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._users: Counter[str] = Counter()
        self._planned: dict[str, int] = {}
        """Bytes that environments under construction will take."""
        self._numbers = itertools.count()

    @property
    def interpreter(self) -> Interpreter:
        """The one that units run in."""
        return self._interpreter or this_interpreter()

    async def start(self) -> None:
        """Clear away what an earlier run left half made, and see what it kept. Raises ConfigError when the folder is unusable."""
        try:
            found = await self._offload.run(self._look)
        except OSError as error:
            raise ConfigError(f"the folder for packages cannot be used: {error}", hint="is there room, and may it be written?") from error
        # Used in the order of an earlier run: numbers below any time of this one.
        for place, (key, size_bytes) in enumerate(found):
            self._kept[key] = _Kept(float(place - len(found)) - self.policy.kept_s, size_bytes, checked=False)

    def _look(self) -> list[tuple[str, int]]:
        self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        found: list[tuple[float, str, int]] = []
        for entry in list(os.scandir(self._folder)):
            path, ours = Path(entry.path), len(entry.name) == _KEY_LENGTH
            mark = _read_mark(path) if ours else None
            if mark is not None:
                found.append(((path / _MARK).stat().st_mtime, entry.name, mark.size_bytes))
            elif ours or entry.name.startswith(_BUILDING):
                _remove(path)
        return [(key, size_bytes) for _, key, size_bytes in sorted(found)]

    # -- what a job needs here ---------------------------------------------------------

    def check(self, environment: Environment, *, own: bool = False) -> None:
        """Raises RefusedError when the owner or the interpreter rules this environment out. ``own``: it is for the owner's own job."""
        refusal = None if own else self.policy.refusal(environment)
        if refusal is not None:
            raise refusal
        if not self.interpreter.allows(environment.requires_python):
            python = self.interpreter.target.python
            raise RefusedError(f"the job wants Python {environment.requires_python}, and here is {python}", reason=Reason.NO_WHEEL)

    def wanted(self, environment: Environment) -> list[Wheel]:
        """The wheels to have before :meth:`build`. Raises RefusedError when some are not in the grid and none is asked of an index."""
        chosen, missing = self._choose(environment)
        if missing and not self.policy.online:
            named = ", ".join(f"{pin.name} {pin.version}" for pin in missing[:5])
            raise RefusedError(f"no wheel of {named} for {self.interpreter.tag} came with the job", reason=Reason.NO_WHEEL)
        return chosen

    def _choose(self, environment: Environment) -> tuple[list[Wheel], list[Pin]]:
        chosen, missing = choose(self.interpreter, environment.pins(), environment.wheels)
        if sum(wheel.size_bytes for wheel in chosen) > self.policy.wheels_bytes_max:
            raise RefusedError("the job's packages are larger than is allowed here", reason=Reason.TOO_LARGE)
        return chosen, missing

    def key(self, environment: Environment) -> str:
        """The name of the folder: whatever else may differ, with this in common two environments are one."""
        parts = ("p2pgrid environment 1", environment.requirements, self.interpreter.tag, self.interpreter.target.platform)
        return blake3("\0".join(parts).encode()).hexdigest()

    # -- folders -----------------------------------------------------------------------

    async def find(self, environment: Environment) -> Path | None:
        """The folder of an environment that is there and whole, acquired; None when it must be built. Not twice at one time for one."""
        key = self.key(environment)
        kept = self._kept.get(key)
        if kept is None:
            return None
        if not kept.checked and not await self._offload.run(_is_whole, self._folder / key):
            await self._drop(key)
            return None
        self._users[key] += 1
        self._touch(key)
        return self._folder / key / _PACKAGES

    async def build(self, environment: Environment, wheels: Mapping[str, Path]) -> Path:
        """Make the folder of an environment that passed :meth:`check`, acquired. Not twice at one time for one environment.

        ``wheels``: where the files of :meth:`wanted` lie, by file name. Raises RefusedError, IntegrityError for a wheel that is not what it
        says or hides something (``bad-package``), TryAgainError for what may go better later.
        """
        key = self.key(environment)
        place = self._folder / f"{_BUILDING}{next(self._numbers)}"
        try:
            await self._offload.run(_make, place)
            files = await self._gather(environment, wheels, place)
            await self._make_room(key, await self._check_all(files, place))
            size_bytes = await self._install(environment, place)
            # One that was whole when its builder was stopped is not among those kept.
            await self._offload.run(_remove, self._folder / key)
            await self._offload.run(os.replace, place / "whole", self._folder / key)
            self._kept[key] = _Kept(self._clock(), size_bytes, checked=True)
            self._users[key] += 1
        except OSError as error:
            raise TryAgainError(f"the job's packages cannot be written: {error.strerror}", reason=Reason.DISK_FULL) from error
        finally:
            self._planned.pop(key, None)
            await run_surely(self._offload, _remove, place)
        return self._folder / key / _PACKAGES

    def release(self, folder: Path) -> None:
        """Somebody who got this folder from :meth:`find` or :meth:`build` needs it no more."""
        key = folder.parent.name
        if self._users[key] > 1:
            self._users[key] -= 1
        else:
            del self._users[key]
        self._touch(key)

    def _touch(self, key: str) -> None:
        kept = self._kept.get(key)
        if kept is not None:
            self._kept[key] = kept._replace(used_s=self._clock(), checked=True)
            # For the next run of this node only; nothing is lost when it cannot be written.
            with suppress(OSError):
                os.utime(self._folder / key / _MARK)

    async def _drop(self, key: str) -> None:
        """Remove a folder, at once as far as others can see."""
        self._kept.pop(key, None)
        doomed = self._folder / f"{_BUILDING}{next(self._numbers)}"
        with suppress(OSError):
            await self._offload.run(os.replace, self._folder / key, doomed)
        await run_surely(self._offload, _remove, doomed)

    async def _make_room(self, key: str, unpacked_bytes: int) -> None:
        """Remove what was unused for longest until there is room. Raises RefusedError when too much is in use."""
        self._planned[key] = unpacked_bytes
        limit = self.policy.cache_bytes_max - sum(self._planned.values())
        for old in sorted(self._kept, key=lambda name: (self._kept[name].used_s, name)):
            if sum(kept.size_bytes for kept in self._kept.values()) <= limit:
                return
            if not self._users[old] and self._clock() - self._kept[old].used_s >= self.policy.kept_s:
                await self._drop(old)
        if sum(kept.size_bytes for kept in self._kept.values()) > limit:
            raise RefusedError("there is no room for the job's packages: those in use fill it", reason=Reason.NO_PACKAGE_ROOM)

    # -- building ----------------------------------------------------------------------

    async def _gather(self, environment: Environment, wheels: Mapping[str, Path], place: Path) -> list[Wheel]:
        """Lay the files that are needed beside each other, under their names; what is missing comes from the owner's index."""
        chosen, missing = await self._offload.run(self._choose, environment)
        files: list[Wheel] = []
        for wheel in chosen:
            given = wheels.get(wheel.file_name)
            if given is None:
                missing += [pin for pin in environment.pins() if pin.name == wheel.name and wheel.sha256.hex() in pin.digests]
                continue
            await self._offload.run(_link, given, place / "wheels" / wheel.file_name)
            files.append(wheel)
        if missing and not self.policy.online:
            named = ", ".join(f"{pin.name} {pin.version}" for pin in missing[:5])
            raise RefusedError(f"no wheel of {named} for {self.interpreter.tag} came with the job", reason=Reason.NO_WHEEL)
        files += [await self._fetch(pin, place) for pin in missing]
        return files

    async def _fetch(self, pin: Pin, place: Path) -> Wheel:
        """A file of the lock from the owner's index."""
        from p2pgrid.runtimes.registry import download, resolve

        index = {"UV_DEFAULT_INDEX": self.policy.index} if self.policy.index else {}
        told = bare_environment(place) | index
        target, executable = self.interpreter.target, self.interpreter.executable
        locked = await resolve([f"{pin.name}=={pin.version}"], target.python, executable=executable, environment=told, alone=True)
        file = self.interpreter.best(pin, [(found.file_name, found.sha256, found) for found in locked.files])
        if file is None:
            raise RefusedError(f"the package index has no wheel of {pin.name} {pin.version} for this machine", reason=Reason.NO_WHEEL)
        path = place / "wheels" / file.file_name
        size_bytes = await self._offload.run(download, file, path, self.policy.wheels_bytes_max, told)
        return Wheel(file.file_name, bytes.fromhex(file.sha256), size_bytes, bytes(32))

    async def _check_all(self, files: list[Wheel], place: Path) -> int:
        """Read every wheel to its end; returns what they unpack to together, in bytes."""
        bounds = self.policy.bounds
        total_bytes = 0
        for wheel in files:
            found = await self._offload.run(check_wheel, place / "wheels" / wheel.file_name, wheel, bounds)
            total_bytes += found.size_bytes
            bounds = msgspec.structs.replace(
                bounds, entries=bounds.entries - found.entries, unpacked_bytes=bounds.unpacked_bytes - found.size_bytes
            )
        return total_bytes

    async def _install(self, environment: Environment, place: Path) -> int:
        """Have uv unpack the wheels; returns what the folder holds, in bytes."""
        await self._offload.run((place / "lock.txt").write_text, environment.requirements, "ascii")
        target = place / "whole" / _PACKAGES
        ran = await run_uv(
            [
                *("pip", "install", "--no-config", "--quiet", "--offline", "--no-index", "--no-deps", "--only-binary", ":all:"),
                *("--find-links", str(place / "wheels"), "--target", str(target), "--python", self.interpreter.executable),
                *("--require-hashes", "--link-mode", "hardlink", "--no-build-isolation", "-r", "lock.txt"),
            ],
            folder=place,
            environment=bare_environment(place),
            timeout_s=self.policy.build_s,
        )
        if ran.code:
            told = " ".join(ran.output.split())[:400]
            raise RefusedError(f"the job's packages could not be set up: {told}", reason=Reason.BUILD_FAILED)
        return await self._offload.run(_finish, place / "whole", self.policy.bounds)


def _make(place: Path) -> None:
    _remove(place)
    place.mkdir(mode=0o700)
    (place / "wheels").mkdir()
    (place / "whole" / _PACKAGES).mkdir(parents=True)


def _link(given: Path, place: Path) -> None:
    """Show a file under another name; a copy where the system has no links."""
    try:
        place.symlink_to(given.absolute())
    except OSError:
        shutil.copyfile(given, place)


def _finish(whole: Path, bounds: WheelBounds) -> int:
    """Look through what was unpacked, let everybody read it and nobody write it, and mark it as whole."""
    packages = whole / _PACKAGES
    with suppress(OSError):
        (packages / ".lock").unlink()
    size_bytes = 0
    found = _walk(packages)
    for path, facts in found:
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
            raise IntegrityError("a package unpacked to something that is no file", reason=Reason.BAD_PACKAGE)
        path.chmod(0o555 if stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o100 else 0o444)
        size_bytes += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    # What uv adds itself, records and starters of programs, is small; it has its own share of the bounds.
    if len(found) > 2 * bounds.entries + 1000 or size_bytes > bounds.unpacked_bytes + GIB // 4:
        raise IntegrityError("the job's packages unpacked to more than is allowed here", reason=Reason.BAD_PACKAGE)
    packages.chmod(0o555)
    whole.chmod(0o755)
    (whole / _MARK).write_bytes(msgspec.msgpack.encode(_content_of(packages)))
    return size_bytes


def _is_whole(folder: Path) -> bool:
    mark = _read_mark(folder)
    try:
        return mark is not None and _content_of(folder / _PACKAGES) == mark
    except OSError:
        return False


def _content_of(packages: Path) -> _Mark:
    """How much there is, compiled code aside: an interpreter that may write there adds and replaces that."""
    own = [(path, facts) for path, facts in _walk(packages) if "__pycache__" not in (path.name, path.parent.name)]
    return _Mark(len(own), sum(facts.st_size for _, facts in own if stat.S_ISREG(facts.st_mode)))


def _walk(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Everything below a folder, links not followed."""
    found: list[tuple[Path, os.stat_result]] = []
    pending = [folder]
    while pending:
        for entry in os.scandir(pending.pop()):
            facts = entry.stat(follow_symlinks=False)
            found.append((Path(entry.path), facts))
            if stat.S_ISDIR(facts.st_mode):
                pending.append(Path(entry.path))
    return found


def _read_mark(folder: Path) -> _Mark | None:
    try:
        return msgspec.msgpack.decode((folder / _MARK).read_bytes(), type=_Mark)
    except (OSError, msgspec.MsgspecError):
        return None


def _remove(path: Path) -> None:
    """Blocking: whatever it is, and if it is."""
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            for found, facts in [(path, path.stat()), *_walk(path)]:
                if stat.S_ISDIR(facts.st_mode) and not facts.st_mode & stat.S_IWUSR:
                    found.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
