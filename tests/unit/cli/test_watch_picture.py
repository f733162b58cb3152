"""The picture of ``watch``: pinned at the usual widths, and never wider or higher than it may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.wire.faces import FailureLine, JobPicture, Straggler, WorkerShare
from p2pgrid.wire.owner import JobLine
from p2pgrid_cli.dashboard.lines import ASCII, UNICODE, line_width
from p2pgrid_cli.documents.watching import watch_of
from p2pgrid_cli.watching.picture import Watched, cells_for, draw, map_rows, squeeze
from p2pgrid_cli.watching.telling import failure_text, summary

PICTURES = Path(__file__).parent / "pictures"
A, B, C, D = (letter * 32 for letter in (b"a", b"b", b"c", b"d"))
CREATED_MS = 1_000_000
SAID = 'ValueError: invalid literal for int() with base 10: "a line of a file that is longer than any terminal is wide, and goes on"'


def line(**fields: object) -> JobLine:
    known = {
        "job": b"\x07" * 32,
        "name": "primes.py",
        "state": "running",
        "units": 12_560,
        "done": 6_230,
        "failed": 3,
        "disputed": 1,
        "created_ms": CREATED_MS,
        "expires_ms": 0,
        "role": "led",
        "keepers": (B, C, D),
        "lead": A,
    }
    return JobLine(**(known | fields))  # type: ignore[arg-type]


def picture(**fields: object) -> JobPicture:
    known = {
        "cells": "d" * 300 + "df?rdd" + "r" * 20 + "drrd" + "." * 298,
        "units_per_cell": 20,
        "workers": (
            WorkerShare(A, "anna", 3200, 12, 41.3, 2.1),
            WorkerShare(B, "lab-07.physics.example.org", 2100, 30, 22.0, 61.0),
            WorkerShare(C, "", 900, 0, 0.0, 0.0, True, "paused"),
            WorkerShare(D, "friend 日本", 33, 0, 0.0, 0.0, False, "dead"),
        ),
        "stragglers": (Straggler(6120, B, 61.0),),
        "failures": (FailureLine(17, B, "raised", SAID, True), FailureLine(900, D, "died", "the process died", False)),
        "rate": 63.0,
        "left_s": 100.0,
        "led_here": True,
        "wall_ms": CREATED_MS + 780_000,
        "levels": (("map", 12_500, 6_233), ("reduce", 50, 0), ("reduce", 9, 0), ("finish", 1, 0)),
    }
    return JobPicture(**(known | fields))  # type: ignore[arg-type]


RUNNING = Watched(line(), picture(), "waiting: each unit needs equal answers of 3 nodes, and only 2 may run this job")
ENDED = Watched(
    line(state="done", done=40, units=40, failed=0, disputed=0),
    picture(
        cells="d" * 40,
        units_per_cell=1,
        workers=(WorkerShare(A, "anna", 40, 0),),
        stragglers=(),
        failures=(),
        rate=0.0,
        left_s=0.0,
        levels=(("map", 40, 40),),
    ),
)
ELSEWHERE = Watched(line(failed=0, disputed=0), picture(led_here=False, rate=0.0, left_s=-1.0, stragglers=(), failures=(), levels=()))
NEW = Watched(
    line(done=0, failed=0, disputed=0, keepers=(), units=9),
    picture(cells="." * 9, units_per_cell=1, workers=(), rate=0.0, left_s=-1.0, stragglers=(), failures=(), levels=(), wall_ms=CREATED_MS),
)
STORIES = {"running": RUNNING, "ended": ENDED, "elsewhere": ELSEWHERE, "new": NEW}


def text_of(watched: Watched, width: int, height: int) -> str:
    return "\n".join("".join(part.text for part in entry).rstrip() for entry in draw(watched, width, height)) + "\n"


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (120, 40), (200, 50)])
def test_the_picture_is_the_one_that_was_looked_at(story: str, width: int, height: int) -> None:
    pinned, drawn = PICTURES / f"watch-{story}-{width}.txt", text_of(STORIES[story], width, height)
    if os.environ.get("P2PGRID_PIN"):
        pinned.write_text(drawn)
    assert drawn == pinned.read_text()


@pytest.mark.parametrize("story", STORIES)
@given(width=st.integers(40, 220), height=st.integers(12, 70))
@settings(max_examples=60, deadline=None)
def test_nothing_is_wider_or_higher_than_the_terminal(story: str, width: int, height: int) -> None:
    for glyphs in (UNICODE, ASCII):
        lines = draw(STORIES[story], width, height, glyphs)
        assert len(lines) <= height
        assert all(line_width(entry) <= width for entry in lines)


def test_without_a_height_everything_is_shown() -> None:
    workers = tuple(WorkerShare(bytes([number]) * 32, f"node {number}", 1, 1) for number in range(40))
    text = text_of(Watched(line(), picture(workers=workers)), 100, 0)
    assert all(f"node {number}" in text for number in range(40))


def test_where_the_height_is_short_what_is_left_out_is_counted() -> None:
    workers = tuple(WorkerShare(bytes([number]) * 32, f"node {number}", 1, 1) for number in range(40))
    text = text_of(Watched(line(), picture(workers=workers)), 80, 24)
    shown = sum(f"node {number} " in text for number in range(40))
    assert f"{40 - shown} more nodes" in text
    assert "late" in text
    assert "failures" in text


def test_each_state_of_a_unit_and_of_a_node_has_a_word() -> None:
    text = text_of(RUNNING, 120, 40)
    for word in ("d done", "r running", ". waiting", "f failed", "? disputed", "works", "paused", "gone", "tried again"):
        assert word in text


def test_a_name_with_control_characters_reaches_no_terminal() -> None:
    shares = (WorkerShare(A, "\x1b[31mred\x07", 1, 1),)
    failures = (FailureLine(1, A, "raised", "bad\x1b]0;title\x07", True),)
    text = text_of(Watched(line(name="job\x1b[2J.py"), picture(workers=shares, failures=failures), "note\x1b[0m"), 100, 40)
    assert "\x1b" not in text
    assert "\x07" not in text


@given(st.text("d.rf?", min_size=1, max_size=300), st.integers(1, 100))
def test_letters_that_become_one_keep_what_needs_looking_at(cells: str, most: int) -> None:
    less, each = squeeze(cells, 3, most)
    assert len(less) <= most
    together = each // 3
    for place, letter in enumerate(less):
        part = cells[place * together : (place + 1) * together]
        assert letter == next(wins for wins in "f?r.d" if wins in part)


def test_the_map_asks_for_as_many_letters_as_it_has_room_for() -> None:
    assert (map_rows(24), cells_for(80, 24)) == (4, 320)
    assert (map_rows(5), map_rows(1000)) == (1, 6)


def test_the_document_says_null_for_what_is_not_known() -> None:
    here, elsewhere = watch_of(*RUNNING), watch_of(*ELSEWHERE)
    assert (here.units_per_s, here.left_s, here.nodes[0].running, here.nodes[2].oldest_lease_s) == (63.0, 100.0, 12, None)
    assert (elsewhere.left_s, elsewhere.nodes[0].running, elsewhere.nodes[0].units_per_s) == (None, None, None)
    assert [failure.final for failure in here.failures] == [True, False]


def test_plain_lines_say_how_far_it_is_and_what_failed() -> None:
    assert summary(line()) == "running: 6230 of 12560 units done, 3 failed, 1 disputed, led by mfqwcylb, 3 keepers"
    told = failure_text(picture().failures[1])
    assert told == "unit 900 failed at mrsgizde (died), it is tried again: the process died"
