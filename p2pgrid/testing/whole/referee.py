"""The checkers of a run as one: what they are told, who listens where, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from p2pgrid.testing.checkers import (
    CopiesChecker,
    Ends,
    Facts,
    LivenessChecker,
    LogChecker,
    LookupChecker,
    Passing,
    ViewChecker,
    all_checkers,
    collect,
    ed25519_holds,
    find,
)
from p2pgrid.testing.parts.oracle import oracle_signatures
from p2pgrid.testing.plans.scenario import GridScenario
from p2pgrid.testing.verdict import Verdict
from p2pgrid.testing.whole.crowd import Crowd
from p2pgrid.testing.world import World

Holds = Callable[[bytes, bytes, bytes], bool]


@contextmanager
def signatures(kind: str) -> Iterator[Holds]:
    """Signatures of a kind (``oracle`` or ``real``) inside the block; yields a way of verifying them beside the product's."""
    if kind == "real":
        yield ed25519_holds
        return
    with oracle_signatures() as oracle:
        yield oracle.holds


class Referee:
    """All checkers of one run."""

    def __init__(self, crowd: Crowd, scenario: GridScenario, holds: Holds) -> None:
        self._crowd = crowd
        self.facts = Facts(
            holds=holds,
            expect=scenario.expect,
            settle_s=scenario.settle_s,
            loss=crowd.plan.air.loss,
            outside=lambda: [path for machine in crowd.machines.values() for path in machine.disk.outside],
            machine=lambda: _running(crowd.world),
            behaviours={plan.name: plan.behaviour for plan in crowd.plan.machines},
        )
        self.all = all_checkers(self.facts)
        self.lookups = find(self.all, LookupChecker)
        self.liveness = find(self.all, LivenessChecker)
        self.ends = find(self.all, Ends)
        self.views = find(self.all, ViewChecker)
        self.ways = find(self.all, Passing).ways
        self.copies = find(self.all, CopiesChecker)
        self._log = find(self.all, LogChecker)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Errors that are logged inside the block are heard."""
        self._log.listen()
        try:
            yield
        finally:
            self._log.stop()

    def on_cause(self, name: str, kind: str, for_s: float) -> None:
        """A fault may lead to errors in the log of a machine."""
        self._log.expect(name, kind, for_s)

    def due(self) -> bool:
        """Whether something must still come true: jobs that are to end, files that are to have all their copies."""
        return bool(self.liveness.due or self.copies.due)

    def judge(self, verdict: Verdict) -> None:
        """Put what was found into a verdict."""
        collect(self.all, verdict)


def _running(world: World) -> str:
    return world.running.name if world.running is not None else ""
