"""When answers are enough (docs/spec/ledger.md#decisions).

1. A result stands when the workers that gave it are at least q, plus one for each that gave another
   answer. So one liar costs one more honest answer, and the smaller side never wins.
2. Workers count once each, by key and by group.
3. A unit that raised has answered: replicas must agree on that, too.
4. Outcomes that are no answer (time-out, death) count against the attempts of the unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from p2pgrid.model.work import ANSWERS


class Answer(NamedTuple):
    """One worker's word on one unit: ``receipt`` is the ordinal of its receipt in the ledger."""

    worker: bytes
    group: bytes
    outcome: int
    digest: bytes
    receipt: int


class Verdict(NamedTuple):
    """The answers that agree and those that do not; ``missing`` answers would be needed if none stands."""

    outcome: int
    digest: bytes
    agree: tuple[Answer, ...]
    dissent: tuple[Answer, ...]
    missing: int


def judge(answers: Sequence[Answer], quorum: int) -> Verdict | None:
    """The strongest side and how many more equal answers it needs (0: it stands); None without any answer."""
    sides: dict[tuple[int, bytes], list[Answer]] = {}
    seen: set[bytes] = set()
    for answer in answers:
        if answer.outcome not in ANSWERS or answer.worker in seen or answer.group in seen:
            continue
        seen.update((answer.worker, answer.group))
        sides.setdefault((answer.outcome, answer.digest), []).append(answer)
    if not sides:
        return None
    (outcome, digest), agree = max(sides.items(), key=lambda side: (len(side[1]), side[0]))
    dissent = [answer for key, side in sides.items() if key != (outcome, digest) for answer in side]
    return Verdict(outcome, digest, tuple(agree), tuple(dissent), max(0, quorum + len(dissent) - len(agree)))


def misses(answers: Sequence[Answer]) -> list[Answer]:
    """The attempts that ended without an answer."""
    return [answer for answer in answers if answer.outcome not in ANSWERS]
