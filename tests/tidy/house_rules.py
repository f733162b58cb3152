"""The house's own rules as pure functions: each takes sources and returns what breaks the rule, and the way out.

What ruff, mypy and import-linter can check is left to them. Here stands what is particular to p2pgrid.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

FILE_LINES_SOFT = 400
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 60
ADR_HEADINGS = ("Context", "Decision", "Consequences")
LEFTOVERS = re.compile("|".join(rf"\b{left}{right}\b" for left, right in (("FIX", "ME"), ("X", "XX"), ("TO", "DO"), ("HA", "CK"))))
# Folders of somebody's machine. A made-up path for an example is better under /srv or /data.
MACHINE_PATHS = re.compile(r"(?<![\w.~-])/(?:root|work|home)/[\w.]|/tmp/\w+_jobs|\.pyenv/")
MARKDOWN_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
DOCS_MENTION = re.compile(r"\bdocs/[\w./-]+\.md\b")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)

AsyncOrNot = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file: its path from the project's folder, with forward slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed module."""
        return ast.parse(self.text, self.path)

    @property
    def lines(self) -> int:
        """How long the file is."""
        return len(self.text.splitlines())

    def within(self, *folders: str) -> bool:
        """Whether the file is one of these, or lies in one of these folders."""
        return any(f"{self.path}/".startswith(folder.rstrip("/") + "/") for folder in folders)


@dataclass(frozen=True)
class Ban:
    """Calls that are not to be made, where that holds, and what to write in their place."""

    calls: frozenset[str]
    instead: str
    inside: tuple[str, ...] = ("p2pgrid", "cli")
    but_not: tuple[str, ...] = field(default=())

    def holds_in(self, source: Source) -> bool:
        """Whether the ban covers the file."""
        return source.within(*self.inside) and not source.within(*self.but_not)


WORKER = "p2pgrid/runtimes/worker"
INSIDE = (WORKER, "p2pgrid/runtimes/sandbox", "p2pgrid/runtimes/runner/guest", "p2pgrid/runtimes/selftest/attacks")
"""What runs in processes and guests that belong to one job: nothing that is imported there twice, and no event loop to block."""
PURE = ("p2pgrid/core", "p2pgrid/model", "p2pgrid/wire", "p2pgrid/dht")
EVERYWHERE = ("p2pgrid", "cli", "tests", "bench", "scenarios")
UNPICKLERS = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "_pickle")
RANDOM_FUNCTIONS = ("betavariate", "choice", "choices", "expovariate", "gauss", "getrandbits", "normalvariate", "randbytes", "randint")
RANDOM_MORE = ("random", "randrange", "sample", "seed", "shuffle", "triangular", "uniform", "SystemRandom")
CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")

BANS = (
    Ban(frozenset(f"time.{name}" for name in CLOCKS), "take a Clock or WallClock as an argument", PURE),
    Ban(frozenset({"datetime.now", "datetime.datetime.now", "datetime.utcnow"}), "take a WallClock as an argument", PURE),
    Ban(frozenset(f"random.{name}" for name in RANDOM_FUNCTIONS + RANDOM_MORE), "take a random.Random as an argument", PURE),
    Ban(
        frozenset({"os.urandom", "secrets.token_bytes", "secrets.token_hex", "uuid.uuid4"}), "take the bytes or an rng as an argument", PURE
    ),
    Ban(
        frozenset(f"{module}.{call}" for module in UNPICKLERS for call in ("load", "loads", "Unpickler", "open")),
        "p2pgrid.wire.codec.decode: bytes from elsewhere are never unpickled",
        EVERYWHERE,
        ("p2pgrid/runtimes/runner/guest/app.py",),  # A guest takes the bytecode of its own job, made by a guest of that job.
    ),
    Ban(frozenset({"asyncio.get_event_loop"}), "asyncio.get_running_loop()", EVERYWHERE),
    Ban(
        frozenset({"print"}),
        "logging; the commands print through their console",
        ("p2pgrid",),
        (*INSIDE, "p2pgrid/runtimes/runner/building.py"),
    ),
    Ban(frozenset({"os.path.join"}), "pathlib's `/`; for a name from outside, safe_join", ("p2pgrid", "cli"), INSIDE),
    Ban(frozenset({"time.sleep"}), "waiting for the event itself, with a deadline", ("p2pgrid", "cli"), INSIDE),
    Ban(
        frozenset({"os.fork", "os.forkpty"}),
        "subprocess.Popen of a small launcher: no fork once threads run",
        but_not=("cli/p2pgrid_cli/localgrid.py", "p2pgrid/runtimes/sandbox/relay.py"),
    ),
)


def dotted(node: ast.expr) -> str:
    """The dotted name of an expression, or an empty string when it is none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def imported_names(tree: ast.Module) -> dict[str, str]:
    """What each imported local name stands for: `from time import time as now` gives now -> time.time."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a file with the full name of what is called."""
    names = imported_names(source.tree)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            head, dot, rest = dotted(node.func).partition(".")
            yield node, names.get(head, head) + dot + rest


