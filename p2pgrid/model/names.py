"""Which relative names are accepted from outside: plain, inside, and the same file on every system.

A name comes from a peer, a job, a unit's result or the manifest of a folder. It is refused, never repaired: a repaired
name is a second name for the same file, and two names for one file are how checks get fooled. The rules are those of
the strictest system (Windows) everywhere, so that a job behaves alike on all nodes.
"""

from __future__ import annotations

import unicodedata

from p2pgrid.errors import BadDataError
from p2pgrid.model.reasons import Reason

PART_BYTES_MAX = 255
PATH_BYTES_MAX = 1024
PARTS_MAX = 32
_FORBIDDEN = frozenset('<>:"|?*\\') | {chr(code) for code in range(32)} | {chr(127)}
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"} | {f"{kind}{n}" for kind in ("com", "lpt") for n in "0123456789¹²³"}
)


def _problem(part: str) -> str:
    """Why a part of a name is refused, or nothing."""
    if part in ("", ".", ".."):
        return "an empty, '.' or '..' part"
    if len(part.encode()) > PART_BYTES_MAX:
        return "a part over 255 bytes"
    if _FORBIDDEN & set(part):
        return "a control or reserved character"
    if part[-1] in ". " or part[0] == " ":
        return "a part that starts with a space, or ends with a space or dot"
    if part.split(".")[0].rstrip(" ").lower() in _RESERVED:
        return "a name reserved by Windows"
    return ""


def check_relative(relative: str) -> tuple[str, ...]:
    """The parts of a slash-separated name. Raises BadDataError unless it is plain, relative and portable."""
    try:
        size_bytes = len(relative.encode())
    except UnicodeEncodeError as error:
        raise BadDataError("a file name is not valid Unicode", reason=Reason.BAD_NAME) from error
    parts = tuple(relative.split("/"))
    problem = "" if size_bytes <= PATH_BYTES_MAX and len(parts) <= PARTS_MAX else "too long"
    problem = problem or next(filter(None, map(_problem, parts)), "")
    if problem:
        raise BadDataError(f"the file name {relative[:80]!r} is refused: {problem}", reason=Reason.BAD_NAME)
    return parts


def folded(name: str) -> str:
    """Equal for names that some system takes for one: case and composition of letters do not count."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
