"""When a node works for others, and when its owner has the machine (docs/reference/settings.md#pausing).

1. The owner's word counts first. ``pause`` holds until ``resume``, or for a time. ``finish`` takes nothing new, ends what is
   leased, and then is a pause.
2. The owner's terms come next: somebody is at the machine, it runs on battery, it is not one of the hours, others
   need its processors. A term that cannot be told counts against working: in doubt the machine is the owner's.
3. No flapping: a reason that has passed must stay away for a while before the node works again, and only a load that
   lasts is one.
4. ``resume`` also sets aside the reasons that hold at that moment: each until it has passed once, at most for an hour.
5. Every pause has a reason, and says since when.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.core.admission import Policy
from p2pgrid.model.reasons import Reason

DAY_MIN = 24 * 60
GRACE_S = 0.5
"""What units that run get to end: the machine is to be given back within two seconds, and this is a part of it."""
BUSY_AFTER_S = 3.0
"""Others must need the processors for so long: a program that starts is no reason to stop."""
BUSY_AGAIN_SHARE = 0.8
"""While paused, others must use less than this part of the owner's bound."""
SET_ASIDE_S = 3600.0
BACK_AFTER_S = {Reason.ON_BATTERY: 10.0, Reason.MACHINE_BUSY: 30.0}
"""How long a reason must have passed. Who was at the machine has been away for ``idle_s`` anyway."""
ORDER = (Reason.OWNER_ACTIVE, Reason.ON_BATTERY, Reason.OUTSIDE_HOURS, Reason.MACHINE_BUSY)
"""Of several reasons the first is told."""

RUNNING, PAUSED, FINISHING = "running", "paused", "finishing"


class Asked(NamedTuple):
    """What is to be read of the machine."""

    idle: bool = True
    battery: bool = True
    load: bool = True
    hours: bool = True


class Usage(NamedTuple):
    """How much of the machine is in use, by whatever runs there."""

    cpu_share: float
    """Of all processors, 0 to 1; 0 where it cannot be told."""
    memory_bytes: int
    """0 where it cannot be told."""


@dataclass(frozen=True, slots=True)
class Presence:
    """A reading of the machine. None: it cannot be told, or was not asked for."""

    idle_s: float | None = None
    """Seconds since somebody touched it."""
    on_battery: bool | None = None
    """None also where there is no battery."""
    others_share: float | None = None
    """What other programs use of all processors, 0 to 1."""
    minute: int | None = None
    """Of the local day."""


@dataclass(frozen=True, slots=True)
class PauseNow:
    """The owner says pause; ``span_ms``: for so long from now on; 0: until ``resume``."""

    span_ms: int = 0


@dataclass(frozen=True, slots=True)
class ResumeNow:
    """The owner says work."""


@dataclass(frozen=True, slots=True)
class FinishNow:
    """The owner says end what is leased, then pause."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing that was leased is left."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Presence | PauseNow | ResumeNow | FinishNow | Idle | Tick


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop the units, hand back what is leased, take nothing."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Resume:
    """Take work again."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Take nothing new."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The owner's word, to be known after a restart: paused or not, and until when."""

    paused: bool
    since_ms: int
    until_ms: int


Effect = Pause | Resume | Finish | Keep


@dataclass(frozen=True, slots=True)
class State:
    """What the node does about its owner's terms. ``reason`` is None while it works."""

    name: str
    reason: Reason | None = None
    since_ms: int = 0
    until_ms: int = 0
    """When it ends by itself; 0: that is not known."""


@dataclass(slots=True)
class _Term:
    """One automatic reason."""

    holds: bool = False
    passed_at: float | None = None
    """Since when it does not hold any more, while it still counts."""
    begun_at: float | None = None
    """Since when it would hold, if it lasts."""
    aside_until: float | None = None
    """The owner said to go on in spite of it."""


