"""What a node writes into its log: lines of an event and its fields, over the standard library's ``logging``.

1. The library only says; how lines look and where they go is the application's. Without one, they read as plain text.
2. Every event and each of its fields is named here once, and on docs/reference/logs.md.
3. A line that nobody wants costs one look at the logger's level. A line that is wanted costs little at the place that says it:
   its fields are made ready when it is written, which an application may do in another thread.
4. Nothing secret and nothing endless leaves: bytes are shown as short ids, texts are cut, invites are struck out.
5. Texts come from strangers too, and a log is read on terminals: what no printer knows is shown as ``?``.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

TEXT_MAX = 300
"""Characters of one field."""
ITEMS_MAX = 8
"""Items of a field that has several."""
MESSAGE_MAX = 2000
_SHORT_BYTES = 5
_DIGITS = 6
_SECRET = re.compile(r"p2pgrid-[a-z2-7]{12,}|\b[a-z2-7]{52}\b", re.IGNORECASE)
"""An invite, whole or cut, and a key or id in full."""
_SECRET_MIN = 20
"""Characters of the shortest text that has one."""


class Event(NamedTuple):
    """One kind of line. ``fields``: each with what it means, its unit included."""

    name: str
    meaning: str
    fields: Mapping[str, str]


_JOB = {"job": "the job, as a short id"}
_PEER = {"peer": "the other node, as a short id"}
_REASON = {"reason": "a code of reasons.md; empty when nothing went wrong"}

STARTED = Event(
    "started",
    "A node is up.",
    {
        "node": "this node, as a short id",
        "version": "of p2pgrid",
        "addresses": "where it listens",
        "cores": "how many it lends",
        "storage_bytes": "how much it lends",
    },
)
STOPPED = Event(
    "stopped",
    "A node has ended in good order.",
    {"node": "this node, as a short id", "seconds": "since its start", "units": "run here since then"},
)
BATCH = Event(
    "batch",
    "A batch of units was run here, and its receipt was acknowledged or given up: one line for each receipt.",
    {
        **_JOB,
        "lead": "the node that leased the units, as a short id",
        "units": "how many the receipt answers",
        "ok": "how many of them gave a value",
        "failed": "how many gave an error instead",
        "run_s": "seconds that the units ran, summed up",
        "queue_s": "seconds from the lease to the start of its first unit: for a free core, for inputs, for packages",
        "deliver_s": "seconds from the signed receipt to its acknowledgement",
        "bytes": "of the receipt and the results in it",
        "fuel": "burnt by WebAssembly units, summed up; 0 for others",
        "attempt": "deliveries it took, 1 for the first",
        **_REASON,
    },
)
JOB = Event(
    "job",
    "A job that this node leads has ended.",
    {
        **_JOB,
        "state": "done, failed or cancelled",
        "units": "of the job, those that reduce and combine included",
        "failed": "units whose answer is an error",
        "seconds": "since this node began to lead it",
        "epoch": "which of its leads this is, 0 for the submitter's node",
    },
)
CONNECTION = Event(
    "connection",
    "A connection has ended. Those of the owner's commands are said at debug.",
    {
        **_PEER,
        "direction": "out: this node dialled; in: the other; owner: a command of this node's owner",
        "path": "direct, relayed or simulated",
        "seconds": "it lived",
        "calls_out": "calls, notices and streams from here",
        "calls_in": "those from the other side",
        "bytes_out": "sent, encryption not counted",
        "bytes_in": "received, likewise",
        "rtt_ms": "smoothed round trip; 0 while unknown",
        **_REASON,
    },
)
REFUSED = Event(
    "refused",
    "A connection from somebody was refused, or failed before it was up.",
    {**_PEER, **_REASON, "text": "the same for people"},
)
HAPPENED = Event(
    "happened",
    "Something that the owner may want to know, as in the events of `top`. A warning when something is damaged or needs the owner.",
    {**_REASON, "text": "the same for people", "about": "short ids of the jobs, nodes and blobs it is about"},
)
EVENTS = (STARTED, STOPPED, BATCH, JOB, CONNECTION, REFUSED, HAPPENED)


class Line:
    """An event and its fields, made ready only when somebody writes them. As text: ``batch job=abcdefgh units=12``."""

    __slots__ = ("_fields", "event")

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self.event = event
        self._fields = fields

    def fields(self) -> dict[str, Any]:
        """Every field as JSON has it, short and without secrets."""
        return {name: clean(value) for name, value in self._fields.items()}

    def __str__(self) -> str:
        return sayable(" ".join([self.event, *[f"{name}={_plain(value)}" for name, value in self.fields().items()]]))


def line(logger: logging.Logger, level: int, event: Event, **fields: Any) -> None:
    """Say one line, if the logger wants lines of this level. ``fields``: those of the event; none is changed afterwards."""
    if logger.isEnabledFor(level):
        # Not by ``log``: which line of code said it is no news, and finding that out costs as much as all the rest.
        logger.handle(logger.makeRecord(logger.name, level, "", 0, Line(event.name, fields), (), None))


def clean(value: Any) -> Any:
    """A value fit for a log: bytes as a short id, texts cut and without secrets, floats with six digits, few items of many."""
    kind = type(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return round(value, _DIGITS)
    if isinstance(value, bytes):
        return _short(value[:_SHORT_BYTES])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [clean(item) for item in value[:ITEMS_MAX]]
    return clean_text(str(value))


@lru_cache(maxsize=1024)
def _short(start: bytes) -> str:
    """As :func:`p2pgrid.model.ids.short`, which lies above."""
    return base64.b32encode(start).decode().rstrip("=").lower()


def clean_text(text: str, chars_max: int = TEXT_MAX, keep: str = "") -> str:
    """A text in one line's bounds: invites struck out, ids and keys shortened, the rest cut at ``chars_max``.

    ``keep``: as in :func:`sayable`.
    """
    # Cut twice: a search through a text of megabytes would hold up whoever writes it.
    text = sayable(text[: 2 * chars_max], keep)
    if len(text) < _SECRET_MIN:
        return text
    text = _SECRET.sub(_struck, text)
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


def sayable(text: str, keep: str = "") -> str:
    """A text as it may reach a terminal: no escape sequence, no control character, no turned writing; ``?`` stands for each.

    ``keep``: characters that are left as they are, a newline perhaps.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else "?" for char in text)


def _struck(found: re.Match[str]) -> str:
    text = found.group()
    return "p2pgrid-(struck out)" if text.lower().startswith("p2pgrid-") else text[:8]


def _plain(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return repr(text) if not text or " " in text or "=" in text else text
