"""What one WebAssembly unit sees of the world, and all that can be said about it: the same on every machine, and nothing real.

Time starts at a fixed moment and moves by a fixed step with each look at it, and by as much as the unit sleeps. Chance comes from
the job's seed and the unit's index. What the unit prints is kept up to a bound. Every access to the unit's memory is checked here, and
every call into the host is paid for in fuel, since it does work that the engine does not count.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import wasmtime
from blake3 import blake3

from . import frames
from .engine import Failure
from .tree import File, Folder, Refused, Tree

EPOCH_NS = 1_577_836_800 * 10**9
"""Where the unit's calendar starts: 2020-01-01 00:00 UTC."""
TICK_NS = 1000
"""How far time moves with each look at a clock."""
ELAPSED_NS_MAX = 1 << 62
CALL_FUEL = 10_000
"""What a call into the host costs, and for each 8 bytes that it moves one more."""
ERRORS_BYTES_MAX = 4096
"""How much of the end of stderr is kept."""
DESCRIPTORS_MAX = 128
VECTORS_MAX = 1024
FAULT, MFILE, BADF = 21, 33, 8
_PART_BYTES = 1 << 20
_RANDOM_CONTEXT = "p2pgrid/1/unit-random"
_VECTOR = struct.Struct("<II")


@dataclass(slots=True)
class Descriptor:
    """An open file, folder or stream."""

    node: File | Folder | None
    """None for a stream."""
    readable: bool = False
    writable: bool = False
    appends: bool = False
    position: int = 0
    stream: str = ""
    preopened: bool = False


