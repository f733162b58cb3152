"""The simulated network: times, order, faults, refusals, and that a seed replays a run exactly."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from p2pgrid.errors import ConfigError, IntegrityError, UnreachableError, UsageError
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.testing.air.network import SimulatedNetwork, Weather
from p2pgrid.testing.world import World
from tests.unit.testing.sim_air import CALM, NAMES, PORT, Air, Machine, Sink, closed_worlds, deliver, give, pattern  # noqa: F401 -- a fixture that is used by itself

# -- time and order -----------------------------------------------------------------------


def test_a_dial_takes_two_round_trips_and_data_one_way() -> None:
    air = Air()
    began_s = air.world.now
    near = air["ana"].dial(air["bob"])
    assert air.world.now - began_s == pytest.approx(0.2)
    far = air["bob"].run(air["bob"].transport.accept())
    assert air.world.now - began_s == pytest.approx(0.25)
    assert (near.peer, far.peer, near.dialled, far.dialled) == (air["bob"].id, air["ana"].id, True, False)
    assert near.path().kind == "simulated"
    sink, took_s = deliver(air, near, far, b"hello")
    assert bytes(sink.data) == b"hello"
    assert took_s == pytest.approx(0.05)


def test_what_is_sent_at_once_with_the_dial_waits_for_the_peer() -> None:
    air = Air()

    async def dial_and_send() -> None:
        connection = await air["ana"].transport.dial(air["bob"].id, [air["bob"].address], 5.0)
        stream = await connection.open()
        stream.write_nowait(b"first")

    air["ana"].run(dial_and_send())
    far = air["bob"].run(air["bob"].transport.accept())

    async def read() -> bytes:
        return await (await far.accept_stream()).read(100)

    assert air["bob"].run(read()) == b"first"


def test_a_long_stream_arrives_whole_and_in_order_through_jitter_and_loss() -> None:
    air = Air(Weather(latency_s=0.03, jitter_s=0.05, loss=0.02, bandwidth_bytes_s=20e6))
    data = pattern(5 << 20)
    near, far = air.pair()
    sink, _ = deliver(air, near, far, data)
    assert bytes(sink.data) == data


def test_loss_makes_a_stream_late_and_never_corrupt() -> None:
    data = pattern(2 << 20)
    times = []
    for loss in (0.0, 0.05):
        air = Air(Weather(latency_s=0.02, latency_sigma=0.0, jitter_s=0.0, loss=0.0, bandwidth_bytes_s=0.0))
        near, far = air.pair()
        air.network.loss = loss
        sink, took_s = deliver(air, near, far, data)
        assert bytes(sink.data) == data
        times.append(took_s)
    assert times[1] > times[0] + 0.4


def test_one_lost_segment_costs_the_time_out_of_a_retransmission() -> None:
    air = Air()
    near, far = air.pair()
    air.network.set_weather(loss=1.0)
    air.world.after(0.01, lambda: air.network.set_weather(loss=0.0))
    _, took_s = deliver(air, near, far, b"x")
    # Every round was lost, as the weather at the time of sending says: 0.2 s, doubling eight times.
    assert took_s == pytest.approx(0.05 + 0.2 * (2**8 - 1))


@pytest.mark.parametrize("slow_side", ["ana", "bob"])
def test_a_transfer_takes_its_bytes_over_the_narrower_line(slow_side: str) -> None:
    hosts: dict[str, Any] = {slow_side: {"bandwidth_bytes_s": 1e6}}
    air = Air(CALM, **hosts)
    near, far = air.pair()
    _, took_s = deliver(air, near, far, bytes(4_000_000))
    assert took_s == pytest.approx(4.0 + 0.05, rel=0.1)


def test_two_senders_share_the_line_of_the_receiver() -> None:
    air = Air(CALM, bob={"bandwidth_bytes_s": 1e6})
    sinks = []
    for name in ("ana", "cleo"):
        near = air[name].dial(air["bob"])
        far = air["bob"].run(air["bob"].transport.accept())
        air[name].loop.call_soon(near.trust)
        air["bob"].loop.call_soon(far.trust)
        air.world.run_for(1.0)
        sinks.append((Sink(air, air["bob"], far), name, near))
    began_s = air.world.now
    for _, name, near in sinks:
        air[name].loop.create_task(give(near, bytes(2_000_000)))
    assert max(sink.end_s() for sink, _, _ in sinks) - began_s == pytest.approx(4.0, rel=0.15)


def test_a_small_message_does_not_wait_for_the_megabytes_of_another_connection() -> None:
    air = Air(Weather(latency_s=0.05, latency_sigma=0.0, jitter_s=0.0, bandwidth_bytes_s=500_000.0))
    near, far = air.pair()
    Sink(air, air["bob"], far)
    air["ana"].loop.create_task(give(near, bytes(4_000_000)))
    other = air["ana"].dial(air["cleo"])
    far_other = air["cleo"].run(air["cleo"].transport.accept())
    sink = Sink(air, air["cleo"], far_other)
    began_s = air.world.now
    air["ana"].loop.create_task(give(other, b"beat"))
    assert sink.end_s() - began_s < 0.1


def test_a_connection_to_oneself_is_nearly_instant_and_proves_the_own_key() -> None:
    air = Air(bob={"nat": "symmetric"})
    bob = air["bob"]
    channel = bob.host.transport(bob.loop, bob.key, 0)
    began_s = air.world.now
    connection = bob.run(channel.dial(bob.id, [Address("tls", "127.0.0.1", PORT)], 5.0))
    assert connection.peer == bob.id
    assert air.world.now - began_s < 0.001
    assert channel.addresses() == ()


def test_clogging_and_slowness_add_to_the_time_and_can_be_undone() -> None:
    air = Air()
    near, far = air.pair()

    def took_s() -> float:
        return deliver(air, near, far, b"x")[1]

    air.network.clog("bob", "ana", 7.0)
    assert took_s() == pytest.approx(7.05)
    air.network.unclog("ana", "bob")
    air.network.slow("bob", 3.0)
    assert took_s() == pytest.approx(0.15)
    air.network.slow("bob", 1.0)
    air.network.delay("ana", 0.5)
    assert took_s() == pytest.approx(0.55)
    air.network.delay("ana", 0.0)
    assert took_s() == pytest.approx(0.05)


def test_what_is_sent_after_a_clog_does_not_overtake_what_is_held_up() -> None:
    air = Air()
    near, far = air.pair()
    sink = Sink(air, air["bob"], far)
    stream = air["ana"].run(near.open())
    air.world.run_for(0.5)
    air.network.clog("ana", "bob", 3.0)
    air["ana"].loop.call_soon(stream.write_nowait, b"one")
    air.world.run_for(0.1)
    air.network.unclog("ana", "bob")
    air["ana"].loop.call_soon(stream.write_nowait, b"two")
    air.world.run_for(0.001)
    air["ana"].loop.call_soon(stream.finish)
    air.world.run_for(0.5)
    assert not sink.data
    sink.end_s()
    assert bytes(sink.data) == b"onetwo"


def test_a_full_pipe_stops_its_sender_until_a_frozen_reader_goes_on() -> None:
    air = Air()
    near, far = air.pair()
    far_loop = air["bob"].loop
    sinks = [Sink(air, air["bob"], far) for _ in range(8)]
    streams = [air["ana"].run(near.open()) for _ in sinks]
    air.world.run_for(1.0)
    far_loop.freeze()

    async def write() -> None:
        for stream in streams:
            stream.write_nowait(bytes(1 << 20))
            stream.finish()

    before_bytes = air.network.bytes
    air["ana"].run(write())
    air.world.run_for(5.0)
    in_the_air = air.network.bytes - before_bytes
    # What the system takes is bounded, whatever the windows of eight streams would allow.
    assert 3 << 20 < in_the_air < 6 << 20
    assert not any(sink.data for sink in sinks)
    far_loop.thaw()
    for sink in sinks:
        sink.end_s()
    assert [len(sink.data) for sink in sinks] == [1 << 20] * 8


def test_what_is_delivered_sees_none_of_the_senders_context() -> None:
    air = Air()
    variable = contextvars.ContextVar("variable", default="nobody's")
    near, far = air.pair()
    stream = air["ana"].run(near.open())
    air.world.run_for(0.5)
    seen: list[str] = []
    far.feed = lambda data: seen.append(variable.get())  # type: ignore[method-assign]

    async def send() -> None:
        variable.set("ana's")
        stream.write_nowait(b"x", flush=True)

    air["ana"].run(send())
    air.world.run_for(0.5)
    assert seen == ["nobody's"]


# -- who answers ----------------------------------------------------------------------------------------


def test_another_key_behind_the_address_is_refused() -> None:
    air = Air()
    with pytest.raises(IntegrityError) as caught:
        air["ana"].run(air["ana"].transport.dial(air["cleo"].id, [air["bob"].address], 5.0))
    assert caught.value.reason == Reason.WRONG_PEER
    air.world.run_for(1.0)
    assert not air["bob"].host.pipes
    assert air["bob"].transport.strangers == 0


def test_the_right_one_among_several_addresses_is_found() -> None:
    air = Air()
    places = [
        Address("iroh", "x", 1),
        Address("tls", "10.9.9.9", 1),
        air["cleo"].address,
        Address("tls", "10.0.0.2", 9),
        air["bob"].address,
    ]
    assert air["ana"].run(air["ana"].transport.dial(air["bob"].id, places, 5.0)).peer == air["bob"].id
    air.world.run_for(1.0)
    assert len(air["ana"].host.pipes) == 1


def test_without_a_usable_address_a_dial_fails_at_once() -> None:
    air = Air()
    began_s = air.world.now
    with pytest.raises(UnreachableError, match="no usable address"):
        air["ana"].run(air["ana"].transport.dial(air["bob"].id, [Address("iroh", "x", 1)], 5.0))
    assert air.world.now == began_s


@pytest.mark.parametrize("nat", ["cone", "symmetric"])
def test_nobody_dials_a_host_behind_a_nat_but_it_dials_others(nat: str) -> None:
    air = Air(bob={"nat": nat})
    with pytest.raises(UnreachableError, match="did not answer"):
        air["ana"].dial(air["bob"], 3.0)
    near = air["bob"].dial(air["ana"])
    far = air["ana"].run(air["ana"].transport.accept())
    assert (near.peer, far.peer) == (air["ana"].id, air["bob"].id)


def test_strangers_are_counted_and_those_over_the_limit_are_cut_off() -> None:
    air = Air()
    bob = air["bob"]
    bob.transport.limits = Limits(unauthenticated=2, unauthenticated_s=3.0)
    first, second = air["ana"].dial(bob), air["cleo"].dial(bob)
    began_s = air.world.now
    with pytest.raises(UnreachableError) as caught:
        air["dan"].dial(bob)
    assert caught.value.reason == Reason.CLOSED
    assert air.world.now - began_s == pytest.approx(0.2)
    far = bob.run(bob.transport.accept())
    bob.loop.call_soon(far.trust)
    third = air["dan"].dial(bob)
    assert air["cleo"].run(second.wait_closed()) == Reason.NOT_MEMBER
    assert air["dan"].run(third.wait_closed()) == Reason.NOT_MEMBER
    assert bob.transport.strangers == 0
    closed = air["ana"].loop.create_task(first.wait_closed())
    air.world.run_for(30.0)
    assert not closed.done()


def test_a_port_in_use_is_said_and_port_zero_draws_a_free_one() -> None:
    air = Air()
    ana = air["ana"]
    with pytest.raises(ConfigError, match=f"port {PORT}"):
        ana.run(ana.host.transport(ana.loop, ana.key, PORT).start())
    drawn = []
    for _ in range(3):
        transport = ana.host.transport(ana.loop, ana.key, 0, DEFAULT_LIMITS)
        ana.run(transport.start())
        drawn.append(transport.addresses()[0].port)
    assert len({PORT, *drawn}) == 4
    air.carrier("ana")
    with pytest.raises(ConfigError, match="UDP"):
        ana.run(ana.host.carrier(ana.loop, PORT).open(lambda data, place: None))


def test_hosts_and_weather_that_make_no_sense_are_refused() -> None:
    air = Air()
    for name, address in (("ana", "10.0.0.77"), ("new", "10.0.0.1"), ("new", "127.0.0.1")):
        with pytest.raises(UsageError):
            air.network.host(name, address)
    with pytest.raises(UsageError):
        Weather(loss=1.5)
    with pytest.raises(UsageError):
        air.network.set_weather(latency_s=-1.0)


# -- the same again ---------------------------------------------------------------------------------------------------


STORMY = Weather(latency_s=0.03, latency_sigma=0.5, jitter_s=0.01, loss=0.05, duplicate=0.05, reorder=0.05, bandwidth_bytes_s=2e6)


def _story(names: tuple[str, ...] = NAMES, *, dan_first: bool = False) -> tuple[list[Any], str]:
    """What bob receives from ana by stream and by datagram, and when."""
    air = Air(STORMY, names=names)
    if dan_first:
        (dan, _), (cleo, _) = air.carrier("dan"), air.carrier("cleo")
        for _ in range(20):
            dan.sendto(b"noise", cleo.place)
            cleo.sendto(b"noise", dan.place)
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    near, far = air.pair()
    began_s = air.world.now
    sink = Sink(air, air["bob"], far)
    air["ana"].loop.create_task(give(near, pattern(200_000)))
    for number in range(100):
        air.world.after(number * 0.003, ana.sendto, bytes([number]), bob.place)
    sink.end_s()
    air.world.run_for(5.0)
    story = [(round(when_s - began_s, 6), data) for when_s, data, _ in heard]
    return [story, [round(when_s - began_s, 6) for when_s in sink.times]], air.world.trace_hash()


def test_equal_runs_are_equal_to_the_last_event() -> None:
    assert _story() == _story()


def test_what_happens_between_others_and_in_which_order_hosts_came_changes_nothing() -> None:
    story, _ = _story()
    assert len(story[0]) > 90
    assert _story(("dan", "cleo", "bob", "ana"))[0] == story
    assert _story(dan_first=True)[0] == story


def test_pairs_have_distances_of_their_own_around_the_median() -> None:
    world = World(3)
    network = SimulatedNetwork(world, world.fork("network"), Weather(latency_s=0.02, latency_sigma=0.3))
    hosts = [network.host(f"h{number}", f"10.1.0.{number}") for number in range(30)]
    one_way = [network.link(one, other).latency_s for one in hosts for other in hosts if one.name < other.name]
    back = [network.link(other, one).latency_s for one in hosts for other in hosts if one.name < other.name]
    assert one_way == back
    assert len(set(one_way)) == len(one_way)
    assert sorted(one_way)[len(one_way) // 2] == pytest.approx(0.02, rel=0.1)


def test_counters_and_the_hook_see_every_segment() -> None:
    air = Air()
    near, far = air.pair()
    seen: list[tuple[str, str, int]] = []
    air.network.on_segment = lambda source, target, size_bytes: seen.append((source, target, size_bytes))
    before, before_bytes = air.network.messages, air.network.bytes
    deliver(air, near, far, bytes(300_000))
    air.world.run_for(1.0)
    assert len(seen) == air.network.messages - before
    assert sum(size_bytes for _, _, size_bytes in seen) == air.network.bytes - before_bytes > 300_000
    assert {pair[:2] for pair in seen} == {("ana", "bob"), ("bob", "ana")}


def test_a_hundred_strangers_dialling_at_once_leave_nothing_behind() -> None:
    air = Air(Weather(latency_s=0.02, loss=0.1))
    bob = air["bob"]

    async def dial_all(machine: Machine) -> int:
        dials = [machine.transport.dial(bob.id, [bob.address], 2.0) for _ in range(34)]
        return sum(not isinstance(outcome, BaseException) for outcome in await asyncio.gather(*dials, return_exceptions=True))

    tasks = [air[name].loop.create_task(dial_all(air[name])) for name in ("ana", "cleo", "dan")]
    assert air.world.run_until(lambda: all(task.done() for task in tasks), air.world.now + 60.0)
    # Some were answered after their dialler had given up, and then had a place for a moment.
    assert 1 <= sum(task.result() for task in tasks) <= bob.transport.limits.unauthenticated
    air.world.run_for(30.0)
    assert bob.transport.strangers == 0
    assert all(not machine.host.pipes for machine in air.machines.values())
