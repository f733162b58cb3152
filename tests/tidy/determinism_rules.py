"""What would make two runs of one seed differ: ambient clocks, chance and threads, and the order of sets.

A node can be simulated because all of these reach it as arguments. The rules look at every mention, not only at calls: a clock
that is passed on as a default is as ambient as one that is read.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from tests.tidy.house_rules import AsyncOrNot, Source, dotted

CHECKED = "p2pgrid"
AMBIENT: tuple[tuple[str, str], ...] = (
    (r"time\..+", "take a Clock or a WallClock as an argument, or ask the running loop for its time"),
    (r"datetime\.datetime\.(now|utcnow|today)|datetime\.date\.today", "take a WallClock as an argument"),
    (r"random\.(?!Random$).+", "take a random.Random as an argument"),
    (r"os\.(urandom|getrandom)|secrets\..+|uuid\.uuid[14]", "take random_bytes or an rng as an argument"),
    (r"threading\.(Thread|Timer)|_thread\..+|asyncio\.to_thread|concurrent\.futures\..*Executor", "take an Offload as an argument"),
    (r"\?\.(run_in_executor|set_default_executor)", "take an Offload as an argument"),
    (r"multiprocessing\..+|os\.(fork|forkpty)", "run units through Workers"),
    (r"hash", "order and compare by value, or digest: it differs from process to process"),
)
_ANY_AMBIENT = re.compile("|".join(f"(?:{pattern})$" for pattern, _ in AMBIENT))
_AMBIENT = tuple((re.compile(f"(?:{pattern})$"), instead) for pattern, instead in AMBIENT)

ALLOWED: dict[str, str] = {
    "p2pgrid/runtimes/worker": "runs in a process of its own, where units measure real time",
    "p2pgrid/runtimes/sandbox": "runs in a process of its own, too: it builds the cage around that",
    "p2pgrid/runtimes/runner/guest": "runs inside the Python runner, whose clock and chance it makes",
    "p2pgrid/runtimes/selftest/attacks": "is what strangers' code would do",
    "p2pgrid/sensors.py": "reads the machine; the simulator has a quiet one",
    "p2pgrid/offload.py": "is the port through which everything else reaches threads",
    "p2pgrid/store/ledger_writer.py": "owns the thread behind LedgerPort; the simulator has its own writer",
    "p2pgrid/testing/batches/batch.py": "starts a process for each simulation and measures its real seconds",
    "p2pgrid/testing/core/million.py": "measures the real seconds that a million units cost",
    "p2pgrid/testing/core/month.py": "measures the real seconds that a month costs",
    "p2pgrid/testing/parts/inprocess.py": "lends the process's chance to the units that run in it, and puts it back",
    "p2pgrid/testing/batches/processes.py": "runs real nodes in real time",
    "p2pgrid/testing/batches/real.py": "runs real nodes in real time",
}
"""Files that may reach for the machine, and why."""

ORDER_FREE = frozenset({"sorted", "set", "frozenset", "sum", "any", "all", "min", "max", "len", "bool", "Counter"})
"""What takes an iterable and gives the same for every order. (min and max do where no two members tie.)"""
IN_ORDER = frozenset({"list", "tuple", "enumerate", "iter", "map", "filter", "zip", "deque", "dict", "fromkeys", "join", "extend"})
"""What takes an iterable and keeps its order."""
ORDER_FREE_METHODS = frozenset({"update", "union", "intersection", "difference", "isdisjoint", "issubset", "issuperset"})
WAIVER = re.compile(r"#.*\bany order\b")
"""A comment on the line, or above it, that says why the order does not matter there."""
_SET_TYPE = re.compile(r"^(?:set|frozenset|AbstractSet|MutableSet|Set)\b(?!\[(?:int|bool)\])")
_TABLE_TYPE = re.compile(r"^(?:dict|defaultdict|OrderedDict|Mapping)\[.*\b(?:set|frozenset)\b(?!\[(?:int|bool)\])[^,]*\]$")
_SET_METHODS = frozenset({"union", "intersection", "difference", "symmetric_difference", "copy"})
_SET_OPERATORS = (ast.Sub, ast.BitOr, ast.BitAnd, ast.BitXor)
Comprehension = ast.ListComp | ast.GeneratorExp | ast.DictComp | ast.SetComp


def ambient_mentions(source: Source) -> Iterator[str]:
    """Mentions of the machine's clocks, chance, threads and processes."""
    if not source.within(CHECKED) or source.within(*ALLOWED):
        return
    nodes = nodes_of(source)
    names = _imported(nodes)
    seen: set[tuple[int, str]] = set()
    for node in nodes.every:
        for line, name in _mentioned(node, names):
            if _ANY_AMBIENT.match(name) and (line, name) not in seen:
                seen.add((line, name))
                instead = next(instead for pattern, instead in _AMBIENT if pattern.match(name))
                yield f"{source.path}:{line}: {name} is the machine's own; {instead}"


