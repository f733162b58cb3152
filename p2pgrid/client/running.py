"""Following a job to its end, and handing its results on in order, whatever order they come in."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from p2pgrid.client.channel import Channel
from p2pgrid.errors import UnreachableError
from p2pgrid.model.ids import BlobId, JobId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.values import decode_value
from p2pgrid.model.work import FUEL_BYTES, OK
from p2pgrid.runtimes.command import decode_command_result
from p2pgrid.services.results import failure_of, reason_of
from p2pgrid.wire.owner import FollowEvent, JobLine, ResultSpan

FAILURES_SHOWN = 5


class UnitFailure(NamedTuple):
    """A unit without a value."""

    number: int
    reason: Reason
    type: str
    message: str
    traceback: str


@dataclass
class Outcome:
    """How a job ended."""

    line: JobLine
    failures: list[UnitFailure] = field(default_factory=list)
    """The first few; ``line.failed`` counts all."""
    results: int = 0
    note: str = ""
    fuel: dict[int, int] = field(default_factory=dict)
    """What the units behind the results burnt, by number within the results; of those whose runtime counts."""


OnValue = Callable[[int, Any], None]
"""Called with (number within the results, value), in order."""
OnEvent = Callable[[FollowEvent], None]


async def collect(
    channel: Channel,
    job: JobId,
    *,
    wait: bool,
    on_value: OnValue,
    on_event: OnEvent = lambda event: None,
) -> Outcome:
    """Follow a job; values arrive at ``on_value`` in the order of their units, as soon as that order allows.

    A unit that failed leaves a gap that is passed over. Commands' values are what they wrote to stdout.
    """
    held: dict[int, tuple[ResultSpan, int]] = {}
    following = 0
    outcome: Outcome | None = None
    failures: dict[int, UnitFailure] = {}
    fuel: dict[int, int] = {}
    results = 0
    async for event in channel.follow(job, wait=wait):
        outcome = Outcome(event.line, note=event.note)
        on_event(event)
        for span in event.results:
            _note_failures(span, failures)
            if span.first >= event.line.final_first:
                held[span.first - event.line.final_first] = (span, 0)
        while following in held:
            span, _ = held.pop(following)
            results += await _hand_on(channel, span, event.line, following, on_value)
            _note_fuel(span, following, fuel)
            following += len(span.outcomes)
    if outcome is None:
        raise UnreachableError("the node said nothing about the job", reason=Reason.CLOSED)
    for first in sorted(held):
        results += await _hand_on(channel, held[first][0], outcome.line, first, on_value)
        _note_fuel(held[first][0], first, fuel)
    outcome.failures = [failures[number] for number in sorted(failures)]
    outcome.results, outcome.fuel = results, fuel
    return outcome


def _note_failures(span: ResultSpan, failures: dict[int, UnitFailure]) -> None:
    if span.outcomes.count(OK) == len(span.outcomes):
        return
    for position, outcome in enumerate(span.outcomes):
        if outcome != OK and (len(failures) < FAILURES_SHOWN or span.first + position < max(failures)):
            failure = failure_of(outcome, bytes(span.values[position]))
            reason = reason_of(outcome, failure)
            number = span.first + position
            failures[number] = UnitFailure(number, reason, failure.type, failure.message or reason.sentence, failure.traceback)
            while len(failures) > FAILURES_SHOWN:
                failures.pop(max(failures))


def _note_fuel(span: ResultSpan, number: int, fuel: dict[int, int]) -> None:
    if len(span.fuel) != FUEL_BYTES * len(span.outcomes):
        return
    for position, burnt in enumerate(struct.unpack(f"<{len(span.outcomes)}Q", span.fuel)):
        if burnt:
            fuel[number + position] = burnt


async def _hand_on(channel: Channel, span: ResultSpan, line: JobLine, number: int, on_value: OnValue) -> int:
    blobs = {position: (blob, holders) for position, blob, holders in span.blobs}
    handed = 0
    for position, outcome in enumerate(span.outcomes):
        if outcome != OK:
            continue
        raw: bytes | msgspec.Raw = span.values[position]
        if position in blobs:
            raw = await read_blob(channel, *blobs[position])
        value: Any = decode_command_result(raw).stdout if line.runtime in ("command", "wasm") else decode_value(raw)
        on_value(number + position, value)
        handed += 1
    return handed


async def read_blob(channel: Channel, blob: bytes, holders: tuple[bytes, ...]) -> bytes:
    """The content of a blob, in memory."""
    buffer = io.BytesIO()
    await channel.get(BlobId(blob), buffer, holders)
    return buffer.getvalue()
