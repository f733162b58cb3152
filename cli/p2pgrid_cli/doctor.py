"""``doctor``: whether this machine can take strangers' work. Its cages are attacked, and what else it stands on is looked at.

What each attack shows: docs/reference/doctor.md.
"""

from __future__ import annotations

import shutil
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid.errors import UsageError
from p2pgrid_cli import exits
from p2pgrid_cli.common import HomeOption, JsonOption, home_of, print_document, print_line, run_async, say
from p2pgrid_cli.completion import complete_runtime

if TYPE_CHECKING:
    from p2pgrid.machine import ThisMachine
    from p2pgrid.runtimes.selftest.report import RuntimeReport
    from p2pgrid_cli.checkup import Check
    from p2pgrid_cli.progress import Progress

RUNTIMES = ("native", "command", "wasm", "python")
COLUMNS_MAX = 100
_NAME_COLUMNS = max(map(len, RUNTIMES)) + 2
_LEVEL_COLUMNS = len("namespaces") + 2


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime", metavar="NAME", help=f"Only this one; may be repeated: {', '.join(RUNTIMES)}.", autocompletion=complete_runtime
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every attack, not only those that got through.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Attack the cages of this machine, and say which runtimes hold. Needs no home and no running node.

    The exit code is 0 when every runtime that this machine can offer holds, else 1.
    """
    wanted = tuple(dict.fromkeys(runtime or RUNTIMES))
    unknown = [name for name in wanted if name not in RUNTIMES]
    if unknown:
        raise UsageError(f"there is no runtime '{unknown[0]}'", hint=f"one of {', '.join(RUNTIMES)}")
    reports, checks = run_async(_examine(wanted, home, quiet=as_json))
    good = holds(reports, asked=runtime is not None)
    if as_json:
        from p2pgrid_cli.documents.doctor import doctor_of

        print_document(doctor_of(reports, checks))
    else:
        width = min(shutil.get_terminal_size((80, 24)).columns, COLUMNS_MAX)
        for line in [*report_lines(reports, width, verbose=verbose), "", *check_lines(checks, width)]:
            print_line(line)
    if not good:
        raise typer.Exit(exits.UNIT_FAILED)


async def _examine(wanted: tuple[str, ...], home: Path | None, *, quiet: bool) -> tuple[tuple[RuntimeReport, ...], list[Check]]:
    from p2pgrid.machine import ThisMachine
    from p2pgrid.runtimes import runner
    from p2pgrid.runtimes.tasks import PoolPolicy
    from p2pgrid_cli.checkup import check_all
    from p2pgrid_cli.progress import Progress

    machine = ThisMachine()
    policy = PoolPolicy(programs=machine.caches() / "programs")
    offload = machine.offload()
    try:
        checks = await offload.run(check_all, policy, home_of(home).folder, time.time())
        with Progress() as progress:
            if progress.live:
                attacks = _Attacks(progress, _is_compiled(machine))
                reports = await machine.selftest(policy, offload, wanted, runner.path(), attacks.note)
            else:
                if not quiet:
                    say(_announcement(wanted, machine))
                reports = await machine.selftest(policy, offload, wanted, runner.path())
    finally:
        await offload.close()
    return reports, checks


def _announcement(wanted: tuple[str, ...], machine: ThisMachine) -> str:
    text = "attacking the cages of this machine, which takes seconds"
    if "python" in wanted and not _is_compiled(machine):
        text += "; the first time the Python runner is compiled, which takes half a minute"
    return text


def _is_compiled(machine: ThisMachine) -> bool:
    programs = machine.caches() / "programs"
    return programs.is_dir() and any(programs.iterdir())


class _Attacks:
    """How far the attacks on all runtimes are, for the eyes."""

    def __init__(self, progress: Progress, compiled: bool) -> None:
        self._progress = progress
        self._compiled = compiled
        self._counts: dict[str, tuple[int, int]] = {}

    def note(self, runtime: str, made: int, begun: int) -> None:
        """Told by the self-test."""
        self._counts[runtime] = made, begun
        all_made, all_begun = (sum(column) for column in zip(*self._counts.values(), strict=True))
        python_made, python_begun = self._counts.get("python", (0, 0))
        if not self._compiled and python_begun and not python_made and all_begun - all_made == python_begun:
            self._progress.step("compiling the Python runner, the first time only")
        else:
            self._progress.count("attacking the cages of this machine", all_made, all_begun)


def holds(reports: tuple[RuntimeReport, ...], *, asked: bool) -> bool:
    """Whether all is well: every runtime that could be tested holds, and there is one. ``asked``: all that are named have to."""
    counted = [report for report in reports if report.attempts or asked]
    return bool(counted) and all(report.holds for report in counted)


def report_lines(reports: tuple[RuntimeReport, ...], width: int, *, verbose: bool) -> list[str]:
    """What people read of the runtimes: a line for each, and what went wrong below it."""
    lines = []
    for report in reports:
        verdict = f"holds, {len(report.attempts)} attacks" if report.holds else ("DOES NOT HOLD" if report.attempts else "not offered")
        lines.append(f"{report.runtime:<{_NAME_COLUMNS}}{report.level:<{_LEVEL_COLUMNS}}{verdict}".rstrip())
        if report.reason:
            lines += _wrapped(report.reason, width, "  ")
        for attempt in report.attempts:
            mark = "held" if attempt.held else ("known" if attempt.accepted else "NOT HELD")
            if verbose or mark != "held":
                lines += _wrapped(f"{mark}: {attempt.name}: {attempt.detail}", width, "  ")
    return lines


def check_lines(checks: list[Check], width: int) -> list[str]:
    """What people read of the rest."""
    lines: list[str] = []
    columns = max((len(check.name) for check in checks), default=0) + 2
    for check in checks:
        lines += _wrapped(f"{check.name:<{columns}}{'ok' if check.ok else 'NO'}  {check.detail}", width, "", " " * (columns + 4))
    return lines


def _wrapped(text: str, width: int, first: str, other: str | None = None) -> list[str]:
    rest = f"{first}  " if other is None else other
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first]
