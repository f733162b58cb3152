"""Small grids for planted bugs: each is made so that one kind of mistake must show, at about a second of CPU a seed.

They have few machines and few units, and are over soon. Where the product plans in hours, ``prepare`` gives a grid
settings that let the same thing happen in seconds; such settings are no bug, and hold for the run without one, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest

from p2pgrid import node
from p2pgrid.core import replication
from p2pgrid.core.copies import Terms
from p2pgrid.dht import publications, records
from p2pgrid.dht.settings import DhtContext, DhtSettings
from p2pgrid.services import keeping, peers
from p2pgrid.testing.checkers import Facts
from p2pgrid.testing.grid import SimulatedGrid
from p2pgrid.testing.plans.scenario import parse
from p2pgrid.testing.verdict import Verdict
from p2pgrid.testing.whole import referee

Change = Callable[[pytest.MonkeyPatch], None]
"""Puts something else in the place of code, until the patch is undone."""

SCRIPTS = Path(__file__).resolve().parents[2] / "scenarios" / "grids" / "scripts"
SMALL_K = 4
"""Contacts of a bucket, where buckets are to be full in a grid of a dozen."""
LIFE_S = 12.0
"""How long a node's record lives, where records are to expire."""


def _nothing(patch: pytest.MonkeyPatch) -> None:
    """As the product is."""


def _small_buckets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node, "DhtContext", partial(DhtContext, settings=DhtSettings(k=SMALL_K)))
    patch.setattr(referee, "Facts", partial(Facts, lookup_answers=SMALL_K))


