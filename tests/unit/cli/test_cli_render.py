"""The pictures of the command line at three widths, as pure functions of what a node says."""

from __future__ import annotations

import io
import json

import msgspec
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
    return NodeStatus(free_cores=free, running=4 - free, queued=3, done=120, storage_used_bytes=GIB, uptime_s=90.0, load=0.5, jobs_kept=1)


PEERS = (
    PeerLine(ME, info("desk", 4), status(1), 0.0, "self"),
    PeerLine(FRIEND, info("laptop of a friend", 8), status(4), 0.0123, "direct"),
    PeerLine(AWAY, info("", 2), None, 0.0, ""),
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

OWN = OwnStatus(
    node=ME,
    name="desk",
    grid="lab",
    grid_id=b"g" * 32,
    roles=("work",),
    info=info("desk", 4),
    status=status(1),
    pid=7,
    version="0.1.0",
    home="/srv/node",
    dht_server=True,
    dht_contacts=2,
    dht_records=9,
    expires_ms=0,
)
SNAPSHOT = Snapshot(
    status=OWN,
    peers=PEERS,
    complete=True,
    jobs=JOBS,
    events=(EventLine(1_700_000_000_000, "done", "job aqcaibae done"),),
    wall_ms=1_700_000_300_000,
)

PEERS_AT = {
    60: """\
node      name                state      free  cores
aeaqcaib  desk                this node     1      4
aibaeaqc  laptop of a friend  live          4      8
ambqgayd  -                   no answer     -      2""",
    80: """\
node      name                state      free  cores       storage      rtt
aeaqcaib  desk                this node     1      4  1 GiB/10 GiB        -
aibaeaqc  laptop of a friend  live          4      8  1 GiB/10 GiB  12.3 ms
ambqgayd  -                   no answer     -      2    0 B/10 GiB        -""",
    120: """\
node      name                state      free  cores       storage  memory  platform          rtt
aeaqcaib  desk                this node     1      4  1 GiB/10 GiB   8 GiB  linux-x86_64        -
aibaeaqc  laptop of a friend  live          4      8  1 GiB/10 GiB   8 GiB  linux-x86_64  12.3 ms
ambqgayd  -                   no answer     -      2    0 B/10 GiB   8 GiB  linux-x86_64        -""",
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
LIVE_JOBS_AT = {
    60: """\
job       name          state    progress         units
aqcaibae  wordcount.py  running  ######....  59%    512
aucqkbif  gzip -9kc {}  done     ########## 100%     10""",
    80: """\
job       name          state    progress         units  failed  disputed
aqcaibae  wordcount.py  running  ######....  59%    512       2         1
aucqkbif  gzip -9kc {}  done     ########## 100%     10       0         0""",
}
LIVE_JOBS_AT[120] = LIVE_JOBS_AT[80]
HEAD_AT = {
    60: """\
p2pgrid aeaqcaib desk in 'lab', up 90 s, version 0.1.0
peers 2/3  cores 3/4 busy  queued 3  done 120  storage 1
GiB/10 GiB
dht server, 2 contacts, 9 records; reachable at
192.0.2.7:7400""",
    80: """\
p2pgrid aeaqcaib desk in 'lab', up 90 s, version 0.1.0
peers 2/3  cores 3/4 busy  queued 3  done 120  storage 1 GiB/10 GiB
dht server, 2 contacts, 9 records; reachable at 192.0.2.7:7400""",
}
HEAD_AT[120] = HEAD_AT[80]


@pytest.mark.parametrize("width", PEERS_AT)
def test_peers_lose_their_least_important_columns_first(width: int) -> None:
    assert drawn(peers_table(PEERS, width), width) == PEERS_AT[width]


@pytest.mark.parametrize("width", JOBS_AT)
def test_jobs_lose_their_least_important_columns_first(width: int) -> None:
    assert drawn(jobs_table(JOBS, width), width) == JOBS_AT[width]


@pytest.mark.parametrize("width", HEAD_AT)
def test_the_dashboard_fits(width: int) -> None:
    events = " 5 min ago  done: job aqcaibae done"
    parts = (HEAD_AT[width], PEERS_AT[width], LIVE_JOBS_AT[width], events)
    assert drawn(dashboard(SNAPSHOT, width), width) == "\n\n".join(parts)


def test_the_dashboard_of_a_new_node_says_what_to_do_next() -> None:
    empty = msgspec.structs.replace(SNAPSHOT, jobs=(), events=(), peers=PEERS[:1], complete=False)
    picture = drawn(dashboard(empty, 80), 80)
    assert "no jobs: p2pgrid run SCRIPT.py" in picture
    assert "peers 1/1 (a sample)" in picture


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


def test_a_bar_stays_in_its_bounds() -> None:
    assert [bar(share, 4) for share in (-1.0, 0.0, 0.5, 1.0, 7.0)] == ["....", "....", "##..", "####", "####"]


def test_documents_hold_whole_ids_and_plain_numbers() -> None:
    peer = peer_document(PEERS[1])
    assert len(str(peer["node"])) == 52
    assert (peer["live"], peer["self"], peer["rtt_ms"], peer["free_cores"]) == (True, False, 12.3, 4)
    assert peer_document(PEERS[2])["free_cores"] is None
    job = job_document(JOBS[0])
    assert sorted(job["units_per_node"].values()) == [100, 200]
    assert (job["state"], job["role"], job["units"]) == ("running", "led", 512)
    json.dumps([peer, job])
