"""Lookups at the end of a run, from random nodes for random ids."""

from __future__ import annotations

import random

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import DhtId
from p2pgrid.testing.checkers import LookupChecker
from p2pgrid.testing.whole.crowd import Crowd, some
from p2pgrid.testing.whole.machines import CLIENT, SimulatedMachine

ID_BYTES = 20


class LookupProbe:
    """Makes some lookups at once; their answers go to the checker, which knows the truth."""

    def __init__(self, crowd: Crowd, rng: random.Random, checker: LookupChecker) -> None:
        self._crowd = crowd
        self._rng = rng
        self._checker = checker
        self._open = 0

    def start(self, lookups: int) -> None:
        """Begin them."""
        crowd = self._crowd
        names = [name for name in crowd.running() if crowd.honest(name)]
        for _ in range(lookups if len(names) > 1 else 0):
            machine = crowd.machines[some(self._rng, names)]
            self._open += 1
            machine.loop.begin(self._look_up(machine, self._rng.randbytes(ID_BYTES)), f"{CLIENT}lookup")

    def over(self) -> bool:
        """Whether all have ended."""
        return not self._open

    async def _look_up(self, machine: SimulatedMachine, target: bytes) -> None:
        node = machine.node
        try:
            if node is not None:
                found = await node.dht.lookup_nodes(DhtId(target))
                self._checker.answered(node.key.public, target, [contact.key for contact in found])
        except P2PGridError:
            self._crowd.count_path("lookup-failed")
        finally:
            self._open -= 1
