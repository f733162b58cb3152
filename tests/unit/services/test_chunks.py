"""Runs of chunks, and chunks on a stream whose other side does as it likes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import IntegrityError, MalformedError, UnreachableError
from p2pgrid.services.chunks import (
    CHUNK_HEAD,
    GROUP_CHUNKS,
    RUNS_MAX,
    check_runs,
    groups_of,
    runs_of,
    send_chunks,
    take_chunks,
    wanted_runs,
)

NUMBERS = st.sets(st.integers(0, 5000), max_size=300).map(sorted)


@given(NUMBERS, st.integers(0, 20))
def test_runs_hold_exactly_the_numbers_and_are_valid(numbers: list[int], count_max: int) -> None:
    runs = runs_of(numbers, count_max)
    assert [number for first, count in runs for number in range(first, first + count)] == numbers
    assert all(count <= (count_max or 5001) for _, count in runs)
    check_runs(runs, 5001)
    assert [number for group in groups_of(runs) for number in group] == numbers
    assert all(len(group) <= GROUP_CHUNKS and group[0] // GROUP_CHUNKS == group[-1] // GROUP_CHUNKS for group in groups_of(runs))


def test_with_more_holes_than_a_message_holds_the_last_run_covers_the_rest() -> None:
    missing = list(range(0, 4 * RUNS_MAX, 2))
    runs = wanted_runs(missing)
    assert len(runs) == RUNS_MAX
    check_runs(runs, missing[-1] + 1)
    asked = {number for first, count in runs for number in range(first, first + count)}
    assert asked.issuperset(missing)
    assert max(asked) == missing[-1]


@pytest.mark.parametrize(
    "runs", [[(0, 0)], [(-1, 2)], [(0, 6)], [(0, 2), (1, 1)], [(3, 1), (0, 1)], [(0, 1)] * 2, [(5, 1)], [(0, 1 << 40)]]
)
def test_runs_that_cannot_be_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(MalformedError):
        check_runs(runs, 5)


class Pipe:
    """A stream that gives what it was given; ends with an error, as a connection that was cut."""

    def __init__(self) -> None:
        self.data: deque[bytes] = deque()

    def write_nowait(self, data: bytes, *, flush: bool = False) -> None:
        self.data.append(data)

    async def write(self, data: bytes) -> None:
        self.data.append(data)
        await asyncio.sleep(0)

    async def read(self, size_max: int) -> bytes:
        await asyncio.sleep(0)
        if not self.data:
            raise UnreachableError("cut")
        data = self.data.popleft()
        if len(data) > size_max:
            self.data.appendleft(data[size_max:])
        return data[:size_max]


async def sent(runs: list[tuple[int, int]]) -> Pipe:
    pipe = Pipe()

    async def read(group: Sequence[int]) -> list[bytes]:
        return [b"chunk %d" % number for number in group]

    await send_chunks(pipe, runs, read)  # type: ignore[arg-type]
    return pipe


async def test_what_is_sent_is_taken_in_groups_and_in_order() -> None:
    taken: list[tuple[int, bytes]] = []
    sizes: list[int] = []

    async def write(group: Sequence[tuple[int, bytes]]) -> None:
        await asyncio.sleep(0.001)
        taken.extend(group)
        sizes.append(len(group))

    runs = [(0, 3), (7, 20), (40, 1)]
    await take_chunks(await sent(runs), runs, write)  # type: ignore[arg-type]
    assert taken == [(number, b"chunk %d" % number) for first, count in runs for number in range(first, first + count)]
    assert max(sizes) <= GROUP_CHUNKS


async def test_what_came_before_a_stream_broke_is_written() -> None:
    taken: list[int] = []

    async def write(group: Sequence[tuple[int, bytes]]) -> None:
        await asyncio.sleep(0.001)
        taken.extend(number for number, _ in group)

    with pytest.raises(UnreachableError):
        await take_chunks(await sent([(0, 7)]), [(0, 9)], write)  # type: ignore[arg-type]
    assert taken == list(range(7))


async def test_another_chunk_than_is_due_ends_it() -> None:
    pipe = await sent([(0, 2), (3, 1)])

    async def write(group: Sequence[tuple[int, bytes]]) -> None: ...

    with pytest.raises(MalformedError):
        await take_chunks(pipe, [(0, 3)], write)  # type: ignore[arg-type]
    pipe.data.clear()
    pipe.write_nowait(CHUNK_HEAD.pack(0, (1 << 20) + 1))
    with pytest.raises(MalformedError):
        await take_chunks(pipe, [(0, 1)], write)  # type: ignore[arg-type]


async def test_what_cannot_be_written_ends_it() -> None:
    async def write(group: Sequence[tuple[int, bytes]]) -> None:
        raise IntegrityError("wrong")

    for count in (1, 3, 30):
        with pytest.raises(IntegrityError):
            await take_chunks(await sent([(0, count)]), [(0, count)], write)  # type: ignore[arg-type]


async def test_what_cannot_be_read_ends_it_after_what_could_be() -> None:
    pipe = Pipe()

    async def read(group: Sequence[int]) -> list[bytes]:
        if group[0] >= GROUP_CHUNKS:
            raise IntegrityError("rotten")
        return [b"x"] * len(group)

    with pytest.raises(IntegrityError):
        await send_chunks(pipe, [(0, 20)], read)  # type: ignore[arg-type]
    assert sum(data == b"x" for data in pipe.data) == GROUP_CHUNKS


async def test_a_cap_is_paid_for_every_chunk_before_it_is_sent_and_after_it_came() -> None:
    pipe, paid = Pipe(), list[tuple[str, int]]()

    async def read(group: Sequence[int]) -> list[bytes]:
        return [b"x" * (number + 1) for number in group]

    async def upload(size_bytes: int) -> None:
        assert sum(len(data) for data in pipe.data if data.count(b"x") == len(data)) == sum(size for _, size in paid)
        paid.append(("up", size_bytes))

    async def download(size_bytes: int) -> None:
        paid.append(("down", size_bytes))

    async def write(group: Sequence[tuple[int, bytes]]) -> None: ...

    await send_chunks(pipe, [(0, 6)], read, pay=upload)  # type: ignore[arg-type]
    assert paid == [("up", number + 1) for number in range(6)]
    await take_chunks(pipe, [(0, 6)], write, pay=download)  # type: ignore[arg-type]
    assert paid[6:] == [("down", number + 1) for number in range(6)]


async def test_the_time_that_a_cap_takes_is_no_stall() -> None:
    pipe = Pipe()

    async def read(group: Sequence[int]) -> list[bytes]:
        return [b"x"] * len(group)

    async def slow(size_bytes: int) -> None:
        await asyncio.sleep(0.03)

    async def write(group: Sequence[tuple[int, bytes]]) -> None: ...

    await send_chunks(pipe, [(0, 3)], read, 0.02, pay=slow)  # type: ignore[arg-type]
    await take_chunks(pipe, [(0, 3)], write, 0.02, pay=slow)  # type: ignore[arg-type]
