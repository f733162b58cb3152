"""Made-up histories of a small grid, told to the checkers event by event, with real signatures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from blake3 import blake3

from p2pgrid.core.admission import Policy
from p2pgrid.model import log as kinds
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import GridId, JobId, StatementId
from p2pgrid.model.job import BatchRef, Cancel, Derive, Job, KeeperSet, Settled, UnitLimits
from p2pgrid.model.statement import Statement
from p2pgrid.model.work import OK, Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.node import Node
from p2pgrid.runtimes.tasks import BatchTask, Code, JobKey
from p2pgrid.store.ledger import JobLog
from p2pgrid.testing.checkers import Facts, Journal, all_checkers, collect, find
from p2pgrid.testing.checkers.bounds import BoundsChecker
from p2pgrid.testing.observe import Onlooker
from p2pgrid.testing.plans.scenario import JobPlan
from p2pgrid.testing.verdict import Verdict
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Signed, seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import Payload

GRID = GridId(b"g" * 32)
EPOCH_MS = 1_700_000_000_000
DAY_MS = 86_400_000
SUBMITTER = SigningKey(b"\x51" * 32)
NAMES = ("lead", "keeper", "a", "b", "c", "d")
KEYS = {name: SigningKey(bytes([number + 1]) * 32) for number, name in enumerate(NAMES)}
KIND_OF = {name: kind for kind, name in kinds.NAMES.items()}


def public(name: str) -> bytes:
    return KEYS[name].public


class Blobs:
    """The blobs of a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: set[bytes] = set()

    def keep(self, content: bytes) -> Path:
        """Store a blob; returns where its content lies."""
        blob = blob_id_of(content)
        self.held.add(blob)
        path = self.folder / blob.hex()[:2] / blob.hex()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def has(self, blob: bytes) -> bool:
        return blob in self.held

    def usage(self) -> Any:
        return SimpleNamespace(used_bytes=0)


def node_of(name: str, folder: Path, **policy: Any) -> Any:
    """As much of a node as checkers look at."""
    key = KEYS[name]
    return SimpleNamespace(
        key=key,
        membership=SimpleNamespace(grid=SimpleNamespace(id=GRID)),
        home=SimpleNamespace(ledger=folder / name, blobs=folder / name / "blobs"),
        config=SimpleNamespace(policy=Policy(**{"cores": 2, "storage_bytes": 1 << 30, **policy}), host="10.0.0.1"),
        member=SimpleNamespace(roles=frozenset(("work", "store", "submit", "native"))),
        context=SimpleNamespace(submitter=SUBMITTER if name == "lead" else key),
        working=SimpleNamespace(worker=SimpleNamespace(running=0), _refused={}),
        blobs=Blobs(folder / name / "blobs"),
        dht=SimpleNamespace(is_server=True),
        keeping=SimpleNamespace(log_bytes=0),
        stopping=SimpleNamespace(is_set=lambda: False),
        machine=SimpleNamespace(disk=SimpleNamespace(free_bytes=None)),
    )


class View:
    """The grid as the checkers see it."""

    def __init__(self) -> None:
        self.now = 10.0
        self.nodes: dict[str, Any] = {}
        self.skew_s: dict[str, float] = {}
        self.liars: set[str] = set()

    def wall_ms(self, name: str = "") -> int:
        return EPOCH_MS + int((self.now + self.skew_s.get(name, 0.0)) * 1000)

    def living(self) -> dict[str, Node]:
        return cast(dict[str, Node], dict(self.nodes))

    def honest(self, name: str) -> bool:
        return name not in self.liars


def digest_of(value: object) -> bytes:
    return blake3(encode(value)).digest()


