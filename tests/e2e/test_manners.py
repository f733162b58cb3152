"""The manners of the command line: what stdout carries, what a wrong word gets, what a closed pipe and Ctrl-C leave behind."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from p2pgrid_cli.documents import DOCUMENTS, schema_of
from tests.e2e.grids import PROGRAM, SLEEPERS, Done, Member, cli, environment, grid_of, until

pytestmark = pytest.mark.timeout(150)
"""Some fixtures run dozens of commands."""
ROOT = Path(__file__).resolve().parents[2]
CHURN = ROOT / "scenarios" / "grids" / "churn.toml"
TINY = """
about = "Two machines and three units."
[[nodes]]
kind = "founder"
[[nodes]]
kind = "peer"
[[jobs]]
units = 3
"""
BIG_BYTES = 24 << 20
AT_ONE_TIME = 4
"""Commands, where they do not disturb one another."""


@dataclass(frozen=True)
class Place:
    """A node that has a job and a file, and the ids of these."""

    member: Member
    job: str
    failed: str
    blob: str
    big: str
    spare: str
    """A file that a test may give up."""
    folder: Path

    def fill(self, words: tuple[str, ...]) -> list[str]:
        """Words with the names of what is there in them."""
        names = {"JOB": self.job, "FAILED": self.failed, "BLOB": self.blob, "BIG": self.big, "SPARE": self.spare, "HERE": str(self.folder)}
        names |= {"CHURN": str(CHURN), "SLEEPERS": str(SLEEPERS)}
        return [_filled(word, names) for word in words]


def _filled(word: str, names: dict[str, str]) -> str:
    for name, text in names.items():
        word = word.replace(f"<{name}>", text)
    return word


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("manners")
    with grid_of(1, tmp_path_factory.mktemp("grid"), "--storage", "500M") as grid:
        member = grid[0]
        (folder / "small.txt").write_text("one line\n" * 2000)
        (folder / "spare.txt").write_text("one line\n")
        (folder / "big.bin").write_bytes(os.urandom(BIG_BYTES))
        (folder / "tiny.toml").write_text(TINY)
        (folder / "broken.py").write_text("def work(item:\n")
        (folder / "fails.py").write_text("def work(item):\n    raise ValueError(item)\n")
        blob, big, spare = (member.run("put", folder / name).stdout.strip() for name in ("small.txt", "big.bin", "spare.txt"))
        job = member.run("run", "--detach", "--", "echo", "{}", ":::", *map(str, range(40))).stdout.strip()
        failed = member.run("run", "--json", folder / "fails.py", "--over", "1").stdout
        member.run("results", job, "--wait")
        yield Place(member, job, json.loads(failed)["job"], blob, big, spare, folder)


# -- documents ---------------------------------------------------------------------------------

PRINTED: tuple[tuple[str, ...], ...] = (
    ("run", "--json", "--", "echo", "{}", ":::", "1", "2"),
    ("run", "--json", "--detach", "--", "echo", "{}", ":::", "1"),
    ("run", "--json", "<HERE>/fails.py", "--over", "1", "2"),
    ("jobs", "--json"),
    ("watch", "--json", "<JOB>"),
    ("results", "--json", "<JOB>"),
    ("results", "--json", "<FAILED>"),
    ("cancel", "--json", "<JOB>"),
    ("simulate", "--json", "<HERE>/tiny.toml"),
    ("simulate", "--json", "<HERE>/tiny.toml", "--trace", "fault"),
    ("simulate", "--json", "<HERE>/tiny.toml", "--seeds", "1..2"),
    ("put", "--json", "<HERE>/small.txt"),
    ("get", "--json", "<BLOB>", "-o", "<HERE>/got.txt"),
    ("blobs", "--json"),
    ("blobs", "--json", "--all"),
    ("pin", "--json", "<BLOB>"),
    ("unpin", "--json", "<SPARE>"),
    ("peers", "--json"),
    ("pause", "--json", "--for", "1s"),
    ("finish", "--json"),
    ("resume", "--json"),
    ("doctor", "--json", "--runtime", "command"),
    ("config", "show", "--json"),
    ("top", "--json"),
    ("why", "--json", "me"),
    ("why", "--json", "<JOB>"),
    ("why", "--json", "<FAILED>/0"),
    ("why", "--json", "<BLOB>"),
)


@pytest.mark.parametrize("words", PRINTED, ids=" ".join)
def test_a_document_is_what_its_schema_says(place: Place, words: tuple[str, ...]) -> None:
    done = place.member.run(*place.fill(words))
    assert done.returncode in (0, 1), done.stderr
    schema = schema_of(words[0])
    document = json.loads(done.stdout)
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(document)
    forms = [_properties(schema, one["$ref"]) for one in schema.get("anyOf", [schema])]
    assert any(set(document) <= form for form in forms), f"{set(document)} has keys that no schema of {words[0]} names"


def _properties(schema: dict[str, Any], reference: str) -> set[str]:
    return set(schema["$defs"][reference.rpartition("/")[2]]["properties"])


def test_every_command_that_has_a_document_is_asked_for_it() -> None:
    assert {words[0] for words in PRINTED} == set(DOCUMENTS)


@pytest.mark.parametrize(
    "words",
    [
        ("put", "<HERE>/small.txt"),
        ("invite",),
        ("run", "--detach", "--", "echo", "{}", ":::", "1"),
        ("config", "path"),
    ],
    ids=" ".join,
)
def test_what_scripts_take_up_is_one_line_on_stdout(place: Place, words: tuple[str, ...]) -> None:
    done = place.member.run(*place.fill(words))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.endswith("\n")


# -- wrong words -------------------------------------------------------------------------------

WRONG: tuple[tuple[int, tuple[str, ...]], ...] = (
    (2, ("nothing",)),
    (2, ("peesr",)),
    (2, ("--verbose",)),
    (2, ("peers", "--jsn")),
    (2, ("peers", "more")),
    (2, ("jobs", "--home")),
    (2, ("results",)),
    (2, ("results", "zzzz")),
    (2, ("why",)),
    (2, ("why", "me", "me")),
    (69, ("why", "zzzzzzzz")),
    (2, ("get", "<BLOB>", "--json")),
    (2, ("get", "nonsense")),
    (65, ("put", "<HERE>/not-there")),
    (2, ("put", "<HERE>/small.txt", "--ttl", "soon")),
    (2, ("put", "<HERE>/small.txt", "--replicas", "0")),
    (2, ("run",)),
    (2, ("run", "<HERE>/not-there.py")),
    (65, ("run", "<HERE>/broken.py", "--over", "1")),
    (2, ("run", "--runtime", "wasm", "<HERE>/fails.py", "--over", "1")),
    (2, ("run", "--local", "0", "<HERE>/fails.py")),
    (2, ("run", "--", "echo", "{}")),
    (2, ("invite", "--role", "king")),
    (65, ("join", "p2pgrid-no-invite", "--home", "<HERE>/other")),
    (2, ("join", "--busy", "200%")),
    (75, ("join",)),
    (2, ("pause", "--for", "ever")),
    (65, ("simulate", "<HERE>/not-there.toml")),
    (2, ("simulate", "<HERE>/tiny.toml", "--seeds", "9..1")),
    (2, ("doctor", "--runtime", "java")),
    (2, ("schema", "invites")),
    (2, ("completion", "tcsh")),
    (69, ("peers", "--home", "<HERE>/nobody")),
    (69, ("leave", "--home", "<HERE>/nobody")),
    (2, ("config", "shw")),
)


@pytest.fixture(scope="module")
def refusals(place: Place) -> dict[tuple[str, ...], Done]:
    """What each of the wrong commands came to: they do not disturb one another."""
    with ThreadPoolExecutor(AT_ONE_TIME) as pool:
        return dict(pool.map(lambda wrong: (wrong[1], place.member.run(*place.fill(wrong[1]))), WRONG))


@pytest.mark.parametrize(("code", "words"), WRONG, ids=lambda value: value if isinstance(value, int) else " ".join(value))
def test_a_wrong_word_gets_one_line_and_a_hint_on_stderr_and_nothing_on_stdout(
    refusals: dict[tuple[str, ...], Done], code: int, words: tuple[str, ...]
) -> None:
    done = refusals[words]
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("p2pgrid: ")
    assert "bug" not in lines[0]
    # A line of a script that does not parse is shown with it.
    hints = [line for line in lines[1:] if not line.startswith("    ")]
    assert len(hints) <= 1, done.stderr
    assert all(line.startswith("  hint: ") for line in hints)


@pytest.mark.parametrize(("key", "meant"), [("cpu", "cpus"), ("only-idle", "only_idle"), ("colour", "")])
def test_a_key_of_the_settings_that_is_unknown_is_an_error_with_a_suggestion(tmp_path: Path, key: str, meant: str) -> None:
    (tmp_path / "config.toml").write_text(f"{key} = 2\n")
    done = cli(tmp_path, "config", "show")
    assert (done.returncode, done.stdout) == (78, "")
    assert (f"did you mean '{meant}'?" in done.stderr) == bool(meant)


# -- completion --------------------------------------------------------------------------------


def _completed(words: str, home: Path, shell: str = "bash") -> list[str]:
    """What a shell is offered for the last of these words."""
    said = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_P2PGRID_COMPLETE": f"{shell}_complete"}
    variables = environment() | {"P2PGRID_HOME": str(home)} | said
    done = subprocess.run(PROGRAM, capture_output=True, text=True, env=variables, timeout=20, check=True)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_ids_are_completed_from_the_running_node(place: Place) -> None:
    home = place.member.home
    assert place.job[:8] in _completed("p2pgrid results ", home)
    assert _completed(f"p2pgrid watch {place.job[:3]}", home) == [place.job[:8]]
    assert _completed(f"p2pgrid cancel {place.job[:20]}", home) == [place.job]
    blobs = _completed("p2pgrid get ", home)
    assert {place.blob[:8], place.big[:8]} <= set(blobs)
    node = place.member.document("peers")["peers"][0]["node"]
    assert {"me", place.job[:8], place.blob[:8], node[:8]} <= set(_completed("p2pgrid why ", home))
    assert _completed("p2pgrid results ", home.with_name("nobody")) == []


def test_the_script_for_bash_makes_bash_complete(place: Place) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    folder = Path(tempfile.mkdtemp(prefix="pm-"))
    try:
        program = folder / "p2pgrid"
        program.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
        program.chmod(0o755)
        script = (
            f'eval "$(p2pgrid completion bash)"; COMP_WORDS=(p2pgrid results {place.job[:3]}); COMP_CWORD=2; _p2pgrid_completion p2pgrid; '
        )
        script += 'echo "${COMPREPLY[@]}"'
        variables = environment() | {"P2PGRID_HOME": str(place.member.home), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=variables, timeout=20, check=True)
        assert (done.stdout.strip(), done.stderr) == (place.job[:8], "")
    finally:
        shutil.rmtree(folder)


# -- pipes -------------------------------------------------------------------------------------

PIPED: tuple[tuple[str, ...], ...] = (
    ("--help",),
    ("run", "--help"),
    ("jobs",),
    ("watch", "<JOB>"),
    ("results", "<JOB>"),
    ("results", "<JOB>", "--json"),
    ("get", "<BIG>"),
    ("blobs",),
    ("peers", "--json"),
    ("top", "--once"),
    ("why", "me"),
    ("why", "<BLOB>"),
    ("config", "show", "--origin"),
    ("schema", "run"),
    ("completion", "bash"),
    ("simulate", "<HERE>/tiny.toml"),
    ("run", "--", "echo", "{}", ":::", "1", "2", "3"),
    ("pause", "--for", "1s"),
    ("resume",),
)


@pytest.fixture(scope="module")
def unread(place: Place) -> dict[tuple[tuple[str, ...], bool], tuple[int, str]]:
    """(exit code, what stderr got) of each command whose reader takes a line or nothing and goes away."""
    asked = [(words, reads) for words in PIPED for reads in (True, False)]
    with ThreadPoolExecutor(AT_ONE_TIME) as pool:
        return dict(zip(asked, pool.map(lambda one: _unread(place, *one), asked), strict=True))


def _unread(place: Place, words: tuple[str, ...], reads: bool) -> tuple[int, str]:
    process = subprocess.Popen(
        [*PROGRAM, *place.fill(words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment() | {"P2PGRID_HOME": str(place.member.home)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if reads:
        process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    return process.wait(20), said


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("words", PIPED, ids=" ".join)
def test_a_reader_who_goes_away_hears_no_complaint(
    unread: dict[tuple[tuple[str, ...], bool], tuple[int, str]], words: tuple[str, ...], reads: bool
) -> None:
    code, said = unread[words, reads]
    assert code in (0, 1)
    for word in ("Traceback", "Exception ignored", "BrokenPipe", "bug"):
        assert word not in said


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_are_for_terminals_that_want_them(place: Place, variables: dict[str, str], coloured: bool) -> None:
    said = _on_a_terminal(place, ["config", "show"], {"TERM": "xterm-256color", "COLUMNS": "80", **variables})
    assert "only_idle" in said
    # Dim and bold are no colours, and remain.
    assert ("\x1b[" in said) or not coloured
    assert "\x1b[3" not in said.replace("\x1b[39m", "") or coloured


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("words", [("jobs",), ("blobs",), ("peers",), ("config", "show", "--origin")], ids=" ".join)
def test_tables_are_as_wide_as_columns_says(place: Place, words: tuple[str, ...], columns: int) -> None:
    done = subprocess.run(
        [*PROGRAM, *words],
        capture_output=True,
        text=True,
        env=environment() | {"P2PGRID_HOME": str(place.member.home), "COLUMNS": str(columns)},
        check=True,
        timeout=20,
    )
    assert max(map(len, done.stdout.splitlines())) <= columns


def _on_a_terminal(place: Place, words: list[str], variables: dict[str, str]) -> str:
    """What a command writes to a terminal until it ends."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment() | {"P2PGRID_HOME": str(place.member.home)} | variables,
    )
    os.close(theirs)
    said = _drained(ours)
    process.wait(10)
    os.close(ours)
    return said


