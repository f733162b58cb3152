"""The pictures in the documentation fit their terminals, and the script that takes them notices what is wrong with one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PICTURES = sorted((DOCS / "screens").glob("*.txt"))


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("p2pgrid_docs_screens", DOCS / "screens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Where dataclasses look for the names of their module.
    spec.loader.exec_module(module)
    return module


screens = load_script()


def test_every_command_has_a_picture_at_every_width() -> None:
    taken = {screen.name for screen in screens.screens("job", "peer", "file")} | {"run"}
    assert {path.stem for path in PICTURES} == {f"{name}-{width}" for name in taken for width in screens.WIDTHS}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_no_line_of_a_picture_is_longer_than_its_terminal(path: Path) -> None:
    columns = int(path.stem.rpartition("-")[2])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines
    assert max(map(len, lines)) <= columns


def test_the_page_and_the_readme_show_the_pictures_of_80_columns() -> None:
    page, readme = ((path).read_text(encoding="utf-8") for path in (screens.PAGE, screens.README))
    for path in PICTURES:
        if path.stem.endswith("-80"):
            assert path.read_text(encoding="utf-8") in page
    assert (DOCS / "screens" / "top-80.txt").read_text(encoding="utf-8") in readme


def test_a_character_past_the_last_column_is_noticed() -> None:
    terminal = screens.Careful(10, 3)
    stream = screens.pyte.Stream(terminal)
    stream.feed("exactly-10\r\nshort")
    assert terminal.wrapped == []
    stream.feed(" and long")
    assert terminal.wrapped == ["'l' after 'short and '"]


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [(["ab", "cd"], ["ab", "cd"], 0.0), (["abcd"], ["abxy"], 0.5), (["ab"], [], 1.0), ([], [], 0.0), (["a b"], ["a b", "c"], 1 / 3)],
)
def test_the_share_of_a_screen_that_changed_counts_cells_in_use(before: list[str], after: list[str], share: float) -> None:
    assert screens.changed_share(before, after) == pytest.approx(share)


def test_a_screen_that_goes_blank_or_changes_all_at_once_is_wrong() -> None:
    screen = screens.Screen("top", "p2pgrid top", ("top",), live=True)
    lines = ["a"] * screens.FULL_LINES
    fine = screens.Shot(screen, 80, lines, [], [lines], 0, [0.1], 1)
    assert screens.judge(fine) == []
    flickering = screens.Shot(screen, 80, lines, [], [lines], 1, [0.1, 0.9], 1)
    assert screens.judge(flickering) == ["the screen was blank 1 times", "90% of the screen changed at once"]
