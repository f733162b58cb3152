"""Statements that must not count: each breaks one rule, and each must be refused with a reason.

They are built from what a run knows at the moment, so that everything but the broken rule is plausible. Signatures
are not part of this: a forger signs with its own key, as a hostile member would.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import P2PGridError
from p2pgrid.model.job import Cancel, KeeperSet, Settled
from p2pgrid.model.work import ANSWERS, OK, Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.wire.codec import digest_of
from p2pgrid.wire.envelope import Signed

EXPIRES_MS = 1 << 50
THIEF = b"T" * 32
NOBODY = b"N" * 32
AT_ONCE = 3

Sign = Callable[[Any, bytes], Signed[Any]]
Take = Callable[[Signed[Any]], object]


STRANGER = b"\x05" * 32
"""Never named for any job."""


class Forger:
    """Forges against one job. ``deliver`` hands a receipt to the lead; ``keep`` hands a statement to a keeper's ledger."""

    def __init__(self, sign: Sign, rng: random.Random, deliver: Take, keep: Take) -> None:
        self._sign = sign
        self._rng = rng
        self._deliver = deliver
        self._keep = keep
        self.refused: Counter[str] = Counter()
        """By reason."""
        self.tried: Counter[str] = Counter()
        """By kind of forgery."""

    def forge(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> None:
        """Try a few kinds of forgery drawn at random. Raises AssertionError when one is taken."""
        if ledger.grants and ledger.receipt_list:
            for kind in self._rng.sample(KINDS, AT_ONCE):
                self._try(kind, ledger, workers, keeper)

    def _try(self, kind: Kind, ledger: Ledger, workers: list[bytes], keeper: bytes) -> None:
        signed, to_lead = kind(self, ledger, workers, keeper)
        name = kind.__name__.lstrip("_")
        self.tried[name] += 1
        try:
            (self._deliver if to_lead else self._keep)(signed)
        except P2PGridError as error:
            self.refused[str(error.reason)] += 1
            return
        raise AssertionError(f"a forgery was taken: {name}")

    # -- receipts, to the lead ----------------------------------------------------------

    def _grant(self, ledger: Ledger) -> Signed[Grant]:
        return self._rng.choice(list(ledger.grants.values()))

    def _lies(self, units: int) -> bytes:
        return b"".join(digest_of(b"forged %d" % unit) for unit in range(units))

    def _receipt(self, lease: Signed[Grant], ranges: tuple[UnitRange, ...], **changes: Any) -> Receipt:
        units = sum(unit_range.units for unit_range in ranges)
        given: dict[str, Any] = {"job": lease.body.job, "grant": lease.id, "outcomes": bytes(units), "digests": self._lies(units)}
        return Receipt(EXPIRES_MS, ranges=ranges, cpu_us=0, payload=bytes(32), **(given | changes))

    def _stolen_lease(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        grant = self._grant(ledger)
        thief = self._rng.choice([key for key in workers if key != grant.body.worker] or [THIEF])
        return self._sign(self._receipt(grant, grant.body.ranges), thief), True

    def _no_lease(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        grant = self._grant(ledger)
        return self._sign(self._receipt(grant, grant.body.ranges, grant=NOBODY), grant.body.worker), True

    def _more_than_leased(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        grant = self._grant(ledger)
        first = grant.body.ranges[0]
        wider = (first._replace(units=first.units + 1), *grant.body.ranges[1:])
        return self._sign(self._receipt(grant, wider), grant.body.worker), True

    def _short_columns(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        grant = self._grant(ledger)
        return self._sign(self._receipt(grant, grant.body.ranges, digests=b""), grant.body.worker), True

    def _unknown_outcome(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        grant = self._grant(ledger)
        units = sum(unit_range.units for unit_range in grant.body.ranges)
        return self._sign(self._receipt(grant, grant.body.ranges, outcomes=bytes([77]) * units), grant.body.worker), True

    def _said_twice(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        """A second answer under a lease of which something was answered."""
        body = self._rng.choice(ledger.receipt_list).body
        grant = ledger.grants[body.grant]
        return self._sign(self._receipt(grant, grant.body.ranges), grant.body.worker), True

    def _other_job(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        grant = self._grant(ledger)
        return self._sign(self._receipt(grant, grant.body.ranges, job=NOBODY), grant.body.worker), True

    # -- statements, to a keeper ------------------------------------------------------------

    def _decision(self, ledger: Ledger, epoch: int = 1, **changes: Any) -> Decision:
        """All is right with it but the root."""
        receipt = self._rng.choice(ledger.receipt_list)
        entry = DecisionEntry(*receipt.body.ranges[0][:3], OK, b"r" * 32, (0,))
        given: dict[str, Any] = {"receipts": (receipt.id,), "entries": (entry,)}
        return Decision(EXPIRES_MS, ledger.job.id, epoch, **(given | changes))

    def _wrong_root(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        return self._sign(self._decision(ledger), keeper), False

    def _by_a_worker(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        return self._sign(self._decision(ledger), self._rng.choice(workers)), False

    def _keeper_in_the_first_epoch(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        return self._sign(self._decision(ledger, 0), keeper), False

    def _cites_nothing(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        first = ledger.receipt_list[0]
        entry = DecisionEntry(*first.body.ranges[0][:3], OK, b"r" * 32, ())
        return self._sign(self._decision(ledger, entries=(entry,)), keeper), False

    def _cites_what_nobody_said(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        return self._sign(self._decision(ledger, receipts=(NOBODY,)), keeper), False

    def _outside_its_batch(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        entry = DecisionEntry(0, ledger.layout.batch_units[0] - 1, 2, OK, b"r" * 32, (0,))
        return self._sign(self._decision(ledger, entries=(entry,)), keeper), False

    def _too_few_agree(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        """One worker's word, truly cited, where several must agree."""
        receipt = self._rng.choice(ledger.receipt_list)
        body = receipt.body
        if ledger.job.body.quorum == 1 or body.outcomes[0] not in ANSWERS:
            return self._wrong_root(ledger, workers, keeper)
        entry = DecisionEntry(*body.ranges[0][:2], 1, body.outcomes[0], digest_of(body.digests[:32]), (0,))
        return self._sign(self._decision(ledger, receipts=(receipt.id,), entries=(entry,)), keeper), False

    def _lease_by_a_worker(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        worker = self._rng.choice(workers)
        grant = Grant(EXPIRES_MS, ledger.job.id, 1, worker, worker, (UnitRange(0, 0, 1),), (), self._rng.getrandbits(40))
        return self._sign(grant, worker), False

    def _lease_outside_its_batch(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        worker, outside = self._rng.choice(workers), UnitRange(0, ledger.layout.batch_units[0] - 1, 2)
        return self._sign(Grant(EXPIRES_MS, ledger.job.id, 1, worker, worker, (outside,), (), self._rng.getrandbits(40)), keeper), False

    def _unit_leased_twice(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        worker, once = self._rng.choice(workers), UnitRange(0, 0, 1)
        return self._sign(Grant(EXPIRES_MS, ledger.job.id, 1, worker, worker, (once, once), (), self._rng.getrandbits(40)), keeper), False

    def _keepers_by_a_stranger(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        return self._sign(KeeperSet(EXPIRES_MS, ledger.job.id, 9, keeper, (keeper,)), STRANGER), False

    def _cancelled_by_a_keeper(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        return self._sign(Cancel(EXPIRES_MS, ledger.job.id), keeper), False

    def _settled_by_a_stranger(self, ledger: Ledger, workers: list[bytes], keeper: bytes) -> tuple[Signed[Any], bool]:
        return self._sign(Settled(EXPIRES_MS, ledger.job.id, 0, 0, bytes(32)), STRANGER), False


Kind = Callable[[Forger, Ledger, list[bytes], bytes], tuple[Signed[Any], bool]]

KINDS: tuple[Kind, ...] = (
    Forger._stolen_lease,
    Forger._no_lease,
    Forger._more_than_leased,
    Forger._short_columns,
    Forger._unknown_outcome,
    Forger._said_twice,
    Forger._other_job,
    Forger._wrong_root,
    Forger._by_a_worker,
    Forger._keeper_in_the_first_epoch,
    Forger._cites_nothing,
    Forger._cites_what_nobody_said,
    Forger._outside_its_batch,
    Forger._too_few_agree,
    Forger._lease_by_a_worker,
    Forger._lease_outside_its_batch,
    Forger._unit_leased_twice,
    Forger._keepers_by_a_stranger,
    Forger._cancelled_by_a_keeper,
    Forger._settled_by_a_stranger,
)
"""Every kind of forgery: a batch of seeds must have tried each."""