def banned_calls(source: Source) -> Iterator[str]:
    """Calls that the house replaces by something else."""
    bans = [ban for ban in BANS if ban.holds_in(source)]
    for node, name in calls(source):
        for ban in bans:
            if name in ban.calls:
                yield f"{source.path}:{node.lineno}: {name}() is banned here; use {ban.instead}"
        if name == "random.Random" and not node.args and source.within(*PURE):
            yield f"{source.path}:{node.lineno}: random.Random() without a seed is ambient chance; take the rng as an argument"
        if any(keyword.arg == "preexec_fn" for keyword in node.keywords) and source.within("p2pgrid", "cli"):
            yield f"{source.path}:{node.lineno}: preexec_fn forks with threads; start a small launcher that confines itself"


def dropped_tasks(source: Source) -> Iterator[str]:
    """`asyncio.create_task(...)`, `loop.create_task(...)` or `ensure_future` whose task nobody keeps. A TaskGroup keeps its own."""
    for node in ast.walk(source.tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute)):
            continue
        function = node.value.func
        owner = function.value.func if isinstance(function.value, ast.Call) else function.value
        keeper = dotted(owner).rpartition(".")[2].lstrip("_")
        if function.attr in ("create_task", "ensure_future") and (keeper.endswith("loop") or keeper == "asyncio"):
            yield f"{source.path}:{node.lineno}: a task whose result nobody reads; keep it in an owner with close(), or use a TaskGroup"


def functions(tree: ast.AST) -> Iterator[AsyncOrNot]:
    """Every function of a module, nested ones and methods included."""
    for node in ast.walk(tree):
        if isinstance(node, AsyncOrNot):
            yield node


def long_functions(source: Source) -> Iterator[str]:
    """Functions past the house's length."""
    for node in functions(source.tree):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield f"{source.path}:{node.lineno}: {node.name} has {lines} lines; {FUNCTION_LINES_MAX} are the most"


def sleeping_tests(source: Source) -> Iterator[str]:
    """Sleeps in the straight line of a test: a guess about time. Polling in a loop with a deadline is not one."""
    for test in functions(source.tree):
        if test.name.startswith("test_"):
            for node in _straight_line(test.body):
                sleeps = isinstance(node, ast.Call) and dotted(node.func) in ("time.sleep", "asyncio.sleep")
                if sleeps and not (isinstance(node, ast.Call) and node.args and _is_zero(node.args[0])):
                    yield f"{source.path}:{getattr(node, 'lineno', 0)}: {test.name} sleeps; wait for the event, with a deadline"


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0


def _straight_line(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if not isinstance(node, AsyncOrNot | ast.Lambda | ast.While | ast.For | ast.AsyncFor | ast.ClassDef):
            yield node
            yield from _straight_line(ast.iter_child_nodes(node))


def missing_docstring(source: Source) -> Iterator[str]:
    """Modules that do not say what they decide."""
    if len((ast.get_docstring(source.tree) or "").split()) < 3:
        yield f"{source.path}: the module has no docstring; say what is decided here and why"


def leftovers(source: Source) -> Iterator[str]:
    """Notes to oneself."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if LEFTOVERS.search(line):
            yield f"{source.path}:{number}: a leftover note; do it, or say what is so and why"


def machine_paths(source: Source) -> Iterator[str]:
    """Folders that exist on one machine only."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if MACHINE_PATHS.search(line):
            yield f"{source.path}:{number}: a path of somebody's machine"


def headings(source: Source) -> list[tuple[int, str]]:
    """The headings of a Markdown file, as (level, text), those inside code left out."""
    found = re.findall(r"^(#{1,6})\s+(.+?)\s*$", FENCE.sub("", source.text), re.MULTILINE)
    return [(len(marks), text) for marks, text in found]


def one_title(source: Source) -> Iterator[str]:
    """Markdown files without exactly one title."""
    titles = sum(level == 1 for level, _ in headings(source))
    if titles != 1:
        yield f"{source.path}: {titles} first-level headings; a page has one"


def decision_sections(source: Source) -> Iterator[str]:
    """Decision records without one of their three sections."""
    have = {text for level, text in headings(source) if level == 2}
    for heading in ADR_HEADINGS:
        if heading not in have:
            yield f"{source.path}: no section '## {heading}'"


def dead_references(source: Source, root: Path) -> Iterator[str]:
    """Pages that are mentioned and are not there: `docs/...md` in any text, relative links in Markdown."""
    for mention in sorted(set(DOCS_MENTION.findall(source.text))):
        if not (root / mention).is_file():
            yield f"{source.path}: mentions {mention}, which does not exist"
    if source.path.endswith(".md"):
        for target in sorted(set(MARKDOWN_LINK.findall(FENCE.sub("", source.text)))):
            name = target.partition("#")[0]
            if name and "://" not in name and not name.startswith("mailto:") and not ((root / source.path).parent / name).exists():
                yield f"{source.path}: links to {target}, which does not exist"
