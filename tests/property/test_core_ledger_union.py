"""A ledger is a union: any order of valid statements, and any two halves merged, give the same state."""

from __future__ import annotations

from typing import Any

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pgrid.core.columns import check_apart
from p2pgrid.core.ledger import DONE, FAILED, OPEN, Ledger
from p2pgrid.errors import P2PGridError
from p2pgrid.model.work import ANSWERS, DIED, OK, RAISED, Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.testing.core.checks import summary
from p2pgrid.testing.core.grid import CoreGrid, Scenario, oracle
from p2pgrid.wire.envelope import Signed
from tests.unit.core.core_builders import EXPIRES_MS, KEEPER, LEAD, decision, digest, grant, job_of, keepers

UNITS = 5
WORKERS = [bytes([number + 1]) * 32 for number in range(4)]


@st.composite
def statements(draw: st.DrawFn) -> tuple[int, list[list[Signed[Any]]]]:
    """A quorum, and valid statements in three layers: grants, receipts, decisions. Decisions may contradict each other."""
    quorum = draw(st.integers(1, 2))
    ledger = Ledger(job_of(UNITS, quorum=quorum))
    ledger.add(keepers(ledger))
    grants = [grant(ledger, worker, UnitRange(0, 0, UNITS), nonce=number) for number, worker in enumerate(WORKERS)]
    receipts = [_receipt(one, draw(st.lists(st.sampled_from("xyz!"), min_size=UNITS, max_size=UNITS))) for one in grants]
    for layer in (grants, receipts):
        for one in layer:
            ledger.add(one)
    decisions = []
    for author, epoch in draw(st.lists(st.tuples(st.sampled_from([LEAD, KEEPER]), st.integers(0, 2)), max_size=6, unique=True)):
        unit = draw(st.integers(0, UNITS - 1))
        said = {number: (one.body.outcomes[unit], one.body.digests[unit * 32 : unit * 32 + 32]) for number, one in enumerate(receipts)}
        word = draw(st.sampled_from(sorted(said.values())))
        cited = tuple(number for number, other in said.items() if other == word)
        entry = DecisionEntry(0, unit, 1, word[0], blake3(word[1]).digest(), cited)
        made = decision(ledger, receipts, entry, author=author, epoch=epoch)
        try:
            ledger.add(made)
        except P2PGridError:
            continue
        decisions.append(made)
    return quorum, [grants, receipts, decisions]


def _receipt(lease: Signed[Grant], words: list[str]) -> Signed[Receipt]:
    outcomes = bytes(DIED if word == "!" else OK for word in words)
    digests = b"".join(digest(word) for word in words)
    return oracle(Receipt(EXPIRES_MS, lease.body.job, lease.id, lease.body.ranges, outcomes, digests, 0, bytes(32)), lease.body.worker)


def merged(quorum: int, *orders: list[Signed[Any]]) -> Ledger:
    ledger = Ledger(job_of(UNITS, quorum=quorum))
    ledger.add(keepers(ledger))
    for order in orders:
        for one in order:
            ledger.add(one)
            ledger.check()
    return ledger


def told(ledger: Ledger) -> tuple[object, ...]:
    """All that must not depend on the order: the standing answers, and what is known of open units."""
    answers = [
        sorted((one.worker, one.outcome, one.digest) for one in ledger.answers(0, unit)) if ledger.state(0, unit) == OPEN else []
        for unit in range(UNITS)
    ]
    return (*summary(ledger), answers)


