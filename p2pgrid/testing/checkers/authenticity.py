"""S3: nothing unsigned, replayed, expired or from another domain changes state.

Every record that an honest node hands to a log is looked at: the signature is verified without the product's code, the
domain (type, grid, job) is the one of its place, it has not expired, it is there once, and it is not one of the
forgeries that were registered.
"""

from __future__ import annotations

from p2pgrid.model import log as kinds
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.journal import Entry, Journal, Log, Records
from p2pgrid.testing.observe import Onlooker

GRACE_MS = 60_000
"""What was valid when it was checked may wait so long for a busy disk."""
ONCE = frozenset((kinds.JOB, kinds.KEEPERS, kinds.GRANT, kinds.RECEIPT, kinds.DECISION, kinds.CANCEL, kinds.SETTLED))
"""Payloads are not in it: two workers may return the very same bytes."""


class AuthenticityChecker(Onlooker):
    """S3, in the log of every honest node."""

    invariant = "S3"

    def __init__(self, journal: Journal, facts: Facts) -> None:
        super().__init__()
        self._journal = journal
        self._facts = facts

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        if not self.view.honest(name):
            return
        log = self._journal.log(name, job)
        true_ms = self.view.wall_ms()
        oldest_ms = min(true_ms, self.view.wall_ms(name)) - self._facts.limits.clock_skew_ms - GRACE_MS
        for entry in self._journal.entries(records):
            if self._facts.poisoned and entry.raw in self._facts.poisoned:
                self._report(log, entry, "was forged")
            if entry.error or entry.body is None:
                continue
            if entry.holds is None:
                message = b"p2pgrid/1/" + entry.type.encode() + b"\0" + self._facts.grid + entry.signed
                entry.holds = self._facts.holds(entry.author, entry.signature, message)
            if not entry.holds:
                self._report(log, entry, "has a signature that does not hold")
            if entry.body.expires_ms < oldest_ms:
                self._report(log, entry, f"had expired {(true_ms - entry.body.expires_ms) / 1000:.0f} s before")
            if (entry.id if entry.kind == kinds.JOB else entry.body.job) != log.job:
                self._report(log, entry, "is of another job")
        if log.repeats and not log.hurt and name in self._journal.up:
            for entry in log.repeats:
                if entry.kind in ONCE and not entry.error:
                    self._report(log, entry, "was there already")

    def _report(self, log: Log, entry: Entry, text: str) -> None:
        self.violate(log.name, f"a {kinds.NAMES.get(entry.kind, 'record')} in the log of job {log.job.hex()[:8]} {text}")
