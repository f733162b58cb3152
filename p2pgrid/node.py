"""A node, put together. Read it as a table of contents: what is made, in which order it starts and stops."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Protocol

import msgspec

from p2pgrid import __version__, logs
from p2pgrid.core.admission import Policy
from p2pgrid.core.invites import Contact
from p2pgrid.dht.server import GridServer
from p2pgrid.dht.settings import DhtContext
from p2pgrid.errors import ConfigError, P2PGridError
from p2pgrid.machine import Machine, ThisMachine
from p2pgrid.model.ids import JobId, NodeKey, short
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.node import Address, NodeInfo, Offer
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Clock, WallClock
from p2pgrid.net.messages import Hello
from p2pgrid.net.methods import Methods
from p2pgrid.net.pool import Pool
from p2pgrid.runtimes.packages import EnvironmentPolicy, Environments
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.selftest.report import RuntimeReport, current_key
from p2pgrid.runtimes.tasks import PoolPolicy
from p2pgrid.services.announcing import Announcing
from p2pgrid.services.caring import Caring
from p2pgrid.services.charter import Charters
from p2pgrid.services.context import Context
from p2pgrid.services.departing import Departing, Left
from p2pgrid.services.environments import JobEnvironments
from p2pgrid.services.explaining.blob import BlobState
from p2pgrid.services.explaining.me import OwnState
from p2pgrid.services.explaining.peer import PeerState
from p2pgrid.services.explaining.service import Explaining
from p2pgrid.services.explaining.standing import Standing
from p2pgrid.services.files import Files
from p2pgrid.services.happenings import Happenings
from p2pgrid.services.health import Health, nobody_answers
from p2pgrid.services.keeping import Keeping
from p2pgrid.services.leading import Leading
from p2pgrid.services.membership import HomeMembership, Judge, make_invite
from p2pgrid.services.observing import Observing
from p2pgrid.services.owner import Owner
from p2pgrid.services.pausing import Pausing
from p2pgrid.services.peers import Peers
from p2pgrid.services.picturing import Picturing
from p2pgrid.services.pins import Pins
from p2pgrid.services.preparing import Preparing
from p2pgrid.services.provisions import Provisions
from p2pgrid.services.reading import Reading
from p2pgrid.services.scrubbing import Scrubbing
from p2pgrid.services.storing import Storing
from p2pgrid.services.submitting import Submitting
from p2pgrid.services.succession import Succession
from p2pgrid.services.tasks import Tasks
from p2pgrid.services.vouching import Vouching
from p2pgrid.services.watching import Watching
from p2pgrid.services.working import Working
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.disk import disk_errors
from p2pgrid.store.home import Home
from p2pgrid.store.index import Index
from p2pgrid.store.ledger import Ledgers, ReplayReport
from p2pgrid.wire.codec import encode

_log = logging.getLogger(__name__)

PORT_TRIES = 8
LOG_CLOSE_S = 5.0
"""For the disk to take what is queued when the node ends."""
PEERS_FILE = "peers.json"
REMEMBER_SOON_S = 0.5
REMEMBER_S = 300.0
LEAVE_S = 25.0


class Service(Protocol):
    """What a node starts and closes."""

    async def start(self) -> None:
        """Begin."""

    async def close(self) -> None:
        """End all that runs."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a node is run. Sizes in bytes."""

    name: str = ""
    host: str = "0.0.0.0"  # noqa: S104 - a volunteer's node is meant to be reached; embedded nodes use loopback
    port: int = 0
    """TCP and UDP port; 0: any free one."""
    policy: Policy = Policy()
    limits: Limits = DEFAULT_LIMITS
    discover: bool = True
    """Look for other nodes by itself."""
    self_test: bool = False
    """Offer a runtime only when its cage has held."""
    names_runner: bool = False
    """At the founder: name the Python runner of this installation to the grid as soon as the node is up, not when it is first asked for."""
    temporary: bool = False
    """The home is gone after this run: nothing is saved, nobody is told of the end."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node gets time and chance from."""

    clock: Clock
    wall_ms: WallClock
    rng: random.Random
    random_bytes: Callable[[int], bytes]