@dataclass(slots=True)
class Pausing:
    """``handle`` events one at a time; ``now`` is monotonic seconds, ``now_ms`` Unix milliseconds."""

    policy: Policy
    state: State = State(RUNNING)
    _owner: State | None = None
    """The owner's pause."""
    _terms: dict[Reason, _Term] = field(default_factory=lambda: {reason: _Term() for reason in ORDER})

    @property
    def asked(self) -> Asked:
        """What the owner's terms depend on."""
        policy = self.policy
        return Asked(policy.idle_s > 0, not policy.on_battery, policy.busy_share > 0, bool(policy.hours))

    @property
    def waits(self) -> bool:
        """Whether time alone will change something."""
        return self.state.name == FINISHING or self.state.until_ms > 0

    def restore(self, since_ms: int, until_ms: int) -> None:
        """The owner paused the node in an earlier life. Call before the first event."""
        self._owner = State(PAUSED, Reason.PAUSED, since_ms, until_ms)

    def handle(self, event: Event, now: float, now_ms: int) -> list[Effect]:
        """What follows from an event. Every event also looks at the time."""
        keep: list[Effect] = []
        match event:
            case Presence():
                self._read(event, now)
            case PauseNow(span_ms):
                until_ms = now_ms + span_ms if span_ms else 0
                self._owner = State(PAUSED, Reason.PAUSED, now_ms, until_ms)
                keep = [Keep(True, now_ms, until_ms)]
            case FinishNow() if self.state.name == RUNNING:
                self._owner = State(FINISHING, Reason.FINISHING, now_ms)
                keep = [Keep(True, now_ms, 0)]
            case FinishNow() if self.state.name == PAUSED:
                # What was leased has gone back already, and there is nothing to finish.
                self._owner = State(PAUSED, Reason.PAUSED, now_ms)
                keep = [Keep(True, now_ms, 0)]
            case ResumeNow():
                keep = [Keep(False, 0, 0)] if self._owner is not None else []
                self._owner = None
                self._set_aside(now)
            case Idle() if self.state.name == FINISHING:
                self._owner = State(PAUSED, Reason.PAUSED, now_ms)
            case _:
                pass
        if self._owner is not None and 0 < self._owner.until_ms <= now_ms:
            self._owner = None
            keep = [Keep(False, 0, 0)]
        return self._settle(now, now_ms) + keep

    # -- the owner's terms -------------------------------------------------------------

    def _read(self, presence: Presence, now: float) -> None:
        policy = self.policy
        away = presence.idle_s is not None and presence.idle_s >= policy.idle_s
        self._note(Reason.OWNER_ACTIVE, policy.idle_s > 0 and not away, now)
        self._note(Reason.ON_BATTERY, not policy.on_battery and presence.on_battery is True, now)
        self._note(Reason.OUTSIDE_HOURS, bool(policy.hours) and not within_hours(policy.hours, presence.minute), now)
        self._note(Reason.MACHINE_BUSY, self._busy(presence.others_share), now, after_s=BUSY_AFTER_S)

    def _busy(self, share: float | None) -> bool:
        """Only this term needs two readings, so that a share which is not known yet says nothing."""
        bound = self.policy.busy_share
        if not bound or share is None:
            return False
        return share > (bound * BUSY_AGAIN_SHARE if self._terms[Reason.MACHINE_BUSY].holds else bound)

    def _note(self, reason: Reason, holds: bool, now: float, *, after_s: float = 0.0) -> None:
        term = self._terms[reason]
        if holds:
            term.passed_at = None
            term.begun_at = now if term.begun_at is None else term.begun_at
            term.holds = term.holds or now - term.begun_at >= after_s
            return
        if term.aside_until is not None:
            term.holds, term.passed_at = False, None
        term.begun_at = term.aside_until = None
        if term.holds:
            term.passed_at = now if term.passed_at is None else term.passed_at
            if now - term.passed_at >= BACK_AFTER_S.get(reason, 0.0):
                term.holds, term.passed_at = False, None

    def _set_aside(self, now: float) -> None:
        for term in self._terms.values():
            if term.holds and term.passed_at is not None:
                term.holds, term.passed_at = False, None
            elif term.holds or term.begun_at is not None:
                term.aside_until = now + SET_ASIDE_S

    def _first(self, now: float) -> Reason | None:
        for reason in ORDER:
            term = self._terms[reason]
            if term.holds and (term.aside_until is None or now >= term.aside_until):
                return reason
        return None

    # -- what follows -------------------------------------------------------------------

    def _settle(self, now: float, now_ms: int) -> list[Effect]:
        """Go to the state that is due, and say what is to be done for that."""
        before, owner, term = self.state, self._owner, self._first(now)
        if owner is not None and owner.name == FINISHING and term is not None:
            # Nothing is left to finish once it is stopped: what remains of the owner's word is the pause.
            owner = self._owner = State(PAUSED, Reason.PAUSED, owner.since_ms)
        if owner is not None:
            self.state = owner
        elif term is None:
            self.state = State(RUNNING)
        elif before.reason is not term:
            self.state = State(PAUSED, term, now_ms)
        if self.state.name == before.name:
            return []
        due: dict[str, Effect] = {RUNNING: Resume(), PAUSED: Pause(GRACE_S), FINISHING: Finish()}
        return [due[self.state.name]]


def within_hours(hours: tuple[tuple[int, int], ...], minute: int | None) -> bool:
    """Whether a minute of the day lies in one of the spans, each from its start up to before its end, perhaps past midnight."""
    if minute is None:
        return False
    return any(start <= minute < end if start < end else minute >= start or minute < end for start, end in hours)


def minutes_until(hours: tuple[tuple[int, int], ...], minute: int) -> int:
    """Minutes until the next span begins; 0 within one."""
    if within_hours(hours, minute):
        return 0
    return min((start - minute) % DAY_MIN for start, _ in hours)
