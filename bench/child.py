"""One system in one fresh process: ``python -m bench.child SYSTEM UNITS JOBS SINGLES OUT [PROFILE ROLE]``."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.grid import PROFILABLE, Grid
from bench.peers import Dask, DaskTls, ProcessPool, ProcessPoolChunks
from bench.system import System, measure

PR_SET_CHILD_SUBREAPER = 36


PEERS: dict[str, Callable[[], System]] = {
    "processpool": ProcessPool,
    "processpool-64": ProcessPoolChunks,
    "dask": Dask,
    "dask-tls": DaskTls,
}


def make(name: str, profile: list[str]) -> System:
    """The system of a name. Raises KeyError."""
    if name != "p2pgrid":
        return PEERS[name]()
    return Grid(Path(profile[0]), PROFILABLE[profile[1]]) if profile else Grid()


def main(arguments: list[str]) -> None:
    """Measure and write the figures as JSON."""
    name, units, jobs, singles, out, *profile = arguments
    if sys.platform == "linux":
        # Daemons stay in this tree, and so in its accounts.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    system = make(name, profile)
    try:
        figures = measure(system, int(units), int(jobs), int(singles))
    finally:
        system.close()
    Path(out).write_bytes(msgspec.json.encode(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
