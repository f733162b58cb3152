"""``simulate``: grids that exist in virtual time only, run from seeds, and what came of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pgrid.errors import UsageError
from p2pgrid_cli import exits
from p2pgrid_cli.aside import aside
from p2pgrid_cli.common import JsonOption, console, print_document, print_line, run_async, say

if TYPE_CHECKING:
    from p2pgrid.testing.batches.batch import Ran, Run
    from p2pgrid.testing.batches.coverage import Coverage, Summary
    from p2pgrid.testing.verdict import Verdict

SEED = 1
SEEDS = re.compile(r"^(?P<first>\d{1,18})\.\.(?P<last>\d{1,18})$")
SEEDS_MAX = 1_000_000
VIOLATIONS_SHOWN = 5
TRACE_HELP = "A readable timeline of one thing: unit:JOB/NUMBER, node:NAME, blob:ID or fault."
REAL_HELP = "Run it with real processes on this machine instead, in real time; for scenarios that crash, restart or leave at most."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(simulate)


def simulate(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE...", help="Scenarios (docs/reference/simulate.md).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help=f"The one seed to run. Default: {SEED}.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="A..B", help="All seeds from A to B.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=1024, help="Processes at one time. Default: one for each core.")] = None,
    batch: Annotated[Path | None, typer.Option(help="A file that lists scenarios and their seeds, instead of FILE.")] = None,
    twice: Annotated[bool, typer.Option("--twice", help="Run each seed in a second process too: both traces must be equal.")] = False,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Fail when a kind of fault, a reason code or a path was never hit by any seed.")
    ] = False,
    trace: Annotated[str | None, typer.Option(metavar="WHAT", help=TRACE_HELP)] = None,
    real: Annotated[bool, typer.Option("--real", help=REAL_HELP)] = False,
    limit: Annotated[
        float | None,
        typer.Option(min=1.0, help="Seconds that a seed may take before it counts as stuck. Default: 300, core scenarios 900."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run scenarios: whole grids in virtual time, with faults, from a seed.

    The same seed gives the same run. One line for each seed, and the exit code 1 when any of them failed.
    """
    numbers = _numbers(seed, seeds)
    if batch is not None and (files or seed is not None or seeds is not None):
        raise UsageError("a batch names its scenarios and their seeds itself", hint="give FILE and seeds, or --batch")
    _check(files, batch, [name for name, given in (("--trace", trace), ("--real", real)) if given], len(numbers))
    if trace is not None:
        code = _traced((files or [])[0], numbers[0], trace, as_json)
    elif real:
        code = _real((files or [])[0], numbers[0], as_json)
    else:
        code = _many(files or [], batch, numbers, jobs, twice, coverage, limit, as_json)
    if code:
        raise typer.Exit(code)


def _numbers(seed: int | None, seeds: str | None) -> range:
    """The seeds that are asked for. Raises UsageError."""
    if seed is not None and seeds is not None:
        raise UsageError("--seed and --seeds exclude one another")
    if seeds is None:
        first = SEED if seed is None else seed
        return range(first, first + 1)
    match = SEEDS.match(seeds)
    if match is None:
        raise UsageError(f"'{seeds}' are no seeds", hint="for example --seeds 1..20")
    numbers = range(int(match["first"]), int(match["last"]) + 1)
    if not 0 < len(numbers) <= SEEDS_MAX:
        raise UsageError(f"'{seeds}' are {len(numbers) or 'no'} seeds", hint=f"from a lower to a higher one, at most {SEEDS_MAX}")
    return numbers


def _check(files: list[Path] | None, batch: Path | None, alone: Sequence[str], seeds: int) -> None:
    """Raises UsageError for what cannot go together."""
    if not files and batch is None:
        raise UsageError("no scenario", hint="p2pgrid simulate scenarios/grids/churn.toml --seed 7")
    if len(alone) > 1:
        raise UsageError(f"{' and '.join(alone)} exclude one another")
    if alone and (batch is not None or len(files or []) != 1 or seeds != 1):
        raise UsageError(f"{alone[0]} takes one scenario and one seed")


