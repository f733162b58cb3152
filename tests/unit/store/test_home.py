"""The home folder: layout, keys, lock."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from p2pgrid.errors import BadDataError, ConfigError, TryAgainError
from p2pgrid.store.home import Home, RunningNode

PROJECT = Path(__file__).parents[3]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no mode bits")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home", random.Random(7).randbytes)
    home.prepare()
    return home


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@posix
def test_everything_in_a_home_is_private(home: Home) -> None:
    home.node_key()
    home.submitter_key()
    home.write_private("peers", b"x")
    home.lock()
    home.announce("127.0.0.1", 4000)
    for path in [home.folder, *home.folder.rglob("*")]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    home.close()


def test_preparing_again_changes_nothing(home: Home) -> None:
    key = home.node_key().public
    home.prepare()
    assert home.exists()
    assert home.node_key().public == key
    assert home.submitter_key().public != key
    assert (home.folder / "format").read_text() == "p2pgrid-home 1\n"


def test_a_home_of_a_newer_format_is_refused(home: Home) -> None:
    (home.folder / "format").write_text("p2pgrid-home 2\n")
    with pytest.raises(ConfigError, match="newer"):
        home.prepare()


def test_an_older_home_is_migrated_step_by_step(home: Home) -> None:
    (home.folder / "format").write_text("p2pgrid-home 0\n")
    with pytest.raises(ConfigError, match="cannot migrate"):
        home.prepare()
    seen: list[Path] = []
    Home(home.folder, os.urandom, migrations={0: seen.append}).prepare()
    assert seen == [home.folder]
    assert (home.folder / "format").read_text() == "p2pgrid-home 1\n"


@pytest.mark.parametrize("text", ["", "p2pgrid-home", "p2pgrid-home one", "p2pgrid-home 99999999999", "p2pgrid-home -1"])
def test_a_damaged_format_file_is_refused(home: Home, text: str) -> None:
    (home.folder / "format").write_text(text)
    with pytest.raises(ConfigError):
        home.prepare()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        Home(tmp_path, os.urandom).prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert mode(tmp_path) == 0o755 or os.name == "nt"


def test_a_folder_with_only_a_log_and_a_configuration_may_become_a_home(tmp_path: Path) -> None:
    (tmp_path / "node.log").write_text("")
    (tmp_path / "config.toml").write_text("")
    Home(tmp_path, os.urandom).prepare()


@pytest.mark.parametrize("content", [b"", b"short", bytes(33), bytes(32)])
def test_a_damaged_key_stops_the_node_and_is_not_overwritten(home: Home, content: bytes) -> None:
    path = home.folder / "node.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        home.node_key()
    assert caught.value.hint
    assert path.read_bytes() == content


@posix
def test_a_key_that_others_can_read_stops_the_node(home: Home) -> None:
    home.node_key()
    (home.folder / "node.key").chmod(0o640)
    with pytest.raises(ConfigError, match="read by others"):
        home.node_key()


@posix
def test_a_key_behind_a_link_is_refused(home: Home, tmp_path: Path) -> None:
    for target in ("elsewhere", "nowhere"):
        (tmp_path / "elsewhere").write_bytes(b"k" * 32)
        (tmp_path / "elsewhere").chmod(0o600)
        (home.folder / "node.key").unlink(missing_ok=True)
        (home.folder / "node.key").symlink_to(tmp_path / target)
        with pytest.raises(ConfigError):
            home.node_key()


def test_the_first_key_stays_when_two_processes_make_one(home: Home) -> None:
    path = home.folder / "node.key"
    other = Home(home.folder, lambda size: b"o" * size)

    def interrupted(size: int) -> bytes:
        other.node_key()
        return b"m" * size

    Home(home.folder, interrupted).node_key()
    assert path.read_bytes() == b"o" * 32
    assert [found.name for found in home.folder.glob("*.tmp")] == []


def test_only_one_node_runs_in_a_home(home: Home) -> None:
    assert home.running() is None
    home.lock()
    assert home.running() is None
    home.announce("127.0.0.1", 4000)
    other = Home(home.folder, os.urandom)
    assert other.running() == home.running() == RunningNode(os.getpid(), "127.0.0.1", 4000)
    with pytest.raises(TryAgainError, match=f"pid {os.getpid()}"):
        other.lock()
    home.close()
    home.close()
    assert other.running() is None
    other.lock()
    other.close()


HOLDER = """
import sys, os
from pathlib import Path
from p2pgrid.store.home import Home
home = Home(Path(sys.argv[1]), os.urandom)
home.lock()
home.announce("127.0.0.1", 4001)
print("locked", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_stale(home: Home) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"locked\n"
    assert home.running() == RunningNode(process.pid, "127.0.0.1", 4001)
    with pytest.raises(TryAgainError):
        home.lock()
    process.kill()
    process.wait(10)
    process.stdin.close()
    process.stdout.close()
    assert home.running() is None
    # The number may belong to a living process by now: the lock tells.
    (home.folder / "lock").write_text(f'{{"pid":{os.getpid()},"host":"127.0.0.1","port":1}}')
    assert home.running() is None
    home.lock()
    home.close()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b'{"pid": -1, "host": "h", "port": 1}', b'{"pid": 1e99, "host": 1}', b"null", bytes(9000)]
)
def test_a_strange_lock_file_is_nobody(home: Home, raw: bytes) -> None:
    (home.folder / "lock").write_bytes(raw)
    assert home.running() is None


def test_private_files_are_replaced_atomically_and_stay_inside(home: Home) -> None:
    assert home.read_private("peers") is None
    home.write_private("peers", b"one")
    home.write_private("peers", b"two")
    assert home.read_private("peers") == b"two"
    for name in ("../peers", "/peers", "", "con"):
        with pytest.raises(BadDataError):
            home.write_private(name, b"")
