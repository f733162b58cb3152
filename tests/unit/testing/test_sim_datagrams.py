"""Simulated datagrams: what the weather does to them, NAT, buffers, forged sources."""

from __future__ import annotations

from itertools import pairwise

import pytest

from p2pgrid.dht.contact import Place
from p2pgrid.errors import UnreachableError
from p2pgrid.testing.air.network import Weather
from tests.unit.testing.sim_air import PORT, Air, closed_worlds  # noqa: F401 -- a fixture that is used by itself


def test_a_datagram_takes_the_latency_and_bears_its_source() -> None:
    air = Air()
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    began_s = air.world.now
    ana.sendto(b"hi", bob.place)
    air.world.run_for(1.0)
    assert heard[0][0] == pytest.approx(began_s + 0.05)
    assert [what[1:] for what in heard] == [(b"hi", Place("10.0.0.1", PORT))]
    bob.sendto(b"self", Place("127.0.0.1", PORT))
    air.world.run_for(1.0)
    assert heard[1][1:] == (b"self", Place("127.0.0.1", PORT))


def test_datagrams_are_lost_doubled_and_overtaken_as_often_as_the_weather_says() -> None:
    air = Air(Weather(latency_s=0.05, jitter_s=0.0, loss=0.2, duplicate=0.1, reorder=0.1, bandwidth_bytes_s=0.0))
    network = air.network
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    count = 2000
    for number in range(count):
        air.world.after(number * 0.001, ana.sendto, number.to_bytes(4, "big"), bob.place)
    air.world.run_for(10.0)
    assert network.datagrams == count
    assert network.lost == pytest.approx(0.2 * count, rel=0.2)
    assert network.duplicated == pytest.approx(0.08 * count, rel=0.3)
    assert network.reordered == pytest.approx(0.08 * count, rel=0.3)
    assert len(heard) == count - network.lost + network.duplicated
    numbers = [int.from_bytes(data, "big") for _, data, _ in heard]
    overtaken = sum(one > other for one, other in pairwise(numbers))
    assert overtaken >= network.reordered // 2


def test_large_datagrams_need_all_their_fragments_and_huge_ones_are_not_sent() -> None:
    air = Air(Weather(latency_s=0.01, loss=0.1, bandwidth_bytes_s=0.0))
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    arrived = {}
    for size_bytes in (1000, 14_000):
        heard.clear()
        for _ in range(300):
            ana.sendto(bytes(size_bytes), bob.place)
        air.world.run_for(1.0)
        arrived[size_bytes] = len(heard)
    assert arrived[1000] == pytest.approx(270, abs=20)
    assert arrived[14_000] == pytest.approx(300 * 0.9**10, abs=30)
    air.network.loss = 0.0
    heard.clear()
    ana.sendto(bytes(65_507), bob.place)
    ana.sendto(bytes(65_508), bob.place)
    air.world.run_for(1.0)
    assert [len(data) for _, data, _ in heard] == [65_507]


def test_a_partition_drops_datagrams_and_one_way_only_those_of_the_first() -> None:
    air = Air()
    (ana, at_ana), (bob, at_bob) = air.carrier("ana"), air.carrier("bob")
    air.network.partition([["ana"], ["bob"]], one_way=True)
    ana.sendto(b"no", bob.place)
    bob.sendto(b"yes", ana.place)
    air.world.run_for(1.0)
    assert [data for _, data, _ in at_ana] == [b"yes"]
    assert not at_bob
    assert air.network.lost == 1
    air.network.heal_all()
    ana.sendto(b"now", bob.place)
    air.world.run_for(1.0)
    assert [data for _, data, _ in at_bob] == [b"now"]


def test_behind_a_cone_only_places_are_heard_that_were_sent_to() -> None:
    air = Air(bob={"nat": "cone"})
    (ana, _), (bob, heard), (cleo, _) = air.carrier("ana"), air.carrier("bob"), air.carrier("cleo")
    ana.sendto(b"unasked", bob.place)
    air.world.run_for(1.0)
    assert not heard
    bob.sendto(b"hello", ana.place)
    ana.sendto(b"crossed", bob.place)
    air.world.run_for(1.0)
    ana.sendto(b"answer", bob.place)
    cleo.sendto(b"unasked", bob.place)
    fresh = air["ana"].run(ana.fresh())
    fresh.sendto(b"other port", bob.place)
    air.world.run_for(1.0)
    assert [data for _, data, _ in heard] == [b"crossed", b"answer"]
    air.world.run_for(301.0)
    ana.sendto(b"too late", bob.place)
    air.world.run_for(1.0)
    assert len(heard) == 2


