"""What a worker prepares before the first unit of a lease runs, told to who leads the job (docs/spec/worker.md).

1. Only what takes long is told: after two seconds, then each second, and nothing once a unit has ended.
2. A lead believes none of it, and shows it: it listens to nodes that pulled units of the job, to each twice a second at most.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from p2pgrid.model.ids import NodeKey, short
from p2pgrid.services.context import Context
from p2pgrid.services.knownjobs import KnownJob
from p2pgrid.services.peers import Peers
from p2pgrid.wire.messages import JobPreparing

TELL_AFTER_S = 2.0
TELL_EVERY_S = 1.0
LISTEN_EVERY_S = 0.5
FRESH_S = 5.0
TOLD_MAX = 64
"""Nodes of one job that are listened to at one time."""
COUNT_MAX = 1 << 20
TEXTS = {
    "packages": "fetches packages",
    "unpacking": "sets up packages",
    "runner": "compiles the Python runner (first time)",
    "module": "compiles the module (first time)",
    "inputs": "fetches inputs",
}


class Step(NamedTuple):
    """What is done now; ``total`` 0: nothing can be counted."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(eq=False, slots=True)
class Preparation:
    """A part of a lease of which no unit has ended yet."""

    known: KnownJob
    lead: bytes
    since_s: float
    in_pool: bool = False
    """Everything it needs is here: it waits for a process."""


class Announcing:
    """The worker's side. Costs an entry in a table for each part of a lease, and a timer while there is one."""

    def __init__(
        self, context: Context, peers: Peers, packages: Callable[[bytes], Step | None], compiling: Callable[[bytes], bool]
    ) -> None:
        """``packages``: how far the environment of this blob is; ``compiling``: whether a program of this job is being compiled."""
        self._context = context
        self._peers = peers
        self._packages = packages
        self._compiling = compiling
        self._open: dict[Preparation, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, known: KnownJob, lead: bytes) -> Preparation:
        """A part of a lease is taken up; :meth:`end` it when its first unit has ended, or it will not run."""
        preparation = Preparation(known, lead, self._context.clock())
        self._open[preparation] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_AFTER_S, self._look)
        return preparation

    def end(self, preparation: Preparation) -> None:
        """More than once does no harm."""
        self._open.pop(preparation, None)

    def close(self) -> None:
        """Say nothing more."""
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now, told = self._context.clock(), set[tuple[bytes, bytes]]()
        for preparation in self._open:
            key = (preparation.known.job.id, preparation.lead)
            elapsed_s = now - preparation.since_s
            if elapsed_s < TELL_AFTER_S or key in told:
                continue
            step = self._step(preparation)
            if step is not None:
                told.add(key)
                notice = JobPreparing(preparation.known.job.id, step.what, step.done, step.total, elapsed_s)
                self._peers.notify(NodeKey(preparation.lead), "job.preparing", notice)
        self._timer = asyncio.get_running_loop().call_later(TELL_EVERY_S, self._look) if self._open else None

    def _step(self, preparation: Preparation) -> Step | None:
        """None for a unit that simply runs for long."""
        known = preparation.known
        if preparation.in_pool:
            return Step("runner" if known.runtime == "python" else "module") if self._compiling(known.job.id) else None
        environment = known.job.body.environment
        return (self._packages(environment) if environment and known.runtime == "native" else None) or Step("inputs")


class _Heard(NamedTuple):
    step: Step
    elapsed_s: float
    at_s: float


class Preparations:
    """What the workers of one job say that they prepare: the lead's side."""

    def __init__(self) -> None:
        self._heard: dict[bytes, _Heard] = {}

    def hear(self, node: bytes, notice: JobPreparing, now: float, started_s: float = -math.inf) -> None:
        """A notice of a node that pulled units of the job. ``started_s``: since when the job is led here; nothing took longer."""
        known = self._heard.get(node)
        if notice.what not in TEXTS or (known is not None and now - known.at_s < LISTEN_EVERY_S):
            return
        self._forget(now)
        if known is None and len(self._heard) >= TOLD_MAX:
            return
        total = min(max(0, notice.total), COUNT_MAX)
        elapsed_s = notice.elapsed_s if math.isfinite(notice.elapsed_s) else 0.0
        elapsed_s = max(0.0, min(elapsed_s, now - started_s))
        self._heard[node] = _Heard(Step(notice.what, min(max(0, notice.done), total), total), elapsed_s, now)

    def _forget(self, now: float) -> None:
        for node in [node for node, heard in self._heard.items() if now - heard.at_s > FRESH_S]:
            del self._heard[node]

    def note(self, now: float) -> str:
        """A sentence for people about who has prepared for longest; empty when nobody does."""
        self._forget(now)
        if not self._heard:
            return ""
        node, heard = max(self._heard.items(), key=lambda one: (one[1].elapsed_s, one[0]))
        step, others = heard.step, len(self._heard) - 1
        counted = f" ({step.done} of {step.total})" if step.total else ""
        more = f"; {others} other{'s' if others > 1 else ''} prepare{'s' if others == 1 else ''}, too" if others else ""
        return f"node {short(node)} {TEXTS[step.what]}{counted}, {heard.elapsed_s:.0f} s{more}"
