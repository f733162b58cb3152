"""What goes wrong, as users bring it about: one clear line, a hint, the exit code of the contract, and nothing lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from p2pgrid.core.invites import Contact, parse_invite
from p2pgrid.services.membership import load, make_invite
from p2pgrid.store.home import Home
from tests.e2e.grids import PROGRAM, Done, Grid, cli, environment, grid_of, start_node, until

UNKNOWN = "a" * 52
SCRIPTS = {
    "syntax.py": "def work(item\n",
    "nowork.py": "x = 1\n",
    "object.py": "def inputs():\n    yield object()\ndef work(item):\n    return 1\n",
    "raising.py": "def inputs():\n    raise RuntimeError('no data today')\ndef work(item):\n    return 1\n",
    "option.py": "# /// script\n# [tool.p2pgrid]\n# quorun = 2\n# ///\ndef work(item):\n    return item\n",
    "fine.py": "def work(item):\n    return item\n",
    "some.py": "def work(item):\n    if int(item) > 1:\n        raise ValueError(f'not {item}')\n    return item\n",
    "never.py": "import time\ndef work(item):\n    while item == '2':\n        time.sleep(0.1)\n    return item\n",
    "dies.py": "import ctypes, os\ndef work(item):\n    if item == '2':\n        os._exit(3)\n    if item == '4':\n"
    "        ctypes.string_at(0)\n    return item\n",
    "big.py": "import os\ndef work(item):\n    return os.urandom(3_000_000)\n",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scripts that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    (folder / "five").write_bytes(os.urandom(5 << 20))
    return folder


def errors(done: Done) -> list[str]:
    """The lines that say what is wrong. Nobody ever sees a traceback of ours."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("p2pgrid: ")]


class Bad(NamedTuple):
    words: str
    code: int
    says: str


TABLE = [
    Bad("run nothere.py", 2, "cannot read the script 'nothere.py': No such file or directory"),
    Bad("run .", 2, "cannot read the script '.': Is a directory"),
    Bad("run", 2, "nothing to run"),
    Bad("run syntax.py", 65, "syntax.py:1: '(' was never closed"),
    Bad("run nowork.py", 65, "nowork.py defines no work(item)"),
    Bad("run option.py --over 1", 65, "unknown key 'quorun'"),
    Bad("run object.py", 65, "item 0: type object"),
    Bad("run raising.py", 65, "raising.py: inputs() failed: RuntimeError: no data today"),
    Bad("run fine.py", 65, "there is nothing to do: no items"),
    Bad("run fine.py --timeout 1", 2, "fine.py has no use for '--timeout'"),
    Bad("run fine.py -o folder --over 1", 2, "fine.py has no use for '-o'"),
    Bad("run --frobnicate fine.py", 2, "no such option: --frobnicate"),
    Bad("run --timeout soon fine.py", 2, "invalid value for '--timeout': 'soon' is not a number"),
    Bad("run --quorum 0 fine.py", 2, "invalid value for '--quorum': 0 is not in the range"),
    Bad("run --memory 5X fine.py", 2, "'5X' is not a size"),
    Bad("run --detach --local 2 fine.py --over 1", 2, "--detach and --local exclude one another"),
    Bad("run -- ls", 2, "a command needs items"),
    Bad("frobnicate", 2, "no such command 'frobnicate'"),
    Bad("peers --frobnicate", 2, "no such option '--frobnicate'"),
    Bad("get garbage", 2, "'garbage' is not a full blob id"),
    Bad(f"get {UNKNOWN}", 69, "nobody who can be reached holds blob aaaaaaaa"),
    Bad(f"get {UNKNOWN} -o nowhere/x", 77, "nowhere/x' cannot be written: No such file or directory"),
    Bad("put nothere", 65, "'nothere' is not there"),
    Bad("put --replicas many fine.py", 2, "'many' is no number of copies"),
    Bad(f"why {UNKNOWN}", 69, f"nobody who can be reached knows '{UNKNOWN}'"),
    Bad("results garbage", 2, "no job here begins with 'garbage'"),
    Bad(f"results {UNKNOWN}", 69, "nobody who can be reached knows job aaaaaaaa"),
    Bad(f"cancel {UNKNOWN}", 69, "nobody who can be reached knows job"),
    Bad("join", 75, "a node already runs in "),
    Bad("join --detach", 75, "a node already runs in "),
    Bad("invite --role cook", 2, "'cook' is no role"),
]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.words)
def test_a_mistake_gets_one_clear_line_and_its_code(single: Grid, scripts: Path, bad: Bad) -> None:
    done = single[0].run(*bad.words.split(), cwd=scripts)
    assert done.returncode == bad.code, done.stderr
    (line,) = errors(done)
    assert bad.says in line
    assert done.stdout == ""


