"""What a unit can see of a world: a clock that only its own calls move, chance that only the job and the unit decide, files in memory.

The component has no imports, so a call that would reach a system ends the guest. Everything that ordinary code calls is replaced here
when the runner is built, wherever the standard library holds it; what has no meaning in here raises an error that code can handle.
"""

from __future__ import annotations

import builtins
import errno
import gc
import hashlib
import importlib.abc
import importlib.machinery
import io
import os
import random
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from . import storage as files
from . import system

EPOCH_NS = 1_577_836_800_000_000_000
"""What the clock shows when a unit begins: 2020-01-01T00:00:00Z, as for units of WebAssembly modules."""
TICK_NS = 1_000
"""How far each look moves the clock."""
GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": files.FOLDER,
    "TMPDIR": files.FOLDER,
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_POSIX_KEPT = """DirEntry _create_environ _path_normpath _path_splitroot_ex cpu_count error fspath getpid putenv sched_yield stat_result
    statvfs_result strerror terminal_size times_result uname uname_result unsetenv device_encoding urandom times _exit abort"""
"""What of the module behind ``os`` asks no system, or is replaced one by one."""
_SOCKET_KEPT = "SocketType error gaierror herror htonl htons inet_aton inet_ntoa inet_ntop inet_pton ntohl ntohs socket timeout"
_FORBIDDEN = """open sqlite3.connect sqlite3.enable_load_extension socket.__new__ os.listdir os.scandir os.mkdir os.rmdir os.remove
    os.rename os.truncate os.chdir os.utime os.link os.symlink os.posix_spawn os.system"""
"""Events of the interpreter that would end in a system call."""
_forbidden = frozenset(_FORBIDDEN.split())


class Clock:
    """Seconds that pass because the unit looks, or sleeps."""

    def __init__(self) -> None:
        self.passed_ns = 0

    def now_ns(self) -> int:
        """Nanoseconds since the epoch of 1970."""
        self.passed_ns += TICK_NS
        return EPOCH_NS + self.passed_ns

    def now(self) -> float:
        """Seconds since the epoch of 1970."""
        return self.now_ns() / 1e9

    def elapsed_ns(self) -> int:
        """Nanoseconds since the unit began."""
        self.passed_ns += TICK_NS
        return self.passed_ns

    def elapsed(self) -> float:
        """Seconds since the unit began."""
        return self.elapsed_ns() / 1e9

    def sleep(self, seconds: float, /) -> None:
        """Return at once, later."""
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        self.passed_ns += int(seconds * 1_000_000_000)


class Chance:
    """Where every random bit comes from: the job's seed, and the index of the unit."""

    def __init__(self) -> None:
        self.seed = b""
        self.number = 0
        self.index = 0
        self.drawn = 0
        self.asked = False
        """Whether any code has imported a module that draws: seeding it costs more than a small unit."""

    def begin_job(self, seed: bytes) -> None:
        """Take the seed of a job."""
        self.seed = seed
        self.number = int.from_bytes(seed[:8], "big")

    def begin_unit(self, index: int) -> None:
        """Everything drawn from now on belongs to this unit."""
        self.index = index
        self.drawn = 0
        if self.asked:
            self.reseed()

    def reseed(self) -> None:
        """As the native runtime seeds ``random``, and whatever else remembers something of the last unit."""
        self.asked = True
        random.seed((self.number ^ (self.index * GOLDEN)) & MASK)
        uuid = _drawing.get("uuid")
        if uuid is not None:
            for name in ("_last_timestamp", "_last_timestamp_v7"):
                setattr(uuid, name, None)
            setattr(uuid, "_last_counter_v7", 0)  # noqa: B010 - the stubs do not know it

    def urandom(self, size: int, /) -> bytes:
        """As os.urandom."""
        if size < 0:
            raise ValueError("negative argument not allowed")
        self.drawn += 1
        prefix = b"p2pgrid urandom" + self.index.to_bytes(8, "big") + self.drawn.to_bytes(8, "big")
        return hashlib.shake_256(prefix + self.seed).digest(size)


clock = Clock()
chance = Chance()
_drawing: dict[str, types.ModuleType] = {}
"""Modules that draw from chance, kept out of sys.modules until somebody imports one."""


