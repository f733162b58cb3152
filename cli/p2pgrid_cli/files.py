"""``put``, ``get``, ``blobs``, ``pin``, ``unpin``: files and folders in the grid."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from p2pgrid.errors import BadDataError, UsageError
from p2pgrid_cli import exits
from p2pgrid_cli.common import (
    HomeOption,
    JsonOption,
    console,
    interruptible,
    print_document,
    print_line,
    say,
    size_text,
    wall_ms,
    with_channel,
)
from p2pgrid_cli.completion import complete_blob

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.client.transfer import Incoming
    from p2pgrid.model.ids import BlobId
    from p2pgrid.wire.owner import BlobLine, FileReply
    from p2pgrid_cli.documents.blobs import Got
    from p2pgrid_cli.progress import TransferProgress

T = TypeVar("T")
DAY_MS = 24 * 3600 * 1000
TTL_DAYS_MAX = 400
REPLICAS_MAX = 64
AUTO = "auto"
ID_CHARS = 52

BlobArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="What 'p2pgrid put' printed; its beginning will do for what was put here.", autocompletion=complete_blob
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(put)
    app.command()(get)
    app.command()(blobs)
    app.command()(pin)
    app.command()(unpin)


def put(
    path: Annotated[Path, typer.Argument(help="A file or a folder.")],
    replicas: Annotated[
        str, typer.Option(metavar="N|auto", help="Copies in the grid; auto: as many as the nodes' availability asks for.")
    ] = "3",
    ttl: Annotated[str, typer.Option(metavar="SPAN", help="How long it is kept, as 12h, 7d or 4w.")] = "7d",
    days: Annotated[float, typer.Option(min=0, hidden=True)] = 0,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Store a file or a folder on several nodes; prints its id. Run again after an interruption, it goes on."""
    from p2pgrid.client.folders import put_folder
    from p2pgrid.model.ids import to_text
    from p2pgrid_cli.progress import TransferProgress

    wanted, span_ms, is_folder = _replicas(replicas), int(days * DAY_MS) or _span_ms(ttl), _is_folder(path)

    async def store(channel: Channel) -> FileReply:
        expires_ms = wall_ms() + span_ms
        with TransferProgress() as progress:
            if is_folder:
                return await put_folder(channel, path, replicas=wanted, expires_ms=expires_ms, on_bytes=progress.more)
            return await channel.put(path, replicas=wanted, expires_ms=expires_ms, listed=True, on_bytes=progress.more)

    reply = _resumable(home, store)
    if as_json:
        from p2pgrid_cli.documents.blobs import put_of

        print_document(put_of(reply))
    else:
        print_line(to_text(reply.blob))
    say(f"{size_text(reply.size_bytes)}, {reply.copies} cop{'ies' if reply.copies != 1 else 'y'}")
    if reply.copies < reply.wanted:
        say(f"fewer than {reply.wanted} copies: no other node with room could be reached; more are made when one can")


def _resumable(home: Path | None, use: Callable[[Channel], Awaitable[T]]) -> T:
    """Do what can be gone on with later, and say so when Ctrl-C ends it."""
    try:
        return with_channel(home, use)
    except KeyboardInterrupt:
        say("stopped: the same command goes on where it was")
        raise typer.Exit(exits.INTERRUPTED) from None


def _replicas(text: str) -> int:
    if text == AUTO:
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= REPLICAS_MAX:
        raise UsageError(f"'{text}' is no number of copies", hint=f"give a number from 1 to {REPLICAS_MAX}, or auto")
    return int(text)


def _span_ms(text: str) -> int:
    from p2pgrid.model.sizes import parse_span_ms

    span_ms = parse_span_ms(text)
    if span_ms > TTL_DAYS_MAX * DAY_MS:
        raise UsageError(
            f"'{text}' is longer than nodes keep anything for others", hint=f"at most {TTL_DAYS_MAX}d; put it again before that"
        )
    return span_ms


def _is_folder(path: Path) -> bool:
    """Raises BadDataError for what is neither file nor folder."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise BadDataError(f"'{path}' is not there", hint="give the path of a file or a folder") from None
    except OSError as error:
        raise BadDataError(f"'{path}' cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise BadDataError(f"'{path}' is no regular file", hint="give the path of a file or a folder")
    return stat.S_ISDIR(mode)


def get(
    blob: BlobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder to write. Default: stdout, for a file.", show_default=False)
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Of a folder, its list of files as stored.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Fetch a file or a folder from whoever holds it, verified. Run again after an interruption, it goes on."""
    from p2pgrid_cli.progress import TransferProgress

    if output is not None:
        output = Path(os.path.abspath(output))
        _check_output(output)
    elif as_json:
        raise UsageError("stdout cannot take a document and the content", hint="say where the content is to be with -o")

    async def fetch(channel: Channel) -> Got | None:
        from p2pgrid.model.folder import is_manifest

        wanted = await blob_named(channel, blob)
        with TransferProgress(to_stdout=output is None) as progress:
            async with channel.opened(wanted, on_bytes=progress.more) as incoming:
                if is_manifest(incoming.head) and not raw:
                    return await _save_folder(channel, incoming, output, progress)
                return await _save_file(channel, incoming, output, progress)

    got = _resumable(home, fetch)
    if got is not None and as_json:
        print_document(got)
    elif got is not None:
        files = f"{got.files} file{'s' if got.files != 1 else ''}, " if got.kind == "folder" else ""
        say(f"{files}{size_text(got.size_bytes)} in {got.path}")


