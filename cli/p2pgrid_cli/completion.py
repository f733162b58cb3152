"""``completion``: what a shell needs to complete the words of a command, and what it is told when it asks.

The shell asks at every press of a key, so: the running node has a bound to answer in, none is ever started, and whatever
goes wrong, nothing is said and nothing is completed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from p2pgrid.errors import UsageError
from p2pgrid_cli import catalog, exits

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel

SHELLS = ("bash", "zsh", "fish")
ASK_S = 0.7
"""For the answer of the node, counted from when it is asked."""
FOUND_MAX = 200
SHORT_CHARS = 8
"""Of an id, as displays have it."""
Found = Iterable[tuple[str, str]]
"""(what may stand there, what it is)"""
Told = Sequence[str | tuple[str, str]]


def complete_shell(beginning: str) -> Sequence[str]:
    """Names of shells."""
    return [shell for shell in SHELLS if shell.startswith(beginning)]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(completion)


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help=f"One of: {', '.join(SHELLS)}.", autocompletion=complete_shell)],
) -> None:
    """Print a script that makes a shell complete commands, options, jobs, files and nodes.

    It is to be read by the shell when it starts. Ids come from the running node, if there is one.
    """
    from p2pgrid_cli.common import print_line
    from p2pgrid_cli.terms import suggestion

    if shell not in SHELLS:
        raise UsageError(f"'{shell}' is no shell that can be completed for", hint=suggestion(shell, SHELLS))
    print_line(_script(shell))


def _script(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from p2pgrid_cli.program import COMPLETE_VARIABLE, program

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(program, {}, catalog.PROGRAM, COMPLETE_VARIABLE)
    # Not source(): for bash that asks which version is there, of the one that is found first, and warns.
    return complete.source_template % complete.source_vars()


def respond(instruction: str) -> int:
    """Answer a shell: ``bash_complete``, or ``bash_source`` as those who know click have it. Returns the exit code."""
    shell, _, wanted = instruction.partition("_")
    if shell not in SHELLS or wanted not in ("complete", "source"):
        return exits.USAGE
    text = ""
    with suppress(Exception):
        text = _script(shell) if wanted == "source" else _answer(shell)
    with suppress(OSError):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    return exits.OK


def _answer(shell: str) -> str:
    from click.shell_completion import get_completion_class

    from p2pgrid_cli.program import COMPLETE_VARIABLE, program

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(program, {}, catalog.PROGRAM, COMPLETE_VARIABLE).complete()


# -- what may stand where ----------------------------------------------------------------------


def complete_job(context: click.Context, beginning: str) -> Told:
    """Jobs that this node knows."""
    return _items(_ask(context, _jobs), beginning)


def complete_blob(context: click.Context, beginning: str) -> Told:
    """What was put or pinned at this node."""
    return _items(_ask(context, _blobs), beginning)


def complete_subject(context: click.Context, beginning: str) -> Told:
    """All that can be explained."""
    return _items([("me", "this node"), *_ask(context, _jobs, _blobs, _peers)], beginning)


def complete_runtime(context: click.Context, beginning: str) -> Told:
    """Names of runtimes; ``auto`` where one is chosen for a job."""
    from p2pgrid.model.job import RUNTIMES

    names = ["auto", *RUNTIMES] if context.info_name == "run" else list(RUNTIMES)
    return [name for name in names if name.startswith(beginning)]


def complete_runtimes(context: click.Context, beginning: str) -> Told:
    """Names with commas between them, or ``all``."""
    from p2pgrid.model.job import RUNTIMES

    before, comma, last = beginning.rpartition(",")
    return [f"{before}{comma}{name}" for name in (*RUNTIMES, *(() if before else ("all",))) if name.startswith(last)]


def complete_script(context: click.Context, beginning: str) -> Told:
    """Scripts and modules, and the folders that they may lie in."""
    folder, slash, _ = beginning.rpartition("/")
    paths = sorted(Path(folder + slash or ".").iterdir())
    fitting = (path for path in paths if path.suffix in (".py", ".wasm") or (path.is_dir() and not path.name.startswith(".")))
    names = (f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}" for path in fitting)
    return [name for name in names if name.startswith(beginning)][:FOUND_MAX]


def complete_role(context: click.Context, beginning: str) -> Told:
    """Roles that an invite may grant."""
    from p2pgrid.model.node import ROLES

    return [role for role in ROLES if role.startswith(beginning)]


def complete_document(context: click.Context, beginning: str) -> Told:
    """Commands that print a document."""
    from p2pgrid_cli.documents import DOCUMENTS

    return [name for name in DOCUMENTS if name.startswith(beginning)]


async def _jobs(channel: Channel) -> Found:
    from p2pgrid.model.ids import to_text

    return [(to_text(line.job), f"{line.state}: {line.name}") for line in await channel.jobs()]


async def _blobs(channel: Channel) -> Found:
    from p2pgrid.model.ids import to_text

    return [(to_text(line.blob), line.name or line.kind) for line in await channel.blobs()]


async def _peers(channel: Channel) -> Found:
    from p2pgrid.model.ids import to_text

    reply = await channel.peers(refresh=False)
    return [(to_text(line.node), f"node {line.info.name}") for line in reply.peers]


def _ask(context: click.Context, *questions: Callable[[Channel], Awaitable[Found]]) -> list[tuple[str, str]]:
    """What the running node says to all of these, in time; nothing when none runs or anything goes wrong."""
    import asyncio

    from p2pgrid_cli.common import home_of, run_async, wall_ms

    home = home_of(_home_said(context))

    async def asked() -> list[tuple[str, str]]:
        from p2pgrid.client.channel import Channel

        async with asyncio.timeout(ASK_S), await Channel.open(home, wall_ms) as channel:
            return [item for question in questions for item in await question(channel)]

    with suppress(Exception):
        if home.running() is not None:
            return run_async(asked())
    return []


def _home_said(context: click.Context) -> Path | None:
    said = context.params.get("home") or os.environ.get("P2PGRID_HOME")
    return Path(said) if said else None


def _items(found: Found, beginning: str) -> Told:
    """Ids in the short form that people see, as long as that says which; the whole ones where more of it is typed."""
    from p2pgrid_cli.render import printable

    items: dict[str, str] = {}
    for whole, about in found:
        value = next((text for text in (whole[:SHORT_CHARS], whole) if text.startswith(beginning.lower())), None)
        if value is not None:
            items.setdefault(value, printable(about))
    return list(items.items())[:FOUND_MAX]
