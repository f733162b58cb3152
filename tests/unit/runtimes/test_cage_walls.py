"""Each wall of a cage: what it stops, that the same goes through without it, and that a process without it does not start to work.

What stands here runs in small processes that confine themselves; the attacks on whole cages are elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import p2pgrid.runtimes.sandbox as sandbox
from p2pgrid.runtimes.cages import USERS_FIRST, is_root, readable
from p2pgrid.runtimes.process import CAGE_FAILED
from p2pgrid.runtimes.sandbox import abilities
from tests.native import needs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are cages on Linux only")
USER = USERS_FIRST + 7 if is_root() else 0
SANDBOX = Path(sandbox.__file__).parent
PRELUDE = f"""
import ctypes, errno, json, os, resource, signal, socket, sys, threading
from types import ModuleType
box = ModuleType("box"); box.__path__ = [{str(SANDBOX)!r}]; sys.modules["box"] = box
from box import cage, identity, kernel, landlock, namespaces, relay, rlimits, seccomp
told = {{}}
def attempt(name, call):
    try:
        call()
        told[name] = 0
    except OSError as error:
        told[name] = error.errno
    except ValueError:
        told[name] = -1  # What Python makes of a limit that may not be set.
def nothing(*arguments, **options):
    return None
"""


def python() -> str:
    """An interpreter that users without rights can start, else the running one."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        if os.path.exists(candidate) and not abilities.unreachable(candidate) and not abilities.unreachable(str(SANDBOX)):
            return candidate
    return sys.executable


@pytest.fixture
def place() -> Iterator[Path]:
    """A private folder as the pool makes them, where users without rights can get."""
    base = Path(tempfile.mkdtemp(prefix="p2pgrid-test-", dir="/var/tmp"))
    base.chmod(0o711)
    folder = base / "1"
    for part in (folder, *(folder / name for name in ("scratch", "outbox", "inputs", "given"))):
        part.mkdir(mode=0o755)
        if USER and part.name != "given":
            os.chown(part, USER, USER)
    yield folder
    shutil.rmtree(base)


def run(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python(), "-P", "-s", "-S", "-c", PRELUDE + body, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd="/", env={}, check=False)


def tell(body: str, *arguments: str) -> dict[str, Any]:
    """What the process put into ``told``."""
    done = run(body + "\nprint(json.dumps(told))", *arguments)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def confining(level: str, place: Path, kind: str = "function") -> str:
    """The lines that put the process into a cage."""
    read = readable(kind, abilities.interpreter(python()), [])
    plan = f"cage.Plan({level!r}, {kind!r}, {USER}, {read!r}, {str(place)!r}, 1 << 20, 64, 256 << 20)"
    return f"cage.confine({plan}, os.getppid())\n"


@pytest.fixture(params=abilities.LEVELS)
def level(request: pytest.FixtureRequest, place: Path) -> str:
    """Each level that holds here."""
    read = readable("function", abilities.interpreter(python()), [])
    problem = abilities.Abilities(python(), read, USER, place.parent).problem(request.param, "command")
    needs(not problem, f"{request.param} do not hold: {problem}")
    return str(request.param)


OUTSIDE = """
attempt("list", lambda: os.listdir("/"))
attempt("read", lambda: open(sys.argv[1]).close())
attempt("write", lambda: open(sys.argv[1] + "-new", "w").close())
attempt("ask", lambda: os.stat(sys.argv[1]))
attempt("socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
attempt("shared", lambda: __import__("mmap").mmap(-1, 4096))
attempt("signal", lambda: os.kill(os.getppid() or 1, 0))
attempt("process", lambda: os.fork() or os._exit(0))
attempt("namespace", lambda: kernel.checked(kernel.libc().unshare(0), ""))
attempt("group", lambda: os.setpgid(0, 0))
attempt("limit", lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)))
os.chdir(sys.argv[2])
attempt("own", lambda: open("file", "w").close())
attempt("given", lambda: open("../given/file", "w").close())
attempt("thread", lambda: (thread := threading.Thread(target=nothing)).start() or thread.join())
attempt("pair", lambda: socket.socketpair())
attempt("self", lambda: os.kill(os.getpid(), 0))
"""


def test_without_a_cage_everything_goes_through(place: Path, tmp_path: Path) -> None:
    secret = place.parent / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    assert set(tell(OUTSIDE, str(secret), str(place / "scratch")).values()) == {0}


