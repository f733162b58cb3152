"""The owner's terms at work: the machine is looked at, and work stops and goes on (docs/reference/settings.md#pausing).

1. What to do is decided by :mod:`p2pgrid.core.pausing`. Here it is done, one step after the other.
2. The machine is looked at twice a second, and only while a term asks for it: where the only term is the battery and there is
   none, never again.
3. A node that is paused stays a member: it stores, keeps and leads, and what it had computed is delivered.
4. The owner's pause is written to the home before it is answered, and holds after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from p2pgrid.core import pausing as core
from p2pgrid.core.admission import Policy
from p2pgrid.errors import MalformedError, P2PGridError
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.tasks import Tasks
from p2pgrid.services.working import Working
from p2pgrid.store.home import Home
from p2pgrid.wire.owner import Nothing, OwnPause, PauseRequest, RuntimeLine, WhyMe

PAUSE_FILE = "pause.json"
LOOK_S = 0.5
PAUSE_MAX_S = 400 * 86_400.0

Presence = Callable[[core.Asked], core.Presence]
Runtimes = Callable[[], Sequence[RuntimeLine]]
"""What is offered, and why the rest is not."""


class _Kept(msgspec.Struct, frozen=True):
    """The owner's pause, as it is written."""

    since_ms: int
    until_ms: int


class Pausing:
    """Decides with the core, and lets :class:`Working` do it."""

    def __init__(
        self, context: Context, working: Working, home: Home, presence: Presence, runtimes: Runtimes | None = None, *, keeps: bool = True
    ) -> None:
        """``presence`` blocks, and goes through the offload. ``keeps``: write the owner's pause to the home."""
        self._context = context
        self._working = working
        self._home, self._keeps = home, keeps
        self._presence = presence
        self._runtimes = runtimes or self._of_policy
        self._core = core.Pausing(context.policy)
        self._looks = False
        """Whether the machine is looked at again and again."""
        self._looking: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._tasks = Tasks("pausing")
        methods = context.methods
        methods.on("own.pause", PauseRequest, self._on_pause, owner_only=True)
        methods.on("own.resume", Nothing, self._on_resume, owner_only=True)
        methods.on("own.finish", Nothing, self._on_finish, owner_only=True)
        methods.on("own.me", Nothing, self._on_me, owner_only=True)

    async def start(self) -> None:
        """Take up the owner's pause of an earlier life, and look at the machine for the first time: before any work comes."""
        kept = await self._load() if self._keeps else None
        if kept is not None:
            self._core.restore(kept.since_ms, kept.until_ms)
        asked = self._core.asked
        reading = core.Presence()
        if any(asked):
            reading = await self._context.offload.run(self._presence, asked)
            self._looks = asked.idle or asked.load or asked.hours or reading.on_battery is not None
        await self._do(reading)

    async def close(self) -> None:
        await self._tasks.close()

    @property
    def state(self) -> core.State:
        """Whether it works, and if not, why and since when."""
        return self._core.state

    # -- doing ---------------------------------------------------------------------------

    async def _do(self, event: core.Event) -> None:
        """One event, with all that follows. Returns when it is done. Raises what writing to the home raises."""
        async with self._turn:
            before = self._core.state
            context = self._context
            for effect in self._core.handle(event, context.clock(), context.wall_ms()):
                match effect:
                    case core.Pause(grace_s):
                        await self._working.pause(grace_s)
                    case core.Finish():
                        self._working.finish()
                    case core.Resume():
                        self._working.resume()
                    case core.Keep():
                        await self._keep(effect)
            self._tell(before)
        self._look_again()

    def _tell(self, before: core.State) -> None:
        state = self._core.state
        if state.reason is not None and state.reason is not before.reason:
            self._context.tell(state.reason, f"{state.name}: {state.reason.sentence}")
        elif state.reason is None and before.reason is not None:
            self._context.tell(before.reason, "over: this node works again")

    def _look_again(self) -> None:
        """There is a task that looks as long as time alone can change something, and no longer."""
        if (self._looks or self._core.waits) and (self._looking is None or self._looking.done()):
            self._looking = self._tasks.spawn(self._look(), "look")

    async def _look(self) -> None:
        while self._looks or self._core.waits:
            await asyncio.sleep(LOOK_S)
            try:
                if self._looks:
                    await self._do(await self._context.offload.run(self._presence, self._core.asked))
                if self._core.waits:
                    idle = self._working.worker.idle
                    await self._do(core.Idle() if idle and self.state.name == core.FINISHING else core.Tick())
            except P2PGridError as error:
                self._context.tell(error.reason, f"looking at the machine: {error}")

    # -- the owner's word ----------------------------------------------------------------

    async def _on_pause(self, session: Session, request: PauseRequest) -> OwnPause:
        if not 0 <= request.seconds <= PAUSE_MAX_S:
            raise MalformedError("a pause that cannot be", reason=Reason.MALFORMED)
        return await self._ordered(core.PauseNow(max(1, int(request.seconds * 1000)) if request.seconds else 0))

    async def _on_resume(self, session: Session, request: Nothing) -> OwnPause:
        return await self._ordered(core.ResumeNow())

    async def _on_finish(self, session: Session, request: Nothing) -> OwnPause:
        return await self._ordered(core.FinishNow())

    async def _ordered(self, event: core.Event) -> OwnPause:
        """What the owner said is done to its end, though whoever said it hangs up meanwhile."""
        doing = self._tasks.spawn(self._do(event), "order")
        if doing is not None:
            await asyncio.shield(doing)
        return self.told()

    async def _load(self) -> _Kept | None:
        """What cannot be read is a pause: its owner said so, and knows how to end it."""
        try:
            raw = await self._context.offload.run(self._home.read_private, PAUSE_FILE)
            return msgspec.json.decode(raw, type=_Kept) if raw and raw.strip() else None
        except (P2PGridError, msgspec.MsgspecError, ValueError):
            return _Kept(self._context.wall_ms(), 0)

    async def _keep(self, keep: core.Keep) -> None:
        if self._keeps:
            content = msgspec.json.encode(_Kept(keep.since_ms, keep.until_ms)) if keep.paused else b"\n"
            await self._context.offload.run(self._home.write_private, PAUSE_FILE, content)

    # -- saying why ----------------------------------------------------------------------

    def told(self) -> OwnPause:
        """The state, in words too."""
        state, reason = self._core.state, self._core.state.reason
        now_ms = self._context.wall_ms()
        if reason is None:
            return OwnPause(state.name, wall_ms=now_ms)
        ends = self._ends(reason, state.until_ms, now_ms)
        return OwnPause(state.name, reason, reason.sentence, state.since_ms, state.until_ms, ends, now_ms)

    def _ends(self, reason: Reason, until_ms: int, now_ms: int) -> str:
        policy = self._context.policy
        match reason:
            case Reason.PAUSED if until_ms:
                return f"by itself in {span_text((until_ms - now_ms) / 1000)}, or with p2pgrid resume"
            case Reason.OWNER_ACTIVE:
                return f"when nobody has touched the machine for {span_text(policy.idle_s)}"
            case Reason.ON_BATTERY:
                return "when the machine is plugged in"
            case Reason.OUTSIDE_HOURS:
                return f"in the hours {hours_text(policy.hours)}"
            case Reason.MACHINE_BUSY:
                return f"when other programs use less than {policy.busy_share * core.BUSY_AGAIN_SHARE:.0%} of the processors"
            case Reason.FINISHING:
                return "when what is leased has ended; then the node is paused until p2pgrid resume"
            case _:
                return "with p2pgrid resume"

    async def _on_me(self, session: Session, request: Nothing) -> WhyMe:
        context, worker = self._context, self._working.worker
        return WhyMe(
            pause=self.told(),
            running=worker.running,
            queued=worker.queued,
            cores=context.policy.cores,
            submitter=context.submitter.public,
            runtimes=self.runtimes(),
            terms=terms_told(context.policy),
        )

    def runtimes(self) -> tuple[RuntimeLine, ...]:
        """Every runtime: whether it is offered, and why not."""
        return tuple(self._runtimes())

    def _of_policy(self) -> list[RuntimeLine]:
        terms = self._context.terms
        return [RuntimeLine(runtime, runtime in terms.runtimes) for runtime in self._context.policy.runtimes]


