"""The scenarios of the transport contract, word for word, over simulated transports in virtual time."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.messages import Hello, Member
from p2pgrid.net.methods import Methods
from p2pgrid.net.pool import Pool
from p2pgrid.net.rpc import Session
from p2pgrid.testing.air.network import SimulatedNetwork, SimulatedTransport, Weather
from p2pgrid.testing.world import World
from p2pgrid.wire.keys import SigningKey
from tests.unit.net import net_world, test_transport_contract
from tests.unit.testing.sim_air import PORT, Air, Machine, closed_worlds  # noqa: F401 -- a fixture that is used by itself

Scenario = Callable[[net_world.World], Awaitable[None]]
# Each for a reason that lies in the scenario itself.
NOT_HERE = {
    "test_a_call_is_answered": "asks for a path that is called direct",
    "test_calls_over_the_limit_of_a_peer_are_busy": "expects tasks to begin in the order in which they were made",
}
ONE_HOST_ONLY = {"test_a_port_in_use_is_a_config_error_with_a_hint"}
APART = Weather(latency_s=0.002, jitter_s=0.001, loss=0.01, bandwidth_bytes_s=500e6)


def _scenarios() -> dict[str, Scenario]:
    """What the contract runs on every transport and on TLS."""
    found = {}
    for name, test in vars(test_transport_contract).items():
        if name.startswith("test_") and "scenario" in getattr(test, "__code__", test).co_freevars:
            found[name] = inspect.getclosurevars(test).nonlocals["scenario"]
    return found


SCENARIOS = _scenarios()
RUNS = [(name, apart) for name in SCENARIOS if name not in NOT_HERE for apart in (False, True) if not (apart and name in ONE_HOST_ONLY)]


def test_most_of_the_contract_is_run() -> None:
    assert NOT_HERE.keys() | ONE_HOST_ONLY <= SCENARIOS.keys()
    assert len(RUNS) > 40


@pytest.mark.parametrize(("name", "apart"), RUNS)
def test_the_contract_holds(name: str, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(11)
    network = SimulatedNetwork(world, world.fork("network"), APART)
    loop = world.loop("all")
    hosts = [network.host("h0", "10.0.0.1")]

    def transport(key: SigningKey, host: str, port: int, limits: Limits) -> SimulatedTransport:
        if apart and hosts[0].listeners:
            hosts.insert(0, network.host(f"h{len(hosts)}", f"10.0.0.{len(hosts) + 1}"))
        return hosts[0].transport(loop, key, port, limits)

    monkeypatch.setattr(net_world, "TlsTransport", transport)
    nodes = net_world.World("tls")

    async def run() -> None:
        try:
            await SCENARIOS[name](nodes)
        finally:
            await nodes.close()

    task: Any = loop.create_task(run())
    assert world.run_until(task.done, 600.0)
    task.result()
    world.run_for(120.0)
    assert not loop.complaints
    assert not loop.unfinished()
    assert not any(host.pipes for host in hosts)
    world.close()


def _pool(machine: Machine, peers: list[Session], closed: list[tuple[float, str]]) -> Pool:
    air = machine.air
    machine.run(machine.transport.close())
    transport = machine.transport = machine.host.transport(machine.loop, machine.key, PORT)
    hello = Hello(net_world.GRID, 1_000_000)
    pool = Pool(machine.id, [transport], Methods(), lambda peer, _: Member(lineage=peer), lambda: hello, lambda: 1_000_000, Limits())
    pool.on_open(peers.append)
    pool.on_close(lambda _, reason: closed.append((air.world.now, reason)))
    machine.run(pool.start())
    return pool


def _two_pools() -> tuple[Air, Pool, list[tuple[float, str]]]:
    air = Air()
    closed: list[tuple[float, str]] = []
    pools = [_pool(air[name], [], closed if name == "ana" else []) for name in ("ana", "bob")]
    air["ana"].run(pools[0].session(air["bob"].id, [air["bob"].address]))
    air.world.run_for(60.0)
    assert not closed
    return air, pools[0], closed


def test_heartbeats_find_out_that_a_peer_lost_its_power() -> None:
    air, pool, closed = _two_pools()
    began_s = air.world.now
    air["bob"].host.power_off()
    air["bob"].loop.kill()
    air.world.run_for(60.0)
    limits = Limits()
    assert [reason for _, reason in closed] == [Reason.DEAD]
    assert closed[0][0] - began_s <= limits.dead_after_s + 2 * limits.heartbeat_s
    assert not air["ana"].host.pipes
    assert not air["bob"].host.orphans
    assert pool.live(air["bob"].id) is None


@pytest.mark.parametrize(("cut_s", "lives"), [(6.0, True), (40.0, False)])
def test_a_session_outlives_a_short_partition_and_not_a_long_one(cut_s: float, lives: bool) -> None:
    air, pool, closed = _two_pools()
    cut = air.network.partition([["ana"]])
    air.world.run_for(cut_s)
    air.network.heal(cut)
    air.world.run_for(30.0)
    assert (not closed, pool.live(air["bob"].id) is not None) == (lives, lives)
