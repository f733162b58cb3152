"""``python -m bench quick``: interleaved rounds of all systems, each in a fresh child process."""

from __future__ import annotations

import json
import os
import pstats
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import peers, report
from bench.system import Figures

SYSTEMS = ("p2pgrid", "processpool", "processpool-64", "dask", "dask-tls")
SLOW = {"dask": 2000, "dask-tls": 2000}
"""Systems that get fewer units, so that a run ends while somebody still watches."""
NO_SINGLES = frozenset({"processpool-64"})
"""Systems that differ from another one in throughput only."""
CHILD_S = 90.0
STOP_S = 5.0
PROFILE_LINES = 25


class Options(NamedTuple):
    """What the command line asks for."""

    units: int = 10_000
    rounds: int = 3
    jobs: int = 2
    singles: int = 15
    systems: tuple[str, ...] = SYSTEMS
    as_json: bool = False
    check: bool = False
    profile: str = ""
    """Which node to profile: lead, worker or keeper."""


class ChildError(Exception):
    """A system under test failed; the message is the end of what it said."""


def run(options: Options, say: Callable[[str], None]) -> int:
    """Measure, print, judge; returns the exit code. ``say`` gets progress and messages."""
    wanted = tuple(options.systems)
    left_out = {name: why for name in wanted if (why := peers.missing(name))}
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    systems = [name for name in wanted if name not in left_out]
    rounds: dict[str, list[Figures]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory(prefix="p2pgrid-bench-out-") as folder:
        profile_path = Path(folder) / "node.profile"
        for number in range(options.rounds):
            for name in systems:
                say(f"round {number + 1}/{options.rounds}: {name} (load {os.getloadavg()[0]:.1f})")
                rounds[name].append(run_child(name, options, Path(folder)))
        if options.profile:
            say(f"once more with the {options.profile} profiled; these figures are not counted")
            run_child(report.MINE, options, Path(folder), profile_path)
            print_profile(profile_path)
    summaries = {name: report.summarise(figures) for name, figures in rounds.items()}
    if options.as_json:
        print(json.dumps(report.document(rounds, left_out), indent=2))
    else:
        print_report(summaries, rounds)
    return judge(summaries, say) if options.check else 0


def run_child(name: str, options: Options, folder: Path, profile_path: Path | None = None) -> Figures:
    """One system in a process and session of its own, which is gone afterwards. Raises ChildError."""
    out = folder / "figures.json"
    out.unlink(missing_ok=True)
    slow = name in SLOW
    units, jobs = (min(options.units, SLOW[name]), 1) if slow else (options.units, options.jobs)
    singles = 1 if name in NO_SINGLES else options.singles
    command = [sys.executable, "-m", "bench.child", name, str(units), str(jobs), str(singles), str(out)]
    command += [str(profile_path), options.profile] if profile_path else []
    with (folder / "child.log").open("w+b") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            code: int | str = child.wait(CHILD_S)
        except subprocess.TimeoutExpired:
            code = f"none within {CHILD_S:g} s"
        finally:
            _end_session(child)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if code != 0 or not out.exists():
        raise ChildError(f"{name} ended with {code}:\n{said[-4000:]}")
    return msgspec.json.decode(out.read_bytes(), type=Figures)


def _end_session(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a child's process group; nodes end by themselves when their parent is gone."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def print_report(summaries: Mapping[str, report.Summary], rounds: Mapping[str, list[Figures]]) -> None:
    """The tables on stdout."""
    print(report.table(summaries))
    mine = summaries.get(report.MINE)
    if mine is None:
        return
    audited = rounds[report.MINE][-1].audited
    print(f"\nWhere the time goes in p2pgrid, {mine.units:,} no-ops:\n\n{report.where_time_goes(mine)}")
    print(
        f"\nAsserted in each round, at each of three keepers: {audited['jobs']} jobs signed, complete and settled;"
        f" {audited['grants']} grants, {audited['receipts']} receipts and {audited['decisions']} decisions,"
        f" all signatures and result digests verified again; {audited['links']} links direct, TLS 1.3."
        f"\nOne unit until three keepers confirmed the end of its job: {mine.whole_p50_ms:.2f} ms p50."
        f" Start-up of its four nodes, not counted above: {mine.start_s:.1f} s."
    )


def print_profile(path: Path) -> None:
    """The node's profile on stderr, by own time and by what is below."""
    for order in ("tottime", "cumulative"):
        stats = pstats.Stats(str(path), stream=sys.stderr)
        stats.strip_dirs().sort_stats(order).print_stats(PROFILE_LINES)


def judge(summaries: Mapping[str, report.Summary], say: Callable[[str], None]) -> int:
    """1 if a floor is missed, or cannot be judged for want of a peer."""
    if report.YARDSTICK not in summaries or report.MINE not in summaries:
        say("the floors cannot be judged without p2pgrid and Dask")
        return 1
    results = report.verdicts(summaries)
    for met, sentence in results:
        say(f"{'ok  ' if met else 'MISS'} {sentence}")
    return 0 if all(met for met, _ in results) else 1
