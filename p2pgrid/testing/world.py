"""Virtual time for whole programs: one clock, one seed, and an event loop for each simulated machine.

1. Time stands still while callbacks run, and jumps to the next timer when none is left.
2. Callbacks that are ready at one instant run in an order drawn from the seed, whatever machine they belong to. A
   program that only works in the order in which it was written is found out.
3. Every machine has a loop of its own, so that it can be killed or frozen as a whole, and so that a future that two
   machines share by mistake raises at once. What passes between machines goes through :meth:`World.at` or
   :meth:`MachineLoop.call_soon`.
4. Nothing here looks at the real clock, and nothing depends on the hashes of strings: a seed gives the same trace
   in every process.

    world = World(seed=7)
    ana = world.loop("ana")
    task = ana.create_task(program())
    world.run_until(task.done, limit_s=60.0)
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import logging
import random
import struct
import sys
import warnings
from asyncio import events as loops
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from blake3 import blake3

_log = logging.getLogger("asyncio")
_PRUNE_MIN = 256
_NOTES_BYTES = 1 << 16
_INSTANT_MAX = 2_000_000
"""Callbacks in one instant, after which time must have got stuck."""
_MOMENT = struct.Struct("<d")
_NUMBER = struct.Struct("<I")
_NO_MACHINE = _NUMBER.pack(0xFFFFFFFF)
EPOCH_MS = 1_700_000_000_000
"""Unix milliseconds at the beginning of virtual time."""
R = TypeVar("R")


class Stuck(AssertionError):
    """Callbacks ask for one another without end and time does not pass."""


class Call:
    """Something to be done at a moment, by the world and not by a machine."""

    __slots__ = ("_args", "_callback", "_cancelled")
    _loop = None

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback = call
        self._args = args
        self._cancelled = False

    def cancel(self) -> None:
        """Do not do it."""
        self._cancelled = True


def _nothing() -> None:
    """What a cancelled call holds on to in place of its arguments."""


class Soon(asyncio.Handle):
    """What asyncio asked a machine's loop to call in this instant. There are so many that it sets only what is used."""

    __slots__ = ()
    _repr = _source_traceback = None

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], loop: MachineLoop, context: contextvars.Context) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._callback, self._args = _nothing, ()


class Later(asyncio.TimerHandle):
    """What asyncio asked a machine's loop to call at a moment."""

    __slots__ = ()
    _repr = _source_traceback = None

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: MachineLoop, context: contextvars.Context
    ) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._callback, self._args = _nothing, ()
            self._loop.world.dropped()


