"""Why a unit of a job stands as it does: who has it, what was answered, what was decided (docs/spec/faces.md#reasons).

1. Everything is read from the job's log; only who has the unit now is the lead's to know.
2. Of answers that differ, the beginning of the digest tells which are equal; values are not shown here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from p2pgrid.core.columns import FAILED, OPEN, digest_at, position_in
from p2pgrid.core.layout import Layout
from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import JobId, short
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import ANSWERS, DISAGREED, OK, Receipt
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.explaining.failures import SLICE, Attempt, failure_at
from p2pgrid.services.explaining.job import JobState
from p2pgrid.services.explaining.words import because, count_text, fact, named, plain, said, span_text
from p2pgrid.services.leading import Leading
from p2pgrid.services.peers import Peers
from p2pgrid.services.results import OUTCOME_REASONS, Failure, reason_of
from p2pgrid.wire.envelope import Signed
from p2pgrid.wire.faces import Because, Explanation

TRACEBACK_LINES = 18


class Word(NamedTuple):
    """What a worker said of the unit. ``attempt``: how often it was leased before."""

    receipt: Signed[Receipt]
    position: int
    attempt: int

    @property
    def outcome(self) -> int:
        return self.receipt.body.outcomes[self.position]

    @property
    def digest(self) -> bytes:
        return digest_at(self.receipt.body, self.position)


class UnitState:
    """Explains units."""

    def __init__(self, context: Context, peers: Peers, leading: Leading, jobs: JobState) -> None:
        self._context = context
        self._peers = peers
        self._leading = leading
        self._jobs = jobs

    async def explain(self, job: JobId, number: int) -> Explanation:
        """Raises RefusedError when nobody who can be reached knows the job, or it has no such unit."""
        kept = await self._jobs.view(job)
        if kept is None:
            raise RefusedError(f"nobody who can be reached knows job {short(job)}", reason=Reason.UNKNOWN_JOB, hint="check the id")
        layout = kept.ledger.layout
        if not 0 <= number < layout.units:
            raise RefusedError(
                f"job {short(job)} has no unit {number}", reason=Reason.UNKNOWN_JOB, hint=f"its units are 0 to {layout.units - 1}"
            )
        batch, unit = locate(layout, number)
        words = await _words(kept.ledger, batch, unit)
        if kept.ledger.state(batch, unit) == OPEN:
            state, text, reasons = self._open(kept, batch, unit, words)
        else:
            state, text, reasons = await self._decided(kept, batch, unit)
        if words:
            reasons.append(self._attempts(words))
        return Explanation("unit", job, state, text, tuple(reasons), number)

    # -- not decided yet ---------------------------------------------------------------------

    def _open(self, kept: KeptJob, batch: int, unit: int, words: list[Word]) -> tuple[str, str, list[Because]]:
        if kept.ended:
            step = f"p2pgrid why {short(kept.id)} says why"
            return "open", f"it was not decided when the job was {kept.state}", [because(Reason.JOB_OVER, next_step=step)]
        led = self._leading.jobs.get(kept.id)
        if led is None or not kept.led:
            keepers = kept.ledger.keepers
            lead = self._name(keepers.body.lead) if keepers else "another node"
            return "open", "it is not decided yet", [fact(f"{lead} leads the job: only that node knows who has the unit")]
        now, book = self._context.clock(), led.lead.book
        held = [
            (lease.worker, now - lease.since)
            for lease in book.leases.values()
            if any(run == batch and start <= unit < start + count for run, start, count in book.unanswered(lease))
        ]
        reasons = [fact(f"{self._name(node)} has had it for {span_text(age_s)}") for node, age_s in sorted(held, key=lambda one: -one[1])]
        answers = {word.digest for word in words if word.outcome in ANSWERS}
        quorum = kept.job.body.quorum
        if len(answers) > 1:
            reasons.append(because(Reason.ANSWERS_DIFFER, f"{len(answers)} different answers: more nodes are asked"))
        elif answers and quorum > 1:
            missing = kept.ledger.missing(batch, unit)
            reasons.append(fact(f"{count_text(missing, 'equal answer is', 'equal answers are')} missing of {quorum}"))
        level = kept.ledger.layout.level_of(batch)
        if level and kept.ledger.level_open(level - 1):
            left = kept.ledger.level_open(level - 1)
            return "not ready", f"it joins results of which {left} are not decided yet", reasons
        if len(answers) > 1:
            return "disputed", "the answers to it differ", reasons
        if held:
            return "leased", f"{count_text(len(held), 'node has', 'nodes have')} it", reasons
        step = f"p2pgrid why {short(kept.id)} says why nobody takes it"
        return "waiting", "it waits for a node to take it", [*reasons, Because("", "nobody has it now", step)]

    # -- decided -------------------------------------------------------------------------------

    async def _decided(self, kept: KeptJob, batch: int, unit: int) -> tuple[str, str, list[Because]]:
        ledger = kept.ledger
        found = ledger.find(batch, unit)
        assert found is not None
        decisions = _decisions(ledger, batch, unit, self._name)
        disputes = []
        if (batch, unit) in ledger.conflicts:
            disputes.append(because(Reason.CONFLICT))
        if (batch, unit) in ledger.doubted:
            disputes.append(because(Reason.ANSWERS_DIFFER, "a node answered otherwise; what was decided stands"))
        if ledger.state(batch, unit) != FAILED:
            text = f"done by {self._name(found.receipt.author)}, digest {short(found.digest)}"
            return "done", text, [*disputes, *decisions]
        failure = Failure()
        if found.outcome != DISAGREED:
            failure = await failure_at(kept, self._leading.deriving, Attempt(batch, unit, found.receipt, found.position, found.outcome))
        reason = reason_of(found.outcome, failure)
        text = said(f"{failure.type}: {failure.message}" if failure.type else failure.message) or reason.sentence
        trace = [fact(plain(line)) for line in failure.traceback.rstrip().splitlines() if line.strip()][-TRACEBACK_LINES:]
        under = [fact("traceback", trace)] if trace else []
        told = because(reason, f"{reason.sentence}: {text}" if text != reason.sentence else "", under)
        return "failed", text, [told, *disputes, *decisions]

    def _attempts(self, words: list[Word]) -> Because:
        """What each node said of it. Equal digests are equal answers."""
        lines = []
        for word in words:
            reason = OUTCOME_REASONS.get(word.outcome)
            what = "a value" if word.outcome == OK else reason.sentence if reason is not None else f"outcome {word.outcome}"
            answer = f", digest {short(word.digest)}" if word.outcome in ANSWERS else ""
            code = reason.value if reason is not None else ""
            lines.append(Because(code, f"{self._name(word.receipt.author)}, attempt {word.attempt + 1}: {what}{answer}"))
        return fact(f"{count_text(len(words), 'node has', 'nodes have')} spoken of it", lines)

    def _name(self, node: bytes) -> str:
        return named(self._peers, node, self._context.me)


def locate(layout: Layout, number: int) -> tuple[int, int]:
    """(batch, unit) of a unit by its number within the job."""
    map_units = layout.levels[0].units
    return layout.locate(0, number) if number < map_units else (layout.levels[0].batches + number - map_units, 0)


async def _words(ledger: Ledger, batch: int, unit: int) -> list[Word]:
    """Every receipt that speaks of a unit, in the order in which they came."""
    found: list[Word] = []
    for number, receipt in enumerate(list(ledger.receipt_list)):
        if number % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        for known, start, count, attempt in receipt.body.ranges:
            if known == batch and start <= unit < start + count:
                found.append(Word(receipt, position_in(receipt.body, batch, unit), attempt))
                break
    return found


def _decisions(ledger: Ledger, batch: int, unit: int, name: Callable[[bytes], str]) -> list[Because]:
    """Who decided it, and with whose answers."""
    lines = []
    for known in dict.fromkeys(ledger.column(batch).decisions):
        decision = ledger.decisions[known]
        for entry in decision.body.entries:
            if entry.batch == batch and entry.start <= unit < entry.start + entry.units:
                cited = len(entry.cited)
                against = f", {len(entry.dissent)} against" if entry.dissent else ""
                lines.append(
                    fact(f"decided by {name(decision.author)} in epoch {decision.body.epoch}, on {count_text(cited, 'answer')}{against}")
                )
    return lines
