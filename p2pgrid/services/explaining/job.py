"""Why a job stands as it does: who works on it and who does not, what failed, who leads and keeps it (docs/spec/faces.md#reasons).

1. A job that is led here is told in full. Of one that is led elsewhere, this node tells what its copy of the log says, who leads it
   and who could work on it; the rest only its lead knows.
2. A job of which only a line in the index is left is told as that.
3. Nothing here changes anything, and no question takes longer than some seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from p2pgrid.core.keeping import K
from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import JobId, short
from p2pgrid.model.reasons import Reason
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.explaining.failures import Group, failures_of
from p2pgrid.services.explaining.words import because, code_of, count_text, fact, moment_text, named, said, span_text
from p2pgrid.services.explaining.workers import AtWork, Bystander, Candidate, at_work, cannot, grouped, idle_here, working_line
from p2pgrid.services.happenings import Happenings
from p2pgrid.services.leading import Leading
from p2pgrid.services.ledjob import LedJob
from p2pgrid.services.peers import Peers
from p2pgrid.services.reading import Reading
from p2pgrid.store.index import JobRow
from p2pgrid.wire.faces import Because, Explanation

VIEW_S = 8.0
"""How long the log of a job is looked for at others."""
DIAL_S = 2.0
"""How long those who lead and keep a job get to answer."""
EVENTS_MAX = 20
TRACEBACK_LINES = 3
GROUPS_MAX = 20


class JobState:
    """Explains jobs."""

    def __init__(self, context: Context, peers: Peers, leading: Leading, reading: Reading, happenings: Happenings) -> None:
        self._context = context
        self._peers = peers
        self._leading = leading
        self._reading = reading
        self._happenings = happenings

    async def view(self, job: JobId) -> KeptJob | None:
        """A job's log, from here or from whoever has it; None if it cannot be had within some seconds."""
        with suppress(RefusedError, TimeoutError):
            async with asyncio.timeout(VIEW_S):
                return await self._reading.view(job)
        return None

    async def explain(self, job: JobId) -> Explanation:
        """Raises RefusedError (unknown-job) when nobody who can be reached knows it."""
        kept = await self.view(job)
        if kept is None:
            return await self._from_index(job)
        # A connection that nobody used may be closed: who is away is found out by dialling.
        await self._peers.reachable(_named_for(kept), DIAL_S)
        led = self._leading.jobs.get(job)
        if led is not None and kept.led and not kept.ended:
            return await self._led_here(kept, led)
        if kept.ended:
            return await self._over(kept)
        return await self._led_elsewhere(kept)

    # -- a job that is led here -------------------------------------------------------------

    async def _led_here(self, kept: KeptJob, led: LedJob) -> Explanation:
        working = at_work(led.lead, self._context.clock())
        idle = await self._idle(led, working)
        reasons = self._too_few(led, working, idle)
        if working:
            reasons.append(working_line(working.values(), self._name))
        reasons += grouped(idle, self._name)
        reasons += self._disputes(led)
        reasons += await self._failures(kept)
        reasons += self._rest(kept)
        if working:
            return self._told(kept, "running", f"{_progress(kept)}; {count_text(len(working), 'node works', 'nodes work')} on it", reasons)
        if led.lead.over:
            return self._told(kept, "ending", f"{_progress(kept)}; its keepers are told of its end", reasons)
        if not led.lead.book.pending:
            return self._told(kept, "running", f"{_progress(kept)}; results are being joined", reasons)
        return self._told(kept, "waiting", f"{_progress(kept)}, and no node works on it", reasons)

    async def _candidates(self, job: KeptJob) -> list[Candidate]:
        """This node first, then all others that are known."""
        own = job.job.author == self._context.submitter.public
        found = []
        for peer in await self._peers.list(refresh=False):
            member = self._peers.member(peer.key)
            mine = own and peer.key == self._context.me
            # The owner's own jobs do not depend on what cages have shown.
            runtimes = self._context.policy.runtimes if mine else peer.info.offer.runtimes
            roles = member.roles if member is not None else frozenset(peer.info.roles)
            found.append(Candidate(peer.key, peer.info, peer.status, roles, runtimes))
        return found

    async def _idle(self, led: LedJob, working: dict[bytes, AtWork]) -> list[Bystander]:
        may = self._leading.workers_now(led)
        now_ms = self._context.wall_ms()
        idle: list[Bystander] = []
        for candidate in await self._candidates(led.kept):
            if candidate.node in working:
                continue
            idle.append(cannot(led.job.body, candidate, now_ms) or idle_here(led.lead, candidate, may, led.declined))
        return idle

    @staticmethod
    def _too_few(led: LedJob, working: dict[bytes, AtWork], idle: Sequence[Bystander]) -> list[Because]:
        """The reason above all others: nobody may work on it, or fewer than must agree."""
        quorum = led.job.body.quorum
        able = len(working) + sum(bystander.reason in ABLE for bystander in idle)
        if not able:
            return [because(Reason.NO_WORKERS)]
        if quorum > able and led.lead.book.pending:
            return [because(Reason.QUORUM_SHORT, f"each unit needs equal answers of {quorum} nodes, and only {able} may run the job")]
        return []

    def _disputes(self, led: LedJob) -> list[Because]:
        contested = list(led.lead.disputes.contested)
        if not contested:
            return []
        layout = led.ledger.layout
        lines = [
            fact(f"unit {layout.number(batch, unit)}: {count_text(len(led.ledger.answers(batch, unit)), 'answer')}")
            for batch, unit in sorted(contested)[:21]
        ]
        return [because(Reason.ANSWERS_DIFFER, f"the answers to {count_text(len(contested), 'unit')} differ: more nodes are asked", lines)]

    # -- a job that others lead -----------------------------------------------------------------

    async def _led_elsewhere(self, kept: KeptJob) -> Explanation:
        keepers = kept.ledger.keepers
        lead = keepers.body.lead if keepers is not None else b""
        live = bool(lead) and self._peers.is_live(lead)
        if kept.ledger.final:
            return self._told(
                kept, "incomplete", f"{_progress(kept)}; {Reason.INCOMPLETE.sentence}", [because(Reason.INCOMPLETE), *self._rest(kept)]
            )
        if kept.job.body.expires_ms < self._context.wall_ms():
            return await self._over(kept)
        reasons = self._lead_lines(kept, lead, live)
        unable = [cannot(kept.job.body, candidate, self._context.wall_ms()) for candidate in await self._candidates(kept)]
        if all(unable):
            reasons.append(because(Reason.NO_WORKERS))
        reasons += grouped([bystander for bystander in unable if bystander is not None], self._name)
        reasons += await self._failures(kept)
        reasons += self._rest(kept)
        if live:
            state = "running" if not all(unable) else "waiting"
            return self._told(kept, state, f"{_progress(kept)}; {self._name(lead)} leads it", reasons)
        return self._told(kept, "waiting", f"{_progress(kept)}; the node that leads it is away", reasons)

    def _lead_lines(self, kept: KeptJob, lead: bytes, live: bool) -> list[Because]:
        if not lead:
            return [fact("who leads it is not known here")]
        if live:
            heard_s = self._context.clock() - kept.heard_s
            heard = f", heard of as its lead {span_text(heard_s)} ago" if kept.heard_s and kept.role == "kept" else ""
            return [fact(f"{self._name(lead)} leads it{heard}; what is leased only that node knows")]
        keepers = kept.ledger.keepers
        there = [node for node in (keepers.body.keepers if keepers else ()) if self._peers.is_live(node)]
        if there:
            able = f"{self._name(lead)} leads it and does not answer; {count_text(len(there), 'keeper is', 'keepers are')} there"
            return [because(Reason.LEAD_AWAY, able, [fact(f"{self._name(node)} may take over") for node in there])]
        return [because(Reason.NO_KEEPER_THERE, f"{self._name(lead)} leads it; neither it nor any keeper can be reached")]

    # -- a job that has ended ----------------------------------------------------------------------

    async def _over(self, kept: KeptJob) -> Explanation:
        state, body = kept.state, kept.job.body
        reasons: list[Because] = []
        text = f"{_progress(kept)}; results are readable until {moment_text(body.expires_ms)}"
        if state == "cancelled":
            reasons.append(because(Reason.CANCELLED))
        elif state == "stopped":
            text = f"{_progress(kept)}; {kept.stopped}"
            reasons.append(because(Reason.STOPPED, kept.stopped, next_step=_stop_step(kept.stopped)))
        elif state == "running" or body.expires_ms < self._context.wall_ms():
            state, text = "expired", f"{_progress(kept)}; its time was over at {moment_text(body.expires_ms)}"
            reasons.append(because(Reason.EXPIRED, "the job's time is over: its results may be gone", next_step="submit it again"))
        elif state == "done":
            reasons.append(because(Reason.JOB_OVER, "all units are done"))
        reasons += await self._failures(kept)
        reasons += self._rest(kept)
        return self._told(kept, state, text, reasons)

    async def _from_index(self, job: JobId) -> Explanation:
        rows = await self._context.offload.run(self._context.index.jobs)
        row: JobRow | None = next((row for row in rows if row.id == job), None)
        if row is None:
            raise RefusedError(f"nobody who can be reached knows job {short(job)}", reason=Reason.UNKNOWN_JOB, hint="check the id")
        text = f"{row.done + row.failed} of {row.units} units were decided when this node last wrote it down as {row.state}"
        reasons = [because(Reason.INDEX_ONLY), fact(f"this node had it as {row.role}; it ends {moment_text(row.expires_ms)}")]
        return Explanation("job", job, "unknown", text, (*reasons, *self._events(job)))

    # -- what all have in common --------------------------------------------------------------------

    def _rest(self, kept: KeptJob) -> list[Because]:
        return [*self._submitter(kept), *self._conflicts(kept), *self._copies(kept), *self._passed_on(kept), *self._events(kept.id)]

    async def _failures(self, kept: KeptJob) -> list[Because]:
        groups = await failures_of(kept, self._leading.deriving)
        return [self._failure(kept, group) for group in groups[:GROUPS_MAX]]

    def _failure(self, kept: KeptJob, group: Group) -> Because:
        first, layout = group.first, kept.ledger.layout
        number = layout.number(first.batch, first.unit)
        at = f" at {self._name(first.receipt.author)}" if first.receipt is not None else ""
        lines = [fact(f"first: unit {number}{at}")]
        lines += [fact(said(line)) for line in group.traceback.strip().splitlines()[-TRACEBACK_LINES:] if line.strip()]
        what = group.text or group.reason.sentence
        if group.final:
            return because(group.reason, f"{count_text(group.units, 'unit')} failed: {what}", lines)
        tried = because(Reason.RETRIED, f"{count_text(group.units, 'attempt')} failed and went to others: {what}", lines)
        return Because(tried.reason, tried.text, group.reason.next_step, (because(group.reason, next_step=""), *tried.under))

    def _conflicts(self, kept: KeptJob) -> list[Because]:
        count = len(kept.ledger.conflicts)
        if not count:
            return []
        return [because(Reason.CONFLICT, f"{count_text(count, 'unit')}: {Reason.CONFLICT.sentence}")]

    def _copies(self, kept: KeptJob) -> list[Because]:
        """Who keeps it, of how many that should."""
        keepers = kept.ledger.keepers
        if keepers is None:
            return []
        named_here = keepers.body.keepers
        lines = [fact(f"{self._name(node)}: {'there' if self._peers.is_live(node) else 'away'}") for node in named_here]
        live = sum(self._peers.is_live(node) for node in named_here)
        text = f"{live} of {K} keepers that are wanted besides its lead are there"
        return [because(Reason.FEW_COPIES, text, lines) if live < K else fact(text, lines)]

    def _submitter(self, kept: KeptJob) -> list[Because]:
        """Whether the node that submitted it is gone, while the job is not."""
        chain = kept.ledger.lineage.chain()
        newest = kept.ledger.keepers
        if not chain or newest is None:
            return []
        first, lead = chain[0].body.lead, newest.body.lead
        if first == lead or self._peers.is_live(first):
            return []
        until = moment_text(kept.job.body.expires_ms)
        goes_on = "its results stay" if kept.ended else f"the job goes on, led by {self._name(lead)}"
        text = f"the submitter's node {self._name(first)} is gone: {goes_on}; results are readable until {until}"
        return [because(Reason.SUBMITTER_AWAY, text, next_step=f"p2pgrid results {short(kept.id)} here shows what there is")]

    def _passed_on(self, kept: KeptJob) -> list[Because]:
        """From lead to lead."""
        leads = [(keepers.body.epoch, keepers.body.lead) for keepers in kept.ledger.lineage.chain()]
        passed = [leads[at] for at in range(len(leads)) if at == 0 or leads[at][1] != leads[at - 1][1]]
        if len(passed) < 2:
            return []
        lines = [fact(f"epoch {epoch}: led by {self._name(lead)}") for epoch, lead in passed]
        return [because(Reason.TOOK_OVER, f"the lead passed on {count_text(len(passed) - 1, 'time')}", lines)]

    def _events(self, job: bytes) -> list[Because]:
        """What happened to it at this node, the newest first."""
        events = self._happenings.about(job, EVENTS_MAX)
        now_ms = self._context.wall_ms()
        lines = [
            Because(event.reason if code_of(event.reason) else "", f"{span_text((now_ms - event.wall_ms) / 1000)} ago: {said(event.text)}")
            for event in reversed(events)
        ]
        return [fact("what happened here lately", lines)] if lines else []

    def _told(self, kept: KeptJob, state: str, text: str, reasons: Sequence[Because]) -> Explanation:
        return Explanation("job", kept.id, state, text, tuple(reasons))

    def _name(self, node: bytes) -> str:
        return named(self._peers, node, self._context.me)


ABLE = (None, Reason.KEEPS_IT, Reason.NOTHING_LEFT, Reason.OTHER_WORK, Reason.NOT_ASKING)
"""Why a node that may run the job has nothing of it at the moment."""


def _named_for(kept: KeptJob) -> list[bytes]:
    """Who leads, keeps or submitted a job."""
    chain = kept.ledger.lineage.chain()
    return [chain[0].body.lead, chain[-1].body.lead, *chain[-1].body.keepers] if chain else []


def _progress(kept: KeptJob) -> str:
    ledger = kept.ledger
    failed = f", {ledger.failed} failed" if ledger.failed else ""
    return f"{ledger.done} of {count_text(ledger.layout.units, 'unit')} done{failed}"


def _stop_step(why: str) -> str:
    if "its time is over" in why:
        return "submit it again"
    return Reason.STOPPED.next_step
