"""What a person has asked ``top`` to show, and what each key does to that: pure, so that a key is tested without a terminal."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from p2pgrid.wire.owner import JobLine, PeerLine, Snapshot
from p2pgrid_cli.dashboard.lines import UNICODE, Glyphs
from p2pgrid_cli.dashboard.order import SORTS, jobs_shown, peers_shown

FILTER_CHARS_MAX = 40
PAGE_ROWS = 10

PEERS, JOBS = "peers", "jobs"


class Action(StrEnum):
    """What a key asks of the world outside of the picture."""

    NONE = "none"
    QUIT = "quit"
    PAUSE = "pause"
    RESUME = "resume"
    REPAINT = "repaint"


class View(NamedTuple):
    """The state of the picture."""

    focus: str = PEERS
    sort: str = SORTS[0]
    filter_peers: str = ""
    filter_jobs: str = ""
    typing: bool = False
    """The filter of the table in focus is being typed."""
    peer: bytes = b""
    """The peer that is selected; rows move, so it is named by its key."""
    job: bytes = b""
    detail: bool = False
    help: bool = False
    note: str = ""
    """Said in the last line, until the next key."""
    alarm: str = ""
    """Said there before everything else."""
    keys: bool = True
    """Whether keys can be read here."""
    glyphs: Glyphs = UNICODE
    utc_offset_s: int = 0

    @property
    def filter(self) -> str:
        """Of the table in focus."""
        return self.filter_peers if self.focus == PEERS else self.filter_jobs

    @property
    def selected(self) -> bytes:
        """The row that is selected in the table in focus."""
        return self.peer if self.focus == PEERS else self.job

    def filtered(self, text: str) -> View:
        """With another filter in the table in focus."""
        return self._replace(filter_peers=text) if self.focus == PEERS else self._replace(filter_jobs=text)

    def selecting(self, key: bytes) -> View:
        """With another row selected in the table in focus."""
        return self._replace(peer=key) if self.focus == PEERS else self._replace(job=key)


def rows_of(view: View, snapshot: Snapshot) -> list[bytes]:
    """The keys of the rows of the table in focus, in their order."""
    if view.focus == PEERS:
        return [line.node for line in peers_shown(snapshot, view.sort, view.filter_peers)]
    return [line.job for line in jobs_shown(snapshot, view.filter_jobs)]


def selected_peer(view: View, snapshot: Snapshot) -> PeerLine | None:
    """The peer whose detail is asked for, as long as it is known."""
    return next((line for line in snapshot.peers if line.node == view.peer), None)


def selected_job(view: View, snapshot: Snapshot) -> JobLine | None:
    """The job whose detail is asked for, as long as it is known."""
    return next((line for line in snapshot.jobs if line.job == view.job), None)


FAR = 1 << 30
STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -PAGE_ROWS, "pagedown": PAGE_ROWS, "home": -FAR, "end": FAR}
FROM_TOP = (1, PAGE_ROWS, -FAR)
"""Steps that select the first row when none was selected."""


def press(view: View, key: str, snapshot: Snapshot) -> tuple[View, Action]:
    """What a key does. Keys are single characters, or names as ``up``, ``enter``, ``esc``."""
    view = view._replace(note="")
    if key == "ctrl-c":
        return view, Action.QUIT
    if key == "ctrl-l":
        return view, Action.REPAINT
    if view.typing:
        return _type(view, key), Action.NONE
    if key in STEPS:
        return (view if view.help else _move(view, STEPS[key], snapshot)), Action.NONE
    if key in ACTIONS:
        return view, ACTIONS[key]
    return _change(view, key, snapshot), Action.NONE


ACTIONS = {"q": Action.QUIT, "p": Action.PAUSE, "r": Action.RESUME}


def _change(view: View, key: str, snapshot: Snapshot) -> View:
    if key in ("?", "h"):
        return view._replace(help=not view.help)
    if key == "esc":
        return _back(view)
    if view.help:
        return view
    if key == "s":
        after = SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)]
        return view._replace(sort=after, note=f"peers by {after}")
    if key == "/":
        return view._replace(typing=True, detail=False)
    if key in ("tab", "backtab"):
        return view._replace(focus=JOBS if view.focus == PEERS else PEERS, detail=False)
    if key == "enter":
        return _open(view, snapshot)
    return view


def _back(view: View) -> View:
    """One step back: out of the help, out of a detail, out of a filter, out of a selection."""
    if view.help:
        return view._replace(help=False)
    if view.detail:
        return view._replace(detail=False)
    return view.filtered("") if view.filter else view.selecting(b"")


def _type(view: View, key: str) -> View:
    if key == "enter":
        return view._replace(typing=False)
    if key == "esc":
        return view.filtered("")._replace(typing=False)
    if key == "backspace":
        return view.filtered(view.filter[:-1])
    if len(key) == 1 and key.isprintable() and len(view.filter) < FILTER_CHARS_MAX:
        return view.filtered(view.filter + key)
    return view


def _move(view: View, step: int, snapshot: Snapshot) -> View:
    rows = rows_of(view, snapshot)
    if not rows:
        return view.selecting(b"")
    if view.selected not in rows:
        return view.selecting(rows[0 if step in FROM_TOP else -1])
    return view.selecting(rows[max(0, min(len(rows) - 1, rows.index(view.selected) + step))])


def _open(view: View, snapshot: Snapshot) -> View:
    rows = rows_of(view, snapshot)
    if not rows:
        return view._replace(note=f"no {view.focus} to look at")
    return (view if view.selected in rows else view.selecting(rows[0]))._replace(detail=True)
