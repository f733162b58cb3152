"""Which ways a job took from one lead to another: no invariant, but a batch of seeds must have met each of them.

``took-over``: a keeper leads a job whose lead is gone. ``handed-over``: one whose lead leaves, and gave it away. ``resumed``: a
lead goes on with its job after a restart. ``stepped-down``: a lead hears that others lead its job. ``receipts-kept``: a keeper
takes results while nobody leads the job.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from p2pgrid.model import log as kinds
from p2pgrid.testing.checkers.journal import Entry, Journal, Log, Records
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node

WAYS = ("handed-over", "receipts-kept", "resumed", "stepped-down", "took-over")


class Passing(Onlooker):
    """Told of all logs."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self._met: set[bytes] = set()
        self._again: set[tuple[str, bytes]] = set()
        """(machine, job) of jobs that were in the log when the machine was started again."""
        self.ways: Counter[str] = Counter()

    def on_start(self, name: str, node: Node) -> None:
        self._again.update((name, job) for job in self._journal.logs.get(name, {}))

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        for entry in self._journal.entries(records):
            if entry.error or entry.kind not in (kinds.KEEPERS, kinds.RECEIPT):
                continue
            log, fresh = self._journal.log(name, job), entry.id not in self._met
            self._met.add(entry.id)
            if entry.id not in log.held:
                continue
            if entry.kind == kinds.KEEPERS:
                self._look_at_keepers(log, entry, fresh=fresh)
            elif fresh and log.newest is not None and log.newest.body.lead != self._journal.key(name):
                self.ways["receipts-kept"] += 1

    def _look_at_keepers(self, log: Log, entry: Entry, *, fresh: bool) -> None:
        earlier = self._journal.sets_before(log, entry)
        if not earlier:
            return
        before = max(earlier, key=lambda one: (one.body.epoch, one.id)).body.lead
        me, now = self._journal.key(log.name), entry.body.lead
        if me == before != now and log.newest is entry and not log.over:
            self.ways["stepped-down"] += 1
        if not fresh or now != me:
            return
        if before == me:
            self.ways["resumed"] += (log.name, log.job) in self._again
        else:
            self.ways["handed-over" if self._leaves(before) else "took-over"] += 1
        self._again.discard((log.name, log.job))

    def _leaves(self, key: bytes) -> bool:
        name = self._journal.machines.get(key, "")
        return name in self._journal.up and self._journal.nodes[name].stopping.is_set()
