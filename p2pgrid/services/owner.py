"""The owner's channel: what the command line asks of its own node (docs/spec/owner.md)."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from p2pgrid import __version__
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import P2PGridError, RefusedError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.job import Cancel
from p2pgrid.model.limits import MIB
from p2pgrid.model.node import NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_framed
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.following import Follower, job_line
from p2pgrid.services.happenings import Happenings
from p2pgrid.services.keeping import Keeping
from p2pgrid.services.leading import Leading
from p2pgrid.services.peers import Peers
from p2pgrid.services.reading import Reading
from p2pgrid.services.submitting import Submitting
from p2pgrid.services.succession import Succession
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.messages import NodeStatus, Ok, StatusRequest
from p2pgrid.wire.owner import (
    CancelReply,
    FollowHeader,
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
    Snapshot,
    SubmitHeader,
    Submitted,
)

EVENTS_SHOWN = 20
JOB_BYTES_MAX = 4 * MIB
LENGTH = struct.Struct(">I")


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
        submitting: Submitting,
        leading: Leading,
        keeping: Keeping,
        reading: Reading,
        succession: Succession,
        happenings: Happenings,
        info: Callable[[], NodeInfo],
        status: Callable[[], NodeStatus],
        stop: Callable[[], None],
        invite: Callable[[tuple[str, ...], int], str],
        home: Path,
    ) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._submitting = submitting
        self._leading = leading
        self._keeping = keeping
        self._reading = reading
        self._succession = succession
        self._info = info
        self._status = status
        self._stop = stop
        self._invite = invite
        self._home = home
        self._happenings = happenings
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
        methods.on("node.status", StatusRequest, lambda session, request: self._status())

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
        return tuple(sorted(lines.values(), key=lambda line: -line.created_ms))

    async def _on_job(self, session: Session, request: JobRequest) -> JobLine:
        return job_line(await self._reading.view(JobId(StatementId(request.job))))

    async def _on_snapshot(self, session: Session, request: PeersRequest) -> Snapshot:
        peers = await self._on_peers(session, request)
        return Snapshot(
            status=self._own_status(),
            peers=peers.peers,
            complete=peers.complete,
            jobs=(await self._jobs())[:50],
            events=self._happenings.recent(EVENTS_SHOWN),
            wall_ms=self._context.wall_ms(),
            units_done=self._status().done,
        )

    # -- doing -----------------------------------------------------------------------------

    async def _on_submit(self, session: Session, header: SubmitHeader, stream: Stream) -> None:
        try:
            raw = await read_framed(stream, JOB_BYTES_MAX)
            limit = self._context.limits.batch_bytes + MIB
            batches = [await read_framed(stream, limit) for _ in range(header.batches)]
            led = await self._submitting.submit(raw, batches, detach=header.detach)
        except P2PGridError as error:
            stream.write_nowait(framed(_failed(Submitted(b"", 0), error)))
            return
        keepers = self._leading.reached(led) if header.detach else len(led.keepers)
        stream.write_nowait(framed(Submitted(led.id, keepers)))
        if header.follow:
            await self._tell(led.kept, stream, wait=True)

    async def _on_follow(self, session: Session, header: FollowHeader, stream: Stream) -> None:
        kept = await self._reading.view(JobId(StatementId(header.job)))
        await self._tell(kept, stream, wait=header.wait)

    async def _tell(self, kept: KeptJob, stream: Stream, *, wait: bool) -> None:
        follower = Follower(kept, self._leading, self._reading)
        async for event in follower.events(wait=wait):
            await stream.write(framed(event))

    async def _on_cancel(self, session: Session, request: JobRequest) -> CancelReply:
        """Any node of the submitter cancels: the one that submitted need not be there any more."""
        context = self._context
        kept = await self._reading.view(JobId(StatementId(request.job)))
        if kept.job.author != context.submitter.public:
            raise RefusedError(
                "the job was submitted with another key",
                reason=Reason.NO_ROLE,
                hint="cancel it from a home with that key",
            )
        told = 0
        if not kept.ended:
            cancel = seal(Cancel(kept.job.body.expires_ms, kept.id), context.submitter, context.grid.id)
            told = await self._succession.cancel(kept, cancel.raw)
        return CancelReply(kept.state, told)

    async def _on_leave(self, session: Session, request: Nothing) -> Ok:
        asyncio.get_running_loop().call_later(0.05, self._stop)
        return Ok()

    async def _on_invite(self, session: Session, request: InviteRequest) -> InviteReply:
        return InviteReply(self._invite(request.roles, request.expires_ms))


def _failed(reply: Submitted, error: P2PGridError) -> Submitted:
    """A reply that carries an error, as streams have no other way to say one."""
    return msgspec.structs.replace(reply, error=error.message, reason=str(error.reason), hint=error.hint, kind=type(error).__name__)
