"""What a holder remembers of its blobs, of who else holds them, and of the peers: the tables of :mod:`p2pgrid.core.replication`.

The order of a blob's holders is by ``digest(blob, key)``: everybody who knows the same holders puts them into the same order, and
each blob into another one, so that the work of repairing what a lost node held is spread over all who held something with it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.wire.codec import digest_of

CLAIMS = 1
"""It said that it keeps the blob, or acknowledged it, and is there."""
PROVEN = 2
"""It has shown that it has a random chunk."""
HAS = 4
"""It has the blob, but not for as long as is wanted: a lease is all it needs."""

NOT_KEPT, KEPT, KEPT_SHORTER = 0, 1, 2
"""What is answered to ``blob.holds``, a byte for each blob."""


def order(blob: bytes, key: bytes) -> bytes:
    """Where a node stands among the holders of a blob: the smallest is first, the largest repairs and trims."""
    return digest_of(blob + key)


@dataclass(frozen=True, slots=True)
class Terms:
    """How patient a holder is. Seconds, bytes, numbers."""

    grace_s: float = 3.0
    """From a definite loss to its repair. A peer counts as lost only when it could not be dialled again (1.5 s), so that a
    connection that broke is no loss; what is left is for the holders to hear of it, and of unknown copies."""
    leaving_s: float = 10.0
    """From the word of a peer that it is leaving: it copies what it holds itself."""
    believed_s: float = 600.0
    """Who said that it leaves, and is still there after so long, stays."""
    young_s: float = 20.0
    young_bytes_per_s: float = 4e6
    """A blob that never had its copies gets time for its writer to make them: ``young_s``, and its bytes at this speed."""
    step_s: float = 60.0
    step_bytes_per_s: float = 1e6
    """The last holder repairs; each one before it waits so much longer for the next one to do it."""
    probe_s: float = 60.0
    prove_s: float = 5.0
    """Between two questions to a co-holder: when all is proven, and while copies are not."""
    ask_gap_s: float = 1.0
    """Questions that can wait are gathered for so long."""
    ask_max: int = 1024
    proofs_max: int = 32
    """Blobs and proofs in one question: 1,024 ids and ends are 45 kB of a frame of 64 KiB, 32 chunks at most 32 MiB to read."""
    trim_s: float = 600.0
    """A copy too many is kept for so long: nodes that come and go would make a blob wander."""
    check_s: float = 30.0
    """Before that copy goes, those that stay must prove theirs anew within this time."""
    refused_s: float = 600.0
    busy_s: float = 30.0
    """A node that refused a copy is not asked again for so long: no room or no right, or any other reason."""
    worth_s: float = 300.0
    """What is wanted for less is not copied any more: it ends everywhere, by clocks that differ a little."""
    fresh_s: float = 30.0
    """Before a copy is made, everybody near was asked for unknown ones within this time."""
    answers_s: float = 3.0
    """Whoever was asked for copies that nobody spoke of has so long to answer."""
    retry_s: float = 10.0
    away_retry_s: float = 300.0
    forget_s: float = 3600.0
    """A question that failed; a peer that is away is tried; and forgotten as a holder."""
    copies_max: int = 8
    bytes_per_s: float = 32.0 * 1024 * 1024
    """Copies in flight, and how fast new ones are begun: 200 MiB from one repairer take 6 s."""
    blobs_max: int = 100_000
    holders_max: int = 16
    peers_max: int = 1024
    neighbours_max: int = 64
    """Blobs cared for, believed holders of one, peers known, peers asked for unknown copies."""


class BlobCare(NamedTuple):
    """How it stands with a blob that this node cares for."""

    blob: bytes
    size_bytes: int
    replicas: int
    """Copies wanted."""
    holders: tuple[bytes, ...]
    """Who is there and keeps it, this node included, in the order of the blob."""
    proven: tuple[bytes, ...]
    """Those of them that have proved a chunk of it; this node is one."""
    believed: tuple[bytes, ...]
    """Who held it and is away, or has not answered yet."""
    heard_s: tuple[float, ...]
    """How long ago each of the holders last answered; 0 for this node."""
    copying: tuple[bytes, ...]
    """To whom this node copies it now."""
    short_s: float | None
    """For how long there have been too few copies; None: there are enough."""
    repair_in_s: float | None
    """When this node makes the next copy; None: nothing to do, or nobody to copy it to."""
    reason: str
    """Why it is not as it should be: a reason code, empty when all is well."""
    text: str
    """The same in words."""


@dataclass(slots=True)
class Care:
    """One blob of this node."""

    blob: bytes
    size_bytes: int
    replicas: int
    expires_ms: int
    ends: float = math.inf
    fixed: bool = False
    """The owner of this node wants it here: it is never trimmed."""
    holders: dict[bytes, int] = field(default_factory=dict)
    copying: dict[bytes, bool] = field(default_factory=dict)
    """To whom; True when the copy was acknowledged and is to be proved."""
    checking: dict[bytes, None] = field(default_factory=dict)
    """Who has yet to prove its copy before this one goes."""
    full: bool = False
    """It once had its copies."""
    short_since: float = math.inf
    grace_until: float = 0.0
    searched_s: float = -math.inf
    search: int = 0
    """Its place in the list of what peers are asked for."""
    surplus_since: float = math.inf
    stuck_until: float = 0.0
    reason: str = ""
    """Why the last attempt to copy it failed."""
    due: float = math.inf
    ready: bool = False

    def live(self) -> list[bytes]:
        """The others who are there and keep it."""
        return [key for key, state in self.holders.items() if state & CLAIMS]

    def count(self) -> int:
        """Copies that count, this one included."""
        return 1 + sum(state & CLAIMS for state in self.holders.values())

    @property
    def short(self) -> bool:
        return self.short_since < math.inf


@dataclass(slots=True)
class Peer:
    """What is known of another node."""

    key: bytes
    there: bool = False
    """A session to it lives."""
    away: bool = False
    """It was lost, or could not be reached."""
    away_since: float = 0.0
    stores: bool = False
    leaving: bool = False
    leaving_since: float = 0.0
    lied: bool = False
    """It claimed what it could not prove: only what it proves counts."""
    refused_until: float = 0.0
    refused_bytes: int = 0
    """Blobs of this size or larger."""
    refused_why: str = ""
    blobs: dict[bytes, None] = field(default_factory=dict)
    """What it is believed to hold."""
    unproven: dict[bytes, None] = field(default_factory=dict)
    urgent: dict[bytes, None] = field(default_factory=dict)
    """To be asked at once, with proof."""
    todo: deque[bytes] = field(default_factory=deque)
    round: deque[bytes] = field(default_factory=deque)
    """What is still to be asked in the present round of probes."""
    searched: int = 0
    """Up to where it was asked for unknown copies."""
    asking: bool = False
    proving: frozenset[bytes] = frozenset()
    """Of what it is asked for now: what it must prove."""
    fails: int = 0
    asked_s: float = 0.0
    back_s: float = 0.0
    """When it was last asked, and when it last came."""
    heard_s: float = 0.0
    """When it last answered."""
    ask_at: float = 0.0
    probe_at: float = math.inf
    round_at: float = math.inf
    due: float = math.inf

    @property
    def takes(self) -> bool:
        """Whether it may be asked to hold something."""
        return self.there and self.stores and not self.leaving and not self.lied

    def refuses(self, size_bytes: int, now: float) -> bool:
        return now < self.refused_until and size_bytes >= self.refused_bytes
