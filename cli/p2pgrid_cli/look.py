"""``peers`` and ``top``: who is there and what is going on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid_cli.common import HomeOption, JsonOption, console, print_json, with_channel

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: p2pgrid peers --json")(peers)
    app.command(epilog="Example: p2pgrid top --once")(top)


def peers(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List the nodes of the grid, with what they have to spare."""
    from p2pgrid_cli.render import peer_document, peers_table

    reply = with_channel(home, lambda channel: channel.peers())
    if as_json:
        print_json({"complete": reply.complete, "peers": [peer_document(line) for line in reply.peers]})
    else:
        out = console()
        out.print(peers_table(reply.peers, out.width))


def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    home: HomeOption = None,
) -> None:
    """A live picture of this node, its peers and its jobs. Ctrl-C ends it."""

    async def watch(channel: Channel) -> None:
        import asyncio

        from rich.live import Live

        from p2pgrid_cli.render import dashboard

        out = console()
        picture = dashboard(await channel.snapshot(refresh=True), out.width)
        if once or not sys.stdout.isatty() or out.is_dumb_terminal:
            out.print(picture)
            return
        with Live(picture, console=out, screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                live.update(dashboard(await channel.snapshot(), out.width), refresh=True)

    with_channel(home, watch)
