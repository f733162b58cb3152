"""What this node accepts, and why not (docs/spec/admission.md). Fail closed; every refusal has a reason.

1. Only members of the node's own grid are heard at all; that is checked when a connection opens.
2. Work comes from members with the role ``submit``; native and command units also need ``native`` for
   everybody but the owner, and an owner who did not say ``--no-native``.
3. The runtime must be one this node offers; memory within what is shared.
4. Jobs are kept and blobs stored only within the shared storage, and only by nodes with the role ``store``.
"""

from __future__ import annotations

import msgspec

from p2pgrid.core.layout import FAN_IN_MAX
from p2pgrid.errors import RefusedError
from p2pgrid.model.job import RUNTIMES, Job
from p2pgrid.model.limits import Limits
from p2pgrid.model.membership import Member
from p2pgrid.model.reasons import Reason

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


def refuse_work(job: Job, submitter: Member | None, own_key: bytes, lead: bytes, policy: Policy, now_ms: int) -> Reason | None:
    """Why this node runs no unit of a job, or None if it does. ``submitter``: the member that leads it."""
    if policy.cores < 1:
        return Reason.NO_SLOT
    if job.expires_ms < now_ms:
        return Reason.EXPIRED
    if job.runtime not in policy.runtimes:
        return Reason.NO_RUNTIME
    if policy.memory_bytes and job.limits.memory_bytes > policy.memory_bytes:
        return Reason.NO_MEMORY
    if lead == own_key:
        return None
    if submitter is None or "submit" not in submitter.roles:
        return Reason.NO_ROLE
    if not policy.native or "native" not in submitter.roles:
        return Reason.NATIVE_REFUSED
    return None


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
