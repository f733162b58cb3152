"""Following a job for its owner: results as they are decided and on disk, in columns, each once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence

import msgspec

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.work import OK, DecisionEntry
from p2pgrid.services.deriving import Deriving
from p2pgrid.services.keeping import JobView, KeptJob
from p2pgrid.services.ledjob import LedJob
from p2pgrid.services.results import NIL, NIL_DIGEST, Span, spans
from p2pgrid.wire.messages import Payload
from p2pgrid.wire.owner import FollowEvent, JobLine, ResultSpan

EVENT_BYTES = 512 << 10
NEWS_S = 0.25
"""The summary is repeated this often while nothing is decided."""
QUIET_LOOKS = 12
"""After so many looks in a row at a job that nobody works on, its owner is told what it waits for."""
FAILURES_MAX = 100
"""Failures of lower levels that are told in full; all are counted."""


def job_line(view: JobView) -> JobLine:
    """The summary of a job."""
    body, ledger = view.job.body, view.ledger
    disputed = view.lead.disputed if isinstance(view, LedJob) else 0
    return JobLine(
        job=view.id,
        name=body.name,
        state=view.state if isinstance(view, LedJob | KeptJob) else "",
        units=ledger.layout.units,
        done=ledger.done,
        failed=ledger.failed,
        disputed=disputed,
        created_ms=body.created_ms,
        expires_ms=body.expires_ms,
        role="led" if isinstance(view, LedJob) else view.role if isinstance(view, KeptJob) else "",
        keepers=ledger.keepers.body.keepers if ledger.keepers else (),
        workers=ledger.units_by_worker(),
        conflicts=len(ledger.conflicts),
        runtime=body.runtime,
        final=ledger.layout.levels[-1].kind,
        final_first=ledger.layout.number(ledger.layout.levels[-1].first_batch, 0),
        map_units=body.map_units,
    )


class Follower:
    """One reader of one job."""

    def __init__(self, view: JobView, deriving: Deriving) -> None:
        self._view = view
        self._deriving = deriving
        self._queue: deque[DecisionEntry] = deque()
        self._news = asyncio.Event()
        self._due = view.file.end
        """Where the log ended when the last decision of the queue was made: what came later is not waited for."""
        self._failures = 0
        self._quiet = 0
        levels = view.ledger.layout.levels
        self._last_batch = levels[-1].first_batch

    async def events(self, *, wait: bool) -> AsyncIterator[FollowEvent]:
        """Until the job has ended, or once if ``wait`` is False."""
        view = self._view
        watched = isinstance(view, LedJob)
        if isinstance(view, LedJob):
            view.watchers.add(self._on_decided)
        try:
            self._queue.extend(_decided(view))
            while True:
                self._news.clear()
                ended = not watched or (isinstance(view, LedJob) and view.ended.is_set())
                async for event in self._drain():
                    yield event
                if ended or not wait:
                    yield self._event((), end=True)
                    return
                yield self._event(())
                try:
                    async with asyncio.timeout(NEWS_S):
                        await self._news.wait()
                except TimeoutError:
                    continue
        finally:
            if isinstance(view, LedJob):
                view.watchers.discard(self._on_decided)

    def _on_decided(self, entries: Sequence[DecisionEntry]) -> None:
        self._queue.extend(entries)
        self._due = self._view.file.end
        self._news.set()

    async def _drain(self) -> AsyncIterator[FollowEvent]:
        """What is queued, once it is on disk, in events of a bounded size. What is decided meanwhile waits for the next time."""
        count = len(self._queue)
        if not count:
            return
        file = self._view.file
        with contextlib.suppress(P2PGridError):
            await file.wait(self._due)
        found: list[ResultSpan] = []
        size_bytes = 0
        for _ in range(count):
            entry = self._queue.popleft()
            if not self._wanted(entry):
                continue
            for span in spans(self._view.ledger, entry.batch, entry.start, entry.units):
                if span.receipt is None or not self._on_disk(span.receipt.body.payload):
                    continue
                columns = self._columns(span, await self._deriving.payload(self._view, span.receipt))
                found.append(columns)
                size_bytes += sum([len(memoryview(value)) for value in columns.values])
                if size_bytes >= EVENT_BYTES:
                    yield self._event(tuple(found))
                    found, size_bytes = [], 0
        if found:
            yield self._event(tuple(found))

    def _on_disk(self, payload: bytes) -> bool:
        """Where the disk failed, memory is ahead of it: what is only there is not shown."""
        file = self._view.file
        return file.failed is None or self._view.payload_at.get(payload, file.durable) < file.durable

    def _wanted(self, entry: DecisionEntry) -> bool:
        if entry.batch >= self._last_batch:
            return True
        if entry.outcome == OK or self._failures >= FAILURES_MAX:
            return False
        self._failures += entry.units
        return True

    def _columns(self, span: Span, payload: Payload) -> ResultSpan:
        assert span.receipt is not None
        body = span.receipt.body
        stop = span.position + span.units
        values = payload.values[span.position : stop]
        blobs = []
        if any(bytes(value) == NIL for value in values):
            for position, value in enumerate(values):
                at = (span.position + position) * DIGEST_BYTES
                digest = body.digests[at : at + DIGEST_BYTES]
                if bytes(value) == NIL and digest != NIL_DIGEST:
                    blobs.append((position, digest, (span.receipt.author, *body.holders)))
        ledger = self._view.ledger
        outcomes = body.outcomes[span.position : stop]
        if ledger.failed:
            # An answer may stand there for a unit whose workers never agreed.
            outcomes = bytes(ledger.outcome(span.batch, span.start + index, said) for index, said in enumerate(outcomes))
        first = ledger.layout.number(span.batch, span.start)
        return ResultSpan(first, outcomes, list[msgspec.Raw](values), tuple(blobs))

    def _event(self, results: tuple[ResultSpan, ...], *, end: bool = False) -> FollowEvent:
        running = len(self._view.lead.book.leases) if isinstance(self._view, LedJob) else 0
        note = ""
        if isinstance(self._view, LedJob):
            idle = self._view.lead.book.pending and not running
            self._quiet = self._quiet + 1 if idle and not results else 0
            note = waiting_note(self._view) if self._quiet >= QUIET_LOOKS else self._view.keepers_note
        elif isinstance(self._view, KeptJob) and self._view.state == "incomplete":
            note = "results are missing that the submitter settled, and nobody who can be reached has them"
        return FollowEvent(job_line(self._view), results, running, end, note)


def waiting_note(led: LedJob) -> str:
    """Why a job whose units nobody works on does not go on by itself."""
    able = len(led.lead.known | led.lead.workers.keys())
    quorum = led.job.body.quorum
    if not able:
        return "waiting: no node is there that may run this job"
    if quorum > able:
        return f"waiting: each unit needs equal answers of {quorum} nodes, and only {able} may run this job"
    if quorum > 1:
        return "waiting: the answers to some units differ, and every node there has given one; is work() deterministic?"
    return "waiting: no node takes the units that are left"


def _decided(view: JobView) -> list[DecisionEntry]:
    return [entry for decision in view.ledger.decisions.values() for entry in decision.body.entries]