@settings(max_examples=150)
@given(statements(), st.randoms(use_true_random=False))
def test_any_order_and_any_two_halves_give_the_same_ledger(made: tuple[int, list[list[Signed[Any]]]], rng: Any) -> None:
    quorum, layers = made
    straight = merged(quorum, *layers)
    shuffled = merged(quorum, *[rng.sample(layer, len(layer)) for layer in layers])
    assert told(shuffled) == told(straight)
    lazy: list[Signed[Any]] = [*layers[0], *layers[1], *layers[2]]
    order = _respecting(lazy, rng)
    assert told(merged(quorum, order)) == told(straight)
    first, rest = order[: len(order) // 2], order[len(order) // 2 :]
    closed = [one for one in order if not isinstance(one.body, Decision)] + [one for one in rest if isinstance(one.body, Decision)]
    one, other = merged(quorum, first), merged(quorum, closed)
    assert told(merged(quorum, *held(one), *held(other))) == told(straight)
    assert told(merged(quorum, *held(other), *held(one))) == told(straight)


def held(ledger: Ledger) -> list[list[Signed[Any]]]:
    return [list(ledger.grants.values()), list(ledger.receipt_list), list(ledger.decisions.values())]


def _respecting(all_of_them: list[Signed[Any]], rng: Any) -> list[Signed[Any]]:
    """A random order in which what a statement rests on comes before it."""
    left, order = list(all_of_them), []
    placed: set[bytes] = set()
    while left:
        ready = [one for one in left if _rests_on(one.body) <= placed]
        one = rng.choice(ready)
        left.remove(one)
        placed.add(one.id)
        order.append(one)
    return order


def _rests_on(body: Any) -> set[bytes]:
    if isinstance(body, Receipt):
        return {body.grant}
    return set(getattr(body, "receipts", ()))


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_the_log_of_a_real_run_merges_in_any_order(seed: int, rng: Any) -> None:
    grid = CoreGrid(Scenario(batches=(4, 3), quorum=2, workers=5, liars=1, loss=0.1, flaps=0.1), seed, check_each=False).run()
    ledger = Ledger(grid.job)
    ledger.add(next(iter(grid.keepers.values())).keepers)  # type: ignore[arg-type]
    for one in _respecting(grid.log, rng):
        ledger.add(one)
    ledger.check()
    assert summary(ledger) == summary(grid.lead.ledger)


class LedgerMachine(RuleBasedStateMachine):
    """A ledger against a dictionary that says what every unit is."""

    @initialize(quorum=st.integers(1, 3))
    def begin(self, quorum: int) -> None:
        self.quorum = quorum
        self.ledger = Ledger(job_of(UNITS, quorum=quorum))
        self.ledger.add(keepers(self.ledger))
        self.grants: list[Signed[Grant]] = []
        self.receipts: list[Signed[Receipt]] = []
        self.model: dict[int, tuple[int, bytes]] = {}

    @rule(worker=st.sampled_from(WORKERS), start=st.integers(-1, UNITS), units=st.integers(0, UNITS + 1))
    def grant_some(self, worker: bytes, start: int, units: int) -> None:
        made = grant(self.ledger, worker, UnitRange(0, start, units), nonce=len(self.grants))
        valid = start >= 0 and units >= 1 and start + units <= UNITS
        assert self._accepted(made) == valid
        if valid:
            self.grants.append(made)

    @precondition(lambda self: self.grants)
    @rule(
        data=st.data(), author=st.sampled_from([None, *WORKERS]), outcome=st.sampled_from((OK, RAISED, DIED)), value=st.sampled_from("xy")
    )
    def answer(self, data: st.DataObject, author: bytes | None, outcome: int, value: str) -> None:
        lease = data.draw(st.sampled_from(self.grants))
        start = data.draw(st.integers(0, UNITS - 1))
        units = data.draw(st.integers(1, UNITS))
        (leased,) = lease.body.ranges
        body = Receipt(
            EXPIRES_MS,
            lease.body.job,
            lease.id,
            (UnitRange(0, start, units),),
            bytes([outcome]) * units,
            digest(value) * units,
            0,
            bytes(32),
        )
        made = oracle(body, author or lease.body.worker)
        said = sum(len(one.body.outcomes) for one in self.receipts if one.body.grant == lease.id)
        inside = leased.start <= start and start + units <= leased.start + leased.units
        known = made.id in self.ledger.receipts
        valid = inside and made.author == lease.body.worker and said + units <= 8 * leased.units
        assert self._accepted(made) == (valid and not known)
        if valid and not known:
            self.receipts.append(made)

    @precondition(lambda self: self.receipts)
    @rule(data=st.data(), epoch=st.integers(0, 3), claimed=st.sampled_from("xy"))
    def decide(self, data: st.DataObject, epoch: int, claimed: str) -> None:
        unit = data.draw(st.integers(0, UNITS - 1))
        outcome = data.draw(st.sampled_from((OK, RAISED)))
        cited = tuple(sorted(data.draw(st.sets(st.integers(0, len(self.receipts) - 1), min_size=1, max_size=4))))
        entry = DecisionEntry(0, unit, 1, outcome, blake3(digest(claimed)).digest(), cited)
        made = decision(self.ledger, self.receipts, entry, epoch=epoch)
        known = made.id in self.ledger.decisions
        bodies = [self.receipts[number] for number in cited]
        covers = all(one.body.ranges[0].start <= unit < one.body.ranges[0].start + one.body.ranges[0].units for one in bodies)
        alike = all(one.body.outcomes[0] == outcome and one.body.digests[:32] == digest(claimed) for one in bodies)
        valid = covers and alike and len({one.author for one in bodies}) >= self.quorum
        assert self._accepted(made) == (valid and not known)
        if valid and not known:
            self.model.setdefault(unit, (outcome, digest(claimed)))
            if self.model[unit] != (outcome, digest(claimed)):
                assert (0, unit) in self.ledger.conflicts
                found = self.ledger.find(0, unit)
                assert found is not None
                self.model[unit] = (found.outcome, found.digest)

    def _accepted(self, one: Signed[Any]) -> bool:
        try:
            return self.ledger.add(one)
        except P2PGridError:
            return False

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.ledger.check()
        for unit in range(UNITS):
            found = self.ledger.find(0, unit)
            assert (None if found is None else (found.outcome, found.digest)) == self.model.get(unit)
            if found is not None:
                assert found.outcome in ANSWERS
                assert self.ledger.state(0, unit) == (DONE if found.outcome == OK else FAILED)


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
test_a_ledger_agrees_with_a_dictionary = LedgerMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 5)), max_size=6))
def test_ranges_are_apart_exactly_when_no_unit_is_in_two(ranges: list[tuple[int, int, int]]) -> None:
    units = [(batch, unit) for batch, start, count in ranges for unit in range(start, start + count)]
    apart = bool(ranges) and len(units) == len(set(units))
    try:
        check_apart(UnitRange(*one) for one in ranges)
    except P2PGridError:
        assert not apart
    else:
        assert apart
