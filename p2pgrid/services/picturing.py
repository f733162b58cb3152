"""Pictures of jobs for their owner: units, workers, stragglers, failures (docs/spec/faces.md#a-job).

1. What is leased, and how fast, only the lead knows. The owner's calls cross no network: of a job led elsewhere this node shows
   what its own copy of the log says, read on from where it was read to last, and how fast that grows.
2. Failures are found in the receipts, each of which is looked at once. What one says is read from the log once, too.
3. Nothing is kept for a job that is gone, and little for one that is there: a few numbers and the newest failures.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

from p2pgrid.core import picture
from p2pgrid.core.columns import FAILED, positions
from p2pgrid.core.lead import Lead
from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DISAGREED, OK, Receipt
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.keeping import Keeping
from p2pgrid.services.leading import Leading
from p2pgrid.services.peers import Peers
from p2pgrid.services.reading import Following, Reading
from p2pgrid.services.results import OUTCOME_REASONS, failure_of
from p2pgrid.wire.envelope import Signed
from p2pgrid.wire.faces import FailureLine, JobPicture, PictureRequest, Straggler, WorkerShare

FAILURES_MAX = 16
WORKERS_MAX = 512
"""Workers in one picture: those that did most."""
TEXT_CHARS_MAX = 200
LOOKED_AT_MAX = 50_000
"""Receipts and decisions looked at for one picture; older ones than these are not searched for failures."""
CATCH_UP_S = 2.0
"""How long a picture waits for news of a job that is led elsewhere."""
SAMPLE_S = 1.0
SAMPLES_MAX = 16
"""A rate that only the log shows is taken over so many seconds."""


class _Attempt(NamedTuple):
    """A unit that came to nothing at a node. ``receipt`` None: no answer of several stands."""

    batch: int
    unit: int
    receipt: Signed[Receipt] | None
    position: int
    outcome: int


class _Seen:
    """What is remembered of a job between two pictures."""

    def __init__(self) -> None:
        self.receipts = 0
        self.decisions = 0
        self.attempts: OrderedDict[tuple[int, int], _Attempt] = OrderedDict()
        """By unit, the newest last."""
        self.texts: dict[tuple[bytes, int], str] = {}
        """What was said, by receipt and position; of the attempts above only."""
        self.look = Following()
        self.samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)
        """(monotonic seconds, decided units)."""


class Picturing:
    """Serves ``own.picture``."""

    def __init__(self, context: Context, peers: Peers, keeping: Keeping, leading: Leading, reading: Reading) -> None:
        self._context = context
        self._peers = peers
        self._keeping = keeping
        self._leading = leading
        self._reading = reading
        self._seen: WeakKeyDictionary[KeptJob, _Seen] = WeakKeyDictionary()
        context.methods.on("own.picture", PictureRequest, self._on_picture, owner_only=True)

    async def _on_picture(self, session: Session, request: PictureRequest) -> JobPicture:
        job = JobId(StatementId(request.job))
        kept = self._keeping.jobs.get(job) or await self._reading.view(job)
        seen = self._seen.setdefault(kept, _Seen())
        if not kept.led and not kept.watchers:
            with suppress(P2PGridError, TimeoutError):
                async with asyncio.timeout(CATCH_UP_S):
                    await self._reading.catch_up(kept, seen.look)
        failures = await self._failures(kept, seen)
        return self._picture(kept, seen, request.cells, failures)

    def _picture(self, kept: KeptJob, seen: _Seen, cells: int, failures: tuple[FailureLine, ...]) -> JobPicture:
        ledger, now = kept.ledger, self._context.clock()
        led = self._leading.jobs.get(kept.id)
        # What is still out when a job has ended are copies that nobody waits for.
        lead = led.lead if led is not None and kept.led and not kept.ended else None
        grown = self._grown(ledger, seen, now)
        if lead is not None:
            text, per_cell = picture.letters(
                ledger, cells, picture.leased_runs(lead.book), picture.disputed_units(ledger, lead.disputes.contested)
            )
            units_per_s = picture.rate(lead, now)
        else:
            text, per_cell = picture.letters(ledger, cells, disputed=picture.disputed_units(ledger))
            units_per_s = grown
        return JobPicture(
            cells=text,
            units_per_cell=per_cell,
            workers=self._workers(ledger, lead, led.declined if led is not None and lead is not None else {}, now),
            stragglers=tuple(Straggler(*late) for late in picture.stragglers(lead, now)) if lead is not None else (),
            failures=failures,
            rate=0.0 if kept.ended else units_per_s,
            left_s=0.0 if kept.ended else picture.left_s(ledger, units_per_s),
            led_here=kept.led,
            wall_ms=self._context.wall_ms(),
            levels=picture.levels(ledger),
        )

    @staticmethod
    def _grown(ledger: Ledger, seen: _Seen, now: float) -> float:
        """Units a second that the ledger grew by, since the oldest picture of the last seconds."""
        decided = ledger.done + ledger.failed
        if not seen.samples or now - seen.samples[-1][0] >= SAMPLE_S:
            seen.samples.append((now, decided))
        since, before = seen.samples[0]
        return max(0, decided - before) / (now - since) if now > since else 0.0

    def _workers(self, ledger: Ledger, lead: Lead | None, declined: Mapping[bytes, str], now: float) -> tuple[WorkerShare, ...]:
        if lead is not None:
            found = picture.shares(lead, now)
            known = {share.node for share in found}
            found = [*found, *(picture.Share(node, 0, 0, 0.0, 0.0) for node in declined if node not in known)][:WORKERS_MAX]
        else:
            done = sorted(ledger.units_by_worker().items(), key=lambda one: (-one[1], one[0]))[:WORKERS_MAX]
            found = [picture.Share(node, units, 0, 0.0, 0.0) for node, units in done]
        return tuple(
            WorkerShare(
                node=share.node,
                name=self._peers.info(share.node).name,
                done=share.done,
                running=share.running,
                rate=share.rate,
                oldest_s=share.oldest_s,
                live=self._peers.is_live(share.node),
                note=declined.get(share.node, "") if self._peers.is_live(share.node) else str(Reason.DEAD),
            )
            for share in found
        )

    # -- failures --------------------------------------------------------------------

    async def _failures(self, kept: KeptJob, seen: _Seen) -> tuple[FailureLine, ...]:
        """The newest attempts that came to nothing, the newest last."""
        self._look_for_failures(kept.ledger, seen)
        lines = [await self._line(kept, seen, attempt) for attempt in list(seen.attempts.values())]
        live = {(attempt.receipt.id, attempt.position) for attempt in seen.attempts.values() if attempt.receipt is not None}
        for gone in [key for key in seen.texts if key not in live]:
            del seen.texts[gone]
        return tuple(lines)

    def _look_for_failures(self, ledger: Ledger, seen: _Seen) -> None:
        """Look at what is new in the ledger."""
        receipts, decisions = ledger.receipt_list, ledger.decision_list
        for receipt in receipts[max(seen.receipts, len(receipts) - LOOKED_AT_MAX) :]:
            outcomes = receipt.body.outcomes
            if outcomes.count(OK) != len(outcomes):
                self._note_attempts(seen, receipt)
        for decision in decisions[max(seen.decisions, len(decisions) - LOOKED_AT_MAX) :]:
            for entry in decision.body.entries:
                if entry.outcome == DISAGREED:
                    for unit in range(entry.start, min(entry.start + entry.units, entry.start + FAILURES_MAX)):
                        self._note(seen, _Attempt(entry.batch, unit, None, 0, DISAGREED))
        seen.receipts, seen.decisions = len(receipts), len(decisions)

    def _note_attempts(self, seen: _Seen, receipt: Signed[Receipt]) -> None:
        outcomes = receipt.body.outcomes
        bad = 0
        for batch, unit, position in positions(receipt.body):
            if outcomes[position] != OK:
                self._note(seen, _Attempt(batch, unit, receipt, position, outcomes[position]))
                bad += 1
                if bad >= FAILURES_MAX:
                    return

    @staticmethod
    def _note(seen: _Seen, attempt: _Attempt) -> None:
        seen.attempts.pop((attempt.batch, attempt.unit), None)
        seen.attempts[attempt.batch, attempt.unit] = attempt
        while len(seen.attempts) > FAILURES_MAX:
            seen.attempts.popitem(last=False)

    async def _line(self, kept: KeptJob, seen: _Seen, attempt: _Attempt) -> FailureLine:
        ledger, reason = kept.ledger, OUTCOME_REASONS.get(attempt.outcome, Reason.DIED)
        return FailureLine(
            unit=ledger.layout.number(attempt.batch, attempt.unit),
            node=attempt.receipt.author if attempt.receipt is not None else b"",
            reason=str(reason),
            text=await self._text(kept, seen, attempt) or reason.sentence,
            final=ledger.state(attempt.batch, attempt.unit) == FAILED,
        )

    async def _text(self, kept: KeptJob, seen: _Seen, attempt: _Attempt) -> str:
        """What the unit said, in a line; empty when it said nothing, or that cannot be read."""
        if attempt.receipt is None:
            return ""
        key = (attempt.receipt.id, attempt.position)
        known = seen.texts.get(key)
        if known is None:
            known = ""
            with suppress(P2PGridError):
                payload = await self._leading.deriving.payload(kept, attempt.receipt)
                failure = failure_of(attempt.outcome, bytes(payload.values[attempt.position]))
                known = one_line(f"{failure.type}: {failure.message}" if failure.type else failure.message)
            seen.texts[key] = known
        return known


def one_line(text: str) -> str:
    """The first line of what somebody else said, within a bound and without control characters."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    plain = "".join(char if char.isprintable() else "?" for char in first[: TEXT_CHARS_MAX + 1])
    return plain if len(plain) <= TEXT_CHARS_MAX else plain[: TEXT_CHARS_MAX - 1] + "…"
