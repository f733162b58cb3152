"""The house keeps its own rules; and each rule is shown to catch what it is there for."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from p2pgrid_cli import catalog
from tests.tidy import house_rules as rules
from tests.tidy.house_rules import Source
from tests.tidy.module_use import dead_modules

ROOT = Path(__file__).resolve().parents[2]
CODE = ("p2pgrid", "cli", "bench", "tests", "scenarios")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".cfg", ".yml", ".yaml", ".sh"}
BUILT = {".wasm", ".so"}
"""What an installation makes is no text."""
Rule = Callable[[Source], Iterable[str]]


def read(pattern: str, *folders: str) -> list[Source]:
    """The project's texts under the folders ("." is its own folder, without the ones below)."""
    found: list[Source] = []
    for folder in folders:
        base = ROOT / folder
        depth = len(Path(folder).parts)
        paths = base.glob(pattern) if folder == "." else base.rglob(pattern)
        for path in sorted(paths):
            relative = path.relative_to(ROOT)
            if (
                path.suffix not in BUILT
                and path.is_file()
                and not any(part.startswith(".") or part == "__pycache__" for part in relative.parts[depth:-1])
            ):
                found.append(Source(relative.as_posix(), path.read_text(encoding="utf-8")))
    return found


PYTHON = read("*.py", *CODE)
MARKDOWN = read("*.md", ".", "docs", "scenarios", "bench", "tests", "p2pgrid", "cli")
TEXT = [s for s in read("*", ".", "docs", ".ci", *CODE) if Path(s.path).suffix in TEXT_SUFFIXES or s.path == ".ci/run"]


def complain(found: Iterable[str]) -> None:
    """Fail with one line for each finding."""
    lines = list(found)
    if lines:
        pytest.fail("\n".join([f"{len(lines)} found:", *lines]), pytrace=False)


def broken(rule: Rule, sources: Iterable[Source]) -> Iterator[str]:
    """What breaks the rule in any of the files."""
    for source in sources:
        yield from rule(source)


def test_there_is_something_to_check() -> None:
    assert len(PYTHON) > 10
    assert any(source.path.startswith("docs/adr/") for source in MARKDOWN)
    assert any(source.path == ".ci/run" for source in TEXT)


def test_no_file_is_past_its_length() -> None:
    for source in sorted(PYTHON, key=lambda source: -source.lines):
        if source.lines > rules.FILE_LINES_SOFT:
            print(f"wants a second room: {source.path} has {source.lines} lines")
    complain(f"{s.path}: {s.lines} lines; {rules.FILE_LINES_MAX} are the most" for s in PYTHON if s.lines > rules.FILE_LINES_MAX)


@pytest.mark.parametrize("rule", [rules.long_functions, rules.banned_calls, rules.dropped_tasks, rules.missing_docstring])
def test_python_keeps_the_rule(rule: Rule) -> None:
    complain(broken(rule, PYTHON))


def test_tests_do_not_sleep() -> None:
    complain(broken(rules.sleeping_tests, [source for source in PYTHON if source.within("tests")]))


@pytest.mark.parametrize("rule", [rules.leftovers, rules.machine_paths])
def test_text_keeps_the_rule(rule: Rule) -> None:
    # This folder has to spell out what it looks for.
    complain(broken(rule, [source for source in TEXT if not source.within("tests/tidy")]))


def test_every_page_has_one_title() -> None:
    complain(broken(rules.one_title, MARKDOWN))


def test_every_decision_record_has_its_sections() -> None:
    records = [s for s in MARKDOWN if s.path.startswith("docs/adr/") and not s.path.endswith("README.md")]
    complain(broken(rules.decision_sections, records))


def test_every_decision_record_is_in_the_index() -> None:
    index = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    names = [path.name for path in sorted((ROOT / "docs/adr").glob("[0-9]*.md"))]
    complain(f"docs/adr/README.md does not list {name}" for name in names if name not in index)
    numbers = Counter(name[:4] for name in names)
    complain(f"two decision records are numbered {number}" for number, count in numbers.items() if count > 1)


def test_pages_that_are_mentioned_exist() -> None:
    sources = [source for source in TEXT if not source.within("tests/tidy")]
    complain(line for source in sources for line in rules.dead_references(source, ROOT))


def test_no_module_is_dead() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    entry_points = [target.partition(":")[0] for target in scripts.values()]
    by_name = [f"p2pgrid.runtimes.worker.{module}" for module in ("command", "compiling", "guest", "wasm")]  # As the runtime says.
    inside = ["p2pgrid.runtimes.runner.guest.app", "p2pgrid.runtimes.runner.guest.library"]  # Built into the runner.
    commands = [f"p2pgrid_cli.{entry.module}" for entry in catalog.entries().values()]  # Imported when they are wanted.
    complain(
        dead_modules(PYTHON, [*entry_points, *by_name, *commands, *inside, "p2pgrid", "p2pgrid_cli", "p2pgrid.testing", "p2pgrid.client"])
    )


def test_the_gate_runs_the_tests_as_the_readme_does() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in readme.splitlines() if line.strip().startswith(".venv/bin/")]
    commands = [command for line in lines for command in line.split(" && ") if command.endswith("pytest")]
    assert commands, "README.md shows no test command"
    gate = (ROOT / ".ci/run").read_text(encoding="utf-8")
    complain(f".ci/run does not run: {command}" for command in commands if command.replace(".venv/", ".ci-venv/", 1) not in gate)


