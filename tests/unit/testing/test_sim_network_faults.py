"""Partitions, lost power, killed and frozen processes, goodbyes: what their peers in the simulated network notice, and when."""

from __future__ import annotations

import pytest

from p2pgrid.errors import UnreachableError
from p2pgrid.model.reasons import Reason
from tests.unit.testing.sim_air import CALM, Air, Sink, closed_worlds, give  # noqa: F401 -- a fixture that is used by itself

# -- partitions -----------------------------------------------------------------------------


def test_a_partition_holds_bytes_back_until_it_heals() -> None:
    air = Air()
    near, far = air.pair()
    sink = Sink(air, air["bob"], far)
    cut = air.network.partition([["ana"], ["bob", "cleo"]])
    air["ana"].loop.create_task(give(near, b"held"))
    air.world.run_for(10.0)
    assert not sink.data
    healed_s = air.world.now
    air.network.heal(cut)
    end_s = sink.end_s()
    assert bytes(sink.data) == b"held"
    # Sent again at 0.2, 0.6, 1.4, 3.0, 6.2 and 12.6 s.
    assert 0.0 < end_s - healed_s < 3.0
    assert air["dan"].dial(air["ana"]).peer == air["ana"].id


def test_what_was_in_the_air_when_a_partition_began_is_held_back_too() -> None:
    air = Air()
    near, far = air.pair()
    sink = Sink(air, air["bob"], far)
    air["ana"].loop.create_task(give(near, b"late"))
    air.world.run_for(0.01)
    air.network.partition([["ana"], ["bob"]])
    air.world.run_for(5.0)
    assert not sink.data
    air.network.heal_all()
    sink.end_s()
    assert bytes(sink.data) == b"late"


def test_a_one_way_partition_lets_the_others_be_heard() -> None:
    air = Air()
    near, far = air.pair()
    at_ana, at_bob = Sink(air, air["ana"], near), Sink(air, air["bob"], far)
    cut = air.network.partition([["ana"], ["bob"]], one_way=True)
    air["ana"].loop.create_task(give(near, b"to bob"))
    air["bob"].loop.create_task(give(far, b"to ana"))
    air.world.run_for(3.0)
    assert bytes(at_ana.data) == b"to ana"
    assert not at_bob.data
    air.network.heal(cut)
    at_bob.end_s()
    assert bytes(at_bob.data) == b"to bob"


def test_dials_over_a_partition_time_out_both_ways_even_if_only_one_is_cut() -> None:
    air = Air()
    air.network.partition([["ana"], ["bob"]], one_way=True)
    for one, other in (("ana", "bob"), ("bob", "ana")):
        began_s = air.world.now
        with pytest.raises(UnreachableError) as caught:
            air[one].dial(air[other], 4.0)
        assert caught.value.reason == Reason.TIMEOUT
        assert air.world.now - began_s == pytest.approx(4.0)
        assert not air["ana"].host.pipes
        assert not air["bob"].host.pipes


def test_a_dial_that_was_given_up_comes_to_nothing_later() -> None:
    air = Air()
    for cut in (air.network.partition([["ana"]]), air.network.partition([["bob"], ["ana"]], one_way=True)):
        with pytest.raises(UnreachableError):
            air["ana"].dial(air["bob"], 2.0)
        air.network.heal(cut)
    messages = air.network.messages
    air.world.run_for(120.0)
    assert air.network.messages == messages


def test_a_knock_in_the_air_is_lost_in_a_partition_and_repeated_after_a_second() -> None:
    air = Air()
    began_s = air.world.now
    air.world.after(0.01, lambda: air.network.partition([["ana"], ["bob"]], one_way=True))
    air.world.after(0.5, air.network.heal_all)
    air["ana"].dial(air["bob"], 5.0)
    assert air.world.now - began_s == pytest.approx(1.2)


def test_a_dial_gets_through_when_the_partition_heals_in_time() -> None:
    air = Air()
    cut = air.network.partition([["ana"]])
    air.world.after(2.0, air.network.heal, cut)
    began_s = air.world.now
    air["ana"].dial(air["bob"], 5.0)
    # Asked again after one second and after three.
    assert air.world.now - began_s == pytest.approx(3.2)


def test_overlapping_partitions_heal_each_on_its_own() -> None:
    air = Air()
    one = air.network.partition([["ana"], ["bob"]])
    other = air.network.partition([["ana"]])
    air.network.heal(one)
    with pytest.raises(UnreachableError):
        air["ana"].dial(air["bob"], 1.0)
    air.network.heal(other)
    air["ana"].dial(air["bob"], 1.0)


# -- machines that end ---------------------------------------------------------------------------


def test_a_killed_process_ends_its_connections_and_refuses_dials() -> None:
    air = Air()
    near, _ = air.pair()
    began_s = air.world.now
    air["bob"].host.reset()
    air["bob"].loop.kill()
    assert air["ana"].run(near.wait_closed()) == Reason.CLOSED
    assert air.world.now - began_s == pytest.approx(0.05)
    began_s = air.world.now
    with pytest.raises(UnreachableError, match="refused"):
        air["ana"].dial(air["bob"], 5.0)
    assert air.world.now - began_s == pytest.approx(0.1)