def _drained(terminal: int) -> str:
    said = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return said.decode(errors="replace")  # Nobody has the other end any more.
        if not data:
            return said.decode(errors="replace")
        said += data


# -- Ctrl-C ------------------------------------------------------------------------------------

MOMENTS_S = (0.02, 0.05, 0.1, 0.15, 0.22, 0.3, 0.45, 0.6, 0.9, 1.3, 2.0, 3.0)
GONE_S = 10.0
MARK = "MANNERS_MARK"
OURS = re.compile(r'p2pgrid_cli/main\.py", line \d+, in (?:main|_run)')
"""A traceback from where Ctrl-C is heard."""

INTERRUPTED: dict[str, tuple[str, ...]] = {
    "run --local": ("run", "--local", "2", "<SLEEPERS>", "3", "20"),
    "run": ("run", "<SLEEPERS>", "3", "20"),
    "put": ("put", "<HERE>/big.bin"),
    "get": ("get", "<BIG>", "-o", "<HERE>/<MARK>.bin"),
    "get to a pipe": ("get", "<BIG>"),
    "watch": ("watch", "<SLOW>"),
    "simulate": ("simulate", "<CHURN>", "--seeds", "1..40"),
    "join": ("join", "--home", "<TMP>/home", "--listen", "127.0.0.1:0", "--leave-within", "2"),
    "doctor": ("doctor", "--home", "<HERE>/nobody"),
    "top": ("top",),
}


