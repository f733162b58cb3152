"""What a node shows its owner: at once, bounded, and with the words that tell how it stands with the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from p2pgrid.core.pausing import Usage
from p2pgrid.errors import UnreachableError
from p2pgrid.machine import ThisMachine
from p2pgrid.model.ids import NodeKey, dht_id_of_key
from p2pgrid.model.job import Derive
from p2pgrid.model.node import Address, NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.services import observing as observing_module
from p2pgrid.services import statuses as statuses_module
from p2pgrid.services.observing import PULSES_MAX
from p2pgrid.services.standing import reach_words, trust_word
from p2pgrid.services.statuses import ASKED_AT_ONCE, FRESH_S, KNOWN_MAX, Meetings, Statuses
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.messages import NodeStatus, StatusRequest
from p2pgrid.wire.owner import PeerLine, Snapshot, SnapshotRequest
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until
from tests.unit.services.outsider import Outsider, connected

STATUS = NodeStatus(1, 0, 0, 0, 0, 1.0, 0.0, 0)


def line_of(snapshot: Snapshot, node: bytes) -> PeerLine:
    return next(line for line in snapshot.peers if line.node == node)


# -- a picture ------------------------------------------------------------------------------


async def test_a_snapshot_shows_the_states_of_peers_that_were_told_since_it_was_last_looked(grid: Grid) -> None:
    await grid.grow(3, cores=1)
    channel = await grid.channel(grid[0])
    others = [node.context.me for node in grid.nodes[1:]]
    before_ms = grid[0].context.wall_ms()
    first = await channel.snapshot()
    assert [line.path for line in first.peers] == ["self", "direct", "direct"]
    assert first.peers[0].status is not None, "this node need not be asked"
    await until(lambda: all(grid[0].peers.statuses.of(other) for other in others), "the peers were asked behind it")
    second = await channel.snapshot()
    for other in others:
        line = line_of(second, other)
        assert line.status is not None
        assert before_ms <= line.status_ms <= second.wall_ms, "the first look sets the asking going"
        assert 0 < line.since_ms <= first.wall_ms


async def test_looking_four_times_a_second_asks_nobody_twice_within_two_seconds(grid: Grid) -> None:
    await grid.grow(2)
    channel = await grid.channel(grid[0])
    await channel.snapshot()
    other = grid[1].context.me
    said = await until(lambda: grid[0].peers.statuses.of(other), "it was asked")
    for _ in range(8):
        await channel.snapshot()
    if grid[0].context.clock() - said.asked_s < FRESH_S:
        assert grid[0].peers.statuses.of(other) is said


async def test_a_snapshot_never_waits_for_a_peer_that_does_not_answer(grid: Grid) -> None:
    node = await grid.add()
    async with AsyncExitStack() as stack:
        silent, asked = Outsider(node), asyncio.Event()

        async def never(session: Any, request: StatusRequest) -> NodeStatus:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        silent.methods.on("node.status", StatusRequest, never)
        await connected(stack, silent)
        channel = await grid.channel(node)
        await until(lambda: node.peers.is_live(silent.me), "it is a peer")
        began = time.monotonic()
        for _ in range(3):
            line = line_of(await channel.snapshot(), silent.me)
            assert line.path == "direct"
            assert line.status is None
        assert time.monotonic() - began < 1.0, "it took less than half of what an answer may take"
        async with asyncio.timeout(10.0):
            await asked.wait()


async def test_a_peer_that_left_is_shown_as_last_seen_then(grid: Grid) -> None:
    await grid.grow(2)
    channel = await grid.channel(grid[0])
    other = grid[1].context.me
    came_ms = line_of(await channel.snapshot(), other).since_ms
    await until(lambda: grid[0].context.wall_ms() > came_ms, "the clock goes on")
    await grid.close(grid[1])
    await until(lambda: not grid[0].peers.is_live(other), "it is gone")
    line = line_of(await channel.snapshot(), other)
    assert (line.path, line.status, line.trust) == ("", None, "")
    assert line.since_ms > came_ms


async def test_of_the_next_snapshot_only_peers_that_changed_are_sent_and_the_whole_comes_out(grid: Grid) -> None:
    node = await grid.add()
    away = {bytes([number]) * 32: NodeInfo(name=f"n{number}") for number in range(1, 200)}
    node.peers._infos.update(away)
    channel, other = await grid.channel(node), await grid.channel(node)
    sent: list[Snapshot] = []
    call = channel._call

    async def watched(*arguments: Any) -> Any:
        sent.append(answer := await call(*arguments))
        return answer

    channel._call = watched  # type: ignore[method-assign, assignment]
    whole = await channel.snapshot()
    assert [line.node for line in whole.peers] == [node.context.me, *sorted(away)]
    node.peers._infos[bytes([7]) * 32] = NodeInfo(name="renamed")
    node.peers._infos[bytes([100]) * 31 + b"x"] = NodeInfo(name="new")
    del node.peers._infos[bytes([9]) * 32]
    found = await channel.snapshot()
    assert [line.info.name for line in sent[-1].peers] == ["n0", "renamed", "new"]
    assert [line.node for line in found.peers] == [node.context.me, *sorted(node.peers._infos)]
    assert line_of(found, bytes([7]) * 32).info.name == "renamed"
    assert (await other.snapshot()).peers[1:] == found.peers[1:], "each session has its own"


async def test_a_session_that_lost_a_snapshot_gets_all_peers(grid: Grid) -> None:
    await grid.grow(2)
    channel = await grid.channel(grid[0])
    for have in (0, 0, 1, 99):
        found = await channel._call("own.snapshot", SnapshotRequest(False, have), Snapshot)
        assert (found.since, len(found.peers)) == (0, 2)
    assert (await channel._call("own.snapshot", SnapshotRequest(False, found.number), Snapshot)).since == found.number
    assert len((await channel.snapshot()).peers) == 2
    await channel._call("own.snapshot", SnapshotRequest(), Snapshot)
    assert len((await channel.snapshot()).peers) == 2


async def test_snapshots_asked_for_at_one_time_are_all_whole(grid: Grid) -> None:
    await grid.grow(3)
    channel = await grid.channel(grid[0])
    for _ in range(3):
        found = await asyncio.gather(*(channel.snapshot() for _ in range(5)))
        assert [len(snapshot.peers) for snapshot in found] == [3] * 5


async def test_peers_asks_everybody_at_once(grid: Grid) -> None:
    await grid.grow(3, cores=2)
    channel = await grid.channel(grid[0])
    reply = await channel.peers()
    assert [line.status.free_cores for line in reply.peers if line.status] == [2, 2, 2]
    assert [line.path for line in reply.peers] == ["self", "direct", "direct"]


async def test_a_snapshot_with_refresh_has_the_state_of_every_peer(grid: Grid) -> None:
    await grid.grow(3)
    channel = await grid.channel(grid[0])
    assert all(line.status for line in (await channel.snapshot(refresh=True)).peers)


async def test_jobs_come_from_memory_and_the_index_is_read_every_two_seconds_at_most(grid: Grid) -> None:
    node = await grid.add(cores=1)
    channel, job = await submit(grid, node, [1, 2, 3])
    await results(channel, job)
    reads = 0
    read = node.index.jobs

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return read(*arguments, **options)

    node.index.jobs = counted  # type: ignore[method-assign]
    began = node.context.clock()
    for _ in range(6):
        (line,) = (await channel.snapshot()).jobs
        assert (line.state, line.done) == ("done", 3)
    assert reads <= 1 + (node.context.clock() - began) // observing_module.INDEX_AGAIN_S


async def test_a_running_job_keeps_its_place_before_newer_ones_that_ended(grid: Grid, pool: type[InPlacePool], monkeypatch: Any) -> None:
    monkeypatch.setattr(observing_module, "JOBS_SHOWN", 2)
    node = await grid.add(cores=1)
    for _ in range(2):
        channel, job = await submit(grid, node, [1])
        await results(channel, job)
    pool.gate = asyncio.Event()
    now_ms = node.context.wall_ms()
    channel, running = await submit(grid, node, [1, 2], created_ms=now_ms - 60_000)
    lines = (await channel.snapshot()).jobs
    assert len(lines) == 2
    assert [line.job == running for line in lines] == [False, True], "the newest first"
    assert lines[1].state == "running"
    pool.gate.set()
    await results(channel, running)


async def test_a_job_that_is_led_here_has_a_rate_and_a_time_left(grid: Grid, pool: type[InPlacePool]) -> None:
    node = await grid.add(cores=1)
    pool.gate = asyncio.Event()
    channel, job = await submit(grid, node, list(range(400)), per_batch=40, derive=Derive())
    (line,) = (await channel.snapshot()).jobs
    assert (line.rate, line.left_s) == (0.0, -1.0), "nothing came back yet"
    found = []

    async def look() -> None:
        while True:
            (line,) = (await channel.snapshot()).jobs
            found.append(line)
            if line.state != "running":
                return

    pool.gate.set()
    async with asyncio.timeout(30):
        await look()
    under_way = [line for line in found if line.rate > 0]
    assert under_way, "some pictures fell within it"
    assert all(line.left_s == pytest.approx((line.units - line.done - line.failed) / line.rate) for line in under_way)
    assert found[-1].rate == 0.0
    await results(channel, job)


async def test_the_dht_and_how_the_node_is_reached_are_in_it(grid: Grid) -> None:
    await grid.grow(3)
    snapshot = await (await grid.channel(grid[0])).snapshot()
    assert snapshot.dht is not None
    assert snapshot.dht.server
    assert snapshot.dht.contacts == len(grid[0].dht.router)
    assert snapshot.reach == f"dialled by 2 of 2 peers at 127.0.0.1:{grid[0].port} (this machine only)"


# -- pulses ----------------------------------------------------------------------------------


async def test_pulses_are_bounded_and_the_last_one_is_of_now(grid: Grid) -> None:
    node = await grid.add(cores=1)
    channel = await grid.channel(node)
    for _ in range(PULSES_MAX + 20):
        node.observing._beat()
    snapshot = await channel.snapshot()
    assert len(snapshot.pulses) == PULSES_MAX + 1
    times = [pulse.wall_ms for pulse in snapshot.pulses]
    assert times == sorted(times)
    assert abs(snapshot.wall_ms - times[-1]) < 1000
    again = await channel.snapshot()
    assert len(again.pulses) == PULSES_MAX + 1, "to look takes none"


async def test_a_pulse_is_taken_by_itself_and_none_after_the_node_is_closed(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing_module, "PULSE_S", 0.01)
    node = await grid.add()
    await until(lambda: len(node.observing._pulses) >= 3, "time goes by")
    await grid.close(node)
    assert node.observing._timer is None
    taken, later_s = len(node.observing._pulses), node.context.clock() + 0.05
    await until(lambda: node.context.clock() > later_s, "time for some more goes by")
    assert len(node.observing._pulses) == taken


async def test_a_pulse_tells_of_the_machine_the_peers_and_the_units(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThisMachine, "usage", lambda machine: Usage(0.5, 12345))
    await grid.grow(2, cores=1)
    channel, job = await submit(grid, grid[0], [1, 2, 3, 4])
    await results(channel, job)
    pulses = [(await (await grid.channel(node)).snapshot()).pulses[-1] for node in grid.nodes]
    assert [(pulse.cpu_share, pulse.memory_bytes, pulse.peers) for pulse in pulses] == [(0.5, 12345, 1)] * 2
    assert sum(pulse.done for pulse in pulses) >= 4


async def test_bytes_to_other_nodes_are_counted_and_those_of_the_owner_are_not(grid: Grid) -> None:
    await grid.grow(2)
    sender, receiver = grid[0], grid[1]
    channel = await grid.channel(sender)
    before = [node.peers.traffic() for node in grid.nodes]
    size_bytes = 300_000
    await channel.put_bytes(bytes(range(256)) * (size_bytes // 256), replicas=2, expires_ms=sender.context.wall_ms() + 86_400_000)
    await until(lambda: receiver.peers.traffic()[1] - before[1][1] > size_bytes * 0.9, "the copy was made")
    sent = sender.peers.traffic()[0] - before[0][0]
    assert size_bytes * 0.9 < sent < size_bytes * 1.5
    assert sender.peers.traffic()[1] - before[0][1] < size_bytes / 2, "what the owner handed over did not come from a peer"


async def test_datagrams_are_counted_at_both_ends(grid: Grid) -> None:
    await grid.grow(2)
    asker, other = (node.dht for node in grid.nodes)
    sent, received = asker.traffic(), other.traffic()
    await asker.lookup_nodes(dht_id_of_key(grid[1].context.me))
    assert asker.traffic()[0] > sent[0]
    assert asker.traffic()[1] > sent[1]
    assert other.traffic()[1] - received[1] >= asker.traffic()[0] - sent[0]
    assert grid[0].peers.traffic() >= tuple(map(sum, zip(grid[0].pool.traffic(), asker.traffic(), strict=True)))


async def test_bytes_of_a_session_count_on_when_it_has_ended(grid: Grid) -> None:
    await grid.grow(2)
    node = grid[0]
    before = node.pool.traffic()
    assert min(before) > 0
    await grid.close(grid[1])
    await until(lambda: not node.peers.live(), "it is gone")
    assert node.pool.traffic() >= before


# -- whom to ask ----------------------------------------------------------------------------


class Asking:
    """Statuses of made-up peers, on a made-up clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[bytes] = []
        self.answer: Callable[[NodeKey], Awaitable[NodeStatus]] = self._at_once
        self.tasks = Tasks("asking")
        context: Any = type("Context", (), {"clock": lambda _: self.now, "wall_ms": lambda _: int(self.now * 1000)})()
        self.statuses = Statuses(context, self._ask, self.tasks)

    async def _ask(self, peer: NodeKey) -> NodeStatus:
        self.asked.append(peer)
        return await self.answer(peer)

    async def _at_once(self, peer: NodeKey) -> NodeStatus:
        return STATUS

    async def look(self, peers: list[bytes]) -> list[bytes]:
        """Who was asked because somebody looked."""
        self.asked = []
        self.statuses.renew(peers)
        await self.tasks.idle(1.0)
        return self.asked


