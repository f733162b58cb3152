"""``jobs``, ``results``, ``watch``, ``cancel``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid_cli import exits
from p2pgrid_cli.common import HomeOption, JsonOption, console, job_named, print_document, say, with_channel
from p2pgrid_cli.completion import complete_job

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.model.ids import JobId
    from p2pgrid.wire.owner import CancelReply

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its beginning.", autocompletion=complete_job)]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(jobs)
    app.command()(results)
    app.command()(watch)
    app.command()(cancel)


def jobs(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the jobs this node leads or keeps."""
    from p2pgrid_cli.documents.jobs import jobs_of
    from p2pgrid_cli.render import jobs_table

    lines = with_channel(home, lambda channel: channel.jobs())
    if as_json:
        print_document(jobs_of(lines))
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


def watch(
    job: JobArgument,
    once: Annotated[bool, typer.Option("--once", help="One look at it, whether or not it has ended.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Watch a job until it ends: its units, who does how much of them, what is late, what failed. Its results are not printed.

    On a terminal it is a live picture, else a line for each change. Ctrl-C ends the watching, not the job.
    """

    async def show(channel: Channel) -> int:
        from p2pgrid_cli.watching import live

        known = await job_named(channel, job)
        await _known_somewhere(channel, known)
        if as_json:
            from p2pgrid_cli.documents.watching import watch_of

            print_document(watch_of(*await live.glance(channel, known, live.CELLS)))
            return exits.OK
        if once:
            live.print_once(await live.glance(channel, known, live.CELLS))
            return exits.OK
        return await live.to_the_end(channel, known)

    code = with_channel(home, show)
    if code:
        raise typer.Exit(code)


def cancel(job: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Cancel a job, wherever it is led. What was decided before stays readable."""

    async def stop(channel: Channel) -> tuple[JobId, CancelReply]:
        known = await job_named(channel, job)
        await _known_somewhere(channel, known)
        return known, await channel.cancel_everywhere(known)

    known, reply = with_channel(home, stop)
    if as_json:
        from p2pgrid_cli.documents.jobs import cancelled_of

        print_document(cancelled_of(known, reply))
        return
    say(f"job {reply.state}" + (f"; {reply.told} other node{'s' if reply.told != 1 else ''} told" if reply.told else ""))
