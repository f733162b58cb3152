"""Reports of self-tests: when a cage counts as holding, and which kept reports are believed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from p2pgrid.runtimes.selftest.report import (
    FILE_NAME,
    Attempt,
    ReportKey,
    RuntimeReport,
    current_key,
    decode_reports,
    encode_reports,
    holding,
    load_reports,
    report_of,
    save_reports,
)

KEY = ReportKey("1.0", "3.11.2", "50.0.1", "Linux 6.1", 1000, "auto")
HELD, GOT_THROUGH, KNOWN = Attempt("a", True), Attempt("b", False, "it read it"), Attempt("c", False, "it found it", accepted=True)
REPORTS = (RuntimeReport("native", "namespaces", True, "", (HELD, KNOWN)), RuntimeReport("command", "none", False, "no cage"))


def test_a_cage_holds_when_every_attack_was_held_or_is_known_of_its_level() -> None:
    assert report_of("native", "landlock", [HELD, KNOWN]).holds
    assert report_of("native", "landlock", [HELD, KNOWN]).reason == ""


def test_one_attack_that_got_through_is_enough() -> None:
    report = report_of("native", "landlock", [HELD, GOT_THROUGH, KNOWN])
    assert not report.holds
    assert report.reason == "1 of 3 attacks not held: b"


def test_the_reason_names_no_more_than_three() -> None:
    report = report_of("native", "landlock", [Attempt(name, False) for name in "abcde"])
    assert report.reason == "5 of 5 attacks not held: a, b, c and 2 more"


def test_no_attacks_at_all_prove_nothing() -> None:
    assert not report_of("native", "landlock", []).holds


def test_holding_names_the_runtimes_that_hold() -> None:
    assert holding(REPORTS) == {"native"}
    assert holding([]) == frozenset()


def test_reports_are_kept_and_found_again(tmp_path: Path) -> None:
    assert save_reports(tmp_path / "new" / "folder", REPORTS, KEY)
    assert load_reports(tmp_path / "new" / "folder", KEY) == REPORTS
    assert os.listdir(tmp_path / "new" / "folder") == [FILE_NAME]


@pytest.mark.parametrize("field", ReportKey.__struct_fields__)
def test_a_report_of_another_machine_version_or_user_does_not_count(field: str) -> None:
    other = msgspec.structs.replace(KEY, **{field: 7 if field == "uid" else "other"})
    assert decode_reports(encode_reports(REPORTS, other), KEY) == ()


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"key": 1}', b"\xff" * 100, b"[" * 5000])
def test_what_is_no_report_does_not_count(data: bytes) -> None:
    assert decode_reports(data, KEY) == ()


def test_without_a_file_there_are_no_reports(tmp_path: Path) -> None:
    assert load_reports(tmp_path, KEY) == ()
    assert load_reports(tmp_path / "none", KEY) == ()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_report_that_others_could_have_written_does_not_count(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "kept"
    save_reports(folder, REPORTS, KEY)
    (folder if what == "folder" else folder / FILE_NAME).chmod(0o777)
    assert load_reports(folder, KEY) == ()


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert not save_reports(tmp_path / "file" / "folder", REPORTS, KEY)


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    save_reports(tmp_path / "kept", REPORTS, KEY)
    save_reports(tmp_path / "kept", REPORTS[:1], KEY)
    assert load_reports(tmp_path / "kept", KEY) == REPORTS[:1]


def test_the_key_is_that_of_here_and_now() -> None:
    key = current_key("landlock")
    assert key == current_key("landlock")
    assert key.level == "landlock"
    assert key.uid == os.getuid()
