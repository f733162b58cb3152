"""The job scripts, run as the grid would run them, give what one plain process gives."""

from __future__ import annotations

import functools
import importlib.util
import lzma
import random
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "scenarios" / "jobs"
SCRIPTS = sorted(JOBS.glob("*.py"))


def load(name: str) -> ModuleType:
    """The script as a module that is not __main__, as a worker loads it."""
    spec = importlib.util.spec_from_file_location(f"job_{name}", JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tree(reduce: Any, values: list[Any], rng: random.Random) -> Any:
    """Reduce as peers do: neighbours merge in stretches of any length, level by level."""
    while len(values) > 1:
        size = rng.randint(2, 5)
        values = [functools.reduce(reduce, values[start : start + size]) for start in range(0, len(values), size)]
    return values[0]


def run_on_a_grid(job: ModuleType, *arguments: str, seed: int = 0) -> Any:
    """inputs -> work -> reduce or list -> finish."""
    results = [job.work(item) for item in job.inputs(*arguments)]
    return job.finish(tree(job.reduce, results, random.Random(seed)) if hasattr(job, "reduce") else results)


def texts(folder: Path) -> Path:
    """A small tree of files with known words, an empty one and a hidden one among them."""
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.txt").write_text("The cat, the DOG; snake_case x1y\n")
    (folder / "deep" / "b.txt").write_text("the cat " * 300)
    (folder / "deep" / "er" / "c.bin").write_bytes(bytes(range(256)) * 4)
    (folder / "empty").touch()
    (folder / ".hidden").write_text("never never never")
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_a_pep_723_job_that_shows_its_command_line(script: Path) -> None:
    text = script.read_text()
    block = text.partition("# /// script\n")[2].partition("# ///\n")[0]
    header = tomllib.loads("".join(line.removeprefix("# ").removeprefix("#") for line in block.splitlines(keepends=True)))
    job = load(script.stem)
    assert header["requires-python"] == ">=3.11"
    assert header["dependencies"] == []
    assert header["tool"]["p2pgrid"] == {}
    assert callable(job.work)
    assert callable(job.inputs)
    assert f"p2pgrid run scenarios/jobs/{script.name}" in (job.__doc__ or "")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("pi", ("7", "500")), ("pi", ("1", "1")), ("primes", ("1000", "64")), ("primes", ("3", "1")), ("primes", ("1", "5"))],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_job_in_parts_equals_the_plain_run(name: str, arguments: tuple[str, ...], seed: int) -> None:
    job = load(name)
    assert run_on_a_grid(job, *arguments, seed=seed) == job.plain(*arguments)


@pytest.mark.parametrize("seed", range(3))
def test_wordcount_in_parts_equals_the_plain_run(tmp_path: Path, seed: int) -> None:
    folder = texts(tmp_path)
    job = load("wordcount")
    text = run_on_a_grid(job, str(folder), seed=seed)
    assert text == job.plain(str(folder))
    # 7 in a.txt, 600 in b.txt, and in c.bin four times: the capitals, the lone underscore, the small letters.
    assert text.splitlines()[0] == "4 files, 619 words, 8 distinct"
    assert text.splitlines()[1:3] == ["302 the", "301 cat"]


def test_wordcount_orders_equal_counts_by_alphabet(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("b a c c")
    assert load("wordcount").plain(str(path)).splitlines()[1:] == ["2 c", "1 a", "1 b"]


def test_wordcount_groups_many_files_into_few_units(tmp_path: Path) -> None:
    for number in range(600):
        (tmp_path / f"{number:03}").touch()
    job = load("wordcount")
    groups = list(job.inputs(str(tmp_path)))
    assert len(groups) == job.UNITS_MAX
    assert sorted(path for group in groups for path in group) == sorted(tmp_path.iterdir())


def test_wordcount_reads_the_standard_library_unless_told_otherwise() -> None:
    files = [path for group in load("wordcount").inputs() for path in group]
    assert len(files) > 300
    assert {"json/decoder.py", "heapq.py"} <= {"/".join(path.parts[-2:]) for path in files} | {path.name for path in files}
    assert not [path for path in files if "site-packages" in path.parts or "idle_test" in path.parts]


def test_wordcount_names_the_path_that_is_not_there(tmp_path: Path) -> None:
    job = load("wordcount")
    with pytest.raises(FileNotFoundError, match="no such file or folder: nowhere"):
        list(job.inputs(str(tmp_path), "nowhere"))
    with pytest.raises(FileNotFoundError, match="no files in"):
        list(job.inputs(str(tmp_path)))


def test_a_word_counting_script_runs_by_itself(tmp_path: Path) -> None:
    folder = texts(tmp_path)
    command = [sys.executable, "-I", str(JOBS / "wordcount.py"), "--plain"]
    good = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=15, check=False)
    assert (good.returncode, good.stdout, good.stderr) == (0, load("wordcount").plain(str(folder)), "")
    bad = subprocess.run([*command, "nowhere"], capture_output=True, text=True, timeout=15, check=False)
    assert (bad.returncode, bad.stdout, bad.stderr) == (65, "", "wordcount: no such file or folder: nowhere\n")


def test_a_unit_of_pi_is_the_same_everywhere() -> None:
    assert load("pi").work([1, 10_000]) == load("pi").work([1, 10_000]) == [7854, 10_000]


@pytest.mark.parametrize(("name", "argument"), [("pi", "0"), ("pi", "many"), ("primes", "-5"), ("primes", "²")])
def test_a_number_that_is_none_is_refused_with_its_text(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=f"whole number above 0, not '{argument}'"):
        list(load(name).inputs(argument))


@pytest.mark.parametrize(("first", "end"), [(0, 0), (0, 2), (0, 3), (1, 30), (2, 3), (24, 29), (97, 98), (90, 200)])
def test_the_sieve_finds_exactly_the_primes(first: int, end: int) -> None:
    assert load("primes").sieve(first, end) == [n for n in range(max(first, 2), end) if all(n % d for d in range(2, n))]


def test_compress_gives_back_a_file_that_unpacks_to_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in" / "data.bin"
    source.parent.mkdir()
    source.write_bytes(b"spare cycles " * 5000)
    monkeypatch.chdir(tmp_path)
    job = load("compress")
    (item,) = job.inputs(str(source))
    result = job.work(item)
    assert result == Path("data.bin.xz")
    assert lzma.decompress(result.read_bytes()) == source.read_bytes()
    first = result.read_bytes()
    assert job.work(item).read_bytes() == first


def test_compress_refuses_what_it_cannot_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").touch()
    job = load("compress")
    with pytest.raises(ValueError, match="would both become same"):
        list(job.inputs(str(tmp_path / "a/same.txt"), str(tmp_path / "b/same.txt")))
    with pytest.raises(FileNotFoundError, match="no such file: gone"):
        list(job.inputs("gone"))
    with pytest.raises(ValueError, match="at least one file"):
        list(job.inputs())
