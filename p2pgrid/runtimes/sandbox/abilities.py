"""Which cages hold on this machine. The node asks; nothing here is used inside of a cage.

Whether a level holds is found out by putting a short-lived process of the very kind into it (``probe``): no list of kernels,
distributions and container engines would be right for long. The node itself has threads and is never forked.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import landlock, seccomp

LEVELS = ("namespaces", "landlock")
"""Strongest first."""
_PROBE = Path(__file__).with_name("probe.py")
_PROBE_S = 20.0
_WORDS = {
    "namespaces": "namespaces, Landlock and the filter of system calls hold",
    "landlock": "Landlock and the filter of system calls hold",
}
_TRIED_MAX = 64
_tried: dict[tuple[object, ...], str] = {}
"""What was tried in this process already: the kernel does not change under it."""
_ASK = (
    "import sys,sysconfig,json;print(json.dumps([sys.prefix,sys.base_prefix,sys.platlibdir,sys.executable,"
    "sysconfig.get_path('stdlib'),sysconfig.get_path('platstdlib')]))"
)


class Interpreter(NamedTuple):
    """Where an interpreter and what it needs lie."""

    executable: str
    libraries: tuple[str, ...]
    """What it reads to start and to import its standard library."""
    programs: tuple[str, ...]
    """What else it takes to be started as a command."""


class Abilities:
    """What this machine can, for processes of one interpreter whose private folders lie in one place.

    Asking blocks while something new is tried.
    """

    def __init__(self, python: str, read: Sequence[str], user: int, folder: Path) -> None:
        """``read``: what the processes may read, as for a function; ``user``: whom one of them would become (0: nobody else)."""
        self._python = python
        self._read = tuple(read)
        self._user = user
        self._folder = folder
        self.landlock_abi = landlock.abi() if sys.platform == "linux" else 0

    @property
    def own_user(self) -> bool:
        """Whether each process becomes a user of its own."""
        return bool(self._user)

    def problem(self, level: str, kind: str) -> str:
        """Why a level does not hold for ``function``, ``command`` or ``engine``; empty when it does."""
        problem = self._missing()
        if problem:
            return problem
        if level == "landlock" and kind == "command" and not self._user and self.landlock_abi < landlock.SIGNAL_SCOPE_ABI:
            return "without namespaces a command could signal the owner's processes on this kernel"
        if level == "landlock" and self._user and (wall := unreachable(str(self._folder))):
            return f"a user without rights cannot reach {wall}"
        return self._tried(level)

    def _missing(self) -> str:
        if sys.platform != "linux":
            return "there is no cage on this system"
        if self.landlock_abi < landlock.LEAST_ABI:
            return "the kernel has no Landlock, or one that is too old"
        return seccomp.available()

    def _tried(self, level: str) -> str:
        key = (level, self._python, self._read, bool(self._user), os.stat(self._folder).st_dev)
        if key not in _tried:
            if len(_tried) >= _TRIED_MAX:
                _tried.clear()
            # The command is the harder case of namespaces, and the same as a function without.
            kind = "command" if level == "namespaces" else "function"
            _tried[key] = _try(level, kind, self._python, self._read, self._user, str(self._folder))
        return _tried[key]

    def choose(self, level: str, kind: str) -> tuple[str | None, str]:
        """The level to use, and why: for ``auto`` the strongest that holds, else the one that was asked for. None when none holds.

        An engine is a wall of its own: with ``auto`` it gets ``bare`` where no cage holds.
        """
        if level == "bare":
            return "bare", "the policy says that there is to be no cage"
        problems: list[str] = []
        for candidate in LEVELS if level == "auto" else (level,):
            problem = self.problem(candidate, kind)
            if not problem:
                return candidate, "; ".join((_WORDS[candidate], *problems))
            problems.append(f"no {candidate}: {problem}")
        reason = "; ".join(problems)
        return ("bare", f"WebAssembly is the only wall: {reason}") if kind == "engine" and level == "auto" else (None, reason)


def interpreter(python: str = "") -> Interpreter:
    """Where ``python`` lies, or the running interpreter. Blocks for one start of it. Raises OSError when it cannot be started."""
    if not python or python == sys.executable:
        import sysconfig

        facts = [sys.prefix, sys.base_prefix, sys.platlibdir, sys.executable]
        facts += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    else:
        facts = _ask(python)
    prefix, base, library, executable, stdlib, platform_stdlib = facts
    libraries = {os.path.realpath(path) for path in (f"{base}/lib", f"{base}/{library}", stdlib, platform_stdlib, executable)}
    programs = {f"{place}/{part}" for place in (prefix, base) for part in ("bin", "lib", library, "pyvenv.cfg")} | _links(executable)
    return Interpreter(executable, tuple(sorted(libraries)), tuple(sorted(programs)))


@functools.lru_cache(maxsize=16)
def _ask(python: str) -> list[str]:
    try:
        answer = subprocess.run([python, "-I", "-S", "-c", _ASK], capture_output=True, timeout=_PROBE_S, check=True).stdout
        facts: list[str] = json.loads(answer)
    except (subprocess.SubprocessError, ValueError) as error:
        raise OSError(f"{python} does not answer: {error}") from error
    return facts


def _links(path: str) -> set[str]:
    """A path and what its links pass through."""
    found = {path}
    while os.path.islink(path) and len(found) < 40:
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        found.add(path)
    return found


def _try(level: str, kind: str, python: str, read: Sequence[str], user: int, folder: str) -> str:
    """Put a process into a cage. Why it did not hold, empty when it did."""
    place = ""
    try:
        place = os.path.realpath(tempfile.mkdtemp(prefix="probe-", dir=folder))
        for name in ("scratch", "outbox", "inputs", "given"):
            os.mkdir(os.path.join(place, name), 0o755)
            if user and name != "given":
                os.chown(os.path.join(place, name), user, user)
        if user:
            os.chown(place, -1, user)
            os.chmod(place, 0o750)  # noqa: S103 - the one group is the user of the cage
        order = json.dumps([level, kind, user, list(read), place])
        command = [python, "-P", "-s", "-S", str(_PROBE), str(os.getpid())]
        done = subprocess.run(
            command, input=order.encode(), capture_output=True, timeout=_PROBE_S, check=False, cwd="/", env={}, start_new_session=True
        )
        if done.stdout == b"held":
            return ""
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return words[-1][:300] if words else f"a process that tried it ended with {done.returncode}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"it could not be tried: {error}"
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(place, ignore_errors=True)


def unreachable(path: str) -> str:
    """The part of a path that other users cannot pass through or read; empty when they can."""
    whole = Path(os.path.realpath(path))
    for part in (*reversed(whole.parents), whole):
        try:
            mode = os.stat(part).st_mode
        except OSError:
            return str(part)
        needed = stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
        if not mode & needed:
            return str(part)
    return ""
