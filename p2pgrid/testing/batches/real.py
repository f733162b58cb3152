"""A scenario run by real processes on this machine, in real time: does the simulator agree with the world?

Only what can be done to processes without asking the system for rights is possible: honest nodes on loopback that crash,
come back or leave; jobs and files. Everything is done as a user would, with commands. The time before the first event of
the plan is skipped. Chance decides about the same things as in the simulator, from another stream: the runs are alike, not equal.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.errors import BadDataError
from p2pgrid.model.ids import from_text
from p2pgrid.testing.batches.builtin import builtin_source, expected
from p2pgrid.testing.batches.processes import RealGrid, RealNode, run_command
from p2pgrid.testing.plans.scenario import FaultEvent, FileEvent, GridPlan, GridScenario, JobEvent, MachinePlan, plan
from p2pgrid.testing.verdict import JobVerdict, Verdict, Violation

FAULTS = ("crash", "restart", "leave")
NODES_MAX = 32
AGAIN = (69, 75)
"""Exit codes of a reader who should ask again: nobody was there, or too early (docs/reference/exit-codes.md)."""
AGAIN_S = 1.0
OnStep = Callable[[str], None]


@dataclass
class _Job:
    """A job and what is known of it."""

    event: JobEvent
    text: str = ""
    """Its id; empty when it was not accepted."""
    values: list[Any] | None = None
    """What must come out, as JSON has it; None: nobody knows."""
    submitted_s: float = 0.0
    node: RealNode | None = None


@dataclass
class _File:
    """A file that was put, and its content."""

    event: FileEvent
    content: bytes
    text: str = ""


@dataclass
class _Run:
    """Everything about one run, on its way to a verdict."""

    plan: GridPlan
    grid: RealGrid
    rng: random.Random
    verdict: Verdict
    began_s: float = 0.0
    jobs: list[_Job] = field(default_factory=list)
    files: list[_File] = field(default_factory=list)

    def violate(self, invariant: str, where: str, text: str) -> None:
        now_s = asyncio.get_running_loop().time() - self.began_s
        self.verdict.violations.append(Violation(invariant, round(now_s, 3), where, text))


def refused(grid: GridPlan) -> str:
    """What of a plan real processes cannot do; empty when they can do all of it."""
    scenario = grid.scenario
    if scenario.engine != "whole":
        return f"the engine '{scenario.engine}'"
    kinds = [event.kind for event in grid.faults if event.kind not in FAULTS]
    if kinds:
        return f"the fault '{kinds[0]}'"
    if len(grid.machines) > NODES_MAX:
        return f"more than {NODES_MAX} nodes"
    return next((text for machine in grid.machines if (text := _unable(machine))), "")


def _unable(machine: MachinePlan) -> str:
    odd = {
        f"machines that are {machine.behaviour}": not machine.honest,
        f"the churn '{machine.churn}'": machine.churn != "none",
        f"the NAT '{machine.nat}'": machine.nat != "open",
        "skewed clocks": machine.clock_skew_s != 0,
        "small disks": machine.disk_bytes != 0,
    }
    return next((text for text, is_so in odd.items() if is_so), "")


async def run_real(scenario: GridScenario, seed: int, *, on_step: OnStep = lambda text: None) -> Verdict:
    """Run one seed with real processes. Raises BadDataError for a scenario that asks for more than they can do.

    ``on_step`` is told what is being done now. No process and no file is left, whatever happens.
    """
    settled = plan(scenario, seed)
    if odd := refused(settled):
        raise BadDataError(f"{scenario.name}: real processes cannot have {odd}", hint="run it without --real")
    verdict = Verdict(scenario=scenario.name, seed=seed, nodes=len(settled.machines))
    loop = asyncio.get_running_loop()
    grid = RealGrid(settled.machines)
    try:
        run = _Run(settled, grid, random.Random(f"{seed}/real"), verdict, loop.time())
        await grid.start(on_step)
        run.began_s = loop.time()
        await _happen(run, on_step)
        await _settle(run, on_step)
        verdict.virtual_seconds = round(loop.time() - run.began_s, 3)
        for node in grid.nodes:
            if node.wrong:
                run.violate("log", node.plan.name, "\n".join(node.lines))
            if node.meant_to_run and not node.running:
                run.violate("log", node.plan.name, "the process ended by itself:\n" + "\n".join(node.lines))
    finally:
        await grid.close()
    verdict.ok = not verdict.violations
    return verdict


async def _happen(run: _Run, on_step: OnStep) -> None:
    """Everything of the plan at its time. Each event may take as long as it wants: the next one does not wait for it."""
    due: list[tuple[float, str, Coroutine[Any, Any, None]]] = []
    due += [(event.at_s, f"job {event.name}", _submit(run, event)) for event in run.plan.jobs]
    due += [(event.at_s, f"file {event.name}", _put(run, event)) for event in run.plan.files]
    due += [(event.at_s, event.kind, _strike(run, event)) for event in run.plan.faults]
    due.sort(key=lambda entry: entry[0])
    loop, tasks = asyncio.get_running_loop(), list[asyncio.Task[None]]()
    first_s = due[0][0] if due else 0.0
    try:
        while due:
            at_s, what, work = due[0]
            await asyncio.sleep(max(0.0, run.began_s + at_s - first_s - loop.time()))
            on_step(what)
            tasks.append(loop.create_task(work, name=what))
            del due[0]
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, _, work in due:
            work.close()


# -- what happens ------------------------------------------------------------------------------


def _of_kind(run: _Run, kind: str) -> RealNode | None:
    """Any running machine of a kind; of any kind where that is empty."""
    running = [node for node in run.grid.running() if kind in ("", node.plan.kind)]
    return run.rng.choice(running) if running else None


async def _submit(run: _Run, event: JobEvent) -> None:
    node = _of_kind(run, event.submitter)
    if node is None:
        return
    drawn = msgspec.structs.replace(event.plan, result_bytes=event.result_bytes)
    job = _Job(event, node=node, submitted_s=asyncio.get_running_loop().time())
    words = ["run", "--detach", "--quorum", str(drawn.quorum), "--replicas", str(drawn.replicas)]
    if drawn.script:
        words += [str(Path(run.plan.scenario.folder) / drawn.script), *drawn.args]
    else:
        path = run.grid.folder / f"{event.name}.py"
        await asyncio.to_thread(path.write_text, builtin_source(drawn, event.units, sleep_s=event.unit_s), "utf-8")
        job.values = [_as_json(value) for value in expected(drawn, event.units)]
        words.append(str(path))
    done = await run_command(node.home, *words)
    run.jobs.append(job)
    if done.code == 0:
        job.text = done.out.strip()
    elif node.meant_to_run:
        run.violate("expect", event.name, f"it was not accepted: {done.err.strip()}")


def _as_json(value: Any) -> Any:
    """A value of the built-in job as ``--json`` prints it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return [_as_json(part) for part in value] if isinstance(value, list) else value