class World:
    """The state of one unit's run."""

    def __init__(
        self,
        *,
        seed: bytes,
        index: int,
        arguments: Sequence[bytes] = (),
        stdin: bytes = b"",
        tree: Tree | None = None,
        output_bytes_max: int,
    ) -> None:
        """``seed``: of the job; ``index``: of the unit in it; ``output_bytes_max``: what stdout may hold."""
        self.arguments = [argument + b"\0" for argument in arguments]
        self.tree = tree or Tree()
        self.output = bytearray()
        self.errors = bytearray()
        self.elapsed_ns = 0
        self._output_bytes_max = output_bytes_max
        self._chance = seed + index.to_bytes(8, "little")
        self._chance_position = 0
        self._store: wasmtime.Store | None = None
        self._memory: wasmtime.Memory | None = None
        self._stdin = stdin
        self.descriptors: dict[int, Descriptor] = {
            0: Descriptor(None, readable=True, stream="stdin"),
            1: Descriptor(None, writable=True, stream="stdout"),
            2: Descriptor(None, writable=True, stream="stderr"),
            3: Descriptor(self.tree.root, readable=True, preopened=True),
        }

    def attach(self, store: wasmtime.Store, memory: wasmtime.Memory | None = None) -> None:
        """Say which store runs, and where its memory is once that is known."""
        self._store, self._memory = store, memory

    @property
    def has_memory(self) -> bool:
        """Whether the memory is known."""
        return self._memory is not None

    def find_memory(self, caller: wasmtime.Caller) -> None:
        """Learn where the memory is from a call that comes before the instance is whole."""
        memory = caller.get("memory")
        if isinstance(memory, wasmtime.Memory):
            self._memory = memory

    def close(self) -> None:
        """Let go of files and of the store."""
        self.tree.close()
        self.descriptors.clear()
        self._store = self._memory = None

    # Fuel

    def pay_for(self, size_bytes: int) -> None:
        """Take the price of moving so many bytes from the unit's fuel. Raises Failure when it has none left."""
        self.pay(size_bytes >> 3)

    def pay(self, price: int) -> None:
        """Take this much of the unit's fuel. Raises Failure when it has none left."""
        assert self._store is not None
        left = self._store.get_fuel()
        self._store.set_fuel(max(0, left - price))
        if left < price:
            raise Failure(frames.RAISED, "OutOfFuel", "the unit burnt all the fuel it was given")

    # Memory

    def read(self, address: int, size_bytes: int) -> bytes:
        """A copy of the unit's memory. Raises Refused (fault) for what is not all inside of it."""
        if not size_bytes:
            return b""
        return ctypes.string_at(self._place(address, size_bytes), size_bytes)

    def write(self, address: int, data: bytes) -> None:
        """Change the unit's memory. Raises Refused (fault) for what is not all inside of it, before anything is changed."""
        if data:
            ctypes.memmove(self._place(address, len(data)), data, len(data))

    def check(self, address: int, size_bytes: int) -> None:
        """Raises Refused (fault) unless all of it is inside of the unit's memory."""
        if size_bytes:
            self._place(address, size_bytes)

    def write_u32(self, address: int, number: int) -> None:
        """Raises Refused (fault)."""
        self.write(address, (number & 0xFFFFFFFF).to_bytes(4, "little"))

    def write_u64(self, address: int, number: int) -> None:
        """Raises Refused (fault)."""
        self.write(address, number.to_bytes(8, "little"))

    def vectors(self, address: int, count: int) -> list[tuple[int, int]]:
        """(address, size in bytes) of each part of a scattered buffer. Raises Refused when there are too many, or one is not inside."""
        if count > VECTORS_MAX:
            raise Refused(28)
        parts = list(_VECTOR.iter_unpack(self.read(address, count * _VECTOR.size)))
        for part in parts:
            self.check(*part)
        return parts

    def _place(self, address: int, size_bytes: int) -> int:
        """Where this part of the unit's memory lies in ours."""
        if self._memory is None or self._store is None or address + size_bytes > self._memory.data_len(self._store):
            raise Refused(FAULT)
        return ctypes.addressof(self._memory.data_ptr(self._store).contents) + address

    # Time and chance

    def now_ns(self, clock: int) -> int:
        """Look at a clock: 0 is the calendar, 1 to 3 count from the unit's start."""
        self.advance(TICK_NS)
        return self.elapsed_ns + (EPOCH_NS if clock == 0 else 0)

    def advance(self, step_ns: int) -> None:
        """Let time pass."""
        self.elapsed_ns = min(self.elapsed_ns + step_ns, ELAPSED_NS_MAX)

    def fill_with_chance(self, address: int, size_bytes: int) -> None:
        """Random bytes, the same ones in each run of this unit."""
        self.check(address, size_bytes)
        while size_bytes:
            part_bytes = min(size_bytes, _PART_BYTES)
            digest = blake3(self._chance, derive_key_context=_RANDOM_CONTEXT)
            self.write(address, digest.digest(length=part_bytes, seek=self._chance_position))
            self._chance_position += part_bytes
            address += part_bytes
            size_bytes -= part_bytes

    # Streams and descriptors

    def descriptor(self, number: int) -> Descriptor:
        """An open descriptor. Raises Refused."""
        found = self.descriptors.get(number)
        if found is None:
            raise Refused(BADF)
        return found

    def open(self, descriptor: Descriptor) -> int:
        """The lowest free number. Raises Refused when too many are open."""
        if len(self.descriptors) >= DESCRIPTORS_MAX:
            raise Refused(MFILE)
        number = next(number for number in range(DESCRIPTORS_MAX) if number not in self.descriptors)
        self.descriptors[number] = descriptor
        return number

    def content(self, descriptor: Descriptor, start: int, size_bytes: int) -> bytes:
        """What a descriptor has at ``start``."""
        if descriptor.node is None:
            return self._stdin[start : start + size_bytes]
        assert isinstance(descriptor.node, File)
        return descriptor.node.read(start, size_bytes)

    def size_bytes(self, descriptor: Descriptor) -> int:
        """How much a descriptor has to read."""
        if descriptor.node is None:
            return len(self._stdin) if descriptor.stream == "stdin" else 0
        return descriptor.node.size_bytes if isinstance(descriptor.node, File) else 0

    def print(self, stream: str, vectors: list[tuple[int, int]]) -> None:
        """Keep what the unit prints. Raises Failure when stdout holds more than it may."""
        size_bytes = sum(part for _, part in vectors)
        if stream == "stdout":
            if len(self.output) + size_bytes > self._output_bytes_max:
                raise Failure(frames.TOO_LARGE, "TooLarge", f"the output has more than the {self._output_bytes_max} bytes allowed")
            for part in self.parts(vectors):
                self.output += part
            return
        # Of what is printed to stderr only the end is of interest: no need to look at the rest.
        for address, part_bytes in vectors:
            skipped = max(0, part_bytes - ERRORS_BYTES_MAX)
            self.errors += self.read(address + skipped, part_bytes - skipped)
            del self.errors[:-ERRORS_BYTES_MAX]

    def parts(self, vectors: list[tuple[int, int]]) -> Iterator[bytes]:
        """Copies of a scattered buffer, never much at a time."""
        for address, size_bytes in vectors:
            for start in range(0, size_bytes, _PART_BYTES):
                yield self.read(address + start, min(_PART_BYTES, size_bytes - start))

    def scatter(self, descriptor: Descriptor, vectors: list[tuple[int, int]], start: int) -> int:
        """Fill a scattered buffer with what a descriptor has at ``start``. How many bytes that were."""
        total = 0
        for address, size_bytes in vectors:
            while size_bytes:
                data = self.content(descriptor, start + total, min(size_bytes, _PART_BYTES))
                if not data:
                    return total
                self.write(address, data)
                total += len(data)
                address += len(data)
                size_bytes -= len(data)
        return total
