"""Lookups in grown tables: the tables are what the product's own would be, and what is measured follows from them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from p2pgrid.dht.settings import DhtSettings
from p2pgrid.dht.table import GridTable
from p2pgrid.testing.core import lookups
from p2pgrid.testing.core.lookups import RTT, GrownGrid, Population, figures, measure, summary, table


def grown(count: int, stale: float = 0.0, seed: int = 1) -> GrownGrid:
    return GrownGrid(Population.drawn(count, stale, random.Random(seed)), DhtSettings(), seed, RTT)


@pytest.mark.parametrize("count", [15, 60, 700])
def test_tables_have_the_buckets_that_meeting_everybody_leads_to(count: int) -> None:
    grid = grown(count)
    for node in grid.population.nodes[:: max(1, count // 3)]:
        real = GridTable(grid._owner, grid.settings.k, node, grid.settings, lambda: 0.0)
        met = list(grid.population.nodes)
        random.Random(3).shuffle(met)
        for other in met:
            real.add_contact(other)
        drawn = grid.table(node)
        assert [bucket.range for bucket in drawn.buckets] == [bucket.range for bucket in real.buckets]
        assert [len(bucket) for bucket in drawn.buckets] == [len(bucket) for bucket in real.buckets]
        assert drawn.get(node.id) is None


def test_a_table_is_the_same_whenever_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "TABLES_MAX", 2)
    grid = grown(200)
    first = grid.population.nodes[0]
    before = [node.id for node in grid.table(first).contacts()]
    for node in grid.population.nodes[1:4]:
        grid.table(node)
    assert len(grid._tables) == 2
    assert [node.id for node in grid.table(first).contacts()] == before


def test_without_dead_nodes_every_lookup_finds_exactly_the_nearest() -> None:
    for size in (50, 300):
        row = measure(Population.drawn(size, 0.0, random.Random(2)), 100, 2)
        assert row.success == 1.0
        assert row.found == DhtSettings().k


def test_with_stale_tables_lookups_still_find_who_keeps_records() -> None:
    row = measure(Population.drawn(300, lookups.STALE, random.Random(3)), 400, 3)
    assert row.success >= 0.995
    assert DhtSettings().copies < row.found < DhtSettings().k


def test_in_a_grid_smaller_than_a_bucket_everybody_is_found() -> None:
    row = measure(Population.drawn(6, 0.0, random.Random(2)), 10, 2)
    assert (row.success, row.found, row.hops) == (1.0, 5.0, 1.0)


def test_hops_grow_by_a_constant_for_each_factor_of_four() -> None:
    rows = table((50, 200, 800, 3200), 40, 5)
    assert all(row.success >= 0.98 for row in rows)
    hops = [row.hops for row in rows]
    assert hops[-1] > hops[0] == 1.0
    assert all(later - earlier <= 0.7 for earlier, later in pairwise(hops))
    messages = [row.messages for row in rows]
    assert messages[-1] < 2 * messages[0], "64 times the nodes, and lookups cost a constant more for each factor of four"


def test_the_measure_sees_a_product_that_answers_with_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    original = GridTable.find_neighbors
    monkeypatch.setattr(GridTable, "find_neighbors", lambda self, *args, **names: original(self, *args, **names)[3:])
    assert measure(Population.drawn(300, 0.0, random.Random(2)), 50, 2).success < 0.5


def test_the_measure_sees_nodes_that_do_not_know_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    original = GrownGrid._draw

    def bug(self, node):
        made = original(self, node)
        for bucket in made.buckets[-12:] if node.long_id >> 159 else made.buckets[:12]:
            bucket.nodes.clear()
        return made

    monkeypatch.setattr(GrownGrid, "_draw", bug)
    assert measure(Population.drawn(1000, 0.0, random.Random(2)), 50, 2).success < 0.9


def test_a_seed_gives_the_same_rows_again() -> None:
    assert table((60,), 30, 9) == table((60,), 30, 9) != table((60,), 30, 10)


def test_figures_name_their_size_and_a_summary_weighs_by_lookups() -> None:
    small, large = table((40, 80), 20, 1)
    assert figures([small, large])["lookup_hops_80"] == round(large.hops, 4)
    together = summary([small, large])
    assert together["lookups"] == 40.0
    assert together["lookup_messages"] == round((small.messages + large.messages) / 2, 4)
