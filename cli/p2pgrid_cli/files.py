"""``put`` and ``get``: files in the grid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid.errors import BadDataError, P2PGridError, RefusedError
from p2pgrid_cli.common import HomeOption, print_line, say, size_text, wall_ms, with_channel

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.wire.owner import PutReply

DAY_MS = 24 * 3600 * 1000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: p2pgrid put data.csv")(put)
    app.command(epilog="Example: p2pgrid get 7xq3... -o data.csv")(get)


def put(
    path: Annotated[Path, typer.Argument(help="A file.")],
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Copies in the grid.")] = 3,
    days: Annotated[float, typer.Option(min=0.001, help="How long it is kept.")] = 7.0,
    home: HomeOption = None,
) -> None:
    """Store a file on several nodes; prints its id."""
    from p2pgrid.model.ids import to_text

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise BadDataError(f"'{path}' {what}", hint="give the path of a file")

    async def store(channel: Channel) -> PutReply:
        try:
            return await channel.put(path, replicas=replicas, expires_ms=wall_ms() + int(days * DAY_MS))
        except OSError as error:
            raise BadDataError(f"'{path}' cannot be read: {error.strerror}") from error

    reply = with_channel(home, store)
    print_line(to_text(reply.blob))
    say(f"{size_text(reply.size_bytes)}, {reply.copies} cop{'ies' if reply.copies != 1 else 'y'}")
    if reply.copies < replicas:
        say(f"fewer than {replicas} copies: no other node with room could be reached")


def get(
    blob: Annotated[str, typer.Argument(metavar="ID", help="What 'p2pgrid put' printed.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. Default: stdout.")] = None,
    home: HomeOption = None,
) -> None:
    """Fetch a file from whoever holds it, verified."""
    from p2pgrid.model.ids import BlobId, from_text

    wanted = BlobId(from_text(blob, what="blob id"))
    if output is None:
        with_channel(home, lambda channel: channel.get(wanted, sys.stdout.buffer))
        sys.stdout.flush()
        return
    target = output / blob[:12] if output.is_dir() else output
    partial = target.with_name(f".{target.name}.part")
    try:
        with partial.open("wb") as file:
            size_bytes = with_channel(home, lambda channel: channel.get(wanted, file))
        partial.replace(target)
    except OSError as error:
        raise RefusedError(f"'{target}' cannot be written: {error.strerror}", hint="choose another place with -o") from error
    except P2PGridError:
        partial.unlink(missing_ok=True)
        raise
    say(f"{size_text(size_bytes)} in {target}")
