"""What every service of a node shares: identity, terms, ports to time, chance, disk and peers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from p2pgrid.core.admission import Policy
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import Limits
from p2pgrid.model.membership import Grid, Member
from p2pgrid.net.api import Clock, WallClock
from p2pgrid.net.methods import Methods
from p2pgrid.net.throttle import Throttle
from p2pgrid.offload import Offload
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.disk import Disk
from p2pgrid.store.index import Index
from p2pgrid.store.ledger import Ledgers
from p2pgrid.store.ledger_writer import LedgerPort
from p2pgrid.wire.keys import SigningKey


@dataclass
class Context:
    """Made once by the node; services read it and never replace its parts."""

    key: SigningKey
    submitter: SigningKey
    grid: Grid
    member: Member
    policy: Policy
    limits: Limits
    clock: Clock
    wall_ms: WallClock
    rng: random.Random
    random_bytes: Callable[[int], bytes]
    methods: Methods
    blobs: BlobStore
    ledgers: Ledgers
    log_port: LedgerPort
    index: Index
    offload: Offload
    disk: Disk
    events: list[Callable[[str, str, tuple[bytes, ...]], None]] = field(default_factory=list)
    """Listeners for what an owner may want to see: (reason code, sentence, ids of what it is about)."""
    offered: frozenset[str] | None = None
    """Runtimes whose cage has held; None: what the policy says counts. Only the self-test changes it."""
    throttle: Throttle = field(init=False)
    """The owner's caps on what goes to other nodes and comes from them."""

    def __post_init__(self) -> None:
        self.throttle = Throttle(self.policy.upload_bytes_per_s, self.policy.download_bytes_per_s, self.clock)

    @property
    def terms(self) -> Policy:
        """The owner's policy, without runtimes whose cage has not held."""
        if self.offered is None:
            return self.policy
        runtimes = tuple(runtime for runtime in self.policy.runtimes if runtime in self.offered)
        return msgspec.structs.replace(self.policy, runtimes=runtimes)

    @property
    def me(self) -> NodeKey:
        """This node's key."""
        return NodeKey(self.key.public)

    def key_for(self, submitter: bytes) -> SigningKey:
        """The key with which this node speaks for a job: the submitter's if this home has it, else its own."""
        return self.submitter if self.submitter.public == submitter else self.key

    def tell(self, reason: str, sentence: str, *about: bytes) -> None:
        """Report something that happened, with its reason code. ``about``: ids of the job, node or blob, by which it is found again."""
        for listen in self.events:
            listen(reason, sentence, about)
