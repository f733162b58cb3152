"""Statements for tests of the core, signed by an oracle: they are taken to be verified."""

from __future__ import annotations

import random

from blake3 import blake3

from p2pgrid.core.lead import Delivered, Granted, Lead, Pulled
from p2pgrid.core.ledger import Ledger
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.job import BatchRef, Derive, Job, KeeperSet, UnitLimits
from p2pgrid.model.work import Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.testing.core.grid import oracle
from p2pgrid.wire.envelope import Signed

EXPIRES_MS = 1 << 50
SUBMITTER, LEAD, KEEPER = b"S" * 32, b"L" * 32, b"K" * 32
A, B, C, D = (NodeKey(letter * 32) for letter in (b"a", b"b", b"c", b"d"))


def job_of(*units: int, quorum: int = 1, attempts: int = 3, derive: Derive | None = None, timeout_s: float = 10.0) -> Signed[Job]:
    manifest = tuple(BatchRef(b"b" * 32, count, 100) for count in units)
    limits = UnitLimits(timeout_s=timeout_s)
    body = Job(EXPIRES_MS, b"n" * 16, 0, "t", "native", b"x", b"", manifest, derive or Derive(), limits, quorum, attempts)
    return oracle(body, SUBMITTER)


def ledger_of(*units: int, quorum: int = 1, attempts: int = 3, derive: Derive | None = None) -> Ledger:
    ledger = Ledger(job_of(*units, quorum=quorum, attempts=attempts, derive=derive))
    ledger.add(keepers(ledger))
    return ledger


def keepers(
    ledger: Ledger, epoch: int = 0, lead: bytes = LEAD, names: tuple[bytes, ...] = (KEEPER,), author: bytes = SUBMITTER
) -> Signed[KeeperSet]:
    return oracle(KeeperSet(EXPIRES_MS, ledger.job.id, epoch, lead, names), author)


def grant(ledger: Ledger, worker: bytes, *ranges: UnitRange, author: bytes = LEAD, group: bytes = b"", nonce: int = 0) -> Signed[Grant]:
    epoch = 0 if author == LEAD else 1
    return oracle(Grant(EXPIRES_MS, ledger.job.id, epoch, worker, group or worker, ranges, nonce=nonce), author)


def digest(value: object) -> bytes:
    return blake3(repr(value).encode()).digest()


def receipt(
    lease: Signed[Grant],
    author: bytes | None = None,
    *ranges: UnitRange,
    value: object = "right",
    outcomes: bytes | None = None,
    cpu_us: int = 1000,
) -> Signed[Receipt]:
    """What a worker says about ranges of its lease (all of them by default): one value for all units."""
    said = ranges or lease.body.ranges
    units = sum(one.units for one in said)
    columns = outcomes if outcomes is not None else bytes(max(0, units))
    body = Receipt(EXPIRES_MS, lease.body.job, lease.id, said, columns, digest(value) * max(0, units), cpu_us, bytes(32))
    return oracle(body, author or lease.body.worker)


def entry(
    batch: int, start: int, units: int, cited: tuple[int, ...], value: object = "right", outcome: int = 0, dissent: tuple[int, ...] = ()
) -> DecisionEntry:
    return DecisionEntry(batch, start, units, outcome, blake3(digest(value) * units).digest(), cited, dissent)


def decision(
    ledger: Ledger, receipts: list[Signed[Receipt]], *entries: DecisionEntry, author: bytes = LEAD, epoch: int = 0
) -> Signed[Decision]:
    return oracle(Decision(EXPIRES_MS, ledger.job.id, epoch, tuple(one.id for one in receipts), entries), author)


def lead_of(*units: int, quorum: int = 1, attempts: int = 3, derive: Derive | None = None, seed: int = 1) -> Lead:
    return Lead(ledger_of(*units, quorum=quorum, attempts=attempts, derive=derive), lambda body: oracle(body, LEAD), random.Random(seed))


def pull(lead: Lead, worker: bytes, want: int = 64, slots: int = 2, now: float = 0.0, group: bytes = b"") -> Signed[Grant] | None:
    """Pull; returns the lease, or None."""
    effects = lead.handle(Pulled(NodeKey(worker), group or worker, slots, want), now, 0)
    lead.check()
    (granted,) = [effect for effect in effects if isinstance(effect, Granted)]
    return granted.grant


def deliver(lead: Lead, one: Signed[Receipt], now: float = 0.0) -> list[object]:
    effects = lead.handle(Delivered(one), now, 0)
    lead.check()
    return list(effects)


def leased(one: Signed[Grant] | None) -> set[tuple[int, int]]:
    """The units of a lease."""
    if one is None:
        return set()
    return {(batch, unit) for batch, start, count, _ in one.body.ranges for unit in range(start, start + count)}
