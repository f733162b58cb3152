"""``kill -9`` at random moments while files are put and got and jobs computed: nothing that was promised is lost.

``P2PGRID_KILLS=200`` asks for so many moments, ``P2PGRID_KILLS_SEED`` for others.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.kill_rounds import Rounds

KILLS = int(os.environ.get("P2PGRID_KILLS", "14"))
MANY = 50
"""With fewer, nobody waits in the end for every job that was begun: others do that."""
SEED = int(os.environ.get("P2PGRID_KILLS_SEED", "1"))


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_nodes_killed_at_any_moment_come_back_with_all_they_promised(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, SEED)
    try:
        await rounds.found()
        while rounds.kills < KILLS:
            await rounds.round()
        if KILLS >= MANY:
            await rounds.finish()
    finally:
        rounds.close()
        print(f"\n{rounds.report()}")
    assert rounds.promises.files
    assert rounds.promises.jobs
