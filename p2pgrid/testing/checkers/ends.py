"""When the units of each job ended, and what was run of them: figures of the long tail, no invariant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pgrid.model import log as kinds
from p2pgrid.testing.checkers.journal import Journal, Records
from p2pgrid.testing.observe import Onlooker
from p2pgrid.testing.tails import Tail

if TYPE_CHECKING:
    from p2pgrid.runtimes.tasks import BatchTask


class Ends(Onlooker):
    """Told of decisions and of tasks. A unit ends when somebody hands the first decision on it to a log."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self._tails: dict[bytes, Tail] = {}
        self._decided: dict[bytes, set[tuple[int, int]]] = {}
        self._run: dict[bytes, dict[tuple[int, int], None]] = {}

    def tail(self, job: bytes) -> Tail:
        """The ends of the units of a job."""
        return self._tails.setdefault(bytes(job), Tail())

    def units(self, job: bytes) -> list[tuple[int, int]]:
        """(kind, index) of every unit of a job that was begun anywhere, once each."""
        return list(self._run.get(bytes(job), ()))

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        if not any(kind == kinds.DECISION for kind, _ in records):
            return
        for entry in self._journal.entries(records):
            if entry.kind == kinds.DECISION and not entry.error:
                decided = self._decided.setdefault(bytes(job), set())
                before = len(decided)
                for one in entry.body.entries:
                    decided.update((one.batch, unit) for unit in range(one.start, one.start + one.units))
                if len(decided) > before:
                    self.tail(job).decided(self.view.now, len(decided) - before)

    def on_units_start(self, name: str, task: BatchTask) -> None:
        run = self._run.setdefault(bytes(task.job.job), {})
        run.update(dict.fromkeys((int(task.kind), index) for index in range(task.first, task.first + len(task.inputs))))