def keys(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


async def test_of_many_peers_the_stalest_are_asked_a_few_at_a_time_and_each_in_its_turn() -> None:
    asking, peers = Asking(), keys(100)
    looked = []
    for _ in range(7):
        asked = await asking.look(peers)
        assert len(asked) <= ASKED_AT_ONCE
        looked += asked
        asking.now += 0.25
    assert sorted(looked) == peers, "each once, and all of them"
    asking.now += FRESH_S
    assert await asking.look(peers) == looked[:ASKED_AT_ONCE]


async def test_nobody_else_is_asked_while_some_are_still_being_asked() -> None:
    asking, peers = Asking(), keys(40)
    gate = asyncio.Event()

    async def late(peer: NodeKey) -> NodeStatus:
        await gate.wait()
        return STATUS

    asking.answer = late
    for _ in range(5):
        asking.statuses.renew(peers)
        await asyncio.sleep(0)
    assert len(asking.asked) == ASKED_AT_ONCE
    gate.set()
    await asking.tasks.idle(1.0)
    assert len(await asking.look(peers)) == ASKED_AT_ONCE


async def test_who_does_not_answer_has_no_state_and_its_turn_like_the_others() -> None:
    asking, (peer,) = Asking(), keys(1)
    await asking.look([peer])
    assert (said := asking.statuses.of(peer)) is not None
    assert said.status == STATUS

    async def gone(peer: NodeKey) -> NodeStatus:
        raise UnreachableError("it is gone", reason=Reason.DEAD)

    asking.answer = gone
    asking.now += FRESH_S
    assert await asking.look([peer]) == [peer]
    assert (said := asking.statuses.of(peer)) is not None
    assert said.status is None
    assert await asking.look([peer]) == []
    asking.statuses.forget(peer)
    assert asking.statuses.of(peer) is None


async def test_what_is_remembered_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statuses_module, "KNOWN_MAX", 5)
    asking, meetings = Asking(), Meetings(lambda: 7)
    for peer in keys(9):
        await asking.statuses.ask(peer)
        meetings.note(peer, live=True)
    assert [asking.statuses.of(peer) is None for peer in keys(9)] == [True] * 4 + [False] * 5
    assert [meetings.since_ms(peer) for peer in keys(9)] == [0] * 4 + [7] * 5
    assert KNOWN_MAX >= 1024


