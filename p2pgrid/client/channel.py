"""The owner's channel from the command line's side: one session to one's own node, proven by the home's key."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from p2pgrid.client.snapshots import joined
from p2pgrid.client.transfer import BytesSource, FileSource, Incoming, OnBytes, Source, last_reply, quiet, raise_error, send_file
from p2pgrid.errors import UnreachableError
from p2pgrid.model.ids import BlobId, JobId, NodeKey, StatementId
from p2pgrid.model.limits import DEFAULT_LIMITS, MIB
from p2pgrid.model.membership import Grid
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream, Transport, WallClock
from p2pgrid.net.bulk import read_framed
from p2pgrid.net.hello import SessionSetup
from p2pgrid.net.messages import Hello, Member
from p2pgrid.net.methods import Methods
from p2pgrid.net.rpc import Session, open_session
from p2pgrid.net.tls import TlsTransport
from p2pgrid.offload import Offload, ThreadOffload
from p2pgrid.services import membership as memberships
from p2pgrid.services.nearby import sayable
from p2pgrid.store.home import Home
from p2pgrid.wire.codec import decode
from p2pgrid.wire.faces import ExplainRequest, Explanation, JobPicture, PictureRequest
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import Ok
from p2pgrid.wire.owner import (
    BlobLine,
    BlobsReply,
    BlobsRequest,
    CancelReply,
    FileReply,
    FollowEvent,
    FollowHeader,
    GetHeader,
    InviteReply,
    InviteRequest,
    JobLine,
    JobRequest,
    JobsReply,
    Nothing,
    OwnPause,
    OwnStatus,
    PauseRequest,
    PeersReply,
    PeersRequest,
    PinHeader,
    PutHeader,
    RunnerReply,
    RunnerRequest,
    Snapshot,
    SnapshotRequest,
    SubmitHeader,
    Submitted,
    WhyBlob,
    WhyMe,
    WhyRequest,
)

R = TypeVar("R", bound=msgspec.Struct)
LENGTH = struct.Struct(">I")
CALL_S = 30.0
RUNNER_S = 120.0
"""The runner may have to be fetched from another node first."""
EVENT_BYTES_MAX = 64 * MIB


class Channel:
    """An open owner's channel. ``async with await Channel.open(home, wall_ms) as channel: ...``"""

    def __init__(self, session: Session, transport: Transport, grid: Grid, submitter: SigningKey, offload: Offload) -> None:
        self._session = session
        self._transport = transport
        self._offload = offload
        self.grid = grid
        self.submitter = submitter
        self._snapshot: Snapshot | None = None
        self._submitted: dict[JobId, Stream] = {}
        """Streams of submitted jobs on which their news already comes."""

    @classmethod
    async def open(cls, home: Home, wall_ms: WallClock, *, transport: Transport | None = None, offload: Offload | None = None) -> Channel:
        """Connect to the node that runs in ``home``. Raises UnreachableError when none does.

        ``transport``: what to dial with, by default TLS over TCP; ``offload``: where files are read and written, by default
        threads. Both belong to the channel from here on, and are closed with it.
        """
        running, membership = home.running(), memberships.load(home)
        if running is None or membership is None:
            raise UnreachableError(f"no node runs in '{home.folder}'", reason=Reason.DEAD, hint="start it with: p2pgrid join --detach")
        key = home.node_key()
        grid = membership.grid

        def hello() -> Hello:
            return Hello(grid=grid.id, wall_ms=wall_ms(), credentials=tuple(membership.chain))

        def owner(peer: NodeKey, hello: Hello) -> Member:
            return Member(owner=True)

        transport = transport or TlsTransport(key, "127.0.0.1", 0)
        offload = offload or ThreadOffload()
        own = NodeKey(key.public)
        address = Address("tls", running.host, running.port)
        try:
            connection = await transport.dial(own, [address], DEFAULT_LIMITS.dial_s)
            setup = SessionSetup(own, hello, Methods(), owner, DEFAULT_LIMITS, wall_ms)
            session = await open_session(connection, setup)
            return cls(session, transport, grid, home.submitter_key(), offload)
        except BaseException:
            await transport.close()
            await offload.close()
            raise

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._session.close()
        await self._session.wait_closed()
        await self._transport.close()
        await self._offload.close()

    @property
    def offload(self) -> Offload:
        """Where files are read and written."""
        return self._offload

    # -- asking ------------------------------------------------------------------------

    async def _call(self, method: str, request: msgspec.Struct, reply: type[R], timeout_s: float = CALL_S) -> R:
        return await self._session.call(method, request, reply, timeout_s=timeout_s)

    async def status(self) -> OwnStatus:
        """The node itself."""
        return await self._call("own.status", Nothing(), OwnStatus)

    async def runner(self, *, have: bool = True) -> bytes:
        """The blob id of the grid's Python runner, which the node has when this returns. Raises RefusedError when there is none.

        ``have`` False: what is named now, empty for none.
        """
        return (await self._call("own.runner", RunnerRequest(have), RunnerReply, timeout_s=RUNNER_S)).runner

    async def peers(self, *, refresh: bool = True) -> PeersReply:
        """Every node of the grid (a sample, when it has more than 256)."""
        return await self._call("own.peers", PeersRequest(refresh), PeersReply)

    async def jobs(self) -> tuple[JobLine, ...]:
        """The jobs this node knows, newest first."""
        return (await self._call("own.jobs", Nothing(), JobsReply)).jobs

    async def job(self, job: JobId) -> JobLine:
        """One job, wherever in the grid it is kept."""
        return await self._call("own.job", JobRequest(job), JobLine)

    async def explain(self, kind: str, subject: bytes = b"", unit: int = 0) -> Explanation:
        """Why something is as it is. ``kind``: ``job``, ``unit`` (of the job), ``peer`` or ``me``. Raises RefusedError if nobody knows."""
        return await self._call("own.explain", ExplainRequest(kind, subject, unit), Explanation)

    async def picture(self, job: JobId, cells: int = 1024) -> JobPicture:
        """A job as ``watch`` shows it, its units divided into at most ``cells`` parts. Raises RefusedError when nobody knows it."""
        return await self._call("own.picture", PictureRequest(job, cells), JobPicture)

    async def cancel(self, job: JobId) -> str:
        """Cancel a job of this home's submitter key, wherever it is led; returns its state."""
        return (await self.cancel_everywhere(job)).state

    async def cancel_everywhere(self, job: JobId) -> CancelReply:
        """As :meth:`cancel`; says too how many nodes heard it."""
        return await self._call("own.cancel", JobRequest(job), CancelReply)

    async def pause(self, seconds: float = 0.0) -> OwnPause:
        """Let the node work no more, for a time or until :meth:`resume`; no unit runs when this returns."""
        return await self._call("own.pause", PauseRequest(seconds), OwnPause)

    async def resume(self) -> OwnPause:
        """Let the node work again, though one of its owner's terms says otherwise now."""
        return await self._call("own.resume", Nothing(), OwnPause)

    async def finish(self) -> OwnPause:
        """Let the node end what it has leased, and then pause."""
        return await self._call("own.finish", Nothing(), OwnPause)

    async def why_me(self) -> WhyMe:
        """What the node does for others, and why not more."""
        return await self._call("own.me", Nothing(), WhyMe)

    async def leave(self) -> None:
        """Ask the node to stop."""
        await self._call("own.leave", Nothing(), Ok)

    async def invite(self, roles: tuple[str, ...], expires_ms: int) -> str:
        """The text of a new invite."""
        return (await self._call("own.invite", InviteRequest(roles, expires_ms), InviteReply)).text

    async def snapshot(self, *, refresh: bool = False) -> Snapshot:
        """Everything ``top`` shows. Only what has changed since the last one is asked for."""
        found = await self._call("own.snapshot", SnapshotRequest(refresh, self._snapshot.number if self._snapshot else 0), Snapshot)
        if found.since and (self._snapshot is None or self._snapshot.number != found.since):
            found = await self._call("own.snapshot", SnapshotRequest(), Snapshot)  # Another call has taken the one between.
        self._snapshot = found = joined(self._snapshot, found) if self._snapshot else found
        return found

    # -- jobs -----------------------------------------------------------------------------

    async def submit(self, job: bytes, batches: Iterable[bytes], *, follow: bool = False, detach: bool = False) -> tuple[JobId, int]:
        """Hand a signed job and its batches to the node; returns its id and how many other nodes keep it.

        ``follow``: the next :meth:`follow` of this job begins at once, without asking again. ``detach``: return only when the
        keepers have all of it, and count those who do.
        """
        contents = list(batches)
        stream = await self._session.open_stream("own.submit", SubmitHeader(len(contents), follow, detach))

        async def send() -> None:
            await _write_framed(stream, job)
            for content in contents:
                await _write_framed(stream, content)
            stream.finish()

        try:
            reply = await _answered(stream, send(), Submitted)
            raise_error(reply)
        except BaseException:
            stream.reset(Reason.CLOSED)
            raise
        known = JobId(StatementId(reply.job))
        if follow:
            self._submitted[known] = stream
        else:
            stream.reset(Reason.CLOSED)
        return known, reply.keepers

    async def follow(self, job: JobId, *, wait: bool, values: bool = True) -> AsyncIterator[FollowEvent]:
        """News of a job until it has ended; with ``wait`` False what is known now. ``values`` False: without results."""
        stream = self._submitted.pop(job, None) if wait and values else None
        if stream is None:
            stream = await self._session.open_stream("own.follow", FollowHeader(job, wait, values))
            stream.finish()
        try:
            while True:
                event = decode(await read_framed(stream, EVENT_BYTES_MAX), FollowEvent)
                yield event
                if event.end:
                    return
        finally:
            stream.reset(Reason.CLOSED)

    # -- files -----------------------------------------------------------------------------

    async def put(
        self,
        path: Path,
        *,
        replicas: int,
        expires_ms: int,
        announce: bool = True,
        place: bytes = b"",
        listed: bool = False,
        follow: bool = True,
        on_bytes: OnBytes = quiet,
    ) -> FileReply:
        """Store a file in the grid; what of it is there already is not sent again.

        ``replicas``: copies in all, 0 for as many as the availability of the nodes asks for. ``place``: files with the same
        one go to the same nodes. ``listed``: the node remembers it as its owner's. ``follow``: a link
        stands for what it leads to. ``on_bytes``: told what was done, as it
        is done. Raises RefusedError (full), BadDataError (it cannot be read, or changes meanwhile).
        """
        source = await FileSource.open(path, self._offload, follow=follow)
        header = PutHeader(path.name, replicas, expires_ms, announce, place=place, listed=listed, path=sayable(path))
        try:
            return await self._put(header, source, on_bytes)
        finally:
            await source.close()

    async def put_bytes(
        self,
        data: bytes,
        *,
        replicas: int,
        expires_ms: int,
        announce: bool = False,
        name: str = "",
        place: bytes = b"",
        listed: bool = False,
        on_bytes: OnBytes = quiet,
    ) -> FileReply:
        """Store bytes in the grid."""
        return await self._put(
            PutHeader(name, replicas, expires_ms, announce, place=place, listed=listed), BytesSource(data, self._offload), on_bytes
        )

    async def _put(self, header: PutHeader, source: Source, on_bytes: OnBytes) -> FileReply:
        blob, root = await source.address(on_bytes)
        stream = await self._session.open_stream("own.put", msgspec.structs.replace(header, blob=blob, size_bytes=source.size_bytes))
        try:
            return await send_file(stream, source, root, on_bytes)
        finally:
            stream.reset(Reason.CLOSED)

    async def get(
        self, blob: BlobId, target: BinaryIO, sources: tuple[bytes, ...] = (), *, folder: bytes = b"", on_bytes: OnBytes = quiet
    ) -> int:
        """Write a blob to ``target``; returns its size. Raises UnreachableError when nobody who holds it can be reached."""

        async def write(group: Sequence[tuple[int, bytes]]) -> None:
            await self._offload.run(target.writelines, [data for _, data in group])

        async with self.opened(blob, sources, folder=folder, on_bytes=on_bytes) as incoming:
            await incoming.save(write, 0, on_bytes)
            return incoming.size_bytes

    @asynccontextmanager
    async def opened(
        self, blob: BlobId, sources: tuple[bytes, ...] = (), *, folder: bytes = b"", on_bytes: OnBytes = quiet
    ) -> AsyncIterator[Incoming]:
        """A blob that the node has fetched if need be, to be read. Raises as :meth:`get`."""
        stream = await self._session.open_stream("own.get", GetHeader(blob, sources, folder))
        try:
            yield await Incoming.meet(stream, on_bytes, self._offload)
        finally:
            stream.reset(Reason.CLOSED)

    async def pin(self, blob: BlobId, *, keep: bool, on_bytes: OnBytes = quiet) -> FileReply:
        """Keep a blob at this node for good, with its files if it is a folder; or no longer. Raises as :meth:`get`."""
        stream = await self._session.open_stream("own.pin", PinHeader(blob, keep))
        stream.finish()
        try:
            return await last_reply(stream, "fetching", on_bytes)
        finally:
            stream.reset(Reason.CLOSED)

    async def blobs(self, *, all: bool = False) -> list[BlobLine]:  # noqa: A002 - what the option is called
        """What was put or pinned here; with ``all`` everything that lies here, for whomever."""
        lines: list[BlobLine] = []
        after = b""
        while True:
            reply = await self._call("own.blobs", BlobsRequest(all, after), BlobsReply)
            lines += reply.lines
            if not reply.more or not reply.lines:
                return lines
            after = reply.lines[-1].blob

    async def why(self, blob: BlobId) -> WhyBlob:
        """What the node knows of a blob."""
        return await self._call("own.why", WhyRequest(blob), WhyBlob)


async def _answered(stream: Stream, send: Coroutine[Any, Any, None], kind: type[R]) -> R:
    """Send, and take the answer whenever it comes: a node that refuses early no longer reads what is sent."""
    sending = asyncio.ensure_future(send)
    reading = asyncio.ensure_future(read_framed(stream, MIB))
    try:
        await asyncio.wait([sending, reading], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await sending
        return decode(await reading, kind)
    finally:
        sending.cancel()
        if not reading.done():
            # A read is never cancelled: it ends because the stream does.
            stream.reset(Reason.CLOSED)
        await asyncio.gather(sending, reading, return_exceptions=True)


async def _write_framed(stream: Stream, content: bytes) -> None:
    if len(content) <= DEFAULT_LIMITS.control_frame_bytes:
        # Small parts of one tick leave together: a send costs more than what is sent.
        stream.write_nowait(LENGTH.pack(len(content)) + content)
        await stream.drain()
        return
    await stream.write(LENGTH.pack(len(content)))
    for start in range(0, len(content), 256 * 1024):
        await stream.write(content[start : start + 256 * 1024])
