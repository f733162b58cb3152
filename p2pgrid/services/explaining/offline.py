"""Why no node runs in a home, told without one: from what its last life left behind, and from what can be seen of the folder.

1. A node that was killed could write nothing: its announcement in the lock file is what tells. That is looked for first.
2. Then comes how the last life ended, or why it could not begin, as it was written down.
3. What is wrong now is added, whatever the last life said: a full disk, a membership that ended, a folder that cannot be used.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import short
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.services.explaining.standing import EXPIRES_SOON_MS, size_text
from p2pgrid.services.explaining.words import because, code_of, fact, moment_text, said, span_text
from p2pgrid.services.membership import HomeMembership, load, member_of
from p2pgrid.store.disk import Disk
from p2pgrid.store.home import Home, RunningNode
from p2pgrid.store.lastend import LastEnd, last_sign_ms, read_end
from p2pgrid.wire.faces import Because, Explanation

DISK_LOW_BYTES = 32 * MIB
LOG = "node.log"
OUTPUT = "output.log"
"""What its process said beside its log: how its start went, and how it ended if it could not even log that."""
LOG_TAIL_BYTES = 4096
RENEW = "ask for a new invite, then: p2pgrid join INVITE"


def explain_without_node(home: Home, now_ms: int, *, error: P2PGridError | None = None) -> Explanation:
    """Why nobody answers in this home. ``now_ms``: Unix milliseconds. ``error``: what opening the owner's channel said.

    Blocks for an instant; raises nothing.
    """
    try:
        return _explained(home, now_ms, error)
    except (P2PGridError, OSError) as problem:
        step = f"check who may read {home.folder}"
        return _explanation(home, "not running", because(Reason.BAD_HOME, f"the home cannot be read: {problem}", next_step=step), [])


def _explained(home: Home, now_ms: int, error: P2PGridError | None) -> Explanation:
    running = home.running()
    if running is not None:
        return _unheard(home, running, error)
    if not home.exists():
        text = f"there is no home at {home.folder}"
        return _explanation(home, "never joined", because(Reason.NEVER_JOINED, text), _visible(home, None, now_ms))
    membership, damage = _membership(home)
    end, killed = read_end(home), home.announced()
    lines = [*_visible(home, membership, now_ms), *damage]
    first = _first(home, end, killed, membership, now_ms)
    if end is not None and not (end.failed and killed is None):
        lines.append(fact(f"the last end that was written: {_end_text(end, now_ms)}"))
    state = "never joined" if membership is None else "not running"
    return _explanation(home, state, first, [line for line in lines if not _says_the_same(line, first)])


def _explanation(home: Home, state: str, first: Because, lines: list[Because]) -> Explanation:
    ordered = [line for line in lines if line.reason] + [line for line in lines if not line.reason]
    return Explanation("me", b"", state, f"no node runs in {home.folder}", (first, *ordered))


def _first(home: Home, end: LastEnd | None, killed: RunningNode | None, membership: HomeMembership | None, now_ms: int) -> Because:
    """The reason itself."""
    sign_ms = last_sign_ms(home.folder)
    if killed is not None:
        text = f"the node (pid {killed.pid}) ended without a word, after {moment_text(sign_ms)}: it was killed, or the machine went down"
        return because(Reason.KILLED, text, [*_log(home)])
    if end is not None and end.failed:
        what = "the node ended" if end.started else "the last start failed"
        ago = span_text((now_ms - end.wall_ms) / 1000)
        code = code_of(end.reason) or Reason.NOT_RUNNING
        text = f"{what}, {ago} ago: {said(end.text)}"
        return because(code, text, next_step=end.hint or code.next_step)
    full = next((line for line in _disk(home.folder) if line.reason == Reason.DISK_FULL), None)
    if full is not None:
        return full
    if membership is None:
        return because(Reason.NEVER_JOINED)
    how = f": {_end_text(end, now_ms)}" if end is not None else ""
    return because(Reason.NOT_RUNNING, f"no node runs in this home{how}", [*_log(home)])


def _end_text(end: LastEnd, now_ms: int) -> str:
    text = said(end.text) or "it ended"
    return f"{text}, {span_text((now_ms - end.wall_ms) / 1000)} ago ({moment_text(end.wall_ms)})"


def _unheard(home: Home, running: RunningNode, error: P2PGridError | None) -> Explanation:
    """A node runs, and the owner's channel cannot be opened."""
    code = (code_of(error.reason) if error is not None else None) or Reason.TIMEOUT
    what = f": {said(error.message)}" if error is not None else ""
    step = (error.hint if error is not None else "") or f"see {home.folder / LOG}; kill {running.pid} ends it"
    text = f"it does not answer at {running.host} port {running.port}{what}"
    told = f"a node runs in {home.folder} (pid {running.pid}), and does not answer"
    return Explanation("me", b"", "not answering", told, (because(code, text, _log(home), next_step=step),))


