"""A simulated network with four machines that listen, and what tests do with them."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from p2pgrid.dht.contact import Place
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.node import Address
from p2pgrid.net.connection import MuxConnection, MuxStream
from p2pgrid.testing.air.network import Host, SimulatedCarrier, SimulatedNetwork, SimulatedTransport, Weather
from p2pgrid.testing.world import MachineLoop, World
from p2pgrid.wire.keys import SigningKey

R = TypeVar("R")
CALM = Weather(latency_s=0.05, latency_sigma=0.0, jitter_s=0.0, bandwidth_bytes_s=0.0)
PORT = 7000
NAMES = ("ana", "bob", "cleo", "dan")
_open: list[World] = []


@pytest.fixture(autouse=True)
def closed_worlds() -> Iterator[None]:
    """Ends the worlds of a test, and looks whether anything in them went wrong unseen."""
    _open.clear()
    yield
    complaints = [text for world in _open for loop in world.loops.values() for text in loop.complaints]
    for world in _open:
        world.close()
    assert not complaints


class Machine:
    """A host, its loop and its key."""

    def __init__(self, air: Air, name: str, host: Host, seed: int) -> None:
        self.air = air
        self.name = name
        self.host = host
        self.key = SigningKey(bytes([seed]) * 32)
        self.id = NodeKey(self.key.public)
        self.loop: MachineLoop = air.world.loop(name)
        self.transport: SimulatedTransport = host.transport(self.loop, self.key, PORT)

    @property
    def address(self) -> Address:
        return Address("tls", self.host.address, PORT)

    def run(self, coro: Coroutine[Any, Any, R], limit_s: float = 300.0) -> R:
        """Run something here until it has ended."""
        task = self.loop.create_task(coro)
        assert self.air.world.run_until(task.done, self.air.world.now + limit_s), "it did not end"
        return task.result()

    def dial(self, other: Machine, timeout_s: float = 5.0) -> MuxConnection:
        return self.run(self.transport.dial(other.id, [other.address], timeout_s))

    def restart(self) -> None:
        """A new life: a new loop and a transport that listens."""
        self.loop.kill()
        self.loop = self.air.world.loop(self.name)
        self.transport = self.host.transport(self.loop, self.key, PORT)
        self.host.power_on()
        self.run(self.transport.start())


class Air:
    """A world with some machines that listen."""

    def __init__(self, weather: Weather = CALM, *, names: tuple[str, ...] = NAMES, seed: int = 7, **hosts: dict[str, Any]) -> None:
        self.world = World(seed)
        _open.append(self.world)
        self.network = SimulatedNetwork(self.world, self.world.fork("network"), weather)
        self.machines = {}
        for name in names:
            number = 1 + NAMES.index(name)
            host = self.network.host(name, f"10.0.0.{number}", **hosts.get(name, {}))
            machine = self.machines[name] = Machine(self, name, host, number)
            machine.run(machine.transport.start())

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def pair(self) -> tuple[MuxConnection, MuxConnection]:
        """A connection from ana to bob that both trust, and bob's end of it."""
        near = self["ana"].dial(self["bob"])
        far = self["bob"].run(self["bob"].transport.accept())
        self["ana"].loop.call_soon(near.trust)
        self["bob"].loop.call_soon(far.trust)
        self.world.run_for(1.0)
        return near, far

    def carrier(self, name: str) -> tuple[SimulatedCarrier, list[tuple[float, bytes, Place]]]:
        """An open carrier and what it has received."""
        heard: list[tuple[float, bytes, Place]] = []
        carrier = self[name].host.carrier(self[name].loop, PORT)
        self[name].run(carrier.open(lambda data, place: heard.append((self.world.now, data, place))))
        return carrier, heard


class Sink:
    """Reads a stream to its end, and notes when what arrived."""

    def __init__(self, air: Air, machine: Machine, connection: MuxConnection) -> None:
        self.air = air
        self.data = bytearray()
        self.times: list[float] = []
        self.task = machine.loop.create_task(self._read(connection))

    async def _read(self, connection: MuxConnection) -> float:
        stream = await connection.accept_stream()
        while data := await stream.read(1 << 20):
            self.data += data
            self.times.append(self.air.world.now)
        return self.air.world.now

    def end_s(self, limit_s: float = 600.0) -> float:
        assert self.air.world.run_until(self.task.done, self.air.world.now + limit_s), "the stream did not end"
        return self.task.result()


async def give(connection: MuxConnection, data: bytes) -> MuxStream:
    stream = await connection.open()
    for start in range(0, len(data), 1 << 17):
        await stream.write(data[start : start + (1 << 17)])
    stream.finish()
    return stream


def deliver(air: Air, near: MuxConnection, far: MuxConnection, data: bytes, limit_s: float = 600.0) -> tuple[Sink, float]:
    """Send from ana to bob; returns what came and how many seconds it took."""
    began_s = air.world.now
    sink = Sink(air, air["bob"], far)
    air["ana"].loop.create_task(give(near, data))
    return sink, sink.end_s(limit_s) - began_s


def pattern(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)
