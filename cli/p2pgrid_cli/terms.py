"""The owner's terms as people write them: in options, in the environment, in a file. Each reader raises UsageError."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from p2pgrid.errors import UsageError
from p2pgrid.model.sizes import parse_size, parse_span_ms

RATE_MIN = 64 << 10
"""Bytes a second: with less, a chunk takes longer than others wait for one."""
IDLE_MAX_S = 7 * 86_400.0
DAY_MIN = 24 * 60
NICE_MAX = 19
TRUTHS = {"yes": True, "true": True, "1": True, "on": True, "no": False, "false": False, "0": False, "off": False}
_HOURS = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def text_of(value: Any) -> str:
    """A word, whatever a file has there."""
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{value!r} is no text")
    return value.strip()


def words_of(value: Any) -> list[str]:
    """Words with commas between them, or the list that a file has."""
    parts = value if isinstance(value, list | tuple) else text_of(value).split(",")
    if not parts:
        raise UsageError("an empty list says nothing")
    return [text_of(part) for part in parts]


def count_of(value: Any) -> int:
    """A whole number from 0."""
    text = str(value).strip()
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise UsageError(f"{value!r} is no whole number")
    return int(text)


def truth_of(value: Any) -> bool:
    """Yes or no."""
    found = TRUTHS.get(str(value).strip().lower())
    if found is None:
        raise UsageError(f"{value!r} is neither yes nor no")
    return found


def size_of(value: Any) -> int:
    """Bytes."""
    return parse_size(str(value))


def rate_of(value: Any) -> int:
    """Bytes a second; 0 for no cap."""
    rate = parse_size(str(value).strip().removesuffix("/s"))
    if 0 < rate < RATE_MIN:
        raise UsageError(f"'{value}' a second is too little to move blobs with", hint="at least 64K, or 0 for no cap")
    return rate


def idle_of(value: Any) -> float:
    """Seconds from minutes, or from a span with its unit; 0: whatever the owner does."""
    text = str(value).strip()
    try:
        seconds = float(text) * 60
    except ValueError:
        seconds = parse_span_ms(text) / 1000
    if isinstance(value, bool) or not 0 <= seconds <= IDLE_MAX_S:
        raise UsageError(f"'{value}' is no time for the machine to be idle", hint="minutes, for example 10; 0 to work in any case")
    return seconds


def share_of(value: Any) -> float:
    """0 to 1, from ``0.3`` or ``30%``."""
    text = str(value).strip()
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise UsageError(f"'{value}' is no share", hint="for example 30%, or 0 to work however busy the machine is")
    return share


def nice_of(value: Any) -> int:
    """0 to 19."""
    nice = count_of(value)
    if nice > NICE_MAX:
        raise UsageError(f"'{value}' is no niceness", hint=f"from 0 (as important as the owner's programs) to {NICE_MAX}")
    return nice


def parse_listen(text: str | None) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``HOST`` or ``:PORT``. Raises UsageError."""
    import ipaddress

    if not text:
        return "0.0.0.0", 0  # noqa: S104 - a volunteer's node is meant to be reached
    host, _, port = text.rpartition(":") if text.count(":") == 1 or "]" in text else (text, "", "")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104
    try:
        ipaddress.ip_address(host)
        number = int(port or 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16:
        raise UsageError(f"'{text}' is no address to listen on", hint="a numeric host and a port, for example 127.0.0.1:7400")
    return host, number


def listen_of(value: Any) -> str:
    """An address to listen on."""
    text = text_of(value)
    parse_listen(text)
    return text


def hours_of(value: Any) -> tuple[tuple[int, int], ...]:
    """Spans of minutes of the day, from ``22:00-07:00``; none for ``always``."""
    words = words_of(value)
    if words == ["always"]:
        return ()
    return tuple(_span(word) for word in words)


def _span(text: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(text)
    start, end = (int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])) if match else (0, 0)
    minutes = (int(match[2]), int(match[4])) if match else (60,)
    if max(minutes) > 59 or start >= DAY_MIN or end > DAY_MIN or start == end:
        raise UsageError(f"'{text}' are no hours", hint="for example 22:00-07:00, several with commas between them, or always")
    return start, end