def _short_lives(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(peers, "NODE_TTL_S", LIFE_S)
    patch.setattr(keeping, "CLEAN_S", 5.0)
    often = {kind: min(after_s, LIFE_S / 3) for kind, after_s in records.REPUBLISH_S.items()}
    patch.setattr(publications, "REPUBLISH_S", often)


class Grid(NamedTuple):
    """A scenario's tables behind its name, and the settings it needs."""

    name: str
    tables: str
    prepare: Change = _nothing

    @property
    def text(self) -> str:
        """The whole scenario."""
        return f'name = "{self.name}"\nabout = "A small grid that shows one kind of mistake."\n{self.tables}'


@cache
def clean(grid: Grid, seed: int) -> Verdict:
    """The run of the product as it is."""
    return planted(grid, seed, _nothing)


def planted(grid: Grid, seed: int, bug: Change) -> Verdict:
    """The run of a seed with a bug in the product."""
    with pytest.MonkeyPatch.context() as patch:
        grid.prepare(patch)
        bug(patch)
        return SimulatedGrid(parse(grid.text), seed).run()


FOUR = """
[network]
latency_s = [0.01, 0.04]
[[nodes]]
kind = "founder"
[[nodes]]
kind = "peer"
count = 3
joins_s = [0, 1]
"""
"""A founder and three peers on a good network."""
JOB = """
[[jobs]]
name = "squares"
units = 24
unit_s = 0.4
at_s = 4
"""
FILES = """
[[files]]
count = 2
size_bytes = ["20k", "100k"]
at_s = 4
"""

CALM = Grid(
    "calm",
    f"""
duration_s = 9
settle_s = 10
{FOUR}
{JOB}
[[jobs]]
name = "checked"
units = 12
unit_s = 0.3
quorum = 2
at_s = 5
{FILES}
""",
)
"""Nothing goes wrong."""
TIGHT = Grid(
    "tight",
    f"""
duration_s = 10
settle_s = 10
{FOUR.replace('kind = "peer"', 'kind = "peer"' + chr(10) + "storage_bytes = 300000")}
[[files]]
count = 4
size_bytes = 120000
at_s = 3
every_s = 1
""",
)
"""Peers that lend less than people want."""
WARY = Grid(
    "wary",
    f"""
duration_s = 9
settle_s = 10
{FOUR}
[[nodes]]
kind = "wary"
native = false
joins_s = 0.5
{JOB}
""",
)
"""One of them runs no native code of others."""
LIARS = Grid(
    "liars",
    f"""
duration_s = 9
settle_s = 30
{FOUR}
[[nodes]]
kind = "liar"
behaviour = "digest"
joins_s = 0.5
{JOB}
""",
)
"""One of them delivers values that are not what it signed."""
FORGED = Grid(
    "forged",
    f"""
duration_s = 16
settle_s = 30
{FOUR}
[[faults]]
kind = "forge"
at_s = 5
for_s = 10
strength = 20
{JOB.replace("units = 24", "units = 60")}
""",
)
"""A forger among them."""
REPLAYED = Grid(
    "replayed",
    f"""
duration_s = 16
settle_s = 30
{FOUR}
[[faults]]
kind = "replay"
at_s = 5
for_s = 10
strength = 20
{JOB.replace("units = 24", "units = 60")}
""",
)
"""A replayer among them."""
BLINK = Grid(
    "blink",
    f"""
duration_s = 9
settle_s = 20
{FOUR.replace('kind = "founder"', 'kind = "founder"' + chr(10) + "cores = 0")}
[[faults]]
kind = "power"
nodes = 3
at_s = 6
for_s = 1
{JOB.replace("unit_s = 0.4", "unit_s = 5").replace("units = 24", "units = 6")}
""",
)
"""Peers that are gone for a moment only, in the middle of a job."""
POWER = Grid(
    "power",
    f"""
duration_s = 13
settle_s = 20
{FOUR}
[[faults]]
kind = "power"
nodes = 3
at_s = [7, 8]
for_s = 1
{JOB}
{FILES}
""",
)
"""Power fails for all but the founder."""
GONE = Grid(
    "gone",
    f"""
duration_s = 16
settle_s = 20
{FOUR}
[[faults]]
kind = "restart"
nodes = 5
at_s = 9
for_s = 1
spare = ""
[[nodes]]
kind = "submitter"
joins_s = 1
[[faults]]
kind = "crash"
of = "submitter"
at_s = 8.9
{JOB.replace("units = 24", "units = 12" + chr(10) + 'submitter = "submitter"')}
""",
)
"""A submitter that is gone for good when its job is over; then those who keep the job start anew."""
ROT = Grid(
    "rot",
    f"""
duration_s = 14
settle_s = 20
{FOUR}
[[faults]]
kind = "rot"
spare = ""
nodes = 2
at_s = 7
every_s = 1
[[files]]
count = 4
size_bytes = "50k"
at_s = 4
""",
)
"""Bits of stored files flip."""
PARTED = Grid(
    "parted",
    f"""
duration_s = 42
settle_s = 60
{FOUR.replace("count = 3", "count = 5")}
[[faults]]
kind = "partition"
share = 0.5
spare = ""
at_s = 5
for_s = 35
""",
)
"""Two halves that take one another for dead."""
CROWD = Grid(
    "crowd",
    f"""
duration_s = 12
settle_s = 10
{FOUR.replace("count = 3", "count = 11")}
""",
    _small_buckets,
)
"""More nodes than a bucket holds."""
FLEETING = Grid(
    "fleeting",
    f"""
duration_s = 32
settle_s = 10
{FOUR.replace("count = 3", "count = 4")}
[[faults]]
kind = "crash"
at_s = 8
{FILES}
""",
    _short_lives,
)
"""Records live for seconds, and a node is gone for good."""
BACKWARDS = Grid(
    "backwards",
    f"""
duration_s = 30
settle_s = 10
{FOUR.replace("count = 3", "count = 4")}
[[faults]]
kind = "clock-skew"
nodes = 2
at_s = 5
for_s = 40
strength = -100
[[faults]]
kind = "restart"
nodes = 4
at_s = 8
for_s = 1
""",
    _short_lives,
)
"""Clocks are set back, and nodes start anew."""

TAKEN_OVER = """
[[nodes]]
kind = "submitter"
joins_s = 1
[[jobs]]
name = "squares"
units = 40
unit_s = 1.0
at_s = 4
submitter = "submitter"
"""
ORPHAN = Grid(
    "orphan",
    f"""
duration_s = 10
settle_s = 60
{FOUR}
{TAKEN_OVER}
[[faults]]
kind = "crash"
of = "submitter"
at_s = [7, 8]
""",
)
"""A submitter dies in the middle of its job."""
DETACHED = Grid(
    "detached",
    f"""
duration_s = 10
settle_s = 60
{FOUR}
{TAKEN_OVER}
detach = true
""",
)
"""A submitter that does not wait."""
STALE = Grid(
    "stale",
    f"""
duration_s = 44
settle_s = 60
{FOUR}
{TAKEN_OVER.replace("unit_s = 1.0", "unit_s = 6.0")}
[[faults]]
kind = "freeze"
of = "submitter"
at_s = 7
for_s = 26
""",
)
"""A lead stands still until others have taken over, and goes on in the middle of its job."""
THIN = Grid(
    "thin",
    f"""
duration_s = 12
settle_s = 60
calm_s = 44
{FOUR.replace("count = 3", "count = 7")}
[[faults]]
kind = "crash"
nodes = 4
at_s = 8
{JOB.replace("unit_s = 0.4", "unit_s = 60")}
until_end = false
[expect]
jobs_complete = false
""",
)
"""Keepers die while a long job runs."""
MENDED = Grid(
    "mended",
    f"""
duration_s = 12
settle_s = 60
{FOUR.replace("count = 3", "count = 5")}
[[faults]]
kind = "crash"
nodes = 2
at_s = 10
{FILES}
[expect]
copies_back_s = 50
""",
)
"""Holders of files die."""


def _quick_to_trim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(replication, "Terms", partial(Terms, trim_s=4.0, check_s=3.0, step_s=5.0))
    patch.setattr(keeping, "CLEAN_S", 5.0)


SURPLUS = Grid(
    "surplus",
    f"""
duration_s = 56
settle_s = 50
calm_s = 40
{FOUR.replace("count = 3", "count = 5")}
[[faults]]
kind = "restart"
nodes = 3
at_s = 30
for_s = 22
{FILES}
[expect]
copies_back_s = 45
""",
    _quick_to_trim,
)
"""Holders come back after their copies have been replaced."""
TORN = Grid(
    "torn",
    f"""
duration_s = 52
settle_s = 60
calm_s = 25
{FOUR.replace("count = 3", "count = 5")}
[[faults]]
kind = "partition"
share = 0.5
spare = ""
at_s = 9
for_s = 38
[[jobs]]
name = "whims"
script = "{SCRIPTS / "whims.py"}"
unit_s = 2.0
varies = true
at_s = 7
""",
)
"""Two leads of one job that decide differently."""
