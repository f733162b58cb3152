"""The routing table: the package's bucket tree, with the admission rules and the exact search it lacks.

1. ``find_neighbors`` returns exactly the k contacts nearest by XOR, the target itself included.
2. A contact enters only through the protocol, after it answered a call of ours at that very place.
3. An answer moves a contact to the young end of its bucket; unanswered calls are strikes, and at
   ``strikes_max`` it goes and the youngest replacement takes its place.
4. In an open grid a public prefix has at most so many contacts in a bucket and in the table.
5. Every range, list and cache is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from p2pgrid.dht.base import KBucket, Node, RoutingTable
from p2pgrid.dht.contact import GridNode, prefix_of
from p2pgrid.dht.settings import DhtSettings

ID_BITS = 160


class TableOwner(Protocol):
    """What the table asks of the protocol."""

    def check_soon(self, node: GridNode) -> None:
        """Ping a contact that is in doubt, in the background and bounded."""

    def lose(self, node: GridNode) -> None:
        """A contact was dropped because it does not answer."""


class GridBucket(KBucket):
    """A bucket whose clock is given, so that a simulation can own time."""

    nodes: dict[bytes, GridNode]  # type: ignore[assignment]
    replacement_nodes: dict[bytes, GridNode]  # type: ignore[assignment]

    def __init__(self, lower: int, upper: int, ksize: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.filled_at = float("-inf")
        """When contacts were last looked for because there were few."""
        super().__init__(lower, upper, ksize)

    def touch_last_updated(self) -> None:
        self.last_updated = self.clock()

    def split(self) -> tuple[GridBucket, GridBucket]:
        """Two halves. The package's own would make buckets of its own class."""
        middle = (self.range[0] + self.range[1]) // 2
        one = GridBucket(self.range[0], middle, self.ksize, self.clock)
        two = GridBucket(middle + 1, self.range[1], self.ksize, self.clock)
        for node in (*self.nodes.values(), *self.replacement_nodes.values()):
            (one if node.long_id <= middle else two).add_node(node)
        one.last_updated = two.last_updated = self.last_updated
        return one, two

    def prefix_count(self, prefix: bytes) -> int:
        """How many nodes and replacements share a public prefix."""
        return sum(prefix_of(node.place) == prefix for node in (*self.nodes.values(), *self.replacement_nodes.values()))


