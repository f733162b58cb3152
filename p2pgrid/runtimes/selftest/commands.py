"""Attacks as programs of the ``command`` runtime: the same code in an interpreter that the unit starts, and what only programs can do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

import msgspec

from p2pgrid.errors import MalformedError
from p2pgrid.runtimes.command import CommandResult, encode_command
from p2pgrid.runtimes.selftest.attacks.base import BROKEN, REFUSED, Attack, Canary
from p2pgrid.runtimes.selftest.native import SUBMITTER, UNIT_S, Told, ended_verdict, found_in, run_units
from p2pgrid.runtimes.selftest.report import Attempt
from p2pgrid.runtimes.selftest.source import program_source
from p2pgrid.runtimes.tasks import BatchTask, Code, JobKey, Kind, Outcome, Workers

_START = "import sys; exec(compile(sys.stdin.read(), 'selftest', 'exec'))"


async def attack_by_commands(
    workers: Workers,
    groups: Sequence[Sequence[Attack]],
    canary: Canary,
    *,
    job: bytes,
    python: str = "",
    more: Mapping[str, str] | None = None,
    unit_s: float = UNIT_S,
) -> list[Attempt]:
    """Run one program for each group of attacks, one after the other. ``python``: the interpreter. Raises what the pool raises."""
    units = [_unit(group, canary, python or sys.executable, more) for group in groups]
    told = await run_units(
        workers,
        BatchTask(
            job=JobKey(SUBMITTER, job),
            code=Code(),
            runtime="command",
            kind=Kind.COMMAND,
            inputs=units,
            timeout_s=unit_s,
            memory_bytes=canary["limit_bytes"],
        ),
    )
    said = []
    for group, answer in zip(groups, told, strict=True):
        said += _read(group, answer)
    return found_in(said)


def _unit(group: Sequence[Attack], canary: Canary, python: str, more: Mapping[str, str] | None) -> msgspec.Raw:
    item = json.dumps({"attacks": [attack.name for attack in group], "canary": canary})
    # Without links in its path: those of a virtual environment need not be there.
    argv = [os.path.realpath(python), "-I", "-S", "-c", _START]
    return msgspec.Raw(encode_command(argv, stdin=program_source(item, more).encode()))


def _read(group: Sequence[Attack], told: Told) -> list[tuple[Attack, str, str]]:
    if told.outcome != Outcome.OK:
        return [(attack, *_ended(attack, told)) for attack in group]
    try:
        answers = json.loads(CommandResult(*told.value).stdout)
        by_name = {str(name): (str(status), str(detail)) for name, status, detail in answers}
    except (ValueError, TypeError, MalformedError):
        by_name = {}
    return [(attack, *by_name.get(attack.name, (BROKEN, "the program said nothing of it"))) for attack in group]


def _ended(attack: Attack, told: Told) -> tuple[str, str]:
    """A program that was killed raises: only a signal counts as its end, an exit status says that the attack code failed."""
    status, detail = ended_verdict(attack, told)
    if status == REFUSED and told.outcome == Outcome.RAISED and "killed" not in detail:
        return BROKEN, detail
    return status, detail
