"""L3, for the logs of jobs: whoever keeps a job has what its lead has, and those who are gone are replaced.

A keeper's word that it has a record on its disk is given to the lead, not to any onlooker. So this is asked when the
liveness phase is over, of the lead and the keepers that the newest keeper set names: what lay in the lead's log when the
faults stopped must lie in the log of every keeper that was named by then; and while a job goes on, as many keepers run as
there can be.
"""

from __future__ import annotations

import math

from p2pgrid.model import log as kinds
from p2pgrid.testing.checkers.journal import Journal
from p2pgrid.testing.checkers.room import has_room
from p2pgrid.testing.observe import Onlooker

KEPT = frozenset((kinds.GRANT, kinds.RECEIPT, kinds.DECISION, kinds.SETTLED))
"""Payloads as well: these are known by the receipts that name them."""
RECRUIT_S = 40.0
"""After the faults: to notice that a keeper is gone takes 15 s, and who refused to keep a job is not asked again at once."""
K = 3
"""Keepers that a job has besides its lead, where there are so many."""


class KeeperChecker(Onlooker):
    """L3, for every job whose lead lives at the end."""

    invariant = "L3"

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self._due: dict[tuple[bytes, str], dict[bytes, None]] = {}
        """By job and machine: what lay in its log when the faults stopped."""
        self._calm_s = math.inf
        self._named: dict[bytes, set[bytes]] = {}
        """By job: who was named by then."""

    def on_calm(self) -> None:
        self._calm_s = self.view.now
        known = self._journal.statements
        for name in self._journal.up:
            for job, log in self._journal.logs.get(name, {}).items():
                records = [one for one in log.held if one in log.payloads or (one in known and known[one].kind in KEPT)]
                self._due[job, name] = dict.fromkeys(records)
                self._named.setdefault(job, set()).update(log.named)

    def at_end(self) -> None:
        for job in self._journal.jobs:
            newest = self._journal.newest(job)
            lead = self._journal.machines.get(newest.body.lead, "") if newest is not None else ""
            log = self._journal.logs.get(lead, {}).get(job)
            if newest is None or lead not in self._journal.up or not self.view.honest(lead) or log is None:
                continue
            due = [one for one in self._due.get((job, lead), {}) if one in log.held]
            for key in newest.body.keepers:
                if key in self._named.get(job, ()):
                    self._look(job, self._journal.machines.get(key, ""), due)
            if not log.over and self.view.now - self._calm_s >= RECRUIT_S:
                self._count(job, lead, newest.body.keepers)

    def _look(self, job: bytes, keeper: str, due: list[bytes]) -> None:
        if keeper not in self._journal.up or not self.view.honest(keeper):
            return
        log = self._journal.log(keeper, job)
        missing = [one for one in due if one not in log.held]
        if missing and not log.hurt:
            self.violate(keeper, f"a keeper of job {job.hex()[:8]} lacks {len(missing)} of {len(due)} records that its lead has")

    def _count(self, job: bytes, lead: str, keepers: tuple[bytes, ...]) -> None:
        """A job that goes on has as many living keepers as there are nodes for it."""
        living = {node.key.public: node for name, node in self.view.living().items() if name != lead}
        there = [key for key in keepers if key in living]
        willing = [key for key, node in living.items() if "store" in node.member.roles and key not in there and has_room(node)]
        if len(there) < K and len(there) + len(willing) >= K:
            self.violate(lead, f"job {job.hex()[:8]} goes on with {len(there)} keepers, and {len(willing)} others could keep it")
