"""The state of one job: a grow-only set of signed statements, merged by union (docs/spec/ledger.md).

1. Adding a statement twice changes nothing; the order of adding changes nothing but who cites whom.
2. A receipt counts only for units that its grant leased to its author (S1). First hand, from its worker, it
   counts once for each unit of the grant; merged from others, a worker that said two things is kept, within a bound.
3. A decision counts only if the receipts it cites are here, cover its units and bear it out (S1).
4. A decided unit keeps its answer. A second, different decision makes it ``conflict``, and it is shown: the
   smaller epoch stands, within it an answer before a unit given up, then the smaller (author, digest) (S2).
5. A decided unit on which answers differ, whether they came before or after, is ``doubted`` (quorums above one).
6. Keepers are named by the submitter, or by somebody it named before: keeper sets form chains. Grants and decisions of
   epoch 0 come from a node that the submitter named lead, later ones from anybody on the chain.
7. The end that counts is settled by the submitter or a lead it named; what a later lead settled counts until then.
8. After a cancel, receipts are dropped; earlier decisions stay.

Memory is columns: a unit costs five bytes here plus 33 in its receipt. Single words are kept per unit
only while a quorum above one is open.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from p2pgrid.core.checks import check_entry, check_range, check_receipt
from p2pgrid.core.columns import (
    DONE,
    FAILED,
    NO_RECEIPT,
    OPEN,
    POSITION_BITS,
    POSITION_MASK,
    Column,
    check_apart,
    columns_of,
    digest_at,
    digests_from,
    position_in,
    positions,
)
from p2pgrid.core.layout import Layout
from p2pgrid.core.lineage import Lineage
from p2pgrid.core.quorum import Answer, judge
from p2pgrid.core.verdicts import Short, compared, join_entries, sole_verdict
from p2pgrid.errors import MalformedError, RefusedError
from p2pgrid.model.job import Cancel, Job, KeeperSet, Settled
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import ANSWERS, DISAGREED, OK, Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.wire.envelope import Signed

__all__ = [
    "DONE",
    "FAILED",
    "NO_RECEIPT",
    "OPEN",
    "Found",
    "Ledger",
    "columns_of",
    "position_in",
    "positions",
]

WORDS_PER_UNIT_MAX = 8
"""How often the units of one grant may be answered in receipts that others vouch for: a worker that says many
things about one unit is a liar, and fills no ledger with it."""

ENDS_PER_LEAD_MAX = 8

Rank = tuple[int, bool, bytes, bytes]
"""(epoch, given up, author, digest) of a decision on a unit: the smallest stands, so nobody overrules an earlier epoch."""


class Found(NamedTuple):
    """Where the decided answer of a unit is: its receipt, and the unit's position within that."""

    receipt: Signed[Receipt]
    position: int
    outcome: int
    digest: bytes


