"""Files and folders between the owner's disk and the grid (docs/spec/blobs.md#folders).

1. A folder is looked through before anything is sent, so that a name that cannot be stored costs no transfer.
2. Its files go to the same nodes as its list, so that who finds one finds all; only the list is recorded in the DHT.
3. A folder that is got back is built beside its place, links last, and renamed when it is whole. What an earlier run
   left is checked and kept.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from p2pgrid.client.channel import Channel
from p2pgrid.client.placing import EXECUTABLE_MODE, FILE_MODE, Part, check_place, holds, part_of, target_errors
from p2pgrid.client.transfer import Incoming, OnBytes, quiet
from p2pgrid.errors import BadDataError, RefusedError
from p2pgrid.model.blob import chunk_size
from p2pgrid.model.folder import ENTRIES_MAX, FILE, FOLDER, LINK, FolderEntry, Manifest, encode_manifest
from p2pgrid.model.ids import DIGEST_BYTES, BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload
from p2pgrid.wire.owner import FileReply

PARALLEL = 8
"""Files of a folder that are sent or fetched at one time."""
UNKNOWN = bytes(DIGEST_BYTES)
"""In place of an address until it is known."""


# -- putting ---------------------------------------------------------------------------------


def scan(folder: Path) -> list[FolderEntry]:
    """Everything below a folder, without addresses yet. Blocks. Raises BadDataError for what cannot be stored."""
    entries: list[FolderEntry] = []
    pending = [(folder, "")]
    while pending:
        path, prefix = pending.pop()
        try:
            found = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise BadDataError(f"'{path}' cannot be read: {error.strerror}") from error
        for item in found:
            entry = _entry(item, prefix + item.name)
            entries.append(entry)
            if entry.kind == FOLDER:
                pending.append((Path(item.path), f"{entry.path}/"))
        if len(entries) > ENTRIES_MAX:
            raise BadDataError(
                f"'{folder}' has more than {ENTRIES_MAX} entries", reason=Reason.TOO_LARGE, hint="store parts of it, or an archive"
            )
    try:
        encode_manifest(entries)
    except BadDataError as error:
        raise BadDataError(f"'{folder}' cannot be stored: {error.message}", reason=error.reason, hint=error.hint or _RENAME) from error
    return entries


_RENAME = "rename it, remove it, or store an archive of the folder"


def _entry(item: os.DirEntry[str], path: str) -> FolderEntry:
    try:
        status = item.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return FolderEntry(path, LINK, target=_plain(os.readlink(item.path)))
    except OSError as error:
        raise BadDataError(f"'{item.path}' cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        return FolderEntry(path, FOLDER)
    if stat.S_ISREG(status.st_mode):
        return FolderEntry(path, FILE, status.st_size, UNKNOWN, bool(status.st_mode & stat.S_IXUSR))
    raise BadDataError(f"'{item.path}' is no file, folder or link", hint="remove it, or store an archive of the folder")


def _plain(target: str) -> str:
    """A link's target in the form that a manifest has, where that is only a matter of writing."""
    target = target.replace(os.sep, "/")
    while target.startswith("./"):
        target = target[2:].lstrip("/")
    return target.rstrip("/") if target != "/" else target


async def put_folder(channel: Channel, folder: Path, *, replicas: int, expires_ms: int, on_bytes: OnBytes = quiet) -> FileReply:
    """Store a folder with all its files; what is there already is not sent again.

    Returns the reply for its list, with the fewest copies that any part has and the size of all. Raises as ``Channel.put``.
    """
    entries = await channel.offload.run(scan, folder)
    size_bytes = sum(entry.size_bytes for entry in entries)
    folder = await channel.offload.run(folder.resolve)
    place = blake3(os.fsencode(folder)).digest()
    queue = iter(range(len(entries)))
    copies = list[int]()

    def told(what: str, more_bytes: int, of_bytes: int) -> None:
        if what == "sending":
            on_bytes(what, more_bytes, size_bytes)

    async def serve() -> None:
        for number in queue:
            entry = entries[number]
            if entry.kind == FILE:
                reply = await channel.put(
                    folder / entry.path, replicas=replicas, expires_ms=expires_ms, announce=False, place=place, follow=False, on_bytes=told
                )
                copies.append(reply.copies)
                entries[number] = msgspec.structs.replace(entry, blob=reply.blob, size_bytes=reply.size_bytes)

    await _together(serve() for _ in range(PARALLEL))
    content = await channel.offload.run(encode_manifest, entries)
    reply = await channel.put_bytes(
        content, replicas=replicas, expires_ms=expires_ms, announce=True, name=folder.name, place=place, listed=True
    )
    return msgspec.structs.replace(reply, copies=min([reply.copies, *copies]), size_bytes=sum(entry.size_bytes for entry in entries))


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run these to their end; the first error ends all of them."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