def test_test_files_can_live_side_by_side() -> None:
    # Without packages in tests/ two files of one name would be one module to mypy and to the reader.
    tests = [Path(source.path) for source in PYTHON if source.within("tests")]
    complain(f"{path}: tests/ has no packages" for path in tests if path.name == "__init__.py")
    count = Counter(path.name for path in tests if path.name != "conftest.py")
    complain(f"{name}: {number} files of one name" for name, number in count.items() if number > 1)


PLANTED: list[tuple[Rule, str, str]] = [
    (rules.banned_calls, "p2pgrid/core/x.py", "import time\ntime.monotonic()"),
    (rules.banned_calls, "p2pgrid/core/x.py", "from time import time as now\nnow()"),
    (rules.banned_calls, "p2pgrid/wire/x.py", "import os\nos.urandom(32)"),
    (rules.banned_calls, "p2pgrid/dht/x.py", "import random\nrandom.choice([1])"),
    (rules.banned_calls, "p2pgrid/core/x.py", "import random\nrandom.Random()"),
    (rules.banned_calls, "p2pgrid/net/x.py", "import pickle\npickle.loads(b'')"),
    (rules.banned_calls, "tests/unit/x.py", "from pickle import loads\nloads(b'')"),
    (rules.banned_calls, "p2pgrid/net/x.py", "import asyncio\nasyncio.get_event_loop()"),
    (rules.banned_calls, "p2pgrid/store/x.py", "import os.path\nos.path.join(a, b)"),
    (rules.banned_calls, "p2pgrid/store/x.py", "print(1)"),
    (rules.banned_calls, "p2pgrid/runtimes/x.py", "import subprocess\nsubprocess.Popen(a, preexec_fn=f)"),
    (rules.dropped_tasks, "p2pgrid/net/x.py", "asyncio.create_task(f())"),
    (rules.dropped_tasks, "p2pgrid/net/x.py", "asyncio.ensure_future(f())"),
    (rules.dropped_tasks, "p2pgrid/net/x.py", "self._loop.create_task(f())"),
    (rules.dropped_tasks, "p2pgrid/net/x.py", "asyncio.get_running_loop().create_task(f())"),
    (rules.long_functions, "p2pgrid/net/x.py", "def f():\n" + "    pass\n" * 60),
    (rules.missing_docstring, "p2pgrid/net/x.py", "import os"),
    (rules.sleeping_tests, "tests/unit/x.py", "async def test_x():\n    async with y:\n        await asyncio.sleep(0.1)"),
    (rules.leftovers, "docs/x.md", "TO" + "DO: the rest"),
    (rules.machine_paths, "docs/x.md", "open /home/somebody/p2pgrid"),
    (rules.one_title, "docs/x.md", "# One\n\n# Two\n"),
    (rules.decision_sections, "docs/adr/0099-x.md", "# x\n\n## Context\n\n## Decision\n"),
]


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_fault_is_caught(rule: Rule, path: str, text: str) -> None:
    assert len(list(rule(Source(path, text)))) == 1


ALLOWED: list[tuple[Rule, str, str]] = [
    (rules.banned_calls, "p2pgrid/core/x.py", "from random import Random\nrng = Random(7)\nrng.choice([1])"),
    (rules.banned_calls, "p2pgrid/net/x.py", "import time\ntime.monotonic()"),
    (rules.banned_calls, "tests/unit/x.py", "import pickle\npickle.dumps(1)"),
    (rules.dropped_tasks, "p2pgrid/net/x.py", "group.create_task(f())"),
    (rules.dropped_tasks, "p2pgrid/net/x.py", "self._task = asyncio.create_task(f())"),
    (rules.sleeping_tests, "tests/unit/x.py", "async def test_x():\n    while y():\n        await asyncio.sleep(0.1)"),
    (rules.sleeping_tests, "tests/unit/x.py", "async def test_x():\n    async def slow():\n        await asyncio.sleep(9)"),
    (rules.sleeping_tests, "tests/unit/x.py", "async def test_x():\n    await asyncio.sleep(0)"),
    (rules.one_title, "docs/x.md", "# One\n\n```\n# a comment\n```\n"),
    (rules.machine_paths, "docs/x.md", "see https://example.org/work/a and scenarios/home/b"),
]


@pytest.mark.parametrize(("rule", "path", "text"), ALLOWED)
def test_what_is_sound_passes(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text))) == []


def test_a_page_that_is_gone_is_reported(tmp_path: Path) -> None:
    page = Source("docs/x.md", "# x\n\nSee [y](y.md), [site](https://example.org) and docs/spec/z.md.\n")
    assert [line.split()[1:3] for line in rules.dead_references(page, tmp_path)] == [["mentions", "docs/spec/z.md,"], ["links", "to"]]


def test_a_module_nobody_uses_is_reported() -> None:
    sources = [
        Source("p2pgrid/__init__.py", ""),
        Source("p2pgrid/main.py", "from p2pgrid import alive\nfrom p2pgrid.pack.inner import thing\nrun('started.py')"),
        Source("p2pgrid/alive.py", ""),
        Source("p2pgrid/started.py", ""),
        Source("p2pgrid/dead.py", "from p2pgrid import dead"),
        Source("p2pgrid/pack/__init__.py", ""),
        Source("p2pgrid/pack/inner.py", ""),
        Source("p2pgrid/testing/kit.py", ""),
        Source("tests/unit/test_x.py", "import p2pgrid.dead\nfrom p2pgrid.testing.kit import clock"),
    ]
    assert [line.split(":")[0] for line in dead_modules(sources, ["p2pgrid", "p2pgrid.main"])] == ["p2pgrid/dead.py"]
