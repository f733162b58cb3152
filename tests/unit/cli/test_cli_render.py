"""The pictures of the command line at three widths, as pure functions of what a node says."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console, RenderableType

from p2pgrid.model.node import Address, NodeInfo, Offer
from p2pgrid.wire.messages import NodeStatus
from p2pgrid.wire.owner import JobLine, PeerLine
from p2pgrid_cli.render import job_document, jobs_table, peer_document, peers_table, printable
from p2pgrid_cli.tables import Column, Row, fitting

GIB = 1 << 30
ME, FRIEND, AWAY, LOST = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, b"\x06" * 32


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
    return NodeStatus(free_cores=free, running=4 - free, queued=3, done=120, storage_used_bytes=GIB, uptime_s=90.0, load=0.5, jobs_kept=1)


NOW_MS = 1_700_000_300_000
PEERS = (
    PeerLine(ME, info("desk", 4), status(1), 0.0, "self", NOW_MS, "own"),
    PeerLine(FRIEND, info("laptop of a friend", 8), status(4), 0.0123, "direct", NOW_MS, "native"),
    PeerLine(LOST, info("attic", 2), None, 0.0, "", NOW_MS - 60_000),
    PeerLine(AWAY, info("", 2), None, 0.0, "", NOW_MS - 3_600_000),
)
JOBS = (
    JobLine(
        b"\x04" * 32,
        "wordcount.py",
        "running",
        512,
        300,
        2,
        1,
        1_700_000_000_000,
        1_700_600_000_000,
        "led",
        (FRIEND,),
        {ME: 200, FRIEND: 100},
    ),
    JobLine(b"\x05" * 32, "gzip -9kc {}", "done", 10, 10, 0, 0, 1_700_000_000_000, 1_700_600_000_000, "kept"),
)

PEERS_AT = {
    60: """\
node      name                state      free  cores
aeaqcaib  desk                this node     1      4
aibaeaqc  laptop of a friend  live          4      8
aydambqg  attic               no answer     -      2
ambqgayd  -                   away          -      2""",
    80: """\
node      name                state      free  cores       storage      rtt
aeaqcaib  desk                this node     1      4  1 GiB/10 GiB        -
aibaeaqc  laptop of a friend  live          4      8  1 GiB/10 GiB  12.3 ms
aydambqg  attic               no answer     -      2      ?/10 GiB        -
ambqgayd  -                   away          -      2      ?/10 GiB        -""",
    120: """\
node      name                state      free  cores       storage  memory  platform          rtt  trust
aeaqcaib  desk                this node     1      4  1 GiB/10 GiB   8 GiB  linux-x86_64        -  own
aibaeaqc  laptop of a friend  live          4      8  1 GiB/10 GiB   8 GiB  linux-x86_64  12.3 ms  native
aydambqg  attic               no answer     -      2      ?/10 GiB   8 GiB  linux-x86_64        -  -
ambqgayd  -                   away          -      2      ?/10 GiB   8 GiB  linux-x86_64        -  -""",
    140: """\
node      name                state      free  cores       storage  memory  platform          rtt  trust   runs
aeaqcaib  desk                this node     1      4  1 GiB/10 GiB   8 GiB  linux-x86_64        -  own     native, command
aibaeaqc  laptop of a friend  live          4      8  1 GiB/10 GiB   8 GiB  linux-x86_64  12.3 ms  native  native, command
aydambqg  attic               no answer     -      2      ?/10 GiB   8 GiB  linux-x86_64        -  -       native, command
ambqgayd  -                   away          -      2      ?/10 GiB   8 GiB  linux-x86_64        -  -       native, command""",
}
JOBS_AT = {
    60: """\
job       name          state    done  units  failed  nodes
aqcaibae  wordcount.py  running   300    512       2      2
aucqkbif  gzip -9kc {}  done       10     10       0      -""",
    80: """\
job       name          state    done  units  failed  nodes  role
aqcaibae  wordcount.py  running   300    512       2      2  led
aucqkbif  gzip -9kc {}  done       10     10       0      -  kept""",
}
JOBS_AT[120] = JOBS_AT[80]


@pytest.mark.parametrize("width", PEERS_AT)
def test_peers_lose_their_least_important_columns_first(width: int) -> None:
    assert drawn(peers_table(PEERS, width, NOW_MS), width) == PEERS_AT[width]


@pytest.mark.parametrize("width", JOBS_AT)
def test_jobs_lose_their_least_important_columns_first(width: int) -> None:
    assert drawn(jobs_table(JOBS, width), width) == JOBS_AT[width]


@pytest.mark.parametrize("width", [60, 80])
def test_a_long_name_and_a_long_state_do_not_cost_the_column_of_names(width: int) -> None:
    paused = msgspec.structs.replace(status(4), paused="outside-hours")
    line = PeerLine(FRIEND, info("the laptop of a friend of a friend", 8), paused, 0.0123, "direct", NOW_MS)
    picture = drawn(peers_table([line], width, NOW_MS), width)
    assert "the laptop of a fri…  live, outside-hours" in picture


def test_nothing_is_cut_where_there_is_room() -> None:
    long = msgspec.structs.replace(JOBS[0], name="x" * 40)
    assert "x" * 40 in drawn(jobs_table([long], 1000), 1000)


def test_columns_of_rank_0_stay_however_narrow_it_is() -> None:
    columns = (Column("a"), Column("b", 2), Column("c", 1))
    rows = [Row(("1234567890", "x", "y"))]
    assert fitting(columns, rows, 16) == [0, 1, 2]
    assert fitting(columns, rows, 15) == [0, 2]
    assert fitting(columns, rows, 1) == [0]


def test_names_of_others_cannot_write_to_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc") == "a?[2Jb?c"
    assert printable("y" * 100) == "y" * 39 + "…"


def test_documents_hold_whole_ids_and_plain_numbers() -> None:
    peer = peer_document(PEERS[1])
    assert len(str(peer["node"])) == 52
    assert (peer["live"], peer["self"], peer["rtt_ms"], peer["free_cores"]) == (True, False, 12.3, 4)
    assert peer_document(PEERS[2])["free_cores"] is None
    job = job_document(JOBS[0])
    assert sorted(job["units_per_node"].values()) == [100, 200]
    assert (job["state"], job["role"], job["units"]) == ("running", "led", 512)
    json.dumps([peer, job])