class GridTable(RoutingTable):
    """The contacts of one node."""

    buckets: list[GridBucket]

    def __init__(self, owner: TableOwner, ksize: int, node: GridNode, settings: DhtSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.clock = clock
        self._owner = owner
        super().__init__(owner, ksize, node)

    def flush(self) -> None:
        """Forget everybody. The last id belongs to the range, unlike in the package."""
        self.buckets = [GridBucket(0, (1 << ID_BITS) - 1, self.ksize, self.clock)]

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def contacts(self) -> list[GridNode]:
        """All contacts, in the order of their buckets."""
        return [node for bucket in self.buckets for node in bucket.nodes.values()]

    def get(self, node_id: bytes) -> GridNode | None:
        """The contact with this id."""
        return self.buckets[self._index_of(int.from_bytes(node_id, "big"))].nodes.get(node_id)

    def _index_of(self, long_id: int) -> int:
        low, high = 0, len(self.buckets) - 1
        while low < high:
            middle = (low + high) // 2
            if long_id <= self.buckets[middle].range[1]:
                high = middle
            else:
                low = middle + 1
        return low

    def get_bucket_for(self, node: Node) -> int:
        """The index of a node's bucket. The package puts the last id of each range in the wrong one."""
        return self._index_of(node.long_id)

    def touch(self, node: Node) -> None:
        """Note that we looked something up in this range; inbound questions do not count."""
        self.buckets[self.get_bucket_for(node)].touch_last_updated()

    def lonely_buckets(self) -> list[GridBucket]:
        """The buckets in whose range nothing was looked up for ``refresh_s``."""
        before = self.clock() - self.settings.refresh_s
        return [bucket for bucket in self.buckets if bucket.last_updated < before]

    def _may_split(self, bucket: GridBucket) -> bool:
        if len(self.buckets) >= self.settings.buckets_max or bucket.range[0] >= bucket.range[1]:
            return False
        return bucket.has_in_range(self.node) or bucket.depth() % 5 != 0

    def _has_prefix_room(self, node: GridNode, bucket: GridBucket) -> bool:
        prefix = prefix_of(node.place) if self.settings.open_grid else None
        if prefix is None:
            return True
        in_table = sum(other.prefix_count(prefix) for other in self.buckets)
        return bucket.prefix_count(prefix) < self.settings.prefix_per_bucket and in_table < self.settings.prefix_per_table

    def wants(self, node: GridNode) -> bool:
        """Whether it is worth a ping to learn if this node may enter: only when it would not be a replacement."""
        if node.id == self.node.id or not self.is_new_node(node):
            return False
        bucket = self.buckets[self.get_bucket_for(node)]
        return (len(bucket) < self.ksize or self._may_split(bucket)) and self._has_prefix_room(node, bucket)

    def add_contact(self, node: GridNode) -> bool:
        """Add or refresh a contact that has just answered; True when it is new to the table."""
        if node.id == self.node.id:
            return False
        bucket = self.buckets[self.get_bucket_for(node)]
        known = bucket.nodes.get(node.id)
        if known is None and node.id not in bucket.replacement_nodes and not self._has_prefix_room(node, bucket):
            return False
        node.strikes = 0
        while not bucket.add_node(node):
            if not self._may_split(bucket):
                if bucket.head().strikes:
                    self._owner.check_soon(bucket.head())
                return False
            bucket.replacement_nodes.pop(node.id, None)
            self.split_bucket(self.get_bucket_for(node))
            bucket = self.buckets[self.get_bucket_for(node)]
        return known is None

    def remove_contact(self, node: GridNode) -> None:
        """A call to this contact went unanswered. Somebody else's word on its address does not count."""
        bucket = self.buckets[self.get_bucket_for(node)]
        replacement = bucket.replacement_nodes.get(node.id)
        if replacement is not None and replacement.place == node.place:
            del bucket.replacement_nodes[node.id]
        known = bucket.nodes.get(node.id)
        if known is None or known.place != node.place:
            return
        known.strikes += 1
        if known.strikes < self.settings.strikes_max:
            self._owner.check_soon(known)
            return
        self.expel(known)
        self._owner.lose(known)

    def expel(self, node: Node) -> None:
        """Drop a contact at once; the youngest replacement moves up, and is checked since it may be old."""
        bucket = self.buckets[self.get_bucket_for(node)]
        before = set(bucket.nodes)
        bucket.remove_node(node)
        for node_id, moved in bucket.nodes.items():
            if node_id not in before:
                self._owner.check_soon(moved)

    def find_neighbors(self, node: Node, k: int | None = None, exclude: Node | None = None) -> list[GridNode]:
        """The ``k`` contacts nearest to ``node``, nearest first.

        Each bucket is an aligned range, so its distances to the target form an interval that overlaps no
        other: taking buckets by the start of that interval, and sorting within, is exact.
        """
        wanted = self.ksize if k is None else k
        target = node.long_id

        def start(bucket: GridBucket) -> int:
            lower, upper = bucket.range
            return (lower ^ target) & ~(upper - lower)

        def distance(other: GridNode) -> int:
            return other.long_id ^ target

        nearest: list[GridNode] = []
        for bucket in sorted(self.buckets, key=start):
            nearest += sorted(bucket.nodes.values(), key=distance)
            if len(nearest) > wanted:  # One more than wanted, since at most one is excluded.
                break
        if exclude is not None:
            nearest = [other for other in nearest[: wanted + 1] if not other.same_home_as(exclude)]
        return nearest[:wanted]
