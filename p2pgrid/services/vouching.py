"""Which runtimes this node offers: those whose cage held when the node attacked it (docs/security/sandbox.md#self-test).

1. Fail closed: until its cage was tested a runtime is not offered to others. The owner's own jobs do not wait.
2. A report of this machine, these versions and this user, kept from an earlier start or by another node of the same user, counts at
   once, and is made again soon after the start.
3. The ``python`` runtime is tested when the grid has named its runner, with that runner: compiling it is a part of the test.
4. A cage that breaks later takes its runtime out of the offer, and everybody who is connected is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from p2pgrid.errors import P2PGridError
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.selftest.report import ReportKey, RuntimeReport, holding, load_reports, save_reports
from p2pgrid.services.charter import Charters
from p2pgrid.services.context import Context
from p2pgrid.services.tasks import Tasks, wind_up
from p2pgrid.wire.owner import RuntimeLine

FETCH_S = 2.0
RETRY_S = 20.0
RETRY_MAX_S = 1800.0
LOOK_S = 0.25
AGAIN_S = 60.0
"""When a kept report is made again after the start: not while the node is busy with joining."""
MACHINE_CODE = ("native", "command", "wasm")
PYTHON = "python"

SelfTest = Callable[[Sequence[str], Path | None], Awaitable[tuple[RuntimeReport, ...]]]


class Vouching:
    """Runs self-tests and sets ``context.offered``."""

    def __init__(
        self,
        context: Context,
        charters: Charters,
        test: SelfTest,
        key: ReportKey,
        folder: Path,
        changed: Callable[[], None],
        is_paused: Callable[[], bool],
    ) -> None:
        """``folder``: where reports are kept, for all nodes of this user. ``changed``: called when the offer changes.

        ``is_paused``: whether the owner has the machine.
        """
        self._context = context
        self._charters = charters
        self._test = test
        self._key = key
        self._folder = folder
        self._changed = changed
        self._is_paused = is_paused
        self._tasks = Tasks("vouching")
        self._turn = asyncio.Lock()
        self._runner = b""
        self.reports: dict[str, RuntimeReport] = {}

    async def start(self) -> None:
        """Offer what is known to hold, and begin to test the rest."""
        context = self._context
        context.offered = frozenset()
        if not context.policy.cores:
            return
        wanted = [runtime for runtime in MACHINE_CODE if runtime in context.policy.runtimes]
        kept = await context.offload.run(load_reports, self._folder, self._key)
        self._take([report for report in kept if report.runtime in wanted], tell=False)
        missing = [runtime for runtime in wanted if runtime not in self.reports]
        self._tasks.spawn(self._test_soon(missing, wanted), "self-test")
        self._charters.on_changed(self._on_charter)
        self._on_charter()

    async def close(self) -> None:
        await self._tasks.close()

    def lines(self) -> tuple[RuntimeLine, ...]:
        """Every runtime of this version: whether it is offered, how it is caged, and why not."""
        from p2pgrid.model.job import RUNTIMES

        return tuple(self._line(runtime) for runtime in RUNTIMES)

    def lacking(self) -> tuple[tuple[str, str], ...]:
        """(runtime, reason code) of what the owner would offer, and what cannot be offered now."""
        return tuple((line.runtime, str(line.reason)) for line in self.lines() if not line.offered and line.reason)

    def _line(self, runtime: str) -> RuntimeLine:
        report, policy = self.reports.get(runtime), self._context.policy
        if runtime not in policy.runtimes or not policy.cores:
            return RuntimeLine(runtime, False, "", "the owner does not offer it")
        if report is None and runtime == PYTHON and not self._charters.runner:
            return RuntimeLine(runtime, False, "", Reason.NO_RUNNER.sentence, Reason.NO_RUNNER)
        if report is None:
            return RuntimeLine(runtime, False, "", Reason.UNTESTED.sentence, Reason.UNTESTED)
        held = f"{sum(attempt.held for attempt in report.attempts)} of {len(report.attempts)} attacks held"
        if report.holds:
            return RuntimeLine(runtime, True, report.level, held)
        return RuntimeLine(runtime, False, report.level, report.reason, _code(report))

    # -- testing -----------------------------------------------------------------------

    async def _test_soon(self, missing: list[str], all_of_them: list[str]) -> None:
        """What was never tested at once; what was, a while later."""
        if missing:
            await self._run(missing, None, self._folder)
            return
        await asyncio.sleep(AGAIN_S)
        await self._run(all_of_them, None, self._folder)

    def _on_charter(self) -> None:
        runner = self._charters.runner
        if runner and runner != self._runner and PYTHON in self._context.policy.runtimes:
            self._runner = runner
            self._tasks.spawn(self._test_python(runner), "self-test of python")

    async def _test_python(self, runner: bytes) -> None:
        folder = self._folder / runner.hex()[:16]
        kept = await self._context.offload.run(load_reports, folder, self._key)
        self._take([report for report in kept if report.runtime == PYTHON])
        if PYTHON in self.reports:
            await asyncio.sleep(AGAIN_S)
        wait_s = FETCH_S
        while runner == self._runner:
            try:
                path = await self._charters.path(runner, ())
            except P2PGridError as error:
                # Nobody who has it may be there yet: a node that starts meets the others only now.
                self._context.tell(Reason.NO_RUNNER, f"the Python runner of the grid cannot be had: {error}")
                await asyncio.sleep(wait_s)
                wait_s = min(RETRY_MAX_S, 2 * wait_s)
            else:
                await self._run([PYTHON], path, folder)
                return

    async def _run(self, runtimes: Sequence[str], runner: Path | None, folder: Path) -> None:
        """Test, and test again what did not hold: a busy machine can make an attack end too late to be judged."""
        left, wait_s = list(runtimes), RETRY_S
        while left:
            async with self._turn:
                reports = await self._tested(left, runner)
            self._take(reports)
            kept = [report for report in self.reports.values() if report.holds and (report.runtime == PYTHON) == (PYTHON in runtimes)]
            await self._context.offload.run(_save, folder, kept, self._key)
            left = [report.runtime for report in reports if not report.holds]
            if left:
                await asyncio.sleep(wait_s)
                wait_s = min(RETRY_MAX_S, 2 * wait_s)

    async def _tested(self, runtimes: Sequence[str], runner: Path | None) -> Sequence[RuntimeReport]:
        """A test begins when the owner does not have the machine, and ends when that changes: bombs cost processor time, too."""
        while True:
            while self._is_paused():  # noqa: ASYNC110 - a pause has many ends
                await asyncio.sleep(LOOK_S)
            testing = asyncio.ensure_future(self._test(runtimes, runner))
            try:
                while not testing.done() and not self._is_paused():
                    await asyncio.wait([testing], timeout=LOOK_S)
                if testing.done():
                    return testing.result()
            finally:
                await wind_up(testing)

    def _take(self, reports: Sequence[RuntimeReport], *, tell: bool = True) -> None:
        lacking = self.lacking()
        for report in reports:
            self.reports[report.runtime] = report
            if not report.holds:
                self._context.tell(_code(report), f"{report.runtime} is not offered: {report.reason}")
        offered = holding(self.reports.values())
        # Why something is not offered is told to others, too.
        changed = offered != self._context.offered or lacking != self.lacking()
        self._context.offered = offered
        if changed and tell:
            self._changed()


def _code(report: RuntimeReport) -> Reason:
    """Of a cage that does not hold: whether there was one to attack."""
    return Reason.CAGE_BROKEN if report.attempts else Reason.NO_CAGE


def _save(folder: Path, reports: Sequence[RuntimeReport], key: ReportKey) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return  # The next start tests again before it offers anything.
    save_reports(folder, reports, key)
