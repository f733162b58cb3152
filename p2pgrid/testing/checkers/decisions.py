"""S1: a decision stands only on granted receipts, enough of them. S9: what was decided adds up.

1. A keeper set is by the submitter, or by a node that an earlier set of the log names; who makes one raises the epoch. A
   grant or decision of epoch 0 is by a lead that the submitter itself named, a later one by a node that any set names. Nobody
   leases anything of a job of which its own log says that others lead it.
2. A receipt lies behind its grant in the log, is to the grant's worker and within its ranges.
3. A decision lies behind the receipts it cites, and they bear it out: see :mod:`p2pgrid.testing.checkers.weighing`.
4. A payload is what a receipt before it names; where it lies at the lead, its values are what the receipt says.
5. Nobody decides a unit again of which its own log holds a decision: that would be accepted twice. Leads that did not know of
   one another may both decide it. The end of a job says what was decided in the log of who signed it.
6. What a reader is given was decided in the log of the node that gave it, and lay on its disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3

from p2pgrid.errors import MalformedError
from p2pgrid.model import log as kinds
from p2pgrid.model.work import ANSWERS, OK, RAISED, Receipt
from p2pgrid.testing.checkers.answers import Answers, Place
from p2pgrid.testing.checkers.journal import Entry, Journal, Log, Records
from p2pgrid.testing.checkers.weighing import DIGEST, decision_fault, outside_batches, receipt_fault
from p2pgrid.testing.observe import Onlooker
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.messages import Payload

if TYPE_CHECKING:
    from p2pgrid.node import Node

CHUNK_BYTES = 1 << 20
NIL = encode(None)


class _Failure(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""


class DecisionChecker(Onlooker):
    """S1 and S9, in the log of every honest node."""

    invariant = "S1"

    def __init__(self, journal: Journal, answers: Answers) -> None:
        super().__init__()
        self._journal = journal
        self._answers = answers
        self._twice: dict[tuple[bytes, Place], None] = {}
        self._given: dict[bytes, dict[int, None]] = {}
        self._by_payload: dict[bytes, Entry] = {}
        self._made: set[bytes] = set()
        """Keeper sets, leases and ends that were met: the first to log one is who made it, or was given it by who did."""

    @property
    def accepted_twice(self) -> int:
        """Units that somebody gave a value though its log held one."""
        return len(self._twice)

    # -- logs ------------------------------------------------------------------------------

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        if not self.view.honest(name):
            return
        log = self._journal.log(name, job)
        for entry in self._journal.entries(records):
            if entry.error:
                self.violate(name, f"a record of job {job.hex()[:8]} cannot be read: {entry.error}", "S3")
            elif entry.id in log.held:
                self._look(log, entry)

    def on_start(self, name: str, node: Node) -> None:
        if not self.view.honest(name):
            return
        for log, _, bare in self._journal.reread:
            for entry in bare:
                if not log.hurt and entry.id not in log.torn:
                    self._report(log, entry, "lies on the disk without what it builds upon")

    def _look(self, log: Log, entry: Entry) -> None:
        job = self._journal.jobs.get(log.job)
        if entry.kind == kinds.JOB or job is None or log.job not in log.held:
            if entry.id != log.job:
                self._report(log, entry, "lies in a log that does not begin with its job")
        elif entry.kind == kinds.GRANT:
            self._look_at_grant(log, entry)
        elif entry.kind == kinds.RECEIPT:
            self._look_at_receipt(log, entry)
        elif entry.kind == kinds.PAYLOAD:
            self._look_at_payload(log, entry)
        elif entry.kind == kinds.DECISION:
            self._look_at_decision(log, entry, job)
        elif entry.kind == kinds.SETTLED:
            self._look_at_end(log, entry, job)
        elif entry.kind == kinds.KEEPERS:
            self._look_at_keepers(log, entry)
        elif entry.kind == kinds.CANCEL and entry.author != job.author:
            self._report(log, entry, "is not by the submitter")

    def _report(self, log: Log, entry: Entry, text: str, invariant: str = "") -> None:
        what = f"{kinds.NAMES[entry.kind]} {entry.id.hex()[:8]} of job {log.job.hex()[:8]}"
        self.violate(log.name, f"{what} {text}", invariant)

    def _look_at_author(self, log: Log, entry: Entry) -> None:
        epoch = entry.body.epoch
        if epoch < 0 or entry.author not in (log.named if epoch else log.first):
            self._report(log, entry, f"is by somebody who does not lead in epoch {epoch}")

    def _look_at_keepers(self, log: Log, entry: Entry) -> None:
        body = entry.body
        allowed, past = {log.submitter}, -1
        for one in self._journal.sets_before(log, entry):
            past = max(past, one.body.epoch)
            if one.author in allowed:
                allowed.update((one.body.lead, *one.body.keepers))
        if entry.author not in allowed:
            self._report(log, entry, "is by somebody whom nobody named")
        if entry.id not in self._made and body.lead == self._journal.key(log.name) and body.epoch <= past:
            self._report(log, entry, f"is of epoch {body.epoch}, and its author knew one of epoch {past}")
        self._made.add(entry.id)

    def _look_at_grant(self, log: Log, grant: Entry) -> None:
        self._look_at_author(log, grant)
        if grant.id not in self._made:
            self._made.add(grant.id)
            if log.newest is not None and grant.author == self._journal.key(log.name) != log.newest.body.lead:
                # What one call hands over was not all known when its first record was made.
                before = self._journal.sets_before(log, grant)
                newest = max(before, key=lambda one: (one.body.epoch, one.id), default=None)
                if newest is not None and newest.body.lead != grant.author:
                    self._report(log, grant, f"was given though its log says that others lead, in epoch {newest.body.epoch}")
        if grant.fault is None:
            grant.fault = outside_batches(grant.body.ranges, self._journal.levels[log.job])
        if grant.fault:
            self._report(log, grant, f"does not hold: {grant.fault}")

    def _look_at_receipt(self, log: Log, receipt: Entry) -> None:
        body: Receipt = receipt.body
        if not log.before(body.grant, receipt.id):
            self._report(log, receipt, "lies in the log without its grant before it")
        if receipt.fault != "":
            receipt.fault = receipt_fault(receipt, self._journal.statements.get(body.grant), self._journal.levels[log.job])
        if receipt.fault:
            self._report(log, receipt, f"does not count: {receipt.fault}")
        self._by_payload.setdefault(body.payload, receipt)

    def _look_at_payload(self, log: Log, payload: Entry) -> None:
        if payload.id not in log.payloads:
            self._report(log, payload, "belongs to no receipt before it")
        receipt = self._by_payload.get(payload.id)
        if receipt is not None and not receipt.fault and self._journal.key(log.name) in log.leads:
            fault = values_fault(receipt.body, payload.raw)
            if fault:
                self._report(log, payload, f"is not what receipt {receipt.id.hex()[:8]} says: {fault}")

    def _look_at_decision(self, log: Log, decision: Entry, job: Entry) -> None:
        self._look_at_author(log, decision)
        if not all(log.before(known, decision.id) for known in decision.body.receipts):
            self._report(log, decision, "cites a receipt that does not lie before it in the log")
        if decision.fault != "":
            statements, levels = self._journal.statements, self._journal.levels[log.job]
            decision.fault = decision_fault(decision, statements, job.body, levels)
        if decision.fault:
            self._report(log, decision, f"does not stand: {decision.fault}")
            return
        for overlap in self._answers.overlaps(decision):
            other = overlap.theirs.decision
            if not log.before(other.id, decision.id):
                continue
            if decision.author not in (other.author, self._journal.key(log.name)):
                continue
            if overlap.mine.outcome in ANSWERS and overlap.theirs.outcome in ANSWERS:
                self._twice[log.job, overlap.place] = None
            if other.author == decision.author or overlap.theirs.outcome in ANSWERS:
                self._report(log, decision, f"decides unit {overlap.place} again, as {other.id.hex()[:8]} did", "S9")

    # -- sums ------------------------------------------------------------------------------------

    def _look_at_end(self, log: Log, settled: Entry, job: Entry) -> None:
        if settled.author != job.author and settled.author not in log.named:
            self._report(log, settled, "is by somebody who never led")
        if settled.id in self._made:
            return
        self._made.add(settled.id)
        outcomes = {}
        for place, answers in self._answers.decided.get(log.job, {}).items():
            here = [answer for answer in answers if answer.decision.id in log.held]
            if here:
                outcomes[place] = min(
                    here, key=lambda one: (one.decision.body.epoch, one.outcome > RAISED, one.decision.author, one.digest)
                )
        done = sum(answer.outcome == OK for answer in outcomes.values())
        told = settled.body
        if (told.done, told.failed) != (done, len(outcomes) - done):
            text = f"says {told.done} done and {told.failed} failed, decided are {done} and {len(outcomes) - done}"
            self._report(log, settled, text, "S9")
        elif told.root != blake3(b"".join(outcomes[place].digest for place in sorted(outcomes))).digest():
            self._report(log, settled, "has another root than what was decided", "S9")

    # -- readers -----------------------------------------------------------------------------------

    def on_value(self, name: str, job: bytes, number: int, value: object) -> None:
        self._given.setdefault(job, {})[number] = None
        levels = self._journal.levels.get(job)
        log = self._journal.logs.get(name, {}).get(job)
        if not self.view.honest(name):
            return
        if levels is None or log is None or not 0 <= number < levels.last_units:
            self.violate(name, f"a reader was given unit {number} of job {job.hex()[:8]}, of which nothing is known", "S9")
            return
        answers = self._answers.decided.get(job, {}).get(levels.place(number), ())
        here = [answer.decision.id for answer in answers if answer.outcome == OK and answer.decision.id in log.held]
        if not here:
            self.violate(name, f"a reader was given unit {number} of job {job.hex()[:8]}, which is not decided in its log", "S9")
        elif all(decision in log.pending for decision in here):
            self.violate(name, f"a reader was given unit {number} of job {job.hex()[:8]} before it was on the disk", "S5")

    def finish(self) -> None:
        """All readers together were given no more units than were decided, each number counted once."""
        for job, numbers in self._given.items():
            levels = self._journal.levels.get(job)
            if levels is None:
                continue
            decided = self._answers.decided.get(job, {})
            given = {levels.place(number) for number in numbers if 0 <= number < levels.last_units}
            right = sum(any(answer.outcome == OK for answer in decided.get(place, ())) for place in given)
            if right < len(numbers):
                self.violate(job.hex()[:8], f"readers were given {len(numbers)} units, decided are {right} of these", "S9")


def values_fault(receipt: Receipt, encoded: bytes) -> str:
    """Where the values of a payload are not what the receipt's digests say; empty if they are."""
    try:
        values: Sequence[msgspec.Raw] = decode(encoded, Payload).values
    except MalformedError as error:
        return str(error)
    if len(values) != len(receipt.outcomes):
        return f"{len(values)} values for {len(receipt.outcomes)} units"
    for index, (outcome, value) in enumerate(zip(receipt.outcomes, values, strict=True)):
        raw, digest = bytes(value), receipt.digests[index * DIGEST : (index + 1) * DIGEST]
        if len(raw) > CHUNK_BYTES or raw == NIL or blake3(raw).digest() == digest:
            continue
        if outcome != RAISED or _digest_of_failure(raw) != digest:
            return f"the value at position {index} has another digest"
    return ""


def _digest_of_failure(raw: bytes) -> bytes:
    """Replicas are compared by type and message alone."""
    try:
        failure = decode(raw, _Failure)
    except MalformedError:
        return b""
    return blake3(encode((failure.type, failure.message))).digest()