def _traced(path: Path, seed: int, trace: str, as_json: bool) -> int:
    """One seed in this process, with a timeline."""
    from p2pgrid.testing.batches.batch import run_seed
    from p2pgrid.testing.batches.timeline import Timeline
    from p2pgrid.testing.plans.scenario import load

    timeline = Timeline(trace)
    verdict = run_seed(load(path), seed, timeline)
    if as_json:
        from p2pgrid_cli.documents.simulating import verdict_of

        print_document(verdict_of(verdict, timeline.entries()))
    else:
        print_line(timeline.render())
        print_line("\n".join(lines_of(verdict, path)))
    return exits.OK if verdict.ok else exits.UNIT_FAILED


def _real(path: Path, seed: int, as_json: bool) -> int:
    """One seed with real processes."""
    from p2pgrid.testing.batches.real import run_real
    from p2pgrid.testing.plans.scenario import load
    from p2pgrid_cli.progress import Progress

    scenario = load(path)
    with Progress() as progress:
        verdict = run_async(run_real(scenario, seed, on_step=progress.step))
    if as_json:
        from p2pgrid_cli.documents.simulating import verdict_of

        print_document(verdict_of(verdict))
    else:
        print_line("\n".join(lines_of(verdict, path, "--real")))
    return exits.OK if verdict.ok else exits.UNIT_FAILED


def _many(
    files: list[Path],
    plan: Path | None,
    numbers: range,
    jobs: int | None,
    twice: bool,
    wants_coverage: bool,
    limit_s: float | None,
    as_json: bool,
) -> int:
    """Seeds in processes of their own."""
    from p2pgrid.testing.batches.batch import read_plan, run_batch, runs_of
    from p2pgrid.testing.batches.coverage import coverage
    from p2pgrid.testing.plans.scenario import load
    from p2pgrid_cli.progress import Progress

    if plan is not None:
        runs, planned_coverage = read_plan(plan, wall_s=limit_s)
        wants_coverage = wants_coverage or planned_coverage
    else:
        runs = runs_of(files, numbers, wall_s=limit_s)
    paths = {(run.name, run.seed): Path(run.path) for run in runs}

    with Progress() as progress:

        def show(ran: Ran) -> None:
            if not as_json:
                verdict = ran.verdict
                with aside():
                    print_line("\n".join(lines_of(verdict, paths.get((verdict.scenario, verdict.seed), Path(verdict.scenario)))))

        rans = run_async(
            run_batch(runs, jobs=jobs or 0, twice=twice, on_done=lambda done: progress.seeds(done, len(runs)), on_verdict=show)
        )
    scenarios = [load(path) for path in dict.fromkeys(paths.values())]
    covered = coverage((ran.verdict for ran in rans), scenarios) if wants_coverage or len(runs) > 1 else None
    _report(runs, rans, covered, wants_coverage, as_json)
    complete = covered is None or covered.ok or not wants_coverage
    return exits.OK if complete and all(ran.verdict.ok for ran in rans) else exits.UNIT_FAILED


def _report(runs: Sequence[Run], rans: Sequence[Ran], covered: Coverage | None, wants_coverage: bool, as_json: bool) -> None:
    """What comes after the lines of the seeds."""
    from p2pgrid.testing.batches.coverage import summarize
    from p2pgrid_cli.documents.simulating import batch_of, verdict_of

    if len(runs) == 1 and as_json:
        print_document(verdict_of(rans[0].verdict))
    elif as_json:
        print_document(batch_of((ran.verdict for ran in rans), *summarize(rans), covered))
    elif len(runs) > 1:
        out = console()
        rows, everything = summarize(rans)
        out.print(_table([*rows, everything] if len(rows) > 1 else rows, out.width))
    if wants_coverage and covered is not None and not covered.ok:
        say(f"never hit: {', '.join(covered.missing)}")


