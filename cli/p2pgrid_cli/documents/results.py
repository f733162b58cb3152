"""The document of ``run`` and ``results``."""

from __future__ import annotations

from typing import Any

import msgspec

from p2pgrid.client.running import Outcome
from p2pgrid.model.ids import to_text


class Failure(msgspec.Struct, frozen=True):
    """Each of ``failures``."""

    unit: int
    """its number in the job"""
    reason: str
    """a [reason code](reasons.md)"""
    type: str
    """the exception's class; empty where there was none"""
    message: str
    """what it said"""


class Results(msgspec.Struct, frozen=True):
    """What a job came to. The exit code says whether all is well, as [without `--json`](exit-codes.md).

    Values in ``results`` are JSON where they can be; bytes are base64, and a result file is `{"file": name, "blob": id,
    "size_bytes": number}`. A command's value is what it wrote to stdout, so base64.
    """

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
    conflicts: int
    """units with two different decisions"""
    units_per_node: dict[str, int]
    """decided units of each node"""
    results: tuple[Any, ...]
    """the values of the job's last level, in order; units that failed are left out"""
    failures: tuple[Failure, ...]
    """the first few"""
    fuel: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    """what each unit behind `results` burnt, by its number; only where a runtime counts (`wasm`, `python`)"""


class Detached(msgspec.Struct, frozen=True):
    """Of ``run --detach``."""

    job: str
    """its id"""
    keepers: int
    """other nodes that keep it"""


def results_of(job: bytes, outcome: Outcome, values: list[Any]) -> Results:
    """What a job came to as programs read it. ``values``: what JSON can carry."""
    line = outcome.line
    return Results(
        job=to_text(job),
        name=line.name,
        state=line.state,
        units=line.units,
        done=line.done,
        failed=line.failed,
        disputed=line.disputed,
        conflicts=line.conflicts,
        units_per_node={to_text(node): units for node, units in line.workers.items()},
        results=tuple(values),
        failures=tuple(Failure(failed.number, str(failed.reason), failed.type, failed.message) for failed in outcome.failures),
        fuel={str(number): outcome.fuel[number] for number in sorted(outcome.fuel)} if outcome.fuel else msgspec.UNSET,
    )
