"""How the last node of a home ended, or why it could not start: one small file, for whoever asks when no node is there to answer.

``last-end.json`` is written at the end and replaced at the next one (docs/spec/disk.md#the-last-end). It is a help and nothing rests
on it: a file that is missing or damaged counts as none, and a disk that refuses it is no error.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from p2pgrid.errors import P2PGridError
from p2pgrid.store.home import Home

LAST_END_FILE = "last-end.json"
_CHARS_MAX = 2000
_SIGNS = ("node.log", "peers.json", "seen.json", "index.sqlite", "index.sqlite-wal", "ledger", "blobs", "lock")
"""What a node that runs writes to now and again."""


class LastEnd(msgspec.Struct, frozen=True):
    """What is written. ``failed`` False: it ended as it was told to."""

    wall_ms: int
    failed: bool
    reason: str = ""
    """A reason code; empty for a plain end, and for an error without one."""
    text: str = ""
    hint: str = ""
    started: bool = False
    """Whether it had been ready."""


def note_end(home: Home, end: LastEnd) -> None:
    """Write how a node ended. Whatever the disk says against it."""
    cut = msgspec.structs.replace(end, text=end.text[:_CHARS_MAX], hint=end.hint[:_CHARS_MAX])
    with suppress(P2PGridError):
        home.write_private(LAST_END_FILE, msgspec.json.encode(cut) + b"\n")


def read_end(home: Home) -> LastEnd | None:
    """How the last node ended, as far as that was written and is readable."""
    try:
        raw = home.read_private(LAST_END_FILE)
        return msgspec.json.decode(raw, type=LastEnd) if raw else None
    except (P2PGridError, msgspec.MsgspecError, ValueError):
        return None


def last_sign_ms(folder: Path, names: Iterable[str] = _SIGNS) -> int:
    """When a node last wrote to its home, in Unix milliseconds; 0 when it never did."""
    newest = 0
    for name in names:
        with suppress(OSError):
            newest = max(newest, (folder / name).stat().st_mtime_ns // 1_000_000)
    return newest
