"""How the DHT's lookups grow with the grid: the product's routing tables and its crawl, over thousands of nodes, lookups only.

1. A table holds what a grown one would: of every bucket's range k nodes drawn at random, or all if there are fewer. The ranges are
   those that the product's own splitting leads to (tests compare them with tables filled contact by contact).
2. Nobody is told who has died. A share of every table is stale; a question to a dead node is sent twice and runs into its time-out.
3. Questions are answered from the table of whoever is asked, after a round trip. No datagram is made and nothing is signed; tables
   do not learn from lookups, so that every lookup meets the same grid.
4. A lookup succeeds when it returns the living nodes nearest to its target without a gap, and at least as many as keep a record.
   Whoever is asked names k nodes at most, dead ones included, so that there may be fewer than k: ``found`` tells how many.

Messages are datagrams: two for a question that is answered, two for one that is not. Hops are the questions that follow
from one another up to the nearest node: one, if it was in the asker's own table.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from p2pgrid.dht.base import Node
from p2pgrid.dht.contact import GridNode, Place
from p2pgrid.dht.crawl import GridCrawl
from p2pgrid.dht.protocol import Found, GridProtocol
from p2pgrid.dht.rtt import RttEstimate
from p2pgrid.dht.settings import DhtSettings
from p2pgrid.dht.table import ID_BITS, GridBucket, GridTable
from p2pgrid.dht.tasks import Tasks
from p2pgrid.model.ids import KEY_BYTES, NodeKey
from p2pgrid.testing.plans import distributions
from p2pgrid.testing.world import World

SIZES = (50, 200, 1000, 5000)
STALE = 0.2
"""Share of contacts that are dead: of nodes found at random in the IPFS DHT about 15 of 100 are gone an hour later, after
which every bucket was refreshed."""
RTT = (0.06, 0.4)
"""Round trips are log-normal, as between hosts on the Internet: the median in seconds, and the spread."""
WARM_UP = 64
"""Round trips that a node has seen before it is measured: nobody looks up thousands of ids in a grid it has just entered."""
TABLES_MAX = 1200
"""Tables in memory at a time; one that is needed again is drawn again, and is the same."""
_LAST_ID = (1 << ID_BITS) - 1
_ID_BYTES = ID_BITS // 8
_LOOKUP_LIMIT_S = 3600.0


class LookupRow(msgspec.Struct, frozen=True, kw_only=True):
    """What lookups in one grid came to: means over ``lookups``; ``success`` is a share, ``seconds`` are virtual.

    ``found`` is the length of the gapless row of true nearest nodes that was returned, at most k.
    """

    nodes: int
    lookups: int
    success: float
    found: float
    hops: float
    hops_max: int
    messages: float
    seconds: float


class Population:
    """All nodes that tables may know, by id, and which of them live."""

    def __init__(self, keys: Sequence[bytes], living: Sequence[bool]) -> None:
        nodes = [GridNode(NodeKey(key), _place(number)) for number, key in enumerate(keys)]
        order = sorted(range(len(nodes)), key=lambda number: nodes[number].long_id)
        self.nodes = [nodes[number] for number in order]
        self.ids = [node.long_id for node in self.nodes]
        self.lives = {nodes[number].id: bool(living[number]) for number in order}
        self.living = [node for node in self.nodes if self.lives[node.id]]

    @classmethod
    def drawn(cls, living: int, stale: float, rng: random.Random) -> Population:
        """``living`` nodes, and as many dead ones as make ``stale`` of all."""
        count = round(living / (1.0 - stale))
        return cls([rng.randbytes(KEY_BYTES) for _ in range(count)], [number < living for number in range(count)])

    def nearest_living(self, target: int, count: int, but: bytes) -> list[bytes]:
        """The ids of the true ``count`` living nodes nearest to a target, nearest first, without ``but``."""
        others = (node for node in self.living if node.id != but)
        return [node.id for node in sorted(others, key=lambda node: node.long_id ^ target)[:count]]


class _Owner:
    """What a table asks of its protocol: here nothing is checked in the background."""

    def check_soon(self, node: GridNode) -> None:
        """Nothing is unlearned while lookups are measured."""

    def lose(self, node: GridNode) -> None:
        """Nor forgotten."""


class GrownGrid:
    """The tables of a population, drawn when they are first needed."""

    def __init__(self, population: Population, settings: DhtSettings, seed: int, rtt: tuple[float, float]) -> None:
        self.population = population
        self.settings = settings
        self.median_s, self.sigma = rtt
        self.rtt = RttEstimate()
        self._seed = seed
        rng = random.Random(f"{seed}/warm")
        for _ in range(WARM_UP):
            self.rtt.sample(self.draw_rtt_s(rng))
        self._owner = _Owner()
        self._tables: OrderedDict[bytes, GridTable] = OrderedDict()

    def draw_rtt_s(self, rng: random.Random) -> float:
        """A round trip between two nodes, in seconds."""
        return distributions.log_normal(self.median_s, self.sigma, rng)

    def table(self, node: GridNode) -> GridTable:
        """The table of a node: the same whenever it is asked for."""
        known = self._tables.get(node.id)
        if known is not None:
            self._tables.move_to_end(node.id)
            return known
        made = self._tables[node.id] = self._draw(node)
        if len(self._tables) > TABLES_MAX:
            self._tables.popitem(last=False)
        return made

    def _draw(self, node: GridNode) -> GridTable:
        table = GridTable(self._owner, self.settings.k, node, self.settings, _no_clock)
        rng = random.Random(f"{self._seed}/{node.id.hex()}")
        table.buckets = []
        self._fill(table, node, rng, (0, _LAST_ID, 0), (0, len(self.population.ids)))
        return table

    def _fill(self, table: GridTable, node: GridNode, rng: random.Random, span: tuple[int, int, int], members: tuple[int, int]) -> None:
        """Buckets for one range of ids: ``span`` is its bounds and the bits they share, ``members`` where its nodes lie."""
        lower, upper, depth = span
        first, last = members
        mine = lower <= node.long_id <= upper
        count = last - first - mine
        if count > self.settings.k and (mine or depth % 5):
            middle = (lower + upper) // 2
            cut = bisect_left(self.population.ids, middle + 1, first, last)
            self._fill(table, node, rng, (lower, middle, depth + 1), (first, cut))
            self._fill(table, node, rng, (middle + 1, upper, depth + 1), (cut, last))
            return
        bucket = GridBucket(lower, upper, self.settings.k, _no_clock)
        for number in rng.sample(range(first, last), min(last - first, self.settings.k + mine)):
            contact = self.population.nodes[number]
            if contact.id != node.id and len(bucket.nodes) < self.settings.k:
                bucket.nodes[contact.id] = contact
        table.buckets.append(bucket)


class _Asker:
    """Stands for the protocol of one node that looks something up: what a crawl asks of it, and what it costs."""

    def __init__(self, grid: GrownGrid, node: GridNode, rng: random.Random) -> None:
        self.settings = grid.settings
        self.router = grid.table(node)
        self.rtt = grid.rtt
        self.leftovers = Tasks(grid.settings.calls_outstanding)
        self.messages = 0
        self.hops: dict[bytes, int] = {}
        self._grid = grid
        self._node = node
        self._rng = rng

    async def call_find_node(self, node: GridNode, target: Node) -> tuple[bool, Found | None]:
        """Ask for the nodes nearest to a target."""
        self.messages += 2
        hop = self.hops.setdefault(node.id, 1)
        timeout_s = self.rtt.timeout_s(self.settings)
        if not self._grid.population.lives[node.id]:
            await asyncio.sleep(timeout_s * (1.0 + self.settings.timeout_retry_factor))
            return False, None
        rtt_s = self._grid.draw_rtt_s(self._rng)
        await asyncio.sleep(rtt_s)
        self.rtt.sample(rtt_s)
        contacts = self._grid.table(node).find_neighbors(target, exclude=self._node)
        for contact in contacts:
            self.hops.setdefault(contact.id, hop + 1)
        return True, Found(contacts, [])


def measure(population: Population, lookups: int, seed: int, rtt: tuple[float, float] = RTT) -> LookupRow:
    """Look up random ids from random living nodes, one after the other, with the product's own settings."""
    settings = DhtSettings()
    world = World(seed)
    rng = world.fork("lookups")
    grid = GrownGrid(population, settings, seed, rtt)
    loop = world.loop("asker")
    right, rows, hops, messages, seconds = 0, 0, [], 0, 0.0
    for _ in range(lookups):
        node = population.living[rng.randrange(len(population.living))]
        target = Node(rng.randbytes(_ID_BYTES))
        asker = _Asker(grid, node, rng)
        crawl = GridCrawl(cast(GridProtocol, asker), target, asker.router.find_neighbors(target), settings.k, settings.alpha)
        began = world.now
        task = loop.create_task(crawl.find())
        assert world.run_until(task.done, began + _LOOKUP_LIMIT_S), "a lookup does not end"
        found = [contact.id for contact in task.result()]
        row = _gapless(found, population.nearest_living(target.long_id, settings.k, node.id))
        right += row >= min(settings.copies, len(population.living) - 1)
        rows += row
        hops.append(asker.hops[found[0]] if found else 0)
        messages += asker.messages
        seconds += world.now - began
    world.close()
    return LookupRow(
        nodes=len(population.living),
        lookups=lookups,
        success=right / lookups,
        found=rows / lookups,
        hops=sum(hops) / lookups,
        hops_max=max(hops),
        messages=messages / lookups,
        seconds=seconds / lookups,
    )


