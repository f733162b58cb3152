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

    __slots__ = (
        "batches",
        "damaged",
        "failed",
        "first",
        "held",
        "hurt",
        "job",
        "leads",
        "name",
        "named",
        "newest",
        "next",
        "over",
        "payloads",
        "pending",
        "repeats",
        "submitter",
        "torn",
    )

    def __init__(self, name: str, job: bytes) -> None:
        self.name = name
        self.job = job
        self.held: dict[bytes, int] = {}
        """The position of each record by its id."""
        self.next = 0
        self.submitter = b""
        """Who signed the job, once it is there."""
        self.first: set[bytes] = set()
        """Nodes that the submitter itself named lead in keeper sets of this log."""
        self.leads: set[bytes] = set()
        """Nodes that it named lead, or somebody whom an earlier set of this log names."""
        self.named: set[bytes] = set()
        """Leads and keepers of all these sets."""
        self.newest: Entry | None = None
        """The keeper set that says who leads now: of the largest epoch, of those the one with the largest id."""
        self.batches: set[bytes] = set()
        """Digests of the batches that are there."""
        self.over = False
        """Whether an end of the job, or its cancel, is there."""
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
        if entry.kind == kinds.JOB and entry.id == self.job:
            self.submitter = entry.author
        elif entry.kind == kinds.BATCH:
            self.batches.add(entry.id)
        elif entry.kind == kinds.KEEPERS and self.may_name(entry.author):
            self._name(entry)
        elif entry.kind == kinds.RECEIPT:
            self.payloads.add(entry.body.payload)
        elif entry.kind in (kinds.SETTLED, kinds.CANCEL):
            self.over = True

    def may_name(self, author: bytes) -> bool:
        """Whether somebody may say who keeps the job: the submitter, and whom a set that holds names."""
        return author == self.submitter or author in self.named

    def _name(self, entry: Entry) -> None:
        body: KeeperSet = entry.body
        self.leads.add(body.lead)
        self.named.update((body.lead, *body.keepers))
        if entry.author == self.submitter:
            self.first.add(body.lead)
        if self.newest is None or (self.newest.body.epoch, self.newest.id) < (body.epoch, entry.id):
            self.newest = entry

    def forget(self) -> None:
        """It is to be read anew; positions go on."""
        self.held, self.first, self.leads, self.named = {}, set(), set(), set()
        self.payloads, self.batches, self.submitter, self.newest, self.over = set(), set(), b"", None, False

    def whole(self, job: Job) -> bool:
        """Whether the job and all its batches are there: so that whoever has it can go on with it."""
        return self.job in self.held and len(self.batches) >= len({reference.blob for reference in job.manifest})

    def lacks(self, entry: Entry) -> bool:
        """Whether a record builds upon one that is not there."""
        if entry.kind == kinds.PAYLOAD:
            return entry.id not in self.payloads
        if entry.error:
            return False
        if entry.kind == kinds.KEEPERS:
            return not self.may_name(entry.author)
        if entry.kind in (kinds.GRANT, kinds.DECISION) and entry.author not in (self.named if entry.body.epoch else self.first):
            return True
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
        self.carriers_then: dict[bytes, list[str]] = {}
        """By job: who could go on with it when the liveness phase was over."""
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

    def sets_before(self, log: Log, entry: Entry) -> list[Entry]:
        """The keeper sets that lie before a record in a log, in their order there."""
        place = log.held[entry.id]
        found = [(at, self.statements[one]) for one, at in log.held.items() if at < place and one in self.statements]
        return [known for _, known in sorted(found, key=lambda one: one[0]) if known.kind == kinds.KEEPERS]

    def newest(self, job: bytes) -> Entry | None:
        """The newest keeper set of a job in the logs of the nodes that run."""
        found = [log.newest for name in self.up if (log := self.logs.get(name, {}).get(job)) is not None and log.newest is not None]
        return max(found, key=lambda entry: (entry.body.epoch, entry.id), default=None)

    def carriers(self, job: bytes) -> list[str]:
        """Machines that run, were named for a job, may lead it, and have all of it: each of them can go on with it."""
        statement = self.jobs.get(job)
        found = []
        for name in self.up:
            log = self.logs.get(name, {}).get(job)
            if log is None or statement is None or log.failed or not log.whole(statement.body):
                continue
            if self.key(name) in log.named and "submit" in self.nodes[name].member.roles:
                found.append(name)
        return found

    def over(self, job: bytes) -> bool:
        """Whether a node that runs has the end of a job in its log."""
        return any((log := self.logs.get(name, {}).get(job)) is not None and log.over for name in self.up)

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

    def at_end(self) -> None:
        self.carriers_then = {job: self.carriers(job) for job in self.jobs}

    def _read(self, log: Log) -> Reread:
        """Make a log anew from what is on the disk, and what was handed to it just now.

        A record whose ground is missing is passed over, as a node does that reads it.
        """
        path = self.nodes[log.name].home.ledger / f"{log.job.hex()}.log"
        found = [self.entry(kind, raw) for kind, raw in read_log(path, log.job)]
        since = self.view.now - PENDING_S
        recent = {key: pending for key, pending in log.pending.items() if pending[0] >= since}
        log.torn.update({key: None for key in log.pending if key not in recent})
        log.forget()
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
