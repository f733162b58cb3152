"""What a node learns of how much the others are there, and that it outlives the node."""

from __future__ import annotations

import msgspec
import pytest

from p2pgrid.core.availability import PRIOR_SHARE
from p2pgrid.services.watching import SEEN_FILE, Seen
from tests.unit.services.grid_in_process import Grid, until


async def test_shares_go_up_while_a_node_is_there_and_down_while_it_is_away(grid: Grid) -> None:
    await grid.grow(2)
    watching, other = grid[0].watching, grid[1].context.me
    assert watching.share(b"never met" + bytes(23)) == PRIOR_SHARE
    await until(lambda: watching.share(other) > PRIOR_SHARE, "it was there for a while")
    assert watching.score(other) >= watching.share(other)
    await grid.close(grid[1])
    before = watching.share(other)
    await until(lambda: watching.share(other) < before, "it is missed")


async def test_what_was_seen_outlives_the_node_and_its_own_absence_counts_against_it(grid: Grid) -> None:
    await grid.grow(2)
    node, other = grid[0], grid[1].context.me
    me = node.context.me
    seen = node.watching._others._peers[other]
    seen.there_s = seen.watched_s = 10 * 86_400.0
    own = node.watching._own._peers[me]
    own.there_s = own.watched_s = 10 * 86_400.0
    assert node.watching.share(other) == pytest.approx(1.0)
    await grid.close(node)
    seen_file = node.home.folder / SEEN_FILE
    written = msgspec.json.decode(seen_file.read_bytes(), type=Seen)
    seen_file.write_bytes(msgspec.json.encode(msgspec.structs.replace(written, wall_ms=written.wall_ms - 86_400_000)))
    again = await grid.add(home="n0")
    assert again.watching.share(other) == pytest.approx(1.0, abs=1e-3)
    assert 0.8 < again.watching.share(me) < 0.95


async def test_a_damaged_file_costs_only_what_was_learned(grid: Grid) -> None:
    node = await grid.add()
    await grid.close(node)
    (node.home.folder / SEEN_FILE).write_bytes(b"{")
    again = await grid.add(home="n0")
    assert again.watching.share(again.context.me) >= PRIOR_SHARE
