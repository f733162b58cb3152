"""Contacts that stopped answering: they are asked again, ever more rarely, for they may only have been cut off.

After a partition each side has dropped everybody of the other. Without a memory of them the two would stay two grids
for ever, however well the network is again. Bounded in number and time; whoever answers is forgotten here.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import NamedTuple

from p2pgrid.dht.contact import GridNode

LOST_MAX = 256
PAUSE_MAX_S = 600.0
GIVEN_UP_S = 24 * 3600.0


class _Lost(NamedTuple):
    node: GridNode
    since_s: float
    due_s: float
    pause_s: float


class LostContacts:
    """Those that were dropped, the one lost first in front. Times are the node's clock, in seconds."""

    def __init__(self, first_pause_s: float) -> None:
        self._first_pause_s = first_pause_s
        self._lost: OrderedDict[bytes, _Lost] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lost)

    def remember(self, node: GridNode, now_s: float) -> None:
        """A contact was dropped because it did not answer."""
        if node.id in self._lost:
            return
        if len(self._lost) >= LOST_MAX:
            self._lost.popitem(last=False)
        self._lost[node.id] = _Lost(node, now_s, now_s + self._first_pause_s, self._first_pause_s)

    def forget(self, node_id: bytes) -> None:
        """It is there again."""
        self._lost.pop(node_id, None)

    def due(self, now_s: float, rng: random.Random, count: int) -> list[GridNode]:
        """Up to ``count`` of those whose pause is over, drawn at random; the next pause of each is twice as long."""
        for node_id in [node_id for node_id, lost in self._lost.items() if now_s - lost.since_s > GIVEN_UP_S]:
            del self._lost[node_id]
        ready = [lost for lost in self._lost.values() if lost.due_s <= now_s]
        chosen = rng.sample(ready, min(count, len(ready)))
        for lost in chosen:
            pause_s = min(PAUSE_MAX_S, 2 * lost.pause_s)
            self._lost[lost.node.id] = _Lost(lost.node, lost.since_s, now_s + pause_s, pause_s)
        return [lost.node for lost in chosen]
