"""What an onlooker of a simulated grid is told. Checkers are onlookers: they share no code with what they check.

Every call happens at the moment of the event, before anything else runs, so that a checker can stop at the first
event that breaks its invariant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from p2pgrid.testing.verdict import Violation

if TYPE_CHECKING:
    from p2pgrid.node import Node
    from p2pgrid.runtimes.tasks import BatchChunk, BatchTask
    from p2pgrid.testing.plans.scenario import FaultEvent, JobPlan

OTHER_BYTES = "other bytes came back"
"""What is told of a get that went well and gave something else than was put."""


class View(Protocol):
    """What an onlooker may ask the grid."""

    @property
    def now(self) -> float:
        """Virtual seconds since the run began."""

    def wall_ms(self, name: str = "") -> int:
        """Unix milliseconds by the true clock, or by the (perhaps skewed) clock of a machine."""

    def living(self) -> dict[str, Node]:
        """The nodes that run now, by the name of their machine, frozen ones included."""

    def honest(self, name: str) -> bool:
        """Whether this machine follows the protocol."""


class Onlooker:
    """Told of everything that happens. Override what is of interest; report with :meth:`violate`."""

    invariant = ""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.view: View

    def attach(self, view: View) -> None:
        """Called once, before the run."""
        self.view = view

    def violate(self, where: str, text: str, invariant: str = "") -> None:
        """Report a broken invariant; the first hundred are kept."""
        if len(self.violations) < 100:
            self.violations.append(Violation(invariant or self.invariant, self.view.now, where, text))

    # -- machines ------------------------------------------------------------------------

    def on_start(self, name: str, node: Node) -> None:
        """A node has started on a machine."""

    def on_crash(self, name: str) -> None:
        """A machine lost its power, or its node was killed."""

    def on_close(self, name: str, node: Node) -> None:
        """A node has ended in good order."""

    def on_disk_damage(self, name: str, path: str) -> None:
        """A stored byte was flipped by the simulation."""

    def on_fault(self, event: FaultEvent, struck: int) -> None:
        """A fault of the scenario has struck so many machines."""

    # -- the ledger -------------------------------------------------------------------------

    def on_log(self, name: str, job: bytes, records: Sequence[tuple[int, bytes]]) -> None:
        """Records (kind, bytes as they lie on disk) were handed to the log of a job at a node."""

    def on_log_durable(self, name: str, job: bytes, records: Sequence[tuple[int, bytes]], error: str) -> None:
        """The same records are durable, or failed with ``error``."""

    def on_log_removed(self, name: str, job: bytes) -> None:
        """A node deleted the log of a job."""

    # -- work ------------------------------------------------------------------------------------

    def on_units_start(self, name: str, task: BatchTask) -> None:
        """A node's runtime begins a task."""

    def on_chunk(self, name: str, task: BatchTask, chunk: BatchChunk) -> None:
        """Units ended at a node's runtime, with what the runtime says came of them."""

    # -- the network -------------------------------------------------------------------------------

    def on_datagram(self, data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> None:
        """A datagram is sent."""

    # -- what clients were told ------------------------------------------------------------------------

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        """A node accepted a job from its owner and so many nodes keep it; ``expected``: the right value of each unit, in order."""

    def on_value(self, name: str, job: bytes, number: int, value: object) -> None:
        """A reader at a machine was given the value of a unit of a job's last layer."""

    def on_stored(self, name: str, blob: bytes, size_bytes: int, holders: Sequence[bytes], replicas: int = 3) -> None:
        """A put was acknowledged, with the keys of the nodes that hold the blob, and the copies that were asked for."""

    def on_read(self, name: str, blob: bytes, ok: bool, text: str) -> None:
        """A get ended."""

    # -- time ----------------------------------------------------------------------------------------------

    def on_second(self) -> None:
        """A virtual second has passed."""

    def on_calm(self) -> None:
        """Faults have stopped; the bounds of the liveness phase begin to run."""

    def at_end(self) -> None:
        """The liveness phase is over; the nodes still run."""

    def at_exit(self, name: str, left: dict[str, int]) -> None:
        """A node was closed at the end: what it left behind (``tasks``, ``timers``, ``descriptors``, ``seconds`` it took)."""
