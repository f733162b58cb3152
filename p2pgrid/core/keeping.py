"""Which nodes keep a job, and which of its log each has (docs/spec/keeping.md).

1. The submitter draws k keepers at random from reachable nodes with the role ``store``; a smaller grid
   keeps as many as it has, and grows to k when nodes join.
2. A keeper is sent the log's records in order; what it has acknowledged it has on disk.
3. A pushed record set is cut at a byte limit; one push per keeper is under way at a time.
4. With a quorum above one, a keeper gets no units of the job it keeps, unless too few others are there. Who offers to work
   and never asks for any does not count: else idle offers could keep a job from ever ending.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

K = 3


def draw_keepers(candidates: Iterable[bytes], have: tuple[bytes, ...], rng: random.Random, k: int = K) -> tuple[bytes, ...]:
    """``have`` filled up to ``k`` with candidates drawn at random."""
    rest = sorted(set(candidates) - set(have))
    rng.shuffle(rest)
    return (*have, *rest[: max(0, k - len(have))])


def workers_of(known: frozenset[bytes], keepers: tuple[bytes, ...], quorum: int, idle: frozenset[bytes] = frozenset()) -> frozenset[bytes]:
    """Who may get units: without the keepers where a quorum is compared and enough others, without the ``idle``, are there."""
    others = known - set(keepers)
    return others if quorum > 1 and len(others - idle) > quorum else known


@dataclass(slots=True)
class _Keeper:
    acknowledged: int = 0
    """Cursor in the lead's log: everything before it is on the keeper's disk."""
    pushing: bool = False
    failures: int = 0


@dataclass(slots=True)
class PushBook:
    """How far each keeper of one job is. Cursors are opaque, growing numbers of the lead's log."""

    keepers: dict[bytes, _Keeper] = field(default_factory=dict)

    def add(self, keeper: bytes) -> None:
        self.keepers.setdefault(keeper, _Keeper())

    def remove(self, keeper: bytes) -> None:
        self.keepers.pop(keeper, None)

    def due(self, end: int) -> list[tuple[bytes, int]]:
        """(keeper, cursor) of those that lack records before ``end`` and are not being pushed to."""
        found = [(key, keeper.acknowledged) for key, keeper in self.keepers.items() if not keeper.pushing and keeper.acknowledged < end]
        for key, _ in found:
            self.keepers[key].pushing = True
        return found

    def on_acknowledged(self, keeper: bytes, cursor: int) -> None:
        state = self.keepers.get(keeper)
        if state is not None:
            state.pushing, state.failures = False, 0
            state.acknowledged = max(state.acknowledged, cursor)

    def note(self, keeper: bytes, cursor: int) -> None:
        """A part of a push was acknowledged; more of it follows."""
        state = self.keepers.get(keeper)
        if state is not None:
            state.acknowledged = max(state.acknowledged, cursor)

    def on_failed(self, keeper: bytes) -> int:
        """A push failed; returns how many have in a row."""
        state = self.keepers.get(keeper)
        if state is None:
            return 0
        state.pushing = False
        state.failures += 1
        return state.failures

    def complete(self, end: int) -> bool:
        """Whether every keeper has everything before ``end``."""
        return all(keeper.acknowledged >= end for keeper in self.keepers.values())

    def complete_at(self, keeper: bytes, end: int) -> bool:
        """Whether a keeper has everything before ``end``."""
        return self.keepers[keeper].acknowledged >= end
