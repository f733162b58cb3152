"""A job that this node leads, as its services see it; and its batches, the latest of all jobs in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from p2pgrid.core import lead as core
from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import IntegrityError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DecisionEntry
from p2pgrid.offload import Offload
from p2pgrid.services.joblog import JobFile
from p2pgrid.services.jobrows import job_row
from p2pgrid.services.results import Payloads
from p2pgrid.store.index import JobRow
from p2pgrid.wire.envelope import Signed

BATCH_CACHE_BYTES = 64 << 20

Watcher = Callable[[Sequence[DecisionEntry]], None]


class LedJob:
    """One job this node leads."""

    def __init__(self, job: Signed[Job], file: JobFile, lead: core.Lead) -> None:
        self.job = job
        self.id = JobId(job.id)
        self.file = file
        self.lead = lead
        self.ledger: Ledger = lead.ledger
        self.batch_at: dict[int, int] = {}
        """Where in the log each batch of the manifest is."""
        self.payload_at: dict[bytes, int] = {}
        self.payloads = Payloads()
        self.sent: dict[bytes, set[int]] = {}
        """Batches that each worker's session was sent."""
        self.passed_over: dict[bytes, float] = {}
        """Keepers that failed, and until when they are not named again."""
        self.watchers: set[Watcher] = set()
        self.ended = asyncio.Event()
        self.state = "running"
        self.started_s = 0.0
        self.keepers_note = ""

    @property
    def name(self) -> str:
        return self.job.body.name

    def row(self) -> JobRow:
        """What the index says of it."""
        return job_row(self.job, self.ledger, "led", self.state)


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
        record = await self._offload.run(led.file.read_one, led.batch_at[number])
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


def check_batches(job: Job, contents: Sequence[bytes]) -> None:
    """Raise IntegrityError unless these are the batches of the manifest."""
    fits = len(contents) == len(job.manifest) and all(
        len(content) == reference.size_bytes and blob_id_of(content) == reference.blob
        for reference, content in zip(job.manifest, contents, strict=True)
    )
    if not fits:
        raise IntegrityError("the batches are not those of the manifest", reason=Reason.CORRUPT)
