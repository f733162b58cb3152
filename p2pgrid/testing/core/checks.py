"""Checkers of the core's invariants, computed anew from signed statements without a line of the core's own rules.

S1: a decision stands only on granted receipts, q matching digests from q workers distinct by key and group.
S9: receipts add up to accepted work. And: every answer a lead knew counts, nobody is asked twice.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from p2pgrid.core.ledger import DONE, OPEN, Ledger
from p2pgrid.model.work import ANSWERS, DISAGREED, OK, Decision, Grant, Receipt
from p2pgrid.wire.envelope import Signed


def summary(ledger: Ledger) -> tuple[object, ...]:
    """What two ledgers that hold the same statements must agree on."""
    units = [(batch, unit) for batch, count in enumerate(ledger.layout.batch_units) for unit in range(count)]
    found = [ledger.find(*unit) for unit in units]
    answers = [(one.outcome in ANSWERS, one.digest) if one is not None else None for one in found]
    states = [ledger.state(*unit) for unit in units]
    return ledger.done, ledger.failed, states, answers, set(ledger.grants), set(ledger.receipts), ledger.conflicts, ledger.doubted


def check_leases(log: list[Signed[Any]], ledger: Ledger) -> None:
    """Where answers are compared, nobody is leased a unit that it answered before."""
    answered: set[tuple[int, int, bytes]] = set()
    if ledger.job.body.quorum == 1:
        return
    for statement in log:
        body = statement.body
        if isinstance(body, Grant):
            for batch, start, count, _ in body.ranges:
                units = range(start, start + count)
                assert not any((batch, unit, body.worker) in answered for unit in units), "leased to who answered it"
        elif isinstance(body, Receipt):
            outcomes = iter(body.outcomes)
            for batch, start, count, _ in body.ranges:
                answered |= {(batch, unit, statement.author) for unit in range(start, start + count) if next(outcomes) in ANSWERS}


def check_dissent(log: list[Signed[Any]], ledger: Ledger) -> None:
    """A decision counts every answer its lead knew: those who agree are q more than those who do not."""
    said: dict[tuple[int, int], dict[bytes, tuple[int, bytes]]] = {}
    if ledger.job.body.quorum == 1:
        return
    for statement in log:
        body = statement.body
        if isinstance(body, Receipt):
            place = 0
            for batch, start, count, _ in body.ranges:
                for unit in range(start, start + count):
                    word = body.outcomes[place], body.digests[place * 32 : place * 32 + 32]
                    if word[0] in ANSWERS:
                        said.setdefault((batch, unit), {}).setdefault(statement.author, word)
                    place += 1
        elif isinstance(body, Decision):
            for entry in body.entries:
                for unit in range(entry.start, entry.start + entry.units):
                    votes = Counter(said.get((entry.batch, unit), {}).values())
                    winner = max(votes.values(), default=0)
                    if entry.outcome in ANSWERS:
                        assert winner >= ledger.job.body.quorum + sum(votes.values()) - winner, "dissent was left out"


def check_decisions(ledger: Ledger) -> None:
    """S1 and S9, computed anew from the statements alone, without a line of the ledger's own rules."""
    said: dict[tuple[bytes, int, int], tuple[int, bytes]] = {}
    for receipt in ledger.receipt_list:
        grant: Grant = ledger.grants[receipt.body.grant].body
        assert grant.worker == receipt.author, "a receipt under somebody else's lease"
        leased = {(batch, unit) for batch, start, count, _ in grant.ranges for unit in range(start, start + count)}
        place = 0
        for batch, start, count, _ in receipt.body.ranges:
            for unit in range(start, start + count):
                assert (batch, unit) in leased, "a receipt for a unit that was not leased"
                digest = receipt.body.digests[place * 32 : place * 32 + 32]
                said[receipt.id, batch, unit] = receipt.body.outcomes[place], digest
                place += 1
    decided: Counter[tuple[int, int]] = Counter()
    done = 0
    for decision in ledger.decisions.values():
        for entry in decision.body.entries:
            for unit in range(entry.start, entry.start + entry.units):
                decided[entry.batch, unit] += 1
                cited = [decision.body.receipts[ordinal] for ordinal in entry.cited]
                words = {said[receipt, entry.batch, unit] for receipt in cited}
                if entry.outcome == DISAGREED:
                    assert len(words) > 1, "cited receipts do not differ"
                    continue
                assert {word[0] for word in words} == {entry.outcome}, "cited receipts say something else"
                assert len(words) == 1, "cited receipts differ"
                done += entry.outcome == OK
                if entry.outcome in ANSWERS:
                    bodies = [ledger.receipt_list[ledger.receipts[receipt]] for receipt in cited]
                    groups = {ledger.grants[one.body.grant].body.group for one in bodies}
                    distinct = min(len({one.author for one in bodies}), len(groups))
                    assert distinct >= ledger.job.body.quorum + len(entry.dissent), "too few agree"
    assert all(times == 1 for times in decided.values()), "a unit was decided twice"
    assert len(decided) == ledger.done + ledger.failed, "decisions do not add up"
    assert done == ledger.done == sum(ledger.state(batch, unit) == DONE for batch, unit in decided)
    assert all(ledger.state(batch, unit) != OPEN for batch, unit in decided)