def terms_told(policy: Policy) -> tuple[tuple[str, str], ...]:
    """The owner's terms that are not as they are by default, in words."""
    told: list[tuple[str, str]] = []
    if policy.idle_s:
        told.append(("only-idle", span_text(policy.idle_s)))
    if policy.on_battery:
        told.append(("on-battery", "yes"))
    if policy.hours:
        told.append(("hours", hours_text(policy.hours)))
    if policy.busy_share:
        told.append(("busy", f"{policy.busy_share:.0%}"))
    told += [
        (name, f"{rate / (1 << 20):.3g} MiB/s")
        for name, rate in (("upload", policy.upload_bytes_per_s), ("download", policy.download_bytes_per_s))
        if rate
    ]
    if policy.nice != Policy().nice:
        told.append(("nice", str(policy.nice)))
    if policy.submitters:
        told.append(("accept-from", f"{len(policy.submitters)} submitters"))
    if policy.environments != Policy().environments:
        told.append(("packages", ", ".join(policy.packages) if policy.environments == "listed" else policy.environments))
    if not policy.native:
        told.append(("native", "no"))
    return tuple(told)


def hours_text(hours: tuple[tuple[int, int], ...]) -> str:
    """As the option takes them."""
    return ", ".join(f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}" for start, end in hours)


def span_text(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
