"""Acknowledged objects and what becomes of them: read, lost, or unlucky because all who held them were struck.

Where r copies lie on nodes drawn at random among n, and f of these are struck, all copies are gone with the chance
C(f, r) / C(n, r). Without repair it does not matter whether the nodes were struck at once or one after another. With
repair each blow stands for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def struck_chance(copies: int, struck: int, nodes: int) -> float:
    """The chance that ``copies`` copies on distinct nodes drawn from ``nodes`` all lie on the ``struck`` ones."""
    if copies < 1 or nodes < copies:
        return 1.0 if struck >= nodes else 0.0
    return math.comb(min(struck, nodes), copies) / math.comb(nodes, copies)


def unlucky_bound(mean: float) -> float:
    """The most unlucky objects that chance explains."""
    return mean + 4 * math.sqrt(mean) + 2


class _Object:
    __slots__ = ("expected", "holders", "nodes", "struck")

    def __init__(self, holders: Sequence[bytes], nodes: frozenset[bytes]) -> None:
        self.holders = tuple(dict.fromkeys(holders))
        self.nodes = nodes
        self.struck: set[bytes] = set()
        """Of the nodes that were there when it was stored."""
        self.expected = 0.0


class Objects:
    """The acknowledged objects of one kind."""

    def __init__(self, *, repair: bool = False) -> None:
        """``repair``: copies that were lost are made again between two blows."""
        self._repair = repair
        self._objects: dict[bytes, _Object] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def add(self, object_id: bytes, holders: Sequence[bytes], nodes: Iterable[bytes] = ()) -> None:
        """An object was acknowledged with copies at ``holders``, drawn from ``nodes`` (these, if more are not known)."""
        if object_id not in self._objects:
            self._objects[object_id] = _Object(holders, frozenset(nodes) | frozenset(holders))

    def struck(self, *holders: bytes) -> None:
        """These nodes were struck at once: what they held is gone for good."""
        for one in self._objects.values():
            fresh = [key for key in holders if key in one.nodes and key not in one.struck]
            if not fresh:
                continue
            if self._repair:
                # What is left of the nodes had r copies again before this blow.
                one.expected += struck_chance(len(one.holders), len(fresh), len(one.nodes) - len(one.struck))
            one.struck.update(fresh)
            if not self._repair:
                one.expected = struck_chance(len(one.holders), len(one.struck), len(one.nodes))

    def survivors(self, object_id: bytes) -> list[bytes]:
        """The holders of an object that were not struck."""
        one = self._objects[object_id]
        return [key for key in one.holders if key not in one.struck]

    def ids(self) -> list[bytes]:
        """All objects, in the order in which they were added."""
        return list(self._objects)

    def holders(self, object_id: bytes) -> tuple[bytes, ...]:
        """Who held an object when it was acknowledged."""
        return self._objects[object_id].holders

    @property
    def unlucky(self) -> list[bytes]:
        """The objects whose holders were all struck."""
        return [key for key in self._objects if not self.survivors(key)]

    @property
    def unlucky_expected(self) -> float:
        """How many of them the formula expects."""
        return sum(one.expected for one in self._objects.values())
