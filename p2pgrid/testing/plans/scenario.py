"""A simulated grid as a small declarative file: machines and kinds, network, faults, jobs, files, duration, expectations.

Written in TOML (``scenarios/grids/``), read by :func:`load` into these structs. A number may be given as ``[low, high]``:
then each seed draws its own, so that one file describes a family of grids. :func:`plan` makes those draws: a
:class:`GridPlan` is one grid of the family, with every number settled (docs/reference/scenario-files.md).

What is written here about a field is what the page about scenario files says of it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from p2pgrid.errors import BadDataError
from p2pgrid.testing.plans.checks import check
from p2pgrid.testing.plans.gridplan import AirPlan, FaultEvent, FileEvent, GridPlan, JobEvent, MachinePlan, draw, draw_count, plan
from p2pgrid.testing.plans.text import tables
from p2pgrid.testing.plans.words import BEHAVIOURS, CHURNS, FAULT_KINDS, FAULT_MEANINGS, NATS

__all__ = [
    "BEHAVIOURS",
    "CHURNS",
    "FAULT_KINDS",
    "FAULT_MEANINGS",
    "NATS",
    "AirPlan",
    "CorePlan",
    "Count",
    "Expectations",
    "FaultEvent",
    "FaultPlan",
    "FileEvent",
    "FilePlan",
    "GridPlan",
    "GridScenario",
    "JobEvent",
    "JobPlan",
    "MachinePlan",
    "NetworkPlan",
    "NodePlan",
    "Span",
    "draw",
    "draw_count",
    "load",
    "parse",
    "plan",
]

SCENARIO_BYTES_MAX = 1 << 20
Span = float | tuple[float, float]
"""A number, or the bounds between which a seed draws it."""
Count = int | tuple[int, int]


class NetworkPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The air between machines. Chances are per datagram or segment; seconds are one way."""

    latency_s: Span = 0.02
    """Median of the one-way latency between two machines; each pair draws its own."""
    latency_sigma: float = 0.3
    """Spread of the log-normal around it."""
    jitter_s: Span = 0.002
    """What is added to it at random, at most."""
    loss: Span = 0.0
    """Chance that it does not arrive."""
    duplicate: Span = 0.0
    """Chance that it arrives twice."""
    reorder: Span = 0.0
    """Chance that it is overtaken by what was sent later."""
    bandwidth_bytes_s: Span = 12_500_000.0
    """Bytes per second up and down of each machine, unless its kind says otherwise; 0: without limit."""


class NodePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Machines of one kind."""

    kind: str
    """Its name: small letters, digits and dashes. Machines are called ``kind-1``, ``kind-2`` and so on. The first machine of the kind
    ``founder`` founds the grid, or where there is no such kind, the first of the first kind; elsewhere in the file ``founder`` means
    the kind that founds."""
    count: Count = 1
    """How many of them there are; 0 for a kind that only comes with a ``flash-crowd``."""
    cores: Count = 2
    """What each lends to jobs."""
    speed: Span = 1.0
    """Against the machine on which the jobs' ``unit_s`` was measured."""
    storage_bytes: Count = 64 << 20
    """What each lends to others' files and results."""
    disk_bytes: Count = 0
    """Room on the disk itself; 0: without limit."""
    roles: tuple[str, ...] = ("work", "store", "submit", "native")
    """What its invite grants: ``work``, ``store``, ``submit``, ``native``, ``invite``."""
    native: bool = True
    """Whether it runs native code of others."""
    nat: str = "open"
    """``open``, ``cone`` (hears whom it has sent to) or ``symmetric``; behind both nobody can dial it."""
    bandwidth_bytes_s: Span = -1.0
    """Bytes per second up and down; 0: without limit; -1: as the network says."""
    extra_latency_s: Span = 0.0
    """One way, on top of the network's."""
    clock_skew_s: Span = 0.0
    """How far its wall clock is ahead of the true one."""
    joins_s: Span = (0.0, 2.0)
    """When it joins for the first time. Who founds the grid is there from 0."""
    behaviour: str = "honest"
    """``honest``, or of a liar: ``wrong`` (another value each), ``colluding`` (the same wrong value), ``digest`` (a digest that does
    not fit), ``lazy`` (answers without computing)."""
    churn: str = "none"
    """How it comes and goes: ``none`` (it stays), ``weibull``, ``ipfs`` or ``laptop``."""
    stable: float = 0.0
    """Share of them that never leave all the same."""
    session_s: Span = 3600.0
    """Mean session of ``weibull``; ``ipfs`` and ``laptop`` scale their published shape so that half a day takes this long: of ``ipfs``
    half the sessions are over after a sixth of it and four in five after two thirds; ``laptop`` is on in the evening, off at night."""
    shape: Span = 0.45
    """Weibull's k."""
    away_s: Span = 60.0
    """Mean time between sessions of ``weibull`` and ``ipfs``."""


class FaultPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that goes wrong. Whatever lasts ends with ``duration_s`` at the latest."""

    kind: str
    """One of the kinds of faults below."""
    at_s: Span = 10.0
    """When it happens first."""
    every_s: Span = 0.0
    """Again and again, with this much between; 0: once."""
    for_s: Span = 20.0
    """How long it lasts, where that means something."""
    nodes: Count = 1
    """How many machines it strikes at once."""
    share: float = 0.0
    """Instead of ``nodes``: this share of those that run."""
    of: str = ""
    """Only machines of this kind; empty: of any."""
    spare: str = "founder"
    """Machines of these kinds (separated by spaces) are spared; empty: none is."""
    strength: Span = 1.0
    """Factor, chance, bytes or seconds, as the kind of fault says."""


class JobPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job somebody submits."""

    name: str = "job"
    """Each job of a file has its own."""
    script: str = ""
    """A job script's path, relative to the scenario; empty: a built-in one that squares numbers."""
    args: tuple[str, ...] = ()
    """Arguments of the script's ``inputs``."""
    units: Count = 100
    """Of the built-in script."""
    reduce: bool = False
    """The built-in script adds the squares up on the grid."""
    unit_s: Span = 0.5
    """Median seconds of a unit at speed 1."""
    unit_sigma: float = 0.3
    """Spread of the log-normal around it."""
    at_s: Span = 8.0
    """When it is submitted."""
    submitter: str = "founder"
    """The kind of machine that submits."""
    quorum: int = 1
    """How many equal answers a unit needs."""
    attempts: int = 3
    """How often a unit may end without an answer before it is given up."""
    replicas: int = 3
    """Copies of each of its blobs."""
    result_bytes: Count = 0
    """The built-in script returns this many bytes besides its number."""
    detach: bool = False
    """Nobody at the submitter waits for the results."""
    cancel_at_s: Span = 0.0
    """Cancelled then; 0: never."""
    fails: bool = False
    """Some of its units go wrong wherever they run: the job must end, and what it does give must be right."""
    varies: bool = False
    """Its units return something else each time: two leads may decide differently, which must then show as a conflict."""
    until_end: bool = True
    """Must be over within the bound of the liveness phase."""


class FilePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files somebody puts, and reads again at the end from elsewhere."""

    count: Count = 1
    """How many files in all."""
    size_bytes: Count = 200_000
    """Of each."""
    replicas: int = 3
    """Copies of each."""
    at_s: Span = 8.0
    """When the first is put."""
    every_s: Span = 0.0
    """Between one and the next; 0: all at once."""
    by: str = ""
    """The kind of machine that puts them; empty: any that runs."""


class Expectations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must hold at the end beyond the invariants. A value of -1 is not looked at."""

    jobs_complete: bool = True
    """Every job that was accepted ends with every unit right."""
    units_correct_min: float = 1.0
    """Share of units of accepted jobs that must be right, when jobs need not be complete."""
    runs_again_max: int = -1
    """Units that are begun again after they had ended on a machine which left in good order, at most."""
    copies_back_s: float = -1.0
    """Seconds after the faults within which every file is back to the copies that were asked for."""
    files_readable: bool = True
    """Every file that was acknowledged and has a holder left can be read."""
    unlucky_max: int = -1
    """Objects whose holders were all struck, at most; instead of the statistical bound."""
    accepted_wrong: str = "none"
    """``none``, or ``formula``: at most what the quorum's formula allows."""
    makespan_ratio_max: float = -1.0
    """The longest of the jobs' makespans over its ideal on the capacity that was there, at most."""
    tail_ratio_max: float = -1.0
    """When a job's last unit was decided over when 95 % were, both since it was submitted, at most."""
    extra_work_max: float = -1.0
    """Unit seconds at speed 1 that machines spent on a job beyond those it needed, over those it needed, at most."""
    reasons: tuple[str, ...] = ()
    """Reason codes that some seed of a batch must meet."""
    lookups_min: float = 0.995
    """Share of final lookups that must find the true closest nodes."""


class CorePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For ``engine = "core"``: the sizes that the event heap is given."""

    lookups: int = 0
    """How many lookups of the DHT are made over the run."""
    table_nodes: tuple[int, ...] = ()
    """Sizes of grids for which lookups are measured."""


class GridScenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file."""

    name: str
    """What verdicts and messages call it."""
    about: str
    """What it shows, in a sentence or two."""
    engine: str = "whole"
    """``whole``: whole nodes under the virtual loop; ``core``: the core's machines on the event heap."""
    duration_s: Span = 60.0
    """Faults happen until then."""
    settle_s: float = 90.0
    """The bound of the liveness phase that follows."""
    calm_s: float = 8.0
    """At least this long passes between the last fault and the readers, whatever has ended before."""
    signatures: str = "oracle"
    """``oracle``: a checked stand-in, fast; ``real``: Ed25519."""
    network: NetworkPlan = NetworkPlan()
    """The table ``[network]``."""
    nodes: tuple[NodePlan, ...]
    """One ``[[nodes]]`` for each kind of machine; at least one."""
    faults: tuple[FaultPlan, ...] = ()
    """One ``[[faults]]`` for each thing that goes wrong."""
    jobs: tuple[JobPlan, ...] = ()
    """One ``[[jobs]]`` for each job."""
    files: tuple[FilePlan, ...] = ()
    """One ``[[files]]`` for each group of files."""
    expect: Expectations = Expectations()
    """The table ``[expect]``."""
    core: CorePlan = CorePlan()
    """The table ``[core]``."""
    folder: str = ""
    """Where the file lies, for paths in it. Never written in a file: filled when it is read."""


def load(path: Path) -> GridScenario:
    """Read a scenario file.

    Raises BadDataError for a file that cannot be read, is no TOML, or says what makes no sense; the message names the place.
    """
    try:
        with path.open("rb") as file:
            content = file.read(SCENARIO_BYTES_MAX + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise BadDataError(f"{path} cannot be read: {error.strerror or error}", hint="give the path of a scenario file") from error
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", hint="scenario files are TOML") from error
    if len(content) > SCENARIO_BYTES_MAX:
        raise BadDataError(
            f"{path} is longer than {SCENARIO_BYTES_MAX} bytes", hint="scenario files are small: use [low, high] and every_s"
        )
    scenario = msgspec.structs.replace(parse(text, path.stem), folder=str(path.absolute().parent))
    for number, job in enumerate(scenario.jobs, 1):
        if job.script and not (Path(scenario.folder) / job.script).is_file():
            raise BadDataError(
                f"{path.stem}: [[jobs]] {number}: there is no script '{job.script}'", hint="its path is relative to the scenario file"
            )
    return scenario


def parse(text: str, name: str = "") -> GridScenario:
    """Read the text of a scenario file. ``name`` is what messages call it, and what it is called when it does not say itself.

    Raises BadDataError for text that is no TOML, or that says what makes no sense; the message names the place.
    """
    scenario = tables(text, name, GridScenario)
    check(scenario, name)
    return scenario