# -- what can be seen --------------------------------------------------------------------------


def _membership(home: Home) -> tuple[HomeMembership | None, list[Because]]:
    try:
        return load(home), []
    except P2PGridError as error:
        return None, [because(Reason.BAD_HOME, said(error.message), next_step=error.hint or Reason.BAD_HOME.next_step)]


def _visible(home: Home, membership: HomeMembership | None, now_ms: int) -> list[Because]:
    return [*_disk(home.folder), *_named(home), *(_place(home, membership, now_ms) if membership is not None else [])]


def _named(home: Home) -> list[Because]:
    """By what name others speak of it, as far as it has a key already."""
    if not (home.folder / "node.key").exists():
        return []
    return [fact(f"this node is {short(home.node_key().public)}")]


def _disk(folder: Path) -> list[Because]:
    place = next((place for place in (folder, *folder.parents) if place.is_dir()), folder)
    lines = []
    free_bytes = Disk().free_bytes_at(place)
    if free_bytes is not None:
        text = f"{size_text(free_bytes)} free on the disk of {place}"
        lines.append(because(Reason.DISK_FULL, text) if free_bytes < DISK_LOW_BYTES else fact(text))
    if place == folder and not os.access(place, os.W_OK):
        lines.append(because(Reason.BAD_HOME, f"{place} cannot be written"))
    return lines


def _place(home: Home, membership: HomeMembership, now_ms: int) -> list[Because]:
    """The membership: whose, and until when."""
    name = said(membership.grid.name)
    try:
        if not (home.folder / "node.key").exists():
            return [because(Reason.BAD_HOME, "its key is gone: without it the membership is worth nothing", next_step=RENEW)]
        until_ms = member_of(home, membership).expires_ms
    except P2PGridError as error:
        code = code_of(error.reason) or Reason.NOT_MEMBER
        return [because(code, f"its membership of '{name}' does not hold: {error.message}", next_step=error.hint or RENEW)]
    if until_ms <= now_ms:
        return [because(Reason.EXPIRED, f"its membership of '{name}' ended at {moment_text(until_ms)}", next_step=RENEW)]
    if until_ms - now_ms < EXPIRES_SOON_MS:
        return [because(Reason.EXPIRES_SOON, f"its membership of '{name}' ends at {moment_text(until_ms)}", next_step=RENEW)]
    return [fact(f"member of '{name}' ({short(membership.grid.id)}) until {moment_text(until_ms)}")]


def _log(home: Home) -> list[Because]:
    """The last line of what a node in the background said."""
    path = home.folder / OUTPUT
    with suppress(OSError), path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        lines = log.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return [fact(f"the last line of {path}: {said(last)}")] if last else []
    return []


def _says_the_same(line: Because, first: Because) -> bool:
    return bool(line.reason) and line.reason == first.reason in (Reason.EXPIRED, Reason.DISK_FULL)
