"""Why this node does nothing, or not more: what stands in its way comes first, then what is in order (docs/spec/faces.md#reasons).

Nobody is asked: what is told is what this node knows already, so that the answer comes at once, from a node without any peer too.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.services.context import Context
from p2pgrid.services.explaining.standing import Standing, size_text
from p2pgrid.services.explaining.words import because, code_of, count_text, fact, moment_text, names_text, said, span_text
from p2pgrid.services.happenings import Happenings
from p2pgrid.services.health import Health
from p2pgrid.services.pausing import Pausing, terms_told
from p2pgrid.services.working import Working
from p2pgrid.wire.faces import Because, Explanation
from p2pgrid.wire.owner import EventLine, RuntimeLine

DISK_LOW_BYTES = 32 * MIB
STORE_FULL_SHARE = 0.98
EVENTS_SHOWN = 5
RECENT_MS = 10 * 60_000
_RUNTIME_STEPS = {
    Reason.NO_CAGE: "p2pgrid doctor says what the kernel lacks; --runtimes wasm,python needs nothing of the kernel",
    Reason.CAGE_BROKEN: "p2pgrid doctor says which attacks got through; --runtimes wasm,python needs nothing of the kernel",
    Reason.NO_RUNNER: "see that the founder of the grid is there; p2pgrid doctor --runtime python looks at it",
}


class OwnState:
    """Explains the node itself."""

    def __init__(
        self, context: Context, standing: Standing, health: Health, pausing: Pausing, working: Working, happenings: Happenings
    ) -> None:
        self._context = context
        self._standing = standing
        self._health = health
        self._pausing = pausing
        self._working = working
        self._happenings = happenings

    async def explain(self) -> Explanation:
        """The node's state and all that it knows to be in its way."""
        free_bytes = await self._context.offload.run(self._health.disk_free_bytes)
        standing = self._standing
        lines: list[Because | None] = [
            self._pause(),
            self._lent(),
            self._disk(free_bytes),
            standing.membership(),
            standing.clock(),
            standing.others(),
            standing.reach(),
            self._storage(),
            self._terms(),
            self._events(),
        ]
        found = [line for line in lines if line is not None]
        problems = [line for line in found if is_problem(line)]
        rest = [line for line in found if not is_problem(line)]
        state = self._state(problems)
        return Explanation("me", self._context.me, state, self._sentence(problems), (*problems, *rest))

    def _state(self, problems: Iterable[Because]) -> str:
        pause = self._pausing.state
        if pause.reason is not None:
            return pause.name
        codes = {line.reason for line in problems}
        if Reason.NO_SLOT in codes or Reason.NO_RUNTIME in codes:
            return "lends no cores"
        if not self._standing.connected:
            return "alone"
        return "works, with trouble" if codes - {""} else "works"

    def _sentence(self, problems: Iterable[Because]) -> str:
        worker, policy = self._working.worker, self._context.policy
        busy = f"{worker.running} of {count_text(policy.cores, 'core')} busy, {count_text(worker.queued, 'unit')} waiting"
        codes = [line.reason for problem in problems for line in (problem, *problem.under) if line.reason]
        reasons = f"; {count_text(len(codes), 'reason')} why it does no more" if codes else ""
        return f"{busy}, connected to {count_text(self._standing.connected, 'other node')}{reasons}"

    # -- what it does for others -----------------------------------------------------------

    def _pause(self) -> Because:
        told, worker = self._pausing.told(), self._working.worker
        code = code_of(told.reason)
        if code is None:
            policy = self._context.policy
            waiting = f", {count_text(worker.queued, 'unit')} waiting" if worker.queued else ""
            return fact(f"not paused: {worker.running} of {count_text(policy.cores, 'core')} busy{waiting}")
        since = f"{told.sentence}, for {span_text((told.wall_ms - told.since_ms) / 1000)}" if told.since_ms else told.sentence
        return because(code, f"{told.state}: {since}", [fact(f"it ends {told.ends}")] if told.ends else [])

    def _lent(self) -> Because:
        """Cores, runtimes, memory."""
        policy = self._context.policy
        if not policy.cores:
            return because(Reason.NO_SLOT, "it lends no cores, so it runs nothing for others")
        lines = self._pausing.runtimes()
        offered = [f"{line.runtime} ({line.level})" if line.level else line.runtime for line in lines if line.offered]
        under = [self._runtime(line) for line in lines if not line.offered]
        share = policy.memory_bytes // policy.cores
        memory = f", {size_text(share)} of memory each" if share else ""
        cores = f"it lends {count_text(policy.cores, 'core')}{memory}"
        if offered:
            return fact(f"{cores}, for {names_text(offered)}", under)
        first = next((code_of(line.reason) for line in lines if line.reason and line.reason != Reason.NO_RUNNER), None)
        step = _RUNTIME_STEPS.get(first, first.next_step) if first is not None else "name some: p2pgrid join --runtimes all"
        why = f": {first.sentence}" if first is not None else ""
        return because(Reason.NO_RUNTIME, f"{cores}, and no runtime is offered to others{why}", under, next_step=step)

    def _runtime(self, line: RuntimeLine) -> Because:
        code = code_of(line.reason)
        if code is None:
            return fact(f"{line.runtime}: {said(line.sentence) or 'the owner does not offer it'}")
        text = f"{line.runtime} is not offered: {said(line.sentence)}"
        return because(code, text, next_step=_RUNTIME_STEPS.get(code, code.next_step))

    # -- storage ----------------------------------------------------------------------------

    def _disk(self, free_bytes: int | None) -> Because | None:
        if free_bytes is None:
            return None
        folder, now_ms = self._health.folder, self._context.wall_ms()
        text = f"{size_text(free_bytes)} free on the disk of {folder}"
        full = [event for event in self._happenings.own(100) if event.reason == Reason.DISK_FULL and now_ms - event.wall_ms < RECENT_MS]
        if free_bytes >= DISK_LOW_BYTES and not full:
            return fact(text)
        under = [self._event(event) for event in full[-2:]]
        lent = self._context.policy.storage_bytes
        step = f"free some space there{', or lend less with --storage' if lent else ''}; writing goes on by itself"
        return because(Reason.DISK_FULL, f"the disk is full or nearly so: {text}", under, next_step=step)

    def _storage(self) -> Because:
        usage = self._context.blobs.usage()
        used, lent = size_text(usage.used_bytes), size_text(usage.quota_bytes)
        text = f"{used} of {lent} lent storage in use, by {count_text(usage.blobs, 'blob')}"
        if usage.quota_bytes and usage.used_bytes + usage.reserved_bytes >= STORE_FULL_SHARE * usage.quota_bytes:
            return because(Reason.STORE_FULL, text)
        return fact(text) if usage.quota_bytes else fact("it lends no storage")

    # -- the owner and the past -----------------------------------------------------------------

    def _terms(self) -> Because | None:
        terms = terms_told(self._context.policy)
        return fact("terms of its owner that are not as by default", [fact(f"{name}: {value}") for name, value in terms]) if terms else None

    def _events(self) -> Because | None:
        events = self._happenings.recent(EVENTS_SHOWN)
        return fact("what happened here last", [self._event(event) for event in reversed(events)]) if events else None

    @staticmethod
    def _event(event: EventLine) -> Because:
        return Because("", f"{moment_text(event.wall_ms)} {event.reason}: {said(event.text)}")


def is_problem(line: Because) -> bool:
    """Whether there is a code in it, or right under it."""
    return bool(line.reason) or any(under.reason for under in line.under)