JOINS = [
    Bad("join garbage", 65, "this is not an invite"),
    Bad("join --listen garbage", 2, "'garbage' is no address to listen on"),
    Bad("join --listen 127.0.0.1:99999", 2, "'127.0.0.1:99999' is no address to listen on"),
    Bad("join --cpus many", 2, "invalid value for '--cpus': 'many' is not a whole number"),
    Bad("join --storage lots", 2, "'lots' is not a size"),
    Bad("peers", 69, "no node runs in "),
    Bad("leave", 69, "no node runs in "),
    Bad("run --detach fine.py --over 1", 69, "--detach needs a running node in this home"),
    Bad("run --detach raising.py", 69, "--detach needs a running node in this home"),
    Bad("run --quorum 2 fine.py --over 1", 2, "a quorum of 2 needs as many nodes, and there is one"),
]


@pytest.mark.parametrize("bad", JOINS, ids=lambda bad: bad.words)
def test_a_mistake_without_a_node_gets_one_clear_line_and_its_code(home: Path, scripts: Path, bad: Bad) -> None:
    done = cli(home, *bad.words.split(), cwd=scripts)
    assert done.returncode == bad.code, done.stderr
    (line,) = errors(done)
    assert bad.says in line
    assert done.stdout == ""


def test_a_port_in_use_is_said_and_the_next_start_is_free_of_it(single: Grid, home: Path) -> None:
    port = next(peer for peer in single[0].document("peers")["peers"] if peer["self"])["addresses"][0].rpartition(":")[2]
    done = cli(home, "join", "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 78, done.stderr
    (line,) = errors(done)
    assert f"cannot listen on 127.0.0.1 port {port}" in line
    node = start_node(home)
    try:
        until(lambda: node.ready, "the node is ready")
    finally:
        node.stop()


def test_a_folder_of_something_else_is_left_alone(home: Path) -> None:
    home.mkdir()
    (home / "thesis.tex").write_text("mine")
    done = cli(home, "join")
    assert done.returncode == 78
    (line,) = errors(done)
    assert "is not empty and no p2pgrid home ('thesis.tex' is in it)" in line
    assert [path.name for path in home.iterdir()] == ["thesis.tex"]


def expired_invite(member_home: Path) -> str:
    """An invite of this home that ended an hour ago."""
    home = Home(member_home, os.urandom)
    membership = load(home)
    assert membership is not None
    own = Contact(home.node_key().public, "127.0.0.1", 9)
    return make_invite(membership, ("work",), 1_700_000_000_000, [own], os.urandom)


def test_invites_that_cannot_be_used_are_told_apart(single: Grid, home: Path, tmp_path: Path) -> None:
    invite = single[0].run("invite").stdout.strip()
    cut = cli(home, "join", invite[:100])
    assert (cut.returncode, len(errors(cut))) == (65, 1), cut.stderr
    assert "damaged or cut off" in cut.stderr
    old = cli(home, "join", expired_invite(single[0].home))
    assert (old.returncode, len(errors(old))) == (77, 1), old.stderr
    assert "ended at 2023-11-14" in old.stderr
    with grid_of(1, tmp_path) as other:
        foreign = other[0].run("invite").stdout.strip()
        other[0].stop()
        wrong = cli(other[0].home, "join", invite)
        assert (wrong.returncode, len(errors(wrong))) == (78, 1), wrong.stderr
        assert "already a member of" in wrong.stderr
        away = cli(home, "join", foreign)
        assert (away.returncode, len(errors(away))) == (69, 1), away.stderr
    # Nothing of all this bound the home to a grid: a good invite still works.
    node = start_node(home, invite)
    try:
        until(lambda: node.ready, "the node is ready")
    finally:
        node.stop()


def test_the_expired_invite_of_these_tests_is_whole(single: Grid) -> None:
    assert parse_invite(expired_invite(single[0].home), 1_699_999_000_000).contacts


def test_units_that_raise_are_shown_and_counted_and_the_others_go_on(single: Grid, scripts: Path) -> None:
    done = single[0].run("run", "some.py", "--over", *map(str, range(12)), cwd=scripts)
    assert (done.returncode, done.stdout) == (1, "0\n1\n")
    assert done.stderr.count("Traceback") == 5
    assert "unit 2 failed (raised): ValueError: not 2" in done.stderr
    assert "raise ValueError(f'not {item}')" in done.stderr
    assert "... and 5 more units failed" in done.stderr
    job = done.stderr.strip().rpartition(" ")[2]
    again = single[0].run("results", job[:10])
    assert (again.returncode, again.stdout) == (1, "0\n1\n")


def test_a_unit_that_never_ends_is_stopped_and_the_others_go_on(single: Grid, scripts: Path) -> None:
    done = single[0].run("run", "--timeout", "1", "never.py", "--over", "1", "2", "3", cwd=scripts)
    assert (done.returncode, done.stdout) == (1, "1\n3\n"), done.stderr
    assert "unit 1 failed (timed-out)" in done.stderr
    assert "longer than its time-out of 1 s" in done.stderr


def test_workers_that_die_take_only_their_unit_along(single: Grid, scripts: Path) -> None:
    done = single[0].run("run", "dies.py", "--over", *"12345", cwd=scripts)
    assert (done.returncode, done.stdout) == (1, "1\n3\n5\n"), done.stderr
    assert "unit 1 failed (died): Died: the process that ran the unit ended with exit status 3" in done.stderr
    assert "unit 3 failed (died): Died: the process that ran the unit was killed by SIGSEGV" in done.stderr


def test_a_full_node_refuses_files_and_large_results_with_a_reason(tmp_path: Path, scripts: Path) -> None:
    with grid_of(1, tmp_path, "--storage", "1M") as grid:
        put = grid[0].run("put", scripts / "five")
        assert put.returncode == 77, put.stderr
        assert errors(put) == [f"p2pgrid: no room for {5 << 20} more bytes"]
        assert "hint: share more with --storage, or wait" in put.stderr
        ran = grid[0].run("run", scripts / "big.py", "--over", "1", "2")
        assert ran.returncode == 1, ran.stderr
        assert ran.stderr.count("no room for 3000005 more bytes") == 2
        assert "0 of 2 units have results" in ran.stderr


def test_a_results_folder_that_cannot_be_written_is_said_and_the_files_stay_in_the_grid(
    single: Grid, scripts: Path, tmp_path: Path
) -> None:
    script = tmp_path / "file.py"
    script.write_text("from pathlib import Path\ndef work(item):\n    path = Path('out.txt')\n    path.write_text(item)\n    return path\n")
    done = single[0].run("run", "-o", scripts / "five" / "folder", script, "--over", "words")
    assert done.returncode == 77, done.stderr
    (line,) = errors(done)
    assert "result files cannot be written to" in line
    job = single[0].document("jobs")["jobs"][0]["job"]
    again = single[0].run("results", job, "-o", tmp_path / "folder")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "folder" / "out.txt").read_text() == "words"


def test_a_reader_that_goes_away_early_is_no_bug(single: Grid, scripts: Path) -> None:
    words = [*PROGRAM, "run", "fine.py", "--over", *("x" * 1000 for _ in range(500))]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment() | {"P2PGRID_HOME": str(single[0].home)}, cwd=scripts
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) in (1, 141)
    assert stderr == b""
