"""The page of failure modes knows every reason code, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from p2pgrid.model.reasons import CODES, Reason

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "failures.md"
ROW = re.compile(r"^\| [^|]+ \| [^|]+ \| (`[^|]+`) \| [^|]+ \|$", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")


def told() -> tuple[set[str], set[str]]:
    """The codes in the tables, and those of which the page says that nothing is to be done."""
    tables, _, nothing = PAGE.read_text(encoding="utf-8").partition("## Nothing to do")
    return {code for row in ROW.findall(tables) for code in CODE.findall(row)}, set(CODE.findall(nothing))


def test_every_code_on_the_page_is_a_reason() -> None:
    tables, nothing = told()
    assert len(tables) > 70
    assert sorted((tables | nothing) - {reason.value for reason in Reason}) == []


def test_every_reason_that_asks_for_something_has_its_row() -> None:
    tables, _ = told()
    assert [reason.value for reason in Reason if reason.next_step and reason.value not in tables] == [], "when do people meet it?"


def test_every_other_reason_has_its_row_or_is_said_to_ask_for_nothing() -> None:
    tables, nothing = told()
    assert [reason.value for reason in Reason if reason.value not in tables | nothing] == []
    assert [code for code in sorted(nothing) if CODES[code].next_step] == []
