"""What a worker runs next, and when it asks for more (docs/spec/worker.md).

1. A lead invites; the invitation is good for two seconds. Only then does the worker pull.
2. A pull asks for about a second of work: slots, at first; then as many units as the pace says.
3. The next pull goes out when half a second of work is left, if units are short; long ones are pulled
   only when a core is free, so that nobody waits behind them.
4. Cores go round the submitters in turn; within one, first come, first served.
5. A lead that has nothing now is not asked again until it invites. When a job is over its queue is dropped; what already
   runs ends.
6. A lead that is gone is not asked again until it invites, and its units run all the same: others keep the job, and
   whoever leads it next takes the leases over.
7. An invitation that overtakes the answer to a pull is not lost: it leads to one more pull.
8. A worker that leaves, or that its owner pauses, takes nothing more, and hands back what has not started.
9. A worker that finishes takes nothing more, and runs what it has.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from p2pgrid.model.work import UnitRange

INVITATION_S = 2.0
PULL_S = 1.0
PREFETCH_S = 0.5
UNITS_MAX = 4096
SOURCES_MAX = 256
"""Leads that may have invited at one time; more are not heard."""
RANGES_MAX = 256
MEAN_MIN_S = 1e-6
"""A clock too coarse to see a unit must not make it look unmeasured."""

SourceKey = tuple[bytes, bytes]
"""(job id, lead's key)."""


@dataclass(frozen=True, slots=True)
class Invited:
    """A lead has work. Admission was asked before."""

    source: SourceKey
    submitter: bytes


@dataclass(frozen=True, slots=True)
class Leased:
    """A pull was answered with a lease."""

    source: SourceKey
    grant: bytes
    ranges: tuple[UnitRange, ...]


@dataclass(frozen=True, slots=True)
class Dry:
    """A pull was answered with nothing, or failed. ``over``: the job has ended."""

    source: SourceKey
    over: bool = False


@dataclass(frozen=True, slots=True)
class UnitsDone:
    """Results came out of a task; ``cpu_s`` is what they took."""

    source: SourceKey
    units: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task is through: its core is free."""

    source: SourceKey


@dataclass(frozen=True, slots=True)
class SourceGone:
    """The job was cancelled, or nobody is left who would take its results."""

    source: SourceKey


@dataclass(frozen=True, slots=True)
class LeadGone:
    """A lead is gone, and others keep its job."""

    source: SourceKey


@dataclass(frozen=True, slots=True)
class Drain:
    """This node leaves."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner needs the machine. What runs is ended by others."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Take nothing new."""


@dataclass(frozen=True, slots=True)
class Resume:
    """The end of a pause, or of finishing."""


Event = Invited | Leased | Dry | UnitsDone | TaskEnded | SourceGone | LeadGone | Drain | Pause | Finish | Resume


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask the lead for ``want`` units, for ``slots`` cores."""

    source: SourceKey
    slots: int
    want: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run these units now, one after the other, on one core."""

    source: SourceKey
    grant: bytes
    range: UnitRange


@dataclass(frozen=True, slots=True)
class Return:
    """Hand back these units of a lease: they have not started, and will not."""

    source: SourceKey
    grant: bytes
    range: UnitRange


Effect = Pull | Run | Return


@dataclass(slots=True)
class _Source:
    submitter: bytes
    invited_until: float
    more: bool = True
    pulling: bool = False
    invited_meanwhile: bool = False
    """It invited while a pull was under way: the pull's answer may be older than that."""
    running: int = 0
    queue: deque[tuple[bytes, UnitRange]] = field(default_factory=deque)
    queued: int = 0
    mean_s: float = 0.0
    """Moving average of a unit's CPU time; 0 until the first result."""

    @property
    def idle(self) -> bool:
        return not (self.pulling or self.running or self.queue)


@dataclass(slots=True)
class Worker:
    """``handle`` events one at a time; ``now`` is monotonic seconds."""

    slots: int
    sources: dict[SourceKey, _Source] = field(default_factory=dict)
    turn: deque[bytes] = field(default_factory=deque)
    """Submitters, the next to be served first."""
    draining: bool = False
    paused: bool = False
    finishing: bool = False

    @property
    def closed(self) -> bool:
        """Whether it hands back all that has not started: it leaves, or is paused."""
        return self.draining or self.paused

    @property
    def idle(self) -> bool:
        """Whether nothing that was leased is left, and nothing more is on its way."""
        return not any(source.running or source.queue or source.pulling for source in self.sources.values())

    @property
    def running(self) -> int:
        return sum(source.running for source in self.sources.values())

    @property
    def queued(self) -> int:
        return sum(source.queued for source in self.sources.values())

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Drain():
                self.draining = True
            case Pause():
                self.paused, self.finishing = True, False
            case Finish():
                self.paused, self.finishing = False, True
            case Resume():
                self.paused = self.finishing = False
            case Invited():
                self._on_invited(event, now)
            case _ if event.source in self.sources:
                self._on_source(event, self.sources[event.source])
        returned = self._give_back() if self.closed else []
        self._forget(now)
        return returned + self._start() + self._ask(now)

    def _on_invited(self, event: Invited, now: float) -> None:
        source = self.sources.get(event.source)
        if self.closed or self.finishing:
            return
        if source is None:
            if len(self.sources) >= SOURCES_MAX:
                return
            source = self.sources[event.source] = _Source(event.submitter, now + INVITATION_S)
            if event.submitter not in self.turn:
                self.turn.append(event.submitter)
        source.invited_until, source.more = now + INVITATION_S, True
        source.invited_meanwhile = source.pulling

    def _on_source(self, event: Event, source: _Source) -> None:
        match event:
            case Leased(_, grant, ranges) if any(unit_range.units > 0 for unit_range in ranges):
                source.pulling = source.invited_meanwhile = False
                self._enqueue(source, grant, ranges)
            case Leased():
                self._on_dry(source, over=False)
            case Dry(_, over):
                self._on_dry(source, over)
            case UnitsDone(_, units, cpu_s):
                sample = max(MEAN_MIN_S, cpu_s / max(1, units))
                source.mean_s = sample if not source.mean_s else 0.7 * source.mean_s + 0.3 * sample
            case TaskEnded():
                source.running = max(0, source.running - 1)
            case SourceGone():
                source.queue.clear()
                source.queued = 0
                source.more = source.pulling = source.invited_meanwhile = False
            case LeadGone():
                source.more = source.pulling = source.invited_meanwhile = False
            case _:
                pass

    @staticmethod
    def _on_dry(source: _Source, over: bool) -> None:
        source.pulling = False
        source.more, source.invited_meanwhile = source.invited_meanwhile and not over, False
        if over:
            source.invited_until = 0.0

    def _enqueue(self, source: _Source, grant: bytes, ranges: tuple[UnitRange, ...]) -> None:
        """Queue a lease, cut so that every core gets its part of it."""
        ranges = tuple(unit_range for unit_range in ranges[:RANGES_MAX] if unit_range.units > 0)
        part = max(1, -(-sum(unit_range.units for unit_range in ranges) // max(1, self.slots)))
        for unit_range in ranges:
            for start in range(0, unit_range.units, part):
                units = min(part, unit_range.units - start)
                source.queue.append((grant, unit_range._replace(start=unit_range.start + start, units=units)))
                source.queued += units

    def _give_back(self) -> list[Effect]:
        """Empty the queues."""
        effects: list[Effect] = []
        for key, source in self.sources.items():
            effects += [Return(key, grant, unit_range) for grant, unit_range in source.queue]
            source.queue.clear()
            source.queued = 0
            source.more = source.invited_meanwhile = False
        return effects

    def _start(self) -> list[Effect]:
        effects: list[Effect] = []
        free = self.slots - self.running
        while free > 0:
            picked = self._next()
            if picked is None:
                break
            key, source = picked
            grant, unit_range = source.queue.popleft()
            source.queued -= unit_range.units
            source.running += 1
            free -= 1
            effects.append(Run(key, grant, unit_range))
        return effects

    def _next(self) -> tuple[SourceKey, _Source] | None:
        for _ in range(len(self.turn)):
            submitter = self.turn[0]
            self.turn.rotate(-1)
            for key, source in self.sources.items():
                if source.submitter == submitter and source.queue:
                    return key, source
        return None

    def _ask(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.finishing:
            return effects
        free = self.slots - self.running
        for key, source in self.sources.items():
            if source.pulling or not source.more or not (source.running or source.queue or now <= source.invited_until):
                continue
            short = 0.0 < source.mean_s < PULL_S
            prefetch = short and source.queued * source.mean_s < PREFETCH_S * self.slots
            first_turn = source.idle and len(self.sources) > 1
            if (free > 0 and not source.queue) or prefetch or first_turn:
                source.pulling = True
                effects.append(Pull(key, self.slots, self._want(source)))
        return effects

    def _want(self, source: _Source) -> int:
        if not source.mean_s:
            return self.slots
        return max(self.slots, min(UNITS_MAX, int(self.slots * PULL_S / source.mean_s)))

    def _forget(self, now: float) -> None:
        """Drop sources that have nothing here and are not inviting."""
        gone = [key for key, source in self.sources.items() if source.idle and (now > source.invited_until or not source.more)]
        for key in gone:
            submitter = self.sources.pop(key).submitter
            if all(source.submitter != submitter for source in self.sources.values()) and submitter in self.turn:
                self.turn.remove(submitter)

    def check(self) -> None:
        """Assert what holds between events."""
        assert 0 <= self.running
        for source in self.sources.values():
            assert source.queued == sum(unit_range.units for _, unit_range in source.queue)
            assert source.submitter in self.turn
