"""Running the units of a Python job inside of WebAssembly: what they get is CPython and its library, and not one way out.

Units run in chunks, so that the cost of a call is shared: the first alone, then as many as fit into some milliseconds. When a chunk
traps or is late, its guest is thrown away and its units are run again one by one, so that only the guilty one fails. Jobs whose fuel is
to be compared get a fresh guest for every unit: result and fuel then depend on nothing but the unit.

A guest is hostile: what it answers goes through ``guest_answers`` before anything is done with it.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import time
from array import array
from mmap import mmap
from typing import TYPE_CHECKING

import msgspec

from ...errors import MalformedError
from ...model.values import FileRef, ValueDecoder
from . import frames
from .engine import FUEL_UNBOUNDED, Engine, Failure
from .files import CHUNK_BYTES, Folders
from .guest_answers import FAILURE_BYTES_MAX, Answer, check_answer, check_description
from .guest_calls import Guest, Runner
from .outbound import Outbound

if TYPE_CHECKING:
    from .outbound import Sink

MEMORY_BYTES_DEFAULT = 1 << 30
"""For a job that does not say."""
CHUNK_S = 0.02
"""How long a chunk of units should take."""
CHUNK_UNITS_MAX = 4096
CHUNK_INPUT_BYTES_MAX = 1 << 20
_CHUNK_DEADLINE_S = 1.0
"""A chunk of units that takes longer holds one that is much slower than the others: they are run one by one."""
_LOAD_S = 30.0
_PLACED_BYTES_MAX = 64 << 20
"""Input files that a guest keeps at one time, unless one unit needs more."""
HEADER = struct.Struct("<BQQI")
"""How a request begins: kind, index of the first unit, largest result in bytes, number of units. The seed follows, then the lengths."""
SEED_BYTES = 32
_RETURNED_BYTES_MAX = 65 << 20
"""Room in an answer for what units print and for the files they return."""


class LoadFailure(Exception):
    """The job's top level failed; ``payload`` is the guest's description."""

    def __init__(self, payload: bytes) -> None:
        super().__init__("the job's code cannot be loaded")
        self.payload = payload


def prepare() -> None:
    """All that is slow, before the process is confined."""
    import blake3  # noqa: F401 - returned files are hashed with it

    Engine().close()


class GuestRunner:
    """Runs batches of one job in guests."""

    def __init__(self, load: frames.Load, folders: Folders, progress: mmap | bytearray, channel: Sink, *, isa: str = "native") -> None:
        """Starts a guest and loads the job's code. Raises Failure, and LoadFailure when the code itself fails."""
        self._load = load
        self._folders = folders
        self._progress = progress
        self._channel = channel
        self._memory_bytes = load.memory_bytes or MEMORY_BYTES_DEFAULT
        self._engine = Engine(isa)
        self._runner = Runner(self._engine, load.program)
        self._chunk_units = 1
        self._placed: dict[bytes, int] = {}
        """Files that the present guest holds, and their sizes."""
        self._guest: Guest | None = None
        self._code = b""
        try:
            self._fresh_guest(FUEL_UNBOUNDED)
        except BaseException:
            self.close()
            raise

    def run(self, run: frames.Run) -> None:
        """Run the units of one frame and send what they return."""
        raws = msgspec.msgpack.decode(run.inputs, type=list[msgspec.Raw])
        outbound = Outbound(run.sequence, run.first, self._channel)
        position, alone_until, count = 0, 0, len(raws)
        single = bool(run.files) or self._load.fresh or self._load.fuel_max > 0
        whole = True
        while position < count:
            if self._progress[frames.STOP_AT]:
                whole = False
                break
            started = time.monotonic()
            frames.PROGRESS.pack_into(self._progress, 0, run.first + position, started)
            alone = single or position < alone_until
            chunk = raws[position : position + 1] if alone else self._next_chunk(raws, position)
            if len(chunk) == 1:
                self._run_alone(run, position, chunk[0], outbound)
            elif not self._run_together(run, position, chunk, outbound):
                alone_until = position + len(chunk)
                continue
            position += len(chunk)
            if not alone:
                self._adapt(len(chunk), time.monotonic() - started)
        frames.PROGRESS.pack_into(self._progress, 0, frames.IDLE, 0.0)
        outbound.flush(time.monotonic())
        if not whole:
            self._channel.write(frames.Stopped(run.sequence))

    def close(self) -> None:
        """End the guest, and the timer of the engine."""
        self._drop_guest()
        self._engine.close()

    def _next_chunk(self, raws: list[msgspec.Raw], position: int) -> list[msgspec.Raw]:
        """As many units as are expected to fit into one chunk, at least one."""
        chunk = raws[position : position + self._chunk_units]
        total = 0
        for taken, raw in enumerate(chunk):
            total += len(raw)
            if total > CHUNK_INPUT_BYTES_MAX and taken:
                return chunk[:taken]
        return chunk

    def _adapt(self, units: int, passed_s: float) -> None:
        wanted = int(CHUNK_S * units / max(passed_s, 1e-6))
        self._chunk_units = max(1, min(wanted, 4 * units, CHUNK_UNITS_MAX))

    def _run_together(self, run: frames.Run, position: int, chunk: list[msgspec.Raw], outbound: Outbound) -> bool:
        """Run some units in one call. False when that failed: they have to be run one by one."""
        deadline_s = min(run.timeout_s, _CHUNK_DEADLINE_S) if run.timeout_s > 0 else _CHUNK_DEADLINE_S
        try:
            guest = self._guest or self._fresh_guest(FUEL_UNBOUNDED)
            before = guest.fuel
            answer = self._ask(guest, run, position, chunk, deadline_s)
        except (Failure, LoadFailure):
            self._drop_guest()
            return False
        share, rest = divmod(max(0, before - guest.fuel), len(chunk))
        fuel = share.to_bytes(8, "little") * (len(chunk) - 1) + (share + rest).to_bytes(8, "little")
        _add(answer, run.first + position, fuel, outbound)
        return True

    def _run_alone(self, run: frames.Run, position: int, raw: msgspec.Raw, outbound: Outbound) -> None:
        """Run one unit; whatever happens is its own outcome."""
        full = self._load.fuel_max or FUEL_UNBOUNDED
        try:
            if self._load.fresh:
                self._drop_guest()
            guest = self._guest or self._fresh_guest(full)
            if not self._load.fresh:
                guest.fuel = full
            if run.files:
                self._place_files(guest, run, raw)
            answer, failed = self._ask(guest, run, position, [raw], run.timeout_s), False
        except (Failure, LoadFailure) as failure:
            outcome = failure.outcome if isinstance(failure, Failure) else frames.RAISED
            answer, failed = Answer(bytes((outcome,)), failure.payload, []), True
        spent = max(0, full - self._guest.fuel) if self._guest is not None else 0
        if failed:
            self._drop_guest()
        _add(answer, run.first + position, spent.to_bytes(8, "little"), outbound)

    def _ask(self, guest: Guest, run: frames.Run, position: int, chunk: list[msgspec.Raw], timeout_s: float) -> Answer:
        """Have the guest run these units. Raises Failure."""
        lengths = array("I", map(len, chunk))
        if sys.byteorder == "big":
            lengths.byteswap()
        header = HEADER.pack(run.kind, run.first + position, run.result_bytes_max, len(chunk))
        request = b"".join((header, _seed_of(run), lengths.tobytes(), *chunk))
        answer_bytes_max = len(chunk) * (run.result_bytes_max + FAILURE_BYTES_MAX) + _RETURNED_BYTES_MAX
        raw = guest.call("run", request, timeout_s=timeout_s, answer_bytes_max=min(answer_bytes_max, self._memory_bytes))
        answer, log = check_answer(raw, len(chunk), run.result_bytes_max, self._folders)
        if log:
            sys.stdout.write(log.decode("utf-8", "replace"))
        return answer

    def _fresh_guest(self, fuel: int) -> Guest:
        """A guest with the job's code in it; it becomes the present one. Raises Failure, LoadFailure."""
        self._drop_guest()
        load = self._load
        guest = self._guest = self._runner.guest(self._memory_bytes, fuel)
        if not self._code:
            # Compiled once, by a guest: the others are handed the code, which loads many times faster.
            compiled = guest.call("compile", load.source, load.file_name, timeout_s=_LOAD_S, answer_bytes_max=self._memory_bytes)
            if compiled[:1] != b"\0":
                raise LoadFailure(_description(compiled[1:]))
            self._code = compiled[1:]
        # Chance at the top level is decided by the code alone: which job runs it is not known yet.
        seed = hashlib.sha256(load.source.encode("utf-8", "surrogatepass")).digest()
        request = msgspec.msgpack.encode([load.source, load.file_name, load.entry, seed, self._code])
        failed = guest.call("load", request, timeout_s=_LOAD_S, answer_bytes_max=FAILURE_BYTES_MAX)
        if failed:
            raise LoadFailure(_description(failed))
        return guest

    def _drop_guest(self) -> None:
        self._placed.clear()
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def _place_files(self, guest: Guest, run: frames.Run, raw: msgspec.Raw) -> None:
        """Hand over the files that a unit's input refers to. Raises Failure."""
        wanted: dict[bytes, FileRef] = {}

        def note(reference: FileRef) -> FileRef:
            wanted[reference.blob] = reference
            return reference

        try:
            ValueDecoder(note).decode(raw)
        except MalformedError:
            return  # The guest says so, in the unit's own name.
        missing = sum(reference.size_bytes for blob, reference in wanted.items() if blob not in self._placed)
        if self._placed and sum(self._placed.values()) + missing > _PLACED_BYTES_MAX:
            _place(guest, b"", b"")
            self._placed.clear()
        for blob, reference in wanted.items():
            if blob in run.files and blob not in self._placed:
                self._placed[blob] = _place_file(guest, blob, run.files[blob], reference)