BRIEF = ("put", "get", "get to a pipe", "doctor")
"""What may end before Ctrl-C is heard."""


@dataclass(frozen=True)
class Interrupted:
    """What one Ctrl-C came to."""

    moment_s: float
    code: int
    said: str
    was_running: bool
    took_s: float
    left: list[str]
    files: list[str]


@pytest.fixture(scope="module")
def slow(place: Place) -> str:
    """A job that does not end by itself."""
    return place.member.run("run", "--detach", SLEEPERS, "1", "600").stdout.strip()


@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c_at_any_moment_ends_the_command_and_leaves_nothing_behind(name: str, place: Place, slow: str) -> None:
    with ThreadPoolExecutor(AT_ONE_TIME) as pool:
        ended = list(pool.map(lambda moment_s: _interrupt(name, place, slow, moment_s), MOMENTS_S))
    problems = [problem for one in ended for problem in _problems(name, one)]
    assert not problems, "\n".join(problems)
    assert sum(one.was_running for one in ended) >= 4, "the command is over too early to be interrupted"
    running = {line["job"] for line in place.member.document("jobs")["jobs"] if line["state"] == "running"}
    assert running <= {slow}, "a command that was stopped leaves nothing behind in the grid either"


@pytest.mark.parametrize("moment_s", [0.3, 0.5])
def test_ctrl_c_ends_the_node_that_was_being_started(moment_s: float, place: Place) -> None:
    mark, folder = uuid.uuid4().hex[:12], place.folder / f"detached-{moment_s}"
    words = ["join", "--detach", "--home", str(folder), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*PROGRAM, *words], stderr=subprocess.PIPE, text=True, env=environment() | {MARK: mark}, start_new_session=True
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment_s)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    if process.returncode == 0:  # It was ready before.
        assert place.member.run("leave", "--home", str(folder)).returncode == 0
    else:
        assert process.returncode == 130, said
        until(lambda: not _left(mark, {}), "no node is left")


