"""What the node orders for a process: the level of its cage, the user it becomes, and what it may read.

Function units read the interpreter, the libraries and their own packages; commands also the programs of the system. Nobody reads ``/etc``,
``/proc``, or anything of the owner's.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from p2pgrid.errors import ConfigError
from p2pgrid.runtimes.process import ProcessSpec
from p2pgrid.runtimes.sandbox.abilities import Abilities, Interpreter, interpreter
from p2pgrid.runtimes.tasks import PoolPolicy
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.files import empty_folder

USERS_FIRST, USERS_END = 61184, 65520
"""User ids for cages: those that systems set aside for users who exist for a moment only."""
_UNITS_BASE = Path("/var/tmp")  # noqa: S108 (a folder of ours in it is checked to be ours)
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
_PROGRAMS = ("/usr", "/bin", "/sbin", "/etc/alternatives")
_OF_HOME = ".home"
"""Beside such a folder: whose it is."""
_SWEPT_MAX = 1000
_STORE_OF_PACKAGES = "/nix/store"
_KINDS = {"native": "function", "command": "command", "wasm": "engine", "python": "engine", "compile": "engine"}


def kind_of(runtime: str) -> str:
    """The kind of cage that a runtime needs."""
    return _KINDS[runtime]


def is_root() -> bool:
    """Whether processes of this node have to become somebody else."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


class Users:
    """User ids for cages, one after the other, so that no two that run at the same time share one. 0 where we may not choose."""

    def __init__(self) -> None:
        # Two nodes on one machine start at different places.
        self._next = USERS_FIRST + os.getpid() * 67 % (USERS_END - USERS_FIRST)

    def next(self) -> int:
        """The next id, or 0."""
        if not is_root():
            return 0
        user = self._next
        self._next = user + 1 if user + 1 < USERS_END else USERS_FIRST
        return user


def readable(kind: str, interpreter: Interpreter, folders: Iterable[str]) -> list[str]:
    """What a process of this kind may read and execute; ``folders``: the packages of its job and ours."""
    paths = [*_LIBRARIES, *interpreter.libraries, *(os.path.realpath(folder) for folder in folders)]
    if kind == "command":
        paths += [*_PROGRAMS, *interpreter.programs]
    if any(path.startswith(_STORE_OF_PACKAGES) for path in interpreter.libraries):
        paths.append(_STORE_OF_PACKAGES)
    return sorted(path for path in set(paths) if path != "/")


class Cages:
    """The cages of one pool. The constructor and ``choose`` block while something new is tried."""

    def __init__(self, policy: PoolPolicy, folder: Path, libraries: list[str]) -> None:
        """``folder``: where the private folders of processes lie. Raises ConfigError when the interpreter cannot be asked."""
        self._policy = policy
        self._users = Users()
        package = Path(__file__).resolve().parent.parent
        self._folders = [*libraries, str(package), *policy.path]
        try:
            self._interpreter = interpreter(policy.python)
        except OSError as error:
            raise ConfigError(f"the interpreter for workers cannot be asked: {error}", hint="is it still there?") from error
        read = readable("function", self._interpreter, self._folders)
        self._abilities = Abilities(self._interpreter.executable, read, USERS_FIRST if is_root() else 0, folder.resolve())

    def choose(self, kind: str) -> tuple[str | None, str]:
        """The level for processes of this kind, or None; and why."""
        return self._abilities.choose(self._policy.cage, kind)

    def order(self, spec: ProcessSpec) -> frames.Cage:
        """What a process is told about its cage."""
        kind = kind_of(spec.runtime)
        if spec.level == "bare":
            return frames.Cage(kind=kind)
        return frames.Cage(
            level=spec.level,
            kind=kind,
            uid=self._users.next(),
            read=readable(kind, self._interpreter, [*self._folders, *spec.code.path]),
            folder_bytes_max=self._policy.folder_bytes_max,
            processes_max=self._policy.processes_max,
        )


def units_folder(home_work: Path) -> Path:
    """Where the folders of processes lie: ``home_work`` itself, or as root a folder below ``/var/tmp`` that other users can pass through.

    The processes of a root node become users without rights, who could not reach the home of root. Raises ConfigError when that folder
    is somebody else's.
    """
    if sys.platform != "linux" or not is_root():
        return home_work
    top = _UNITS_BASE / "p2pgrid-units"
    place = top / hashlib.sha256(str(home_work.resolve()).encode()).hexdigest()[:16]
    for folder in (top, place):
        try:
            folder.mkdir(mode=0o711, exist_ok=True)
            state = os.lstat(folder)
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
                raise ConfigError(f"{folder} belongs to somebody else", hint="remove it, then start again")
            os.chmod(folder, 0o711)  # noqa: S103 (passing through is what it is for)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error}") from error
    with suppress(OSError):
        place.with_suffix(_OF_HOME).write_text(str(home_work.parent.resolve()), encoding="utf-8")
        _sweep(top)
    return place


def _sweep(top: Path) -> None:
    """Remove what belongs to homes that are gone: nodes for one command have a home for as long, and some are killed."""
    for note in sorted(top.glob(f"*{_OF_HOME}"))[:_SWEPT_MAX]:
        home = Path(note.read_text(encoding="utf-8"))
        if not home.is_dir():
            place = note.with_suffix("")
            empty_folder(str(place))
            place.rmdir()
            note.unlink()
