"""S8: no path that a result writes leaves its folder."""

from __future__ import annotations

from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.observe import Onlooker


class PathChecker(Onlooker):
    """S8, for all simulated disks."""

    invariant = "S8"

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._facts = facts
        self._seen: dict[str, None] = {}

    def at_end(self) -> None:
        self._look()

    def at_exit(self, name: str, left: dict[str, int]) -> None:
        self._look()

    def finish(self) -> None:
        """A node that met with an error when it closed had no exit to be told of."""
        self._look()

    def _look(self) -> None:
        for path in self._facts.outside():
            if str(path) not in self._seen:
                self._seen[str(path)] = None
                self.violate(str(path), "was written outside the folder of its machine")
