"""A hostile member of the grid against a node: it is refused with a reason, costs nothing, and harms nobody else."""

from __future__ import annotations

import asyncio
import os
import struct
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError, UnreachableError
from p2pgrid.model import log as kinds
from p2pgrid.model.blob import BlobRoot, blob_id_of, encode_root, root_id
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import BatchRef, Cancel, Derive, Settled
from p2pgrid.model.membership import Grid as GridTerms
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import OK, Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.net.bulk import read_framed
from p2pgrid.services.inputs import encode_batch
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import Envelope, Signed, open_envelope, seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import (
    BlobHeld,
    BlobInfo,
    BlobRead,
    BlobRequest,
    BlobWant,
    BlobWrite,
    CancelRequest,
    Delivered,
    Delivery,
    DeliveryReply,
    DeltaRequest,
    JobReadReply,
    JobReadRequest,
    LogRecord,
    Ok,
    Payload,
    PullReply,
    PullRequest,
)
from p2pgrid.wire.owner import InviteReply, InviteRequest, JobRequest, Nothing, SubmitHeader
from tests.unit.services.grid_in_process import DAY_MS, Grid, InPlacePool, results, submit, until, wall_ms
from tests.unit.services.outsider import Enter, Outsider, connected, is_served, refused

# -- jobs this node leads ---------------------------------------------------------------------


async def test_calls_about_unknown_jobs_and_absurd_numbers_are_refused(grid: Grid, enter: Enter, stack: AsyncExitStack) -> None:
    bad = await connected(stack, await enter())
    call = bad.session.call
    for job in (b"", b"j" * 32, b"j" * 4000):
        await refused(call("job.pull", PullRequest(job, 1, 1, True), PullReply), RefusedError, Reason.UNKNOWN_JOB)
        reason = Reason.UNKNOWN_JOB if len(job) == 32 else Reason.MALFORMED
        await refused(call("job.deliver", Delivery(job, ()), DeliveryReply), P2PGridError, reason)
        await refused(
            call("job.read", JobReadRequest(job, -5), JobReadReply),
            P2PGridError,
            reason,
        )
        await refused(call("job.delta", DeltaRequest(job, ()), Ok), P2PGridError, reason)
    assert not grid[0].keeping._opening
    await is_served(bad)