async def _put(run: _Run, event: FileEvent) -> None:
    node = _of_kind(run, event.by)
    if node is None:
        return
    file = _File(event, run.rng.randbytes(event.size_bytes))
    path = run.grid.folder / event.name
    await asyncio.to_thread(path.write_bytes, file.content)
    done = await run_command(node.home, "put", "--replicas", str(event.replicas), str(path))
    if done.code == 0:
        file.text = done.out.strip()
        run.files.append(file)
    elif node.meant_to_run:
        run.violate("expect", event.name, f"it was not stored: {done.err.strip()}")


async def _strike(run: _Run, event: FaultEvent) -> None:
    able = [node for node in run.grid.running() if node.meant_to_run and node.plan.kind not in event.spare.split()]
    able = [node for node in able if event.of in ("", node.plan.kind)]
    count = max(1, round(event.share * len(able))) if event.share else event.nodes
    struck = run.rng.sample(able, min(count, len(able)))
    if not struck:
        return
    run.verdict.faults[event.kind] = run.verdict.faults.get(event.kind, 0) + 1
    await asyncio.gather(*(_struck(run, event, node) for node in struck))


async def _struck(run: _Run, event: FaultEvent, node: RealNode) -> None:
    if event.kind == "leave":
        if not await node.leave():
            run.violate("L4", node.plan.name, "it did not leave in good order")
        return
    await node.kill()
    if event.kind == "restart":
        await asyncio.sleep(event.for_s)
        await node.start()
        await node.wait_ready()


# -- what came of it ---------------------------------------------------------------------------------


async def _settle(run: _Run, on_step: OnStep) -> None:
    """Read every job and file from elsewhere, within the bound of the liveness phase."""
    deadline_s = asyncio.get_running_loop().time() + run.plan.settle_s
    for job in run.jobs:
        if job.text:
            on_step(f"results of {job.event.name}")
            await _read_job(run, job, deadline_s)
    for file in run.files:
        on_step(f"reading {file.event.name}")
        await _read_file(run, file, deadline_s)
    run.verdict.units = sum(job.units for job in run.verdict.jobs)
    run.verdict.files = len(run.files)
    _expect(run)