class Story:
    """Tells events to all checkers. Statements are made for one job of two batches with four units each."""

    def __init__(self, folder: Path, *, quorum: int = 2, derive: Derive | None = None, **facts: Any) -> None:
        self.facts = Facts(**facts)
        # The tables of these nodes are not those of real ones.
        self.checkers: list[Onlooker] = [one for one in all_checkers(self.facts) if not isinstance(one, BoundsChecker)]
        self.view = View()
        self.folder = folder
        for checker in self.checkers:
            checker.attach(self.view)
        for name in NAMES:
            (folder / name).mkdir(exist_ok=True)
            self.start(name)
        self.quorum = quorum
        manifest = (BatchRef(b"0" * 32, 4, 10), BatchRef(b"1" * 32, 4, 10))
        self.expires_ms = EPOCH_MS + DAY_MS
        body = Job(self.expires_ms, b"n" * 16, EPOCH_MS, "t", "native", b"x", b"", manifest, derive or Derive(), UnitLimits(), quorum)
        self.job = seal(body, SUBMITTER, GRID)
        self.id = bytes(self.job.id)
        self.nonce = 0

    # -- events ----------------------------------------------------------------------

    def tell(self, event: str, *arguments: Any) -> None:
        for checker in self.checkers:
            getattr(checker, event)(*arguments)

    def start(self, name: str, node: Any = None) -> Any:
        node = node or node_of(name, self.folder)
        self.view.nodes[name] = node
        self.tell("on_start", name, node)
        return node

    def crash(self, name: str) -> Any:
        node = self.view.nodes.pop(name)
        self.tell("on_crash", name)
        return node

    def log(self, name: str, *records: Signed[Any] | bytes | tuple[int, bytes], durable: bool = True) -> list[tuple[int, bytes]]:
        """Hand records to a log: statements, payloads (bytes), or (kind, bytes)."""
        lines = [record_of(record) for record in records]
        self.tell("on_log", name, self.id, lines)
        if durable:
            self.write(name, lines)
            self.tell("on_log_durable", name, self.id, lines, "")
        return lines

    def write(self, name: str, lines: Sequence[tuple[int, bytes]]) -> Path:
        """Put records on the disk of a machine, as a node does."""
        path = self.folder / name / f"{self.id.hex()}.log"
        log, _ = JobLog.open(path, JobId(StatementId(self.id)), random.Random(name).randbytes)
        log.append(lines)
        return path

    # -- statements --------------------------------------------------------------------

    def keepers(self, lead: str = "lead", names: Sequence[str] = ("keeper",), key: SigningKey = SUBMITTER, epoch: int = 0) -> Signed[Any]:
        return self.seal(KeeperSet(self.expires_ms, self.id, epoch, public(lead), tuple(public(name) for name in names)), key)

    def leads(self, name: str, epoch: int) -> Signed[Any]:
        """A keeper set by which a node that was named leads from now on."""
        return self.keepers(name, ("lead",), KEYS[name], epoch)

    def grant(self, worker: str, *ranges: UnitRange, by: str = "lead", epoch: int = 0, group: bytes = b"", **fields: Any) -> Signed[Any]:
        self.nonce += 1
        known = {"expires_ms": self.expires_ms, "job": self.id, "epoch": epoch, "worker": public(worker), "group": group or public(worker)}
        return self.seal(Grant(**{**known, "ranges": ranges or (UnitRange(0, 0, 4),), "nonce": self.nonce, **fields}), KEYS[by])

    def payload(self, values: Sequence[object]) -> bytes:
        return encode(Payload([msgspec.Raw(encode(value)) for value in values]))

    def receipt(self, grant: Signed[Any], values: Sequence[object] = (0, 1, 4, 9), *, by: str = "", **fields: Any) -> Signed[Any]:
        """What a worker says; one value for each unit of the grant."""
        known = {
            "expires_ms": self.expires_ms,
            "job": self.id,
            "grant": grant.id,
            "ranges": grant.body.ranges,
            "outcomes": bytes(len(values)),
            "digests": b"".join(digest_of(value) for value in values),
            "cpu_us": 1,
            "payload": blake3(self.payload(values)).digest(),
        }
        worker = next(name for name in NAMES if public(name) == grant.body.worker)
        return self.seal(Receipt(**{**known, **fields}), KEYS[by or worker])

    def entry(self, values: Sequence[object] = (0, 1, 4, 9), cited: Sequence[int] = (0, 1), **fields: Any) -> DecisionEntry:
        root = blake3(b"".join(digest_of(value) for value in values)).digest()
        known = {"batch": 0, "start": 0, "units": len(values), "outcome": OK, "root": root, "cited": tuple(cited), "dissent": ()}
        return DecisionEntry(**{**known, **fields})

    def decision(self, receipts: Sequence[Signed[Any]], *entries: DecisionEntry, by: str = "lead", epoch: int = 0) -> Signed[Any]:
        body = Decision(self.expires_ms, self.id, epoch, tuple(bytes(receipt.id) for receipt in receipts), entries or (self.entry(),))
        return self.seal(body, KEYS[by])

    def settled(self, done: int, failed: int, values: Sequence[object]) -> Signed[Any]:
        root = blake3(b"".join(digest_of(value) for value in values)).digest()
        return self.seal(Settled(self.expires_ms, self.id, done, failed, root), SUBMITTER)

    def cancel(self) -> Signed[Any]:
        return self.seal(Cancel(self.expires_ms, self.id), SUBMITTER)

    def seal(self, body: Statement, key: SigningKey, grid: GridId = GRID) -> Signed[Any]:
        return seal(body, key, grid)

    def head(self) -> list[Signed[Any]]:
        return [self.job, self.keepers()]

    def whole(self, *names: str) -> None:
        """The job and its batches lie at these machines: each can go on with it."""
        for name in names:
            records = [one for one in self.head() if one.id not in self.held(name)]
            self.log(name, *records, (kinds.BATCH, b"one"), (kinds.BATCH, b"two"))

    def held(self, name: str) -> dict[bytes, int]:
        """What lies in a log."""
        return find(self.checkers, Journal).log(name, self.id).held

    def accept(self, *expected: object, name: str = "lead", **plan: Any) -> None:
        """A job is taken; ``expected``: its right values."""
        self.tell("on_job", name, self.id, JobPlan(quorum=self.quorum, **plan), 1, expected or (0, 1, 4, 9, 16, 25, 36, 49))

    def task(self, *, job: bytes = b"", submitter: bytes = b"", units: int = 4, **fields: Any) -> BatchTask:
        key = JobKey(submitter or SUBMITTER.public, job or self.id)
        return BatchTask(job=key, code=Code(), inputs=[msgspec.Raw(b"\x00")] * units, **fields)

    # -- what came of it -----------------------------------------------------------------

    def broken(self) -> list[str]:
        """The invariants that broke, each as often as it did, in the order of time."""
        return [violation.invariant for violation in self.verdict().violations]

    def verdict(self) -> Verdict:
        verdict = Verdict(scenario="made up", seed=0)
        collect(self.checkers, verdict)
        return verdict

    def good(self, name: str = "lead") -> list[Signed[Any] | bytes]:
        """Everything of a job of which the first batch was decided with a quorum of two."""
        one, two = self.grant("a"), self.grant("b")
        first, second = self.receipt(one), self.receipt(two)
        records: list[Signed[Any] | bytes] = [
            *self.head(),
            one,
            two,
            first,
            self.payload((0, 1, 4, 9)),
            second,
            self.decision([first, second]),
        ]
        self.log(name, *records)
        return records


def record_of(record: Signed[Any] | bytes | tuple[int, bytes]) -> tuple[int, bytes]:
    if isinstance(record, tuple):
        return record
    if isinstance(record, bytes):
        return kinds.PAYLOAD, record
    return KIND_OF[record.body.TYPE], record.raw