async def test_the_log_of_a_job_is_read_from_any_cursor_without_harm(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    channel, job = await submit(grid, grid[0], list(range(20)))
    await results(channel, job)
    bad = await connected(stack, await enter())
    for cursor in (-(1 << 62), -1, 0, 1, 117, 1 << 40, (1 << 63) - 1):
        reply = await bad.session.call("job.read", JobReadRequest(job, cursor), JobReadReply)
        assert reply.end
        assert bool(reply.records) == (cursor < 1000)


async def leased(grid: Grid, bad: Outsider, pool: type[InPlacePool], items: int = 4) -> tuple[Any, JobId, Signed[Grant]]:
    """A job of the node's owner, of which the outsider has a lease."""
    pool.gate = asyncio.Event()
    channel, job = await submit(grid, grid[0], list(range(items)), per_batch=2, quorum=1)
    reply = await until_granted(bad, job)
    return channel, job, open_envelope(reply.grant, Grant, bad.grid.id, None)


async def until_granted(bad: Outsider, job: bytes) -> PullReply:
    for _ in range(100):
        reply = await bad.session.call("job.pull", PullRequest(job, 1 << 40, 1 << 40, True), PullReply)
        if reply.grant:
            return reply
        await asyncio.sleep(0.02)
    raise AssertionError("no lease")


def receipt_for(bad: Outsider, grant: Signed[Grant], value: Any = 7, **fields: Any) -> tuple[Signed[Receipt], bytes]:
    units = sum(unit_range.units for unit_range in grant.body.ranges)
    raw = encode(value)
    payload = encode(Payload([msgspec.Raw(raw)] * units))
    known: dict[str, Any] = {
        "expires_ms": grant.body.expires_ms,
        "job": grant.body.job,
        "grant": grant.id,
        "ranges": grant.body.ranges,
        "outcomes": bytes([OK]) * units,
        "digests": blob_id_of(raw) * units,
        "cpu_us": 1,
        "payload": blake3(payload).digest(),
    }
    return bad.seal(Receipt(**(known | fields))), payload


async def test_forged_replayed_and_foreign_receipts_do_not_count(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    bad, other = await connected(stack, await enter()), await connected(stack, await enter())
    _, job, grant = await leased(grid, bad, pool)
    led = grid[0].leading.jobs[job]
    receipt, payload = receipt_for(bad, grant)

    async def deliver(who: Outsider, *items: Delivered) -> list[str]:
        return list((await who.session.call("job.deliver", Delivery(job, items), DeliveryReply)).refused)

    foreign, _ = receipt_for(other, grant)
    elsewhere, _ = receipt_for(bad, grant, job=b"x" * 32)
    too_many, _ = receipt_for(bad, grant, ranges=(UnitRange(0, 0, 2), UnitRange(1, 0, 2)))
    short, _ = receipt_for(bad, grant, digests=b"")
    expired, _ = receipt_for(bad, grant, expires_ms=wall_ms() - 3_600_000)
    other_grid = seal(receipt.body, bad.key, GridTerms("other", os.urandom(32)).id)
    said = await deliver(bad, *[Delivered(one.raw, payload) for one in (foreign, elsewhere, too_many, short, expired)])
    assert said[0] == Reason.NOT_GRANTED
    assert said[1] == Reason.UNKNOWN_JOB
    assert said[3] == Reason.CORRUPT
    assert said[4] == Reason.EXPIRED
    assert all(said)
    assert await deliver(bad, Delivered(b"\xc1" * 100, payload), Delivered(b"", b"")) == [Reason.MALFORMED, Reason.MALFORMED]
    envelope = decode(receipt.raw, Envelope)
    forged = encode(Envelope(envelope.type, envelope.body, envelope.author, bytes(64)))
    await refused(deliver(bad, *[Delivered(forged, payload)] * 200), IntegrityError, Reason.BAD_SIGNATURE)
    await refused(deliver(bad, Delivered(other_grid.raw, payload)), IntegrityError, Reason.BAD_SIGNATURE)
    assert led.ledger.receipts == {}
    assert await deliver(bad, Delivered(receipt.raw, payload)) == [""]
    assert await deliver(other, Delivered(receipt.raw, payload)) == [""]
    again, _ = receipt_for(bad, grant, cpu_us=2)
    assert await deliver(bad, Delivered(again.raw, payload)) == [Reason.NOT_GRANTED]
    assert len(led.ledger.receipts) == 1
    await refused(deliver(bad, *[Delivered(receipt.raw, b"")] * 1000), MalformedError, Reason.MALFORMED)
    await is_served(bad)


async def test_payload_bombs_are_refused(grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]) -> None:
    bad = await connected(stack, await enter())
    _, job, grant = await leased(grid, bad, pool)
    nested = b"\x91" * 100_000 + b"\xc0"
    huge = encode(([b"x" * (7 << 20)],))
    values = encode(([1] * 1_000_000,))
    wrong = encode(([1, 2],))
    for payload in (nested, huge, values, wrong, b"", b"\xdd\xff\xff\xff\xff"):
        receipt, _ = receipt_for(bad, grant, payload=blake3(payload).digest())
        reply = await bad.session.call("job.deliver", Delivery(job, (Delivered(receipt.raw, payload),)), DeliveryReply)
        assert reply.refused[0] in (Reason.MALFORMED, Reason.CORRUPT, Reason.TOO_LARGE)
    assert grid[0].leading.jobs[job].ledger.receipts == {}
    await is_served(bad)


async def test_only_the_submitter_cancels(grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]) -> None:
    bad = await connected(stack, await enter())
    pool.gate = asyncio.Event()
    channel, job = await submit(grid, grid[0], [1, 2])
    for key in (bad.key, bad.submitter, grid[0].key):
        raw = seal(Cancel(wall_ms() + DAY_MS, job), key, bad.grid.id).raw
        await refused(bad.session.call("job.cancel", CancelRequest(raw), Ok), RefusedError, Reason.NO_ROLE)
        bad.session.notify("job.cancelled", CancelRequest(raw))
    bad.session.notify("job.cancelled", CancelRequest(b"\x94junk"))
    await is_served(bad)
    assert not pool.cancelled
    pool.gate.set()
    assert (await results(channel, job))[1].line.state == "done"
    # What has ended cannot be cancelled any more, and that is no reason to say yes to anybody.
    raw = seal(Cancel(wall_ms() + DAY_MS, job), bad.key, bad.grid.id).raw
    await refused(bad.session.call("job.cancel", CancelRequest(raw), Ok), RefusedError, Reason.NO_ROLE)