class Ledger:
    """Everything known about one job. Statements come in already verified (signature, grid, expiry)."""

    def __init__(self, job: Signed[Job]) -> None:
        self.job = job
        self.layout = Layout(job.body)
        self.cancelled: Signed[Cancel] | None = None
        self.final: dict[bytes, Signed[Settled]] = {}
        """The end as the submitter's side settled it, by statement id. More than one: decisions of another lead were merged between."""
        self.provisional: dict[bytes, Signed[Settled]] = {}
        """The end as leads settled it whom the submitter did not name itself."""
        self.grants: dict[bytes, Signed[Grant]] = {}
        self.receipts: dict[bytes, int] = {}
        self.receipt_list: list[Signed[Receipt]] = []
        self.decisions: dict[bytes, Signed[Decision]] = {}
        self.decision_list: list[Signed[Decision]] = []
        """In the order they were added: who follows a job remembers how far it got."""
        self.conflicts: set[tuple[int, int]] = set()
        self.doubted: set[tuple[int, int]] = set()
        self.disputed = 0
        """Decided units on which somebody gave another answer before."""
        self.done = 0
        self.failed = 0
        self.open_in = list(self.layout.batch_units)
        self._open_by_level = [level.units for level in self.layout.levels]
        self._columns: dict[int, Column] = {}
        self._standing: dict[tuple[int, int], Rank] = {}
        self._given_up: set[tuple[int, int]] = set()
        self._said: dict[bytes, int] = {}
        self._decided_by: dict[bytes, int] = {}
        self.lineage = Lineage(job)

    # -- reading -----------------------------------------------------------

    @property
    def keepers(self) -> Signed[KeeperSet] | None:
        """The newest keeper set."""
        return self.lineage.newest

    def column(self, batch: int) -> Column:
        """The columns of a batch."""
        column = self._columns.get(batch)
        if column is None:
            column = self._columns[batch] = Column(self.layout.batch_units[batch])
        return column

    def touched(self) -> Iterator[tuple[int, Column]]:
        """(batch, columns) of every batch of which something is known; of the others, nothing is decided."""
        return iter(self._columns.items())

    def state(self, batch: int, unit: int) -> int:
        """OPEN, DONE or FAILED."""
        column = self._columns.get(batch)
        return column.state[unit] if column else OPEN

    def open_runs(self, batch: int) -> list[tuple[int, int]]:
        """(start, count) of the undecided runs of a batch."""
        column = self._columns.get(batch)
        units = self.layout.batch_units[batch]
        return column.open_runs(0, units) if column is not None else [(0, units)]

    def untouched(self, batch: int) -> bool:
        """Whether nothing was ever said about a unit of this batch, as far as single words are kept."""
        return batch not in self._columns

    @property
    def complete(self) -> bool:
        """Whether every unit that can still be decided is."""
        return self.done + self.failed == self.layout.units

    def level_open(self, level: int) -> int:
        """Undecided units of a level."""
        return self._open_by_level[level]

    def find(self, batch: int, unit: int) -> Found | None:
        """The decided answer of a unit, or None while it is open."""
        column = self._columns.get(batch)
        if column is None or column.state[unit] == OPEN:
            return None
        receipt = self.receipt_list[column.receipt[unit]]
        position = position_in(receipt.body, batch, unit)
        return Found(receipt, position, self.outcome(batch, unit, receipt.body.outcomes[position]), digest_at(receipt.body, position))

    def outcome(self, batch: int, unit: int, said: int) -> int:
        """The decided outcome of a unit whose receipt says ``said``: an answer that nobody shares is DISAGREED."""
        return DISAGREED if said in ANSWERS and (batch, unit) in self._given_up else said

    def answers(self, batch: int, unit: int) -> list[Answer]:
        """What was answered for an undecided unit so far, ordered by receipt id.

        With a quorum of one only misses are kept. The order is canonical, so that of two words of one worker
        the same one counts everywhere.
        """
        column = self._columns.get(batch)
        words = column.words_of(unit) if column is not None else ()
        if len(words) > 1:
            words = tuple(sorted(words, key=lambda word: self.receipt_list[word >> POSITION_BITS].id))
        return [self._answer(word) for word in words]

    def _answer(self, word: int) -> Answer:
        ordinal, position = word >> POSITION_BITS, word & POSITION_MASK
        receipt = self.receipt_list[ordinal]
        body = receipt.body
        return Answer(receipt.author, self.grants[body.grant].body.group, body.outcomes[position], digest_at(body, position), ordinal)

    def units_by_worker(self) -> dict[bytes, int]:
        """Decided units per worker whose receipt was cited."""
        return dict(self._decided_by)

    # -- adding ------------------------------------------------------------

    def add(self, statement: Signed[Any]) -> bool:
        """Merge one verified statement. True if it was new. Raises when it breaks a rule above."""
        body = statement.body
        if isinstance(body, Receipt):
            return self.add_receipt(statement) is not None
        if isinstance(body, Grant):
            return self.add_grant(statement)
        if isinstance(body, Decision):
            return self.add_decision(statement)
        if isinstance(body, KeeperSet):
            self._of_this_job(body.job)
            return self.lineage.add(statement)
        if isinstance(body, Cancel):
            return self._add_cancel(statement)
        if isinstance(body, Settled):
            return self._add_settled(statement)
        raise MalformedError(f"a ledger holds no {type(body).__name__}", reason=Reason.MALFORMED)

    def add_grant(self, grant: Signed[Grant]) -> bool:
        """A lease by the submitter's node or a keeper."""
        if grant.id in self.grants:
            return False
        self._of_this_job(grant.body.job)
        self.lineage.check_lead(grant.author, grant.body.epoch)
        for unit_range in grant.body.ranges:
            check_range(unit_range, self.layout.batch_units)
        check_apart(grant.body.ranges)
        self.grants[grant.id] = grant
        return True

    def add_receipt(self, receipt: Signed[Receipt], *, first_hand: bool = False) -> int | None:
        """Add a receipt; returns its ordinal, or None if it was known or comes after a cancel.

        ``first_hand``: it comes from its worker and not out of somebody's log, and may then answer each unit
        of its grant once only.
        """
        if receipt.id in self.receipts or self.cancelled is not None:
            return None
        self._check_receipt(receipt, WORDS_PER_UNIT_MAX if not first_hand else 1)
        body = receipt.body
        ordinal = len(self.receipt_list)
        self.receipt_list.append(receipt)
        self.receipts[receipt.id] = ordinal
        self._said[body.grant] = self._said.get(body.grant, 0) + len(body.outcomes)
        if self.job.body.quorum > 1 or not ANSWERS_ONLY.issuperset(body.outcomes):
            self._note_words(body, ordinal)
        return ordinal

    def _check_receipt(self, receipt: Signed[Receipt], words_per_unit: int) -> None:
        body = receipt.body
        self._of_this_job(body.job)
        granted = check_receipt(receipt, self.grants.get(body.grant))
        if self._said.get(body.grant, 0) + len(body.outcomes) > granted * words_per_unit:
            raise RefusedError("these units were answered before", reason=Reason.NOT_GRANTED)

    def _note_words(self, body: Receipt, ordinal: int) -> None:
        base = 0
        for batch, start, count, _ in body.ranges:
            column = self.column(batch)
            if self.job.body.quorum > 1 and column.state.count(OPEN, start, start + count) == count:
                column.add_words(start, count, ordinal, base)
            else:
                for unit in range(start, start + count):
                    self._note_word(column, batch, unit, body, ordinal, base + unit - start)
            base += count

    def _note_word(self, column: Column, batch: int, unit: int, body: Receipt, ordinal: int, position: int) -> None:
        answered = body.outcomes[position] in ANSWERS
        compared_here = self.job.body.quorum > 1
        if answered and not compared_here:
            return
        if column.state[unit] == OPEN or (batch, unit) in self._given_up:
            column.add_words(unit, 1, ordinal, position)
        elif answered and not self._agrees(column, batch, unit, body, position):
            self._doubt(batch, unit)

    def _doubt(self, batch: int, unit: int) -> None:
        """Somebody's word differs from what was decided. Where decisions differ it is a conflict, whatever came first."""
        if (batch, unit) not in self.conflicts:
            self.doubted.add((batch, unit))

    def _agrees(self, column: Column, batch: int, unit: int, body: Receipt, position: int) -> bool:
        """Whether a word on a decided unit is the decided one."""
        standing = self.receipt_list[column.receipt[unit]].body
        place = position_in(standing, batch, unit)
        return standing.outcomes[place] == body.outcomes[position] and digest_at(standing, place) == digest_at(body, position)

    def add_decision(self, decision: Signed[Decision]) -> bool:
        """Check a decision against its receipts and take it over. Raises IntegrityError if they do not bear it out."""
        if decision.id in self.decisions:
            return False
        self._of_this_job(decision.body.job)
        self.lineage.check_lead(decision.author, decision.body.epoch)
        cited = [self.receipts.get(receipt) for receipt in decision.body.receipts]
        if None in cited:
            if self.cancelled is not None:
                return False
            raise RefusedError("a decision cites a receipt that is not here", reason=Reason.NOT_GRANTED)
        if not decision.body.entries:
            raise MalformedError("a decision decides nothing", reason=Reason.MALFORMED)
        receipts = [self.receipt_list[ordinal] for ordinal in cited if ordinal is not None]
        for entry in decision.body.entries:
            check_range(UnitRange(entry.batch, entry.start, entry.units), self.layout.batch_units)
            check_entry(entry, receipts, self.grants, self.job.body.quorum)
        self.decisions[decision.id] = decision
        self.decision_list.append(decision)
        for entry in decision.body.entries:
            self.disputed += entry.units if entry.dissent else 0
            for place in entry.cited:
                author = receipts[place].author
                self._decided_by[author] = self._decided_by.get(author, 0) + entry.units
            self._apply(entry, decision, receipts)
        return True

    # -- decisions taken over ------------------------------------------------

    def _apply(self, entry: DecisionEntry, decision: Signed[Decision], receipts: list[Signed[Receipt]]) -> None:
        column = self.column(entry.batch)
        if not column.decisions or column.decisions[-1] != decision.id:
            column.decisions.append(decision.id)
        receipt = receipts[entry.cited[0]]
        ordinal = self.receipts[receipt.id]
        stop = entry.start + entry.units
        if column.state.count(OPEN, entry.start, stop) != entry.units:
            for unit in range(entry.start, stop):
                self._apply_one(entry, decision, receipts, unit)
            return
        state = DONE if entry.outcome == OK else FAILED
        column.state[entry.start : stop] = bytes([state]) * entry.units
        column.receipt[entry.start : stop] = array("I", [ordinal]) * entry.units
        self._count(entry.batch, state, entry.units)
        self._settle_words(column, entry, receipts, entry.start, stop)

    def _apply_one(self, entry: DecisionEntry, decision: Signed[Decision], receipts: list[Signed[Receipt]], unit: int) -> None:
        column = self.column(entry.batch)
        ordinal = self.receipts[receipts[entry.cited[0]].id]
        state = DONE if entry.outcome == OK else FAILED
        key = (entry.batch, unit)
        if column.state[unit] == OPEN:
            column.state[unit], column.receipt[unit] = state, ordinal
            self._count(entry.batch, state, 1)
            self._settle_words(column, entry, receipts, unit, unit + 1)
            return
        old = self.find(entry.batch, unit)
        body = self.receipt_list[ordinal].body
        digest = digest_at(body, position_in(body, entry.batch, unit))
        rank = (decision.body.epoch, entry.outcome not in ANSWERS, decision.author, digest)
        given_up = entry.outcome not in ANSWERS and old is not None and old.outcome not in ANSWERS
        if old is None or given_up or (old.digest == digest and old.outcome == entry.outcome):
            if key in self._standing:
                self._standing[key] = min(self._standing[key], rank)
            return
        self.conflicts.add(key)
        self.doubted.discard(key)
        standing = self._standing.get(key) or self._rank_of(column, key, old, decision)
        if rank < standing:
            self._count(entry.batch, column.state[unit], -1)
            column.state[unit], column.receipt[unit] = state, ordinal
            self._count(entry.batch, state, 1)
            self._settle_words(column, entry, receipts, unit, unit + 1)
        self._standing[key] = min(rank, standing)

    def _settle_words(self, column: Column, entry: DecisionEntry, receipts: list[Signed[Receipt]], start: int, stop: int) -> None:
        """Units got their answer: note where words differ, then forget them. A unit given up may still be answered."""
        if entry.outcome not in ANSWERS:
            self._given_up.update((entry.batch, unit) for unit in range(start, stop))
            return
        if self._given_up:
            self._given_up.difference_update((entry.batch, unit) for unit in range(start, stop))
        if column.words is None:
            return
        cited = {self.receipts[receipts[ordinal].id] for ordinal in entry.cited}
        for unit in range(start, stop):
            for word in column.words[unit]:
                ordinal, position = word >> POSITION_BITS, word & POSITION_MASK
                if ordinal not in cited:
                    body = self.receipt_list[ordinal].body
                    if body.outcomes[position] in ANSWERS and not self._agrees(column, entry.batch, unit, body, position):
                        self._doubt(entry.batch, unit)
        column.forget_words(start, stop)

    def _rank_of(self, column: Column, key: tuple[int, int], old: Found, newest: Signed[Decision]) -> Rank:
        """The smallest rank of all earlier decisions on a unit, which agree with one another."""
        batch, unit = key
        given_up = old.outcome not in ANSWERS
        ranks: list[Rank] = []
        for known in column.decisions:
            decision = self.decisions[known]
            covers = any(entry.batch == batch and entry.start <= unit < entry.start + entry.units for entry in decision.body.entries)
            if covers and decision is not newest:
                ranks.append((decision.body.epoch, given_up, decision.author, old.digest))
        return min(ranks, default=(newest.body.epoch, given_up, newest.author, old.digest))

    def _count(self, batch: int, state: int, units: int) -> None:
        if state == DONE:
            self.done += units
        else:
            self.failed += units
        self.open_in[batch] -= units
        self._open_by_level[self.layout.level_of(batch)] -= units

    # -- what the lead asks --------------------------------------------------

    def missing(self, batch: int, unit: int) -> int:
        """How many more equal answers a unit needs; 0 once it is decided."""
        if self.state(batch, unit) != OPEN:
            return 0
        verdict = judge(self.answers(batch, unit), self.job.body.quorum)
        return verdict.missing if verdict is not None else self.job.body.quorum

    def verdicts(self, ordinal: int) -> tuple[list[DecisionEntry], list[bytes], list[Short]]:
        """What a new receipt decides: entries, the receipt ids they cite, and the runs of units still short."""
        receipt = self.receipt_list[ordinal]
        if self.job.body.quorum == 1:
            return sole_verdict(receipt.body, self.column), [receipt.id], []
        found, cited, short = compared(self._runs_alike(receipt.body), self.answers, self.job.body.quorum)
        parts: list[tuple[DecisionEntry, bytes]] = []
        for entry, answer in found:
            body = self.receipt_list[answer.receipt].body
            parts.append((entry, digests_from(body, position_in(body, entry.batch, entry.start), entry.units)))
        return join_entries(parts), [self.receipt_list[known].id for known in cited], short

    def _runs_alike(self, body: Receipt) -> Iterator[tuple[int, int, int]]:
        """(batch, start, units) of the open units of a receipt, in runs about which the same receipts say the same."""
        for batch, start, count, _ in body.ranges:
            column = self.column(batch)
            for first, units in column.open_runs(start, start + count):
                for low, high in column.lockstep_runs(first, first + units):
                    if high - low > 1 and not self._said_alike(column.words_of(low), high - low):
                        yield from ((batch, unit, 1) for unit in range(low, high))
                    else:
                        yield batch, low, high - low

    def _said_alike(self, words: tuple[int, ...], units: int) -> bool:
        """Whether all words agree on each of ``units`` units from these words on, with one outcome."""
        first: tuple[bytes, bytes] | None = None
        for word in words:
            body, position = self.receipt_list[word >> POSITION_BITS].body, word & POSITION_MASK
            outcomes = body.outcomes[position : position + units]
            said = (outcomes, digests_from(body, position, units))
            if (first is not None and said != first) or outcomes.count(outcomes[0]) != units:
                return False
            first = said
        return True

    # -- rules ---------------------------------------------------------------

    def _of_this_job(self, job: bytes) -> None:
        if job != self.job.id:
            raise RefusedError("a statement about another job", reason=Reason.UNKNOWN_JOB)

    def _add_cancel(self, cancel: Signed[Cancel]) -> bool:
        self._of_this_job(cancel.body.job)
        if cancel.author != self.job.author:
            raise RefusedError("only its submitter cancels a job", reason=Reason.NO_ROLE)
        new, self.cancelled = self.cancelled is None, self.cancelled or cancel
        return new

    def _add_settled(self, settled: Signed[Settled]) -> bool:
        self._of_this_job(settled.body.job)
        ends = self.final if self.lineage.of_submitter(settled.author) else self.provisional
        if not (self.lineage.of_submitter(settled.author) or self.lineage.names(settled.author)):
            raise RefusedError("only who leads a job settles it", reason=Reason.NO_ROLE)
        if settled.id in ends or sum(known.author == settled.author for known in ends.values()) >= ENDS_PER_LEAD_MAX:
            return False
        ends[settled.id] = settled
        return True

    def check(self) -> None:
        """Assert the invariants that hold between any two events (S1, S4, S9)."""
        assert self.done + self.failed + sum(self.open_in) == self.layout.units
        assert sum(self._open_by_level) == sum(self.open_in)
        for batch, column in self._columns.items():
            assert column.state.count(OPEN) == self.open_in[batch]
            for unit, state in enumerate(column.state):
                assert (state == OPEN) == (column.receipt[unit] == NO_RECEIPT)
                assert state == OPEN or (batch, unit) in self._given_up or not column.words_of(unit)
        assert len(self.receipts) == len(self.receipt_list)
        for receipt in self.receipt_list:
            assert self.grants[receipt.body.grant].body.worker == receipt.author


ANSWERS_ONLY = frozenset(ANSWERS)