def _add(answer: Answer, first: int, fuel: bytes, outbound: Outbound) -> None:
    """The units of a chunk have ended; ``first`` is the index of the first in its job."""
    files = [(first + unit, blob, size_bytes, name) for unit, blob, size_bytes, name in answer.files]
    outbound.add_chunk(answer.outcomes, answer.payloads, fuel, files)


def _seed_of(run: frames.Run) -> bytes:
    """The job's seed in the size that guests expect."""
    return run.seed if len(run.seed) == SEED_BYTES else run.seed[:SEED_BYTES].ljust(SEED_BYTES, b"\0")


def _description(payload: bytes) -> bytes:
    """A guest's description of an error, if it is one. Raises Failure."""
    try:
        return check_description(payload)
    except MalformedError as error:
        raise Failure(frames.RAISED, "Trap", error.message) from None


def _place_file(guest: Guest, blob: bytes, place: str, reference: FileRef) -> int:
    """Copy a file into a guest, piece by piece. Its size. Raises Failure."""
    size_bytes = 0
    try:
        with open(place, "rb", buffering=0) as file:
            while piece := file.read(CHUNK_BYTES):
                _place(guest, blob, piece)
                size_bytes += len(piece)
    except OSError as error:
        why = f"the file {reference.name} cannot be read: {error.strerror or error}"
        raise Failure(frames.RAISED, "OSError", why) from None
    if not size_bytes:
        _place(guest, blob, b"")
    return size_bytes


def _place(guest: Guest, blob: bytes, piece: bytes) -> None:
    failed = guest.call("place", msgspec.msgpack.encode([blob, piece]), timeout_s=_LOAD_S, answer_bytes_max=FAILURE_BYTES_MAX)
    if failed:
        raise Failure(frames.RAISED, "MemoryError", "the unit's memory cannot hold its input files")
