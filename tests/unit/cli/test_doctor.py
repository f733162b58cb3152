"""The ``doctor`` command: what it says, what its exit code means, and the checks beside the cages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from p2pgrid.machine import ThisMachine
from p2pgrid.runtimes.selftest.report import Attempt, RuntimeReport
from p2pgrid.runtimes.tasks import PoolPolicy
from p2pgrid_cli import checkup, doctor
from p2pgrid_cli.checkup import Check, check_clock, check_disk, check_loopback

HELD = Attempt("read-home-file", True, "ENOENT: [Errno 2] No such file or directory")
KNOWN = Attempt("find-home-file", False, "it got through: 45 bytes", accepted=True)
THROUGH = Attempt("connect-tcp", False, "it got through: the listener at ('127.0.0.1', 40001) was reached")
GOOD = RuntimeReport("native", "landlock", True, "", (HELD, KNOWN))
BAD = RuntimeReport("command", "namespaces", False, "1 of 2 attacks not held: connect-tcp", (HELD, THROUGH))
NONE = RuntimeReport("python", "none", False, "the Python runner is not here")
CHECKS = [Check("disk", True, "12 GiB free"), Check("namespaces", False, "no namespaces: the cage does not stand: " + "word " * 20)]


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reports: tuple[RuntimeReport, ...], *arguments: str) -> Any:
    asked: list[Any] = []

    async def selftest(self: ThisMachine, policy: PoolPolicy, offload: Any, runtimes: Any, runner: Any) -> tuple[RuntimeReport, ...]:
        asked.append(tuple(runtimes))
        return reports

    monkeypatch.setattr(ThisMachine, "selftest", selftest)
    monkeypatch.setattr(checkup, "check_all", lambda policy, home, now_s: CHECKS)
    monkeypatch.setenv("COLUMNS", "60")
    app = typer.Typer()
    doctor.register(app)
    result = CliRunner().invoke(app, [*arguments, "--home", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
    return result, asked


def test_all_is_well_when_what_can_be_offered_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, asked = run(monkeypatch, tmp_path, (GOOD, NONE))
    assert result.exit_code == 0
    assert asked == [("native", "command", "wasm", "python")]
    assert "native   landlock    holds, 2 attacks" in result.stdout
    assert "python   none        not offered" in result.stdout


def test_an_attack_that_got_through_is_shown_and_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, _ = run(monkeypatch, tmp_path, (GOOD, BAD))
    assert result.exit_code == 1
    assert "command  namespaces  DOES NOT HOLD" in result.stdout
    assert "NOT HELD: connect-tcp: it got through" in result.stdout
    assert "read-home-file" not in result.stdout


def test_everything_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, _ = run(monkeypatch, tmp_path, (GOOD,), "--verbose")
    assert "held: read-home-file" in result.stdout
    assert "known: find-home-file" in result.stdout


def test_nothing_at_all_that_holds_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, tmp_path, (NONE,))[0].exit_code == 1


def test_what_was_asked_for_by_name_has_to_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, asked = run(monkeypatch, tmp_path, (GOOD, NONE), "--runtime", "native", "--runtime", "python", "--runtime", "native")
    assert asked == [("native", "python")]
    assert result.exit_code == 1


def test_an_unknown_runtime_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, asked = run(monkeypatch, tmp_path, (GOOD,), "--runtime", "cobol")
    assert result.exception is not None
    assert "no runtime 'cobol'" in str(result.exception)
    assert asked == []


def test_lines_fit_into_sixty_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, _ = run(monkeypatch, tmp_path, (GOOD, BAD, NONE), "--verbose")
    assert max(map(len, result.stdout.splitlines())) <= 60


def test_json_says_it_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, _ = run(monkeypatch, tmp_path, (BAD,), "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert document["runtimes"][0]["runtime"] == "command"
    assert document["runtimes"][0]["holds"] is False
    assert document["runtimes"][0]["attempts"][1] == {
        "name": "connect-tcp",
        "held": False,
        "accepted": False,
        "detail": THROUGH.detail,
    }
    assert document["checks"][0] == {"name": "disk", "ok": True, "detail": "12 GiB free"}


def test_a_disk_that_works_is_fine_even_where_the_home_is_yet_to_be_made(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "not" / "yet").detail.startswith(check_disk(tmp_path).detail.split(",")[0])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "FREE_BYTES_MIN", 1 << 60)
    assert not check_disk(tmp_path).ok


@pytest.mark.parametrize(("now_s", "ok"), [(0.0, False), (-5.0, False), (1_800_000_000.0, True), (5e9, False)])
def test_a_clock_that_was_never_set_is_noticed(now_s: float, ok: bool) -> None:
    assert check_clock(now_s).ok is ok


def test_the_loopback_is_tried() -> None:
    assert check_loopback() == Check("loopback", True, "a connection works")


def test_all_checks_are_made(tmp_path: Path) -> None:
    names = [check.name for check in checkup.check_all(PoolPolicy(), tmp_path, 1_800_000_000.0)]
    assert names[:3] == ["disk", "clock", "loopback"]
    assert len(names) > 3
