"""Attacks as units of the ``native`` runtime: one unit for each, so that one that is killed takes no other along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from p2pgrid.model.values import decode_value, encode_value
from p2pgrid.runtimes.selftest.attacks.base import ABSENT, BROKEN, GAINED, REFUSED, Attack, Canary
from p2pgrid.runtimes.selftest.report import Attempt
from p2pgrid.runtimes.selftest.source import unit_source
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, Workers

SUBMITTER = b"selftest"
UNIT_S = 20.0
"""Wall seconds for one attack: on a busy machine, whoever ends a bomb may come late."""
_BREACH = {GAINED: "it got through: ", BROKEN: "the attack itself failed: "}


class Told(NamedTuple):
    """How a unit ended, and what it said."""

    outcome: Outcome
    value: Any


async def run_units(workers: Workers, task: BatchTask) -> list[Told]:
    """Run a batch; how each unit of it ended, in order. Raises what the pool raises."""
    told: list[Told] = []

    def collect(chunk: BatchChunk) -> None:
        told.extend(Told(Outcome(code), decode_value(payload)) for code, payload in zip(chunk.outcomes, chunk.payloads, strict=True))
        for file in chunk.files:
            file.path.unlink(missing_ok=True)

    await workers.run(task, collect)
    return told


async def attack_natively(
    workers: Workers,
    attacks: Sequence[Attack],
    canary: Canary,
    *,
    job: bytes,
    more: Mapping[str, str] | None = None,
    unit_s: float = UNIT_S,
) -> list[Attempt]:
    """Attempt each of the attacks in a unit of its own, one after the other, each for at most ``unit_s`` seconds.

    ``more``: further attack modules. Raises what the pool raises.
    """
    code = Code(source=unit_source(more), file_name="selftest.py")
    items = [msgspec.Raw(encode_value({"attack": attack.name, "canary": canary})) for attack in attacks]
    told = await run_units(
        workers,
        BatchTask(job=JobKey(SUBMITTER, job), code=code, inputs=items, timeout_s=unit_s, memory_bytes=canary["limit_bytes"]),
    )
    return found_in((attack, *_verdict(attack, answer)) for attack, answer in zip(attacks, told, strict=True))


def _verdict(attack: Attack, told: Told) -> tuple[str, str]:
    if told.outcome == Outcome.OK:
        if isinstance(told.value, list) and len(told.value) == 2:
            return str(told.value[0]), str(told.value[1])
        return BROKEN, f"it answered {told.value!r}"[:200]
    return ended_verdict(attack, told)


def ended_verdict(attack: Attack, told: Told) -> tuple[str, str]:
    """(status, detail) of an attack whose unit gave no answer: refused only if its end is how such an attack is held."""
    said = told.value.get("message", "") if isinstance(told.value, dict) else ""
    detail = f"{told.outcome.name.lower().replace('_', ' ')}: {said}"[:200]
    return (REFUSED if attack.ends else BROKEN), detail


def found_in(said: Iterable[tuple[Attack, str, str]]) -> list[Attempt]:
    """Attempts by what the attack code said; what this machine does not have was not attempted."""
    attempts = []
    for attack, status, detail in said:
        if status != ABSENT:
            held = status == REFUSED
            attempts.append(Attempt(attack.name, held, detail if held else _BREACH.get(status, f"{status}: ") + detail))
    return attempts
