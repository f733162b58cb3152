"""Following a job for its owner: results as they are decided and on disk, in columns, each once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec

from p2pgrid.core import picture
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.work import FUEL_BYTES, OK, DecisionEntry
from p2pgrid.net.api import Clock
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.leading import Leading
from p2pgrid.services.ledjob import LedJob
from p2pgrid.services.reading import Following, Reading
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


def job_line(kept: KeptJob, led: LedJob | None = None, now_s: float = 0.0) -> JobLine:
    """The summary of a job. ``led``: as it is led here, if it is; ``now_s``: monotonic."""
    body, ledger = kept.job.body, kept.ledger
    units_per_s = picture.rate(led.lead, now_s) if led is not None and kept.led and not kept.ended else 0.0
    return JobLine(
        job=kept.id,
        name=body.name,
        state=kept.state,
        units=ledger.layout.units,
        done=ledger.done,
        failed=ledger.failed,
        disputed=ledger.disputed,
        created_ms=body.created_ms,
        expires_ms=body.expires_ms,
        role="led" if kept.led else kept.role,
        keepers=ledger.keepers.body.keepers if ledger.keepers else (),
        workers=ledger.units_by_worker(),
        conflicts=len(ledger.conflicts),
        runtime=body.runtime,
        final=ledger.layout.levels[-1].kind,
        final_first=ledger.layout.number(ledger.layout.levels[-1].first_batch, 0),
        map_units=body.map_units,
        lead=ledger.keepers.body.lead if ledger.keepers else b"",
        rate=units_per_s,
        left_s=picture.left_s(ledger, units_per_s) if units_per_s else -1.0,
    )


class Follower:
    """One reader of one job, whoever leads it."""

    def __init__(self, kept: KeptJob, leading: Leading, reading: Reading, clock: Clock, *, values: bool = True) -> None:
        """``clock``: monotonic seconds. ``values`` False: results are not told."""
        self._kept = kept
        self._leading = leading
        self._reading = reading
        self._clock = clock
        self._values = values
        self._look = Following()
        self._told = 0
        """Decisions whose results were told."""
        self._news = asyncio.Event()
        self._failures = 0
        self._quiet = 0
        levels = kept.ledger.layout.levels
        self._last_batch = levels[-1].first_batch

    async def events(self, *, wait: bool) -> AsyncIterator[FollowEvent]:
        """Until the job has ended, or once if ``wait`` is False."""
        kept = self._kept
        kept.watchers[self] = self._news.set if self._values else self._note_end
        try:
            while True:
                self._news.clear()
                ended = kept.ended
                async for event in self._drain():
                    yield event
                if ended or not wait:
                    yield self._event((), end=True)
                    return
                yield self._event(())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(NEWS_S):
                        await self._news.wait()
                if not kept.led:
                    await self._reading.catch_up(kept, self._look)
        finally:
            kept.watchers.pop(self, None)

    def _note_end(self) -> None:
        """Without values nobody waits for each decision."""
        if self._kept.ended:
            self._news.set()

    async def _drain(self) -> AsyncIterator[FollowEvent]:
        """What is queued, once it is on disk, in events of a bounded size. What is decided meanwhile waits for the next time."""
        decisions = self._kept.ledger.decision_list
        if not self._values or self._told == len(decisions):
            return
        due, self._told = decisions[self._told :], len(decisions)
        file = self._kept.file
        with contextlib.suppress(P2PGridError):
            await file.wait(file.end)
        found: list[ResultSpan] = []
        size_bytes = 0
        for entry in [entry for decision in due for entry in decision.body.entries]:
            if not self._wanted(entry):
                continue
            for span in spans(self._kept.ledger, entry.batch, entry.start, entry.units):
                if span.receipt is None or not self._on_disk(span.receipt.body.payload):
                    continue
                columns = self._columns(span, await self._leading.deriving.payload(self._kept, span.receipt))
                found.append(columns)
                size_bytes += sum([len(memoryview(value)) for value in columns.values])
                if size_bytes >= EVENT_BYTES:
                    yield self._event(tuple(found))
                    found, size_bytes = [], 0
        if found:
            yield self._event(tuple(found))

    def _on_disk(self, payload: bytes) -> bool:
        """Where the disk failed, memory is ahead of it: what is only there is not shown."""
        file = self._kept.file
        return file.failed is None or self._kept.payload_at.get(payload, file.durable) < file.durable

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
        ledger = self._kept.ledger
        outcomes = body.outcomes[span.position : stop]
        if ledger.failed:
            # An answer may stand there for a unit whose workers never agreed.
            outcomes = bytes(ledger.outcome(span.batch, span.start + index, said) for index, said in enumerate(outcomes))
        first = ledger.layout.number(span.batch, span.start)
        fuel = body.fuel[span.position * FUEL_BYTES : stop * FUEL_BYTES]
        return ResultSpan(first, outcomes, list[msgspec.Raw](values), tuple(blobs), fuel)

    def _event(self, results: tuple[ResultSpan, ...], *, end: bool = False) -> FollowEvent:
        kept = self._kept
        led = self._leading.jobs.get(kept.id)
        running = len(led.lead.book.leases) if led is not None and kept.led else 0
        if led is not None and kept.led:
            idle = led.lead.book.pending and not running
            self._quiet = self._quiet + 1 if idle and not results else 0
            waiting = waiting_note(led) if self._quiet >= QUIET_LOOKS else led.preparations.note(self._clock())
            note = kept.stopped or waiting or led.keepers_note
        else:
            note = kept.stopped or self._reading.note(kept)
        return FollowEvent(job_line(kept, led, self._clock()), results, running, end, note)


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
