"""What lies in the job logs of all nodes, decoded once for all checkers.

A statement lies in the logs of its lead and of its keepers: it is decoded when it is first met anywhere, and from then
on known by its bytes. The journal comes first among the onlookers, so that the others find their logs up to date; it
judges nothing itself.

1. A record handed to a log counts as there at once. When a node starts again, or a write failed, the log is read from
   the disk: what was on its way and is not there, is not there.
2. Positions in a log only grow, so that "before" can be asked of any two records of one log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3

from p2pgrid.errors import MalformedError
from p2pgrid.model import log as kinds
from p2pgrid.model.job import Cancel, Job, KeeperSet, Settled
from p2pgrid.model.work import Decision, Grant, Receipt
from p2pgrid.testing.checkers.disklog import read_log
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.levels import Levels
from p2pgrid.testing.observe import Onlooker
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Envelope

if TYPE_CHECKING:
    from p2pgrid.node import Node

STRUCTS: dict[int, Any] = {
    kinds.JOB: Job,
    kinds.KEEPERS: KeeperSet,
    kinds.GRANT: Grant,
    kinds.RECEIPT: Receipt,
    kinds.DECISION: Decision,
    kinds.CANCEL: Cancel,
    kinds.SETTLED: Settled,
}
PENDING_S = 1.0
"""What was handed to a log longer ago is on its disk, or will never be."""

Records = Sequence[tuple[int, bytes]]


class Entry:
    """One record, the same object in whichever log it lies. ``id`` is a statement's id, or the digest of anything else."""

    __slots__ = ("author", "body", "error", "fault", "holds", "id", "kind", "raw", "signature", "signed", "type")

    def __init__(self, kind: int, raw: bytes) -> None:
        self.kind = kind
        self.raw = raw
        self.body: Any = None
        self.author = b""
        self.type = ""
        self.signature = b""
        self.signed = b""
        """Digest of author and body: what is signed besides type and grid."""
        self.error = ""
        """Why it cannot be read at all."""
        self.holds: bool | None = None
        """Whether the signature holds, once somebody looked."""
        self.fault: str | None = None
        """What is wrong with it whatever log it lies in, once somebody looked; empty for nothing."""
        struct = STRUCTS.get(kind)
        if struct is None:
            self.id = blake3(raw).digest()
            if kind not in kinds.NAMES:
                self.error = f"a record of kind {kind}"
            return
        try:
            envelope = decode(raw, Envelope)
            self.body = decode(envelope.body, struct)
        except MalformedError as error:
            self.id, self.error = blake3(raw).digest(), str(error)
            return
        self.type, self.author, self.signature = envelope.type, envelope.author, envelope.signature
        self.id = self.signed = blake3(envelope.author + envelope.body).digest()
        if envelope.type != struct.TYPE:
            self.error = f"a '{envelope.type[:20]}' in the place of a '{struct.TYPE}'"


class Log:
    """One job's log at one node."""

    __slots__ = ("damaged", "failed", "held", "hurt", "job", "leads", "name", "named", "next", "payloads", "pending", "repeats", "torn")

    def __init__(self, name: str, job: bytes) -> None:
        self.name = name
        self.job = job
        self.held: dict[bytes, int] = {}
        """The position of each record by its id."""
        self.next = 0
        self.leads: set[bytes] = set()
        """Nodes that the submitter named lead in keeper sets of this log."""
        self.named: set[bytes] = set()
        """All whom it named."""
        self.payloads: set[bytes] = set()
        """Digests of payloads that receipts of this log speak of."""
        self.pending: dict[bytes, tuple[float, Entry]] = {}
        self.repeats: list[Entry] = []
        """Records of the latest call that were there already."""
        self.failed = False
        """A write failed, and the disk has not been read since."""
        self.hurt = False
        """A write has failed, or a byte was flipped, at some time: records may lack what they build upon."""
        self.damaged = 0
        """Bytes of it that were flipped."""
        self.torn: dict[bytes, None] = {}
        """Records that were on their way when the machine went down: any part of them may be on the disk."""

    def take(self, entry: Entry) -> None:
        """Put a record behind the others, unless it is there."""
        if entry.id in self.held:
            self.repeats.append(entry)
            return
        self.held[entry.id] = self.next
        self.next += 1
        if entry.error:
            return
        if entry.kind == kinds.KEEPERS:
            self.leads.add(entry.body.lead)
            self.named.update((entry.body.lead, *entry.body.keepers))
        elif entry.kind == kinds.RECEIPT:
            self.payloads.add(entry.body.payload)

    def lacks(self, entry: Entry) -> bool:
        """Whether a record builds upon one that is not there."""
        if entry.kind == kinds.PAYLOAD:
            return entry.id not in self.payloads
        if entry.error:
            return False
        if entry.kind == kinds.RECEIPT:
            return entry.body.grant not in self.held
        return entry.kind == kinds.DECISION and not all(known in self.held for known in entry.body.receipts)

    def before(self, one: bytes, other: bytes) -> bool:
        """Whether a record is there, and lies before another one that is."""
        place = self.held.get(one)
        return place is not None and place < self.held[other]


