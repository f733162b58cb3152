"""The errands of a run: jobs to submit, files to put, and at the end everything that was acknowledged to read again."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.errors import P2PGridError, TryAgainError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import OK
from p2pgrid.node import Node
from p2pgrid.testing.observe import OTHER_BYTES
from p2pgrid.testing.plans.gridplan import FileEvent, JobEvent
from p2pgrid.testing.whole.clients import Client, FileRun, JobRun, Reading, file_of
from p2pgrid.testing.whole.crowd import Crowd, some
from p2pgrid.testing.whole.machines import CLIENT, SimulatedMachine
from p2pgrid.testing.world import MachineLoop

TRY_AGAIN_S = 3.0
ELSEWHERE_S = 6.0
"""So often somebody who waits for a job sees to it that there still is a machine to wait at."""


class Errands:
    """Whatever people want of one simulated grid, and what came of it."""

    def __init__(self, crowd: Crowd, folder: Path) -> None:
        """``folder``: where the scripts of jobs lie."""
        self._crowd = crowd
        self._world = crowd.world
        self._folder = folder
        self._rng = crowd.world.fork("errands")
        self.jobs: list[JobRun] = []
        self.files: list[FileRun] = []
        self.unread: dict[str, Callable[[SimulatedMachine], Coroutine[Any, Any, None]]] = {}
        """What is to be read at the end and has not been, by a name for it."""
        for job in crowd.plan.jobs:
            self._world.at(job.at_s, self._submit, job)
        for file in crowd.plan.files:
            self._world.at(file.at_s, self._put, file)

    def _at(self, machine: SimulatedMachine, work: Coroutine[Any, Any, None], name: str) -> None:
        machine.loop.begin(work, f"{CLIENT}{name}")

    # -- jobs ---------------------------------------------------------------------------------

    def _submit(self, event: JobEvent) -> None:
        crowd = self._crowd
        names = [name for name in crowd.running(of=event.submitter) if not crowd.frozen(name)]
        if not names:
            if not crowd.calm:
                self._world.after(TRY_AGAIN_S, self._submit, event)
            return
        plan = msgspec.structs.replace(event.plan, units=event.units, unit_s=event.unit_s, result_bytes=event.result_bytes)
        run = JobRun(plan, event.units)
        self.jobs.append(run)
        machine = crowd.machines[some(self._rng, names)]
        run.reader = machine.name
        self._at(machine, self._follow(machine, run), f"job {event.plan.name}")
        if plan.until_end:
            self._world.after(ELSEWHERE_S, self._elsewhere, run, machine.loop)
        if event.cancel_at_s:
            self._world.at(event.cancel_at_s, self._cancel, machine, run)

    async def _follow(self, machine: SimulatedMachine, run: JobRun) -> None:
        client = Client(machine)
        try:
            if run.job is None:
                await client.submit(run, self._folder, self._register)
                if run.plan.detach:
                    run.reader = ""
                    return
            else:
                await client.results(run, wait=True)
        except (P2PGridError, TimeoutError) as error:
            self._crowd.count_path("client-again")
            run.state = f"client: {error}"
            run.unreadable = isinstance(error, P2PGridError) and error.reason == Reason.NO_BLOB
            if isinstance(error, P2PGridError) and not error.retryable and run.job is None:
                return
        if not run.followed:
            # No timer of the machine's own: those that are left at its end count as its node's.
            self._world.after(TRY_AGAIN_S, self._follow_again, machine, run, machine.loop)

    def _follow_again(self, machine: SimulatedMachine, run: JobRun, loop: MachineLoop) -> None:
        """Whoever waited goes on, unless the machine was switched off meanwhile."""
        if machine.loop is loop and loop.alive:
            self._at(machine, self._follow(machine, run), f"job {run.plan.name}")

    def _elsewhere(self, run: JobRun, loop: MachineLoop) -> None:
        """Whoever waited for a job whose machine is gone, or never waited, asks for its results at another machine until it has them.

        Somebody who was told no job id has nothing to ask for.
        """
        crowd = self._crowd
        if run.followed or run.cancelled or (run.job is None and not loop.alive):
            return
        machine = crowd.machines.get(run.reader)
        if run.job is not None and (machine is None or machine.loop is not loop or not loop.alive):
            names = [name for name in crowd.running() if crowd.honest(name) and not crowd.frozen(name) and name != run.by]
            if names:
                machine = crowd.machines[some(self._rng, names)]
                crowd.count_path("read-elsewhere")
                run.reader, loop = machine.name, machine.loop
                self._at(machine, self._follow(machine, run), f"job {run.plan.name}")
        self._world.after(ELSEWHERE_S, self._elsewhere, run, loop)

    def _register(self, job: bytes, plan: Any) -> None:
        self._crowd.times.register(job, plan.unit_s, plan.unit_sigma)

    def _cancel(self, machine: SimulatedMachine, run: JobRun) -> None:
        if machine.node is not None and run.job is not None and not run.followed:
            self._crowd.count_path("cancel")
            run.cancelled = True
            self._at(machine, self._quietly(Client(machine).cancel(run)), "cancel")

    @staticmethod
    async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
        """Somebody's command that may fail: they are told, and that is that."""
        try:
            await work
        except (P2PGridError, TimeoutError):
            return

    # -- files -----------------------------------------------------------------------------------

    def _put(self, event: FileEvent) -> None:
        crowd = self._crowd
        names = [name for name in crowd.running(of=event.by) if crowd.honest(name) and not crowd.frozen(name)]
        if names:
            run = file_of(self._rng.randbytes(event.size_bytes), event.replicas)
            self.files.append(run)
            machine = crowd.machines[some(self._rng, names)]
            self._at(machine, self._quietly(self._store(machine, run)), "put")

    async def _store(self, machine: SimulatedMachine, run: FileRun) -> None:
        await Client(machine).put(run)
        holders = [node.key.public for node in self._crowd.living().values() if node.blobs.has(run.blob)]
        for onlooker in self._crowd.onlookers:
            onlooker.on_stored(machine.name, run.blob, len(run.content), holders, run.replicas)

    # -- at the end ----------------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether everybody who waits for a job, at a machine that runs, has been told its end."""
        return all(run.followed or run.unreadable or run.cancelled or run.job is None or not self._waiting(run) for run in self.jobs)

    def _waiting(self, run: JobRun) -> bool:
        """Whether there is somebody who could tell what came of a job."""
        assert run.job is not None
        job = run.job
        return run.plan.until_end and any(node.keeping.knows(job) for node in self._crowd.living().values())

    def read_all(self) -> None:
        """Begin to read everything at machines other than those it came from."""
        for number, file in enumerate(self.files):
            if file.stored:
                self.unread[f"file {number}"] = self._reader_of_file(file)
        for number, job in enumerate(self.jobs):
            if job.job is not None:
                self.unread[f"job {number}"] = self._reader_of_job(job)
        for name in list(self.unread):
            self._read(name, "")

    def _read(self, what: str, before: str) -> None:
        """Let somebody read it; whoever tried last in vain is not asked again at once."""
        if what not in self.unread:
            return
        crowd = self._crowd
        names = [name for name in crowd.running() if crowd.honest(name) and name != before] or crowd.running()
        if not names:
            return
        machine = crowd.machines[some(self._rng, names)]
        self._at(machine, self._try(what, machine), f"read {what}")

    async def _try(self, what: str, machine: SimulatedMachine) -> None:
        try:
            await self.unread[what](machine)
        except (P2PGridError, TimeoutError):
            self._crowd.count_path("read-again")
            self._world.after(TRY_AGAIN_S, self._read, what, machine.name)
        else:
            self.unread.pop(what, None)

    def _reader_of_file(self, run: FileRun) -> Callable[[SimulatedMachine], Coroutine[Any, Any, None]]:
        async def read(machine: SimulatedMachine) -> None:
            try:
                content = await Client(machine).get(run.blob)
            except (P2PGridError, TimeoutError) as error:
                for onlooker in self._crowd.onlookers:
                    onlooker.on_read(machine.name, run.blob, False, str(error))
                if not self._held(run.blob):
                    return  # No running node has it any more: there is no use in waiting.
                raise
            run.readable = content == run.content
            for onlooker in self._crowd.onlookers:
                onlooker.on_read(machine.name, run.blob, run.readable, "" if run.readable else OTHER_BYTES)

        return read

    def _reader_of_job(self, run: JobRun) -> Callable[[SimulatedMachine], Coroutine[Any, Any, None]]:
        run.decided = max((self._decided(node, run) for node in self._crowd.living().values()), default=0)

        async def read(machine: SimulatedMachine) -> None:
            assert run.job is not None
            if not run.decided:
                # There may be nobody left who knows the job, or it lies on disks of nodes that have started anew: one try.
                with suppress(P2PGridError, TimeoutError):
                    run.read = await Client(machine).read(run)
                return
            run.read = await Client(machine).read(run)
            if len(run.read.values) < run.decided:
                raise TryAgainError("there is more of it somewhere", reason=Reason.TIMEOUT)

        return read

    @staticmethod
    def _decided(node: Node, run: JobRun) -> int:
        """How many values of the last level a node has in its log of a job, as lead or keeper."""
        assert run.job is not None
        known = node.leading.jobs.get(run.job) or node.keeping.jobs.get(run.job)
        if known is None:
            return 0
        layout = known.ledger.layout
        last = len(layout.levels) - 1
        found = (known.ledger.find(*layout.locate(last, unit)) for unit in range(layout.levels[last].units))
        return sum(decision is not None and decision.outcome == OK for decision in found)

    def unread_values(self) -> tuple[int, int]:
        """Of the values that were decided: how many could not be read though somebody has them, and how many nobody has."""
        lost = unlucky = 0
        for run in self.jobs:
            reading, gone = run.read or Reading(), self.gone(run)
            unlucky += gone
            lost += max(0, run.decided - len(reading.values) - gone)
        return lost, unlucky

    def gone(self, run: JobRun) -> int:
        """Decided values of a job that nobody holds any more."""
        return sum(not self._held(blob) for blob in run.read.missing.values()) if run.read is not None else 0

    def _held(self, blob: bytes) -> bool:
        return any(node.blobs.has(BlobId(blob)) for node in self._crowd.living().values())
