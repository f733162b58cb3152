"""Names from outside."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pgrid.errors import BadDataError
from p2pgrid.store.paths import check_relative, safe_join

FOLDER = Path("/srv/folder")


@pytest.mark.parametrize("name", ["a", "a/b/c.txt", "ünïcode/日本.csv", ".hidden", "a.b.c", "console.txt", "com10", "x" * 255])
def test_plain_names_pass_unchanged(name: str) -> None:
    assert safe_join(FOLDER, name) == FOLDER / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        ".",
        "./a",
        "a//b",
        "a/",
        "a\x00b",
        "a\nb",
        "a\x7f",
        "\\x",
        "a\\..\\b",
        "C:",
        "C:x",
        "c:/x",
        "x:stream",
        "con",
        "CON",
        "nul.txt",
        "a/aux",
        "com1",
        "LPT9.log",
        "com¹",
        "con .txt",
        "a.",
        "a ",
        " a",
        "a./b",
        "a?",
        "a*",
        "a|b",
        "<a",
        'a"',
        "x" * 256,
        "ü" * 128,
        "/".join("a" * 33),
        "a/" * 600 + "a",
        chr(0xD800),
    ],
)
def test_what_could_leave_or_mislead_is_refused(name: str) -> None:
    with pytest.raises(BadDataError):
        safe_join(FOLDER, name)


@given(st.one_of(st.text(max_size=40), st.text(alphabet="./\\ abC:\0~$-conul1", max_size=20)))
@example("a/b")
def test_a_name_that_passes_stays_inside_on_every_system(name: str) -> None:
    try:
        path = safe_join(FOLDER, name)
    except BadDataError:
        return
    assert path.relative_to(FOLDER).as_posix() == name
    assert ".." not in path.parts
    windows = PureWindowsPath("D:\\folder").joinpath(name)
    assert windows.is_relative_to("D:\\folder")
    assert windows.parts[2:] == check_relative(name)