class Nodes:
    """The nodes of one file, walked through once: in order, with their parents, and by the function they stand in."""

    def __init__(self, tree: ast.Module) -> None:
        self.every: list[ast.AST] = [tree]
        self.parents: dict[ast.AST, ast.AST] = {}
        self.scopes: dict[ast.AST, list[ast.AST]] = {tree: []}
        self.classes: list[tuple[ast.ClassDef, ast.AST]] = []
        """Each assignment inside a class, with the class."""
        self._take(tree, tree, None)

    def _take(self, parent: ast.AST, scope: ast.AST, owner: ast.ClassDef | None) -> None:
        for child in ast.iter_child_nodes(parent):
            self.every.append(child)
            self.parents[child] = parent
            if isinstance(child, AsyncOrNot):
                self.scopes[child] = []
                self._take(child, child, owner)
                continue
            self.scopes[scope].append(child)
            if owner is not None and isinstance(child, ast.Assign | ast.AnnAssign):
                self.classes.append((owner, child))
            self._take(child, scope, child if isinstance(child, ast.ClassDef) else owner)


@lru_cache(maxsize=1024)
def nodes_of(source: Source) -> Nodes:
    """The nodes of a file."""
    return Nodes(source.tree)


def _imported(nodes: Nodes) -> dict[str, str]:
    """What each imported local name stands for, modules under their own name included."""
    names: dict[str, str] = {}
    for node in nodes.every:
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.partition(".")[0]
                names[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _mentioned(node: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Attribute):
        head, _, rest = dotted(node).partition(".")
        yield node.lineno, f"{names[head]}.{rest}" if head in names else f"?.{node.attr}"
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        if node.id in names:
            yield node.lineno, names[node.id]
        elif node.id == "hash":
            yield node.lineno, "hash"
    elif isinstance(node, ast.Call) and not node.args and not node.keywords:
        head, dot, rest = dotted(node.func).partition(".")
        if names.get(head, head) + dot + rest == "random.Random":
            yield node.lineno, "random.Random()"


class Names(NamedTuple):
    """Names that mean sets, and names that may mean something else."""

    sets: frozenset[str]
    """Attributes and properties."""
    tables: frozenset[str]
    """Attributes that are dicts whose values are sets."""
    functions: frozenset[str]
    """Functions that return sets."""
    others: frozenset[str] = frozenset()

    def inside(self, own: Names) -> Names:
        """These names where ``own`` are declared: those come first."""
        taken = own.others | own.sets | own.tables | own.functions
        return Names(own.sets | (self.sets - taken), own.tables | (self.tables - taken), own.functions | (self.functions - taken))


def names_of_sets(sources: Iterable[Source]) -> Names:
    """The attributes and functions that are annotated as sets, and nowhere as something else."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        nodes = nodes_of(source)
        for name, annotation in _attributes(nodes):
            kinds[name].add("set" if _is_set_type(annotation) else "table" if _is_table_type(annotation) else "other")
        for node in nodes.scopes:
            if isinstance(node, AsyncOrNot):
                is_property = any(dotted(decorator).endswith("property") for decorator in node.decorator_list)
                kinds[node.name].add("other" if not _is_set_type(node.returns) else "set" if is_property else "function")
    named = {kind: frozenset(name for name, found in kinds.items() if found == {kind}) for kind in ("set", "table", "function")}
    return Names(named["set"], named["table"], named["function"], frozenset(kinds) - frozenset().union(*named.values()))


def unordered_iterations(source: Source, names: Names | None = None) -> Iterator[str]:
    """Walks over sets whose order can reach something. Best effort: what is a set is told from annotations.

    ``names``: of the whole program; by default those of this file.
    """
    if not source.within(CHECKED):
        return
    lines = source.text.splitlines()
    own = names_of_sets([source])
    names = names.inside(own) if names else own
    nodes = nodes_of(source)
    parents = nodes.parents
    for scope, inside in nodes.scopes.items():
        sets = _Sets(names, scope, inside)
        for node in inside:
            walked = _walked(node, parents)
            if walked is None or not sets.holds(walked):
                continue
            if not any(WAIVER.search(line) for line in lines[max(0, walked.lineno - 2) : walked.lineno]):
                yield f"{source.path}:{walked.lineno}: the order of a set differs from process to process; sort it, or use a dict"


def _walked(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.expr | None:
    """The expression that is walked through by this node, if the order may matter."""
    if isinstance(node, ast.For | ast.AsyncFor):
        return node.iter
    if isinstance(node, ast.comprehension):
        return None if _is_order_free(parents[node], parents) else node.iter
    if isinstance(node, ast.Call) and len(node.args) >= 1 and _called(node) in IN_ORDER:
        return None if _is_order_free(node, parents) else node.args[-1]
    if isinstance(node, ast.Call) and _called(node) == "pop" and not node.args and isinstance(node.func, ast.Attribute):
        return node.func.value
    if isinstance(node, ast.Starred):
        return None if isinstance(parents[node], ast.Set) or _is_order_free(parents[node], parents) else node.value
    return node.value if isinstance(node, ast.YieldFrom) else None


def _is_order_free(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether what is made by walking goes where the order is lost again."""
    if isinstance(node, ast.SetComp):
        return True
    parent = parents.get(node)
    if isinstance(parent, ast.Call) and node in parent.args:
        return _called(parent) in ORDER_FREE or (isinstance(parent.func, ast.Attribute) and parent.func.attr in ORDER_FREE_METHODS)
    return isinstance(parent, ast.Compare) and all(isinstance(operator, ast.In | ast.NotIn) for operator in parent.ops)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else dotted(node.func)


def _is_set_type(annotation: ast.expr | None) -> bool:
    return annotation is not None and _SET_TYPE.match(ast.unparse(annotation).removeprefix("collections.abc.")) is not None


def _is_table_type(annotation: ast.expr | None) -> bool:
    return annotation is not None and _TABLE_TYPE.match(ast.unparse(annotation)) is not None


def _attributes(nodes: Nodes) -> Iterator[tuple[str, ast.expr]]:
    """The annotated attributes of classes, and those that are made as empty sets."""
    for owner, node in nodes.classes:
        if isinstance(node, ast.AnnAssign):
            if isinstance(node.target, ast.Name) and nodes.parents[node] is owner:
                yield node.target.id, node.annotation
            elif isinstance(node.target, ast.Attribute):
                yield node.target.attr, node.annotation
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and dotted(node.value.func) in ("set", "frozenset"):
            for target in node.targets:
                if isinstance(target, ast.Attribute):
                    yield target.attr, node.value.func


class _Sets:
    """Which expressions of one function are sets."""

    def __init__(self, known: Names, scope: ast.AST, inside: list[ast.AST]) -> None:
        self._known = known
        self._names: set[str] = set()
        if isinstance(scope, AsyncOrNot):
            arguments = scope.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            self._names.update(argument.arg for argument in every if _is_set_type(argument.annotation))
        for node in inside:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_set_type(node.annotation):
                self._names.add(node.target.id)
            elif isinstance(node, ast.Assign) and self.holds(node.value):
                self._names.update(target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.Assign) and _waits(node.value):
                self._names.update(name.id for target in node.targets for name in getattr(target, "elts", ()) if isinstance(name, ast.Name))
            elif isinstance(node, ast.NamedExpr) and self.holds(node.value):
                self._names.add(node.target.id)

    def holds(self, node: ast.expr) -> bool:
        """Whether the expression is a set of something else than small integers."""
        match node:
            case ast.Name(id=name):
                return name in self._names
            case ast.Attribute(attr=name):
                return name in self._known.sets
            case ast.Subscript(value=ast.Attribute(attr=name)):
                return name in self._known.tables
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr=table), attr="get" | "pop" | "setdefault")):
                return table in self._known.tables
            case ast.Set(elts=members):
                return not all(isinstance(member, ast.Constant) and isinstance(member.value, int) for member in members)
            case ast.SetComp():
                return True
            case ast.Call(func=ast.Name(id=name)) if name in ("set", "frozenset") or name in self._known.functions:
                return True
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                return name in self._known.functions or (name in _SET_METHODS and self.holds(value))
            case ast.BinOp(left=left, op=operator, right=right) if isinstance(operator, _SET_OPERATORS):
                return any(self.holds(side) or _is_view(side) for side in (left, right))
            case ast.IfExp(body=body, orelse=orelse):
                return self.holds(body) or self.holds(orelse)
            case ast.BoolOp(values=values):
                return any(self.holds(value) for value in values)
        return False


def _waits(node: ast.expr) -> bool:
    """Whether this is ``await asyncio.wait(...)``, which gives two sets of tasks."""
    return isinstance(node, ast.Await) and isinstance(node.value, ast.Call) and dotted(node.value.func) == "asyncio.wait"


def _is_view(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("keys", "items") and not node.args