def test_a_second_session_changes_nothing_of_since_when_a_peer_is_there() -> None:
    now = [1]
    meetings, (peer,) = Meetings(lambda: now[0]), keys(1)
    assert meetings.since_ms(peer) == 0
    meetings.note(peer, live=True)
    now[0] = 2
    meetings.note(peer, live=True, dialled_us=True)
    assert (meetings.since_ms(peer), meetings.dialled_us(peer)) == (1, True)
    meetings.note(peer, live=False)
    assert (meetings.since_ms(peer), meetings.dialled_us(peer)) == (2, True)
    now[0] = 3
    meetings.note(peer, live=True)
    assert (meetings.since_ms(peer), meetings.dialled_us(peer)) == (3, True)


# -- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "native", "word"),
    [
        (None, True, "own"),
        (("work", "store", "submit", "native"), True, "native"),
        (("work", "store", "submit", "native"), False, "submit"),
        (("work", "submit"), True, "submit"),
        (("work", "store", "native"), True, "work"),
        (("store",), True, "store"),
        (("invite",), True, "guest"),
        ((), True, "guest"),
    ],
)
def test_trust_is_the_most_that_a_membership_allows(roles: tuple[str, ...] | None, native: bool, word: str) -> None:
    assert trust_word(roles, native=native) == word


