"""Lookups: the package's spider, with a rolling row of questions instead of rounds.

1. Up to alpha questions are in flight. As soon as one is answered the next nearest peer is asked.
2. A peer slower than the soft time-out gives up its place in the row; its answer still counts if it comes.
   At its end a lookup of nodes waits for those that would be among the nearest, a lookup of records while it has none.
3. With several paths, the starting peers are dealt out, no peer is asked by two paths, and a last pass over the
   union of all paths closes the gaps between them.
4. The queries, the candidates remembered and the whole time are bounded, whatever peers answer.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from p2pgrid.dht.base import Node, NodeHeap, SpiderCrawl
from p2pgrid.dht.contact import GridNode, Place
from p2pgrid.dht.records import RecordKind, SignedRecord, open_record
from p2pgrid.errors import IntegrityError, MalformedError

if TYPE_CHECKING:
    from p2pgrid.dht.protocol import Found, GridProtocol

_REMEMBERED_FACTOR = 4
_PATH_WIDTH = 2
Visit = tuple[bytes, Place]


class GridHeap(NodeHeap):
    """The package's heap, bounded, and with a set of ids so that pushing does not search."""

    def __init__(self, node: Node, maxsize: int) -> None:
        super().__init__(node, maxsize)
        self._ids: set[bytes] = set()

    def __contains__(self, node: Node) -> bool:
        return node.id in self._ids

    def push(self, nodes: Any) -> None:
        """Add contacts; beyond four times the size that is looked at, the farthest are forgotten."""
        added = nodes if isinstance(nodes, list) else [nodes]
        for node in added:
            if node.id not in self._ids:
                self._ids.add(node.id)
                heapq.heappush(self.heap, (self.node.distance_to(node), node))
        if len(self.heap) > _REMEMBERED_FACTOR * self.maxsize:
            self.heap = heapq.nsmallest(_REMEMBERED_FACTOR * self.maxsize // 2, self.heap)
            self._ids = {node.id for _, node in self.heap}

    def remove(self, peers: Any) -> None:
        gone = self._ids.intersection(peers)
        if gone:
            super().remove(gone)
            self._ids -= gone


class _Question:
    __slots__ = ("heap", "node", "slow", "slow_at")

    def __init__(self, heap: GridHeap, node: GridNode, slow_at: float) -> None:
        self.heap = heap
        self.node = node
        self.slow_at = slow_at
        self.slow = False


class GridCrawl(SpiderCrawl):
    """One lookup, of the nodes nearest to an id or, with ``kind``, of records under a key."""

    protocol: GridProtocol

    def __init__(
        self,
        protocol: GridProtocol,
        node: Node,
        peers: Sequence[GridNode],
        ksize: int,
        alpha: int,
        *,
        paths: int = 1,
        kind: RecordKind | None = None,
    ) -> None:
        super().__init__(protocol, node, [], ksize, alpha)
        self.kind = kind
        self.settings = protocol.settings
        self.queries = 0
        self.failures = 0
        self.answered: dict[bytes, GridNode] = {}
        self.records: list[SignedRecord] = []
        self.answers_with_records = 0
        self._raw_seen: set[bytes] = set()
        self._asked: set[Visit] = set()
        self._questions: dict[asyncio.Task[tuple[bool, Any]], _Question] = {}
        self._first_record_at: float | None = None
        self._heaps = [GridHeap(node, ksize) for _ in range(max(1, paths))]
        for index, peer in enumerate(sorted(peers, key=node.distance_to)):
            self._heaps[index % len(self._heaps)].push(peer)
        self.nearest = self._heaps[0]

    async def find(self) -> list[GridNode]:
        """Run the lookup. The peers that answered, nearest first, at most k; records are in ``records``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.crawl_s
        self.protocol.router.touch(self.node)
        try:
            if len(self._heaps) > 1:
                await self._run(self._heaps, deadline)
                self.nearest = GridHeap(self.node, self.ksize)
                for heap in self._heaps:
                    self.nearest.push([node for _, node in heap.heap])
                self.nearest.push(list(self.answered.values()))
                for question in self._questions.values():
                    question.heap = self.nearest
            await self._run([self.nearest], deadline)
        finally:
            for task in self._questions:
                self.protocol.leftovers.adopt(task)
        return self.nearest_answered()

    def nearest_answered(self) -> list[GridNode]:
        """The peers that answered, nearest first, at most k."""
        return sorted(self.answered.values(), key=self.node.distance_to)[: self.ksize]

    def take_own(self, records: Sequence[SignedRecord]) -> None:
        """What this node keeps itself counts as the answer of one holder."""
        self.records += records
        self.answers_with_records += bool(records)

    def _queries_max(self) -> int:
        return self.settings.queries_max * (2 if len(self._heaps) > 1 else 1)

    async def _run(self, heaps: list[GridHeap], deadline: float) -> None:
        loop = asyncio.get_running_loop()
        width = self.alpha if len(heaps) == 1 else _PATH_WIDTH
        while True:
            for heap in heaps:
                self._ask_next(heap, width)
            now = loop.time()
            waited = [question.slow_at for question in self._questions.values() if not question.slow]
            if now >= deadline or self._has_enough(now) or not (waited or self._waits_for_slow()):
                return
            until = min([deadline, *waited, *self._end_of_collecting()])
            done, _ = await asyncio.wait(self._questions, timeout=max(0.0, until - now), return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in self._questions if task in done]:
                self._take(self._questions.pop(task), task.result())
            self._pass_over_slow(loop.time())

    def _waits_for_slow(self) -> bool:
        """Whether somebody slow, or whose datagram was lost and is sent again, could change what comes out."""
        if not self._questions or self.records:
            return False
        nearest = self.nearest_answered()
        if self.kind is not None or len(nearest) < self.ksize:
            return True
        beyond = self.node.distance_to(nearest[-1])
        return any(self.node.distance_to(question.node) < beyond for question in self._questions.values())

    def _end_of_collecting(self) -> list[float]:
        if self._first_record_at is None:
            return []
        return [self._first_record_at + self.protocol.rtt.soft_timeout_s(self.settings)]

    def _has_enough(self, now: float) -> bool:
        """Whether enough holders were heard, or the others have had their time since the first."""
        if self.answers_with_records >= self.settings.answers_wanted:
            return True
        return any(now >= end for end in self._end_of_collecting())

    def _ask_next(self, heap: GridHeap, width: int) -> None:
        in_row = sum(question.heap is heap and not question.slow for question in self._questions.values())
        if in_row >= width:
            return
        for node in heap.get_uncontacted():
            if in_row >= width or self.queries >= self._queries_max():
                return
            heap.mark_contacted(node)
            visit = (node.id, node.place)
            if visit not in self._asked and node.id not in self.answered:
                self._asked.add(visit)
                self._ask(heap, node)
                in_row += 1

    def _ask(self, heap: GridHeap, node: GridNode) -> None:
        loop = asyncio.get_running_loop()
        self.queries += 1
        if self.kind is None:
            work = self.protocol.call_find_node(node, self.node)
        else:
            work = self.protocol.call_find_value(node, self.node, int(self.kind))
        slow_at = loop.time() + self.protocol.rtt.soft_timeout_s(self.settings)
        self._questions[loop.create_task(work)] = _Question(heap, node, slow_at)

    def _take(self, question: _Question, result: tuple[bool, Found]) -> None:
        node = question.node
        if not result[0]:
            self.failures += 1
            question.heap.remove([node.id])
            question.heap.contacted.discard(node.id)  # Another word on its address may be the right one.
            return
        self.answered[node.id] = node
        question.heap.push(node)
        question.heap.mark_contacted(node)
        found = result[1]
        question.heap.push(list(found.contacts))
        if found.records and self._take_records(found.records):
            self.answers_with_records += 1
            if self._first_record_at is None:
                self._first_record_at = asyncio.get_running_loop().time()

    def _take_records(self, raws: list[bytes]) -> bool:
        """Check what a peer says it keeps; whether any of it holds."""
        context = self.protocol.context
        good = False
        for raw in raws:
            if raw in self._raw_seen:
                good = True
                continue
            try:
                record = open_record(raw, context.grid, context.wall_clock_ms(), context.limits)
            except (IntegrityError, MalformedError):
                self.protocol.gate.dropped["bad-record"] += 1
                continue
            if record.body.key == self.node.id and record.body.kind is self.kind:
                self._raw_seen.add(raw)
                self.records.append(record)
                good = True
        return good

    def _pass_over_slow(self, now: float) -> None:
        for question in self._questions.values():
            if not question.slow and now >= question.slow_at:
                question.slow = True
                question.heap.remove([question.node.id])
