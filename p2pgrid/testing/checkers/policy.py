"""S7: a unit that the machine's policy refuses never starts there.

The owner's terms are read from the node's configuration, the job from its own statement; admission is not asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.journal import Entry, Journal, Records
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node
    from p2pgrid.runtimes.tasks import BatchChunk, BatchTask


class PolicyChecker(Onlooker):
    """S7, at the start of every task."""

    invariant = "S7"

    def __init__(self, journal: Journal, facts: Facts) -> None:
        super().__init__()
        self._journal = journal
        self._facts = facts
        self._submitters: dict[bytes, str] = {}
        """Machines by the submitter key of their home."""
        self._running: dict[str, dict[int, tuple[BatchTask, int]]] = {}
        """By machine: tasks that have begun, with the units that have not ended."""
        self._unknown: dict[bytes, list[tuple[str, BatchTask]]] = {}
        """Tasks of jobs that lie in no log yet."""
        self.started = 0
        """Tasks that began."""

    def on_start(self, name: str, node: Node) -> None:
        self._submitters[node.context.submitter.public] = name

    def on_crash(self, name: str) -> None:
        self._running.pop(name, None)

    def on_close(self, name: str, node: Node) -> None:
        self._running.pop(name, None)

    def on_units_start(self, name: str, task: BatchTask) -> None:
        self.started += 1
        node = self.view.living().get(name)
        if node is None or not self.view.honest(name):
            return
        self._report(name, task, self._terms_fault(name, node, task))
        job = self._journal.jobs.get(task.job.job)
        if job is not None:
            self._report(name, task, self._job_fault(name, node, task, job))
        else:
            # Workers may begin while the lead's disk still writes: then the job is looked at as soon as it is there.
            self._unknown.setdefault(task.job.job, []).append((name, task))
        running = self._running.setdefault(name, {})
        running[id(task)] = task, len(task.inputs)
        cores = node.config.policy.cores
        if len(running) > cores:
            self._forget_ended(running, node)
            if len(running) > cores:
                self.violate(name, f"{len(running)} tasks run on {cores} cores")

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        if job not in self._unknown or job not in self._journal.jobs:
            return
        for at, task in self._unknown.pop(job):
            node = self.view.living().get(at)
            if node is not None:
                self._report(at, task, self._job_fault(at, node, task, self._journal.jobs[job]))

    def _report(self, name: str, task: BatchTask, fault: str) -> None:
        if fault:
            self.violate(name, f"a unit of job {task.job.job.hex()[:8]} was started: {fault}")

    def on_chunk(self, name: str, task: BatchTask, chunk: BatchChunk) -> None:
        running = self._running.get(name, {})
        _, left = running.get(id(task), (task, 0))
        left -= len(chunk.outcomes)
        if left > 0:
            running[id(task)] = task, left
        else:
            running.pop(id(task), None)

    def _forget_ended(self, running: dict[int, tuple[BatchTask, int]], node: Node) -> None:
        """Tasks that were cancelled or failed are not told of: what the worker no longer counts has ended, the oldest first."""
        for known in list(running)[: max(0, len(running) - node.working.worker.running)]:
            del running[known]

    def _terms_fault(self, name: str, node: Node, task: BatchTask) -> str:
        """What the owner of the machine has against it."""
        policy = node.config.policy
        submitter = self._submitters.get(task.job.submitter)
        if policy.cores < 1:
            return "no core is lent"
        if task.runtime not in policy.runtimes:
            return f"the runtime '{task.runtime}' is not offered"
        if policy.memory_bytes and task.memory_bytes > policy.memory_bytes:
            return "it may use more memory than is lent"
        if submitter is None:
            return "nobody knows its submitter"
        roles = self._journal.nodes[submitter].member.roles
        if "submit" not in roles:
            return "its submitter may not submit"
        if submitter != name and not (policy.native and "native" in roles):
            return "native code of others is refused here"
        return ""

    def _job_fault(self, name: str, node: Node, task: BatchTask, signed: Entry) -> str:
        """What the signed job, the time, or a word given before has against it."""
        job = signed.body
        if signed.author != task.job.submitter:
            return "it is started for another submitter than the one who signed the job"
        if signed.id in node.working._refused:
            return "its job was refused before"
        now_ms = min(self.view.wall_ms(), self.view.wall_ms(name))
        if job.expires_ms + self._facts.limits.clock_skew_ms < now_ms:
            return f"it expired {(now_ms - job.expires_ms) / 1000:.0f} s before"
        if job.limits.memory_bytes > (node.config.policy.memory_bytes or job.limits.memory_bytes):
            return "its job asks for more memory than is lent"
        return ""
