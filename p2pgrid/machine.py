"""What a node runs on: the disk, the network, threads and worker processes of one machine, behind one protocol.

A node is made of protocol logic and of these parts. :class:`ThisMachine` gives it the real ones; the simulator gives
it a machine of its own, and the node cannot tell.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from p2pgrid.core.pausing import Asked, Presence, Usage
from p2pgrid.dht.carrier import Carrier, UdpCarrier
from p2pgrid.model.limits import Limits
from p2pgrid.net.api import Transport
from p2pgrid.net.tls import TlsTransport
from p2pgrid.offload import Offload, ThreadOffload
from p2pgrid.runtimes.cages import units_folder
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.selftest.report import RuntimeReport
from p2pgrid.runtimes.tasks import PoolPolicy, Workers
from p2pgrid.sensors import Sensors, UsageMeter
from p2pgrid.store.disk import Disk
from p2pgrid.store.ledger import Ledgers
from p2pgrid.store.ledger_writer import LedgerPort, LedgerWriter
from p2pgrid.wire.keys import SigningKey


class Machine(Protocol):
    """The parts that a node takes from the machine it runs on."""

    @property
    def disk(self) -> Disk:
        """The disk it writes to."""

    platform: str
    """System and processor, as ``linux-x86_64``."""
    python: str
    """Major and minor version of the interpreter for units."""

    def transport(self, key: SigningKey, host: str, port: int, limits: Limits) -> Transport:
        """A way to and from other nodes, not yet started. ``port`` 0: any free one."""

    def carrier(self, host: str, port: int) -> Carrier:
        """Datagrams on one port, not yet open."""

    def offload(self) -> Offload:
        """Where blocking calls go."""

    def log_port(self, ledgers: Ledgers) -> LedgerPort:
        """The writer of the job logs."""

    def workers(self, folder: Path, policy: PoolPolicy, offload: Offload) -> Workers:
        """Where units run. ``folder`` is theirs alone."""

    def runner(self) -> Path | None:
        """The Python runner of this installation, if it has one."""

    def reachable(self, folder: Path) -> Path:
        """That folder, or one in its place that the processes of units can get to."""

    def caches(self) -> Path:
        """Where things lie that can be made anew: compiled modules, environments, reports. All nodes of a user share it."""

    async def selftest(
        self, policy: PoolPolicy, offload: Offload, runtimes: Sequence[str], runner: Path | None
    ) -> tuple[RuntimeReport, ...]:
        """Attack the cages of these runtimes. ``runner``: the Python runner, for ``python``."""

    def load(self) -> float:
        """Processes that want to run, as the system counts them; 0 where it does not."""

    def usage(self) -> Usage:
        """How much of it is in use, lately. Quick; raises nothing."""

    def presence(self, asked: Asked) -> Presence:
        """Who needs the machine, as far as is asked. Blocks, for a second at most; raises nothing. One call at a time."""


_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX = -3, -1, -8
_KEPT_BYTES = 16 << 20


def keep_freed_memory() -> None:
    """Let this process keep some of the memory it frees, where its C library is asked for that in glibc's way.

    Chunks of a MiB come and go all the time, and glibc gives each back to the system to ask for it again with the next: a
    sixth of what receiving over TLS costs. What is kept is bounded by 16 MiB.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            adjust = ctypes.CDLL(None).mallopt
            adjust(_MMAP_THRESHOLD, _KEPT_BYTES)
            adjust(_TRIM_THRESHOLD, _KEPT_BYTES)
            # What threads have of their own, nobody can give back for them.
            adjust(_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Return what is kept but not used to the system: for a node that has nothing to do. Milliseconds, for a thread."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


class ThisMachine:
    """The machine that this process runs on."""

    def __init__(self) -> None:
        self.disk = Disk()
        self._sensors = Sensors()
        self._meter = UsageMeter()
        self.platform = f"{platform.system().lower()}-{platform.machine().lower()}"
        self.python = ".".join(platform.python_version_tuple()[:2])

    def transport(self, key: SigningKey, host: str, port: int, limits: Limits) -> Transport:
        return TlsTransport(key, host, port, limits=limits)

    def carrier(self, host: str, port: int) -> Carrier:
        return UdpCarrier(host, port=port)

    def offload(self) -> Offload:
        return ThreadOffload()

    def log_port(self, ledgers: Ledgers) -> LedgerPort:
        return LedgerWriter(ledgers)

    def workers(self, folder: Path, policy: PoolPolicy, offload: Offload) -> Workers:
        return WorkerPool(units_folder(folder), policy, offload)

    def runner(self) -> Path | None:
        from p2pgrid.runtimes import runner

        return runner.path()

    def reachable(self, folder: Path) -> Path:
        return units_folder(folder)

    def caches(self) -> Path:
        said, shared = os.environ.get("P2PGRID_CACHE"), os.environ.get("XDG_CACHE_HOME")
        if said:
            return Path(said)
        if shared:
            return Path(shared) / "p2pgrid"
        try:
            return Path.home() / ".cache" / "p2pgrid"
        except RuntimeError:  # Nobody has a home here.
            return Path(tempfile.gettempdir()) / f"p2pgrid-cache-{os.getuid()}"

    async def selftest(
        self,
        policy: PoolPolicy,
        offload: Offload,
        runtimes: Sequence[str],
        runner: Path | None,
        on_attack: Callable[[str, int, int], None] | None = None,
    ) -> tuple[RuntimeReport, ...]:
        """``on_attack``: told, by runtime, how many attacks were made, and how many were begun."""
        from p2pgrid.runtimes.selftest.running import run_selftest

        return await run_selftest(policy, offload, runtimes=runtimes, runner=runner, on_attack=on_attack)

    def load(self) -> float:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

    def usage(self) -> Usage:
        return self._meter.read()

    def presence(self, asked: Asked) -> Presence:
        return self._sensors.read(asked)
