"""Results of units that ran in an engine, on their way to the node: gathered, and sent when enough bytes or time has come together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from . import frames

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class Sink(Protocol):
        """Where frames go."""

        def write(self, message: Any) -> None:
            """Take one frame; what it holds may change afterwards."""


class Outbound:
    """What was gathered since the last frame."""

    def __init__(self, sequence: int, first: int, channel: Sink) -> None:
        self._sequence = sequence
        self._first = first
        self._channel = channel
        self._payloads = bytearray()
        self._outcomes = bytearray()
        self._fuel = bytearray()
        self._files: list[tuple[int, bytes, int, str]] = []
        self._flushed = time.monotonic()

    def add(self, outcome: int, payload: bytes | bytearray, fuel: int) -> None:
        """The next unit has ended. Sends what there is when that is enough."""
        self.add_chunk(bytes((outcome,)), payload, fuel.to_bytes(8, "little"))

    def add_chunk(
        self, outcomes: bytes, payloads: bytes | bytearray, fuel: bytes, files: Iterable[tuple[int, bytes, int, str]] = ()
    ) -> None:
        """The next units have ended: their columns, and their files as a frame has them. Sends what there is when that is enough."""
        self._outcomes += outcomes
        self._payloads += payloads
        self._fuel += fuel
        self._files.extend(files)
        now = time.monotonic()
        if len(self._payloads) >= frames.FLUSH_BYTES or now - self._flushed > frames.FLUSH_S:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Send what was gathered, if anything; ``now`` in seconds, monotonic."""
        count = len(self._outcomes)
        if count:
            payloads = msgspec.Raw(frames.array_header(count) + self._payloads)
            run_us = int((now - self._flushed) * 1e6)
            outcomes, fuel = bytes(self._outcomes), bytes(self._fuel)
            self._channel.write([frames.DONE_TAG, self._sequence, self._first, outcomes, payloads, run_us, self._files, fuel])
            self._first += count
            for gathered in (self._outcomes, self._payloads, self._fuel, self._files):
                gathered.clear()
        self._flushed = now