def test_a_cage_lets_through_what_a_unit_needs_and_nothing_else(level: str, place: Path) -> None:
    secret = place.parent / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    told = tell(confining(level, place) + OUTSIDE, str(secret), str(place / "scratch"))
    inside = {"own", "thread", "pair", "self"}
    assert {name for name, number in told.items() if number == 0} == inside | ({"ask"} if level == "landlock" else set())
    assert told["read"] == (2 if level == "namespaces" else 13)
    assert told["socket"] == 13


def test_a_command_may_start_programs(level: str, place: Path) -> None:
    body = """
import subprocess
os.chdir(sys.argv[1])
told["said"] = subprocess.run(["sh", "-c", "ls /etc /root /home 2>/dev/null | wc -l"], capture_output=True, text=True).stdout
told["first"] = os.getpid() == 1
"""
    told = tell(confining(level, place, "command") + body, str(place / "scratch"))
    assert told["said"] == "0\n" if level == "landlock" else told["said"].strip().isdigit()
    assert told["first"] == (level == "namespaces")


def test_the_end_of_a_runner_of_commands_is_told_by_its_relay(level: str, place: Path) -> None:
    for ending, status in (("os._exit(7)", 7), ("os._exit(0)", 0), ("signal.raise_signal(signal.SIGABRT)", -6)):
        done = run(confining(level, place, "command") + ending)
        # The first process of a pid namespace cannot be ended by a signal of its own without a handler.
        assert done.returncode == status or (level == "namespaces" and status < 0), done


def test_what_a_runner_of_commands_leaves_behind_ends_with_it(level: str, place: Path) -> None:
    left = """
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.close(reader)
        os.write(writer, b"x")
        signal.pause()
    os._exit(0)
os.read(reader, 1)
os._exit(0)
"""
    # The pipes of the process stay open for as long as anything of it runs: the call would not return.
    assert run(confining(level, place, "command") + left).returncode == 0


SABOTAGE = {
    "the filter": ("seccomp.install = nothing", "no filter"),
    "landlock": ("landlock.Ruleset.restrict = nothing", "files outside can be listed"),
    "no new privileges": ("rlimits.forbid_new_privileges = nothing", "cage does not stand"),
    "a rule too many": (
        "allow = landlock.Ruleset.allow\nlandlock.Ruleset.allow = lambda self, path, rights: allow(self, path, rights | 0xFFFF)",
        "its folder can be changed",
    ),
}
OF_NAMESPACES = {"the root": ("namespaces.enter_root = nothing", "the root can be written")}
OF_ROOT = {
    "the user": ("identity.become = nothing", "the user was not changed"),
    "the capabilities": ("identity.become = lambda user: None\nidentity.drop_capabilities = nothing", "the user was not changed"),
}


@pytest.mark.parametrize("wall", SABOTAGE)
def test_a_process_whose_wall_is_missing_ends_and_says_so(level: str, place: Path, wall: str) -> None:
    breaking, said = SABOTAGE[wall]
    _ends_saying(breaking, said, level, place)


@pytest.mark.parametrize("wall", OF_NAMESPACES)
def test_a_process_that_sees_the_old_root_ends_and_says_so(place: Path, wall: str) -> None:
    read = readable("function", abilities.interpreter(python()), [])
    needs(not abilities.Abilities(python(), read, USER, place.parent).problem("namespaces", "function"), "namespaces do not hold")
    breaking, said = OF_NAMESPACES[wall]
    _ends_saying(breaking, said, "namespaces", place)


@pytest.mark.parametrize("wall", OF_ROOT)
def test_a_process_that_stays_root_ends_and_says_so(level: str, place: Path, wall: str) -> None:
    needs(is_root(), "only root becomes somebody else")
    breaking, said = OF_ROOT[wall]
    _ends_saying(breaking, said, level, place)


def _ends_saying(breaking: str, said: str, level: str, place: Path) -> None:
    confine = confining(level, place)
    assert run(confine + "print('worked')").stdout == "worked\n"
    done = run(f"{breaking}\n{confine}print('worked')")
    assert done.returncode == CAGE_FAILED, done
    assert done.stdout == ""
    assert "the cage does not stand" in done.stderr
    assert said in done.stderr


def test_an_unknown_level_and_a_root_that_stays_root_are_no_cage(place: Path) -> None:
    done = run(confining("tight", place))
    assert done.returncode == CAGE_FAILED
    assert "no level" in done.stderr
    if is_root():
        plan = f"cage.Plan('landlock', 'function', 0, [], {str(place)!r}, 1, 64, 0)"
        assert "needs a user" in run(f"cage.confine({plan}, os.getppid())").stderr


