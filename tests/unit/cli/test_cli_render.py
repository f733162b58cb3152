"""The pictures of the command line at three widths, as pure functions of what a node says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from p2pgrid.model.node import Address, NodeInfo, Offer
from p2pgrid.wire.messages import NodeStatus
from p2pgrid.wire.owner import EventLine, JobLine, OwnStatus, PeerLine, Snapshot
from p2pgrid_cli.render import bar, dashboard, job_document, jobs_table, peer_document, peers_table, printable
from p2pgrid_cli.tables import Column, Row, fitting

GIB = 1 << 30
ME, FRIEND, AWAY = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32


def drawn(picture: RenderableType, width: int) -> str:
    """What a terminal of this width shows, without the blanks that nobody sees."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, legacy_windows=False)
    console.print(picture)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return "\n".join(line.rstrip() for line in lines)


def info(name: str, cores: int) -> NodeInfo:
    offer = Offer(cores, 8 * GIB, 10 * GIB, "linux-x86_64", "3.11", ("native", "command"))
    return NodeInfo((Address("tls", "192.0.2.7", 7400),), ("store", "work"), "0.1.0", name, offer)


def status(free: int) -> NodeStatus:
    return NodeStatus(
        free_cores=free, running=4 - free, queued=3, done=120, storage_used_bytes=GIB, uptime_s=90.0, load=0.5, jobs_kept=1
    )


PEERS = (
    PeerLine(ME, info("desk", 4), status(1), 0.0, "self"),
    PeerLine(FRIEND, info("laptop of a friend", 8), status(4), 0.0123, "direct"),
    PeerLine(AWAY, info("", 2), None, 0.0, ""),
)
JOBS = (
    JobLine(b"\x04" * 32, "wordcount.py", "running", 512, 300, 2, 1, 1_700_000_000_000, 1_700_600_000_000, "led", (FRIEND,), {ME: 200, FRIEND: 100}),
    JobLine(b"\x05" * 32, "gzip -9kc {}", "done", 10, 10, 0, 0, 1_700_000_000_000, 1_700_600_000_000, "kept"),
)

PEERS_AT = {
    60: """\
node      name                state      free  cores
aeaqcaib  desk                this node     1      4
aibaeaqc  laptop of a friend  live          4      8
amba gambq""",
}


def test_peers_at_120_columns_show_everything() -> None:
    assert drawn(peers_table(PEERS, 120), 120) == (
        "node      name                state      free  cores          storage   memory  platform          rtt\n"
        "aeaqcaib  desk                this node     1      4   1 GiB/10 GiB    8 GiB  linux-x86_64        -\n"
        "aibaeaqc  laptop of a friend  live          4      8   1 GiB/10 GiB    8 GiB  linux-x86_64  12.3 ms\n"
        "ambqgayd  -                   no answer     -      2     0 B/10 GiB    8 GiB  linux-x86_64        -"
    )
