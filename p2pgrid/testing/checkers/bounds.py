"""S4: every queue, table and cache of a node stays under its limit.

The tables are looked at from outside, by the names of the attributes that hold them: what is renamed in the product
fails here at once. One node is looked at each second, in turn, and all of them at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from p2pgrid.model.limits import Limits
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node


class Size(NamedTuple):
    """How much of something is there and how much may be."""

    what: str
    found: float
    most: float


class Bound(NamedTuple):
    """One table of a node."""

    what: str
    found: Callable[[Any], float]
    most: Callable[[Limits, Any], float]


def _longest(tables: Iterable[Any]) -> int:
    return max((len(table) for table in tables), default=0)


def _live_sessions(node: Any) -> list[int]:
    return [sum(session.live for session in group) for group in node.pool._peers.values()]


def _leads_most(node: Any) -> int:
    leads = [lead for _, lead in node.working.worker.sources]
    return max((leads.count(lead) for lead in set(leads)), default=0)


BOUNDS = (
    Bound("connections", lambda node: sum(_live_sessions(node)), lambda limits, node: limits.connections),
    Bound("connections of one peer", lambda node: max(_live_sessions(node), default=0), lambda limits, node: limits.connections_per_peer),
    Bound("connections of the owner", lambda node: len(node.pool._owners), lambda limits, node: 16),
    Bound("dials", lambda node: len(node.pool._dials), lambda limits, node: limits.connections),
    Bound("memberships known", lambda node: len(node._judge._known), lambda limits, node: 4096),
    Bound("buckets", lambda node: len(node.dht.router.buckets), lambda limits, node: node.dht.settings.buckets_max),
    Bound(
        "contacts of a bucket",
        lambda node: _longest(bucket.nodes for bucket in node.dht.router.buckets),
        lambda limits, node: node.dht.settings.k,
    ),
    Bound(
        "replacements of a bucket",
        lambda node: _longest(bucket.replacement_nodes for bucket in node.dht.router.buckets),
        lambda limits, node: 5 * node.dht.settings.k,
    ),
    Bound("records", lambda node: len(node.dht.storage), lambda limits, node: limits.records),
    Bound("records of a key", lambda node: _longest(node.dht.storage._by_key.values()), lambda limits, node: limits.records_per_key),
    Bound(
        "records of an author",
        lambda node: max(node.dht.storage._per_author.values(), default=0),
        lambda limits, node: limits.records_per_author,
    ),
    Bound("publications", lambda node: len(node.dht.publications), lambda limits, node: node.dht.settings.publications_max),
    Bound("peers of the DHT", lambda node: len(node.dht.protocol.book), lambda limits, node: node.dht.settings.peers_known),
    Bound("calls of the DHT", lambda node: node.dht.protocol.outstanding_len(), lambda limits, node: node.dht.settings.calls_outstanding),
    Bound("checks of the DHT", lambda node: len(node.dht.protocol.checks), lambda limits, node: node.dht.settings.checks_outstanding),
    Bound(
        "sources of datagrams", lambda node: node.dht.protocol.gate.sources_len(), lambda limits, node: node.dht.settings.sources_limited
    ),
    Bound("leads a worker hears", lambda node: len(node.working.worker.sources), lambda limits, node: 256),
    Bound("jobs of one lead", _leads_most, lambda limits, node: 32),
    Bound("units that run", lambda node: node.working.worker.running, lambda limits, node: max(1, node.config.policy.cores)),
    Bound("units that wait", lambda node: node.working.worker.queued, lambda limits, node: 8192 * (1 + len(node.working.worker.sources))),
    Bound("jobs a worker knows", lambda node: len(node.working._known), lambda limits, node: 256),
    Bound("jobs a worker refused", lambda node: len(node.working._refused), lambda limits, node: 256),
    Bound("leases a worker owes", lambda node: len(node.working._owed), lambda limits, node: 4096),
    Bound("leads that are gone", lambda node: len(node.working._leadless), lambda limits, node: 256),
    Bound("jobs led", lambda node: sum(not led.ended.is_set() for led in node.leading.jobs.values()), lambda limits, node: limits.jobs_led),
    Bound("jobs kept in memory", lambda node: len(node.keeping.jobs), lambda limits, node: limits.jobs_kept),
    Bound("job logs open", lambda node: len(node.ledgers._logs), lambda limits, node: limits.jobs_kept + limits.jobs_led),
    Bound(
        "bytes of a job log",
        lambda node: max(node.keeping._log_bytes.values(), default=0),
        lambda limits, node: limits.ledger_bytes,
    ),
)


def sizes(node: Node, limits: Limits) -> Iterator[Size]:
    """All tables of a node."""
    for bound in BOUNDS:
        yield Size(bound.what, bound.found(node), bound.most(limits, node))
    usage = node.blobs.usage()
    yield Size("bytes of blobs", usage.used_bytes + usage.reserved_bytes, usage.quota_bytes)


class BoundsChecker(Onlooker):
    """S4, at every living node in turn."""

    invariant = "S4"

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._limits = limits
        self._turn = 0
        self.fullest: dict[str, float] = {}
        """By table: the largest share of its limit that was met."""

    def on_second(self) -> None:
        living = sorted(self.view.living())
        if living:
            self._turn += 1
            name = living[self._turn % len(living)]
            self._look(name, self.view.living()[name])

    def at_end(self) -> None:
        for name, node in sorted(self.view.living().items()):
            self._look(name, node)

    def _look(self, name: str, node: Node) -> None:
        for size in sizes(node, self._limits):
            if size.most > 0:
                self.fullest[size.what] = max(self.fullest.get(size.what, 0.0), size.found / size.most)
            if size.found > size.most:
                self.violate(name, f"{size.what}: {size.found:.0f}, and {size.most:.0f} are the most")