async def test_only_the_owner_calls_the_owners_methods(grid: Grid, enter: Enter, stack: AsyncExitStack) -> None:
    bad = await connected(stack, await enter())
    for name in [name for name in grid[0].methods.calls if name.startswith("own.")]:
        await refused(bad.session.call(name, Nothing(), Ok), RefusedError, Reason.OWNER_ONLY)
    await refused(bad.session.call("own.invite", InviteRequest(("work",), 0), InviteReply), RefusedError, Reason.OWNER_ONLY)
    await refused(bad.session.call("own.cancel", JobRequest(b"x"), Ok), RefusedError, Reason.OWNER_ONLY)
    for name in [name for name in grid[0].methods.streams if name.startswith("own.")]:
        stream = await bad.session.open_stream(name, SubmitHeader(1))
        await refused(stream.read(1), UnreachableError, Reason.OWNER_ONLY)


async def test_a_member_without_the_role_gets_no_work_and_brings_none(
    grid: Grid, enter: Enter, stack: AsyncExitStack, pool: type[InPlacePool]
) -> None:
    bad = await connected(stack, await enter(("store",)))
    pool.gate = asyncio.Event()
    _, job = await submit(grid, grid[0], [1, 2])
    await refused(bad.session.call("job.pull", PullRequest(job, 1, 1, True), PullReply), RefusedError, Reason.NO_ROLE)
    signed, _ = bad.job()
    records = (LogRecord(kinds.JOB, signed.raw), LogRecord(kinds.KEEPERS, bad.keepers(signed, grid[0].context.me).raw))
    await refused(bad.session.call("job.delta", DeltaRequest(signed.id, records), Ok), RefusedError, Reason.BAD_GRANT)
    pool.gate.set()


# -- jobs this node keeps ------------------------------------------------------------------------


async def delta(bad: Outsider, job: Signed[Any], *records: tuple[int, bytes], id: bytes = b"") -> None:  # noqa: A002
    await bad.session.call("job.delta", DeltaRequest(id or job.id, tuple([LogRecord(*record) for record in records])), Ok)


async def test_jobs_that_do_not_name_this_node_or_are_not_what_they_say_are_not_kept(
    grid: Grid, enter: Enter, stack: AsyncExitStack
) -> None:
    bad = await connected(stack, await enter())
    me, signed = grid[0].context.me, bad.job()[0]
    head = (kinds.JOB, signed.raw)
    forged = bad.keepers(signed, me, key=SigningKey(os.urandom(32)))
    broken = decode(bad.keepers(signed, me).raw, Envelope)
    unsigned = encode(Envelope(broken.type, broken.body, broken.author, bytes(64)))
    for record in (bad.keepers(signed).raw, bad.keepers(signed, b"o" * 32).raw, forged.raw):
        await refused(delta(bad, signed, head, (kinds.KEEPERS, record)), RefusedError, Reason.BAD_GRANT)
    await refused(delta(bad, signed, head, (kinds.KEEPERS, unsigned)), IntegrityError, Reason.BAD_SIGNATURE)
    await refused(delta(bad, signed, head), RefusedError, Reason.BAD_GRANT)
    named = (kinds.KEEPERS, bad.keepers(signed, me).raw)
    await refused(delta(bad, signed, head, named, id=b"i" * 32), IntegrityError, Reason.MALFORMED)
    await refused(delta(bad, signed, named, head), RefusedError, Reason.UNKNOWN_JOB)
    expired, _ = bad.job(expires_ms=wall_ms() - 3_600_000)
    await refused(delta(bad, expired, (kinds.JOB, expired.raw)), IntegrityError, Reason.EXPIRED)
    other = seal(signed.body, bad.submitter, GridTerms("other", os.urandom(32)).id)
    await refused(delta(bad, other, (kinds.JOB, other.raw)), IntegrityError, Reason.BAD_SIGNATURE)
    big = tuple([BatchRef(os.urandom(32), 1024, 1)] * 9_000)
    greedy, _ = bad.job(manifest=big, derive=Derive(reduce=True, fan_in=2))
    full, _ = bad.job(manifest=tuple([BatchRef(os.urandom(32), 1024, 1 << 20)] * 977))
    for job, reason in ((greedy, Reason.MALFORMED), (full, Reason.KEEPER_FULL)):
        keepers = (kinds.KEEPERS, bad.keepers(job, me).raw)
        await refused(delta(bad, job, (kinds.JOB, job.raw), keepers), RefusedError, reason)
    assert not grid[0].keeping.jobs
    assert not list(grid[0].home.ledger.iterdir())
    await is_served(bad)


