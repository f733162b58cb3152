"""Answers that no honest guest gives, without a guest: nothing is written, and nothing but a failure comes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import Failure
from p2pgrid.runtimes.worker.files import Folders
from p2pgrid.runtimes.worker.guest_answers import REPORT, check_answer

FILE = [0, 3, "name", b"content"]


def answer(outcomes: bytes = b"\0", log: bytes = b"", files: Any = None, results: bytes = b"\xc0") -> bytes:
    packed = b"" if files is None else msgspec.msgpack.encode(files)
    return outcomes + REPORT.pack(len(log), len(packed)) + log + packed + results


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for part in ("scratch", "outbox", "inputs"):
        (tmp_path / part).mkdir()
    return Folders(str(tmp_path), 1 << 20)


def test_an_honest_answer_passes(folders: Folders) -> None:
    checked, log = check_answer(answer(log=b"hi", results=b"\x93\x01\x02\x03"), 1, 100, folders)
    assert (checked.outcomes, bytes(checked.payloads), checked.files, log) == (b"\0", b"\x93\x01\x02\x03", [], b"hi")


def test_a_file_is_kept_and_its_address_filled_in(folders: Folders, tmp_path: Path) -> None:
    results = b"\xc4\x20" + bytes(32)
    checked, _ = check_answer(answer(files=[[0, 2, "name", b"content"]], results=results), 1, 100, folders)
    ((unit, blob, size_bytes, name),) = checked.files
    assert (unit, size_bytes, (tmp_path / "outbox" / name).read_bytes()) == (0, 7, b"content")
    assert bytes(checked.payloads) == b"\xc4\x20" + blob
    assert os.listdir(tmp_path / "scratch") == []


PLACE = b"\xc4\x40" + bytes(64)
WRONG: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 1),
    "cut off": (b"\0" + bytes(7), 1),
    "a log that is not there": (b"\0" + REPORT.pack(50, 0), 1),
    "files that are not there": (b"\0" + REPORT.pack(0, 50) + b"\xc0", 1),
    "no results": (answer(results=b""), 1),
    "too many results": (answer(results=b"\xc0\xc0"), 1),
    "results that are no values": (answer(results=b"\xc1"), 1),
    "an outcome it cannot know": (answer(b"\2"), 1),
    "an outcome that does not exist": (answer(b"\x63"), 1),
    "an error that is none": (answer(b"\1"), 1),
    "an error with too much in it": (answer(b"\1", results=frames.describe("x" * 4000, "é" * 4000) + b""), 2),
    "a result over the limit": (answer(results=b"\xc4\x64" + bytes(100)), 1),
    "a result over the limit among others": (answer(b"\0\0", results=b"\xc0\xc4\x64" + bytes(100)), 2),
    "a log over the limit": (answer(log=bytes(20_000)), 1),
    "a file of no unit": (answer(files=[[1, 2, "n", b"c"]], results=PLACE), 1),
    "a file of a unit before the first": (answer(files=[[-1, 2, "n", b"c"]], results=PLACE), 1),
    "a file of a failed unit": (answer(b"\1", files=[[0, 2, "n", b"c"]], results=frames.describe("a", "b")), 1),
    "an address outside of the results": (answer(files=[[0, 1000, "n", b"c"]], results=PLACE), 1),
    "an address before the results": (answer(files=[[0, -5, "n", b"c"]], results=PLACE), 1),
    "an address over the end of its unit": (answer(b"\0\0", files=[[0, 40, "n", b"c"]], results=PLACE + PLACE), 2),
    "two files at one address": (answer(files=[[0, 2, "n", b"c"], [0, 2, "n", b"c"]], results=PLACE), 1),
    "a file that is no file": (answer(files=[[0, 2, "n", 5]], results=PLACE), 1),
    "files that are no list": (answer(files={"a": 1}, results=PLACE), 1),
    "a file over the limit": (answer(files=[[0, 2, "n", bytes(2 << 20)]], results=PLACE), 1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_refused_and_leaves_nothing_behind(folders: Folders, tmp_path: Path, wrong: str) -> None:
    raw, count = WRONG[wrong]
    with pytest.raises(Failure):
        check_answer(raw, count, 90, folders)
    assert os.listdir(tmp_path / "outbox") == []
    assert os.listdir(tmp_path / "scratch") == []
    assert folders.moved == []


@given(raw=some.binary(max_size=200), count=some.integers(1, 5))
def test_no_bytes_lead_to_anything_but_an_answer_or_a_failure(tmp_path_factory: pytest.TempPathFactory, raw: bytes, count: int) -> None:
    folder = tmp_path_factory.mktemp("answers")
    for part in ("scratch", "outbox", "inputs"):
        (folder / part).mkdir()
    try:
        checked, _ = check_answer(raw, count, 100, Folders(str(folder), 1 << 20))
    except Failure:
        return
    assert len(checked.outcomes) == count