HOME, OUTSIDE = (Address("tls", "192.168.1.5", 4411),), "203.0.113.9:4411"


@pytest.mark.parametrize(
    ("addresses", "dialled_by", "live", "proven", "seen_as", "words"),
    [
        (HOME, 3, 5, True, "", "dialled by 3 of 5 peers at 192.168.1.5:4411"),
        (HOME, 1, 1, True, "", "dialled by 1 of 1 peer at 192.168.1.5:4411"),
        (HOME, 1, 2, True, OUTSIDE, f"dialled by 1 of 2 peers at 192.168.1.5:4411, seen from outside as {OUTSIDE}"),
        (HOME, 0, 5, True, "", "datagrams arrive at 192.168.1.5:4411, no connection did yet"),
        (HOME, 0, 5, False, "", "nobody could dial this node yet at 192.168.1.5:4411: outgoing connections only"),
        (HOME, 0, 0, False, "", "nobody is connected; listening at 192.168.1.5:4411"),
        ((Address("tls", "127.0.0.1", 7),), 2, 2, True, "", "dialled by 2 of 2 peers at 127.0.0.1:7 (this machine only)"),
        ((Address("tls", "::1", 7),), 0, 0, True, "", "nobody is connected; listening at [::1]:7 (this machine only)"),
        ((), 0, 3, False, "", "it does not listen: outgoing connections only"),
    ],
)
def test_how_a_node_is_reached_is_said_in_words(
    addresses: tuple[Address, ...], dialled_by: int, live: int, proven: bool, seen_as: str, words: str
) -> None:
    assert reach_words(addresses, dialled_by=dialled_by, live=live, proven=proven, seen_as=seen_as) == words
