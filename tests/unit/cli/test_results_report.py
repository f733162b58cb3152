"""What is said of units that failed."""

from __future__ import annotations

import pytest

from p2pgrid.client.running import Outcome, UnitFailure
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.owner import JobLine
from p2pgrid_cli.results import report

JOB = JobId(StatementId(b"j" * 32))


def said(capsys: pytest.CaptureFixture[str], *failures: UnitFailure) -> str:
    line = JobLine(b"j" * 32, "job.py", "done", 4, 4 - len(failures), len(failures), 0, 0, 0, "led")
    report(JOB, Outcome(line, list(failures), note=""))
    return capsys.readouterr().err


def test_a_cause_that_has_a_remedy_is_told_with_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    missing = [UnitFailure(number, Reason.MISSING_MODULE, "ModuleNotFoundError", "no", "Traceback\nlast") for number in (1, 2)]
    assert said(capsys, *missing).count(f"  hint: {Reason.MISSING_MODULE.next_step}\n") == 1


def test_below_a_traceback_nobody_is_told_to_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hint" not in said(capsys, UnitFailure(1, Reason.RAISED, "ValueError", "no", "Traceback\nlast"))