def test_behind_a_symmetric_nat_every_destination_sees_a_port_of_its_own() -> None:
    air = Air(bob={"nat": "symmetric"})
    (ana, at_ana), (bob, heard), (cleo, at_cleo) = air.carrier("ana"), air.carrier("bob"), air.carrier("cleo")
    bob.sendto(b"1", ana.place)
    bob.sendto(b"2", cleo.place)
    bob.sendto(b"3", ana.place)
    air.world.run_for(1.0)
    seen_by_ana, seen_by_cleo = at_ana[0][2], at_cleo[0][2]
    assert at_ana[1][2] == seen_by_ana
    assert len({seen_by_ana.port, seen_by_cleo.port, PORT}) == 3
    ana.sendto(b"answer", seen_by_ana)
    cleo.sendto(b"thief", seen_by_ana)
    cleo.sendto(b"direct", bob.place)
    air.world.run_for(1.0)
    assert [data for _, data, _ in heard] == [b"answer"]
    bob.sendto(b"self", Place("127.0.0.1", PORT))
    air.world.run_for(1.0)
    assert heard[-1][1:] == (b"self", Place("127.0.0.1", PORT))


def test_a_fresh_carrier_sends_from_a_port_never_used_and_what_it_sent_outlives_it() -> None:
    air = Air()
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    for _ in range(2):
        fresh = air["ana"].run(ana.fresh())
        fresh.sendto(b"ping", bob.place)
        fresh.close()
        fresh.sendto(b"closed", bob.place)
    air.world.run_for(1.0)
    assert [data for _, data, _ in heard] == [b"ping", b"ping"]
    assert len({place.port for _, _, place in heard} | {PORT}) == 3
    ana.close()
    with pytest.raises(UnreachableError):
        air["ana"].run(ana.fresh())


def test_a_frozen_machine_hears_what_its_buffer_held() -> None:
    air = Air()
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    air["bob"].loop.freeze()
    for _ in range(500):
        ana.sendto(bytes(1000), bob.place)
    air.world.run_for(1.0)
    assert not heard
    air["bob"].loop.thaw()
    air.world.run_for(1.0)
    assert len(heard) == 212
    assert air.network.lost == 288


def test_nothing_reaches_a_carrier_whose_machine_has_no_power_and_its_port_is_free_in_the_next_life() -> None:
    air = Air()
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    ana.sendto(b"in the air", bob.place)
    air["bob"].host.power_off()
    ana.sendto(b"later", bob.place)
    air.world.run_for(1.0)
    assert not heard
    air["bob"].restart()
    bob, heard = air.carrier("bob")
    ana.sendto(b"again", bob.place)
    air.world.run_for(1.0)
    assert [data for _, data, _ in heard] == [b"again"]


def test_watchers_see_what_programs_send_and_forged_sources_arrive() -> None:
    air = Air()
    (ana, _), (bob, heard) = air.carrier("ana"), air.carrier("bob")
    seen: list[tuple[bytes, tuple[str, int], tuple[str, int]]] = []
    air.network.watchers.append(lambda *what: seen.append(what))
    ana.sendto(b"x", bob.place)
    air.network.send_raw_datagram(b"forged", ("10.0.0.3", 5), ("10.0.0.2", PORT))
    air.network.partition([["bob"]])
    air.network.send_raw_datagram(b"through", ("10.0.0.3", 5), ("10.0.0.2", PORT))
    air.network.send_raw_datagram(b"cut", ("10.0.0.3", 5), ("10.0.0.2", PORT), via="dan")
    air.world.run_for(1.0)
    assert [what[0] for what in seen] == [b"x"], "only what programs really sent"
    assert seen[0][1:] == (("10.0.0.1", PORT), ("10.0.0.2", PORT))
    assert {data for _, data, _ in heard} == {b"x", b"forged", b"through"}
