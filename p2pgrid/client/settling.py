"""Which runtime a job asks for: what the user said, and what ``auto`` means in this grid (docs/guides/runtimes.md).

``auto`` is native where the submitter is trusted and the ``python`` runtime elsewhere. Each member decides that for itself, so
a job may say ``auto`` too; but replicas of a unit must not run in two kinds of Python, and packages need native ones.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from p2pgrid.client.channel import Channel
from p2pgrid.errors import UsageError
from p2pgrid.model.job import AUTO, Job
from p2pgrid.wire.owner import OwnStatus


class Settled(NamedTuple):
    """A job with its runtime, and a sentence for the user: which, and why."""

    job: Job
    sentence: str


async def settle(job: Job, asked: str, channel: Channel, *, alone: bool = False) -> Settled:
    """Settle the runtime of a job.

    ``asked``: what the user said, ``auto`` by default. ``alone``: the grid is made for this command and is the user's own.
    Raises UsageError for a contradiction, and what finding the grid's runner raises.
    """
    if job.runtime in ("command", "wasm"):
        return Settled(job, "")
    if asked == "native" or (asked == "auto" and alone):
        return Settled(msgspec.structs.replace(job, runtime="native"), "")
    if asked == "python":
        if job.environment:
            raise UsageError(
                "the script has dependencies, and the 'python' runtime has the standard library only",
                hint="use --runtime native, or drop the dependencies",
            )
        runner = await channel.runner()
        return Settled(msgspec.structs.replace(job, runtime="python", runner=runner), "")
    return await _auto(job, channel, await channel.status())


async def _auto(job: Job, channel: Channel, status: OwnStatus) -> Settled:
    trusted = "native" in status.roles
    if job.environment:
        return Settled(msgspec.structs.replace(job, runtime="native"), "native, since the script has dependencies")
    if trusted and job.quorum > 1:
        return Settled(msgspec.structs.replace(job, runtime="native"), "native, since answers are compared")
    if not trusted:
        runner = await channel.runner()
        why = "python, since your membership does not grant native"
        return Settled(msgspec.structs.replace(job, runtime="python", runner=runner), why)
    runner = await channel.runner(have=False)
    if not runner:
        return Settled(msgspec.structs.replace(job, runtime="native"), "")
    return Settled(msgspec.structs.replace(job, runtime=AUTO, runner=runner), "")
