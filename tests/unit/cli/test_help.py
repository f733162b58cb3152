"""The help: it fits the terminal, its examples are right, and it costs next to nothing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import p2pgrid
import p2pgrid_cli
from p2pgrid.errors import UsageError
from p2pgrid_cli import catalog
from p2pgrid_cli.program import program
from p2pgrid_cli.settings import from_flags
from p2pgrid_cli.terms import TERMS

WIDTHS = (60, 80, 120)
IMPORTS_MAX = 120
INSIDE_OTHERS = re.compile(r"p2pgrid [^|)\"]*")
PATHS = [
    *((name,) for name in catalog.entries()),
    *((name, inner) for name, inners in catalog.INNER_EXAMPLES.items() for inner in inners),
]


def environment() -> dict[str, str]:
    packages = {str(Path(package.__file__ or "").parents[1]) for package in (p2pgrid, p2pgrid_cli)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("P2PGRID", "COLUMNS"))}
    return kept | {"PYTHONPATH": os.pathsep.join(packages)}


def command_at(path: tuple[str, ...]) -> tuple[click.Command, click.Context]:
    """A command, and a context to ask for its help."""
    command: click.Command = program
    context = click.Context(program, info_name="p2pgrid")
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(context, name)
        assert found is not None
        command = found
        context = click.Context(command, parent=context, info_name=name, **command.context_settings)
    return command, context


def help_of(path: tuple[str, ...]) -> str:
    program.commands.clear()  # The width is that of the terminal when the command was built.
    command, context = command_at(path)
    return command.get_help(context)


def examples() -> list[tuple[str, str]]:
    """(path of the command that shows it..., the example)."""
    found = [(entry.name, typed) for entry in catalog.entries().values() for typed, _ in entry.examples]
    found += [("", typed) for typed, _ in catalog.BEGIN]
    return found + [
        (f"{name} {inner}", typed)
        for name, inners in catalog.INNER_EXAMPLES.items()
        for inner, shown in inners.items()
        for typed, _ in shown
    ]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("path", [(), *PATHS], ids=" ".join)
def test_help_fits_the_terminal(path: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_of(path)
    assert max(map(len, text.splitlines())) <= columns
    assert "\b" not in text


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_ends_with_examples_that_stand_on_lines_of_their_own(
    path: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = help_of(path).partition("Examples:\n")[2].splitlines()
    entry = catalog.entries()[path[0]]
    wanted = catalog.INNER_EXAMPLES[path[0]][path[1]] if len(path) > 1 else entry.examples
    assert 2 <= len(wanted) <= 6
    for typed, text in wanted:
        lines = [line.strip() for line in shown if line.strip().startswith(typed)]
        assert [line for line in lines if line == typed or line.endswith(f"  {text}")], typed
        assert text


@pytest.mark.parametrize(("shown_by", "typed"), examples())
def test_every_example_is_one_that_the_parser_takes(shown_by: str, typed: str) -> None:
    match = INSIDE_OTHERS.search(typed)
    assert match is not None
    words = shlex.split(match[0])[1:]
    assert shown_by.split()[:1] in (words[:1], []) or words[0] in ("blobs", "jobs")
    context = program.make_context("p2pgrid", words)
    command: click.Command = program
    rest = words
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert name is not None
        assert found is not None
        command, context = found, found.make_context(name, list(rest), parent=context)
    if words[0] == "join":
        from_flags(**{term.name: context.params[term.name] or None for term in TERMS})


@pytest.mark.parametrize("columns", WIDTHS)
def test_every_command_is_in_the_main_help_with_a_line(columns: int) -> None:
    lines = catalog.main_help(columns - 2).splitlines()
    for entry in catalog.entries().values():
        assert [line for line in lines if re.match(rf"  {entry.name} +\S", line)], entry.name
        assert not entry.about.endswith(".")
    assert [typed for typed, _ in catalog.BEGIN if not any(line.strip().startswith(typed) for line in lines)] == []


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_options_and_arguments_say_what_they_are(path: tuple[str, ...]) -> None:
    command, _ = command_at(path)
    silent = [param.name for param in command.params if not getattr(param, "hidden", False) and not getattr(param, "help", None)]
    assert silent in ([], ["words"])  # Those of `run` are described by its usage line.


def test_the_main_help_is_written_without_importing_what_parses() -> None:
    script = "import sys; sys.argv = ['p2pgrid', '--help']; from p2pgrid_cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    script += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment())
    modules = done.stderr.split()
    assert done.stdout.startswith("Usage: p2pgrid COMMAND")
    assert not {"click", "typer", "rich", "msgspec", "asyncio", "inspect", "dataclasses"} & set(modules)
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert len(modules) - len(bare.stdout.split()) < IMPORTS_MAX


def test_help_asked_for_with_other_options_is_the_same() -> None:
    command = [sys.executable, "-P", "-m", "p2pgrid_cli"]
    plain, other = (
        subprocess.run([*command, *words], capture_output=True, text=True, env=environment(), check=False)
        for words in (["--help"], ["-h", "peers"])
    )
    assert (plain.returncode, plain.stdout, plain.stderr) == (other.returncode, other.stdout, other.stderr)
    assert plain.returncode == 0


def test_a_command_that_is_misspelt_is_told_with_the_one_that_was_meant() -> None:
    context = program.make_context("p2pgrid", ["peesr"])
    with pytest.raises(UsageError, match="no such command 'peesr'") as caught:
        program.invoke(context)
    assert caught.value.hint == "did you mean 'peers'?"


def test_the_module_of_every_command_registers_it_and_nothing_that_is_not_in_the_help() -> None:
    import importlib

    from typer.main import get_group

    from p2pgrid_cli.grouping import App

    registered = set()
    for module in {entry.module for entry in catalog.entries().values()}:
        app = App()
        importlib.import_module(f"p2pgrid_cli.{module}").register(app)
        registered |= set(get_group(app).commands)
    assert registered == set(catalog.entries())


def test_columns_of_words_wrap_below_the_first() -> None:
    lines = catalog.example_lines((("p2pgrid x", "one two three four"),), 16)
    assert lines == ["  p2pgrid x", "      one two", "      three four"]
