"""A cap on bytes: the long run keeps the rate, a rest gives one burst, and order is kept."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.model.limits import MIB
from p2pgrid.net.throttle import Bucket, Throttle


def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    bucket = Bucket(1000, burst_bytes=500)
    assert bucket.take(500, 10.0) == 0.0
    assert bucket.take(1000, 10.0) == pytest.approx(1.0)
    assert bucket.take(1000, 10.0) == pytest.approx(2.0)
    assert bucket.take(100, 12.0) == pytest.approx(0.1)
    assert bucket.take(500, 100.0) == 0.0


@given(takes=st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1, max_size=60))
def test_no_stretch_of_time_has_more_than_the_rate_and_a_burst(takes: list[tuple[int, float]]) -> None:
    bucket, now, sent = Bucket(1000, burst_bytes=2000), 0.0, list[tuple[float, int]]()
    for size_bytes, after_s in takes:
        now += after_s
        sent.append((now + bucket.take(size_bytes, now), size_bytes))
    assert sent == sorted(sent, key=lambda entry: entry[0]), "in the order in which they asked"
    for start in range(len(sent)):
        for end in range(start, len(sent)):
            behind = sum(size_bytes for _, size_bytes in sent[start + 1 : end + 1])
            assert behind <= (sent[end][0] - sent[start][0]) * 1000 + 2000 + 1e-6


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(1000, burst_bytes=1000)
    bucket.take(1000, 10.0)
    assert bucket.take(1000, 5.0) == pytest.approx(1.0)


def test_without_a_cap_there_is_nothing_to_ask() -> None:
    throttle = Throttle(0, 0, lambda: 0.0)
    assert throttle.upload is None
    assert throttle.download is None


async def test_both_directions_have_a_bucket_of_their_own() -> None:
    throttle = Throttle(20 * MIB, 20 * MIB, asyncio.get_running_loop().time)
    assert throttle.upload is not None
    assert throttle.download is not None
    start = asyncio.get_running_loop().time()
    await throttle.upload(MIB)
    await throttle.download(MIB)
    assert asyncio.get_running_loop().time() - start < 0.04
    await asyncio.gather(*(throttle.upload(MIB) for _ in range(4)))
    assert asyncio.get_running_loop().time() - start >= 0.19