async def test_a_kept_job_takes_nothing_that_does_not_hold(grid: Grid, enter: Enter, stack: AsyncExitStack) -> None:
    bad, other = await connected(stack, await enter()), await connected(stack, await enter())
    node = grid[0]
    signed, batches = bad.job(per_batch=4)
    grant = bad.grant(signed, other.me, UnitRange(0, 0, 4))
    await delta(
        bad,
        signed,
        (kinds.JOB, signed.raw),
        (kinds.KEEPERS, bad.keepers(signed, node.context.me).raw),
        (kinds.BATCH, batches[0]),
        (kinds.GRANT, grant.raw),
    )
    kept = node.keeping.jobs[JobId(signed.id)]
    receipt, payload = receipt_for(other, grant)
    entry = DecisionEntry(0, 0, 4, OK, blake3(receipt.body.digests).digest(), (0,))
    made_up = Decision(signed.body.expires_ms, signed.id, 0, (b"r" * 32,), (entry,))
    strangers_grant = other.grant(signed, other.me, UnitRange(0, 0, 4))
    outside = bad.grant(signed, other.me, UnitRange(0, 3, 4))
    cases = [
        (RefusedError, (kinds.DECISION, bad.seal(made_up).raw)),
        (RefusedError, (kinds.GRANT, strangers_grant.raw)),
        (MalformedError, (kinds.GRANT, outside.raw)),
        (RefusedError, (kinds.KEEPERS, other.keepers(signed, other.me).raw)),
        (RefusedError, (kinds.CANCEL, bad.seal(Cancel(signed.body.expires_ms, signed.id)).raw)),
        (RefusedError, (kinds.SETTLED, other.seal(Settled(signed.body.expires_ms, signed.id, 4, 0, b"")).raw)),
        (IntegrityError, (kinds.PAYLOAD, b"junk of nobody's receipt")),
        (MalformedError, (99, b"junk")),
        (IntegrityError, (kinds.GRANT, receipt.raw)),
        (MalformedError, (kinds.RECEIPT, b"\x91" * 100_000)),
    ]
    end = kept.file.end
    for kind, record in cases:
        with pytest.raises(kind):
            await delta(other, signed, record)
    await delta(other, signed, (kinds.BATCH, b"no batch of the manifest"), (kinds.JOB, b"another"), (kinds.GRANT, grant.raw))
    assert kept.file.end == end
    assert (len(kept.ledger.grants), kept.ledger.decisions, kept.ledger.receipts) == (1, {}, {})
    # What is good in front of something bad is kept, and on disk when it is acknowledged.
    with pytest.raises(MalformedError):
        await delta(other, signed, (kinds.RECEIPT, receipt.raw), (kinds.PAYLOAD, payload), (99, b""))
    await delta(other, signed, (kinds.RECEIPT, receipt.raw), (kinds.PAYLOAD, payload))
    again = await other.session.call("job.read", JobReadRequest(signed.id, 0), JobReadReply)
    assert [record.kind for record in again.records][-2:] == [kinds.RECEIPT, kinds.PAYLOAD]
    await is_served(bad)


