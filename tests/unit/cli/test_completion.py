"""Completion: what a shell is told, asked as a shell asks; and that it is never told of a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import p2pgrid
import p2pgrid_cli
from p2pgrid.model.ids import to_text
from p2pgrid_cli import catalog, completion
from p2pgrid_cli.completion import SHELLS
from p2pgrid_cli.documents import DOCUMENTS


def ask(words: str, variables: Mapping[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Ask as bash does: the last word is what is being completed."""
    packages = {str(Path(package.__file__ or "").parents[1]) for package in (p2pgrid, p2pgrid_cli)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PGRID")}
    said = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_P2PGRID_COMPLETE": "bash_complete"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "p2pgrid_cli"],
        capture_output=True,
        text=True,
        env=kept | {"PYTHONPATH": os.pathsep.join(packages)} | said | dict(variables or {}),
        cwd=cwd,
        timeout=15,
        check=False,
    )


def told(words: str, variables: Mapping[str, str] | None = None, cwd: Path | None = None) -> list[str]:
    """The words that are offered."""
    done = ask(words, variables, cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_and_options_are_completed(tmp_path: Path) -> None:
    assert told("p2pgrid ") == list(catalog.entries())
    assert told("p2pgrid pe") == ["peers"]
    assert told("p2pgrid config ") == ["show", "path"]
    assert "--accept-from" in told("p2pgrid join --")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("p2pgrid completion ", list(SHELLS)),
        ("p2pgrid run --runtime w", ["wasm"]),
        ("p2pgrid run --runtime a", ["auto"]),
        ("p2pgrid doctor --runtime n", ["native"]),
        ("p2pgrid join --runtimes wasm,p", ["wasm,python"]),
        ("p2pgrid invite --role s", ["store", "submit"]),
        ("p2pgrid schema r", [name for name in DOCUMENTS if name.startswith("r")]),
        ("p2pgrid why m", ["me"]),
    ],
)
def test_words_of_which_there_are_few_are_completed(words: str, expected: list[str], tmp_path: Path) -> None:
    assert told(words, {"P2PGRID_HOME": str(tmp_path / "none")}) == expected


def test_scripts_are_completed_with_the_folders_that_they_may_lie_in(tmp_path: Path) -> None:
    for name in ("job.py", "tool.wasm", "notes.txt", ".hidden.d"):
        (tmp_path / name).touch()
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "inner.py").touch()
    assert told("p2pgrid run ", cwd=tmp_path) == ["job.py", "jobs/", "tool.wasm"]
    assert told("p2pgrid run jobs/", cwd=tmp_path) == ["jobs/inner.py"]
    assert told("p2pgrid run nowhere/", cwd=tmp_path) == []


@pytest.mark.parametrize("words", ["p2pgrid results ", "p2pgrid get ", "p2pgrid watch x", "p2pgrid run --local x "])
def test_where_no_node_runs_nothing_is_offered_and_nothing_is_made(words: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert [word for word in told(words, {"P2PGRID_HOME": str(home)}, tmp_path) if not word.endswith((".py", "/"))] == []
    assert not home.exists()


@pytest.mark.parametrize("content", [b"", b"not a lock", b"\x00\xff"])
def test_a_home_that_is_damaged_is_not_spoken_of(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(content)
    (tmp_path / "format").write_bytes(content)
    assert told("p2pgrid results ", {"P2PGRID_HOME": str(tmp_path)}) == []


@pytest.mark.parametrize("instruction", ["tcsh_complete", "bash_nonsense", "nonsense"])
def test_an_instruction_that_makes_no_sense_is_refused_in_silence(instruction: str) -> None:
    done = ask("p2pgrid ", {"_P2PGRID_COMPLETE": instruction})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_asks_the_program_with_the_variable_that_it_listens_to(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    completion.completion(shell)
    script = capsys.readouterr().out
    assert f"_P2PGRID_COMPLETE={shell}_complete" in script
    assert "%(" not in script


def test_the_script_for_bash_is_one() -> None:
    done = subprocess.run(["bash", "-n"], input=completion._script("bash"), capture_output=True, text=True, check=False, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")


def test_ids_are_offered_short_and_in_full_once_more_is_typed() -> None:
    first, second = to_text(b"\1" * 32), to_text(b"\2" * 32)
    found = [(first, "one"), (second, "two\x1b[31m")]
    assert completion._items(found, "") == [(first[:8], "one"), (second[:8], "two?[31m")]
    assert completion._items(found, first[:20]) == [(first, "one")]
    assert completion._items(found, first[:3].upper())[0] == (first[:8], "one")
    assert completion._items(found, "1") == []
