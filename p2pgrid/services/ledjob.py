"""A job that this node leads, as its services see it; and its batches, the latest of all jobs in memory."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence

from p2pgrid import logs
from p2pgrid.core import lead as core
from p2pgrid.errors import IntegrityError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.announcing import Preparations

_log = logging.getLogger(__name__)

BATCH_CACHE_BYTES = 64 << 20


class LedJob:
    """One job this node leads: the job as it lies here, and the core that leads it."""

    def __init__(self, kept: KeptJob, lead: core.Lead) -> None:
        self.kept = kept
        self.job = kept.job
        self.id = kept.id
        self.file = kept.file
        self.ledger = kept.ledger
        self.lead = lead
        self.sent: dict[bytes, set[int]] = {}
        """Batches that each worker's session was sent."""
        self.passed_over: dict[bytes, float] = {}
        """Keepers that failed, and until when they are not named again."""
        self.declined: dict[bytes, str] = {}
        """Why workers that were invited take no units of it: the last reason code of each, until it asks for some."""
        self.ended = asyncio.Event()
        """Nothing is left to lead: the job is over, was broken off here, or others lead it."""
        self.started_s = 0.0
        self.keepers_note = ""
        self.preparations = Preparations()
        """What workers say that they prepare before they can begin."""
        self.broken = False
        """It cannot go on here; whether it can elsewhere is being found out."""

    @property
    def keepers(self) -> tuple[bytes, ...]:
        """Who keeps it, as far as was named."""
        return self.ledger.keepers.body.keepers if self.ledger.keepers else ()

    @property
    def state(self) -> str:
        """As the job's."""
        return self.kept.state


class Batches:
    """The batches that workers ask for: from memory, within a bound, or from the job's log."""

    def __init__(self, offload: Offload, bytes_max: int = BATCH_CACHE_BYTES) -> None:
        self._offload = offload
        self._bytes_max = bytes_max
        self._known: OrderedDict[tuple[JobId, int], bytes] = OrderedDict()
        self._bytes = 0

    async def get(self, led: LedJob, number: int) -> bytes:
        """A batch of the manifest. Raises what reading the disk raises."""
        known = self._known.get((led.id, number))
        if known is not None:
            self._known.move_to_end((led.id, number))
            return known
        record = await self._offload.run(led.file.read_one, led.kept.batch_at[number])
        self.put(led.id, number, record.data)
        return record.data

    def put(self, job: JobId, number: int, content: bytes) -> None:
        """Remember a batch."""
        if (job, number) in self._known:
            return
        self._known[job, number] = content
        self._bytes += len(content)
        while self._bytes > self._bytes_max and len(self._known) > 1:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= len(dropped)


def say_ended(led: LedJob, seconds: float) -> None:
    """The one line of a job in the log. ``seconds``: since this node began to lead it."""
    ledger, level = led.ledger, logging.INFO
    units = ledger.layout.units
    logs.line(_log, level, logs.JOB, job=led.id, state=led.state, units=units, failed=ledger.failed, seconds=seconds, epoch=led.lead.epoch)


def check_batches(job: Job, contents: Sequence[bytes]) -> None:
    """Raise IntegrityError unless these are the batches of the manifest."""
    fits = len(contents) == len(job.manifest) and all(
        len(content) == reference.size_bytes and blob_id_of(content) == reference.blob
        for reference, content in zip(job.manifest, contents, strict=True)
    )
    if not fits:
        raise IntegrityError("the batches are not those of the manifest", reason=Reason.CORRUPT)
