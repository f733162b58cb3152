"""What a machine makes of the units it was given: honest work, or one of several kinds of lies.

A lie has the type and shape of the truth, so that nothing but a comparison finds it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from blake3 import blake3

from p2pgrid.errors import BadDataError, MalformedError
from p2pgrid.model.values import decode_value, encode_value

HONEST, WRONG, COLLUDING, LAZY = "honest", "wrong", "colluding", "lazy"
DIGEST = "digest"
"""Lies where results are announced, not where units run: honest here."""
KINDS = (HONEST, WRONG, COLLUDING, LAZY, DIGEST)
NOTHING = msgspec.Raw(encode_value(None))
"""What a lazy machine answers."""


@dataclass(frozen=True)
class Behaviour:
    """``wrong``: another wrong value on each machine; ``colluding``: the same wrong value on all of them; ``lazy``: None, at once."""

    kind: str = HONEST
    machine: str = ""
    """Whose it is: makes the values of ``wrong`` differ."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no behaviour is called {self.kind!r}; there are {', '.join(KINDS)}")

    @property
    def lies(self) -> bool:
        """Whether it runs the units and answers something else."""
        return self.kind in (WRONG, COLLUDING)

    def lie(self, payload: msgspec.Raw, job: bytes, index: int) -> msgspec.Raw:
        """A wrong value for a unit whose right one is ``payload``."""
        who = self.machine if self.kind == WRONG else ""
        digest = blake3(f"{self.kind}/{who}/{index}/".encode() + job).digest(length=4)
        mark = 1 + int.from_bytes(digest, "big")
        try:
            return msgspec.Raw(encode_value(altered(decode_value(payload), mark)))
        except (MalformedError, BadDataError):
            return msgspec.Raw(encode_value(mark))


def altered(value: Any, mark: int) -> Any:
    """Another value of the same kind; another one for each ``mark``, which is positive."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value + mark
    if isinstance(value, float):
        other = value + mark
        return other if other not in (value, float("inf"), float("-inf")) and other == other else float(mark)
    if isinstance(value, str):
        return f"{value}#{mark}"
    if isinstance(value, bytes):
        return value + mark.to_bytes(5, "big")
    if isinstance(value, list) and value:
        return [altered(value[0], mark), *value[1:]]
    if isinstance(value, dict) and value:
        first = next(iter(value))
        return value | {first: altered(value[first], mark)}
    return mark
