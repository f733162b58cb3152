"""When a keeper takes the lead of a job, and what it finds there (docs/spec/keeping.md#who-leads).

1. A lead is silent when no session to it is left, or when it says itself that it does not lead the job.
2. Among the keepers that are there the first of the keeper set waits for ``GRACE_S``, each later one ``RANK_S`` more. Whoever
   was a keeper once comes after all of them: while anybody is left who has the log, the job goes on.
3. Two leads at once are harmless (docs/spec/ledger.md): waiting saves work, it decides nothing.
4. A new lead goes by what was leased before: who still works on a lease need not begin again.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from p2pgrid.core.ledger import Ledger
from p2pgrid.model.job import KeeperSet
from p2pgrid.model.work import Grant, UnitRange
from p2pgrid.wire.envelope import Signed

GRACE_S = 3.0
"""For a lead that is started again at once, or whose connection was cut: it is dialled again meanwhile."""
RESUME_S = 1.0
"""For a lead that begins anew: others may have taken over, and say so as soon as they are met."""
RANK_S = 15.0
"""As long as it takes to notice that a silent peer is dead."""
GRANT_OUTLIVES_MS = 3_600_000
"""A grant is valid for so long after its lease ended: late receipts count."""


@dataclass(slots=True)
class Succession:
    """One node's wait for its turn to lead one job. ``now`` is monotonic seconds."""

    me: bytes
    silent_since: float | None = None
    _epoch: int = -1

    def due(self, keepers: KeeperSet, there: Container[bytes], leads: bool, now: float) -> bool:
        """Whether this node takes the lead now.

        ``there``: nodes with a live session, this one included. ``leads``: whether the lead, if there, said it leads the job.
        """
        if keepers.epoch != self._epoch:
            self._epoch, self.silent_since = keepers.epoch, None
        if keepers.lead != self.me and keepers.lead in there and leads:
            self.silent_since = None
            return False
        if self.silent_since is None:
            self.silent_since = now
        return now - self.silent_since >= self.wait_s(keepers, there)

    def wait_s(self, keepers: KeeperSet, there: Container[bytes]) -> float:
        """How long after the lead's last sign of life this node takes over."""
        if keepers.lead == self.me:
            return RESUME_S
        before = [key for key in keepers.keepers if key in there]
        rank = before.index(self.me) if self.me in before else len(before) + 1
        return GRACE_S + rank * RANK_S


def outstanding(ledger: Ledger, there: Container[bytes], now_ms: int) -> list[tuple[Signed[Grant], list[tuple[UnitRange, ...]]]]:
    """Leases that may still be answered: by workers that are there, not past their end; and what each has answered."""
    answered: dict[bytes, list[tuple[UnitRange, ...]]] = {}
    for receipt in ledger.receipt_list:
        answered.setdefault(receipt.body.grant, []).append(receipt.body.ranges)
    found = []
    for grant in ledger.grants.values():
        body = grant.body
        if body.worker not in there or body.expires_ms - GRANT_OUTLIVES_MS <= now_ms:
            continue
        said = answered.get(grant.id, [])
        if sum(one.units for ranges in said for one in ranges) < sum(one.units for one in body.ranges):
            found.append((grant, said))
    return found