def _check_output(output: Path) -> None:
    """Raises RefusedError before anything is fetched that could not be written."""
    from p2pgrid.client.placing import check_place

    if not output.is_dir():
        check_place(output)


async def _save_file(channel: Channel, incoming: Incoming, output: Path | None, progress: TransferProgress) -> Got | None:
    from p2pgrid.client.folders import get_file
    from p2pgrid.model.ids import to_text
    from p2pgrid_cli.documents.blobs import Got

    if output is None:
        async for data in incoming.chunks(0):
            with interruptible():
                sys.stdout.buffer.write(data)
            progress.more("getting", len(data), incoming.size_bytes)
        sys.stdout.flush()
        return None
    target = output / _name_of(incoming) if output.is_dir() else output  # noqa: ASYNC240 - a look at one name
    await get_file(channel, incoming, target, progress.more)
    return Got(to_text(incoming.blob), "file", str(target), 1, incoming.size_bytes)


def _name_of(incoming: Incoming) -> str:
    """What the file was called when it was put at this node, else the beginning of its id."""
    from p2pgrid.model.ids import to_text
    from p2pgrid.model.names import check_relative

    try:
        if len(check_relative(incoming.name)) == 1:
            return incoming.name
    except BadDataError:
        pass
    return to_text(incoming.blob)[:12]


async def _save_folder(channel: Channel, incoming: Incoming, output: Path | None, progress: TransferProgress) -> Got:
    from p2pgrid.client.folders import get_folder
    from p2pgrid.model.folder import MANIFEST_BYTES_MAX, decode_manifest
    from p2pgrid.model.ids import to_text
    from p2pgrid_cli.documents.blobs import Got

    if output is None:
        raise UsageError("this is a folder", hint="say where it is to be with -o FOLDER, or get its list of files with --raw")
    if incoming.size_bytes > MANIFEST_BYTES_MAX:
        raise BadDataError("this is no folder that can be", hint="its bytes can be had with --raw")
    content = b"".join([data async for data in incoming.chunks(0)])
    manifest = decode_manifest(content)
    await get_folder(channel, incoming.blob, manifest, output, progress.more)
    return Got(to_text(incoming.blob), "folder", str(output), len(manifest.files), manifest.size_bytes)


async def blob_named(channel: Channel, text: str) -> BlobId:
    """A blob by its full id, or by a beginning of it that only one of those put or pinned here has."""
    from p2pgrid.model.ids import BlobId, from_text, to_text

    if 4 <= len(text) < ID_CHARS:
        found = [line.blob for line in await channel.blobs() if to_text(line.blob).startswith(text.lower())]
        if len(found) == 1:
            return BlobId(found[0])
        if found:
            raise UsageError(f"'{text}' is the beginning of {len(found)} blobs", hint="give more of the id")
    return BlobId(from_text(text, what="blob id"))


def blobs(
    everything: Annotated[bool, typer.Option("--all", help="Also what lies here for others.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """List what was put or pinned at this node."""
    from p2pgrid_cli.blobtables import blobs_table
    from p2pgrid_cli.documents.blobs import blobs_of

    async def listed(channel: Channel) -> list[BlobLine]:
        mine = await channel.blobs()
        if not everything:
            return mine
        known = {line.blob for line in mine}
        return mine + [line for line in await channel.blobs(all=True) if line.blob not in known]

    lines = with_channel(home, listed)
    if as_json:
        print_document(blobs_of(lines))
    else:
        out = console()
        out.print(blobs_table(lines, out.width, wall_ms()))


def pin(blob: BlobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Keep a file or a folder at this node for good; it is fetched if it is not here."""
    _set_pin(blob, home, keep=True, as_json=as_json)


def unpin(blob: BlobArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Give up at this node what was pinned or put here. Other nodes keep their copies until their time is over."""
    _set_pin(blob, home, keep=False, as_json=as_json)


def _set_pin(blob: str, home: Path | None, *, keep: bool, as_json: bool) -> None:
    from p2pgrid.model.ids import to_text
    from p2pgrid_cli.documents.blobs import Pinned
    from p2pgrid_cli.progress import TransferProgress

    async def change(channel: Channel) -> BlobId:
        wanted = await blob_named(channel, blob)
        with TransferProgress() as progress:
            await channel.pin(wanted, keep=keep, on_bytes=progress.more)
        return wanted

    changed = with_channel(home, change)
    if as_json:
        print_document(Pinned(to_text(changed), keep))
    else:
        say("pinned" if keep else "given up")
