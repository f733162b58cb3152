"""A job of a million units through the machines that decide: what it takes in memory and time.

A lead with its ledger and a keeper with its own, in one process. The keeper's statements are decoded from the bytes it is
pushed, as they are in a process of its own, so that nothing is shared by accident. Workers are plain loops that answer what they
are leased; signatures are an oracle's. Peak memory is read where the process itself is measured, so a run that is to be
compared with a bound belongs in a fresh process: :func:`measured` makes one.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from p2pgrid.core import lead as leading
from p2pgrid.core.ledger import Ledger
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.job import BatchRef, Job, KeeperSet, UnitLimits
from p2pgrid.model.limits import DEFAULT_LIMITS, MIB
from p2pgrid.model.work import OK, Decision, Grant, Receipt, UnitRange
from p2pgrid.testing.core.plan import EXPIRES_MS, LEAD, SUBMITTER, oracle
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Signed

UNITS = 1_000_000
WORKERS = 64
SLOTS = 8
UNIT_S = 0.005
KEEPER = b"K" * 32
MEASURED_S = 900.0
"""The longest a measurement in a process of its own may take."""
_KINDS: dict[str, Any] = {kind.TYPE: kind for kind in (Grant, Receipt, Decision)}


class MillionFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a big job came to. Bytes are of the whole process."""

    units: int
    seconds: float
    peak_bytes: int
    """The most the process ever took."""
    before_bytes: int
    """What it took before the job: the interpreter and its modules."""
    statements: int
    receipts: int

    @property
    def bytes_per_unit(self) -> float:
        """Both ledgers, the lead and everything passing through, for each unit."""
        return (self.peak_bytes - self.before_bytes) / self.units


class _Million:
    def __init__(self, units: int) -> None:
        size = DEFAULT_LIMITS.batch_units
        manifest = tuple(BatchRef(b"b" * 32, min(size, units - first), 100) for first in range(0, units, size))
        body = Job(EXPIRES_MS, b"n" * 16, 0, "million", "native", b"x", b"", manifest, limits=UnitLimits(timeout_s=60.0))
        self.job = oracle(body, SUBMITTER)
        self.now = 0.0
        self.statements = 0
        self.over = False
        named = oracle(KeeperSet(EXPIRES_MS, self.job.id, 0, LEAD, (KEEPER,)), SUBMITTER)
        ledger, self.keeper = Ledger(self.job), Ledger(self.job)
        ledger.add(named)
        self.keeper.add(named)
        self.lead = leading.Lead(ledger, lambda statement: oracle(statement, LEAD), random.Random(1))

    def run(self) -> None:
        keys = [NodeKey(bytes([number + 1]) * 32) for number in range(WORKERS)]
        self._handle(leading.WorkersKnown(frozenset(keys)))
        while not self.over:
            for key in keys:
                self._round(key)
            self.now += 1.0
            self._handle(leading.Tick())

    def _round(self, key: NodeKey) -> None:
        """One worker pulls once and answers all it gets, one receipt for each of its cores."""
        granted = self._handle(leading.Pulled(key, key, SLOTS, 4096))
        if granted is None or granted.grant is None:
            return
        grant = granted.grant
        part = max(1, -(-sum(one.units for one in grant.body.ranges) // SLOTS))
        for batch, start, units, attempt in grant.body.ranges:
            for first in range(start, start + units, part):
                count = min(part, start + units - first)
                self._answer(key, grant, UnitRange(batch, first, count, attempt))

    def _answer(self, key: NodeKey, grant: Signed[Grant], piece: UnitRange) -> None:
        digests = blake3(b"%d/%d" % (piece.batch, piece.start)).digest(length=32 * piece.units)
        spent_us = int(piece.units * UNIT_S * 1e6)
        body = Receipt(EXPIRES_MS, self.job.id, grant.id, (piece,), bytes([OK]) * piece.units, digests, spent_us, bytes(32))
        self._handle(leading.Delivered(oracle(body, key)))

    def _handle(self, event: leading.Event) -> leading.Granted | None:
        granted = None
        for effect in self.lead.handle(event, self.now, int(self.now * 1000)):
            match effect:
                case leading.Granted():
                    granted = effect
                case leading.Record(statements):
                    self.statements += len(statements)
                    for statement in statements:
                        self.keeper.add(_received(statement))
                case leading.Over():
                    self.over = True
        return granted


def _received(statement: Signed[Any]) -> Signed[Any]:
    """A statement as another process has it: decoded from a copy of its bytes."""
    raw = bytes(bytearray(statement.raw))
    return Signed(decode(raw, _KINDS[statement.body.TYPE]), bytes(bytearray(statement.author)), statement.id, raw)


def million_units(units: int = UNITS) -> MillionFigures:
    """Run a job of so many units in this process. Raises AssertionError if the lead or the keeper miss one."""
    before_bytes = peak_bytes()
    began = time.perf_counter()
    run = _Million(units)
    run.run()
    seconds = time.perf_counter() - began
    for ledger in (run.lead.ledger, run.keeper):
        assert ledger.complete, "units are left"
        assert (ledger.done, ledger.failed) == (units, 0), "units are left, or failed"
    assert not run.lead.book.leases, "leases are left"
    receipts = len(run.keeper.receipt_list)
    return MillionFigures(
        units=units,
        seconds=round(seconds, 3),
        peak_bytes=peak_bytes(),
        before_bytes=before_bytes,
        statements=run.statements,
        receipts=receipts,
    )


def measured(units: int = UNITS) -> MillionFigures:
    """The same in a fresh process, so that its peak is the job's own."""
    command = [sys.executable, "-m", "p2pgrid.testing.core.million", str(units)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=MEASURED_S)
    return decode(done.stdout, MillionFigures)


def peak_bytes() -> int:
    """The most memory this process ever took.

    Linux says it for this program alone; what getrusage says there includes who started it.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(figures: MillionFigures) -> str:
    """One line for people."""
    return (
        f"{figures.units} units in {figures.seconds:.1f} s: {figures.peak_bytes / MIB:.0f} MiB at most, "
        f"{figures.before_bytes / MIB:.0f} MiB before it began, {figures.bytes_per_unit:.0f} bytes a unit, {figures.receipts} receipts"
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.msgpack.encode(million_units(int(sys.argv[1]))))
