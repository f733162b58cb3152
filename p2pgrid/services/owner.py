"""The owner's channel: what the command line asks of its own node (docs/spec/owner.md)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import msgspec

from p2pgrid.errors import P2PGridError, RefusedError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.job import Cancel
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_framed
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.following import Follower, job_line
from p2pgrid.services.leading import Leading
from p2pgrid.services.reading import Reading
from p2pgrid.services.submitting import Submitting
from p2pgrid.services.succession import Succession
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.messages import Ok
from p2pgrid.wire.owner import (
    CancelReply,
    FollowHeader,
    InviteReply,
    InviteRequest,
    JobLine,
    JobRequest,
    Nothing,
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
        submitting: Submitting,
        leading: Leading,
        reading: Reading,
        succession: Succession,
        stop: Callable[[], None],
        invite: Callable[[tuple[str, ...], int], str],
    ) -> None:
        self._context = context
        self._submitting = submitting
        self._leading = leading
        self._reading = reading
        self._succession = succession
        self._stop = stop
        self._invite = invite
        methods = context.methods
        methods.on("own.job", JobRequest, self._on_job, owner_only=True)
        methods.on("own.cancel", JobRequest, self._on_cancel, owner_only=True)
        methods.on("own.leave", Nothing, self._on_leave, owner_only=True)
        methods.on("own.invite", InviteRequest, self._on_invite, owner_only=True)
        methods.on_stream("own.submit", SubmitHeader, self._on_submit, owner_only=True)
        methods.on_stream("own.follow", FollowHeader, self._on_follow, owner_only=True)

    async def _on_job(self, session: Session, request: JobRequest) -> JobLine:
        kept = await self._reading.view(JobId(StatementId(request.job)))
        return job_line(kept, self._leading.jobs.get(kept.id), self._context.clock())

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
        await self._tell(kept, stream, wait=header.wait, values=header.values)

    async def _tell(self, kept: KeptJob, stream: Stream, *, wait: bool, values: bool = True) -> None:
        follower = Follower(kept, self._leading, self._reading, self._context.clock, values=values)
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
