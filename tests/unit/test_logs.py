"""What the library says: cheap when nobody listens, bounded, without secrets, and as its page has it."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid import logs
from p2pgrid.model.ids import short, to_text

ROOT = Path(__file__).resolve().parents[2]


class Unreadable:
    """Fails whoever wants to show it."""

    def __str__(self) -> str:
        raise AssertionError("nobody asked for this line")


@pytest.fixture
def logger() -> logging.Logger:
    return logging.Logger("p2pgrid.test_logs", logging.INFO)  # noqa: LOG001 - the test runner listens to all that getLogger gives


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_a_line_that_nobody_wants_is_not_made(logger: logging.Logger) -> None:
    kept = Kept()
    logger.addHandler(kept)
    logs.line(logger, logging.DEBUG, logs.REFUSED, peer=b"p" * 32, reason="dead", text=Unreadable())
    assert kept.records == []


def test_a_line_is_made_only_when_somebody_writes_it(logger: logging.Logger) -> None:
    kept = Kept()
    logger.addHandler(kept)
    logs.line(logger, logging.INFO, logs.REFUSED, peer=b"p" * 32, reason="dead", text=Unreadable())
    (record,) = kept.records
    with pytest.raises(AssertionError):
        str(record.msg)


def test_without_an_application_a_line_reads_as_text(logger: logging.Logger) -> None:
    kept = Kept()
    logger.addHandler(kept)
    logs.line(logger, logging.INFO, logs.HAPPENED, reason="dead", text="it is gone", about=(b"p" * 32,))
    assert kept.records[0].getMessage() == f"happened reason=dead text='it is gone' about={short(b'p' * 32)}"


@given(st.binary(min_size=5, max_size=32))
def test_ids_are_shown_as_everywhere_else(value: bytes) -> None:
    assert logs.clean(value) == short(value)


@given(st.text(max_size=3000), st.binary(min_size=32, max_size=32))
def test_texts_are_bounded_and_never_hold_a_whole_id(text: str, key: bytes) -> None:
    shown = logs.clean(f"{text} {to_text(key)}")
    assert len(shown) <= logs.TEXT_MAX
    assert to_text(key) not in shown


@pytest.mark.parametrize("upper", [False, True])
def test_invites_are_struck_out_wherever_they_stand(upper: bool) -> None:
    invite = "p2pgrid-" + "abcdefghij234567" * 20
    text = f"cannot use '{invite.upper() if upper else invite}'"
    assert logs.clean(text) == "cannot use 'p2pgrid-(struck out)'"
    cut = logs.clean("x" * (2 * logs.TEXT_MAX - 40) + invite)
    assert "abcdefghij234567" not in cut


HOSTILE = ("\x1b[2Jgone", "a\x1b]52;c;cm0gLXJm\x07", "one\ntwo", "\x9b31mred", "\x7f\x00\r", "\u202eback", "\ud800")


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_steers_a_terminal_is_in_a_line(text: str, logger: logging.Logger) -> None:
    kept = Kept()
    logger.addHandler(kept)
    logs.line(logger, logging.INFO, logs.REFUSED, peer=b"p" * 32, reason=text, text=text * 20)
    logger.handle(logger.makeRecord("x", logging.INFO, "", 0, logs.Line(text, {"about": [text]}), (), None))
    for record in kept.records:
        assert record.getMessage().isprintable()
    shown = logs.clean(text)
    assert len(shown) == len(text)
    assert "?" in shown


def test_a_text_that_can_be_printed_is_left_as_it_is() -> None:
    assert logs.clean("größer – 大きい [x]=1") == "größer – 大きい [x]=1"


def test_only_what_is_named_is_kept() -> None:
    assert logs.sayable("a\nb\tc\x1b", keep="\n") == "a\nb?c?"
    assert logs.clean_text("a\nb") == "a?b"


@given(st.text())
def test_texts_of_any_kind_can_be_printed(text: str) -> None:
    assert logs.clean(text).isprintable()


def test_lists_are_short_and_numbers_stay_numbers() -> None:
    assert logs.clean(list(range(100))) == list(range(logs.ITEMS_MAX))
    assert logs.clean(1.23456789) == 1.234568
    assert [logs.clean(value) for value in (3, True, None, "x")] == [3, True, None, "x"]


# -- the page and the code --------------------------------------------------------------


def documented() -> dict[str, tuple[str, dict[str, str]]]:
    text = (ROOT / "docs/reference/logs.md").read_text(encoding="utf-8")
    found = {}
    for section in text.split("\n## ")[1:]:
        name, _, rest = section.partition("\n")
        rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", rest, re.MULTILINE))
        found[name.strip("`")] = (rest.strip().partition("\n")[0], rows)
    return found


def test_the_page_tells_every_event_and_every_field() -> None:
    assert documented() == {event.name: (event.meaning, dict(event.fields)) for event in logs.EVENTS}


def said() -> list[tuple[str, int, str, set[str]]]:
    """Every call of ``logs.line``: file, line, event, fields."""
    found = []
    for folder in ("p2pgrid", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if "logs.line(" not in source:
                continue
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "logs.line":
                    fields = {keyword.arg or "**" for keyword in node.keywords}
                    found.append((path.name, node.lineno, ast.unparse(node.args[2]).removeprefix("logs."), fields))
    return found


def test_every_line_has_the_fields_of_its_event_and_every_event_is_said() -> None:
    calls = said()
    for file, number, name, fields in calls:
        event = getattr(logs, name)
        assert fields == set(event.fields), f"{file}:{number} says '{event.name}' with other fields"
    assert {getattr(logs, name).name for _, _, name, _ in calls} == {event.name for event in logs.EVENTS}
