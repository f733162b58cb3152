"""What a live ``top`` costs with many peers: ``python -m bench.dashboard [--peers 1000] [--rate 2] [--seconds 10] [--whole]``.

Snapshots of a made-up node are encoded beforehand; here they are decoded, joined, drawn, and painted to a pseudo-terminal that
another process plays. The CPU time of this process is the figure. As a node does, each snapshot has only the peers that changed,
here a fifth of them; ``--whole`` has them all in each.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

from msgspec.structs import replace

from bench.snapshots import crowd
from p2pgrid.client.snapshots import joined
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.owner import OwnPause, Snapshot
from p2pgrid_cli.dashboard.live import Live
from p2pgrid_cli.dashboard.terminal import Terminal
from p2pgrid_cli.dashboard.view import View

PREPARED = 8
"""Different snapshots, shown in turn."""


def answers(peers: int, *, whole: bool) -> list[bytes]:
    """Encoded snapshots, each with what changed since the one before it."""
    found = [crowd(peers, tick) for tick in range(PREPARED)]
    made = []
    for index, snapshot in enumerate(found):
        before = {line.node: line for line in found[index - 1].peers}
        changed = tuple(line for line in snapshot.peers if whole or before[line.node] != line)
        made.append(encode(replace(snapshot, peers=changed, since=0 if whole else 1)))
    return made


class Recorded:
    """A channel that has its answers as bytes already."""

    def __init__(self, first: Snapshot, encoded: Sequence[bytes]) -> None:
        self._last = first
        self._encoded = encoded
        self.asked = 0

    async def snapshot(self, *, refresh: bool = False) -> Snapshot:
        self.asked += 1
        self._last = joined(self._last, decode(self._encoded[self.asked % len(self._encoded)], Snapshot))
        return self._last

    async def pause(self, seconds: float = 0.0) -> OwnPause:
        return OwnPause("paused")

    async def resume(self) -> OwnPause:
        return OwnPause("running")


async def watch(peers: int, per_second: float, seconds: float, *, whole: bool) -> dict[str, float]:
    """Show the picture for so long; figures of it."""
    first, encoded = crowd(peers), answers(peers, whole=whole)
    channel = Recorded(first, encoded)
    master, slave = pty.openpty()
    # A process of its own plays the terminal: its work is not the picture's.
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    reader = await asyncio.create_subprocess_exec(sys.executable, "-c", READER, stdin=master, stdout=subprocess.PIPE)
    os.close(master)
    live = Live(channel, Terminal(slave, slave), View(sort="spare"), first, interval_s=1 / per_second)
    task = asyncio.ensure_future(live.run())
    await asyncio.sleep(1.0)  # The first picture is not what is measured.
    asked, started_s, cpu_s = channel.asked, time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    spent_s, took_s, asked = time.process_time() - cpu_s, time.perf_counter() - started_s, channel.asked - asked
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    os.close(slave)
    written = int((await reader.communicate())[0] or b"0")
    return {
        "peers": peers,
        "snapshot_bytes": len(encoded[1]),
        "looks_per_second": asked / took_s,
        "cpu_ms_per_look": spent_s / max(1, asked) * 1000,
        "core_share": spent_s / took_s,
        "written_bytes_per_second": written / (took_s + 1.0),
    }


READER = """
import os, sys
total = 0
try:
    while data := os.read(0, 1 << 16):
        total += len(data)
except OSError:
    pass
sys.stdout.write(str(total))
"""


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=2.0, help="looks a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--whole", action="store_true", help="all peers in each snapshot")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(watch(options.peers, options.rate, options.seconds, whole=options.whole)), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