def _interrupt(name: str, place: Place, slow: str, moment_s: float) -> Interrupted:
    """Start the command, press Ctrl-C after some time, and see what is left."""
    mark = uuid.uuid4().hex[:12]
    folder = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))
    temporary = folder / "t"
    temporary.mkdir()
    names = {"SLOW": slow, "MARK": mark, "TMP": str(folder)}
    words = [_filled(word, names) for word in place.fill(INTERRUPTED[name])]
    variables = {"P2PGRID_HOME": str(place.member.home), MARK: mark, "TMPDIR": str(temporary), "TERM": "xterm", "COLUMNS": "80"}
    terminal = pty.openpty() if name == "top" else None
    output: Any = terminal[1] if terminal else subprocess.PIPE
    errors = (folder / "stderr").open("wb")
    process = subprocess.Popen(
        [*PROGRAM, *words],
        stdin=terminal[1] if terminal else subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        env=environment() | variables,
        cwd=folder,
        start_new_session=True,
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment_s)
        children = _descendants(process.pid)
        was_running = process.poll() is None
        started = time.monotonic()
        if was_running:
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(30)
        took_s = time.monotonic() - started
        left = _left(mark, children)
        deadline = time.monotonic() + GONE_S
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = _left(mark, children)
        files = [path.name for path in temporary.iterdir()]
        return Interrupted(moment_s, code, (folder / "stderr").read_text(errors="replace"), was_running, took_s, left, files)
    finally:
        process.kill()
        process.wait()
        errors.close()
        if process.stdout is not None:
            process.stdout.close()
        for end in terminal or ():
            os.close(end)
        shutil.rmtree(folder, ignore_errors=True)


