"""The owner's channel: what the command line asks of its own node (docs/spec/owner.md)."""

from __future__ import annotations

import asyncio
import os
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from p2pgrid import __version__
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import P2PGridError, RefusedError
from p2pgrid.model.blob import chunk_count
from p2pgrid.model.ids import BlobId, JobId, StatementId
from p2pgrid.model.job import Cancel
from p2pgrid.model.limits import MIB
from p2pgrid.model.node import NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_framed
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.following import Follower, job_line
from p2pgrid.services.keeping import JobView, Keeping
from p2pgrid.services.leading import Leading
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import Storing
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.messages import NodeStatus, Ok, StatusRequest
from p2pgrid.wire.owner import (
    CancelReply,
    EventLine,
    FollowHeader,
    GetHeader,
    InviteReply,
    InviteRequest,
    JobLine,
    JobRequest,
    JobsReply,
    Nothing,
    OwnStatus,
    PeerLine,
    PeersReply,
    PeersRequest,
    PutHeader,
    PutReply,
    Snapshot,
    SubmitHeader,
    Submitted,
)

EVENTS_MAX = 200
JOB_BYTES_MAX = 4 * MIB
LENGTH = struct.Struct(">I")
E_ = TypeVar("E_", Submitted, PutReply)


def framed(message: msgspec.Struct) -> bytes:
    """A message with its length in front, as on the owner's streams."""
    encoded = encode(message)
    return LENGTH.pack(len(encoded)) + encoded


