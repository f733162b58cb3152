"""The one place where errors become exit codes; docs/reference/exit-codes.md is made from this."""

from __future__ import annotations

from p2pgrid.errors import (
    BadDataError,
    ConfigError,
    IntegrityError,
    MalformedError,
    NoPeersError,
    P2PGridError,
    RefusedError,
    RemoteError,
    TryAgainError,
    UnreachableError,
    UsageError,
)

OK = 0
UNIT_FAILED = 1
USAGE = 2
BAD_DATA = 65
NO_PEERS = 69
BUG = 70
TRY_AGAIN = 75
REFUSED = 77
BAD_CONFIG = 78
INTERRUPTED = 130

MEANINGS: dict[int, tuple[str, str]] = {
    OK: (
        (
            "done; of `run` and `results`: every unit has its value; of `simulate`: every seed held; of `put`: it is stored here, and"
            " stderr says if there are fewer copies than wanted; of `top`: Ctrl-C, too"
        ),
        "",
    ),
    UNIT_FAILED: (
        (
            "a unit failed, the job was cancelled or stopped, or no complete copy of its results can be reached; of `simulate`: a seed"
            " failed, or coverage is missing; of `doctor`: a runtime does not hold; also: whoever read stdout went away"
        ),
        "see stderr, or `failures` with `--json`",
    ),
    USAGE: ("the command makes no sense as given", "`p2pgrid COMMAND --help`"),
    BAD_DATA: ("a script, an item, a file, a scenario or an invite cannot be used, or a peer sent bytes that do not parse", ""),
    NO_PEERS: ("no node that is needed can be reached, or none runs in this home", "`p2pgrid join`, `p2pgrid peers`"),
    BUG: ("a bug", "run it again with `P2PGRID_TRACEBACK=1` and report it"),
    TRY_AGAIN: ("busy, full or too early: the same command may go through later", "try again; `results --wait`"),
    REFUSED: ("refused: by a policy here or at a peer, or because a signature, a digest or a membership does not hold", ""),
    BAD_CONFIG: ("a setting, a home folder or a port cannot be used", "`p2pgrid config show --origin`"),
    INTERRUPTED: ("Ctrl-C; `run` has cancelled its job; `put` and `get` go on where they were when run again", ""),
}
"""What each code says, and what to do."""

ERRORS: tuple[tuple[type[P2PGridError], int, str], ...] = (
    (UsageError, USAGE, "you asked for something that makes no sense"),
    (ConfigError, BAD_CONFIG, "a setting, a home folder or a port is unusable"),
    (BadDataError, BAD_DATA, "a script, an item or a file cannot be used"),
    (MalformedError, BAD_DATA, "bytes of a peer do not parse, or are over a limit"),
    (IntegrityError, REFUSED, "a signature, a digest or a chain of a peer does not hold"),
    (RemoteError, BAD_DATA, "a peer broke the protocol"),
    (UnreachableError, NO_PEERS, "a peer cannot be reached, or went away"),
    (NoPeersError, NO_PEERS, "nobody is there who could do it"),
    (TryAgainError, TRY_AGAIN, "busy, full or late"),
    (RefusedError, REFUSED, "somebody's policy says no"),
)
"""The first that fits counts."""


def code_of(error: P2PGridError) -> int:
    """The exit code of an error."""
    return next((code for kind, code, _ in ERRORS if isinstance(error, kind)), BUG)
