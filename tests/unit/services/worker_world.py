"""One worker's services without a network: leads, keepers and the pool are what the test says they are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from p2pgrid.core import worker as core
from p2pgrid.core.admission import Policy
from p2pgrid.errors import P2PGridError, TryAgainError, UnreachableError
from p2pgrid.model.ids import GridId, NodeKey
from p2pgrid.model.job import Job, KeeperSet
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.membership import Member
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import Grant, Receipt, UnitRange
from p2pgrid.net.methods import Methods
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask
from p2pgrid.services.preparing import Preparing
from p2pgrid.services.working import Working
from p2pgrid.store.disk import Disk
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Signed, open_envelope, seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import Delivery, DeliveryReply, JobDeclined, JobInvite, LeasesReturned, PullReply, PullRequest
from tests.unit.services.grid_in_process import make_job, until, wall_ms

GRID = GridId(b"g" * 32)
AWAY = UnreachableError("away", reason=Reason.DEAD)


class Party:
    """A lead or keeper: a key, and what it answers."""

    def __init__(self) -> None:
        self.key = SigningKey(os.urandom(32))
        self.me = NodeKey(self.key.public)
        self.replies: list[PullReply] = []
        self.pulls: list[PullRequest] = []
        self.deliveries: list[Delivery] = []
        self.returned: list[LeasesReturned] = []
        self.declined: list[JobDeclined] = []
        self.away = False
        self.gate = asyncio.Event()
        """Nothing is answered before it is open."""
        self.gate.set()

    @property
    def receipts(self) -> list[Receipt]:
        return [open_envelope(item.receipt, Receipt, GRID, None).body for call in self.deliveries for item in call.items]

    @property
    def units(self) -> list[tuple[int, int]]:
        """(batch, unit) of all that was answered here, sorted."""
        ranges = [unit_range for receipt in self.receipts for unit_range in receipt.ranges]
        return sorted((batch, start + at) for batch, start, units, _ in ranges for at in range(units))

    async def answer(self, method: str, request: Any) -> Any:
        if self.away:
            raise AWAY
        (self.pulls if method == "job.pull" else self.deliveries).append(request)
        await self.gate.wait()
        if self.away:
            raise AWAY
        if method == "job.pull":
            return self.replies.pop(0) if self.replies else PullReply(False)
        return DeliveryReply(("",) * len(request.items))


class SteppedPool:
    """Units end when the test says so, one at a time; it keeps the contract of the pool."""

    def __init__(self) -> None:
        self.started: list[tuple[int, Any]] = []
        """(number, input) of every unit that was started."""
        self.running: dict[int, asyncio.Future[None]] = {}
        self.winding_down = False
        self.stopped = False
        self.cancelled: list[bytes] = []

    async def run(self, task: BatchTask, on_results: Callable[[BatchChunk], None]) -> None:
        assert not isinstance(task.inputs, bytes)
        for position, raw in enumerate(task.inputs):
            if self.winding_down:
                raise TryAgainError("it leaves", reason=Reason.DRAINED)
            number = task.first + position
            self.started.append((number, decode(bytes(raw), Any)))
            self.running[number] = asyncio.get_running_loop().create_future()
            try:
                await self.running[number]
            finally:
                del self.running[number]
            on_results(BatchChunk(number, b"\0", [msgspec.Raw(raw)], 1000))

    def end(self, *numbers: int) -> None:
        """These units end."""
        for number in numbers:
            self.running[number].set_result(None)

    def wind_down(self) -> None:
        self.winding_down = True

    async def stop(self) -> None:
        self.stopped = True
        for running in self.running.values():
            if not running.done():
                running.set_exception(TryAgainError("it was stopped", reason=Reason.SHUTDOWN))

    def resume(self) -> None:
        self.winding_down = self.stopped = False

    async def cancel(self, job: bytes) -> None:
        self.cancelled.append(job)


class WorkerWorld:
    """A worker, and everybody it can talk to."""

    def __init__(self, folder: Path, cores: int = 1) -> None:
        self.submitter = SigningKey(os.urandom(32))
        self.worker = SigningKey(os.urandom(32))
        self.parties: dict[bytes, Party] = {}
        self.told: list[str] = []
        self.roles = {"submit", "native", "store", "work"}
        self.gone: list[Callable[[NodeKey], None]] = []
        self.pool = SteppedPool()
        self.storing = asyncio.Event()
        """Blobs are read and stored when it is set."""
        context = SimpleNamespace(
            key=self.worker,
            me=NodeKey(self.worker.public),
            grid=SimpleNamespace(id=GRID),
            policy=Policy(cores=cores),
            terms=Policy(cores=cores),
            submitter=self.worker,
            limits=DEFAULT_LIMITS,
            clock=lambda: asyncio.get_running_loop().time(),
            wall_ms=wall_ms,
            methods=Methods(),
            offload=InlineOffload(),
            disk=Disk(),
            tell=lambda reason, text, *about: self.told.append(reason),
        )
        self.context = context
        self.me = context.me
        preparing = Preparing(cast(Any, context), cast(Any, self), folder)
        self.working = Working(cast(Any, context), cast(Any, self), cast(Any, self), cast(Any, self.pool), preparing)

    def party(self) -> Party:
        party = Party()
        self.parties[party.me] = party
        return party

    # -- what a Peers and a Storing do --------------------------------------------------

    async def call(self, peer: NodeKey, method: str, request: Any, reply: type, *, timeout_s: float | None = None) -> Any:
        return await self.parties[peer].answer(method, request)

    def notify(self, peer: NodeKey, method: str, message: Any) -> bool:
        assert method in ("job.returned", "job.declined")
        party = self.parties[peer]
        (party.returned if method == "job.returned" else party.declined).append(message)
        return True

    async def session(self, peer: NodeKey) -> Any:
        if self.parties[peer].away:
            raise AWAY
        return None

    def is_live(self, peer: bytes) -> bool:
        return peer == self.me or (peer in self.parties and not self.parties[peer].away)

    def member(self, peer: bytes) -> Member:
        return Member(peer, frozenset(self.roles), b"lineage", 0)

    def on_gone(self, callback: Callable[[NodeKey], None]) -> None:
        self.gone.append(callback)

    def on_restarted(self, callback: Callable[[NodeKey], None]) -> None:
        """Not used here."""

    async def read(self, blob: bytes, sources: Any, size_bytes_max: int) -> bytes:
        await self.storing.wait()
        raise P2PGridError("nobody has it", reason=Reason.NO_BLOB)

    async def keep_bytes(self, raw: bytes, expires_ms: int, replicas: int, prefer: Any, holders: set[bytes]) -> bytes:
        await self.storing.wait()
        return b""

    # -- what leads do ------------------------------------------------------------------

    def job(self, units: int = 4, items: Sequence[Any] = (), **fields: Any) -> tuple[Signed[Job], list[bytes]]:
        items = items or list(range(units))
        job, batches = make_job(items, **({"per_batch": len(items)} | fields))
        return seal(job, self.submitter, GRID), batches

    def keepers(self, job: Signed[Job], lead: Party, *keepers: Party, epoch: int = 0, by: SigningKey | None = None) -> Signed[KeeperSet]:
        body = KeeperSet(job.body.expires_ms, job.id, epoch, lead.me, tuple(keeper.me for keeper in keepers))
        return seal(body, by or self.submitter, GRID)

    def grant(self, job: Signed[Job], lead: Party, *ranges: UnitRange, epoch: int = 0, nonce: int = 1) -> Signed[Grant]:
        return seal(Grant(job.body.expires_ms, job.id, epoch, self.me, self.me, ranges, (), nonce), lead.key, GRID)

    def invite(self, job: Signed[Job], lead: Party) -> None:
        session = cast(Any, SimpleNamespace(peer=lead.me))
        self.working._on_invite(session, JobInvite(job.id, "native", 0, job.body.expires_ms))

    def lose(self, party: Party) -> None:
        """A peer is gone."""
        party.away = True
        for gone in self.gone:
            gone(party.me)

    async def settle(self) -> None:
        """Until all that can happen without waiting has happened."""
        for _ in range(20):
            await asyncio.sleep(0)


def pull_of(job: bytes, lead: bytes) -> core.Pull:
    """A pull as the core asks for it."""
    return core.Pull((job, lead), 1, 1)


async def leased(
    world: WorkerWorld, *ranges: UnitRange, keepers: int = 1, **fields: Any
) -> tuple[Signed[Job], Signed[Grant], Party, list[Party]]:
    """A job with a lease of which the first units run: (job, lease, lead, keepers)."""
    lead, others = world.party(), [world.party() for _ in range(keepers)]
    job, batches = world.job(**fields)
    grant = world.grant(job, lead, *ranges)
    lead.replies = [PullReply(False, grant.raw, job.raw, (world.keepers(job, lead, *others).raw,), tuple(enumerate(batches)))]
    world.invite(job, lead)
    await until(lambda: world.pool.running, "it runs")
    return job, grant, lead, others
