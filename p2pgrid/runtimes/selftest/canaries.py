"""What attacks aim at: secrets, listeners and a process of our own, so that no attack needs to touch what matters.

All of it is made for one self-test and gone after it, within a bound. What an attack did to it is looked at as well: an attack that
says it was refused but left a trace was not.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from p2pgrid.errors import TryAgainError
from p2pgrid.model.reasons import Reason

_PREFIX = ".p2pgrid-selftest-"
_START_S = 5.0
_VARIABLE = "P2PGRID_SELFTEST_SECRET"
_VICTIM = """\
import sys
secret = sys.argv[1].encode()
import ctypes
kept = ctypes.create_string_buffer(secret)
sys.stdout.write(f"{ctypes.addressof(kept)}\\n")
sys.stdout.flush()
sys.stdin.read()
"""


class Bounds(NamedTuple):
    """How far bombs go, and how long they wait for somebody to end them."""

    memory_bytes: int
    folder_bytes: int
    folder_entries: int
    threads: int
    processes: int
    watched_s: float
    outlives_s: float = 20.0
    guarded: bool = True
    """Whether the pool is told of these bounds. Without, a bomb shows that it would go off."""


class Canaries:
    """The targets of one self-test. ``start`` makes them, ``close`` ends them; both block for some milliseconds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._folders: list[Path] = []
        self._sockets: dict[str, socket.socket] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._before: tuple[Any, ...] = ()
        self._left_open = -1
        self.token = ""
        self.facts: dict[str, Any] = {}
        """What attack code is told of them."""

    def start(self) -> None:
        """Make everything. Raises TryAgainError when the machine has no room for it."""
        try:
            self._make_files()
            self._make_listeners()
            self._make_process()
        except OSError as error:
            self.close()
            raise TryAgainError(f"the self-test cannot be prepared: {error}", reason=Reason.BUSY) from error
        bounds = self._bounds
        self.facts.update(bounds._asdict(), limit_bytes=bounds.memory_bytes if bounds.guarded else 0)
        # What must not be inherited: a variable of our environment, and an open file.
        os.environ[_VARIABLE] = self.token
        self._left_open = os.open(self.facts["open_file"], os.O_RDONLY)
        os.set_inheritable(self._left_open, True)
        self._before = self._state()

    def _make_files(self) -> None:
        outside = new_folder(Path(tempfile.gettempdir()), _PREFIX)
        self._folders.append(outside)
        self.token = outside.name.removeprefix(".")
        outside.chmod(0o755)  # Open to everybody: only the cage is to stand between a unit and this.
        home = _home_folder()
        self._folders.append(home)
        for name in ("open", "writable", "movable"):
            (outside / name).write_text(f"the secret is {self.token}\n")
            (outside / name).chmod(0o644 if name == "open" else 0o666)
        (outside / "folder").mkdir()
        (outside / "folder").chmod(0o777)
        (home / "secret").write_text(f"the secret is {self.token}\n")
        self.facts = {
            "token": self.token,
            "home_file": str(home / "secret"),
            "open_file": str(outside / "open"),
            "open_folder": str(outside / "folder"),
            "writable_file": str(outside / "writable"),
            "movable_file": str(outside / "movable"),
            "path_socket": str(outside / "stream"),
            "datagram_socket": str(outside / "datagram"),
            "abstract_socket": self.token,
            "made_ns": (outside / "open").stat().st_mtime_ns,
            "ipv6_port": 0,
            "tcp_port": 0,
            "udp_port": 0,
        }

    def _make_listeners(self) -> None:
        stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
        self._listen("tcp", socket.AF_INET, stream, ("127.0.0.1", 0))
        self._listen("udp", socket.AF_INET, datagram, ("127.0.0.1", 0))
        with suppress(OSError):  # Not every host has IPv6.
            self._listen("ipv6", socket.AF_INET6, stream, ("::1", 0))
        for name in ("tcp", "udp", "ipv6"):
            if name in self._sockets:
                self.facts[f"{name}_port"] = self._sockets[name].getsockname()[1]
        self._listen("stream", socket.AF_UNIX, stream, self.facts["path_socket"])
        self._listen("datagram", socket.AF_UNIX, datagram, self.facts["datagram_socket"])
        if sys.platform == "linux":
            self._listen("abstract", socket.AF_UNIX, stream, "\0" + self.facts["abstract_socket"])

    def _listen(self, name: str, family: int, kind: int, address: object) -> None:
        listener = socket.socket(family, kind)
        try:
            listener.bind(address)  # type: ignore[arg-type] # as the family wants it
            if kind == socket.SOCK_STREAM:
                listener.listen(8)
            if family == socket.AF_UNIX and isinstance(address, str) and not address.startswith("\0"):
                os.chmod(address, 0o777)  # noqa: S103 - the cage alone is to hold it
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._sockets[name] = listener

    def _make_process(self) -> None:
        environment = {**os.environ, _VARIABLE: self.token}
        self._process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-I", "-S", "-c", _VICTIM, self.token],
            stdin=subprocess.PIPE,  # It ends with us: nobody else writes to it.
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START_S)
        line = self._process.stdout.readline() if ready else b""
        if not line.strip().isdigit():
            raise OSError("the process to be attacked did not start")
        self.facts.update(process=self._process.pid, address=int(line))

    def breaches(self) -> dict[str, str]:
        """What attacks left behind on the targets, by the name of a trace; empty when nothing did."""
        found: dict[str, str] = {}
        for name, listener in self._sockets.items():
            with suppress(OSError):
                if listener.type == socket.SOCK_STREAM:
                    listener.accept()[0].close()
                else:
                    listener.recv(64)
                found[f"trace-listener-{name}"] = "something arrived there"
        assert self._process is not None
        if self._process.poll() is not None:
            found["trace-process"] = "it was ended"
        elif (after := self._state()) != self._before:
            found["trace-target"] = f"it was changed: {_difference(self._before, after)}"
        planted = [path.name for folder in self._folders for path in folder.rglob("*") if path.name.startswith(("planted", "taken"))]
        if planted:
            found["trace-file"] = f"a file was made: {planted[0]}"
        return found

    def _state(self) -> tuple[Any, ...]:
        """Everything of the targets that an attack could change."""
        assert self._process is not None
        number = self._process.pid
        files = []
        for name in ("writable", "movable", "open"):
            path = Path(self.facts["open_file"]).with_name(name)
            state = path.stat()
            files.append((name, state.st_mode, state.st_uid, state.st_nlink, state.st_mtime_ns, path.read_text()))
        if sys.platform != "linux":
            return tuple(files)
        scheduling = (os.getpriority(os.PRIO_PROCESS, number), tuple(sorted(os.sched_getaffinity(number))), os.sched_getscheduler(number))
        attributes = tuple(os.listxattr(self.facts["writable_file"]))
        return (*files, scheduling, attributes)

    def close(self) -> None:
        """End and remove everything."""
        os.environ.pop(_VARIABLE, None)
        if self._left_open >= 0:
            os.close(self._left_open)
            self._left_open = -1
        for listener in self._sockets.values():
            listener.close()
        self._sockets.clear()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._folders.clear()


def survivors(mark: str) -> list[int]:
    """Processes other than this one whose command line or environment bears a mark (Linux; elsewhere none is found)."""
    if sys.platform != "linux":
        return []
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid() and _bears(int(entry), mark)]


def _bears(number: int, mark: str) -> bool:
    for name in ("cmdline", "environ"):
        try:
            data = Path(f"/proc/{number}/{name}").read_bytes()
        except OSError:
            continue
        if mark.encode() in data:
            return True
    return False


def new_folder(parent: Path, prefix: str) -> Path:
    """A private folder whose name says whose it is. What a self-test of ours that was killed left there is removed. Raises OSError."""
    for left in parent.glob(f"{prefix}*-*"):
        number = left.name.removeprefix(prefix).partition("-")[0]
        if number.isdigit() and not _is_alive(int(number)) and left.lstat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


def _home_folder() -> Path:
    """A private folder in the home of who runs this; elsewhere where there is no home."""
    try:
        return new_folder(Path.home(), _PREFIX)
    except (OSError, RuntimeError):
        return new_folder(Path(tempfile.gettempdir()), _PREFIX)


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _difference(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    return "; ".join(f"{old} is now {new}" for old, new in zip(before, after, strict=False) if old != new)[:200]
