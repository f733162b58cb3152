"""``jobs``, ``results``, ``watch``, ``cancel``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid_cli.common import HomeOption, JsonOption, console, job_named, print_json, say, with_channel

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.model.ids import JobId
    from p2pgrid.wire.owner import CancelReply

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its beginning.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: p2pgrid jobs --json")(jobs)
    app.command(epilog="Example: p2pgrid results 7xq3 --wait -o folder")(results)
    app.command(epilog="Example: p2pgrid watch 7xq3")(watch)
    app.command(epilog="Example: p2pgrid cancel 7xq3")(cancel)


def jobs(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the jobs this node leads or keeps."""
    from p2pgrid_cli.render import job_document, jobs_table

    lines = with_channel(home, lambda channel: channel.jobs())
    if as_json:
        print_json({"jobs": [job_document(line) for line in lines]})
    else:
        out = console()
        out.print(jobs_table(lines, out.width))


def results(
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for result files. Default: ./results-ID.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Print the results of a job, from whoever keeps them."""

    async def show(channel: Channel) -> int:
        from p2pgrid_cli.progress import Progress
        from p2pgrid_cli.results import show_results

        known = await job_named(channel, job)
        await _known_somewhere(channel, known)
        with Progress() as progress:
            return await show_results(channel, known, wait=wait, output=output, as_json=as_json, progress=progress)

    code = with_channel(home, show)
    if code:
        raise typer.Exit(code)


async def _known_somewhere(channel: Channel, job: JobId) -> None:
    """Raises UnreachableError when nobody who can be reached knows the job: following it could not say so."""
    from p2pgrid.errors import RefusedError, UnreachableError
    from p2pgrid.model.reasons import Reason

    try:
        await channel.job(job)
    except RefusedError as error:
        if error.reason != Reason.UNKNOWN_JOB:
            raise
        raise UnreachableError(error.message, reason=error.reason, hint=error.hint) from error


def watch(job: JobArgument, home: HomeOption = None) -> None:
    """Watch a job until it ends: how far it is, who leads it, what it waits for. Its results are not printed."""

    async def show(channel: Channel) -> int:
        from p2pgrid.client.running import Outcome
        from p2pgrid_cli.progress import Progress
        from p2pgrid_cli.results import code_of, report
        from p2pgrid_cli.watching import Telling

        known = await job_named(channel, job)
        await _known_somewhere(channel, known)
        with Progress() as progress:
            telling = Telling(progress)
            async for event in channel.follow(known, wait=True):
                telling.event(event)
        outcome = Outcome(event.line, note=event.note)
        report(known, outcome)
        return code_of(outcome)

    code = with_channel(home, show)
    if code:
        raise typer.Exit(code)


def cancel(job: JobArgument, home: HomeOption = None) -> None:
    """Cancel a job, wherever it is led. What was decided before stays readable."""

    async def stop(channel: Channel) -> CancelReply:
        known = await job_named(channel, job)
        await _known_somewhere(channel, known)
        return await channel.cancel_everywhere(known)

    reply = with_channel(home, stop)
    say(f"job {reply.state}" + (f"; {reply.told} other node{'s' if reply.told != 1 else ''} told" if reply.told else ""))
