"""How often a node looks for others: at every turn while somebody comes or goes, once in six turns when nothing has changed.

A look walks the whole id space of a small grid, and each node it asks signs and checks. While nobody comes or goes it finds
nothing; who comes finds those who are there by its own looks.
"""

from __future__ import annotations

from collections.abc import Callable

LEFT_OUT_MAX = 5
"""Turns in a row without a look."""
UNREST_S = 600.0
"""For so long after a node was lost no turn is left out: it may have been cut off, with others who look for this one."""


class Calm:
    """Counts turns. ``clock``: the node's, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calm = 0
        """Looks one after the other that found nothing new."""
        self._left_out = 0
        """Turns that are still to be left out."""
        self._unrest_until_s = float("-inf")

    def is_due(self) -> bool:
        """A turn has come: whether to look."""
        if self._left_out > 0:
            self._left_out -= 1
            return False
        return True

    def looked(self, *, found_nothing: bool) -> None:
        """A look has ended. ``found_nothing``: all that is to be known was known before."""
        calm = found_nothing and self._clock() >= self._unrest_until_s
        self._left_out = self._calm = min(self._calm + 1, LEFT_OUT_MAX) if calm else 0

    def stir(self, *, lost: bool = False) -> None:
        """Somebody came or went: look at the next turn. ``lost``: without a word, and is not back."""
        self._calm = self._left_out = 0
        if lost:
            self._unrest_until_s = self._clock() + UNREST_S
