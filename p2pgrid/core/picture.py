"""What a job looks like from above: its units as a row of letters, and who does how much of them (docs/spec/faces.md#a-job).

1. A picture costs a look at each batch that was touched and each lease that is out, and scans of whole columns; nothing is
   done unit by unit, so that a million units are drawn between two heartbeats.
2. Within a part of the row, what needs looking at wins: failed, then disputed, then leased, then waiting, then done.
3. A rate is what the pace of the workers that have units now adds up to: it is there from the first answers on, and needs
   nobody to have watched before.
4. A straggler is a lease that takes longer than nearly all strayed from what was forecast of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from p2pgrid.core.columns import FAILED, OPEN
from p2pgrid.core.lead import Lead
from p2pgrid.core.leases import Lease, LeaseBook
from p2pgrid.core.ledger import Ledger
from p2pgrid.core.pace import WorkerState
from p2pgrid.core.speculation import PICKUP_S

WAITING_LETTER, LEASED_LETTER, DONE_LETTER, FAILED_LETTER, DISPUTED_LETTER = ".", "r", "d", "f", "?"
CELLS_MAX = 4096
DISPUTED_MAX = 20_000
"""Disputed units that are marked; where there are more, that is counted and not drawn."""
STRAGGLERS_MAX = 16
STRAGGLES_FROM_S = 1.0
"""Nobody is called late for less."""
BETWEEN_LEASES_S = 2.0
"""Who asked for units so lately and got some is at work, though it may owe nothing at the moment."""
_LEASED = 3
_LEASE = bytes.maketrans(bytes([OPEN]), bytes([_LEASED]))

Runs = Iterable[tuple[int, int, int]]
"""(batch, start, count) of consecutive units."""


class Share(NamedTuple):
    """What a worker does and did: decided units, units it owes, units a second, and how old its oldest lease is."""

    node: bytes
    done: int
    running: int
    rate: float
    oldest_s: float


class Late(NamedTuple):
    """A unit that takes longer than it should: its number, who has it, and since how many seconds."""

    unit: int
    node: bytes
    age_s: float


def letters(ledger: Ledger, cells: int, leased: Runs = (), disputed: Iterable[tuple[int, int]] = ()) -> tuple[str, int]:
    """The units of a job in at most ``cells`` letters, and how many units one stands for. ``disputed``: (batch, unit) of each."""
    layout = ledger.layout
    units, cells = layout.units, min(max(1, cells), CELLS_MAX)
    per_cell = max(1, -(-units // cells))
    states = bytearray(units)
    for batch, column in ledger.touched():
        first = layout.number(batch, 0)
        states[first : first + len(column.state)] = column.state
    for batch, start, count in leased:
        first = layout.number(batch, start)
        states[first : first + count] = states[first : first + count].translate(_LEASE)
    marked = {layout.number(batch, unit) // per_cell for batch, unit in islice(disputed, DISPUTED_MAX)}
    return "".join([_letter(states, at, at + per_cell, at // per_cell in marked) for at in range(0, units, per_cell)]), per_cell


def _letter(states: bytearray, low: int, high: int, disputed: bool) -> str:
    """Rule 2."""
    if states.find(FAILED, low, high) >= 0:
        return FAILED_LETTER
    if disputed:
        return DISPUTED_LETTER
    if states.find(_LEASED, low, high) >= 0:
        return LEASED_LETTER
    return WAITING_LETTER if states.find(OPEN, low, high) >= 0 else DONE_LETTER


def disputed_units(ledger: Ledger, contested: Iterable[tuple[int, int]] = ()) -> Iterable[tuple[int, int]]:
    """Units on which answers differ, undecided ones (``contested``, which only the lead knows) first."""
    yield from contested
    for units in (ledger.conflicts, ledger.doubted):
        if len(units) <= DISPUTED_MAX:
            yield from sorted(units)


def leased_runs(book: LeaseBook) -> Runs:
    """What is leased and not answered."""
    for lease in book.leases.values():
        yield from book.unanswered(lease)


def levels(ledger: Ledger) -> tuple[tuple[str, int, int], ...]:
    """(kind, units, decided) of each level of the job."""
    return tuple((level.kind, level.units, level.units - ledger.level_open(number)) for number, level in enumerate(ledger.layout.levels))


def shares(lead: Lead, now: float) -> list[Share]:
    """What each worker does and did for a job that is led here; who did most comes first."""
    done, book = lead.ledger.units_by_worker(), lead.book
    found = [
        Share(node, done.get(node, 0), book.owed_by(node), worker_rate(lead, node, now), _oldest_s(book, node, now))
        for node in {**done, **dict.fromkeys(lead.workers), **dict.fromkeys(book.by_worker)}
    ]
    return sorted(found, key=lambda share: (-share.done, -share.running, share.node))


def _oldest_s(book: LeaseBook, node: bytes, now: float) -> float:
    return max((now - book.leases[lease].since for lease in book.by_worker.get(node, ())), default=0.0)


def worker_rate(lead: Lead, node: bytes, now: float) -> float:
    """Units a second of a worker while it works; 0 when it has none, or nothing is known of it."""
    worker = lead.workers.get(node)
    if worker is None or not worker.units or not (lead.book.owed_by(node) or _between_leases(worker, now)):
        return 0.0
    return worker.slots / lead.pace.unit_s(worker)


def _between_leases(worker: WorkerState, now: float) -> bool:
    return not worker.hungry and now - worker.pulled_at < BETWEEN_LEASES_S


def rate(lead: Lead, now: float) -> float:
    """Units decided a second, as all workers go on now: with a quorum each takes that many answers."""
    if lead.over or lead.stopped:
        return 0.0
    return sum(worker_rate(lead, node, now) for node in lead.workers) / max(1, lead.ledger.job.body.quorum)


def left_s(ledger: Ledger, units_per_s: float) -> float:
    """Seconds until a job ends at this rate; -1 when that is not known."""
    left = ledger.layout.units - ledger.done - ledger.failed
    if left <= 0:
        return 0.0
    return left / units_per_s if units_per_s > 0 else -1.0


def stragglers(lead: Lead, now: float) -> list[Late]:
    """The leases that take longest beyond their forecast, the oldest first, each with the first unit that it still owes."""
    found = [(now - lease.since, lease) for lease in lead.book.leases.values() if _late(lead, lease, now)]
    found.sort(key=lambda one: (-one[0], one[1].id))
    layout, late = lead.ledger.layout, list[Late]()
    for age_s, lease in found[:STRAGGLERS_MAX]:
        runs = lead.book.unanswered(lease)
        if runs:
            late.append(Late(layout.number(runs[0][0], runs[0][1]), lease.worker, age_s))
    return late


def _late(lead: Lead, lease: Lease, now: float) -> bool:
    """Rule 4. Of whom nothing is known, nothing can be late."""
    worker = lead.workers.get(lease.worker)
    if worker is None:
        return False
    forecast_s = max(lease.forecast_s, lead.pace.forecast_s(worker, lease.ahead + lease.open))
    return forecast_s > 0 and now - lease.since > max(STRAGGLES_FROM_S, lead.pace.stray * forecast_s + PICKUP_S)
