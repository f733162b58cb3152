"""One simulated machine: a disk, a place in the network, processors, and the node that runs on it, life after life.

The node is the real one. It gets virtual time, chance from the seed and these parts through the same ports as on a
real machine (:mod:`p2pgrid.machine`), and cannot tell.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from p2pgrid.core.admission import Policy
from p2pgrid.core.invites import parse_invite
from p2pgrid.core.pausing import Asked, Presence, Usage
from p2pgrid.errors import P2PGridError, TryAgainError
from p2pgrid.model.ids import JobId
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Transport
from p2pgrid.node import LEAVE_S, Node, NodeConfig, Ports
from p2pgrid.offload import InlineOffload, Offload
from p2pgrid.runtimes.selftest.report import RuntimeReport
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, PoolPolicy, Workers
from p2pgrid.services import membership as memberships
from p2pgrid.store.home import Home
from p2pgrid.store.ledger import Ledgers, Record
from p2pgrid.store.ledger_writer import Done, InlineLedgerWriter
from p2pgrid.testing.air.network import Host, SimulatedCarrier
from p2pgrid.testing.hostile.lying import DigestLiar
from p2pgrid.testing.observe import Onlooker
from p2pgrid.testing.parts.behaviour import DIGEST, Behaviour
from p2pgrid.testing.parts.cpu import Cpu, UnitTimes
from p2pgrid.testing.parts.disk import SimulatedDisk
from p2pgrid.testing.parts.runtime import SimulatedWorkers
from p2pgrid.testing.plans.gridplan import MachinePlan
from p2pgrid.testing.world import EPOCH_MS, MachineLoop, World
from p2pgrid.wire.keys import SigningKey

PORT = 7400
DISK_S = 0.004
"""From handing records to the log to their being durable."""
JOIN_AGAIN_S = 5.0
"""A node that could not join is started again after this long, as a service manager would."""
OFF_S = 0.5
"""From the end of the node to what it left being counted: those who talked to it here have noticed by then."""
MEMORY_BYTES = 1 << 30
CLIENT = "client:"
"""Tasks with such names belong to people at the machine, not to its node."""


class Surroundings(Protocol):
    """What a machine needs from the grid it is in."""

    world: World
    times: UnitTimes
    onlookers: Sequence[Onlooker]
    grid_name: str

    def poison(self, raw: bytes) -> None:
        """A statement was forged: it must be seen in no log."""

    def invite_for(self, roles: tuple[str, ...]) -> str | None:
        """The text of an invite; None before the grid has been founded."""

    def founded(self, node: Node) -> None:
        """The first node runs."""

    def changed(self) -> None:
        """A node has joined, or has ended."""

    def count_path(self, path: str) -> None:
        """A path through the grid was taken."""


class ObservedLog:
    """The log port of a machine: what is submitted becomes durable a little later, in one write, and onlookers see it."""

    def __init__(self, machine: SimulatedMachine, ledgers: Ledgers) -> None:
        self._machine = machine
        self._inline = InlineLedgerWriter(ledgers)
        self._queue: list[tuple[JobId, Sequence[Record] | None, Done]] = []
        self._closing = False

    def submit(self, job: JobId, records: Sequence[Record], done: Done) -> None:
        self._check_open()
        for onlooker in self._machine.onlookers:
            onlooker.on_log(self._machine.name, job, records)
        self._put(job, records, done)

    def remove(self, job: JobId, done: Done) -> None:
        self._check_open()
        self._put(job, None, done)

    def _check_open(self) -> None:
        if self._closing:
            raise TryAgainError("the ledger is closed", reason=Reason.SHUTDOWN)

    def _put(self, job: JobId, records: Sequence[Record] | None, done: Done) -> None:
        if not self._queue:
            self._machine.loop.call_later(DISK_S, self._write)
        self._queue.append((job, records, done))

    def _write(self) -> None:
        queue, self._queue = self._queue, []
        name, onlookers = self._machine.name, self._machine.onlookers
        for job, records, done in queue:
            outcome: list[Exception | None] = []
            if records is None:
                for onlooker in onlookers:
                    onlooker.on_log_removed(name, job)
                self._inline.remove(job, done)
                continue
            self._inline.submit(job, records, outcome.append)
            error = outcome[0]
            for onlooker in onlookers:
                onlooker.on_log_durable(name, job, records, "" if error is None else str(error))
            done(error)

    def close(self, timeout_s: float = 5.0) -> bool:
        self._write()
        self._closing = True
        return self._inline.close(timeout_s)


class SimulatedMachine:
    """A machine of a simulated grid. ``plan`` says what it is made of; ``folder`` is its disk."""

    platform = "linux-x86_64"
    python = "3.11"

    def __init__(self, grid: Surroundings, plan: MachinePlan, host: Host, folder: Path, rng: random.Random) -> None:
        self.grid = grid
        self.plan = plan
        self.name = plan.name
        self.host = host
        self.folder = folder
        self.disk = SimulatedDisk(folder, rng, capacity_bytes=plan.disk_bytes)
        self.cpu = Cpu(plan.speed)
        self.skew_s = plan.clock_skew_s
        self.life = 0
        """How often it was started."""
        self.node: Node | None = None
        """The node while it runs; set once it has joined."""
        self.disk_gone = False
        self.loop: MachineLoop = grid.world.loop(self.name)
        self.loop.kill()
        self._leaving_s = 0.0
        self._leaves_within_s = LEAVE_S
        self._starting: Node | None = None
        self._home: Home | None = None
        self._workers: SimulatedWorkers | None = None

    @property
    def onlookers(self) -> Sequence[Onlooker]:
        """Those who are told what happens here."""
        return self.grid.onlookers

    def wall_ms(self) -> int:
        """Unix milliseconds by this machine's clock."""
        return EPOCH_MS + int((self.grid.world.now + self.skew_s) * 1000)

    # -- what a node asks of its machine ----------------------------------------------------

    def transport(self, key: SigningKey, host: str, port: int, limits: Limits) -> Transport:
        return self.host.transport(self.loop, key, port, limits)

    def carrier(self, host: str, port: int) -> SimulatedCarrier:
        return self.host.carrier(self.loop, port)

    def offload(self) -> Offload:
        return InlineOffload()

    def log_port(self, ledgers: Ledgers) -> ObservedLog:
        return ObservedLog(self, ledgers)

    def workers(self, folder: Path, policy: PoolPolicy, offload: Offload) -> Workers:
        behaviour = Behaviour(self.plan.behaviour, self.name)
        self._workers = SimulatedWorkers(
            policy, self.cpu, self.grid.times, behaviour, on_start=self._on_start, on_chunk=self._on_chunk, folder=folder
        )
        return self._workers

    def runner(self) -> Path | None:
        return None  # Simulated units run in this interpreter.

    def reachable(self, folder: Path) -> Path:
        return folder

    def caches(self) -> Path:
        return Path("caches")  # Nothing that is simulated makes any.

    async def selftest(
        self, policy: PoolPolicy, offload: Offload, runtimes: Sequence[str], runner: Path | None
    ) -> tuple[RuntimeReport, ...]:
        return ()  # There are no cages to attack.

    def load(self) -> float:
        return 0.0

    def usage(self) -> Usage:
        """What nobody decides by: the same at all times."""
        return Usage(0.25, MEMORY_BYTES // 4)

    def presence(self, asked: Asked) -> Presence:
        """A machine that nobody else uses, without a battery, at noon."""
        return Presence(idle_s=math.inf, on_battery=None, others_share=0.0, minute=720)

    def _on_start(self, task: BatchTask) -> None:
        for onlooker in self.onlookers:
            onlooker.on_units_start(self.name, task)

    def _on_chunk(self, task: BatchTask, chunk: BatchChunk) -> None:
        for onlooker in self.onlookers:
            onlooker.on_chunk(self.name, task, chunk)

    # -- a life -----------------------------------------------------------------------------------

    @property
    def on(self) -> bool:
        """Whether its process runs, joined or not, frozen or not."""
        return self.loop.alive

    def start(self) -> None:
        """Switch it on: its node starts, with the disk of its last life."""
        if self.on or self.disk_gone:
            return
        if self.life:
            self.disk = self.disk.revived()
            self.grid.count_path("restart")
        self.life += 1
        self.loop = self.grid.world.loop(self.name)
        self.host.power_on()
        self.loop.begin(self._live(), f"{CLIENT}life")

    async def _live(self) -> None:
        while True:
            try:
                if await self._run_node():
                    self.grid.world.after(OFF_S, self._ended, self.life)
                    return
            except P2PGridError as error:
                if not error.retryable:
                    self.grid.count_path(f"gave-up:{error.reason or type(error).__name__}")
            self.grid.count_path("start-again")
            await asyncio.sleep(JOIN_AGAIN_S)

    async def _run_node(self) -> bool:
        """Start the node and wait for its end in good order. False before there is a grid to join."""
        world = self.grid.world
        chance = world.fork(f"bytes/{self.name}/{self.life}/{world.now}")
        home = self._home = Home(self.folder, chance.randbytes, disk=self.disk)
        home.prepare()
        membership = memberships.load(home)
        if membership is None:
            invite = self.grid.invite_for(self.plan.roles)
            if invite is not None:
                membership = memberships.accept_invite(home, parse_invite(invite, self.wall_ms()), self.wall_ms())
            elif self.plan.founder:
                membership = memberships.found_grid(home, self.grid.grid_name, chance.randbytes, self.wall_ms())
            else:
                return False
        home.lock()
        ports = Ports(
            clock=self.loop.time, wall_ms=self.wall_ms, rng=world.fork(f"node/{self.name}/{self.life}"), random_bytes=chance.randbytes
        )
        node = self._starting = Node(home, membership, self._config(), ports, self)
        try:
            await node.start()
            if self.plan.behaviour == DIGEST:
                DigestLiar(node, self.grid.poison)
            self.node = node
            if self.plan.founder and self.life == 1:
                self.grid.founded(node)
            self.grid.changed()
            for onlooker in self.onlookers:
                onlooker.on_start(self.name, node)
            await node.stopping.wait()
            await self._let_go(node)
        finally:
            if self.loop.alive:
                await self._close(node, home)
        return True

    async def _let_go(self, node: Node) -> None:
        """Hand over what the node has, as long as its owner gives it."""
        if self._leaves_within_s > 0:
            self.grid.count_path("left")
            left = await node.leave(self._leaves_within_s)
            if left.jobs or left.blobs:
                self.grid.count_path("left-behind")

    async def _close(self, node: Node, home: Home) -> None:
        await node.close()
        home.close()
        if self.node is node:
            self.node = None
            self.grid.changed()
            for onlooker in self.onlookers:
                onlooker.on_close(self.name, node)

    def _config(self) -> NodeConfig:
        plan = self.plan
        policy = Policy(cores=plan.cores, memory_bytes=MEMORY_BYTES, storage_bytes=plan.storage_bytes, native=plan.native)
        return NodeConfig(name=self.name, host=self.host.address, port=PORT, policy=policy)

    def stop(self, *, power: bool, disk_gone: bool = False) -> None:
        """End it at once. ``power``: the whole machine, with what its disk had not written; else only the process."""
        if not self.on:
            return
        joined = self.node is not None
        if power:
            self.host.power_off()
            self.disk.crash()
        else:
            self.host.reset()
            self.disk.kill()
        self.node = None
        self.loop.kill()
        self._clear_up()
        self.disk_gone = self.disk_gone or disk_gone
        if joined:
            for onlooker in self.onlookers:
                onlooker.on_crash(self.name)

    def _clear_up(self) -> None:
        """What the system does when a process has died: its locks and descriptors are gone."""
        if self._starting is not None and hasattr(self._starting, "index"):
            self._starting.index.abandon()
        if self._workers is not None:
            self._workers.abandon()
        if self._home is not None:
            self._home.close()
        self._starting = self._home = None
        self.disk.bury()

    def leave(self, within_s: float = LEAVE_S) -> None:
        """Ask the node to stop in good order, as ``p2pgrid leave`` does; with 0 at once, as Ctrl-C twice does."""
        if self.node is not None:
            self._leaving_s = self.grid.world.now
            self._leaves_within_s = within_s
            self.loop.call_soon(self.node.stopping.set)

    def _ended(self, life: int) -> None:
        """The node has ended in good order: see what it left, then switch the machine off."""
        if not self.on or life != self.life:
            return
        seconds = self.grid.world.now - self._leaving_s - OFF_S
        left = {
            "tasks": len([task for task in self.loop.unfinished() if not task.get_name().startswith(CLIENT)]),
            "timers": self.grid.world.timers_of(self.loop),
            "descriptors": self.disk.open_descriptors,
            "seconds": round(seconds),
        }
        for onlooker in self.onlookers:
            onlooker.at_exit(self.name, left)
        self.host.reset()
        self.disk.kill()
        self.loop.kill()
        self._starting = self._home = None
