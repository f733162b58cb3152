"""The documents of ``jobs`` and ``cancel``."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2pgrid.model.ids import to_text
from p2pgrid.wire.owner import CancelReply, JobLine


class Job(msgspec.Struct, frozen=True):
    """Each of ``jobs``."""

    job: str
    """its id"""
    name: str
    """the script or command"""
    state: str
    """`running`, `done`, `failed`, `cancelled`, `stopped`, `incomplete` (results are missing that its submitter settled), `unknown`"""
    role: str
    """what this node is to it: `led`, `kept`, `read`"""
    runtime: str
    """as asked for: `auto`, `native`, `python`, `wasm`, `command`"""
    units: int
    """derived ones included"""
    done: int
    """units with a value"""
    failed: int
    """units without one"""
    disputed: int
    """decided although somebody dissented"""
    conflicts: int
    """units with two different decisions"""
    created_ms: int
    """when it was submitted"""
    expires_ms: int
    """when it is deleted everywhere"""
    lead: str
    """the node that leads it, as far as is known here"""
    keepers: tuple[str, ...]
    """nodes that keep its log"""
    units_per_node: dict[str, int]
    """decided units of each node"""


class Jobs(msgspec.Struct, frozen=True):
    """The jobs this node leads or keeps."""

    jobs: tuple[Job, ...]
    """the newest first"""


class Cancelled(msgspec.Struct, frozen=True):
    """What ``cancel`` came to."""

    job: str
    """its id"""
    state: str
    """as in `jobs`; a job that had ended stays what it was"""
    told: int
    """other nodes that have heard it"""


def job_of(line: JobLine) -> Job:
    """A job as programs read it."""
    return Job(
        job=to_text(line.job),
        name=line.name,
        state=line.state,
        role=line.role,
        runtime=line.runtime,
        units=line.units,
        done=line.done,
        failed=line.failed,
        disputed=line.disputed,
        conflicts=line.conflicts,
        created_ms=line.created_ms,
        expires_ms=line.expires_ms,
        lead=to_text(line.lead) if line.lead else "",
        keepers=tuple(to_text(keeper) for keeper in line.keepers),
        units_per_node={to_text(node): units for node, units in line.workers.items()},
    )


def jobs_of(lines: Iterable[JobLine]) -> Jobs:
    """The whole document."""
    return Jobs(tuple(job_of(line) for line in lines))


def cancelled_of(job: bytes, reply: CancelReply) -> Cancelled:
    """The document of ``cancel``."""
    return Cancelled(to_text(job), reply.state, reply.told)