def submitters_of(value: Any) -> tuple[str, ...]:
    """Submitter keys in full; none for ``all``."""
    from p2pgrid.model.ids import from_text

    words = words_of(value)
    if words == ["all"]:
        return ()
    for word in words:
        from_text(word, what="submitter key")
    return tuple(word.lower() for word in words)


def packages_of(value: Any) -> tuple[str, ...]:
    """``off`` or ``any`` alone, or the names that are allowed."""
    from p2pgrid.model.environment import normalised

    words = words_of(value)
    if words in (["off"], ["any"]):
        return (words[0],)
    odd = next((word for word in words if not _PACKAGE.fullmatch(word) or word in ("off", "any")), None)
    if odd is not None:
        raise UsageError(f"'{odd}' is no name of a package", hint="any, off, or names with commas between them")
    return tuple(normalised(word) for word in words)


def runtimes_of(value: Any) -> tuple[str, ...]:
    """Names of runtimes; ``all`` for every one."""
    from p2pgrid.model.job import RUNTIMES

    words = words_of(value)
    if words == ["all"]:
        return RUNTIMES
    _check_known(words, RUNTIMES, "runtime")
    return tuple(runtime for runtime in RUNTIMES if runtime in words)


def _check_known(words: Iterable[str], known: Iterable[str], what: str) -> None:
    names = list(known)
    for word in words:
        if word not in names:
            raise UsageError(f"'{word}' is no {what}", hint=suggestion(word, names))


def close_to(word: str, known: Iterable[str]) -> str:
    """What may have been meant; empty when nothing is like it."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """What may have been meant, or all that there is."""
    names = list(known)
    close = close_to(word, names)
    return f"did you mean '{close}'?" if close else f"known are {', '.join(names)}"


# -- as people would write them ----------------------------------------------------------------


def size_said(size_bytes: int) -> str:
    """Bytes with the largest unit that says them exactly, else about, in three digits."""
    from p2pgrid_cli.common import size_text

    if size_bytes < 1 << 10:
        return str(size_bytes)
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if not size_bytes % (1 << shift) and size_bytes >> shift < 10_000:
            return f"{size_bytes >> shift}{unit}"
    return size_text(size_bytes)


def truth_said(truth: bool) -> str:
    """Yes or no."""
    return "yes" if truth else "no"


def words_said(words: Iterable[str]) -> str:
    """Words with commas between them."""
    return ",".join(words)


def submitters_said(keys: Iterable[str]) -> str:
    """Keys, or ``all``."""
    return words_said(keys) or "all"


def idle_said(seconds: float) -> str:
    """Minutes, or seconds where they are no whole minutes."""
    return f"{seconds / 60:.0f}" if seconds % 60 == 0 else f"{seconds:g}s"


def share_said(share: float) -> str:
    """Hundredths; 0 for never."""
    return f"{share * 100:g}%" if share else "0"


def hours_said(spans: Iterable[tuple[int, int]]) -> str:
    """Spans of hours and minutes."""
    return ",".join("-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in span) for span in spans) or "always"


class Term(NamedTuple):
    """One setting. ``name`` is its key in a file; with dashes, its option; in capitals behind ``P2PGRID_``, its variable.

    ``write`` makes of a value what ``read`` reads.
    """

    name: str
    field: str
    read: Callable[[Any], Any]
    write: Callable[[Any], str] = str

    @property
    def option(self) -> str:
        """How ``join`` calls it."""
        return "--" + self.name.replace("_", "-")


TERMS = (
    Term("name", "name", text_of),
    Term("cpus", "cpus", count_of),
    Term("memory", "memory_bytes", size_of, size_said),
    Term("storage", "storage_bytes", size_of, size_said),
    Term("listen", "listen", listen_of),
    Term("native", "native", truth_of, truth_said),
    Term("runtimes", "runtimes", runtimes_of, words_said),
    Term("accept_from", "accept_from", submitters_of, submitters_said),
    Term("packages", "packages", packages_of, words_said),
    Term("only_idle", "only_idle_s", idle_of, idle_said),
    Term("on_battery", "on_battery", truth_of, truth_said),
    Term("hours", "hours", hours_of, hours_said),
    Term("busy", "busy_share", share_of, share_said),
    Term("nice", "nice", nice_of),
    Term("upload", "upload_bytes_per_s", rate_of, size_said),
    Term("download", "download_bytes_per_s", rate_of, size_said),
)