class World:
    """The clock, the chance and the order of everything in one simulation."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        """Virtual seconds since the beginning."""
        self.events = 0
        """Callbacks that have run."""
        self.loops: dict[str, MachineLoop] = {}
        self.running: MachineLoop | None = None
        """The machine whose callback runs at this moment."""
        self._order = self.fork("order")
        self.ready: list[Call | Soon | Later] = []
        """What runs in this instant. For loops."""
        self._timers: list[tuple[float, int, Call | Later]] = []
        self._asked = 0
        self._cancelled = 0
        self._hash = blake3()
        self._notes = bytearray()

    def fork(self, name: str) -> random.Random:
        """A source of chance for one part: what other parts draw does not change it."""
        return random.Random(f"{self.seed}/{name}")

    def loop(self, name: str) -> MachineLoop:
        """A fresh loop for a machine; the one it had before must have ended."""
        before = self.loops.get(name)
        assert before is None or not before.alive, f"machine {name} runs already"
        # What a machine's loop does not define raises NotImplementedError in its base: nothing real can be reached.
        made = MachineLoop(self, name, len(self.loops) if before is None else before.number)  # type: ignore[abstract]
        self.loops[name] = made
        return made

    # -- what happens when -----------------------------------------------------------------

    def at(self, when_s: float, call: Callable[..., object], *args: Any) -> Call:
        """Make a call at a moment of virtual time; it belongs to no machine."""
        made = Call(call, args)
        self.push(max(when_s, self.now), made)
        return made

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> Call:
        """Make a call after some virtual seconds; it belongs to no machine."""
        return self.at(self.now + delay_s, call, *args)

    def push(self, when_s: float, item: Call | Later) -> None:
        """Put something into the queue of timers. For loops."""
        self._asked += 1
        heapq.heappush(self._timers, (when_s, self._asked, item))

    def dropped(self) -> None:
        """A timer was cancelled. Most time-outs are: they are swept out when they are the majority."""
        self._cancelled += 1
        if self._cancelled > _PRUNE_MIN and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2]._cancelled]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def timers_of(self, loop: MachineLoop) -> int:
        """How many timers the program of a machine has that have not run out. What is in the air on its way there is none."""
        return sum(entry[2]._loop is loop and not entry[2]._cancelled and _is_own(entry[2]) for entry in self._timers)

    # -- running --------------------------------------------------------------------------------

    def run_until(self, over: Callable[[], object], limit_s: float) -> bool:
        """Let time pass until ``over()`` holds; False if it is ``limit_s`` before, or nothing is left to happen.

        ``limit_s`` is a moment of virtual time, not a duration.
        """
        with self._in_charge():
            instant, count = self.now, 0
            while not over():
                if not self.ready and not self._advance(limit_s):
                    return bool(over())
                count = count + len(self.ready) if instant == self.now else 0
                instant = self.now
                if count > _INSTANT_MAX:
                    raise Stuck(f"time stands still at {self.now:.6f} s")
                self._turn()
        return True

    def run_for(self, seconds: float) -> None:
        """Let some virtual time pass."""
        self.run_until(_never, self.now + seconds)

    def _advance(self, limit_s: float) -> bool:
        """Jump to the next timer, and take all of that instant."""
        timers, pop = self._timers, heapq.heappop
        while timers and timers[0][2]._cancelled:
            pop(timers)
            self._cancelled = max(0, self._cancelled - 1)
        if not timers or timers[0][0] > limit_s:
            self.now = max(self.now, limit_s)
            return False
        # A moment that has passed already, as of a timer of a machine that was frozen, is now.
        now = self.now = max(self.now, timers[0][0])
        self._notes += _MOMENT.pack(now)
        ready = self.ready
        while timers and timers[0][0] <= now:
            item = pop(timers)[2]
            if not item._cancelled:
                ready.append(item)
        return True

    def _turn(self) -> None:
        batch: list[Any] = self.ready
        self.ready = []
        if len(batch) > 1:
            _shuffle(batch, self._order.random)
        notes, running = self._notes, self.running
        for item in batch:
            if item._cancelled:
                continue
            loop = item._loop
            if loop is None:
                if running is not None:
                    self._leave()
                    running = None
                self.events += 1
                notes += _NO_MACHINE
                item._callback(*item._args)
                continue
            if not loop.alive:
                continue
            if loop.held is not None:
                loop.held.append(item)
                continue
            if loop is not running:
                running = self.running = loop
                loops._set_running_loop(loop)
            self.events += 1
            notes += loop.tag
            try:
                item._context.run(item._callback, *item._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a callback raises is told to its loop, as asyncio does
                loop.call_exception_handler({"message": f"Exception in callback {item._callback!r}", "exception": error})
        if len(notes) > _NOTES_BYTES:
            self._hash.update(bytes(notes))
            notes.clear()

    def _leave(self) -> None:
        """No machine runs."""
        if self.running is not None:
            self.running = None
            loops._set_running_loop(None)

    @contextmanager
    def _in_charge(self) -> Iterator[None]:
        """While time passes: no garbage collector, whose moments differ from process to process, and our own generators' ends."""
        assert loops._get_running_loop() is None, "a simulation cannot run inside an event loop"
        hooks = sys.get_asyncgen_hooks()
        filters = warnings.filters[:]
        # Machines that are killed leave coroutines that were made and not begun.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        collects = gc.isenabled()
        gc.disable()
        sys.set_asyncgen_hooks(firstiter=self._generator_begins, finalizer=self._generator_ends)
        try:
            yield
        finally:
            self._leave()
            sys.set_asyncgen_hooks(*hooks)
            warnings.filters[:] = filters  # type: ignore[index]
            if collects:
                gc.enable()

    def _generator_begins(self, generator: AsyncGenerator[Any, Any]) -> None:
        """A generator belongs to the machine that runs; there is nothing to remember while it is used up properly."""

    def _generator_ends(self, generator: AsyncGenerator[Any, Any]) -> None:
        loop = self.running
        if loop is not None and loop.alive:
            loop.begin(_closed(generator), "end of a generator")

    # -- the trace -------------------------------------------------------------------------------

    def note(self, *parts: str | int | float | bytes) -> None:
        """Make something part of the trace, beyond the order of callbacks."""
        for part in parts:
            raw = part if isinstance(part, bytes) else str(part).encode()
            self._notes += b"%d:" % len(raw) + raw

    def trace_hash(self) -> str:
        """A digest of everything that has happened: equal for equal seeds, in every process."""
        self._hash.update(bytes(self._notes))
        self._notes.clear()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End every machine. The world must not be used afterwards."""
        for loop in self.loops.values():
            loop.kill()
        self.ready.clear()
        self._timers.clear()


def _is_own(item: Any) -> bool:
    """Whether a timer is of a program, and not of the simulation below it."""
    if getattr(item._callback, "__name__", "") == "_set_result_unless_cancelled":
        return False  # Somebody's sleep: it counts as the task that sleeps.
    owner = getattr(item._callback, "__self__", None)
    return not type(owner).__module__.startswith("p2pgrid.testing")


def _never() -> bool:
    return False


def _shuffle(batch: list[Any], draw: Callable[[], float]) -> None:
    """Every order is as likely as any other. Batches are small and many, so this does with one draw each."""
    for last in range(len(batch) - 1, 0, -1):
        other = int(draw() * (last + 1))
        batch[last], batch[other] = batch[other], batch[last]


async def _closed(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


class MachineLoop(asyncio.AbstractEventLoop):
    """The event loop of one machine. Whatever would reach the real machine raises NotImplementedError."""

    def __init__(self, world: World, name: str, number: int) -> None:
        """Made by :meth:`World.loop`."""
        self.world = world
        self.name = name
        self.number = number
        self.tag = _NUMBER.pack(number)
        self.alive = True
        self.held: list[Soon | Later] | None = None
        """While frozen: what waits."""
        self.complaints: list[str] = []
        """What would have been said by the exception handler."""
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._sweep_at = _PRUNE_MIN

    def __repr__(self) -> str:
        return f"<MachineLoop {self.name}{'' if self.alive else ' dead'}>"

    # -- life ---------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stop between two callbacks, as a process that is suspended. Timers run out meanwhile."""
        if self.held is None:
            self.held = []

    def thaw(self) -> None:
        """Go on: everything that waited is ready."""
        held, self.held = self.held, None
        if self.alive and held:
            self.world.ready += held

    def kill(self) -> None:
        """Nothing of this machine runs again.

        Its coroutines are closed, which runs their ``finally`` blocks: the machine's disk and network must be dead before,
        so that nothing comes of it.
        """
        if not self.alive:
            return
        self.alive = False
        self.held = None
        if asyncio.current_task(self) is not None:
            self.world.after(0.0, self._bury)
        else:
            self._bury()

    def _bury(self) -> None:
        before = loops._get_running_loop()
        loops._set_running_loop(self)
        try:
            for task in list(self._tasks):
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close_quietly(task.get_coro())
        finally:
            loops._set_running_loop(before)
            self._tasks.clear()

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """The tasks that have not ended."""
        return [task for task in self._tasks if not task.done()]

    # -- what programs use -------------------------------------------------------------------

    def time(self) -> float:
        return self.world.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        handle = Soon(callback, args, self, contextvars.copy_context() if context is None else context)
        if self.alive:
            self.world.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        world = self.world
        handle = Later(world.now + delay, callback, args, self, contextvars.copy_context() if context is None else context)
        if self.alive:
            world.push(handle._when, handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = Later(when, callback, args, self, contextvars.copy_context() if context is None else context)
        if self.alive:
            self.world.push(when, handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, R], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[R]:
        task = asyncio.Task(coro, loop=self, name=name or "task", context=context)
        if not self.alive:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close_quietly(coro)
            return task
        self._tasks[task] = None
        if len(self._tasks) > self._sweep_at:
            self._tasks = {known: None for known in self._tasks if not known.done()}
            self._sweep_at = max(_PRUNE_MIN, 2 * len(self._tasks))
        return task

    def begin(self, program: Coroutine[Any, Any, None], name: str) -> None:
        """Start a program on this machine. The loop owns it; an error that it ends with is a complaint."""
        task = self.create_task(program, name=name)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.call_exception_handler({"message": f"{task.get_name()} failed", "exception": task.exception()})

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.alive:
            return
        error = context.get("exception")
        text = f"{context.get('message', 'an error nobody took')}: {error!r}"
        self.complaints.append(text)
        _log.error("%s: %s", self.name, text, exc_info=error if isinstance(error, BaseException) else None)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self.alive

    def is_closed(self) -> bool:
        return not self.alive

    async def shutdown_asyncgens(self) -> None:
        """Generators are closed as they end."""


def _close_quietly(coro: Any) -> None:
    """Close a coroutine of a dead machine. One that awaits in its ``finally`` needs to be told more than once."""
    for _ in range(200):
        with suppress(BaseException):
            coro.close()
            return
