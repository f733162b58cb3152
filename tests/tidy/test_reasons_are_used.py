"""The registry of reason codes: none is dead, none leaves people without a next step where there is one, all can be read on a terminal."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from p2pgrid.model.reasons import Reason

ROOT = Path(__file__).resolve().parents[2]
NOT_USES = ("p2pgrid/model/reasons.py", "p2pgrid/testing/batches/coverage.py")
"""Where codes stand without being given to anybody."""
CODE_CHARS_MAX = 32
"""What a datagram of the DHT carries."""
NOTHING_TO_DO = {
    Reason.IDLE: "the connection comes back when it is needed",
    Reason.TOOK_OVER: "the job goes on",
    Reason.DRAINED: "its units go to others",
    Reason.NOT_GRANTED: "a liar's receipt is not counted",
    Reason.KEEPS_IT: "it is the rule",
    Reason.NOTHING_LEFT: "it is idle since others are at work",
    Reason.RETRIED: "another node tries it",
    Reason.WORKER_LOST: "its units go to others",
    Reason.LEASE_LATE: "its units go to others",
    Reason.SUBMITTER_AWAY: "the job goes on",
    Reason.HEALED: "it is whole again",
    Reason.REPAIRING: "it is being done",
    Reason.STALE: "the newer one is taken",
}
"""Codes without a next step, and why nobody has to do anything."""


@cache
def texts() -> dict[str, str]:
    paths = [path for folder in ("p2pgrid", "cli") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def unused(names: Iterable[str], sources: dict[str, str]) -> list[str]:
    """Members of the registry that no code names."""
    used = set[str]()
    for place, text in sources.items():
        if place not in NOT_USES:
            used.update(re.findall(r"\bReason\.([A-Z_]+)\b", text))
    return [name for name in names if name not in used]


def test_every_code_is_given_somewhere() -> None:
    assert unused([reason.name for reason in Reason], texts()) == []


def test_a_code_that_nobody_gives_is_reported() -> None:
    sources = {"p2pgrid/model/reasons.py": "Reason.DEAD", "p2pgrid/a.py": "Reason.BUSY"}
    assert unused(["DEAD", "BUSY"], sources) == ["DEAD"]


@pytest.mark.parametrize("reason", list(Reason))
def test_every_code_says_what_is_so_and_what_to_do(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason.value)
    assert len(reason.value) <= CODE_CHARS_MAX
    assert reason.value == reason.name.lower().replace("_", "-") or reason.name in SHORT_NAMES
    for text in (reason.sentence, reason.next_step):
        assert text == text.strip()
        assert not text.endswith(".")
        assert text.isascii()
    assert reason.sentence
    assert bool(reason.next_step) != (reason in NOTHING_TO_DO)


SHORT_NAMES = {"TOO_MANY"}
"""Names that differ from their codes."""


def told_literals(text: str) -> Iterator[str]:
    """Texts that are told as if they were codes."""
    for node in ast.walk(ast.parse(text)):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr == "tell" and isinstance(node, ast.Call) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield repr(first.value)


def test_what_is_told_has_a_code_of_the_registry() -> None:
    assert [(place, list(found)) for place, text in texts().items() if (found := list(told_literals(text)))] == []
    assert list(told_literals("context.tell('done', 'x')")) == ["'done'"]
