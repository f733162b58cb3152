"""Running the units of a native job: one tight loop, results appended to one buffer.

A unit costs a store into the shared progress bytes, a clock, the call, and the encoding of its result. Results are sent when
enough bytes or enough time has gathered, looked at after each unit: no timer, and no frame per unit.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from mmap import mmap
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from ...errors import BadDataError, MalformedError
from ...model.values import FileRef, ValueDecoder, ValueEncoder
from . import frames
from .failures import describe_exception
from .files import Folders

if TYPE_CHECKING:
    from typing import Protocol

    class Sink(Protocol):
        """Where frames go."""

        def write(self, message: Any) -> None:
            """Take one frame; what it holds may change afterwards."""


_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_QUICK_S = 2e-6
"""A unit this short had no time to make a file: creating one takes longer."""


class UnitRunner:
    """Runs batches of one loaded module."""

    def __init__(self, load: frames.Load, module: ModuleType, folders: Folders, progress: mmap | bytearray, channel: Sink) -> None:
        self._module = module
        self._entry = load.entry
        self._folders = folders
        self._progress = progress
        self._channel = channel
        self._seed = 0
        self._files: dict[bytes, str] = {}
        self._inputs_by_path: dict[str, FileRef] = {}
        self._encoder = ValueEncoder(lambda path: folders.take(path, self._inputs_by_path))
        self._decoder = ValueDecoder(self._on_file)
        self._list_decoder = ValueDecoder(self._on_file, list[Any])

    def run(self, run: frames.Run) -> None:
        """Run the units of one frame and send what they return."""
        self._files = run.files
        self._seed = int.from_bytes(run.seed[:8], "big")
        self._inputs_by_path.clear()
        self._folders.forget_inputs()
        outbound = _Outbound(run.sequence, run.first, self._channel)
        try:
            call = self._call_for(run.kind)
            items: list[Any] = self._list_decoder.decode(run.inputs)
            decode: Callable[[Any], Any] | None = None
        except NameError as error:
            call, decode = _raiser(error), None
            items = msgspec.msgpack.decode(run.inputs, type=list[msgspec.Raw])
        except MalformedError:
            # One bad input must not take the others along: decode them one by one, inside of their units.
            items, decode = msgspec.msgpack.decode(run.inputs, type=list[msgspec.Raw]), self._decoder.decode
        whole = self._loop(run, items, call if decode is None else _decode_first(call, decode), outbound)
        frames.PROGRESS.pack_into(self._progress, 0, frames.IDLE, 0.0)
        outbound.flush(time.monotonic())
        if not whole:
            self._channel.write(frames.Stopped(run.sequence))

    def _loop(self, run: frames.Run, items: list[Any], call: Callable[[Any], Any], outbound: _Outbound) -> bool:
        """Whether all units ran: False when the node asked to stop."""
        mark, clock, progress, stop_at = frames.PROGRESS.pack_into, time.monotonic, self._progress, frames.STOP_AT
        append, folders, modules = self._encoder.append, self._folders, sys.modules
        buffer, outcomes, limit = outbound.buffer, outbound.outcomes, run.result_bytes_max
        end = clock()
        if progress[stop_at]:
            return False
        for position, item in enumerate(items):
            index = run.first + position
            started = end
            mark(progress, 0, index, started)
            if "random" in modules:
                self._seed_random(index)
            before = len(buffer)
            try:
                append(call(item), buffer)
                outcome = frames.OK if len(buffer) - before <= limit else frames.TOO_LARGE
            except BadDataError as error:
                outcome = frames.UNENCODABLE
                buffer += frames.describe("BadDataError", f"{error.message}{f' ({error.hint})' if error.hint else ''}")
            except BaseException as error:
                outcome = frames.RAISED
                buffer += describe_exception(error, skip_frames=1)
            if outcome == frames.TOO_LARGE:
                size_bytes = len(buffer) - before
                del buffer[before:]
                buffer += frames.describe("TooLarge", f"the result has {size_bytes} bytes, more than the {limit} allowed")
            if folders.moved:
                outbound.keep_files(index, outcome, folders)
            outcomes.append(outcome)
            end = clock()
            if end - started > _QUICK_S:
                # A thousand quick units are over sooner than anybody could ask for an end: they are not asked after each.
                if progress[stop_at] and position + 1 < len(items):
                    return False
                folders.clean(end)
                end = clock()
            if len(buffer) >= frames.FLUSH_BYTES or end - outbound.flushed > frames.FLUSH_S:
                outbound.flush(end)
        return True

    def _call_for(self, kind: int) -> Callable[[Any], Any]:
        """The function that takes one input of this kind. Raises NameError when the job does not define it."""
        name = {frames.MAP: self._entry, frames.REDUCE: "reduce", frames.FINISH: "finish"}.get(kind, "")
        function: Callable[..., Any] | None = getattr(self._module, name, None) if name else None
        if function is None or not callable(function):
            raise NameError(f"the job defines no function {name or kind}")
        if kind == frames.REDUCE:
            return functools.partial(functools.reduce, function)
        return function

    def _on_file(self, reference: FileRef) -> Any:
        from pathlib import Path

        place = self._files.get(reference.blob)
        if place is None:
            raise ValueError(f"the file {reference.name} was not brought along")
        place = self._folders.named_input(place, reference)
        self._inputs_by_path[place] = reference
        return Path(place)

    def _seed_random(self, index: int) -> None:
        """Make chance a function of job and unit, so that honest replicas agree. Only where random was imported: it costs 6 µs."""
        seed = (self._seed ^ (index * _GOLDEN)) & _MASK
        sys.modules["random"].seed(seed)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed(seed & 0xFFFFFFFF)


class _Outbound:
    """Results on their way: what was gathered since the last frame."""

    def __init__(self, sequence: int, first: int, channel: Sink) -> None:
        self._sequence = sequence
        self._first = first
        self._channel = channel
        self._files: list[tuple[int, bytes, int, str]] = []
        self.buffer = bytearray()
        self.outcomes = bytearray()
        self.flushed = time.monotonic()

    def keep_files(self, index: int, outcome: int, folders: Folders) -> None:
        """Name the files of a unit, or drop them with its result."""
        if outcome != frames.OK:
            folders.drop_moved()
        self._files.extend((index, *moved) for moved in folders.moved)
        folders.moved.clear()

    def flush(self, now: float) -> None:
        """Send what was gathered, if anything; ``now`` in seconds, monotonic."""
        count = len(self.outcomes)
        if count:
            payloads = msgspec.Raw(frames.array_header(count) + self.buffer)
            run_us = int((now - self.flushed) * 1e6)
            self._channel.write([frames.DONE_TAG, self._sequence, self._first, bytes(self.outcomes), payloads, run_us, self._files])
            self._first += count
            self._files.clear()
            self.buffer.clear()
            self.outcomes.clear()
        self.flushed = now


def _raiser(error: Exception) -> Callable[[Any], Any]:
    def raise_it(item: Any) -> Any:
        raise error

    return raise_it


def _decode_first(call: Callable[[Any], Any], decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decode_and_call(raw: Any) -> Any:
        try:
            item = decode(raw)
        except MalformedError as error:
            raise ValueError(f"the input cannot be read: {error}") from None
        return call(item)

    return decode_and_call
