"""What this node accepts, and why not (docs/spec/admission.md). Fail closed; every refusal has a reason.

1. Only members of the node's own grid are heard at all; that is checked when a connection opens.
2. Work comes from members with the role ``submit``; native and command units also need ``native`` for
   everybody but the owner, and an owner who did not say ``--no-native``. ``wasm`` and ``python`` units are open to all who submit.
3. The runtime must be one this node offers, and its cage has held when the node attacked it; memory within what is shared.
4. Jobs are kept and blobs stored only within the shared storage, and only by nodes with the role ``store``.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from p2pgrid.core.layout import FAN_IN_MAX
from p2pgrid.errors import RefusedError
from p2pgrid.model.job import AUTO, RUNTIMES, Job
from p2pgrid.model.limits import Limits
from p2pgrid.model.membership import Member
from p2pgrid.model.reasons import Reason

CAGED = ("native", "command")
"""Runtimes whose units are machine code: only for those who are trusted with it, and only in a cage that held."""
QUORUM_MAX = 64
ATTEMPTS_MAX = 64
REPLICAS_MAX = 64
DERIVED_UNITS_MAX = 1 << 20
"""Each is a batch of its own, and costs every node that looks at the job some bytes before any work is done."""
TIMEOUT_S_MAX = 31 * 86_400.0
"""A month: also what keeps a time-out finite."""


KEPT_MS_MAX = 400 * 24 * 3600 * 1000
"""Nobody may ask a node to keep a job for longer."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's terms for this node."""

    cores: int = 1
    """Units run at one time."""
    memory_bytes: int = 0
    """Memory lent in all; 0: half of what the machine has."""
    storage_bytes: int = 0
    """Storage lent for jobs and blobs of the grid."""
    native: bool = True
    """Whether units of other members may run native code and commands here."""
    runtimes: tuple[str, ...] = RUNTIMES
    submitters: tuple[bytes, ...] = ()
    """Submitter keys whose jobs are worked for; empty: those of every member with the role."""
    upload_bytes_per_s: int = 0
    """At most so much of blobs goes to other nodes, on average; 0: no cap."""
    download_bytes_per_s: int = 0
    """At most so much of blobs comes from other nodes, on average; 0: no cap."""
    idle_s: float = 0.0
    """Work only when the owner has not touched the machine for so long; 0: whatever the owner does."""
    busy_share: float = 0.0
    """Pause when other programs use more than this share (0 to 1) of all processors; 0: never."""
    on_battery: bool = False
    """Whether to work while the machine runs on its battery."""
    hours: tuple[tuple[int, int], ...] = ()
    """Work only from a minute of the local day to another, which may lie past midnight; empty: always."""
    nice: int = 19
    """Added to the niceness of worker processes, so that they give way to the owner's."""
    environments: str = "any"
    """Packages that native units of others may bring: ``off``, ``listed`` (those in ``packages``) or ``any``."""
    packages: tuple[str, ...] = ()
    """Names of packages, as they are normalised, that ``listed`` allows."""


def refuse_work(job: Job, lead: Member | None, own: bool, policy: Policy, now_ms: int, author: bytes = b"") -> Reason | None:
    """Why this node runs no unit of a job, or None if it does.

    ``lead``: the member that leads it, this node perhaps, to which that passed. ``own``: this node's owner signed it; ``author``: who did.
    """
    if policy.cores < 1:
        return Reason.NO_SLOT
    if job.expires_ms < now_ms:
        return Reason.EXPIRED
    # As many units as there are cores run at one time.
    if policy.memory_bytes and job.limits.memory_bytes > policy.memory_bytes // (1 if own else policy.cores):
        return Reason.NO_MEMORY
    if not own and (lead is None or "submit" not in lead.roles):
        return Reason.NO_ROLE
    if not own and policy.submitters and author not in policy.submitters:
        return Reason.NOT_LISTED
    runtime = choose_runtime(job, lead, own, policy)
    return runtime if isinstance(runtime, Reason) else None


def choose_runtime(job: Job, lead: Member | None, own: bool, policy: Policy) -> str | Reason:
    """The runtime that a job's units get here, or why there is none. ``own``: this node's owner signed the job.

    ``auto`` is native for those who are trusted with it, if this node offers it, and else the runner that the job names.
    """
    wanted = ("native", "python") if job.runtime == AUTO else (job.runtime,)
    why = Reason.NO_RUNTIME
    for runtime in wanted:
        if runtime not in policy.runtimes:
            continue
        if runtime == "python" and not job.runner:
            continue
        if runtime in CAGED and not own and not (policy.native and lead is not None and "native" in lead.roles):
            why = Reason.NATIVE_REFUSED
            continue
        return runtime
    return why


def refuse_for_sender(job: Job, roles: Collection[str]) -> Reason | None:
    """Why a job is not kept for a member with these roles: nobody has machine code led by others who may not have it run themselves."""
    machine_code = job.runtime in CAGED or job.runtime == AUTO
    return Reason.NATIVE_REFUSED if machine_code and "native" not in roles else None


def check_job(job: Job, limits: Limits) -> None:
    """Raise RefusedError when a job breaks a bound of the protocol."""
    batches = job.manifest
    too_many = job.map_units > limits.job_units or any(batch.units > limits.batch_units for batch in batches)
    odd_batches = not batches or any(batch.units < 1 or not 0 <= batch.size_bytes <= limits.batch_bytes for batch in batches)
    odd_terms = not (
        1 <= job.quorum <= QUORUM_MAX
        and 1 <= job.attempts <= ATTEMPTS_MAX
        and 2 <= job.derive.fan_in <= FAN_IN_MAX
        and 0 < job.limits.timeout_s <= TIMEOUT_S_MAX
        and job.limits.memory_bytes >= 0
        and job.limits.result_bytes >= 0
        and 1 <= job.replicas <= REPLICAS_MAX
    )
    if too_many or odd_batches or odd_terms or _derived_units(job) > DERIVED_UNITS_MAX:
        raise RefusedError("the job is outside the protocol's limits", reason=Reason.MALFORMED)


def _derived_units(job: Job) -> int:
    """Units of a job's reduce levels, known from its terms alone."""
    total, count = 0, job.map_units
    while job.derive.reduce and count > 1:
        count = -(-count // job.derive.fan_in)
        total += count
    return total


def refuse_keeping(job: Job, kept: int, used_bytes: int, policy: Policy, limits: Limits, now_ms: int) -> Reason | None:
    """Why this node does not keep a job, or None if it does. ``used_bytes``: storage taken already."""
    if job.expires_ms < now_ms:
        return Reason.EXPIRED
    if job.expires_ms > now_ms + KEPT_MS_MAX:
        return Reason.MALFORMED
    size_bytes = sum(batch.size_bytes for batch in job.manifest) + len(job.code)
    if kept >= limits.jobs_kept or used_bytes + size_bytes > policy.storage_bytes:
        return Reason.KEEPER_FULL
    return None
