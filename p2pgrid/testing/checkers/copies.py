"""L3, for files: copies return to the number that was asked for, and nobody lets a copy go that is needed.

1. So many seconds after the faults (``copies_back_s`` of the scenario) each file that is left at all has as many copies as its
   owner asked for, or as many as there are nodes with room for it.
2. A node that runs lets a copy go only while that many are left without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from p2pgrid.model.ids import BlobId
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.room import has_room
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node

LOOK_S = 2.0
"""Between two looks at who has which copy."""


class _File(NamedTuple):
    wanted: int
    size_bytes: int
    at_s: float


class CopiesChecker(Onlooker):
    """Looks at the copies of every file from time to time, and at the end."""

    invariant = "L3"

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._facts = facts
        self._files: dict[bytes, _File] = {}
        self._had: dict[str, tuple[Node, set[bytes]]] = {}
        """By machine: the node of its present life, and what it held at the last look."""
        self._damaged: set[str] = set()
        self._calm_s: float | None = None
        self._back_s: float | None = None
        self._looked_s = 0.0
        self._over = False
        self.made = 0
        """Copies that somebody got after the put."""
        self.figures: dict[str, float] = {}
        """``copies_mean``, ``copies_min``, ``copies_short`` (files with too few) and ``copies_back_s``; known at the end."""

    def on_stored(self, name: str, blob: bytes, size_bytes: int, holders: Sequence[bytes], replicas: int = 3) -> None:
        self._files[blob] = _File(min(replicas, len(set(holders))), size_bytes, self.view.now)

    def on_disk_damage(self, name: str, path: str) -> None:
        self._damaged.add(name)

    def on_calm(self) -> None:
        self._calm_s = self.view.now

    def on_second(self) -> None:
        if self._over or self.view.now - self._looked_s < LOOK_S:
            return
        self._looked_s = self.view.now
        self._look_for_losses()
        if self._calm_s is not None and self._back_s is None and not self._short():
            self._back_s = self.view.now

    @property
    def due(self) -> list[bytes]:
        """Files that have too few copies: whoever runs the grid waits for them, as long as the bound says."""
        bound_s = self._facts.expect.copies_back_s
        if bound_s < 0 or self._calm_s is None or self.view.now > self._calm_s + bound_s:
            return []
        return list(self._short())

    def _counts(self) -> dict[bytes, int]:
        nodes = list(self.view.living().values())
        return {blob: sum(node.blobs.has(BlobId(blob)) for node in nodes) for blob in self._files}

    def _short(self) -> dict[bytes, int]:
        """Files with fewer copies than there should be, and how many these have. What is gone cannot come back."""
        short = {}
        nodes = list(self.view.living().values())
        for blob, count in self._counts().items():
            file = self._files[blob]
            if 0 < count < file.wanted:
                willing = sum(not node.blobs.has(BlobId(blob)) and has_room(node, file.size_bytes) for node in nodes)
                if willing:
                    short[blob] = count
        return short

    def _look_for_losses(self) -> None:
        """Whoever let a copy go since the last look left enough others."""
        nodes = self.view.living()
        holds = {name: {blob for blob in self._files if node.blobs.has(BlobId(blob))} for name, node in nodes.items()}
        for name, node in nodes.items():
            before, had = self._had.get(name, (None, set[bytes]()))
            if before is not node:
                continue
            self.made += sum(blob not in had and self.view.now - self._files[blob].at_s > 2 * LOOK_S for blob in holds[name])
            if name in self._damaged:
                continue
            for blob in sorted(had - holds[name]):
                left = sum(blob in held for held in holds.values())
                if left < self._files[blob].wanted:
                    self.violate(name, f"a copy of {blob.hex()[:8]} was let go, and {left} of {self._files[blob].wanted} are left")
        self._had = {name: (node, holds[name]) for name, node in nodes.items()}

    def at_end(self) -> None:
        self._over = True  # From now on nodes are closed.
        counts, short = self._counts(), self._short()
        there = [count for count in counts.values() if count]
        if there:
            self.figures = {
                "copies_mean": sum(there) / len(there),
                "copies_min": float(min(there)),
                "copies_short": float(len(short)),
            }
            if self._calm_s is not None and self._back_s is not None:
                self.figures["copies_back_s"] = round(self._back_s - self._calm_s, 3)
        bound_s = self._facts.expect.copies_back_s
        if bound_s < 0 or self._calm_s is None:
            return
        for blob, count in short.items():
            if self.view.now >= max(self._calm_s, self._files[blob].at_s) + bound_s:
                wanted = self._files[blob].wanted
                self.violate(blob.hex()[:8], f"a file has {count} copies {bound_s:g} s after the faults, and {wanted} were asked for")
