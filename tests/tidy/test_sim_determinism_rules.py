"""Time, chance and threads reach the product as arguments, and no set decides an order; each rule is shown to catch what it is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.tidy import determinism_rules as rules
from tests.tidy.house_rules import Source

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in sorted((ROOT / "p2pgrid").rglob("*.py"))]
Rule = Callable[[Source], Iterable[str]]


def complain(found: Iterable[str]) -> None:
    """Fail with one line for each finding."""
    lines = list(found)
    if lines:
        pytest.fail("\n".join([f"{len(lines)} found:", *lines]), pytrace=False)


def test_time_chance_and_threads_are_arguments() -> None:
    assert len(SOURCES) > 50
    complain(line for source in SOURCES for line in rules.ambient_mentions(source))


def test_no_set_decides_an_order() -> None:
    names = rules.names_of_sets(SOURCES)
    assert names.sets
    assert names.functions
    complain(line for source in SOURCES for line in rules.unordered_iterations(source, names))


@pytest.mark.parametrize("path", list(rules.ALLOWED))
def test_every_exception_is_still_needed(path: str) -> None:
    inside = [source for source in SOURCES if source.within(path)]
    assert inside
    moved = [Source(f"p2pgrid/elsewhere/{source.path}", source.text) for source in inside]
    assert any(True for source in moved for _ in rules.ambient_mentions(source)), f"{path} no longer needs its exception"


AMBIENT = [
    "import time\ntime.monotonic()",
    "import time\ndef f(clock=time.time): ...",
    "from time import perf_counter as now\nx = now()",
    "import time\ntime.sleep(1)",
    "from datetime import datetime\ndatetime.now()",
    "import datetime as dt\ndt.datetime.utcnow()",
    "from datetime import date\ndate.today()",
    "import random\nrandom.choice([1])",
    "import random\npick = random.shuffle",
    "from random import random as draw\ndraw()",
    "import random\nrng = random.Random()",
    "from random import Random\nrng = Random()",
    "import random\nrng = random.SystemRandom()",
    "import os\nos.urandom(8)",
    "from os import urandom\nfill = urandom",
    "import secrets\nsecrets.token_bytes(8)",
    "from uuid import uuid4\nuuid4()",
    "import uuid\nuuid.uuid1()",
    "import threading\nthreading.Thread(target=f)",
    "from threading import Timer\nTimer(1, f)",
    "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor()",
    "import concurrent.futures\npool = concurrent.futures.ProcessPoolExecutor()",
    "import concurrent.futures.thread as threads\npool = threads.ThreadPoolExecutor()",
    "import asyncio\nasync def f():\n    await asyncio.to_thread(g)",
    "import asyncio\nasync def f():\n    await asyncio.get_running_loop().run_in_executor(None, g)",
    "async def f(self):\n    await self._loop.run_in_executor(None, g)",
    "import multiprocessing\np = multiprocessing.Process(target=f)",
    "from multiprocessing import Pool\nPool()",
    "import os\nos.fork()",
    "x = hash('a') % 7",
]


@pytest.mark.parametrize("text", AMBIENT)
def test_an_ambient_source_is_caught_once(text: str) -> None:
    assert len(list(rules.ambient_mentions(Source("p2pgrid/services/x.py", text)))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("p2pgrid/services/x.py", "import asyncio\nnow = asyncio.get_running_loop().time()"),
        ("p2pgrid/services/x.py", "import random\ndef f(rng: random.Random): return rng.random()"),
        ("p2pgrid/services/x.py", "import random\nrng = random.Random(7)\nrng.shuffle([])"),
        ("p2pgrid/services/x.py", "import datetime as dt\nx = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)"),
        ("p2pgrid/services/x.py", "import threading\nlock = threading.Lock()"),
        ("p2pgrid/services/x.py", "from concurrent.futures import Future\nf: Future"),
        ("p2pgrid/services/x.py", "def f(self, time): return self.time.time() + time.monotonic + self.random.random()"),
        ("p2pgrid/runtimes/worker/x.py", "import time\ntime.monotonic()"),
        ("cli/p2pgrid_cli/x.py", "import time\ntime.monotonic()"),
        ("tests/unit/x.py", "import os\nos.urandom(1)"),
    ],
)
def test_what_is_injected_or_not_the_products_passes(path: str, text: str) -> None:
    assert list(rules.ambient_mentions(Source(path, text))) == []


UNORDERED = [
    "for x in {a, b}: f(x)",
    "for x in set(names): f(x)",
    "for x in frozenset(names) - old: f(x)",
    "for x in old.keys() - new.keys(): f(x)",
    "for x in {a for a in b}: f(x)",
    "found = [f(x) for x in set(names)]",
    "found = {x: 1 for x in set(names)}",
    "found = list(set(names))",
    "found = ','.join({a, b})",
    "f(*{a, b})",
    "found = [*set(names), 1]",
    "for number, x in enumerate(set(names)): f(x)",
    "first = next(iter({a, b}))",
    "some = set(names)\nfor x in some: f(x)",
    "for x in some if (some := {a, b}) else (): f(x)",
    "def f(names: frozenset[bytes]):\n    for x in names: g(x)",
    "def f(names: set[str]):\n    return names.pop()",
    "def f():\n    some: set[object] = g()\n    yield from some",
    "class A:\n    def __init__(self):\n        self.x = set()\n    def f(self):\n        return list(self.x)",
    "class A:\n    x: frozenset[bytes]\n    def f(self):\n        for y in self.x | {b''}: g(y)",
    "class A:\n    x: dict[str, set[str]]\n    def f(self):\n        for y in self.x['a']: g(y)",
    "class A:\n    x: dict[str, set[str]]\n    def f(self):\n        for y in self.x.get('a', ()): g(y)",
    "def names() -> set[str]: ...\nfor x in names(): f(x)",
    "class A:\n    @property\n    def names(self) -> set[str]: ...\ndef f(a):\n    for x in a.names: g(x)",
    "async def f(tasks):\n    done, _ = await asyncio.wait(tasks)\n    for task in done: g(task)",
]


@pytest.mark.parametrize("text", UNORDERED)
def test_a_walk_over_a_set_is_caught_once(text: str) -> None:
    assert len(list(rules.unordered_iterations(Source("p2pgrid/services/x.py", text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "for x in sorted({a, b}): f(x)",
        "for x in sorted(y for y in set(names) if y): f(x)",
        "found = {f(x) for x in set(names)}",
        "found = sum(x for x in set(names))",
        "found = any(f(x) for x in {a, b})",
        "found = sorted(list(set(names)))",
        "if a in [*set(names), b]: f()",
        "some = set(names)\nif a in some: f(a)",
        "for x in {1, 2}: f(x)",
        "def f(numbers: set[int]):\n    for x in numbers: g(x)",
        "for x in dict.fromkeys(names): f(x)",
        "def f(names: list[str]):\n    for x in names: g(x)",
        "for x in set(names):  # In any order: each is only counted.\n    f(x)",
        "# They end in any order.\nfor x in set(names): f(x)",
        "class A:\n    x: set[str]\nclass B:\n    x: list[str]\n    def f(self):\n        for y in self.x: g(y)",
        "async def f(tasks):\n    done, _ = await asyncio.wait(tasks)\n    for task in [task for task in tasks if task in done]: g(task)",
    ],
)
def test_a_walk_whose_order_is_settled_passes(text: str) -> None:
    assert list(rules.unordered_iterations(Source("p2pgrid/services/x.py", text))) == []


def test_names_of_other_files_count_unless_a_file_has_its_own() -> None:
    other = Source("p2pgrid/core/y.py", "class A:\n    names: set[str]\ndef made() -> frozenset[str]: ...")
    names = rules.names_of_sets([other])
    loops = "def f(a):\n    for x in a.names: g(x)\n    for y in made(): g(y)"
    assert len(list(rules.unordered_iterations(Source("p2pgrid/core/x.py", loops), names))) == 2
    own = f"class B:\n    names: list[str]\ndef made() -> list[str]: ...\n{loops}"
    assert list(rules.unordered_iterations(Source("p2pgrid/core/x.py", own), names)) == []


def test_what_lies_outside_the_product_is_left_alone() -> None:
    assert list(rules.unordered_iterations(Source("tests/unit/x.py", "for x in {a, b}: f(x)"))) == []