def test_nobody_hears_of_a_lost_power_and_dials_time_out() -> None:
    air = Air()
    near, _ = air.pair()
    air["bob"].host.power_off()
    air["bob"].loop.kill()
    stream = air["ana"].run(near.open())
    air["ana"].loop.call_soon(stream.write_nowait, b"anybody there?")
    closed = air["ana"].loop.create_task(near.wait_closed())
    air.world.run_for(60.0)
    assert not closed.done()
    began_s = air.world.now
    with pytest.raises(UnreachableError, match="did not answer"):
        air["ana"].dial(air["bob"], 3.0)
    assert air.world.now - began_s == pytest.approx(3.0)


def test_bytes_to_a_powerless_machine_fill_the_pipe_and_no_more() -> None:
    air = Air()
    near, _ = air.pair()
    streams = [air["ana"].run(near.open()) for _ in range(12)]
    air.world.run_for(1.0)
    air["bob"].host.power_off()
    air["bob"].loop.kill()
    before_bytes = air.network.bytes
    for stream in streams:
        air["ana"].loop.call_soon(stream.write_nowait, bytes(1 << 20))
    air.world.run_for(10.0)
    assert 3 << 20 < air.network.bytes - before_bytes < 6 << 20


@pytest.mark.parametrize("speaks", ["before", "after"])
def test_a_machine_that_is_up_again_refuses_connections_of_its_last_life(speaks: str) -> None:
    air = Air()
    near, _ = air.pair()
    air["bob"].host.power_off()
    stream = air["ana"].run(near.open()) if speaks == "before" else None
    air.world.run_for(5.0)
    air["bob"].restart()
    if stream is None:
        air["ana"].run(near.open())
    began_s = air.world.now
    assert air["ana"].run(near.wait_closed()) == Reason.CLOSED
    assert air.world.now - began_s < 5.0
    assert air["ana"].dial(air["bob"]).peer == air["bob"].id


def test_connections_of_a_process_that_ended_without_a_word_are_gone_when_its_machine_is_up_again() -> None:
    air = Air()
    near, _ = air.pair()
    air["bob"].restart()
    assert air["ana"].run(near.wait_closed()) == Reason.CLOSED
    air.world.run_for(1.0)
    assert not air["bob"].host.pipes


def test_what_had_left_a_machine_before_its_power_failed_arrives() -> None:
    air = Air()
    near, far = air.pair()
    sink = Sink(air, air["bob"], far)
    air["ana"].loop.create_task(give(near, b"last words"))
    air.world.run_for(0.01)
    air["ana"].host.power_off()
    air["ana"].loop.kill()
    air.world.run_for(1.0)
    assert bytes(sink.data) == b"last words"


def test_what_waited_for_a_narrow_line_dies_with_the_power() -> None:
    air = Air(CALM, ana={"bandwidth_bytes_s": 100_000.0})
    near, far = air.pair()
    sink = Sink(air, air["bob"], far)
    air["ana"].loop.create_task(give(near, bytes(1_000_000)))
    air.world.run_for(2.0)
    air["ana"].host.power_off()
    air["ana"].loop.kill()
    air.world.run_for(30.0)
    assert len(sink.data) < 600_000
    assert not sink.task.done()


def test_a_goodbye_arrives_with_its_reason_after_the_last_bytes() -> None:
    air = Air()
    near, far = air.pair()
    sink = Sink(air, air["bob"], far)
    stream = air["ana"].run(near.open())
    air.world.run_for(1.0)

    async def farewell() -> None:
        stream.write_nowait(b"bye")
        stream.finish()
        near.close(Reason.IDLE)

    air["ana"].run(farewell())
    assert air["bob"].run(far.wait_closed()) == Reason.IDLE
    assert bytes(sink.data) == b"bye"
    assert not air["ana"].host.pipes
    air.world.run_for(1.0)
    assert not air["bob"].host.pipes


def test_a_closed_transport_says_goodbye_and_refuses() -> None:
    air = Air()
    near, _ = air.pair()
    air["bob"].run(air["bob"].transport.close())
    assert air["ana"].run(near.wait_closed()) == Reason.SHUTDOWN
    with pytest.raises(UnreachableError, match="refused"):
        air["ana"].dial(air["bob"])
    with pytest.raises(UnreachableError) as caught:
        air["bob"].run(air["bob"].transport.accept())
    assert caught.value.reason == Reason.SHUTDOWN
    assert air["bob"].transport.addresses() == ()


def test_a_frozen_machine_answers_a_dial_when_it_goes_on() -> None:
    air = Air()
    air["bob"].loop.freeze()
    air.world.after(2.0, air["bob"].loop.thaw)
    began_s = air.world.now
    air["ana"].dial(air["bob"], 5.0)
    assert air.world.now - began_s == pytest.approx(2.05)


def test_a_full_pipe_goes_on_by_itself_when_there_is_room_again() -> None:
    air = Air()
    near, _ = air.pair()
    streams = [air["ana"].run(near.open()) for _ in range(8)]
    air.world.run_for(1.0)
    air["bob"].loop.freeze()
    before_bytes = air.network.bytes
    for stream in streams:
        air["ana"].loop.call_soon(stream.write_nowait, bytes(1_000_000))
    air.world.run_for(5.0)
    assert air.network.bytes - before_bytes < 6_000_000
    air["bob"].loop.thaw()
    air.world.run_for(5.0)
    # Nobody reads at bob, so that no window is granted again.
    assert air.network.bytes - before_bytes > 8_000_000
