"""Which modules of p2pgrid nobody uses: a module that nothing imports and nothing runs is dead."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from tests.tidy.house_rules import Source

PUBLIC = ("p2pgrid.client", "p2pgrid.executor", "p2pgrid.integrations", "p2pgrid.testing")
"""What users import: alive when a test uses it."""


def module_name(path: str) -> str:
    """`p2pgrid/net/tls.py` gives p2pgrid.net.tls; a package gives its own name."""
    parts = PurePosixPath(path.removeprefix("cli/")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def dead_modules(sources: Iterable[Source], entry_points: Iterable[str]) -> Iterator[str]:
    """Modules of the wheel that no other module of it imports or runs, entry points and public rooms aside."""
    every = list(sources)
    shipped = [source for source in every if source.within("p2pgrid", "cli")]
    used_by_product = _uses(shipped) | set(entry_points)
    used_at_all = used_by_product | _uses([source for source in every if source.within("tests", "bench")])
    for source in shipped:
        name = module_name(source.path)
        public = any(name == room or name.startswith(room + ".") for room in PUBLIC)
        if name.endswith("__main__") or name in (used_at_all if public else used_by_product):
            continue
        yield f"{source.path}: nothing imports or runs {name}; wire it in or take it out"


def _uses(sources: Iterable[Source]) -> set[str]:
    used: set[str] = set()
    for source in sources:
        own = module_name(source.path)
        is_package = source.path.endswith("__init__.py")
        for name in _mentions(source, own, is_package):
            # To import a module is to import the packages it lies in.
            parts = name.split(".")
            used.update(".".join(parts[:length]) for length in range(1, len(parts) + 1) if ".".join(parts[:length]) != own)
    return used


def _mentions(source: Source, own: str, is_package: bool) -> Iterator[str]:
    folder = own if is_package else own.rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            # Files that run by path import their neighbours by bare name.
            yield from (f"{folder}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder.split(".")[: len(folder.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield module
            yield f"{folder}.{module}"
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _run_by_name(node.value, folder)


def _run_by_name(text: str, folder: str) -> Iterator[str]:
    """Modules are also run by dotted name (`-m`, lazy imports) or as a file beside the one that names it."""
    if text.startswith(("p2pgrid.", "p2pgrid_cli.")) and " " not in text:
        yield text.partition(":")[0]
    if text.endswith(".py") and " " not in text:
        inner = text.removesuffix(".py").replace("/", ".")
        yield inner
        yield f"{folder}.{inner}"
        yield f"{folder}.worker.{inner}"