class _DrawingFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out the modules of ``_drawing``, and so learns that chance is asked for."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """As importlib's finders."""
        if name not in _drawing:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=hasattr(_drawing[name], "__path__"))

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """As importlib's loaders."""
        return _drawing[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        """It ran when the runner was built."""
        if not chance.asked:
            chance.reseed()


def install() -> None:
    """Replace what asks a system. Called once, when the runner is built, after everything was imported."""
    replaced: dict[int, Any] = {}
    kept: list[Any] = []

    def replace(module: Any, name: str, new: Any) -> None:
        old = getattr(module, name, None)
        if old is not None:
            kept.append(old)  # So that its identity stays its own.
            replaced[id(old)] = new
        setattr(module, name, new)

    _replace_system(replace)
    _replace_time(replace)
    _replace_chance(replace)
    _replace_network(replace)
    _sweep(replaced)
    _settle_library()
    _hide_drawing()
    sys.addaudithook(_watch)


def _replace_system(replace: Callable[[Any, str, Any], None]) -> None:
    import _io
    import _thread
    import posix

    for name in dir(posix):
        value = getattr(posix, name)
        if name in system.FUNCTIONS:
            replace(posix, name, system.FUNCTIONS[name])
        elif callable(value) and not name.startswith("__") and name not in _POSIX_KEPT.split() and not isinstance(value, type):
            replace(posix, name, _refuser(name))
    for name in ("_exit", "abort"):
        replace(posix, name, _exit)
    replace(posix, "device_encoding", lambda fd: None)
    replace(_io, "open", files.open_file)
    replace(_io, "open_code", files.open_code)
    replace(_io, "FileIO", files.MemoryFile)
    builtins.open = files.open_file
    builtins.input = _input
    for name in ("start_new_thread", "start_new", "start_joinable_thread"):
        replace(_thread, name, _no_thread)


def _replace_time(replace: Callable[[Any, str, Any], None]) -> None:
    import datetime as dt
    import posix

    real_gmtime, real_strftime, real_asctime = time.gmtime, time.strftime, time.asctime

    def gmtime(seconds: float | None = None, /) -> time.struct_time:
        return real_gmtime(clock.now_ns() / 1e9 if seconds is None else seconds)

    def ctime(seconds: float | None = None, /) -> str:
        return real_asctime(gmtime(seconds))

    def now(cls: Any, tz: Any = None) -> Any:
        return cls.fromtimestamp(clock.now_ns() / 1e9, tz)

    def utcnow(cls: Any) -> Any:
        return cls.fromtimestamp(clock.now_ns() / 1e9)

    def clock_gettime(which: int, /) -> float:
        return clock.now_ns() / 1e9

    def clock_gettime_ns(which: int, /) -> int:
        return clock.now_ns()

    replace(time, "time", clock.now)
    replace(time, "time_ns", clock.now_ns)
    replace(time, "clock_gettime", clock_gettime)
    replace(time, "clock_gettime_ns", clock_gettime_ns)
    for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
        replace(time, name, clock.elapsed)
        replace(time, f"{name}_ns", clock.elapsed_ns)
    replace(time, "clock_getres", lambda which, /: TICK_NS / 1e9)
    replace(time, "sleep", clock.sleep)
    replace(time, "gmtime", gmtime)
    replace(time, "localtime", gmtime)
    replace(time, "ctime", ctime)
    replace(time, "asctime", lambda moment=None, /: real_asctime(gmtime() if moment is None else moment))
    replace(time, "strftime", lambda form, moment=None, /: real_strftime(form, gmtime() if moment is None else moment))
    replace(time, "get_clock_info", lambda name, /: types.SimpleNamespace(resolution=TICK_NS / 1e9, monotonic=True, adjustable=False))
    replace(posix, "times", lambda: os.times_result((clock.elapsed_ns() / 1e9, 0.0, 0.0, 0.0, clock.passed_ns / 1e9)))
    # The type is written in C and closed, but its dictionary is not: datetime.now asks the system directly.
    (names,) = gc.get_referents(dt.datetime.__dict__)
    names["now"], names["utcnow"] = classmethod(now), classmethod(utcnow)


def _replace_chance(replace: Callable[[Any, str, Any], None]) -> None:
    import posix
    import uuid

    replace(posix, "urandom", chance.urandom)
    real_seed = random.Random.seed

    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        """Without a seed: one that the job and the unit decide."""
        real_seed(self, int.from_bytes(chance.urandom(32), "big") if a is None else a, version)

    random.Random.seed = seed  # type: ignore[method-assign]
    uuid._node = 0x02_00_00_00_00_01  # type: ignore[attr-defined]
    uuid._generate_time_safe = None  # type: ignore[attr-defined]


def _replace_network(replace: Callable[[Any, str, Any], None]) -> None:
    import _socket
    import faulthandler
    import select
    import signal
    import socket

    for module, kept in ((_socket, _SOCKET_KEPT.split()), (select, ["error"]), (faulthandler, [])):
        for name in dir(module):
            if callable(getattr(module, name)) and not name.startswith("__") and name not in kept:
                replace(module, name, _refuser(name))
    replace(signal, "raise_signal", _refuser("raise_signal"))
    socket.socket.__init__ = _refuser("socket")  # type: ignore[method-assign]


def _refuser(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise PermissionError(errno.EPERM, f"{name} cannot be used here: the unit has no system to ask")

    refuse.__name__ = name
    return refuse


def _exit(*status: Any) -> Any:
    raise SystemExit(*status)


def _input(prompt: object = "", /) -> str:
    raise EOFError("a unit has no standard input")


def _no_thread(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("can't start new thread: a unit has one only")


def _sweep(replaced: dict[int, Any]) -> None:
    """Put the new functions wherever the standard library kept an old one: in modules, in classes, as defaults of arguments."""
    for module in list(sys.modules.values()):
        if module is None or module.__name__.startswith("p2pgrid_guest"):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in replaced:
                setattr(module, name, replaced[id(value)])
            for function in _functions_of(value):
                _sweep_defaults(function, replaced)
            if isinstance(value, type) and not value.__flags__ & _IMMUTABLE:
                _sweep_class(value, replaced)


_IMMUTABLE = 1 << 8


def _sweep_class(kind: type, replaced: dict[int, Any]) -> None:
    for name, value in list(vars(kind).items()):
        inner = getattr(value, "__func__", value)
        if id(inner) in replaced:
            setattr(kind, name, type(value)(replaced[id(inner)]) if inner is not value else replaced[id(inner)])


def _functions_of(value: Any) -> Iterator[types.FunctionType]:
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, type):
        yield from (inner for inner in vars(value).values() if isinstance(inner, types.FunctionType))


def _sweep_defaults(function: types.FunctionType, replaced: dict[int, Any]) -> None:
    if function.__defaults__ and any(id(value) in replaced for value in function.__defaults__):
        function.__defaults__ = tuple(replaced.get(id(value), value) for value in function.__defaults__)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Python tells here what it is about to do, also where it does so in C: to read the source of a syntax error, for one."""
    if event not in _forbidden:
        return
    if event == "sqlite3.connect" and arguments[0] in (":memory:", b":memory:", ""):
        return
    raise PermissionError(errno.EPERM, f"{event} cannot be used here: the unit has no system to ask")


def _settle_library() -> None:
    """What the standard library concluded about a system when it was imported."""
    import shutil
    import tempfile

    os.supports_dir_fd.clear()
    os.supports_fd.clear()
    os.supports_follow_symlinks.clear()
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    tempfile.tempdir = files.FOLDER
    sys.path[:] = []
    sys.path_importer_cache.clear()
    sys.stdin = io.StringIO()
    sys.dont_write_bytecode = True


def _hide_drawing() -> None:
    """Take the modules that draw from chance out of sys.modules, until somebody imports one."""
    for name, module in list(sys.modules.items()):
        if module is None or name.startswith(("p2pgrid_guest", "runner_app", "_", "wit_world", "componentize_py")):
            continue
        values = list(vars(module).values())
        if name in ("random", "uuid") or any(value is random or getattr(value, "__module__", "") == "random" for value in values):
            _drawing[name] = module
    sys.meta_path.insert(0, _DrawingFinder())
    forget_drawing()


def forget_drawing() -> None:
    """As if nobody had asked for chance."""
    for name in _drawing:
        sys.modules.pop(name, None)
    chance.asked = False


def begin() -> None:
    """Undo what the tool that makes the component does when the first call comes in: it asks for an environment, and seeds ``random``."""
    forget_drawing()
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    sys.argv[:] = ["job"]
