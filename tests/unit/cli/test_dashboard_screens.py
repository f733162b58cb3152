"""The pictures of ``top`` as files, at sizes that people have. P2PGRID_SCREENS=write makes them anew: look at them then."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bench.snapshots import LAPTOP, LOST, ME, WALL_MS, busy, crowd, key
from p2pgrid.model.ids import short
from p2pgrid.model.node import Address, NodeInfo, Offer
from p2pgrid.wire.faces import DhtHealth, FailureLine, JobPicture, Pulse, Straggler, WorkerShare
from p2pgrid.wire.messages import NodeStatus
from p2pgrid.wire.owner import EventLine, JobLine, PeerLine, Snapshot
from p2pgrid_cli.dashboard import lines
from p2pgrid_cli.dashboard.events import event_lines, told
from p2pgrid_cli.dashboard.lines import ASCII, Line, Part, line_width
from p2pgrid_cli.dashboard.plain import plain_text
from p2pgrid_cli.dashboard.screen import screen, share_rows, window
from p2pgrid_cli.dashboard.view import JOBS, PEERS, View

FOLDER = Path(__file__).parent / "screens"
SIZES = ((60, 16), (60, 24), (80, 16), (80, 24), (80, 40), (120, 24), (120, 40), (200, 40))


def text_of(lines: list[Line]) -> str:
    return "\n".join("".join(part.text for part in line).rstrip() for line in lines) + "\n"


def checked(snapshot: Snapshot, view: View, width: int, height: int, picture: JobPicture | None = None) -> str:
    """The picture as text; it has exactly the lines that were asked for, and none is too wide."""
    made = screen(snapshot, view, width, height, picture)
    assert len(made) == height
    assert max(map(line_width, made)) <= width
    return text_of(made)


def compare(name: str, text: str) -> None:
    path = FOLDER / f"{name}.txt"
    if os.environ.get("P2PGRID_SCREENS") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"P2PGRID_SCREENS=write makes {path.name} anew; look at it then"


def alone() -> Snapshot:
    """A node that nobody has met."""
    base = busy()
    dht = DhtHealth(server=True, buckets=1, contacts=0, records=1, lookups=0)
    reach = "nobody is connected; listening at 192.0.2.7:7400"
    return replace(base, peers=base.peers[:1], jobs=(), events=(), pulses=base.pulses[:1], dht=dht, reach=reach, complete=False)


def picture() -> JobPicture:
    """A job of which something of everything is known."""
    return JobPicture(
        cells="d" * 300 + "rrrf?d" * 10 + "." * 200,
        units_per_cell=10,
        workers=(
            WorkerShare(ME, "desk", 1510, 12, 60.0, 2.0),
            WorkerShare(LAPTOP, "a laptop whose name is rather long", 1511, 9, 58.4, 31.0),
            WorkerShare(LOST, "attic", 200, 0, live=False),
        ),
        stragglers=(Straggler(812, LAPTOP, 31.0),),
        failures=(FailureLine(77, ME, "raised", "ValueError: could not convert string to float: '東京'", False),),
        rate=118.4,
        left_s=17.6,
        wall_ms=WALL_MS,
    )


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_busy_grid(width: int, height: int) -> None:
    compare(f"busy-{width}x{height}", checked(busy(), View(), width, height))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_node_alone_is_told_what_to_do(width: int) -> None:
    text = checked(alone(), View(), width, 24)
    assert "no jobs: p2pgrid run SCRIPT.py" in text
    compare(f"alone-{width}x24", text)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_crowd(width: int) -> None:
    view = View(sort="spare", peer=crowd().peers[500].node)
    compare(f"crowd-{width}x24", checked(crowd(), view, width, 24))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_paused_node_says_so_in_words(width: int) -> None:
    text = checked(busy(paused="owner-active"), View(), width, 24)
    assert "paused for 3 min: the owner is at the machine" in text
    compare(f"paused-{width}x24", text)


@pytest.mark.parametrize(
    ("name", "view", "told"),
    [
        ("help", View(help=True), None),
        ("peer", View(detail=True, peer=LAPTOP), None),
        ("peer-lost", View(detail=True, peer=LOST), None),
        ("peer-self", View(detail=True, peer=ME), None),
        ("job", View(detail=True, focus=JOBS, job=key(101)), None),
        ("job-picture", View(detail=True, focus=JOBS, job=key(101)), picture()),
        ("typing", View(typing=True, filter_peers="at"), None),
        ("jobs-filtered", View(focus=JOBS, filter_jobs="done"), None),
        ("nothing-found", View(filter_peers="zzz", filter_jobs="zzz"), None),
        ("ascii", View(glyphs=ASCII), None),
        ("alarm", View(alarm="the node has not answered for 4 s; this is how it was"), None),
    ],
)
def test_pages(name: str, view: View, told: JobPicture | None) -> None:
    compare(f"{name}-80x24", checked(busy(), view, 80, 24, told))


def test_columns_for_nat_and_favours_come_with_their_first_value() -> None:
    base = busy()
    assert "favours" not in checked(base, View(), 200, 40)
    peers = (*base.peers[:1], replace(base.peers[1], nat="full cone", favours=12.5), *base.peers[2:])
    text = checked(replace(base, peers=peers), View(), 200, 40)
    compare("nat-favours-200x40", text)
    assert "NAT" in text
    assert "+12.5" in text


@pytest.mark.parametrize("width", [60, 80, 120, 1000])
def test_one_look_is_all_of_it_in_plain_lines(width: int) -> None:
    text = plain_text(busy(), View(), width)
    assert max(lines.width_of(line) for line in text.splitlines()) <= width
    compare(f"plain-{width}", text + "\n")
    assert all(line.info.name in text for line in busy().peers[:1])


def test_what_others_call_themselves_cannot_write_to_the_terminal() -> None:
    made = screen(busy(), View(), 200, 40)
    assert all(part.text.isprintable() or not part.text for line in made for part in line)


def test_a_lost_peer_is_said_to_be_lost_and_later_away() -> None:
    text = checked(busy(), View(), 80, 40)
    rows = {name: next(line for line in text.splitlines() if line.startswith(f"  {name} ")) for name in ("attic", "kitchen", "-")}
    assert ("no answer" in rows["attic"], "paused" in rows["kitchen"], "away" in rows["-"]) == (True, True, True)


def test_a_window_that_is_too_small_says_so() -> None:
    assert checked(busy(), View(), 39, 5).startswith("the window is 39x5")
    assert screen(busy(), View(), 20, 0) == []


def test_rows_are_divided_so_that_none_is_wasted() -> None:
    assert share_rows(12, 100, 100, 100, PEERS) == (5, 3, 4)
    assert share_rows(12, 100, 100, 100, JOBS) == (3, 5, 4)
    assert share_rows(12, 2, 0, 0, PEERS) == (2, 1, 0)
    assert share_rows(12, 100, 1, 0, PEERS) == (11, 1, 0)


def test_a_window_of_rows_follows_the_chosen_one() -> None:
    assert window(range(10), 4, 0)[0] == 0
    assert window(range(10), 4, 5)[0] == 3
    assert window(range(10), 4, 9)[0] == 6
    assert window(range(3), 4, 2) == (0, range(3))


# -- any snapshot, any size ------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)
COUNTS = st.integers(0, 1 << 60)
SMALL = st.integers(0, 5000)
SECONDS = st.floats(-10, 1e12, allow_nan=False)
KEYS = st.binary(min_size=32, max_size=32)
STATUSES = st.builds(
    NodeStatus,
    free_cores=SMALL, running=SMALL, queued=COUNTS, done=COUNTS, storage_used_bytes=COUNTS, uptime_s=SECONDS, load=SECONDS,
    jobs_kept=SMALL, paused=st.sampled_from(["", "paused", "owner-active", "\x1b[0m"]), paused_since_ms=COUNTS,
)  # fmt: skip
OFFERS = st.builds(
    Offer, cores=SMALL, memory_bytes=COUNTS, storage_bytes=COUNTS, platform=TEXTS, python=TEXTS, runtimes=st.just(("native",))
)
INFOS = st.builds(NodeInfo, addresses=st.just((Address("tls", "::1", 1),)), roles=st.just(()), version=TEXTS, name=TEXTS, offer=OFFERS)
PEER_LINES = st.builds(
    PeerLine, node=KEYS, info=INFOS, status=st.none() | STATUSES, rtt_s=SECONDS, path=st.sampled_from(["", "self", "direct", "東"]),
    since_ms=COUNTS, trust=TEXTS, nat=TEXTS, favours=st.floats(-1e9, 1e9), status_ms=COUNTS,
)  # fmt: skip
JOB_LINES = st.builds(
    JobLine, job=KEYS, name=TEXTS, state=st.sampled_from(["running", "done", "failed", "stopped", "new word", ""]), units=COUNTS,
    done=COUNTS, failed=COUNTS, disputed=COUNTS, created_ms=COUNTS, expires_ms=COUNTS, role=TEXTS, rate=SECONDS, left_s=SECONDS,
)  # fmt: skip
PULSES = st.builds(
    Pulse, wall_ms=COUNTS, peers=SMALL, running=SMALL, queued=COUNTS, done=COUNTS, cpu_share=st.floats(0, 2), memory_bytes=COUNTS,
    storage_bytes=COUNTS, sent_bytes=COUNTS, received_bytes=COUNTS,
)  # fmt: skip
HEALTH = st.none() | st.builds(DhtHealth, st.booleans(), SMALL, COUNTS, COUNTS, SMALL, SECONDS, SECONDS)


EVENTS = st.builds(EventLine, COUNTS, TEXTS, TEXTS, st.lists(st.sampled_from([ME, LOST, b""]), max_size=2).map(tuple))


def few(strategy: Any) -> Any:
    return st.lists(strategy, max_size=5).map(tuple)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    st.builds(
        lambda peers, jobs, events, pulses, dht, reach, offer, status: replace(
            busy(),
            peers=peers, jobs=jobs, events=events, pulses=pulses, dht=dht, reach=reach,
            status=replace(busy().status, status=status, info=replace(busy().status.info, offer=offer), name=reach, grid=reach),
        ),
        few(PEER_LINES), few(JOB_LINES), few(EVENTS), few(PULSES), HEALTH, TEXTS, OFFERS, STATUSES,
    ),
    st.integers(40, 220),
    st.integers(8, 60),
    st.booleans(),
    st.sampled_from([PEERS, JOBS]),
)  # fmt: skip
def test_no_line_is_wider_than_the_terminal_whatever_the_node_says(
    snapshot: Snapshot, width: int, height: int, detail: bool, focus: str
) -> None:
    chosen = View(
        focus=focus,
        detail=detail,
        peer=snapshot.peers[0].node if snapshot.peers else b"",
        job=snapshot.jobs[0].job if snapshot.jobs else b"",
    )
    text = checked(snapshot, chosen, width, height)
    assert text.count("\n") == height
    assert max(lines.width_of(line) for line in plain_text(snapshot, View(), width).splitlines()) <= width


# -- the pieces ------------------------------------------------------------------------------


def test_texts_are_cut_with_an_ellipsis_and_no_other_way() -> None:
    assert lines.cut("desk", 4) == "desk"
    assert lines.cut("desks", 4) == "des…"
    assert lines.cut("東京都", 5) == "東京…"
    assert lines.width_of(lines.cut("東京都庁", 4)) == 3
    assert lines.cut("x", 0) == ""
    assert lines.cut_line((Part("ab"), Part("cd")), 4) == (Part("ab"), Part("cd"))
    assert lines.cut_line((Part("ab"), Part("cd"), Part("e")), 4) == (Part("ab"), Part("c…"))
    assert lines.cut_line((Part("ab"), Part("cd")), 2) == (Part("a…"),)


def test_texts_are_wrapped_at_words() -> None:
    assert lines.wrapped("one two three", 7) == ("one two", "three")
    assert lines.wrapped("abcdefghij k", 4) == ("abcd", "efgh", "ij k")
    assert lines.wrapped("東京都庁", 5) == ("東京", "都庁")
    assert lines.wrapped("", 5) == ("",)


def test_events_have_their_whole_text_where_there_are_lines_enough() -> None:
    said = busy().events[-5:]
    assert len(event_lines(said, View(), 60)) > 5
    assert not [line for line in event_lines(said, View(), 60, 12) if line[-1].text.endswith("…")]
    few_rows = event_lines(said, View(), 60, 4)
    assert (len(few_rows), few_rows[-1][-1].text) == (4, "  gzip -9kc {} is done?[5m")
    assert few_rows[0][-1].text.endswith("…") or few_rows[1][-1].text.endswith("…")


def test_events_call_peers_and_jobs_by_their_names() -> None:
    base = busy()
    job, name = base.jobs[0].job, base.jobs[0].name
    texts = [
        f"{short(LOST)} went away with 20 units of job {short(job)}: others get them",
        f"attic ({short(LOST)}) has it",
        f"blob x{short(LOST)} is none of its",
    ]
    events = told(replace(base, events=tuple(EventLine(0, "", text, (LOST, job, key(99))) for text in texts)))
    assert [event.text for event in events] == [
        f"attic ({short(LOST)}) went away with 20 units of job {name} ({short(job)}): others get them",
        f"attic ({short(LOST)}) has it",
        f"blob x{short(LOST)} is none of its",
    ]


def test_a_name_that_is_an_id_is_not_taken_for_one() -> None:
    base = busy()
    lost = next(peer for peer in base.peers if peer.node == LOST)
    liar = replace(lost, info=replace(lost.info, name=short(ME)))
    peers = tuple(liar if peer.node == LOST else peer for peer in base.peers)
    event = EventLine(0, "", f"{short(LOST)} and {short(ME)} differ", (LOST, ME))
    assert told(replace(base, peers=peers, events=(event,)))[0].text == f"{short(ME)} ({short(LOST)}) and desk ({short(ME)}) differ"


def test_names_of_others_are_made_harmless() -> None:
    assert lines.printable("a\x1b[2Jb\nc") == "a?[2Jb?c"
    assert lines.printable("y" * 100) == "y" * 39 + "…"
    assert lines.printable("👩\u200d🚀❤\ufe0f") == "👩🚀❤"
    assert lines.printable("東" * 30, 11) == "東" * 5 + "…"


def test_a_bar_is_empty_for_nothing_alone_and_full_for_all_alone() -> None:
    assert [lines.bar(share, 4, ASCII) for share in (-1.0, 0.0, 0.001, 0.5, 0.999, 1.0, 7.0)] == [
        "....", "....", "#...", "##..", "###.", "####", "####",
    ]  # fmt: skip


def test_a_sparkline_ends_with_the_newest_value() -> None:
    assert lines.sparkline([0, 1, 2, 7], 4) == "▁▂▃█"
    assert lines.sparkline([7, 1], 4) == "  █▂"
    assert lines.sparkline([1, 2, 3], 2, top=6.0) == "▃▅"
    assert lines.sparkline([], 3) == "   "
    assert lines.sparkline([0, 0], 2) == "▁▁"


def test_figures_keep_their_width() -> None:
    assert [lines.duration(seconds) for seconds in (-1, 5, 119, 120, 7200, 172_800, 1e12)] == [
        "0 s", "5 s", "119 s", "2 min", "2 h", "2 d", "99999 d",
    ]  # fmt: skip
    assert [lines.count(number) for number in (0, 99_999, 1e5, 1e7, 1e10, 1e13)] == ["0", "99999", "100k", "10M", "10G", ">10T"]
    assert [lines.rate(value) for value in (0, 0.01, 2.34, 118.4)] == ["0", "<0.1", "2.3", "118"]
    assert [lines.milliseconds(seconds) for seconds in (0, 0.0123, 0.5, 20)] == ["-", "12.3 ms", "500 ms", "20 s"]
    assert lines.clock(1_700_000_000_000, 3600) == "23:13:20"