async def test_a_log_without_end_holds_nobody_up(grid: Grid, enter: Enter, stack: AsyncExitStack) -> None:
    bad = await enter()
    signed, _ = bad.job()
    junk = LogRecord(kinds.BATCH, os.urandom(500_000))
    asked = 0

    def endless(session: Any, request: JobReadRequest) -> JobReadReply:
        nonlocal asked
        asked += 1
        return JobReadReply((LogRecord(kinds.JOB, signed.raw), junk), request.cursor + 1, False)

    bad.methods.on("job.read", JobReadRequest, endless)
    await connected(stack, bad)
    async with asyncio.timeout(5.0):
        view = await grid[0].reading.view(JobId(signed.id))
    assert view.id == signed.id
    assert 1 < asked < 10


async def test_one_lead_cannot_fill_all_places_for_jobs(
    grid: Grid, enter: Enter, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = await connected(stack, await enter()), await connected(stack, await enter())
    node = grid[0]
    monkeypatch.setattr(node.context, "limits", msgspec.structs.replace(node.context.limits, jobs_kept=8))

    async def keep(who: Outsider) -> None:
        job, _ = who.job()
        await delta(who, job, (kinds.JOB, job.raw), (kinds.KEEPERS, who.keepers(job, node.context.me).raw))

    await keep(bad)
    await keep(bad)
    await refused(keep(bad), RefusedError, Reason.KEEPER_FULL)
    await keep(good)


async def test_logs_count_as_storage_lent(grid: Grid, enter: Enter, stack: AsyncExitStack) -> None:
    bad = await connected(stack, await enter())
    batches = [encode_batch([encode(os.urandom(950_000))]) for _ in range(9)]
    refs = tuple(BatchRef(blob_id_of(content), 1, 10) for content in batches)  # it lies about their sizes
    job, _ = bad.job(manifest=refs)
    await delta(bad, job, (kinds.JOB, job.raw), (kinds.KEEPERS, bad.keepers(job, grid[0].context.me).raw))
    for content in batches[:8]:
        await delta(bad, job, (kinds.BATCH, content))
    await refused(delta(bad, job, (kinds.BATCH, batches[8])), RefusedError, Reason.KEEPER_FULL)
    assert 7 << 20 < grid[0].keeping.log_bytes < 8 << 20


# -- blobs ---------------------------------------------------------------------------------------


async def write(bad: Outsider, request: BlobWrite, root: bytes = b"", *chunks: tuple[int, bytes]) -> BlobWant | BlobHeld:
    """Play a sender; returns the refusal, or the last word."""
    stream = await bad.session.open_stream("blob.write", request)
    try:
        stream.write_nowait(struct.pack(">I", len(root)) + root)
        want = decode(await read_framed(stream, 4096), BlobWant)
        if want.refused:
            return want
        for index, data in chunks:
            await stream.write(struct.pack(">II", index, len(data)) + data)
        return decode(await read_framed(stream, 4096), BlobHeld)
    finally:
        stream.reset(Reason.CLOSED)


async def test_lying_writers_are_refused_and_take_no_room(grid: Grid, enter: Enter, stack: AsyncExitStack) -> None:
    bad = await connected(stack, await enter())
    store, until_ms = grid[0].blobs, wall_ms() + DAY_MS
    data = os.urandom(1000)
    blob = blob_id_of(data)
    root = BlobRoot(2 << 20, 1 << 20, blake3(b"a" * (1 << 20)).digest() * 2)
    for request, encoded in [
        (BlobWrite(b"short", 10, until_ms, False), b""),
        (BlobWrite(blob, -1, until_ms, False), b""),
        (BlobWrite(blob, 1 << 62, until_ms, False), b""),
        (BlobWrite(blob, 2 << 20, until_ms, False), b""),
        (BlobWrite(blob, 2 << 20, until_ms, False), encode_root(root)),
        (BlobWrite(root_id(root), 3 << 20, until_ms, False), encode_root(root)),
        (BlobWrite(root_id(root), 2 << 20, until_ms, False), b"\x93" * 5000),
        (BlobWrite(blob, 1000, wall_ms() - 1000, False), b""),
    ]:
        said = await write(bad, request, encoded)
        assert isinstance(said, BlobWant)
        assert said.refused in (Reason.MALFORMED, Reason.CORRUPT, Reason.EXPIRED)
    lied = await write(bad, BlobWrite(blob, 1000, until_ms, False), b"", (0, os.urandom(1000)))
    assert lied == BlobHeld(False, lied.reason)  # type: ignore[union-attr]
    for index, chunk in ((1, data), (1 << 31, data)):
        await refused(write(bad, BlobWrite(blob, 1000, until_ms, False), b"", (index, chunk)), UnreachableError, Reason.MALFORMED)
    assert store.usage().used_bytes == store.usage().reserved_bytes == 0
    assert await write(bad, BlobWrite(blob, 1000, until_ms, False), b"", (0, data)) == BlobHeld(True)
    assert store.read_all(blob, 1000) == data


async def test_a_peer_may_store_half_and_what_it_leaves_half_done_ends_within_the_hour(
    grid: Grid, enter: Enter, stack: AsyncExitStack
) -> None:
    bad = await connected(stack, await enter())
    node, until_ms = grid[0], wall_ms() + 300 * DAY_MS
    large = BlobRoot(5 << 20, 1 << 20, os.urandom(5 * 32))
    said = await write(bad, BlobWrite(root_id(large), 5 << 20, until_ms, False), encode_root(large))
    assert isinstance(said, BlobWant)
    assert said.refused == Reason.STORE_FULL
    part = BlobRoot(4 << 20, 1 << 20, blake3(b"a" * (1 << 20)).digest() * 4)
    stream = await bad.session.open_stream("blob.write", BlobWrite(root_id(part), 4 << 20, until_ms, False))
    encoded = encode_root(part)
    stream.write_nowait(struct.pack(">I", len(encoded)) + encoded)
    assert decode(await read_framed(stream, 4096), BlobWant).runs == ((0, 4),)
    assert node.blobs.usage().used_bytes == 4 << 20
    stream.reset(Reason.CLOSED)
    await until(lambda: not node.blobs._uploads._writers, "the writer is closed")
    node.blobs.expire(wall_ms() + 3_700_000)
    assert node.blobs.usage().used_bytes == 0


async def test_writers_that_stop_are_bounded_for_each_peer_and_leave_no_upload_open(
    grid: Grid, enter: Enter, stack: AsyncExitStack
) -> None:
    bad, good = await connected(stack, await enter()), await connected(stack, await enter())
    streams = []
    for number in range(20):
        root = BlobRoot((1 << 20) + 1, 1 << 20, bytes([number]) * 64)
        stream = await bad.session.open_stream("blob.write", BlobWrite(root_id(root), root.size_bytes, wall_ms() + DAY_MS, False))
        encoded = encode_root(root)
        stream.write_nowait(struct.pack(">I", len(encoded)) + encoded)
        streams.append(stream)
    said = [decode(await read_framed(stream, 4096), BlobWant) for stream in streams]
    assert sum(want.refused == Reason.BUSY for want in said) >= 4
    data = os.urandom(100)
    assert await write(good, BlobWrite(blob_id_of(data), 100, wall_ms() + DAY_MS, False), b"", (0, data)) == BlobHeld(True)
    bad.session.close()
    await until(lambda: not grid[0].blobs._uploads._writers and not grid[0].storing._taking.writes, "nobody writes")


async def test_reading_chunks_that_cannot_be_is_refused(grid: Grid, enter: Enter, stack: AsyncExitStack) -> None:
    bad = await connected(stack, await enter())
    blob = grid[0].blobs.put_bytes(b"content", owner=b"o" * 32, expires_ms=wall_ms() + DAY_MS)
    for first, count in ((-1, 1), (0, 0), (0, -1), (0, 1 << 40), (1, 1), (1 << 40, 1)):
        stream = await bad.session.open_stream("blob.read", BlobRead(blob, first, count))
        await refused(stream.read(1 << 20), UnreachableError, Reason.MALFORMED)
    for strange in (b"", b"x" * 31, b"n" * 32):
        await refused(bad.session.call("blob.info", BlobRequest(strange), BlobInfo), P2PGridError, Reason.NO_BLOB, Reason.MALFORMED)
    stream = await bad.session.open_stream("blob.read", BlobRead(blob, 0, 1))
    assert (await stream.read(8)) == struct.pack(">II", 0, 7)
    await is_served(bad)
