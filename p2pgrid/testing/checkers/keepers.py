"""L3, for the logs of jobs: whoever keeps a job has what its lead has.

A keeper's word that it has a record on its disk is given to the lead, not to any onlooker. So this is asked once there
was time enough to push: what lay in the lead's log when the faults stopped must lie in the log of every node that was
named a keeper by then and still is, at the end of the liveness phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2pgrid.model import log as kinds
from p2pgrid.testing.checkers.journal import Journal, Log, Records
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node
    from p2pgrid.testing.plans.scenario import JobPlan

KEPT = frozenset((kinds.GRANT, kinds.RECEIPT, kinds.DECISION, kinds.SETTLED))
"""Payloads as well: these are known by the receipts that name them."""


class KeeperChecker(Onlooker):
    """L3, for every job whose lead lives without a break from its start to the end."""

    invariant = "L3"

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self._leads: dict[bytes, str] = {}
        """By job: the machine that leads it."""
        self._due: dict[bytes, tuple[list[bytes], dict[bytes, None]]] = {}
        """By job: keepers named when the faults stopped, and what had to be at each of them."""

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        self._leads[job] = name

    def on_crash(self, name: str) -> None:
        self._forget(name)

    def on_close(self, name: str, node: Node) -> None:
        self._forget(name)

    def on_log_durable(self, name: str, job: bytes, records: Records, error: str) -> None:
        if error and self._leads.get(job) == name:
            del self._leads[job]

    def _forget(self, name: str) -> None:
        for job in [job for job, lead in self._leads.items() if lead == name]:
            del self._leads[job]

    def on_calm(self) -> None:
        for job, name in self._leads.items():
            log = self._journal.logs.get(name, {}).get(job)
            if log is not None and self.view.honest(name):
                known = self._journal.statements
                records = [one for one in log.held if one in log.payloads or (one in known and known[one].kind in KEPT)]
                self._due[job] = self._named(log), dict.fromkeys(records)

    def _named(self, log: Log) -> list[bytes]:
        """The keepers that the newest set in a log names."""
        known = self._journal.statements
        sets = [known[one].body for one in log.held if one in known and known[one].kind == kinds.KEEPERS]
        return list(max(sets, key=lambda body: body.epoch).keepers) if sets else []

    def at_end(self) -> None:
        for job, (before, due) in self._due.items():
            lead = self._leads.get(job)
            if lead is None:
                continue
            still = self._named(self._journal.logs[lead][job])
            for key in [key for key in before if key in still]:
                self._look(job, self._journal.machines.get(key, ""), due)

    def _look(self, job: bytes, keeper: str, due: dict[bytes, None]) -> None:
        if keeper not in self._journal.up or not self.view.honest(keeper):
            return
        log = self._journal.log(keeper, job)
        missing = [one for one in due if one not in log.held]
        if missing and not log.hurt:
            self.violate(keeper, f"a keeper of job {job.hex()[:8]} lacks {len(missing)} of {len(due)} records that its lead has")
