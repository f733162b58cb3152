"""Why each node does or does not work on a job: one place where the reasons are asked in order (docs/spec/faces.md#reasons).

1. What is known for sure comes first: a lease, then that the node is away, its roles, its offer, its pause, what it said itself.
2. Equal reasons are one line with the nodes under it. What a node offers is its own word, and so is why it declined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from p2pgrid.core.lead import Lead
from p2pgrid.model.job import AUTO, Job
from p2pgrid.model.node import NodeInfo
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.watchdog import size_text
from p2pgrid.services.explaining.words import because, code_of, count_text, fact, names_text, plain, span_text
from p2pgrid.wire.faces import Because
from p2pgrid.wire.messages import NodeStatus

LACKING_MAX = 16
"""Runtimes of a node that are looked at: what it says of itself is its own."""


class Bystander(NamedTuple):
    """A node that has nothing of a job. ``detail``: what is so at this node, behind its name."""

    node: bytes
    reason: Reason
    detail: str = ""


class Candidate(NamedTuple):
    """A node as others see it. ``status`` None: it does not answer. ``runtimes``: what it offers for this job."""

    node: bytes
    info: NodeInfo
    status: NodeStatus | None
    roles: frozenset[str]
    runtimes: tuple[str, ...]


def cannot(job: Job, candidate: Candidate, now_ms: int) -> Bystander | None:
    """Why a node cannot work on a job whoever leads it; None if it can. ``now_ms``: Unix milliseconds."""
    node, status, offer = candidate.node, candidate.status, candidate.info.offer
    if status is None:
        return Bystander(node, Reason.DEAD)
    if "work" not in candidate.roles:
        return Bystander(node, Reason.NO_ROLE, f"its roles are {names_text(sorted(candidate.roles)) or 'none'}")
    if offer.cores < 1:
        return Bystander(node, Reason.NO_SLOT)
    if status.paused:
        since = f"since {span_text((now_ms - status.paused_since_ms) / 1000)}" if status.paused_since_ms else ""
        return Bystander(node, code_of(status.paused) or Reason.PAUSED, since)
    wanted = ("native", "python") if job.runtime == AUTO else (job.runtime,)
    if not any(runtime in candidate.runtimes for runtime in wanted):
        return _no_runtime(candidate, wanted)
    memory_bytes = offer.memory_bytes // offer.cores
    if job.limits.memory_bytes > memory_bytes:
        detail = f"lends {size_text(memory_bytes)} a core, and a unit wants {size_text(job.limits.memory_bytes)}"
        return Bystander(node, Reason.NO_MEMORY, detail)
    return None


def _no_runtime(candidate: Candidate, wanted: tuple[str, ...]) -> Bystander:
    """As far as the node says why it does not offer one of them, that is the reason."""
    for runtime, code in candidate.info.lacking[:LACKING_MAX]:
        reason = code_of(code)
        if runtime in wanted and reason is not None:
            return Bystander(candidate.node, reason, runtime)
    offers = names_text([plain(runtime) for runtime in candidate.runtimes[:LACKING_MAX]]) or "nothing"
    return Bystander(candidate.node, Reason.NO_RUNTIME, f"offers {offers}; the job wants {' or '.join(wanted)}")


class AtWork(NamedTuple):
    """What a node has leased of a job."""

    node: bytes
    units: int
    oldest_s: float


def at_work(lead: Lead, now: float) -> dict[bytes, AtWork]:
    """Who has leases, and since when. ``now``: monotonic seconds."""
    book = lead.book
    return {
        node: AtWork(node, book.owed_by(node), max((now - book.leases[lease].since for lease in leases), default=0.0))
        for node, leases in book.by_worker.items()
        if leases
    }


def idle_here(lead: Lead, candidate: Candidate, may: frozenset[bytes], declined: Mapping[bytes, str]) -> Bystander:
    """Why a node that could work on a job that is led here has nothing of it. ``may``: to whom units are given now."""
    node, status = candidate.node, candidate.status
    why = code_of(declined.get(node, ""))
    if why is not None:
        return Bystander(node, why, "it declined")
    if node not in may and node not in lead.known and node not in lead.workers:
        return Bystander(node, Reason.KEEPS_IT)
    worker = lead.workers.get(node)
    if not lead.book.pending or (worker is not None and worker.hungry):
        return Bystander(node, Reason.NOTHING_LEFT)
    if status is not None and not status.free_cores and status.running + status.queued:
        return Bystander(node, Reason.OTHER_WORK, f"{status.running} running, {status.queued} queued")
    return Bystander(node, Reason.NOT_ASKING)


def working_line(working: Iterable[AtWork], name: Callable[[bytes], str]) -> Because:
    """Who works on it."""
    lines = [
        fact(f"{name(one.node)}: {count_text(one.units, 'unit')} leased, the oldest for {span_text(one.oldest_s)}")
        for one in sorted(working, key=lambda one: (-one.oldest_s, one.node))
    ]
    return fact(f"{count_text(len(lines), 'node works', 'nodes work')} on it", lines)


def grouped(idle: Iterable[Bystander], name: Callable[[bytes], str]) -> list[Because]:
    """Equal reasons as one line each, with the nodes under it; most nodes first."""
    groups: dict[Reason, list[Bystander]] = {}
    for bystander in idle:
        groups.setdefault(bystander.reason, []).append(bystander)
    ordered = sorted(groups.items(), key=lambda group: (group[0] in QUIET, -len(group[1]), group[0].value))
    return [_group(reason, members, name) for reason, members in ordered]


QUIET = (Reason.NOTHING_LEFT, Reason.KEEPS_IT, Reason.NO_SLOT)
"""Reasons that nobody needs to do something about: said last."""


def _group(reason: Reason, members: list[Bystander], name: Callable[[bytes], str]) -> Because:
    lines = [fact(f"{name(member.node)}{f': {member.detail}' if member.detail else ''}") for member in members]
    return because(reason, f"{count_text(len(members), 'node')}: {reason.sentence}", lines)
