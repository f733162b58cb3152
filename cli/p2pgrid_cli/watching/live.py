"""``watch`` on a terminal: the picture, drawn anew twice a second; and one look, for ``--once`` and ``--json``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from p2pgrid.errors import UnreachableError
from p2pgrid.model.reasons import Reason
from p2pgrid_cli.common import print_line
from p2pgrid_cli.dashboard.lines import ASCII, UNICODE, Glyphs
from p2pgrid_cli.dashboard.painter import Painter, written
from p2pgrid_cli.watching.picture import Watched, cells_for, draw
from p2pgrid_cli.watching.telling import Telling, summary

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.client.running import UnitFailure
    from p2pgrid.model.ids import JobId
    from p2pgrid.wire.faces import JobPicture
    from p2pgrid.wire.owner import FollowEvent
    from p2pgrid_cli.dashboard.terminal import Terminal

PICTURE_S = 0.5
FAILURES_S = 1.0
"""Without a terminal: how often it is looked for new failures."""
PIPE_COLUMNS = 100
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
CELLS = 1024
"""Of one look: what a picture has no room for is put together."""


def is_live() -> bool:
    """Whether stdout is a terminal on which lines can be drawn anew."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


async def to_the_end(channel: Channel, job: JobId) -> int:
    """Show a job until it has ended, and then what it came to; returns the exit code."""
    from p2pgrid.client.running import Outcome
    from p2pgrid_cli.results import code_of, report

    watched = await (_live(channel, job) if is_live() else _told(channel, job))
    outcome = Outcome(watched.line, _failures(watched.picture) if is_live() else [], note=watched.note)
    report(job, outcome)
    return code_of(outcome)


async def _live(channel: Channel, job: JobId) -> Watched:
    """The picture goes with its terminal: what of it is to stay is told behind it."""
    from p2pgrid_cli.dashboard.terminal import own_terminal

    glyphs = glyphs_of(sys.stdout)
    with ExitStack() as taken:
        terminal = taken.enter_context(own_terminal())
        taken.enter_context(silent(terminal.fd_out))
        painter = taken.enter_context(Painter(terminal.write, colour=terminal.colour, encoding=terminal.encoding))
        loop = asyncio.get_running_loop()
        for number in ENDING_SIGNALS:
            loop.add_signal_handler(number, _end_by, number, taken)
        loop.add_signal_handler(signal.SIGTSTP, _suspend, painter, terminal)

        async def look(event: FollowEvent) -> JobPicture:
            width, height = terminal.size()
            picture = await channel.picture(job, cells_for(width, height))
            if not terminal.busy:
                lines = draw(Watched(event.line, picture, event.note), width, height, glyphs)
                painter.paint([*lines, *[()] * (height - len(lines))], width, height)
            return picture

        watched = await _following(channel, job, PICTURE_S, look)
    print_line(summary(watched.line))
    return watched


def _end_by(number: int, taken: ExitStack) -> None:
    """A signal ends the program as if nobody had caught it, but the terminal is given back first."""
    taken.close()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _suspend(painter: Painter, terminal: Terminal) -> None:
    """Ctrl-Z: the terminal is the shell's until we are continued."""
    painter.leave()
    terminal.drain()
    _echo(terminal.fd_out, on=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    _echo(terminal.fd_out, on=False)
    painter.enter()


def _echo(fd: int, *, on: bool) -> None:
    """Whether what is typed is shown. The terminal may have gone, or be none."""
    with suppress(termios.error):
        mode = termios.tcgetattr(fd)
        mode[3] = mode[3] | termios.ECHO if on else mode[3] & ~termios.ECHO
        termios.tcsetattr(fd, termios.TCSADRAIN, mode)


@contextmanager
def silent(fd: int) -> Iterator[None]:
    """What is typed is no part of the picture."""
    try:
        before = termios.tcgetattr(fd)
    except termios.error:
        yield
        return
    _echo(fd, on=False)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def glyphs_of(out: TextIO) -> Glyphs:
    """The characters that an output can show."""
    try:
        "".join(UNICODE).encode(out.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return ASCII
    return UNICODE


async def _told(channel: Channel, job: JobId) -> Watched:
    telling = Telling()

    async def look(event: FollowEvent) -> JobPicture:
        picture = await channel.picture(job, 1)
        telling.picture(picture)
        return picture

    return await _following(channel, job, FAILURES_S, look, telling.event)


def _failures(picture: JobPicture) -> list[UnitFailure]:
    """The last failures that a live picture showed: they went with it."""
    from p2pgrid.client.running import FAILURES_SHOWN, UnitFailure
    from p2pgrid.services.results import OUTCOME_REASONS

    codes = {str(reason): reason for reason in OUTCOME_REASONS.values()}
    final = [failure for failure in picture.failures if failure.final and failure.reason in codes]
    return [UnitFailure(failure.unit, codes[failure.reason], "", failure.text, "") for failure in final[-FAILURES_SHOWN:]]


async def _following(
    channel: Channel,
    job: JobId,
    every_s: float,
    look: Callable[[FollowEvent], Awaitable[JobPicture]],
    heard: Callable[[FollowEvent], None] = lambda event: None,
) -> Watched:
    """Hear every news of a job, and look at it now and then, before its end is heard for the last time."""
    latest: list[FollowEvent] = []
    came = asyncio.Event()

    async def follow() -> None:
        async for event in channel.follow(job, wait=True, values=False):
            latest[:] = [event]
            came.set()
            if not event.end:
                heard(event)

    following = asyncio.create_task(follow())
    try:
        while not following.done():
            await asyncio.wait([following, waiting := asyncio.ensure_future(came.wait())], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if latest:
                await look(latest[0])
            await asyncio.wait([following], timeout=every_s)
        await following
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([following])
    if not latest:
        raise UnreachableError("the node said nothing about the job", reason=Reason.CLOSED)
    last = latest[0]
    picture = await look(last)
    heard(last)
    return Watched(last.line, picture, last.note)


async def glance(channel: Channel, job: JobId, cells: int) -> Watched:
    """How a job stands now."""
    latest = None
    async for event in channel.follow(job, wait=False, values=False):
        latest = event
    if latest is None:
        raise UnreachableError("the node said nothing about the job", reason=Reason.CLOSED)
    return Watched(latest.line, await channel.picture(job, cells), latest.note)


def print_once(watched: Watched) -> None:
    """One picture, as wide as the terminal; in a pipe as wide as COLUMNS says."""
    said = os.environ.get("COLUMNS", "")
    width = int(said) if said.isdecimal() and int(said) else PIPE_COLUMNS
    if sys.stdout.isatty():
        with suppress(OSError):
            width = os.get_terminal_size(sys.stdout.fileno()).columns
    colours = is_live() and not os.environ.get("NO_COLOR")
    for line in draw(watched, width, 0, glyphs_of(sys.stdout)):
        text = written(line, colours) if colours else "".join(part.text for part in line).rstrip()
        encoding = sys.stdout.encoding or "utf-8"
        print_line(text.encode(encoding, "replace").decode(encoding))