class Reread(NamedTuple):
    """A log as it lies on the disk; ``bare`` are the records that build upon others that are not there."""

    log: Log
    found: list[Entry]
    bare: list[Entry]


class Journal(Onlooker):
    """All logs, all statements, and which machine has which key."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.logs: dict[str, dict[bytes, Log]] = {}
        """By machine, then by job."""
        self.statements: dict[bytes, Entry] = {}
        """By id."""
        self.jobs: dict[bytes, Entry] = {}
        self.levels: dict[bytes, Levels] = {}
        self.nodes: dict[str, Node] = {}
        """The last node that started on each machine."""
        self.machines: dict[bytes, str] = {}
        """Names by node key."""
        self.up: dict[str, None] = {}
        """Machines whose node has started, and neither closed nor crashed since."""
        self.reread: list[Reread] = []
        """Logs that were read from the disk in the latest call of :meth:`on_start`."""
        self._entries: dict[bytes, Entry] = {}
        self._latest: tuple[object, list[Entry]] = (None, [])

    # -- records -------------------------------------------------------------------------

    def entry(self, kind: int, raw: bytes) -> Entry:
        """The one entry for these bytes."""
        if kind in (kinds.PAYLOAD, kinds.BATCH):
            return Entry(kind, raw)
        known = self._entries.get(raw)
        if known is not None and known.kind == kind:
            return known
        entry = self._entries[raw] = Entry(kind, raw)
        if not entry.error:
            self.statements.setdefault(entry.id, entry)
            if kind == kinds.JOB and entry.id not in self.jobs:
                self.jobs[entry.id] = entry
                self.levels[entry.id] = Levels(entry.body)
        return entry

    def entries(self, records: Records) -> list[Entry]:
        """The entries of some records; asked again for the same call, the same list."""
        if self._latest[0] is not records:
            self._latest = records, [self.entry(kind, raw) for kind, raw in records]
        return self._latest[1]

    def log(self, name: str, job: bytes) -> Log:
        """The log of a job at a machine, made if need be."""
        logs = self.logs.setdefault(name, {})
        log = logs.get(job)
        if log is None:
            log = logs[job] = Log(name, job)
        return log

    def key(self, name: str) -> bytes:
        """The key of the node at a machine; empty before its first start."""
        node = self.nodes.get(name)
        return node.key.public if node is not None else b""

    def honest(self, key: bytes) -> bool:
        """Whether the node with this key is known and follows the protocol."""
        name = self.machines.get(key)
        return name is not None and self.view.honest(name)

    # -- what happens --------------------------------------------------------------------

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        log = self.log(name, job)
        if log.failed:
            self._read(log)
        log.repeats = []
        now = self.view.now
        for entry in self.entries(records):
            log.take(entry)
            log.pending[entry.id] = now, entry

    def on_log_durable(self, name: str, job: bytes, records: Records, error: str) -> None:
        log = self.log(name, job)
        if error:
            log.failed = log.hurt = True
        for entry in self.entries(records):
            log.pending.pop(entry.id, None)
            if not error and entry.id not in log.held:
                log.take(entry)

    def on_log_removed(self, name: str, job: bytes) -> None:
        self.logs.get(name, {}).pop(job, None)

    def on_disk_damage(self, name: str, path: str) -> None:
        for log in self.logs.get(name, {}).values():
            if log.job.hex() in path:
                log.hurt = True
                log.damaged += 1

    def on_start(self, name: str, node: Node) -> None:
        if not self.facts.grid:
            self.facts.grid = node.membership.grid.id
        if self.key(name) not in (b"", node.key.public):
            self.logs.pop(name, None)
        self.nodes[name] = node
        self.machines[node.key.public] = name
        self.up[name] = None
        self.reread = [self._read(log) for log in self.logs.get(name, {}).values()]

    def on_crash(self, name: str) -> None:
        self.up.pop(name, None)
        for log in self.logs.get(name, {}).values():
            log.torn.update(dict.fromkeys(log.pending))
            log.pending.clear()

    def on_close(self, name: str, node: Node) -> None:
        self.up.pop(name, None)

    def _read(self, log: Log) -> Reread:
        """Make a log anew from what is on the disk, and what was handed to it just now.

        A record whose ground is missing is passed over, as a node does that reads it.
        """
        path = self.nodes[log.name].home.ledger / f"{log.job.hex()}.log"
        found = [self.entry(kind, raw) for kind, raw in read_log(path, log.job)]
        since = self.view.now - PENDING_S
        recent = {key: pending for key, pending in log.pending.items() if pending[0] >= since}
        log.torn.update({key: None for key in log.pending if key not in recent})
        log.held, log.leads, log.named, log.payloads = {}, set(), set(), set()
        bare: list[Entry] = []
        for entry in found:
            if log.lacks(entry):
                bare.append(entry)
            else:
                log.take(entry)
        for _, entry in recent.values():
            log.take(entry)
        log.pending, log.repeats, log.failed = recent, [], False
        return Reread(log, found, bare)