class Node:
    """One running node of one home. The home must be locked by the caller."""

    def __init__(self, home: Home, membership: HomeMembership, config: NodeConfig, ports: Ports, machine: Machine | None = None) -> None:
        """``machine``: what it runs on; by default the one of this process."""
        self.home = home
        self.machine = machine or ThisMachine()
        self.membership = membership
        self.config = config
        self.ports = ports
        self.key = home.node_key()
        self.stopping = asyncio.Event()
        self._closing = AsyncExitStack()
        self._judge = Judge(membership.grid, ports.wall_ms)
        self.member = self._judge.judge_own(NodeKey(self.key.public), membership.chain)
        self._instance = ports.random_bytes(16)
        self._remembering = Tasks("node")
        self._started_s = ports.clock()
        self._up = False
        self._charter: Callable[[], bytes] = bytes
        """The grid's charter, for hellos: nobody knows one before the services are there."""
        self._lacking: Callable[[], tuple[tuple[str, str], ...]] = tuple
        """Runtimes that cannot be offered now, and why."""
        self._terms: Callable[[], Policy] = lambda: config.policy
        """What this node offers; before the services are there, what the owner would offer."""

    async def start(self) -> None:
        """Open the disk, the network and the DHT; join the grid. Raises ConfigError, or what the first contact said.

        Whatever was opened is closed by :meth:`close`, also after an error here.
        """
        self._open_disk()
        self.methods = Methods()
        await self._open_network()
        self._make_services()
        await self._join()
        self.home.announce(*self._owner_address())
        self._say_started()

    def _say_started(self) -> None:
        """The first and, when it is closed, the last line in the log of a node that came up."""
        policy, key = self.config.policy, self.key.public
        addresses = [f"{address.host}:{address.port}" for address in self.pool.addresses()]
        cores, storage_bytes = policy.cores, policy.storage_bytes
        logs.line(
            _log,
            logging.INFO,
            logs.STARTED,
            node=key,
            version=__version__,
            addresses=addresses,
            cores=cores,
            storage_bytes=storage_bytes,
        )
        self._up = True

    def _open_disk(self) -> None:
        home, ports, machine = self.home, self.ports, self.machine
        with disk_errors("cleaning the home"):
            for left in sorted(home.folder.glob("*.tmp")):
                machine.disk.unlink(left)  # What an earlier life was about to rename when it was killed.
        self.index, self.index_report = Index.open(home.index, sync=machine.disk.syncs)
        scan = self.index_report.rebuilt or not self.index_report.was_clean
        storage = self.config.policy.storage_bytes
        self._closing.callback(self.index.close)
        self.blobs = BlobStore(
            home.blobs,
            storage,
            self.index,
            now_ms=ports.wall_ms(),
            scan=scan,
            owner_quota=self._quota_of,
            disk=machine.disk,
            limits=self.config.limits,
        )
        self.ledgers = Ledgers(home.ledger, ports.random_bytes, disk=machine.disk, limits=self.config.limits)
        self.notes = self._found_on_disk()
        self.log_port = machine.log_port(self.ledgers)
        self._closing.callback(self.log_port.close, LOG_CLOSE_S)
        self.offload = machine.offload()
        self._closing.push_async_callback(self.offload.close)

    def _found_on_disk(self) -> list[str]:
        """What was not as the last life had left it. Nothing is made anew or given up without a word."""
        recovery, notes = self.blobs.recovery, list[str]()
        if self.index_report.set_aside or (self.index_report.rebuilt and (recovery.blobs or self.ledgers.jobs())):
            notes.append(f"the index was made anew from what lies on the disk: {self.index_report.why}")
        if recovery.why:
            notes.append(f"in the blob store: {recovery.why}")
        return notes

    def _quota_of(self, owner: bytes) -> int | None:
        """The bytes of blobs that a member may have here: half of what is lent; this node itself may use all."""
        return None if owner == self.key.public else self.config.policy.storage_bytes // 2

    async def _open_network(self) -> None:
        """One port number for TCP and UDP; without a wish for one, another is tried when it is half taken."""
        config, ports = self.config, self.ports
        for attempt in range(PORT_TRIES):
            transport = self.machine.transport(self.key, config.host, config.port, config.limits)
            self.pool = Pool(
                NodeKey(self.key.public),
                [transport],
                self.methods,
                self._judge.for_session,
                self._hello,
                ports.wall_ms,
                config.limits,
            )
            await self.pool.start()
            self.port = transport.addresses()[0].port
            context = DhtContext(
                key=self.key,
                grid=self.membership.grid.id,
                credential=encode(self.membership.chain),
                authorise=self._judge.for_datagram,
                clock=ports.clock,
                wall_clock_ms=ports.wall_ms,
                rng=ports.rng,
                limits=config.limits,
            )
            self.dht = GridServer(context, self.machine.carrier(config.host, self.port))
            try:
                await self.dht.start()
            except BaseException as error:
                await self.pool.close()
                if not isinstance(error, ConfigError) or config.port or attempt == PORT_TRIES - 1:
                    raise
            else:
                self._closing.push_async_callback(self.pool.close)
                self._closing.push_async_callback(self.dht.close)
                return

    def _make_services(self) -> None:
        config, ports = self.config, self.ports
        context = Context(
            key=self.key,
            submitter=self.home.submitter_key(),
            grid=self.membership.grid,
            member=self.member,
            policy=config.policy,
            limits=config.limits,
            clock=ports.clock,
            wall_ms=ports.wall_ms,
            rng=ports.rng,
            random_bytes=ports.random_bytes,
            methods=self.methods,
            blobs=self.blobs,
            ledgers=self.ledgers,
            log_port=self.log_port,
            index=self.index,
            offload=self.offload,
            disk=self.machine.disk,
        )
        inputs = self.home.work / "inputs"
        with disk_errors("preparing the folder for inputs"):
            self.machine.disk.make_folder(inputs)
            for left in inputs.iterdir():
                self.machine.disk.unlink(left)
        self.context = context
        self.happenings = Happenings(context)
        self.health = Health(context, self.pool, self.home.folder)
        self._terms = lambda: context.terms
        self.workers = self.machine.workers(self.home.work / "units", self._pool_policy(), self.offload)
        self.peers = Peers(context, self.pool, self.dht, self.info)
        self.storing = Storing(context, self.peers, self.dht)
        self.watching = Watching(context, self.peers, self.home, keeps=not config.temporary)
        self.caring = Caring(context, self.peers, self.storing, self.dht, score=self.watching.share)
        self.scrubbing = Scrubbing(context, self.peers, self.storing, self.caring)
        self.keeping = Keeping(context, self.dht, self.home.ledger)
        self.reading = Reading(context, self.peers, self.dht, self.keeping)
        self.leading = Leading(context, self.peers, self.storing, self.keeping)
        self.submitting = Submitting(context, self.storing, self.keeping, self.leading)
        self.succession = Succession(context, self.peers, self.keeping, self.reading, self.leading)
        self._make_worker_side(context, inputs)
        self.departing = Departing(context, self.peers, self.working, self.succession, self.caring)
        self._make_owner_side(context)
        for note in self.notes:
            context.tell(Reason.REBUILT, note)
        loop = asyncio.get_running_loop()

        def note_log(job: JobId, report: ReplayReport) -> None:
            loop.call_soon_threadsafe(context.tell, Reason.REBUILT, f"the log of job {short(job)}: {report.why}")

        self.ledgers.on_unsound = note_log

    def _make_worker_side(self, context: Context, inputs: Path) -> None:
        """What runs units, and decides whose and when. ``inputs``: a folder for small input files."""
        config = self.config
        self.charters = Charters(
            context,
            self.peers,
            self.storing,
            self.home,
            self.membership.root_seed,
            self.machine.runner,
            keeps=not config.temporary,
            at_start=config.names_runner and not config.temporary,
        )
        self.vouching = self._make_vouching(context) if config.self_test and not config.temporary else None
        self._lacking = self.vouching.lacking if self.vouching else tuple
        self._charter = lambda: self.charters.raw
        self.environments = JobEnvironments(context, self.storing, self._packages())
        provisions = Provisions(self.storing, self.charters, self.environments)
        preparing = Preparing(context, self.storing, inputs, provisions, own_grid=config.temporary)
        compiling = self.workers.compiling if isinstance(self.workers, WorkerPool) else lambda job: False
        announcing = Announcing(context, self.peers, self.environments.step, compiling)
        self.working = Working(context, self.peers, self.storing, self.workers, preparing, announcing)
        self.pausing = Pausing(
            context,
            self.working,
            self.home,
            self.machine.presence,
            self.vouching.lines if self.vouching else None,
            keeps=not config.temporary,
        )

    def _make_vouching(self, context: Context) -> Vouching:
        async def test(runtimes: Sequence[str], runner: Path | None) -> tuple[RuntimeReport, ...]:
            return await self.machine.selftest(self._pool_policy(), self.offload, runtimes, runner)

        def changed() -> None:
            self.working.think_again()
            self.peers.renew()

        folder = self.machine.caches() / "selftest"
        key = current_key(self._pool_policy().cage)
        return Vouching(
            context, self.charters, test, key, folder, changed, lambda: self.stopping.is_set() or self.pausing.state.reason is not None
        )

    def _packages(self) -> Environments:
        """Where the packages of jobs are set up."""
        policy = self.config.policy
        terms = EnvironmentPolicy(mode=policy.environments, names=frozenset(policy.packages))  # type: ignore[arg-type]
        return Environments(self.machine.reachable(self.home.work / "packages"), terms, self.offload, self.ports.clock)

    def _pool_policy(self) -> PoolPolicy:
        """Bounds of the processes that units run in."""
        policy = self.config.policy
        slots = max(1, policy.cores)
        return PoolPolicy(
            slots=slots,
            memory_bytes=policy.memory_bytes // slots,
            nice=policy.nice,
            programs=self.machine.caches() / "programs",
        )

    def _make_owner_side(self, context: Context) -> None:
        """What serves the owner of this node."""
        self.files = Files(
            context,
            self.peers,
            self.storing,
            self.dht,
            self.home,
            care=self.caring.report,
            share=self.watching.share,
            score=self.watching.score,
        )
        self.pins = Pins(context, self.files, self.storing)
        self.picturing = Picturing(context, self.peers, self.keeping, self.leading, self.reading)
        self.blob_state = BlobState(context, self.peers, self.files, self.pins)
        self.explaining = Explaining(context, self.peers, self.leading, self.reading, self.happenings, *self._explainers(context))
        self.observing = Observing(
            context,
            self.peers,
            self.dht,
            self.leading,
            self.keeping,
            self.working,
            self.pausing,
            self.happenings,
            self.machine,
            self.info,
            self.home.folder,
        )
        self.owner = Owner(context, self.submitting, self.leading, self.reading, self.succession, self.stopping.set, self.invite)

    def _explainers(self, context: Context) -> tuple[OwnState, PeerState]:
        """Who says why this node and others do nothing."""
        standing = Standing(context, self.peers, self.pool, self.dht, self.health, self.membership)
        own = OwnState(context, standing, self.health, self.pausing, self.working, self.happenings)
        return own, PeerState(context, self.peers, standing, self.health, self.leading, self.watching, self.happenings)

    async def _join(self) -> None:
        """Meet the grid: over a session first, which tells why it refuses, then in the DHT."""
        self._closing.push_async_callback(self.workers.close)
        await self.workers.start()
        for service in (self.peers, self.storing, self.submitting, self.files, self.pins):
            self._closing.push_async_callback(service.close)
        care: list[Service] = [self.caring, self.scrubbing, self.charters, self.environments, self.observing]
        if self.vouching is not None:
            care.insert(0, self.vouching)  # What is offered is known before anybody is met.
        begun: list[Service] = [self.watching, self.keeping, self.leading, self.succession, self.pausing, self.working, *care]
        for starting in begun:
            self._closing.push_async_callback(starting.close)
            await starting.start()
        contacts = self._contacts()
        if contacts:
            await self._first_contact(contacts)
        await self.dht.bootstrap([(NodeKey(contact.key), contact.host, contact.port) for contact in contacts])
        if not self.config.temporary:
            self._closing.push_async_callback(self.peers.withdraw)
            self._closing.callback(self._save_peers)
            self._closing.push_async_callback(self._remembering.close)
            self._remembering.spawn(self._remember(), "peers")
        await self.peers.start(discover=self.config.discover)
        self.pins.start()

    def _contacts(self) -> list[Contact]:
        """Whom to begin with: peers of the last run, then those of the invite."""
        found: dict[bytes, Contact] = {}
        with suppress(OSError, ValueError, RecursionError):
            saved = json.loads((self.home.folder / PEERS_FILE).read_text())
            for key, host, port in GridServer.peers_from_persisted(saved):
                found[key] = Contact(key, host, port)
        for contact in self.membership.contacts:
            found.setdefault(contact.key, contact)
        found.pop(self.key.public, None)
        return list(found.values())

    async def _first_contact(self, contacts: list[Contact]) -> None:
        """Raises what the contacts said if none lets this node in; a grid that is away is no reason for a known member to stop."""
        dials = [self.pool.session(NodeKey(contact.key), [Address("tls", contact.host, contact.port)]) for contact in contacts]
        answers = await asyncio.gather(*dials, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, P2PGridError):
                raise answer
        tried = [(contact, answer if isinstance(answer, P2PGridError) else None) for contact, answer in zip(contacts, answers, strict=True)]
        self.health.note_contacts(tried)
        errors = [error for _, error in tried if error is not None]
        if len(errors) < len(answers):
            return
        # Who has another's address now has refused nobody.
        refusals = [error for error in errors if not error.retryable and error.reason != Reason.WRONG_PEER]
        if refusals:
            raise refusals[0]
        if not (self.home.folder / PEERS_FILE).exists():
            raise nobody_answers(self.health.contacts)

    # -- what it says of itself ----------------------------------------------------------

    def _hello(self) -> Hello:
        return Hello(
            grid=self.membership.grid.id,
            wall_ms=self.ports.wall_ms(),
            credentials=tuple(self.membership.chain),
            info=encode(self.info()),
            instance=self._instance,
            charter=self._charter(),
        )

    def info(self) -> NodeInfo:
        """This node's addresses and offer."""
        policy = self._terms()
        runtimes = policy.runtimes if policy.cores else ()
        offer = Offer(policy.cores, policy.memory_bytes, policy.storage_bytes, self.machine.platform, self.machine.python, runtimes)
        roles = tuple(sorted(self.member.roles))
        return NodeInfo(self.pool.addresses(), roles, __version__, self.config.name, offer, self._lacking())

    def invite(self, roles: tuple[str, ...], expires_ms: int) -> str:
        """An invite to this node's grid, with this node and a few others as contacts."""
        contacts = [Contact(self.key.public, address.host, address.port) for address in self.pool.addresses() if address.kind == "tls"]
        for peer in list(self.peers.live())[:2]:
            tls = [address for address in self.peers.info(peer).addresses if address.kind == "tls"]
            contacts += [Contact(peer, address.host, address.port) for address in tls[:1]]
        return make_invite(self.membership, roles, expires_ms, contacts, self.ports.random_bytes)

    def _owner_address(self) -> tuple[str, int]:
        """Where the owner's command line finds this node: loopback, unless it listens on one address only."""
        if self.config.host == "0.0.0.0":  # noqa: S104 - compared, not bound
            return "127.0.0.1", self.port
        if self.config.host == "::":
            return "::1", self.port
        return self.config.host, self.port

    # -- the end -----------------------------------------------------------------------------

    async def leave(self, within_s: float = LEAVE_S) -> Left:
        """Hand over to the others what this node has, at most for ``within_s`` seconds; :meth:`close` comes after it."""
        if self.config.temporary or within_s <= 0:
            return Left(0, 0)
        return await self.departing.leave(within_s)

    async def close(self) -> None:
        """Leave in good order, the last that was opened first. Bounded in time; nothing is left running."""
        await self._closing.aclose()
        if self._up:
            self._up = False
            seconds, units = self.ports.clock() - self._started_s, self.working.done
            logs.line(_log, logging.INFO, logs.STOPPED, node=self.key.public, seconds=seconds, units=units)

    def _save_peers(self) -> None:
        peers = self.dht.peers_to_persist()
        if peers:
            with suppress(P2PGridError):
                self.home.write_private(PEERS_FILE, json.dumps(peers).encode())

    async def _remember(self) -> None:
        """Who is there is saved soon and then now and again: a node that is killed must find its grid again, too."""
        delay_s = 0.0
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(REMEMBER_S, max(REMEMBER_SOON_S, delay_s * 2))
            peers = self.dht.peers_to_persist()
            if peers:
                with suppress(P2PGridError):
                    await self.offload.run(self.home.write_private, PEERS_FILE, json.dumps(peers).encode())