class Owner:
    """Serves the owner. ``stop`` is called when the owner wants the node to leave; ``invite`` makes invites."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        dht: GridServer,
        storing: Storing,
        leading: Leading,
        keeping: Keeping,
        info: Callable[[], NodeInfo],
        status: Callable[[], NodeStatus],
        stop: Callable[[], None],
        invite: Callable[[tuple[str, ...], int], str],
        home: Path,
    ) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._storing = storing
        self._leading = leading
        self._keeping = keeping
        self._info = info
        self._status = status
        self._stop = stop
        self._invite = invite
        self._home = home
        leading.forgotten.append(keeping.forget_led)
        self._events: deque[EventLine] = deque(maxlen=EVENTS_MAX)
        context.events.append(self._note)
        methods = context.methods
        methods.on("own.status", Nothing, lambda session, request: self._own_status(), owner_only=True)
        methods.on("own.peers", PeersRequest, self._on_peers, owner_only=True)
        methods.on("own.jobs", Nothing, self._on_jobs, owner_only=True)
        methods.on("own.job", JobRequest, self._on_job, owner_only=True)
        methods.on("own.cancel", JobRequest, self._on_cancel, owner_only=True)
        methods.on("own.leave", Nothing, self._on_leave, owner_only=True)
        methods.on("own.invite", InviteRequest, self._on_invite, owner_only=True)
        methods.on("own.snapshot", PeersRequest, self._on_snapshot, owner_only=True)
        methods.on_stream("own.submit", SubmitHeader, self._on_submit, owner_only=True)
        methods.on_stream("own.follow", FollowHeader, self._on_follow, owner_only=True)
        methods.on_stream("own.put", PutHeader, self._on_put, owner_only=True)
        methods.on_stream("own.get", GetHeader, self._on_get, owner_only=True)
        methods.on("node.status", StatusRequest, lambda session, request: self._status())

    def _note(self, reason: str, text: str) -> None:
        self._events.append(EventLine(self._context.wall_ms(), str(reason), text))

    # -- looking -------------------------------------------------------------------------

    def _own_status(self) -> OwnStatus:
        context = self._context
        stats = self._dht.stats()
        info = self._info()
        return OwnStatus(
            node=context.me,
            name=info.name,
            grid=context.grid.name,
            grid_id=context.grid.id,
            roles=tuple(sorted(context.member.roles)),
            info=info,
            status=self._status(),
            pid=os.getpid(),
            version=__version__,
            home=str(self._home),
            dht_server=self._dht.is_server,
            dht_contacts=stats["contacts"],
            dht_records=stats["records"],
            expires_ms=context.member.expires_ms,
        )

    async def _on_peers(self, session: Session, request: PeersRequest) -> PeersReply:
        found = await self._peers.list(refresh=request.refresh)
        lines = tuple(PeerLine(peer.key, peer.info, peer.status, peer.rtt_s, peer.path) for peer in found)
        return PeersReply(lines, self._peers.complete)

    async def _on_jobs(self, session: Session, request: Nothing) -> JobsReply:
        return JobsReply(await self._jobs())

    async def _jobs(self) -> tuple[JobLine, ...]:
        """Every job known here, newest first: live ones in full, the others from the index."""
        lines: dict[bytes, JobLine] = {}
        for row in await self._context.offload.run(self._context.index.jobs):
            state = row.state if row.state != "running" else "unknown"
            lines.setdefault(
                row.id,
                JobLine(row.id, row.name, state, row.units, row.done, row.failed, 0, row.created_ms, row.expires_ms, row.role),
            )
        for kept in self._keeping.jobs.values():
            lines[kept.id] = job_line(kept)
        for led in self._leading.jobs.values():
            lines[led.id] = job_line(led)
        return tuple(sorted(lines.values(), key=lambda line: -line.created_ms))

    async def _on_job(self, session: Session, request: JobRequest) -> JobLine:
        view = await self._keeping.view(JobId(StatementId(request.job)))
        return job_line(view)

    async def _on_snapshot(self, session: Session, request: PeersRequest) -> Snapshot:
        peers = await self._on_peers(session, request)
        return Snapshot(
            status=self._own_status(),
            peers=peers.peers,
            complete=peers.complete,
            jobs=(await self._jobs())[:50],
            events=tuple(self._events)[-20:],
            wall_ms=self._context.wall_ms(),
            units_done=self._status().done,
        )

    # -- doing -----------------------------------------------------------------------------

    async def _on_submit(self, session: Session, header: SubmitHeader, stream: Stream) -> None:
        try:
            raw = await read_framed(stream, JOB_BYTES_MAX)
            limit = self._context.limits.batch_bytes + MIB
            batches = [await read_framed(stream, limit) for _ in range(header.batches)]
            led = await self._leading.submit(raw, batches)
        except P2PGridError as error:
            stream.write_nowait(framed(_failed(Submitted(b"", 0), error)))
            return
        self._keeping.led[led.id] = led
        keepers = led.ledger.keepers
        stream.write_nowait(framed(Submitted(led.id, len(keepers.body.keepers) if keepers else 0)))
        if header.follow:
            await self._tell(led, stream, wait=True)

    async def _on_follow(self, session: Session, header: FollowHeader, stream: Stream) -> None:
        view = await self._keeping.view(JobId(StatementId(header.job)))
        await self._tell(view, stream, wait=header.wait)

    async def _tell(self, view: JobView, stream: Stream, *, wait: bool) -> None:
        follower = Follower(view, self._leading.deriving)
        async for event in follower.events(wait=wait):
            await stream.write(framed(event))

    async def _on_cancel(self, session: Session, request: JobRequest) -> CancelReply:
        context = self._context
        led = self._leading.jobs.get(JobId(StatementId(request.job)))
        if led is None:
            raise RefusedError("this node does not lead the job", reason=Reason.UNKNOWN_JOB, hint="cancel it on the node that submitted it")
        if not led.ended.is_set():
            cancel = seal(Cancel(led.job.body.expires_ms, led.id), context.submitter, context.grid.id)
            await self._leading.cancel(cancel.raw)
        return CancelReply(led.state)

    async def _on_leave(self, session: Session, request: Nothing) -> Ok:
        asyncio.get_running_loop().call_later(0.05, self._stop)
        return Ok()

    async def _on_invite(self, session: Session, request: InviteRequest) -> InviteReply:
        return InviteReply(self._invite(request.roles, request.expires_ms))

    async def _on_put(self, session: Session, header: PutHeader, stream: Stream) -> None:
        """Spool what the owner sends, store it, and copy it to other nodes."""
        context = self._context
        spool = self._home / "work" / f"put-{context.random_bytes(8).hex()}"
        try:
            try:
                await self._spool(stream, spool)
                blob, size_bytes = await self._storing.take_file(spool, header.expires_ms)
            finally:
                await context.offload.run(context.disk.unlink, spool)
            copies = 0
            if header.replicas > 1:
                copies = len(await self._storing.replicate(blob, header.replicas, (), header.expires_ms, announce=header.announce))
            if header.announce:
                await self._storing.announce(blob)
        except P2PGridError as error:
            stream.write_nowait(framed(_failed(PutReply(b"", 0, 0), error)))
            return
        stream.write_nowait(framed(PutReply(blob, size_bytes, copies + 1)))

    async def _spool(self, stream: Stream, path: Path) -> None:
        run, disk = self._context.offload.run, self._context.disk
        try:
            descriptor, offset = await run(partial(disk.create, exclusive=True), path), 0
            try:
                while data := await stream.read(MIB):
                    await run(disk.write_at, descriptor, data, offset)
                    offset += len(data)
            finally:
                await run(disk.close, descriptor)
        except OSError as error:
            raise RefusedError(f"the file cannot be stored: {error.strerror}", reason=Reason.DISK_FULL, hint="free some space") from error

    async def _on_get(self, session: Session, header: GetHeader, stream: Stream) -> None:
        context = self._context
        blob = BlobId(header.blob)
        try:
            await self._storing.fetch(blob, header.sources)
            size_bytes = await context.offload.run(context.blobs.size, blob)
        except P2PGridError as error:
            stream.write_nowait(framed(_failed(PutReply(b"", 0, 0), error)))
            return
        stream.write_nowait(framed(PutReply(blob, size_bytes, 1)))
        for index in range(chunk_count(size_bytes)):
            data = await context.offload.run(context.blobs.read_chunk, blob, index)
            for start in range(0, len(data), 256 * 1024):
                await stream.write(data[start : start + 256 * 1024])


def _failed(reply: E_, error: P2PGridError) -> E_:
    """A reply that carries an error, as streams have no other way to say one."""
    return msgspec.structs.replace(reply, error=error.message, reason=str(error.reason), hint=error.hint, kind=type(error).__name__)
