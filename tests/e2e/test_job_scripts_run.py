"""Whole jobs through the command line: the scenarios against their plain references, commands, files, and one's own machine."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

from tests.e2e.grids import Grid, cli

JOBS = Path(__file__).parents[2] / "scenarios" / "jobs"


def plain(job: str, *words: str | Path, cwd: Path | None = None) -> str:
    """What the job prints without p2pgrid."""
    done = subprocess.run([sys.executable, JOBS / job, "--plain", *words], capture_output=True, text=True, check=True, cwd=cwd)
    return done.stdout


def texts(folder: Path) -> Path:
    """A folder with words in it; one file is larger than what travels inside a batch."""
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(" ".join(f"word{chr(97 + index * number % 26)}" for index in range(200)))
    (folder / "long.txt").write_text("the quick brown fox " * 10_000)
    return folder


def test_wordcount_on_a_local_grid_prints_what_its_plain_reference_prints(home: Path, tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts")
    done = cli(home, "run", "--local", "2", JOBS / "wordcount.py", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain("wordcount.py", folder)
    assert "starting 2 local nodes" in done.stderr
    assert not home.exists()


def test_files_go_in_and_files_come_out(single: Grid, tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts")
    words = [Path("texts") / name for name in ("long.txt", "1.txt")]
    done = single[0].run("run", "-o", "packed", JOBS / "compress.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 result files in packed" in done.stderr
    for name in ("long.txt", "1.txt"):
        assert lzma.decompress((tmp_path / "packed" / f"{name}.xz").read_bytes()) == (folder / name).read_bytes()


def test_a_command_sees_its_files_where_the_user_has_them(single: Grid, tmp_path: Path) -> None:
    texts(tmp_path / "texts")
    names = ["texts/long.txt", "texts/1.txt", "texts/2.txt"]
    done = single[0].run("run", "--", "sha256sum", "{}", ":::", *names, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == subprocess.run(["sha256sum", *names], capture_output=True, text=True, check=True, cwd=tmp_path).stdout


def test_a_command_that_fails_shows_why_and_the_others_print(single: Grid, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("here\n")
    done = single[0].run("run", "--", "cat", "{}", ":::", "there", "missing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "here\n")
    assert "unit 1 failed (raised): CommandFailed: exit status 1" in done.stderr


def test_pi_is_the_same_here_and_plain(home: Path) -> None:
    done = cli(home, "run", JOBS / "pi.py", "8", "2000")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == plain("pi.py", "8", "2000")
    assert not home.exists()


def test_a_document_of_a_run_holds_results_and_failures(single: Grid, tmp_path: Path) -> None:
    script = tmp_path / "mixed.py"
    script.write_text("def work(item):\n    return {'1': b'raw', '2': [1, None]}[item]\n")
    done = single[0].run("run", "--json", script, "--over", "1", "2", "3")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["results"] == ["cmF3", [1, None]]
    assert (document["state"], document["units"], document["done"], document["failed"]) == ("failed", 3, 2, 1)
    (failure,) = document["failures"]
    assert (failure["unit"], failure["reason"], failure["type"]) == (2, "raised", "KeyError")


def test_items_may_be_longer_than_names_of_files(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text("def work(item):\n    return item\n")
    done = cli(home, "run", script, "--over", "x" * 1000, "a\tb")
    assert (done.returncode, done.stdout) == (0, "x" * 1000 + "\na\tb\n"), done.stderr


def test_items_may_be_the_lines_of_stdin(single: Grid, tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text("def work(item):\n    return item\n")
    done = single[0].run("run", script, "--over", "-", stdin="one\ntwo words\n")
    assert (done.returncode, done.stdout) == (0, "one\ntwo words\n"), done.stderr


def test_a_local_finish_runs_here(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "local.py"
    header = '# /// script\n# [tool.p2pgrid]\n# finish = "local"\n# ///\n'
    script.write_text(
        header + "import os\ndef work(item):\n    return int(item)\ndef finish(results):\n    return f'{sum(results)} {os.getcwd()}'\n"
    )
    done = cli(home, "run", script, "--over", "1", "2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"3 {tmp_path.resolve()}\n"), done.stderr
