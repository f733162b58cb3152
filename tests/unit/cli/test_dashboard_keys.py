"""What each key of ``top`` does, without a terminal: bytes to names, names to views."""

from __future__ import annotations

import pytest

from bench.snapshots import ME, busy, crowd
from p2pgrid.wire.owner import Snapshot
from p2pgrid_cli.dashboard.keyboard import Keys
from p2pgrid_cli.dashboard.order import SORTS, jobs_shown, peers_shown
from p2pgrid_cli.dashboard.view import JOBS, PEERS, Action, View, press, rows_of

BUSY = busy()


def pressed(*keys: str, snapshot: Snapshot = BUSY, view: View | None = None) -> View:
    view = view or View()
    for key in keys:
        view, action = press(view, key, snapshot)
        assert action is Action.NONE
    return view


@pytest.mark.parametrize(
    ("key", "action"),
    [("q", Action.QUIT), ("ctrl-c", Action.QUIT), ("p", Action.PAUSE), ("r", Action.RESUME), ("ctrl-l", Action.REPAINT)],
)
def test_keys_that_reach_beyond_the_picture(key: str, action: Action) -> None:
    assert press(View(), key, BUSY)[1] is action


def test_s_goes_through_the_orders_and_says_which() -> None:
    seen = [view.sort for view in (pressed(*"s" * count) for count in range(len(SORTS) + 1))]
    assert seen == [*SORTS, SORTS[0]]
    assert pressed("s").note == "peers by spare"
    assert pressed("s", "down").note == ""


@pytest.mark.parametrize("sort", SORTS)
def test_this_node_is_first_and_nodes_that_do_not_answer_come_last(sort: str) -> None:
    lines = peers_shown(BUSY, sort)
    assert lines[0].node == ME
    assert len(lines) == len(BUSY.peers)
    if sort in ("spare", "running", "done", "rtt"):
        assert [line.status is None for line in lines[-2:]] == [True, True]


def test_orders_are_what_they_say() -> None:
    assert [line.status.free_cores for line in peers_shown(BUSY, "spare")[1:-2] if line.status] == [4, 4, 2, 1, 0]
    assert [line.status.done for line in peers_shown(BUSY, "done")[1:3] if line.status] == [98_765, 120]
    assert [round(line.rtt_s, 4) for line in peers_shown(BUSY, "rtt")[1:3]] == [0.0007, 0.0041]
    assert peers_shown(BUSY, "since")[1].info.name == "", "the one that was seen longest ago"


def test_jobs_that_go_on_come_before_those_that_ended() -> None:
    states = [job.state for job in jobs_shown(BUSY)]
    assert states == ["running"] * 3 + ["incomplete", "stopped", "done", "done", "cancelled"]


def test_the_selection_moves_and_stays_within_the_rows() -> None:
    rows = rows_of(View(), BUSY)
    assert pressed("down").peer == rows[0]
    assert pressed("down", "j").peer == rows[1]
    assert pressed("down", "k").peer == rows[0]
    assert pressed("up").peer == rows[-1]
    assert pressed("end", "down").peer == rows[-1]
    assert pressed("pagedown", "pagedown").peer == rows[-1]
    assert pressed("home").peer == rows[0]


def test_the_selection_stays_with_its_peer_when_rows_move() -> None:
    view = pressed("down", "down", "down")
    sorted_view = pressed("s", "s", view=view)
    assert sorted_view.peer == view.peer


def test_a_selected_peer_that_is_gone_selects_from_the_top() -> None:
    assert pressed("down", view=View(peer=b"gone")).peer == rows_of(View(), BUSY)[0]


def test_tab_goes_between_peers_and_jobs() -> None:
    assert pressed("tab").focus == JOBS
    assert pressed("tab", "tab").focus == PEERS
    assert pressed("tab", "down").job == jobs_shown(BUSY)[0].job
    assert pressed("tab", "down").peer == b""


def test_enter_opens_what_is_selected_and_escape_goes_back_step_by_step() -> None:
    opened = pressed("enter")
    assert (opened.detail, opened.peer) == (True, ME)
    assert pressed("esc", view=opened) == View(peer=ME)
    assert pressed("esc", "esc", view=opened) == View()
    nothing = pressed("/", *"zzz", "enter", "enter")
    assert (nothing.detail, nothing.note) == (False, "no peers to look at")
    assert pressed("esc", view=nothing).filter_peers == ""


def test_a_filter_is_typed_and_kept_or_dropped() -> None:
    typing = pressed("/", *"attix", "backspace", "c")
    assert (typing.typing, typing.filter_peers) == (True, "attic")
    assert [line.info.name for line in peers_shown(BUSY, "name", "ATTIC")] == ["attic"]
    assert pressed("enter", view=typing) == View(filter_peers="attic")
    assert pressed("esc", view=typing) == View()
    assert pressed("q", view=typing).filter_peers == "atticq", "letters are letters there"
    assert len(pressed("/", *"x" * 100).filter_peers) == 40
    jobs = pressed("tab", "/", *"wasm")
    assert (jobs.filter_peers, [job.name for job in jobs_shown(BUSY, jobs.filter_jobs)]) == ("", ["mandelbrot.wasm"])


def test_a_state_can_be_looked_for_in_words() -> None:
    assert {line.info.name for line in peers_shown(BUSY, "name", "no answer")} == {"attic"}
    assert {line.info.name for line in peers_shown(BUSY, "name", "owner-active")} == {"kitchen"}


def test_help_opens_and_closes_and_hides_the_other_keys() -> None:
    assert pressed("?").help
    assert not pressed("h", "?").help
    assert not pressed("?", "esc").help
    assert pressed("?", "s", "down", "tab", "enter") == View(help=True)


def test_a_thousand_peers_are_sorted_and_filtered() -> None:
    many = crowd()
    assert len(peers_shown(many, "rtt")) == 1000
    assert [line.info.name for line in peers_shown(many, "name", "machine-0500")] == ["machine-0500"]


# -- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q?/", ["q", "?", "/"]),
        (b"\r\n\t\x7f\x08\x03\x0c", ["enter", "enter", "tab", "backspace", "backspace", "ctrl-c", "ctrl-l"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[F\x1b[1~\x1b[4~\x1b[Z", ["pageup", "pagedown", "home", "end", "home", "end", "backtab"]),
        (b"\x1b[1;5A", ["up"]),
        ("東é".encode(), ["東", "é"]),
        (b"\x1b\x1b", ["esc"]),
        (b"\x1b[200~\x1b[99;99R\x00\x01", []),
        (b"\xff", ["\ufffd"]),
        (b"\x1b[" + b"1" * 40 + b"A", ["1"] * 25 + ["A"]),
    ],
)
def test_bytes_become_keys_however_they_are_cut(data: bytes, keys: list[str]) -> None:
    whole, pieces = Keys(), Keys()
    assert whole.feed(data) == keys
    assert [key for index in range(len(data)) for key in pieces.feed(data[index : index + 1])] == keys


def test_an_escape_that_nothing_follows_is_the_key() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b") == []
    assert keys.pending
    assert keys.flush() == ["esc"]
    assert not keys.pending
    assert keys.feed(b"A") == ["A"]


def test_half_a_sequence_is_forgotten() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b[") == []
    assert keys.flush() == []
    assert keys.feed(b"q") == ["q"]
