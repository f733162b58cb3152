"""The invariants of the design, each with a checker outside the code that it checks.

    facts = Facts(holds=oracle.holds, expect=plan.expect, settle_s=plan.settle_s)
    checkers = all_checkers(facts)
    for checker in checkers:
        checker.attach(view)
    ...                                  # every event goes to every checker, in this order
    collect(checkers, verdict)

Safety: S1 and S9 in :mod:`decisions`, S2 in :mod:`views`, S3 in :mod:`authenticity`, S4 in :mod:`bounds`, S5 in
:mod:`durability`, S6 in :mod:`records`, S7 in :mod:`policy`, S8 in :mod:`paths`. Liveness: L1 in
:mod:`liveness`, L3 in :mod:`copies` and, of job logs, in :mod:`keepers`, L2 in :mod:`lookups`, L4 in :mod:`endings`. Wrong values in
:mod:`wrong`, logged errors in :mod:`logs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from p2pgrid.testing.checkers.again import AgainChecker
from p2pgrid.testing.checkers.answers import Answers
from p2pgrid.testing.checkers.authenticity import AuthenticityChecker
from p2pgrid.testing.checkers.bounds import BoundsChecker
from p2pgrid.testing.checkers.copies import CopiesChecker
from p2pgrid.testing.checkers.decisions import DecisionChecker
from p2pgrid.testing.checkers.durability import DurabilityChecker
from p2pgrid.testing.checkers.endings import EndingChecker
from p2pgrid.testing.checkers.ends import Ends
from p2pgrid.testing.checkers.facts import Facts, ed25519_holds
from p2pgrid.testing.checkers.journal import Journal
from p2pgrid.testing.checkers.keepers import KeeperChecker
from p2pgrid.testing.checkers.liveness import LivenessChecker
from p2pgrid.testing.checkers.logs import LogChecker
from p2pgrid.testing.checkers.lookups import LookupChecker, true_closest
from p2pgrid.testing.checkers.objects import Objects
from p2pgrid.testing.checkers.passing import Passing
from p2pgrid.testing.checkers.paths import PathChecker
from p2pgrid.testing.checkers.policy import PolicyChecker
from p2pgrid.testing.checkers.records import RecordChecker
from p2pgrid.testing.checkers.views import ViewChecker
from p2pgrid.testing.checkers.wrong import ValueChecker, wrong_bound, wrong_share
from p2pgrid.testing.observe import Onlooker
from p2pgrid.testing.verdict import Verdict

__all__ = [
    "CopiesChecker",
    "Ends",
    "Facts",
    "Journal",
    "LivenessChecker",
    "LogChecker",
    "LookupChecker",
    "Objects",
    "Passing",
    "ViewChecker",
    "all_checkers",
    "collect",
    "ed25519_holds",
    "find",
    "true_closest",
    "wrong_bound",
    "wrong_share",
]

Checker = TypeVar("Checker", bound=Onlooker)


def all_checkers(facts: Facts) -> list[Onlooker]:
    """One of each, to be told of every event in this order: the journal is first, since the others read it."""
    journal = Journal(facts)
    answers = Answers(journal)
    return [
        journal,
        DecisionChecker(journal, answers),
        ViewChecker(journal, answers),
        AuthenticityChecker(journal, facts),
        BoundsChecker(facts.limits),
        DurabilityChecker(journal, facts),
        RecordChecker(journal, facts),
        PolicyChecker(journal, facts),
        PathChecker(facts),
        LivenessChecker(journal, facts),
        CopiesChecker(facts),
        AgainChecker(facts),
        KeeperChecker(journal),
        LookupChecker(facts),
        EndingChecker(),
        ValueChecker(journal, facts),
        LogChecker(facts),
        Ends(journal),
        Passing(journal),
    ]


def find(checkers: Sequence[Onlooker], kind: type[Checker]) -> Checker:
    """The checker of a kind. Raises LookupError when it is not among them."""
    for checker in checkers:
        if isinstance(checker, kind):
            return checker
    raise LookupError(kind.__name__)


def collect(checkers: Iterable[Onlooker], verdict: Verdict) -> None:
    """Let the checkers come to an end, and put what they found into a verdict: violations by time, counts and figures. Once."""
    found = list(checkers)
    for checker in found:
        if isinstance(checker, DecisionChecker | DurabilityChecker | LivenessChecker | LookupChecker | PathChecker | ValueChecker):
            checker.finish()
    violations = [violation for checker in found for violation in checker.violations]
    verdict.violations = sorted([*verdict.violations, *violations], key=lambda violation: violation.at_s)
    decisions, values = find(found, DecisionChecker), find(found, ValueChecker)
    durability, lookups = find(found, DurabilityChecker), find(found, LookupChecker)
    verdict.accepted_twice = decisions.accepted_twice
    views, journal = find(found, ViewChecker), find(found, Journal)
    verdict.conflicts = sum(views.conflicts(job) for job in journal.jobs)
    verdict.accepted_wrong = values.accepted_wrong
    verdict.accepted_wrong_expected = values.expected_wrong
    verdict.files = len(durability.files)
    verdict.lost = durability.lost
    verdict.unlucky = durability.unlucky
    verdict.unlucky_expected = durability.unlucky_expected
    figures = dict(find(found, CopiesChecker).figures)
    if lookups.lookups:
        figures |= {"lookups": float(lookups.lookups), "lookups_exact": lookups.share, "lookups_recall": lookups.recall}
    figures["exit_slowest_s"] = find(found, EndingChecker).slowest_s
    verdict.figures = {**verdict.figures, **figures}
