"""What every system under test can do, and the measurement that all of them go through alike."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from bench import cpu

WARM_UNITS = 300
WARM_SINGLES = 5
PAUSE_S = 0.25
"""Between two one-unit jobs: latency is that of a system at rest, the same pause for all."""


class System(Protocol):
    """A task system with two workers. Everything is called from one thread, in order."""

    inherited: str
    """The role of processes that ``roles`` does not name."""

    def start(self) -> None:
        """Return when both workers are there."""

    def many(self, units: int) -> None:
        """Run ``units`` no-ops as one piece of work and check every result."""

    def one(self, number: int) -> float:
        """Run one no-op, check its result; returns the moment (perf_counter) at which it was in hand."""

    def roles(self) -> Mapping[int, str]:
        """Process id to role, for "where the time goes"."""

    def audit(self) -> dict[str, int]:
        """Assert that everything promised was on; returns what was counted. Runs outside all measurements."""

    def profile(self, *, on: bool) -> None:
        """Begin or end a profile of the lead, where that was asked for."""

    def close(self) -> None:
        """End everything."""


class Figures(msgspec.Struct, kw_only=True):
    """What one child measured. Seconds throughout."""

    units: int
    jobs: int
    wall_s: float
    roles_s: dict[str, float]
    """CPU by role for ``units * jobs`` no-ops."""
    in_hand_s: list[float]
    """One unit: from the call to the result in hand."""
    whole_s: list[float]
    """One unit: until the call returned; in p2pgrid three keepers have then confirmed the end of the job."""
    single_roles_s: dict[str, float]
    """CPU by role of one one-unit job, and of what the system does in the pause around it."""
    start_s: float
    audited: dict[str, int]

    @property
    def units_per_s(self) -> float:
        return self.units * self.jobs / self.wall_s

    @property
    def cpu_per_unit_s(self) -> float:
        return sum(self.roles_s.values()) / (self.units * self.jobs)


def measure(system: System, units: int, jobs: int, singles: int) -> Figures:
    """Start, warm up, measure throughput and CPU, then latency; audit after each."""
    began = time.perf_counter()
    system.start()
    start_s = time.perf_counter() - began
    system.many(WARM_UNITS)
    system.audit()
    before = _cpu(system)
    system.profile(on=True)
    began = time.perf_counter()
    for _ in range(jobs):
        system.many(units)
    wall_s = time.perf_counter() - began
    roles_s = cpu.difference(_cpu(system), before)
    system.profile(on=False)
    audited = system.audit()
    for number in range(WARM_SINGLES):
        system.one(number)
    before = _cpu(system)
    in_hand, whole = [], []
    for number in range(singles):
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        in_hand.append(system.one(number) - began)
        whole.append(time.perf_counter() - began)
    time.sleep(PAUSE_S)
    single_roles_s = {role: spent / singles for role, spent in cpu.difference(_cpu(system), before).items()}
    system.audit()
    return Figures(
        units=units,
        jobs=jobs,
        wall_s=wall_s,
        roles_s=roles_s,
        in_hand_s=in_hand,
        whole_s=whole,
        single_roles_s=single_roles_s,
        start_s=start_s,
        audited=audited,
    )


def _cpu(system: System) -> dict[str, float]:
    return cpu.by_role(cpu.read_processes(), os.getpid(), system.roles(), system.inherited)
