"""The packages that a script depends on, on their way into the grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from p2pgrid_cli.common import wall_ms

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.client.jobs import Plan
    from p2pgrid.model.script import JobScript


async def take_packages(
    plan: Plan, script: JobScript, channel: Channel, note: Callable[[str], None], step: Callable[[str], None] | None = None
) -> None:
    """Lock what the script depends on, and take the wheels along for every kind of machine in the grid.

    ``note``: told what the user should know; ``step``: told what is being done now, None for ``note``.

    Raises what :func:`p2pgrid.client.locking.lock` raises.
    """
    from p2pgrid.client.locking import lock
    from p2pgrid.machine import ThisMachine
    from p2pgrid.offload import ThreadOffload
    from p2pgrid.runtimes.interpreters import Target

    reply = await channel.peers(refresh=False)
    offers = [line.info.offer for line in reply.peers if line.info.offer.platform]
    targets = list(dict.fromkeys(Target(offer.platform, offer.python) for offer in offers))
    offload = ThreadOffload()
    try:
        found = await lock(script, targets, ThisMachine().caches() / "locks", note, offload=offload, wall_ms=wall_ms, step=step)
    finally:
        await offload.close()
    if found is not None:
        plan.job = msgspec.structs.replace(plan.job, environment=found.blob)
        plan.values[found.blob] = found.encoded
        plan.files.update(found.files)