def _problems(name: str, one: Interrupted) -> list[str]:
    """What is not as it should be."""
    # What the interpreter says of Ctrl-C before it runs a line of ours is its own.
    early = "Traceback" in one.said and not OURS.search(one.said)
    # A shell calls both of these 130: some of what may be interrupted lets the interpreter end by the signal itself.
    expected = {130, -signal.SIGINT} | ({1} if early else set())
    # Ctrl-C is how `top` ends; and what was just ending by itself has ended well.
    if name == "top" or not one.was_running or (name in BRIEF and one.took_s < 1):
        expected.add(0)
    found = []
    if one.code not in expected:
        found.append(f"exit code {one.code}")
    if not early and ("Traceback" in one.said or "Exception ignored" in one.said):
        found.append("a traceback")
    if "Warning" in one.said or "this is a bug" in one.said:
        found.append("what is for developers only")
    if one.left:
        found.append(f"processes: {one.left}")
    if one.files:
        found.append(f"files: {one.files}")
    if one.took_s > 5:
        found.append(f"it took {one.took_s:.1f} s")
    return [f"{name} at {one.moment_s} s: {problem}\n{one.said}" for problem in found]


def _descendants(root: int) -> dict[int, str]:
    """The processes below one, with the time of their start, by which a pid is told from its next owner."""
    parents: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (fields := _stat(path)):
            parents[int(path.name)] = (int(fields[1]), fields[19])
    found: dict[int, str] = {}
    pending = [root]
    while pending:
        pid = pending.pop()
        for child, (parent, start) in parents.items():
            if parent == pid and child not in found:
                found[child] = start
                pending.append(child)
    return found


def _stat(process: Path) -> list[str]:
    """The fields behind the name; none of what has ended."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return []
    return fields if fields[0] not in "ZX" else []


def _left(mark: str, children: dict[int, str]) -> list[str]:
    """Processes that bear the mark, or were below the command."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or not (fields := _stat(path)):
            continue
        try:
            marked = wanted in (path / "environ").read_bytes()
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
        except OSError:
            continue
        if marked or children.get(int(path.name)) == fields[19]:
            found.append(f"{path.name} {words}")
    return found


def test_a_second_command_finds_the_node_unharmed(place: Place) -> None:
    until(lambda: place.member.run("peers").returncode == 0, "the node answers")
    assert place.member.document("peers")["peers"][0]["self"]
