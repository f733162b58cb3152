"""The document of ``watch``."""

from __future__ import annotations

import msgspec

from p2pgrid.model.ids import to_text
from p2pgrid.wire.faces import JobPicture
from p2pgrid.wire.owner import JobLine


class Level(msgspec.Struct, frozen=True):
    """Each of ``levels``."""

    kind: str
    """`map`, `reduce` or `finish`"""
    units: int
    """how many it has"""
    decided: int
    """done or failed"""


class NodeShare(msgspec.Struct, frozen=True):
    """Each of ``nodes``."""

    node: str
    """its id"""
    name: str
    """what it calls itself"""
    live: bool
    """whether there is a connection to it"""
    done: int
    """decided units of the job that it did"""
    running: int | None
    """units it has leased; null where the job is not led"""
    units_per_s: float | None
    """how fast it is lately; null where the job is not led"""
    oldest_lease_s: float | None
    """age of its oldest open lease; null without one"""
    reason: str
    """reason code why it takes none now, or empty"""


class LateUnit(msgspec.Struct, frozen=True):
    """Each of ``late``."""

    unit: int
    """its number"""
    node: str
    """who has it"""
    age_s: float
    """since when"""


class Failure(msgspec.Struct, frozen=True):
    """Each of ``failures``."""

    unit: int
    """its number"""
    node: str
    """who ran it; empty when several differed"""
    reason: str
    """reason code"""
    text: str
    """what it said, in a line"""
    final: bool
    """false: it is tried again, or was done since"""


class Watch(msgspec.Struct, frozen=True):
    """A look at a job."""

    job: str
    """its id"""
    name: str
    """the script or command"""
    state: str
    """as in `jobs`"""
    units: int
    """derived ones included"""
    done: int
    """units with a value"""
    failed: int
    """units without one"""
    disputed: int
    """decided although somebody dissented"""
    lead: str
    """the node that leads it, as far as is known here"""
    led_here: bool
    """whether that is this node, which alone knows what runs"""
    keepers: tuple[str, ...]
    """nodes that keep its log"""
    created_ms: int
    """when it was submitted"""
    wall_ms: int
    """the clock of this look"""
    note: str
    """what it waits for, in words, or empty"""
    units_per_s: float
    """units decided a second, lately"""
    left_s: float | None
    """seconds until it ends as it goes on now; null when that is not known"""
    levels: tuple[Level, ...]
    """map units, then those that fold their results"""
    cells: str
    """a letter for each part of its units: `.` waiting, `r` leased, `d` done, `f` one failed, `?` one disputed"""
    units_per_cell: int
    """consecutive units in a part"""
    nodes: tuple[NodeShare, ...]
    """who did and does how much"""
    late: tuple[LateUnit, ...]
    """units that take longer than was expected of their nodes"""
    failures: tuple[Failure, ...]
    """the newest attempts that came to nothing, the newest last"""


def watch_of(line: JobLine, picture: JobPicture, note: str = "") -> Watch:
    """A job and its picture, as programs read them."""
    known = picture.led_here
    return Watch(
        job=to_text(line.job),
        name=line.name,
        state=line.state,
        units=line.units,
        done=line.done,
        failed=line.failed,
        disputed=line.disputed,
        lead=to_text(line.lead) if line.lead else "",
        led_here=known,
        keepers=tuple(to_text(keeper) for keeper in line.keepers),
        created_ms=line.created_ms,
        wall_ms=picture.wall_ms,
        note=note,
        units_per_s=round(picture.rate, 3),
        left_s=round(picture.left_s, 1) if picture.left_s >= 0 else None,
        levels=tuple(Level(*level) for level in picture.levels),
        cells=picture.cells,
        units_per_cell=picture.units_per_cell,
        nodes=tuple(
            NodeShare(
                node=to_text(share.node),
                name=share.name,
                live=share.live,
                done=share.done,
                running=share.running if known else None,
                units_per_s=round(share.rate, 3) if known else None,
                oldest_lease_s=round(share.oldest_s, 1) if known and share.running else None,
                reason=share.note,
            )
            for share in picture.workers
        ),
        late=tuple(LateUnit(late.unit, to_text(late.node), round(late.age_s, 1)) for late in picture.stragglers),
        failures=tuple(
            Failure(failure.unit, to_text(failure.node) if failure.node else "", failure.reason, failure.text, failure.final)
            for failure in picture.failures
        ),
    )