def test_limits_hold_and_cannot_be_raised(level: str, place: Path) -> None:
    body = """
def limit(name):
    return list(resource.getrlimit(getattr(resource, name)))
for name in "CORE FSIZE NOFILE DATA AS MEMLOCK MSGQUEUE NPROC".split():
    told["RLIMIT_" + name] = limit("RLIMIT_" + name)
try:
    block = bytearray(400 << 20)
    told["memory"] = 0
except MemoryError:
    told["memory"] = 1
"""
    told = tell(confining(level, place) + body)
    assert told["RLIMIT_CORE"] == [0, 0]
    assert told["RLIMIT_FSIZE"] == [1 << 20] * 2
    assert told["RLIMIT_NOFILE"] == [64, 64]
    assert told["RLIMIT_DATA"] == [256 << 20] * 2
    assert told["RLIMIT_AS"] == [1024 << 20] * 2
    assert told["RLIMIT_MSGQUEUE"] == [0, 0]
    assert told["memory"] == 1
    if USER:
        assert told["RLIMIT_NPROC"] == [512, 512]


def test_without_limits_the_memory_is_there() -> None:
    assert tell("told['size'] = len(bytearray(400 << 20))")["size"] == 400 << 20


def test_an_engine_has_no_bound_on_its_address_space(level: str, place: Path) -> None:
    told = tell(confining(level, place, "engine") + "told['space'] = resource.getrlimit(resource.RLIMIT_AS)[0]")
    assert told["space"] == resource_infinity()


def resource_infinity() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0]


def test_root_becomes_nobody_without_any_capability(level: str, place: Path) -> None:
    needs(is_root(), "only root becomes somebody else")
    body = """
told["users"] = [*os.getresuid(), *os.getresgid()]
told["groups"] = os.getgroups()
told["capabilities"] = identity.capabilities()
attempt("again", lambda: os.setuid(0))
"""
    assert tell("told['capabilities'] = identity.capabilities()")["capabilities"] > 0
    told = tell(confining(level, place) + body)
    assert set(told["users"]) == {USER}
    assert told["groups"] == []
    assert told["capabilities"] == 0
    assert told["again"] == 1


def test_the_bounding_set_is_empty_after_it_was_dropped() -> None:
    needs(is_root(), "only root has one to drop")
    count = "told['{}'] = sum(kernel.prctl(23, number, check=False) == 1 for number in range(64))\n"
    told = tell(count.format("before") + "identity.drop_bounding_set()\n" + count.format("after"))
    assert told["before"] > 0
    assert told["after"] == 0


def test_a_cage_ends_with_its_parent(level: str, place: Path) -> None:
    for kind in ("function", "command"):
        body = f"""
reader, writer = os.pipe()
parent = os.fork()
if parent == 0:
    child = os.fork()
    if child == 0:
        {confining(level, place, kind).strip()}
        os.write(writer, b"confined")
        signal.pause()
    signal.pause()
told["said"] = os.read(reader, 8).decode()
os.kill(parent, signal.SIGKILL)
os.waitpid(parent, 0)
os.close(writer)
told["left"] = len(os.read(reader, 1))
"""
        # The pipe ends when nothing holds it any more.
        assert tell(body) == {"said": "confined", "left": 0}


def test_landlock_grants_what_is_allowed_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "file").write_text("x")
    (tmp_path / "closed").write_text("x")
    body = """
if sys.argv[2] == "restricted":
    rules = landlock.Ruleset()
    rules.allow(os.path.join(sys.argv[1], "open"), landlock.READ)
    rules.allow(os.path.join(sys.argv[1], "missing"), landlock.READ)
    rlimits.forbid_new_privileges()
    rules.restrict()
os.chdir(sys.argv[1])
attempt("open", lambda: open("open/file").close())
attempt("closed", lambda: open("closed").close())
attempt("write", lambda: open("open/file", "a").close())
attempt("make", lambda: os.mkdir("open/new"))
attempt("move", lambda: os.rename("closed", "open/closed"))
"""
    assert set(tell(body, str(tmp_path), "restricted").values()) == {0, 13}
    assert tell(body, str(tmp_path), "restricted")["open"] == 0
    assert set(tell(body, str(tmp_path), "free").values()) == {0}


def test_all_rights_of_each_version_are_handled() -> None:
    from p2pgrid.runtimes.sandbox import landlock

    assert [landlock.handled_rights(version).bit_length() for version in range(1, 8)] == [13, 14, 15, 15, 16, 16, 16]
    assert landlock.handled_rights(99).bit_length() == 16
    assert not landlock.READ & landlock.WRITE_FILE
    assert not landlock.WRITE & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK | landlock.IOCTL_DEV | landlock.EXECUTE)