def table(sizes: Sequence[int] = SIZES, lookups: int = 300, seed: int = 1, stale: float = STALE) -> list[LookupRow]:
    """Measure grids of several sizes (living nodes). ``stale``: share of dead nodes among those that tables know."""
    rows = []
    for size in sizes:
        population = Population.drawn(size, stale, random.Random(f"{seed}/{size}"))
        rows.append(measure(population, lookups, seed))
    return rows


def success(rows: Sequence[LookupRow]) -> float:
    """The share of all lookups that succeeded."""
    return sum(row.success * row.lookups for row in rows) / sum(row.lookups for row in rows)


def summary(rows: Sequence[LookupRow]) -> dict[str, float]:
    """Several measurements of one grid as figures of a verdict."""
    made = sum(row.lookups for row in rows)
    means = {
        "success": success(rows),
        "found": sum(row.found * row.lookups for row in rows) / made,
        "hops": sum(row.hops * row.lookups for row in rows) / made,
        "messages": sum(row.messages * row.lookups for row in rows) / made,
    }
    return {"lookups": float(made)} | {f"lookup_{name}": round(value, 4) for name, value in means.items()}


def figures(rows: Sequence[LookupRow]) -> dict[str, float]:
    """The rows as figures of a verdict: ``lookup_hops_50`` and so on."""
    found: dict[str, float] = {}
    for row in rows:
        columns: dict[str, Any] = {"success": row.success, "found": row.found, "hops": row.hops, "messages": row.messages}
        found.update({f"lookup_{name}_{row.nodes}": round(value, 4) for name, value in columns.items()})
    return found


def _gapless(found: Sequence[bytes], nearest: Sequence[bytes]) -> int:
    """How many of the first nodes found are the nearest ones, in order."""
    for number, (one, other) in enumerate(zip(found, nearest, strict=False)):
        if one != other:
            return number
    return min(len(found), len(nearest))


def _no_clock() -> float:
    return 0.0


def _place(number: int) -> Place:
    return Place(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 7000)