def lines_of(verdict: Verdict, path: Path, *words: str) -> list[str]:
    """The line of a seed; what broke, and how to see it again, below one that failed."""
    correct = sum(job.correct for job in verdict.jobs)
    parts = [
        f"{verdict.scenario} seed {verdict.seed}: {'ok' if verdict.ok else 'FAIL'}",
        f"{verdict.nodes} nodes",
        f"{verdict.virtual_seconds:,.0f} s{'' if words else ' virtual'}",
        *([f"{verdict.events:,} events"] if verdict.events else []),
        f"units {correct}/{verdict.units}",
        f"lost {verdict.lost}",
        f"unlucky {verdict.unlucky}{_beside(verdict.unlucky_expected)}",
        f"wrong {verdict.accepted_wrong}{_beside(verdict.accepted_wrong_expected)}",
        f"twice {verdict.accepted_twice}",
        f"violations {len(verdict.violations)}",
        *([f"makespan {verdict.makespan_ratio:.2f}x"] if verdict.makespan_ratio else []),
        *([f"tail {verdict.tail_ratio:.2f}x", f"extra {verdict.extra_work:.1%}"] if verdict.tail_ratio else []),
        *([f"trace {verdict.trace_hash[:16]}"] if verdict.trace_hash else []),
    ]
    lines = ["  ".join(parts)]
    if not verdict.ok:
        lines += [f"  {broken.invariant} at {broken.at_s:.3f} s, {broken.where}: {_indented(broken.text)}" for broken in _first(verdict)]
        if len(verdict.violations) > VIOLATIONS_SHOWN:
            lines.append(f"  ... and {len(verdict.violations) - VIOLATIONS_SHOWN} more")
        more = [*words, *(["--twice"] if any(broken.invariant == "determinism" for broken in verdict.violations) else [])]
        lines.append("  again: " + " ".join(["p2pgrid simulate", str(path), "--seed", str(verdict.seed), *more]))
    return lines


def _first(verdict: Verdict) -> Iterable[Any]:
    return verdict.violations[:VIOLATIONS_SHOWN]


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n    ")


def _beside(expected: float) -> str:
    """What a formula expects, where it expects anything."""
    return f" (expected {expected:.2g})" if expected else ""


def _table(rows: Sequence[Summary], width: int) -> Any:
    """The summary of many seeds."""
    from p2pgrid_cli.tables import Column, Row, table_of

    columns = (
        Column("SCENARIO"),
        Column("SEEDS", 0, "right"),
        Column("OK", 0, "right"),
        Column("FAILED", 0, "right"),
        Column("LOST", 1, "right"),
        Column("UNLUCKY", 3, "right"),
        Column("EXPECTED", 5, "right"),
        Column("WRONG", 2, "right"),
        Column("EXPECTED", 5, "right"),
        Column("TWICE", 2, "right"),
        Column("VIRTUAL H", 4, "right"),
        Column("EVENTS/S", 6, "right"),
        Column("FAULTS", 7),
    )
    return table_of(columns, [Row(_cells(row), "red" if row.failed else None) for row in rows], width)


def _cells(row: Summary) -> tuple[str, ...]:
    figures = (row.seeds, row.ok, row.failed, row.lost, row.unlucky)
    return (
        row.scenario,
        *(f"{figure:,}" for figure in figures),
        f"{row.unlucky_expected:.2g}",
        f"{row.accepted_wrong:,}",
        f"{row.accepted_wrong_expected:.2g}",
        f"{row.accepted_twice:,}",
        f"{row.virtual_seconds / 3600:,.2f}",
        f"{row.events_per_s:,.0f}",
        " ".join(f"{kind} {count}" for kind, count in sorted(row.faults.items())),
    )
