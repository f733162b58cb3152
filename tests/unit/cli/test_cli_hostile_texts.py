"""What strangers and workers write reaches the terminal as text: it steers nothing, wherever a command shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from p2pgrid.client.running import Outcome, UnitFailure
from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.owner import JobLine
from p2pgrid_cli import common, main
from p2pgrid_cli.results import report

HOSTILE = ("\x1b[2Jgone", "a\x1b]52;c;cm0gLXJm\x07", "\x9b31mred", "\x7f\r\u202e", "\ud800")


def is_plain(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", HOSTILE)
def test_messages_for_people_hold_lines_and_nothing_that_steers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    common.say(f"one {text}\ntwo")
    common.show_error(RefusedError(text, hint=text))
    main._say(f"one {text}\ntwo")
    shown = capsys.readouterr().err
    assert is_plain(shown)
    assert shown.count("two\n") == 2
    assert shown.count("?") >= 4


@pytest.mark.parametrize("error", [RefusedError(HOSTILE[0], hint=HOSTILE[1]), ValueError(HOSTILE[2])])
def test_errors_leave_the_program_as_text(error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(main, "_run", fail)
    monkeypatch.setattr(main, "end_at_once", lambda: None)
    monkeypatch.delenv("P2PGRID_TRACEBACK", raising=False)
    with pytest.raises(SystemExit):
        main.main()
    shown = capsys.readouterr().err
    assert is_plain(shown)
    assert "  hint: " in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_a_workers_failure_is_told_as_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = JobLine(b"j" * 32, "job.py", "done", 2, 1, 1, 0, 0, 0, "led")
    failure = UnitFailure(1, next(iter(Reason)), text, text, f"Traceback\n{text}\nlast")
    report(JobId(StatementId(b"j" * 32)), Outcome(line, [failure], note=text))
    shown = capsys.readouterr().err
    assert is_plain(shown)
    assert "\n  last\n" in shown


def test_documents_escape_what_steers_and_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    every = {"text": "".join(map(chr, range(0x20 + 0x80 + 1))), "größer": "大きい"}
    common.print_json(every)
    shown = capsys.readouterr().out
    assert is_plain(shown.replace("\xa0", ""))
    assert "\\u009b" in shown
    assert "\\u007f" in shown
    assert "大きい" in shown
    assert json.loads(shown) == every
