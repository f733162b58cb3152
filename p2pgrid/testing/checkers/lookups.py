"""L2: lookups return the true k closest servers.

Whoever runs the grid makes the lookups when the liveness phase is over and tells the answers with :meth:`answered`; what
is true is computed from all nodes at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node


def dht_id(key: bytes) -> int:
    """The place of a node in the key space, by docs/spec/identity.md."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=20, person=b"p2pgrid/node").digest(), "big")


def true_closest(target: bytes, servers: Iterable[bytes], count: int, asker: bytes = b"") -> list[bytes]:
    """The ``count`` node keys nearest to a target (20 bytes) among ``servers``, nearest first, without ``asker``'s own."""
    place = int.from_bytes(target, "big")
    return sorted((key for key in servers if key != asker), key=lambda key: dht_id(key) ^ place)[:count]


def servers_of(nodes: Iterable[Node]) -> list[bytes]:
    """The keys of those nodes that take part in routing."""
    return [node.key.public for node in nodes if node.dht.is_server]


class LookupChecker(Onlooker):
    """L2, over the lookups made at the end."""

    invariant = "L2"

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._facts = facts
        self.lookups = 0
        self.exact = 0
        """Lookups that found all of the true closest, in their order."""
        self.found = 0
        """Of the nodes that were to be found."""
        self.due = 0

    @property
    def share(self) -> float:
        """Of the lookups, those that were exact; 1 when there was none."""
        return self.exact / self.lookups if self.lookups else 1.0

    @property
    def recall(self) -> float:
        """Of the true closest nodes, those that were found."""
        return self.found / self.due if self.due else 1.0

    def answered(self, asker: bytes, target: bytes, answer: Sequence[bytes]) -> bool:
        """A lookup by the node with the key ``asker`` gave these node keys, nearest first. Whether that is right."""
        nodes = list(self.view.living().values())
        truth = true_closest(target, servers_of(nodes), self._facts.lookup_answers, asker)
        known = {node.key.public for node in nodes}
        given = [key for key in answer if key in known]
        self.lookups += 1
        self.due += len(truth)
        self.found += len(set(truth) & set(given))
        right = given[: len(truth)] == truth
        self.exact += right
        return right

    def _lost_bound(self) -> float:
        """How many nodes may be missed because question or answer was lost, and again when it was sent again.

        Mean and four standard deviations, and one more for so rare a thing; none where nothing is lost.
        """
        once = 1.0 - (1.0 - self._facts.loss) ** 2
        mean = self.due * once * once
        return mean + 4.0 * math.sqrt(mean) + 1.0 if mean else 0.0

    def finish(self) -> None:
        """Report when too few of the lookups were right."""
        least = self._facts.expect.lookups_min
        if 0 <= least and self.share < least and self.due - self.found > self._lost_bound():
            text = f"{self.exact} of {self.lookups} lookups found the true closest servers ({self.recall:.1%} of these)"
            self.violate("dht", text)
