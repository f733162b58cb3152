"""Copies between real nodes: made again when a holder is lost, handed over by who leaves, healed where the disk damaged them."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import pytest

from p2pgrid.core import replication
from p2pgrid.core.copies import KEPT, NOT_KEPT, Terms
from p2pgrid.errors import MalformedError, TryAgainError
from p2pgrid.model.blob import CHUNK_BYTES
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.node import Node
from p2pgrid.services import scrubbing
from p2pgrid.services.caring import PROOFS_MAX, prove
from p2pgrid.wire.messages import BlobHolders, BlobHolds, BlobHoldsReply, BlobRead, HoldersOf, ProofWanted
from tests.unit.services.grid_in_process import DAY_MS, Grid, until, wall_ms

QUICK = partial(Terms, grace_s=0.2, leaving_s=0.5, young_s=0.5, ask_gap_s=0.05, retry_s=0.2, prove_s=0.2)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "Terms", QUICK)


async def put(node: Node, data: bytes, replicas: int = 3) -> BlobId:
    return await node.storing.keep_bytes(data, wall_ms() + DAY_MS, replicas)


def holders(grid: Grid, blob: bytes) -> list[Node]:
    return [node for node in grid.living() if node.blobs.has(BlobId(blob))]


def kept(node: Node, blob: bytes) -> int:
    """How many holders count, as a node sees it."""
    view = node.caring.view(blob)
    return len(view.holders) if view is not None else 0


def others(grid: Grid, node: Node, blob: bytes) -> list[Node]:
    return [holder for holder in holders(grid, blob) if holder is not node]


async def test_all_holders_know_each_other_and_their_copies_are_proven(grid: Grid) -> None:
    await grid.grow(4)
    blob = await put(grid[1], os.urandom(3 * CHUNK_BYTES + 5))
    there = holders(grid, blob)
    assert len(there) == 3
    await until(lambda: all(kept(node, blob) == 3 for node in there), "everybody counts three")
    await until(lambda: all(len(node.caring.view(blob).proven) == 3 for node in there), "all is proven")  # type: ignore[union-attr]
    for node in there:
        lease = next(lease for lease in node.blobs.leases(blob))
        assert lease.replicas == 3
        view = node.caring.view(blob)
        assert view is not None
        assert (view.short_s, view.reason) == (None, "")
    assert grid[0].caring.view(b"n" * 32) is None


async def test_a_lost_copy_is_made_again_once_and_proven(grid: Grid) -> None:
    await grid.grow(6)
    data = [os.urandom(200_000) for _ in range(10)]
    blobs = [await put(grid[number % 3], content) for number, content in enumerate(data)]
    await until(lambda: all(kept(node, blob) == 3 for blob in blobs for node in holders(grid, blob)), "everybody counts three")
    lost = next(node for node in grid.nodes[3:] if any(node.blobs.has(blob) for blob in blobs))
    await grid.close(lost)
    await until(lambda: all(len(holders(grid, blob)) == 3 for blob in blobs), "three copies again")
    await until(lambda: all(kept(node, blob) == 3 for blob in blobs for node in holders(grid, blob)), "and all know it")
    assert all(len(holders(grid, blob)) == 3 for blob in blobs)
    for blob, content in zip(blobs, data, strict=True):
        assert all(node.blobs.read_all(blob, 1 << 20) == content for node in holders(grid, blob))
        assert all(max(lease.replicas for lease in node.blobs.leases(blob)) == 3 for node in holders(grid, blob))


async def test_without_another_node_the_reason_is_said_and_one_that_comes_takes_the_copy(grid: Grid) -> None:
    await grid.grow(2)
    blob = await put(grid[0], b"x" * 1000, replicas=3)

    def reason() -> str:
        view = grid[0].caring.view(blob)
        return view.reason if view is not None else ""

    await until(lambda: reason() == Reason.FEW_COPIES, "it says that there are too few nodes")
    report = grid[0].caring.report(blob)
    assert report is not None
    assert (report.wanted, len(report.holders)) == (3, 2)
    assert report.short_since_ms
    await grid.add()
    await until(lambda: len(holders(grid, blob)) == 3, "the new node has it")
    await until(lambda: kept(grid[0], blob) == 3 and not reason(), "and counts")


async def test_full_nodes_are_passed_over_and_named_as_the_reason(grid: Grid) -> None:
    await grid.grow(2)
    await grid.add(storage_bytes=1000)
    blob = await put(grid[0], os.urandom(100_000), replicas=3)

    def reason() -> str:
        view = grid[0].caring.view(blob) or grid[1].caring.view(blob)
        return view.reason if view is not None else ""

    await until(lambda: Reason.STORE_FULL in {view.reason for node in grid.nodes[:2] if (view := node.caring.view(blob))}, "store-full")
    await grid.add()
    await until(lambda: len(holders(grid, blob)) == 3, "the roomy one takes it")


async def test_a_node_that_was_started_again_knows_what_to_care_for(grid: Grid) -> None:
    await grid.grow(4)
    blob = await put(grid[1], b"y" * 5000)
    holder = others(grid, grid[1], blob)[0]
    await until(lambda: kept(holder, blob) == 3, "it counts three")
    name = holder.config.name
    await grid.close(holder)
    back = await grid.add(home=name)
    await until(lambda: kept(back, blob) >= 3, "it found the others")
    assert back.caring.view(blob) is not None


async def test_a_node_that_leaves_hands_over_what_would_be_short(grid: Grid) -> None:
    await grid.grow(5)
    blobs = [await put(grid[1], os.urandom(50_000)) for _ in range(8)]
    await until(lambda: all(kept(grid[1], blob) == 3 for blob in blobs), "it counts three")
    for node in grid.nodes:
        if node is not grid[1]:
            node.caring.peer_leaving(grid[1].context.me)
    assert await grid[1].caring.hand_over(5.0) == 0
    assert all(len(others(grid, grid[1], blob)) == 3 for blob in blobs)
    await grid.close(grid[1])
    await until(lambda: all(kept(node, blob) == 3 for blob in blobs for node in holders(grid, blob)), "everybody counts three")
    assert all(len(holders(grid, blob)) == 3 for blob in blobs)


async def test_who_cannot_hand_over_says_how_many(grid: Grid) -> None:
    await grid.grow(2)
    blobs = [await put(grid[0], b"%d" % number * 100, replicas=2) for number in range(3)]
    await until(lambda: all(kept(grid[0], blob) == 2 for blob in blobs), "it counts two")
    assert await grid[0].caring.hand_over(2.0) == 3


async def test_a_blob_that_its_owner_deletes_is_copied_elsewhere(grid: Grid) -> None:
    await grid.grow(5)
    blob = await put(grid[1], b"z" * 70_000)
    await until(lambda: all(kept(node, blob) == 3 for node in holders(grid, blob)), "everybody counts three")
    grid[1].blobs.delete(blob)
    for node in holders(grid, blob):
        for peer in others(grid, node, blob):
            node.caring._machine._questions.all_again(node.caring._machine._all.peers[peer.context.me])
        node.caring._machine._questions.all_again(node.caring._machine._all.peers[grid[1].context.me])
        node.caring._poke.set()
    await until(lambda: len(holders(grid, blob)) == 3, "three copies again")


async def test_who_claims_what_it_cannot_prove_does_not_count(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(4)
    blob = await put(grid[1], os.urandom(90_000))
    liar = others(grid, grid[1], blob)[0]
    liar.blobs.delete(blob)

    async def lie(session: Session, request: BlobHolds) -> BlobHoldsReply:
        return BlobHoldsReply(bytes([KEPT]) * (len(request.blobs) // 32), tuple(b"l" * 32 for _ in request.proofs))

    monkeypatch.setitem(liar.methods.calls, "blob.holds", liar.methods.calls["blob.holds"]._replace(handler=lie))
    await until(lambda: len([node for node in holders(grid, blob) if node is not liar]) == 3, "another one has the third copy")
    view = grid[1].caring.view(blob)
    assert view is not None
    assert liar.context.me not in view.holders


# -- healing --------------------------------------------------------------------------------------------


def damage(node: Node, blob: BlobId, chunk: int = 0) -> None:
    """Bits flip, and nobody notices."""
    with node.blobs.path(blob).open("r+b") as file:
        file.seek(chunk * CHUNK_BYTES)
        file.write(b"damage")


async def test_damage_is_healed_chunk_by_chunk_whoever_finds_it(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(3)
    told: list[str] = []
    served: list[int] = []
    content = os.urandom(6 * CHUNK_BYTES + 9)
    blob = await put(grid[1], content)
    await until(lambda: all(kept(node, blob) == 3 for node in grid.nodes), "everybody counts three")
    for node in (grid[0], grid[1]):
        entry = node.methods.streams["blob.read"]

        def serve(session: Session, request: BlobRead, stream: object, entry: object = entry) -> object:
            served.extend(range(request.first, request.first + request.count))
            return entry.handler(session, request, stream)  # type: ignore[attr-defined]

        monkeypatch.setitem(node.methods.streams, "blob.read", entry._replace(handler=serve))
    grid[2].context.events.append(lambda reason, text, about: told.append(reason))
    leases = grid[2].blobs.leases(blob)
    damage(grid[2], blob, 4)
    assert prove(grid[2].blobs, [(blob, 4, b"nonce")]) == [b""]
    assert not grid[2].blobs.has(blob)
    await until(lambda: grid[2].blobs.has(blob) and Reason.HEALED in told, "it is healed")
    assert served == [4]
    assert grid[2].blobs.read_all(blob, len(content)) == content
    assert grid[2].blobs.leases(blob) == leases
    assert grid[2].blobs.owner_bytes(grid[2].context.me) == 0
    assert told.count(Reason.CORRUPT) == 1
    await until(lambda: all(kept(node, blob) == 3 for node in grid.nodes), "everybody counts three")


async def test_the_scrubber_finds_what_nobody_reads(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "BEGIN_S", 0.0)
    monkeypatch.setattr(scrubbing, "PAUSE_S", 0.2)
    await grid.grow(3)
    large, small = await put(grid[1], os.urandom(2 * CHUNK_BYTES)), await put(grid[1], b"small")
    for blob in (large, small):
        damage(grid[2], blob)
    await until(lambda: grid[2].scrubbing.healed == 2, "both are healed")
    assert grid[2].blobs.read_all(small, 100) == b"small"
    assert grid[2].blobs.verify(large)


async def test_damage_that_nobody_can_heal_is_said_and_tried_again_when_somebody_comes(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "SOON_S", 0.0)
    await grid.grow(3)
    blob = await put(grid[1], b"only two" * 99, replicas=2)
    (other,) = others(grid, grid[1], blob)
    name = other.config.name
    await until(lambda: kept(grid[1], blob) == 2, "it counts two")
    told: list[tuple[str, str]] = []
    grid[1].context.events.append(lambda reason, text, about: told.append((reason, text)))
    # Its only holder is away: nobody can heal it.
    third = next(node for node in grid.nodes if node not in (grid[1], other))
    await grid.close(third)
    await grid.close(other)
    damage(grid[1], blob)
    assert not grid[1].blobs.verify(blob)
    await until(lambda: Reason.NO_BLOB in dict(told), "it says that nobody has it")
    assert grid[1].scrubbing.waiting == 1
    # ``add`` waits for everybody alive; the founder is one of those who are not there.
    back = await grid.add(home=name)
    await until(lambda: grid[1].blobs.has(blob), "it is healed by who came back")
    assert back.blobs.has(blob)


# -- what a peer may say -----------------------------------------------------------------------------------


async def test_questions_over_the_limits_are_malformed(grid: Grid) -> None:
    await grid.grow(2)
    session = grid[1].pool.live(grid[0].context.me)
    assert session is not None
    nonce = b"n" * 16
    bad = [
        BlobHolds(b"", ()),
        BlobHolds(b"x" * 31, (1,)),
        BlobHolds(b"x" * 32, ()),
        BlobHolds(b"x" * 32 * 1025, (1,) * 1025),
        BlobHolds(b"x" * 32, (1,), (ProofWanted(1, 0, nonce),)),
        BlobHolds(b"x" * 32, (1,), (ProofWanted(0, -1, nonce),)),
        BlobHolds(b"x" * 32, (1,), (ProofWanted(0, 0, b"short"),)),
        BlobHolds(b"x" * 32, (1,), (ProofWanted(0, 0, nonce),) * (PROOFS_MAX + 1)),
    ]
    for request in bad:
        with pytest.raises(MalformedError):
            await session.call("blob.holds", request, BlobHoldsReply)
    reply = await session.call("blob.holds", BlobHolds(b"x" * 32, (1,), (ProofWanted(0, 0, nonce),)), BlobHoldsReply)
    assert reply == BlobHoldsReply(bytes([NOT_KEPT]), (b"",))


async def test_a_second_question_of_a_peer_waits_its_turn(grid: Grid) -> None:
    await grid.grow(2)
    session = grid[1].pool.live(grid[0].context.me)
    assert session is not None
    calls = [session.call("blob.holds", BlobHolds(b"x" * 32, (1,)), BlobHoldsReply) for _ in range(8)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert any(isinstance(answer, BlobHoldsReply) for answer in answers)
    assert all(isinstance(answer, BlobHoldsReply | TryAgainError) for answer in answers)


async def held_by_two_of_three(grid: Grid) -> tuple[BlobId, Node, Session]:
    """A blob of the second node, its other holder, and what the third one tells that holder by."""
    await grid.grow(3)
    blob = await put(grid[1], b"news" * 500, replicas=2)
    (other,) = others(grid, grid[1], blob)
    await until(lambda: kept(other, blob) == 2, "it counts two")
    third = next(node for node in grid.nodes if node not in (grid[1], other))
    session = third.pool.live(other.context.me)
    assert session is not None
    return blob, other, session


async def test_news_of_holders_that_are_none_changes_nothing(grid: Grid) -> None:
    blob, other, session = await held_by_two_of_three(grid)
    lies = tuple(bytes([number]) * 32 for number in range(20))
    session.notify("blob.holders", BlobHolders((HoldersOf(blob, lies), HoldersOf(b"u" * 32, lies))))
    session.notify("blob.holders", BlobHolders((HoldersOf(blob, (b"short",)),)))
    await until(lambda: len(other.caring._machine._all.cares[blob].holders) > 1, "it was heard")
    view = other.caring.view(blob)
    assert view is not None
    assert len(view.holders) == 2
    assert len(view.believed) <= 16
    await until(lambda: not others(grid, grid[1], blob)[1:], "no copy was made")


async def test_the_last_word_of_who_leaves_is_heard(grid: Grid) -> None:
    blob, other, session = await held_by_two_of_three(grid)
    session.notify("blob.holders", BlobHolders((HoldersOf(blob, (b"k" * 32,)),)))
    session.close()
    await until(lambda: b"k" * 32 in other.caring._machine._all.cares[blob].holders, "it was heard")