# -- getting -------------------------------------------------------------------------------------


async def get_file(channel: Channel, incoming: Incoming, target: Path, on_bytes: OnBytes = quiet) -> None:
    """Write a blob to ``target``, which appears when it is whole. What an interrupted run left is continued.

    Raises RefusedError when it cannot be written.
    """
    check_place(target)
    await _write(channel.offload, incoming, part_of(target, incoming.blob), target, FILE_MODE, on_bytes)


async def _write(offload: Offload, incoming: Incoming, part_path: Path, target: Path, mode: int, on_bytes: OnBytes) -> None:
    with target_errors(target):
        part = await offload.run(Part, part_path, incoming, mode=mode)
        try:
            first = await offload.run(part.first_missing)
            on_bytes("getting", sum(chunk_size(incoming.size_bytes, index) for index in range(first)), incoming.size_bytes)
            await incoming.save(lambda group: offload.run(part.write, group), first, on_bytes)
            await offload.run(part.place, target)
        finally:
            part.close()


async def get_folder(channel: Channel, blob: BlobId, manifest: Manifest, target: Path, on_bytes: OnBytes = quiet) -> None:
    """Build a folder at ``target``, which appears when it is whole. What an interrupted run left is continued.

    Raises BadDataError when ``target`` is there and not empty, RefusedError when it cannot be written.
    """
    offload, size_bytes = channel.offload, manifest.size_bytes
    with target_errors(target):
        await offload.run(_check_empty, target)
        building = part_of(target, blob)
        tree, parts = building / "tree", building / "parts"
        await offload.run(_prepare, building, manifest)
    queue = iter(enumerate(manifest.entries))

    def told(what: str, more_bytes: int, of_bytes: int) -> None:
        if what == "getting":
            on_bytes(what, more_bytes, size_bytes)

    async def serve() -> None:
        for number, entry in queue:
            if entry.kind == FILE:
                await _get_entry(channel, blob, entry, parts / str(number), tree / entry.path, told)

    await _together(serve() for _ in range(PARALLEL))
    with target_errors(target):
        await offload.run(_finish, building, manifest, target)


async def _get_entry(channel: Channel, folder: BlobId, entry: FolderEntry, part: Path, path: Path, on_bytes: OnBytes) -> None:
    async with channel.opened(BlobId(entry.blob), folder=folder) as incoming:
        if incoming.size_bytes != entry.size_bytes:
            raise BadDataError(f"'{entry.path}' has another size than its folder says", reason=Reason.CORRUPT)
        if await channel.offload.run(_there, path, incoming, entry):
            on_bytes("getting", entry.size_bytes, entry.size_bytes)
            return
        await _write(channel.offload, incoming, part, path, EXECUTABLE_MODE if entry.executable else FILE_MODE, on_bytes)


def _there(path: Path, incoming: Incoming, entry: FolderEntry) -> bool:
    with target_errors(path):
        return holds(path, incoming)


def _check_empty(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadDataError(f"'{target}' is there already", hint="choose another place with -o")
    if target.is_dir() and any(target.iterdir()):
        raise BadDataError(f"'{target}' is not empty", hint="choose another place with -o")
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _prepare(building: Path, manifest: Manifest) -> None:
    """Make the folders, or take up what an earlier run of this owner left."""
    try:
        building.mkdir(mode=0o700)
    except FileExistsError:
        status = building.lstat()
        foreign = hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or bool(status.st_mode & 0o022))
        if not stat.S_ISDIR(status.st_mode) or foreign:
            raise RefusedError(f"'{building}' is in the way", reason=Reason.BAD_NAME, hint="remove it, or choose another place") from None
    for path in (building / "parts", building / "tree"):
        path.mkdir(exist_ok=True)
    for entry in manifest.entries:
        if entry.kind == FOLDER:
            (building / "tree" / entry.path).mkdir(exist_ok=True)


def _finish(building: Path, manifest: Manifest, target: Path) -> None:
    """Links, now that nothing is written any more; then the name."""
    tree = building / "tree"
    for entry in manifest.entries:
        path = tree / entry.path
        if entry.kind == LINK and not path.is_symlink():
            path.symlink_to(entry.target)
    if os.name == "nt" and target.is_dir():
        target.rmdir()
    os.replace(tree, target)
    for left in (building / "parts").iterdir():
        left.unlink()
    (building / "parts").rmdir()
    building.rmdir()
