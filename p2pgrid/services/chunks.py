"""Chunks on a stream: each its number, its size, its bytes (docs/spec/blobs.md#blobread).

1. Whoever takes chunks says before which it wants, as runs of numbers, and takes these in this order and no others.
2. Chunks go to the disk and come from it a few at a time, while the network does the next few: what waits in memory is
   two such groups on either side.
3. Whoever takes chunks verifies them. What came before a stream broke is written nevertheless: the next try begins there.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from p2pgrid.errors import MalformedError, P2PGridError
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_exactly
from p2pgrid.net.throttle import Pay
from p2pgrid.services.tasks import wind_up

CHUNK_HEAD = struct.Struct(">II")
"""Number of the chunk, its size in bytes."""
GROUP_CHUNKS = 4
RUNS_MAX = 1024
STALL_S = 30.0
"""A transfer without a chunk for this long is given up."""

Run = tuple[int, int]
"""(first, count) of consecutive chunks."""
Group = Sequence[int]
Read = Callable[[Group], Awaitable[Sequence[bytes]]]
Write = Callable[[Sequence[tuple[int, bytes]]], Awaitable[object]]


def runs_of(numbers: Iterable[int], count_max: int = 0) -> list[Run]:
    """The runs in ascending numbers, of at most ``count_max`` chunks each; 0: of any length."""
    runs: list[Run] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number and runs[-1][1] != count_max:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def wanted_runs(missing: Sequence[int]) -> list[Run]:
    """The runs to ask for: with more holes than a message holds, the last run goes over what is there already."""
    runs = runs_of(missing)
    if len(runs) <= RUNS_MAX:
        return runs
    first = runs[RUNS_MAX - 1][0]
    return [*runs[: RUNS_MAX - 1], (first, missing[-1] + 1 - first)]


def check_runs(runs: Sequence[Run], chunks: int) -> None:
    """Raise MalformedError unless the runs are ascending, apart, and within a blob of so many chunks."""
    end = 0
    for first, count in runs:
        if first < end or count < 1:
            raise MalformedError("chunks that cannot be wanted", reason=Reason.MALFORMED)
        end = first + count
    if end > chunks or len(runs) > RUNS_MAX:
        raise MalformedError("chunks that cannot be wanted", reason=Reason.MALFORMED)


def groups_of(runs: Iterable[Run]) -> Iterator[Group]:
    """What is read at one time. Groups end at fixed numbers, so that several who read the same blob read the same groups."""
    for first, count in runs:
        start, end = first, first + count
        while start < end:
            stop = min(end, (start // GROUP_CHUNKS + 1) * GROUP_CHUNKS)
            yield range(start, stop)
            start = stop


async def send_chunks(stream: Stream, runs: Iterable[Run], read: Read, stall_s: float = STALL_S, pay: Pay | None = None) -> None:
    """Send the chunks of all runs in order, the next group being read meanwhile. ``pay``: waits for what the owner's cap allows.

    Raises what ``read`` and the stream raise, and TimeoutError when one chunk takes longer than ``stall_s``.
    """
    groups = groups_of(runs)
    group = next(groups, None)
    reading = asyncio.ensure_future(read(group)) if group is not None else None
    try:
        while group is not None and reading is not None:
            chunks = await reading
            numbers, group = group, next(groups, None)
            reading = asyncio.ensure_future(read(group)) if group is not None else None
            for number, data in zip(numbers, chunks, strict=True):
                if pay is not None:
                    await pay(len(data))
                async with asyncio.timeout(stall_s):
                    stream.write_nowait(CHUNK_HEAD.pack(number, len(data)))
                    await stream.write(data)
    finally:
        if reading is not None:
            await wind_up(reading)


async def take_chunks(
    stream: Stream,
    runs: Iterable[Run],
    write: Write,
    stall_s: float = STALL_S,
    *,
    group_chunks: int = GROUP_CHUNKS,
    pay: Pay | None = None,
) -> None:
    """Take exactly the chunks of these runs, in order, and hand them to ``write`` in groups of up to ``group_chunks``.

    ``pay``: waits for what the owner's cap allows, between chunks: the sender waits with it, as its window is full.
    Raises what ``write`` and the stream raise, MalformedError for another chunk than is due, and TimeoutError when one
    takes longer than ``stall_s``.
    """
    group: list[tuple[int, bytes]] = []
    writing: asyncio.Future[object] | None = None
    try:
        for first, count in runs:
            for due in range(first, first + count):
                async with asyncio.timeout(stall_s):
                    group.append((due, await take_chunk(stream, due)))
                if pay is not None:
                    await pay(len(group[-1][1]))
                if writing is not None and (writing.done() or len(group) >= group_chunks):
                    await writing
                    writing = None
                if writing is None:
                    writing, group = asyncio.ensure_future(write(group)), []
        if writing is not None:
            await writing
    except (P2PGridError, TimeoutError):
        # The stream is at its end; what came before may still be good.
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)
        if group:
            await asyncio.gather(write(group), return_exceptions=True)
        raise
    finally:
        if writing is not None and not writing.done():
            await wind_up(writing)
    if group:
        await write(group)


async def take_chunk(stream: Stream, due: int) -> bytes:
    """The next chunk, which must be the one that is due. Raises MalformedError, UnreachableError."""
    number, size_bytes = CHUNK_HEAD.unpack(await read_exactly(stream, CHUNK_HEAD.size))
    if size_bytes > MIB or number != due:
        raise MalformedError("a chunk nobody asked for", reason=Reason.MALFORMED)
    return await read_exactly(stream, size_bytes)