def _reader(run: _Run, *not_these: RealNode | None) -> RealNode:
    """Whoever reads: another node than the one it came from, where there is another one."""
    running = run.grid.running()
    others = [node for node in running if node not in not_these]
    return run.rng.choice(others or running or run.grid.nodes)


async def _read_job(run: _Run, job: _Job, deadline_s: float) -> None:
    loop, event = asyncio.get_running_loop(), job.event
    reader = _reader(run, job.node)
    words = ["results", job.text, "--json", *(["--wait"] if event.plan.until_end else []), "-o", str(run.grid.folder / f"of-{event.name}")]
    while True:
        done = await run_command(reader.home, *words, timeout_s=max(1.0, deadline_s - loop.time()))
        if done.code not in AGAIN or not event.plan.until_end or loop.time() > deadline_s:
            break
        await asyncio.sleep(AGAIN_S)
    verdict = JobVerdict(name=event.name, job=from_text(job.text).hex(), state="unread")
    run.verdict.jobs.append(verdict)
    document = _document(done.out)
    if document is None:
        run.verdict.lost += 1
        run.violate("expect", event.name, f"{reader.plan.name} could not read it within the bound: {done.err.strip()}")
        return
    values = list(document["results"])
    verdict.state, verdict.units, verdict.failed = document["state"], int(document["units"]), int(document["failed"])
    run.verdict.accepted_twice += int(document["conflicts"])
    verdict.makespan_s = round(loop.time() - job.submitted_s, 3)
    if job.values is None:
        verdict.correct = int(document["done"])
        return
    right = right_values(values, job.values)
    run.verdict.accepted_wrong += len(values) - right
    reduced = len(job.values) != event.units
    # Those of lower levels have no other proof than the sum above them.
    verdict.units = event.units
    verdict.correct = (event.units if right == len(job.values) else 0) if reduced else right


def _document(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def right_values(values: Sequence[Any], due: Sequence[Any]) -> int:
    """How many values are right. Units without a value leave no gap, so each is looked for behind the one before it."""
    position, right = 0, 0
    for value in values:
        try:
            position = due.index(value, position) + 1
        except ValueError:
            continue
        right += 1
    return right


async def _read_file(run: _Run, file: _File, deadline_s: float) -> None:
    reader, target = _reader(run), run.grid.folder / f"got-{file.event.name}"
    left_s = max(1.0, deadline_s - asyncio.get_running_loop().time())
    done = await run_command(reader.home, "get", file.text, "-o", str(target), timeout_s=left_s)
    if done.code == 0:
        if await asyncio.to_thread(target.read_bytes) != file.content:
            run.violate("S4", file.event.name, f"{reader.plan.name} read something else")
    elif await asyncio.to_thread(_has_holder, run.grid, len(file.content)):
        run.verdict.lost += 1
        run.violate("expect", file.event.name, f"{reader.plan.name} could not read it: {done.err.strip()}")
    else:
        run.verdict.unlucky += 1


def _has_holder(grid: RealGrid, size_bytes: int) -> bool:
    """Whether some node that runs has a blob of this size on its disk."""
    return any(
        path.is_file() and not path.suffix and path.stat().st_size == size_bytes
        for node in grid.running()
        for path in (node.home / "blobs").glob("??/*")
    )


def _expect(run: _Run) -> None:
    """The expectations of the scenario, as far as they are about jobs."""
    due = run.plan.scenario.expect
    for verdict in run.verdict.jobs:
        complete = verdict.state == "done" and not verdict.failed and verdict.correct == verdict.units
        if due.jobs_complete and not complete and verdict.state != "unread":
            text = f"{verdict.state}: {verdict.correct} of {verdict.units} units are right, {verdict.failed} failed"
            run.violate("expect", verdict.name, text)
    units, correct = (sum(getattr(verdict, name) for verdict in run.verdict.jobs) for name in ("units", "correct"))
    if correct < due.units_correct_min * units:
        run.violate("expect", "units", f"{correct} of {units} are right")
    if run.verdict.accepted_wrong and due.accepted_wrong == "none":
        run.violate("expect", "values", f"{run.verdict.accepted_wrong} wrong values were accepted")


def differences(one: Verdict, other: Verdict) -> list[str]:
    """Where two verdicts about one scenario disagree in what must not depend on time."""
    names = ("scenario", "ok", "nodes", "units", "files", "lost", "accepted_wrong", "accepted_twice")
    found = [f"{name}: {a} and {b}" for name in names if (a := getattr(one, name)) != (b := getattr(other, name))]
    jobs = [{job.name: (job.units, job.correct, job.failed) for job in verdict.jobs} for verdict in (one, other)]
    return found + ([f"jobs: {jobs[0]} and {jobs[1]}"] if jobs[0] != jobs[1] else [])
