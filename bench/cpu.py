"""CPU of whole process trees from the kernel's own accounts (Linux), split by role.

A process's own time is read to the nanosecond from its CPU clock; what its ended children took comes from /proc in ticks of
10 ms. Both only grow, and a child that ends moves from one to the other: the difference of two readings is what was spent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


class Spent(NamedTuple):
    """One process: seconds of its own, and of its children that have ended."""

    parent: int
    own_s: float
    ended_s: float


def _clock_s(process_id: int) -> float:
    """The CPU clock of another process, as clock_getcpuclockid names it: ``~pid << 3 | 2``."""
    return time.clock_gettime(~process_id << 3 | 2)


def read_processes() -> dict[int, Spent]:
    """Every process of this machine that could be read."""
    found: dict[int, Spent] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            own_s = _clock_s(int(entry.name))
        except OSError:
            continue
        found[int(entry.name)] = Spent(int(fields[1]), own_s, (int(fields[13]) + int(fields[14])) * TICK_S)
    return found


def by_role(processes: Mapping[int, Spent], root: int, roles: Mapping[int, str], inherited: str) -> dict[str, float]:
    """Seconds of CPU per role in the tree below ``root``.

    ``roles`` names some processes; their descendants, living or ended, count as ``inherited`` unless they are named too.
    With an empty ``roles`` everything but the root counts as ``inherited``.
    """
    children: dict[int, list[int]] = {}
    for process_id, spent in processes.items():
        children.setdefault(spent.parent, []).append(process_id)
    sums: dict[str, float] = {}
    queue = [root]
    while queue:
        process_id = queue.pop()
        queue += children.get(process_id, [])
        if process_id in processes:
            spent = processes[process_id]
            role = roles.get(process_id, inherited)
            sums[role] = sums.get(role, 0.0) + spent.own_s
            sums[inherited] = sums.get(inherited, 0.0) + spent.ended_s
    return sums


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """What was spent between two readings, per role."""
    return {role: seconds - before.get(role, 0.0) for role, seconds in after.items()}
