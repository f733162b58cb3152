"""``peers`` and ``top``: who is there and what is going on."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid_cli.common import PIPE_COLUMNS, HomeOption, JsonOption, console, print_document, wall_ms, with_channel

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.wire.owner import Snapshot
    from p2pgrid_cli.dashboard.view import View

INTERVAL_S = 0.5
DUMB = ("dumb", "unknown", "")
DUMB_INTERVAL_S = 5.0
"""On a terminal that only prints, where each look is a page more."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(peers)
    app.command()(top)


def peers(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the nodes of the grid, with what they have to spare."""
    from p2pgrid_cli.documents.peers import peers_of
    from p2pgrid_cli.render import peers_table

    reply = with_channel(home, lambda channel: channel.peers())
    if as_json:
        print_document(peers_of(reply))
    else:
        out = console()
        out.print(peers_table(reply.peers, out.width, wall_ms()))


def top(
    interval: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds between two looks. Default: 0.5; 5 where the terminal only prints.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """A live picture of this node, its peers and its jobs. ? tells the keys, q quits."""

    import asyncio

    async def watch(channel: Channel) -> int:
        live = not (once or as_json) and sys.stdout.isatty()
        # Who looks once wants all of it now; a live picture begins at once and fills up.
        asking = asyncio.ensure_future(channel.snapshot(refresh=not live))
        await asyncio.sleep(0)
        if as_json:
            from p2pgrid_cli.documents.top import top_of

            print_document(top_of(await asking))
            return 0
        # Imported while the node makes its answer.
        from p2pgrid_cli.dashboard.live import Live
        from p2pgrid_cli.dashboard.terminal import own_terminal

        if not live:
            _print(await asking)
            return 0
        if os.environ.get("TERM", "") in DUMB:
            await _print_often(channel, await asking, interval or DUMB_INTERVAL_S)
            return 0
        return await Live(channel, own_terminal(), _view(), await asking, interval_s=interval or INTERVAL_S).run()

    ended_by = with_channel(home, watch)
    if ended_by:
        raise typer.Exit(128 + ended_by)


def _view() -> View:
    """The view at the start: with the signs that the terminal's encoding has."""
    from p2pgrid_cli.dashboard.lines import ASCII, UNICODE
    from p2pgrid_cli.dashboard.live import utc_offset_s
    from p2pgrid_cli.dashboard.view import View

    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    return View(glyphs=ASCII if plain else UNICODE, utc_offset_s=utc_offset_s())


def _columns() -> int:
    """As of :func:`console`, without what that imports."""
    import shutil

    return shutil.get_terminal_size((PIPE_COLUMNS if not sys.stdout.isatty() else 80, 24)).columns


def _print(snapshot: Snapshot) -> None:
    """One look, as lines without colour."""
    from p2pgrid_cli.dashboard.plain import plain_text

    text = plain_text(snapshot, _view(), _columns()) + "\n"
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


async def _print_often(channel: Channel, first: Snapshot, interval_s: float) -> None:
    """A look after each interval, until Ctrl-C."""
    import asyncio

    _print(first)
    while True:
        await asyncio.sleep(interval_s)
        sys.stdout.write("\n")
        _print(await channel.snapshot())
