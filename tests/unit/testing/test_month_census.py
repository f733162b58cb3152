"""Copies are counted exactly, weighed by time."""

from __future__ import annotations

import pytest

from p2pgrid.testing.core.month_census import Census, percentile

BLOB = b"b"


def test_every_count_is_weighed_by_its_time() -> None:
    census = Census(3)
    census.acknowledged(BLOB, 100, 3, 3, 10.0)
    census.changed(BLOB, -1, 0, 20.0)
    census.changed(BLOB, 1, 1, 50.0)
    census.changed(BLOB, -3, 0, 60.0)
    census.changed(BLOB, 3, 0, 65.0)
    census.end(110.0)
    sums = census.sums
    assert sums.total == 100.0
    assert sums.live == 10 * 3 + 30 * 2 + 10 * 3 + 5 * 0 + 45 * 3
    assert sums.kept == 40 * 3 + 60 * 4
    assert (sums.readable, sums.whole) == (95.0, 65.0)
    assert census.below_s == [30.0, 5.0]
    assert census.none_s == [5.0]
    assert not census.lost


def test_what_lasts_to_the_end_is_counted() -> None:
    census = Census(3)
    census.acknowledged(BLOB, 100, 2, 3, 0.0)
    census.changed(BLOB, -2, 0, 10.0)
    census.end(50.0)
    assert (census.below_s, census.none_s) == ([50.0], [40.0])


def test_a_blob_is_lost_with_its_last_kept_copy_and_once() -> None:
    census = Census(2)
    census.acknowledged(BLOB, 100, 0, 1, 0.0)
    assert not census.lost
    census.changed(BLOB, 0, -1, 5.0)
    census.changed(BLOB, 1, 1, 6.0)
    census.changed(BLOB, -1, -1, 7.0)
    assert census.lost == [BLOB]


def test_what_was_not_acknowledged_does_not_count() -> None:
    census = Census(2)
    census.changed(BLOB, 1, 1, 5.0)
    census.end(10.0)
    assert census.sums.total == 0.0


def test_days_are_averages_of_their_own() -> None:
    census = Census(2)
    census.acknowledged(BLOB, 100, 2, 2, 0.0)
    census.day(1, 10.0)
    census.changed(BLOB, -2, -1, 10.0)
    census.day(2, 20.0)
    assert [(day.live, day.kept, day.readable) for day in census.days] == [(2.0, 2.0, 1.0), (0.0, 1.0, 0.0)]


def test_more_live_copies_than_kept_ones_are_a_mistake() -> None:
    census = Census(2)
    census.acknowledged(BLOB, 100, 2, 2, 0.0)
    with pytest.raises(AssertionError, match="more copies are live"):
        census.changed(BLOB, 1, 0, 1.0)


def test_percentiles() -> None:
    assert percentile([], 0.5) == 0.0
    assert (percentile([3.0, 1.0, 2.0], 0.5), percentile([3.0, 1.0, 2.0], 0.95), percentile([1.0], 1.0)) == (2.0, 3.0, 1.0)
