"""``why``: the reason behind a state. What an id means is found out by asking; each kind has its own explanation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from p2pgrid.errors import UnreachableError
from p2pgrid_cli.common import HomeOption, JsonOption, print_json, print_line, with_channel
from p2pgrid_cli.files import blob_named

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel


class Answer(NamedTuple):
    """What there is to say: for people, and for programs."""

    lines: list[str]
    document: dict[str, object]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: p2pgrid why 7xq3...")(why)


def why(
    subject: Annotated[str, typer.Argument(metavar="ID", help="What 'p2pgrid put' printed; or me, for this node.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say why something is as it is: of a blob its copies, who holds them, what they promise and what they cost.

    Of this node (me): whether it works for others, why not, since when, what ends it, and which runtimes it offers.
    """

    async def explain(channel: Channel) -> Answer:
        for explanation in EXPLANATIONS:
            answer = await explanation(channel, subject)
            if answer is not None:
                return answer
        raise UnreachableError(
            f"nobody who can be reached knows '{subject}'", hint="p2pgrid blobs and p2pgrid jobs list what is known here"
        )

    answer = with_channel(home, explain)
    if as_json:
        print_json(answer.document)
        return
    for line in answer.lines:
        print_line(line)


async def _me(channel: Channel, subject: str) -> Answer | None:
    """What this node does for others."""
    if subject != "me":
        return None
    from p2pgrid.model.ids import to_text
    from p2pgrid_cli.pausing import pause_document, pause_lines

    told = await channel.why_me()
    lines = pause_lines(told.pause)
    lines.append(f"cores: {told.running} of {told.cores} busy, {told.queued} units waiting")
    for line in told.runtimes:
        level = f" ({line.level})" if line.level else ""
        lines.append(f"runtime {line.runtime}: {'offered' if line.offered else 'not offered'}{level}{_because(line.sentence)}")
    lines += [f"term {name}: {value}" for name, value in told.terms]
    lines.append(f"jobs of this home are signed by {to_text(told.submitter)}: what others list with --accept-from")
    runtimes = [
        {"runtime": line.runtime, "offered": line.offered, "level": line.level, "sentence": line.sentence} for line in told.runtimes
    ]
    document = {
        **pause_document(told.pause),
        "cores": told.cores,
        "running": told.running,
        "queued": told.queued,
        "runtimes": runtimes,
        "terms": dict(told.terms),
        "submitter": to_text(told.submitter),
    }
    return Answer(lines, document)


def _because(sentence: str) -> str:
    return f": {sentence}" if sentence else ""


async def _job(channel: Channel, subject: str) -> Answer | None:
    """Jobs explain themselves elsewhere so far."""
    from p2pgrid.model.ids import to_text

    named = [line for line in await channel.jobs() if to_text(line.job).startswith(subject.lower())] if len(subject) >= 4 else []
    if len(named) != 1:
        return None
    job = to_text(named[0].job)
    return Answer(
        [f"job {job} is {named[0].state}; 'p2pgrid results {job[:12]}' says what became of its units"],
        {"job": job, "state": named[0].state},
    )


async def _blob(channel: Channel, subject: str) -> Answer | None:
    from p2pgrid_cli.blobtables import why_blob_document, why_blob_lines

    answer = await channel.why(await blob_named(channel, subject))
    if not answer.state and not answer.holders:
        return None
    return Answer(why_blob_lines(answer), why_blob_document(answer))


EXPLANATIONS: tuple[Callable[[Channel, str], Awaitable[Answer | None]], ...] = (_me, _job, _blob)
"""Asked in this order; the first that knows the subject answers."""
