"""The parameters of the DHT, and what a DHT node is given from outside, in two structs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from p2pgrid.model.ids import GridId, NodeKey
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.wire.keys import SigningKey

CREDENTIAL_BYTES_MAX = 700

Authorise = Callable[[NodeKey, bytes], bool]
"""Whether this credential makes this key a member of the grid."""


class DhtSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, seconds (``_s``) and rates per second (``_per_s``)."""

    k: int = 20
    """Contacts per bucket, and per answer."""
    alpha: int = 5
    """Questions of one lookup in flight."""
    copies: int = 10
    acks: int = 5
    """A put returns after this many acknowledgements; the other copies follow."""
    paths_trusted: int = 4
    """Disjoint paths of joins and of lookups that somebody may want to steer."""
    queries_max: int = 120
    """Questions of one lookup, per path budget included."""
    crawl_s: float = 10.0
    """Longest lookup."""
    answers_wanted: int = 3
    """Holders whose answers are merged in one get."""
    strikes_max: int = 2
    """Unanswered calls (each sent twice) after which a contact is dropped."""

    timeout_start_s: float = 1.0
    timeout_min_s: float = 0.3
    timeout_max_s: float = 2.0
    timeout_retry_factor: float = 1.5

    open_grid: bool = False
    """In an open grid at most this many contacts share a public /24 or /48."""
    prefix_per_bucket: int = 2
    prefix_per_table: int = 10

    peers_known: int = 4096
    calls_outstanding: int = 1024
    checks_outstanding: int = 64
    buckets_max: int = 512
    sources_limited: int = 4096
    source_per_s: float = 250.0
    source_burst: float = 500.0
    total_per_s: float = 3000.0
    """Datagrams of all sources whose signature is verified; a flood costs at most this much CPU."""
    probes_at_once: int = 16
    publications_max: int = 4096

    refresh_s: float = 3600.0
    replicate_s: float = 3600.0
    handover_s: float = 0.5
    """New contacts of this long are gathered before records are handed over to them."""
    handovers_max: int = 256
    upkeep_s: float = 15.0
    reach_retry_s: float = 60.0
    credential_check_s: float = 600.0
    """A verified credential is verified again after this long, because it may have expired."""
    close_s: float = 2.0


@dataclass(frozen=True, kw_only=True)
class DhtContext:
    """Who this node is, and its clocks and randomness. In production ``rng`` is ``random.SystemRandom()``."""

    key: SigningKey
    grid: GridId
    credential: bytes
    authorise: Authorise
    clock: Callable[[], float]
    wall_clock_ms: Callable[[], int]
    rng: random.Random
    limits: Limits = field(default=DEFAULT_LIMITS)
    settings: DhtSettings = field(default_factory=DhtSettings)
