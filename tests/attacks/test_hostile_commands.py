"""Commands that try to outlive their unit, to multiply, to take memory or disk together, or to end their runner: real programs.

Each is one unit of a batch between two honest ones, which come back as if nothing had happened. Whether anything is left running is
seen from outside, by a number in the arguments that no other process has.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import RefusedError
from p2pgrid.model.reasons import Reason
from p2pgrid.model.values import decode_value
from p2pgrid.offload import ThreadOffload
from p2pgrid.runtimes.command import decode_command_result, encode_command
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind, Outcome, PoolPolicy
from p2pgrid.runtimes.watchdog import tree_of
from tests.attacks.sandbox.reachable import interpreter_for_anybody
from tests.native import needs

MIB = 1 << 20
PROCESSES_MAX = 24
_numbers = itertools.count()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are watched by Linux's process table")


@pytest.fixture(params=["namespaces", "landlock", "bare"])
def level(request: pytest.FixtureRequest) -> str:
    level: str = request.param
    return level


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that users without rights can reach: as root, processes become such."""
    with tempfile.TemporaryDirectory(prefix="p2pgrid-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
async def pool(level: str, place: Path) -> AsyncIterator[WorkerPool]:
    policy = PoolPolicy(
        slots=1,
        cage=level,
        file_bytes_max=16 * MIB,
        folder_bytes_max=32 * MIB,
        folder_entries_max=500,
        processes_max=PROCESSES_MAX,
        spare_s=0,
        python=interpreter_for_anybody() if level == "landlock" and os.geteuid() == 0 else "",
    )
    offload = ThreadOffload()
    pool = WorkerPool(place / "pool", policy, offload)
    await pool.start()
    yield pool
    await pool.close()
    assert await offload.close()


@pytest.fixture
def marker() -> Iterator[str]:
    """Seconds to sleep that tell the sleeper from all others; afterwards nobody sleeps them any more."""
    marker = f"31557.{os.getpid()}{next(_numbers):03}"
    yield marker
    gone_by = time.monotonic() + 10.0
    while left := sleepers(marker):
        assert time.monotonic() < gone_by, f"{left} outlived their unit"


def sleepers(marker: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command and b"sleep" in command:
                found.append(int(entry))
    return found


class Played:
    """What became of one command between two honest ones."""

    def __init__(self, chunks: list[BatchChunk]) -> None:
        outcomes = [Outcome(outcome) for chunk in chunks for outcome in chunk.outcomes]
        payloads = [payload for chunk in chunks for payload in chunk.payloads]
        assert len(outcomes) == 3
        assert [outcomes[0], outcomes[2]] == [Outcome.OK] * 2
        assert [decode_command_result(payloads[at]).stdout for at in (0, 2)] == [b"honest\n"] * 2
        self.outcome, self.value = outcomes[1], decode_value(payloads[1])

    @property
    def said(self) -> str:
        return str(self.value["message"])

    @property
    def stdout(self) -> bytes:
        assert self.outcome == Outcome.OK, self.value
        return bytes(self.value[1])


async def play(pool: WorkerPool, script: str, **options: Any) -> Played:
    """Run ``script`` in a shell between two honest commands."""
    honest = encode_command(["echo", "honest"])
    inputs = [msgspec.Raw(raw) for raw in (honest, encode_command(["sh", "-c", script]), honest)]
    trusted = pool._policy.cage == "bare"
    task = BatchTask(
        job=JobKey(b"s", b"j"),
        code=Code(),
        runtime="command",
        kind=Kind.COMMAND,
        inputs=inputs,
        trusted=trusted,
        **{"timeout_s": 5.0, "result_bytes_max": MIB, **options},
    )
    chunks: list[BatchChunk] = []
    began = time.monotonic()
    try:
        await pool.run(task, chunks.append)
    except RefusedError as error:
        if pool._policy.cage == "landlock" and os.geteuid() == 0:
            pytest.skip(f"without namespaces root becomes a user who must reach this checkout: {error}")
        needs(error.reason != Reason.NO_CAGE, f"no cage of that level holds here: {error}")
        raise
    assert time.monotonic() - began < 19
    return Played(chunks)


def idle_tree(pool: WorkerPool) -> list[int]:
    """The processes of the runner that waits for more."""
    return tree_of(pool._idle[-1][1].process_id, 100)


async def test_a_command_has_a_folder_of_its_own_and_leaves_nothing_in_it(pool: WorkerPool) -> None:
    script = 'cd /; test -z "$(ls -A $HOME)" && echo $HOME && echo $TMPDIR && : > $HOME/left && mktemp'
    first, second = [(await play(pool, script)).stdout.decode().split() for _ in range(2)]
    assert first[:2] == second[:2]
    assert first[0] == first[1] == os.path.dirname(first[2])


LEAVERS = {
    "in the background": "sleep {marker} & echo said",
    "without hanging up": "nohup sleep {marker} >/dev/null 2>&1 & echo said",
    "in a session of its own": "setsid sleep {marker} & echo said",
    "as an orphan in a session of its own": "setsid sh -c 'setsid sleep {marker} & setsid sleep {marker} &' ; echo said",
    "deaf": "setsid sh -c 'trap \"\" TERM INT HUP QUIT; sleep {marker}; sleep {marker}' & echo said",
    "holding its output open": "setsid sleep {marker} 2>&1 & echo said",
}


@pytest.mark.parametrize("name", LEAVERS)
async def test_what_a_command_leaves_running_ends_with_it(pool: WorkerPool, marker: str, name: str) -> None:
    played = await play(pool, LEAVERS[name].format(marker=marker))
    assert played.stdout == b"said\n"
    assert sleepers(marker) == []
    assert len(idle_tree(pool)) <= 2  # The runner is still the same, and alone with its relay.


async def test_a_command_that_is_late_ends_with_all_it_started(pool: WorkerPool, marker: str) -> None:
    script = f"trap '' TERM INT HUP; setsid sleep {marker} & nohup sleep {marker} & sleep {marker}; sleep {marker}"
    played = await play(pool, script, timeout_s=0.5)
    assert played.outcome == Outcome.TIMED_OUT
    assert sleepers(marker) == []
    assert len(idle_tree(pool)) <= 2


async def test_endless_output_is_cut_off_and_its_writer_ended(pool: WorkerPool, marker: str) -> None:
    began = time.monotonic()
    played = await play(pool, f"setsid sleep {marker} & yes", result_bytes_max=1 << 16)
    assert played.outcome == Outcome.TOO_LARGE
    played = await play(pool, "yes >&2", result_bytes_max=1 << 16, timeout_s=0.5)
    assert played.outcome == Outcome.TIMED_OUT
    assert time.monotonic() - began < 6


BOMBS = {
    "wide": "i=0; while [ $i -lt 200 ]; do sleep {marker} & i=$((i+1)); done; sleep {marker}",
    # Each starts two more, in sessions of their own, seven times: 255 shells at most.
    "deep": "cat > bomb <<'END'\nif [ $1 -gt 0 ]; then for i in 1 2; do setsid sh ./bomb $(($1-1)) & done; fi; sleep {marker}\nEND\n"
    "sh ./bomb 7",
    "orphans": "i=0; while [ $i -lt 200 ]; do setsid sh -c 'sleep {marker} & ' ; i=$((i+1)); done; sleep {marker}",
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_fork_bomb_is_ended_or_kept_small(pool: WorkerPool, level: str, marker: str, name: str) -> None:
    began = time.monotonic()
    played = await play(pool, BOMBS[name].format(marker=marker), timeout_s=1.5)
    # Where the kernel counts, forking fails and the shell gives up or waits; elsewhere the node ends it all.
    assert played.outcome in (Outcome.DIED, Outcome.RAISED, Outcome.TIMED_OUT)
    if level == "bare":
        assert played.outcome == Outcome.DIED
        assert f"{PROCESSES_MAX} are allowed" in played.said
    assert sleepers(marker) == []
    assert time.monotonic() - began < 10


async def test_memory_is_counted_over_all_processes_of_a_command(pool: WorkerPool, marker: str) -> None:
    # tail keeps a line without an end; each of the four is allowed what it takes, all together are not.
    script = f"for i in 1 2 3 4; do (LC_ALL=C tr -d '\\n' < /dev/urandom | head -c 40000000; sleep {marker}) | tail & done; wait"
    played = await play(pool, script, memory_bytes=100 * MIB, timeout_s=12.0)
    assert played.outcome == Outcome.DIED
    assert "of memory" in played.said
    assert "100 MiB are allowed" in played.said


async def test_disk_is_counted_over_all_files_of_a_command(pool: WorkerPool, marker: str) -> None:
    script = f"for i in 1 2 3 4 5 6; do head -c 8000000 /dev/urandom > $i; done; sleep {marker}"
    played = await play(pool, script)
    assert played.outcome == Outcome.DIED
    assert "more than the 32 MiB allowed into its folder" in played.said


async def test_names_removed_from_files_do_not_hide_them(pool: WorkerPool, marker: str) -> None:
    fill = " ".join(f"exec {number}<>x; head -c 8000000 /dev/urandom >&{number}; rm x;" for number in range(3, 9))
    played = await play(pool, f"{fill} sleep {marker}")
    assert played.outcome == Outcome.DIED
    assert "removed the names" in played.said


async def test_a_closed_folder_is_no_hiding_place(pool: WorkerPool, marker: str) -> None:
    script = f"mkdir d && cd d && for i in 1 2 3 4 5 6; do head -c 8000000 /dev/urandom > $i; done; chmod 0 . ; sleep {marker}"
    played = await play(pool, script)
    assert played.outcome == Outcome.DIED


async def test_a_runner_that_is_ended_by_its_command_is_replaced(pool: WorkerPool, marker: str) -> None:
    played = await play(pool, f"setsid sleep {marker} & kill -9 $PPID; sleep 0.1; echo survived")
    # The init of a namespace cannot be killed from inside: there the command just goes on.
    assert played.outcome == Outcome.DIED or played.stdout == b"survived\n"


async def test_a_runner_that_is_stopped_by_its_command_is_ended_by_the_node(pool: WorkerPool, marker: str) -> None:
    played = await play(pool, f"setsid sleep {marker} & kill -STOP $PPID; sleep {marker}", timeout_s=0.5)
    assert played.outcome == Outcome.TIMED_OUT


async def test_processes_that_ended_by_themselves_do_not_add_up(pool: WorkerPool) -> None:
    script = f"i=0; while [ $i -lt {5 * PROCESSES_MAX} ]; do (true &); i=$((i+1)); done; sleep 0.4; echo fine"
    assert (await play(pool, script)).stdout == b"fine\n"
