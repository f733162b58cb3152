"""Every command in the README and the guides runs as it stands there, and prints what is shown there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guides import ROOT, Room, difference, read_guide

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES]
SKIPPED_MAX = 12
"""Blocks that no test runs, over all pages. A guide that needs many of them promises what nobody has seen."""
GUIDE_S = 120.0
"""On a machine with nothing else to do the longest takes 20 s."""


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_guide_works_as_written(page: Path, tmp_path: Path) -> None:
    guide = read_guide(page.read_text(encoding="utf-8"))
    room = Room(tmp_path)
    try:
        wrong = room.play(guide, GUIDE_S)
    finally:
        left = room.left_behind()
    assert not wrong, "\n".join(wrong)
    assert not left, "the guide leaves processes behind"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_guide_is_a_command_a_file_an_output_or_says_why_it_is_not_run(page: Path) -> None:
    guide = read_guide(page.read_text(encoding="utf-8"))
    assert guide.complaints == []
    assert guide.steps, "a guide shows commands"


def test_few_blocks_are_not_run() -> None:
    skipped = [(page.name, line, why) for page in PAGES for line, why in read_guide(page.read_text(encoding="utf-8")).skipped]
    for name, line, why in skipped:
        print(f"{name}:{line}: {why}")
    assert len(skipped) <= SKIPPED_MAX


# The machinery itself


PAGE = """\
# A page

Save this text as `job.py`:

```python
x = 1
```

```sh
echo "node $$ is ready"
cat job.py
```

```text
node … is ready
x = 1
```

<!-- not run: needs another machine -->
```sh
false
```

```text
not compared
```
"""


def test_files_commands_outputs_and_what_is_not_run_are_told_apart(tmp_path: Path) -> None:
    guide = read_guide(PAGE)
    assert guide.files == {"job.py": "x = 1\n"}
    assert [(step.line, step.shown) for step in guide.steps] == [(9, "node … is ready\nx = 1\n")]
    assert guide.skipped == [(20, "needs another machine")]
    assert guide.complaints == []
    assert Room(tmp_path).play(guide, 10) == []


@pytest.mark.parametrize(
    ("planted", "complaint"),
    [
        ("```python\nx = 2\n```\n", "not saved"),
        ("```text\nx\n```\n", "follows no command"),
        ("text\n\n    p2pgrid join\n\nmore\n", "indented"),
    ],
)
def test_a_block_that_nobody_checks_is_a_complaint(planted: str, complaint: str) -> None:
    found = read_guide(f"# A page\n\n{planted}").complaints
    assert len(found) == 1
    assert complaint in found[0]


def test_a_failing_command_names_its_line_and_stops_the_guide(tmp_path: Path) -> None:
    guide = read_guide("```sh\necho one\n```\n\n```sh\nfalse | cat\n```\n\n```sh\ntouch never\n```\n")
    room = Room(tmp_path)
    wrong = room.play(guide, 10)
    assert len(wrong) == 1
    assert wrong[0].startswith("line 5: exit code 1")
    assert not (room.here / "never").exists()


def test_a_process_that_stays_is_found_and_ended(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert room.play(read_guide("```sh\nsleep 60 >/dev/null 2>&1 &\n```\n"), 10) == []
    assert room.left_behind(0) == ["sleep 60"]
    assert room.left_behind(0) == []


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  b\n", "a b\n\n", True),
        ("a … c", "a b c", True),
        ("a …", "a\n", False),
        ("a\nc", "a\nb\nc", False),
        ("a\n…\nc", "a\nb\nb\nc", True),
        ("a\n…\nc", "a\nc", True),
        ("…\nc", "a\nb", False),
        ("a", "a\nb", False),
        ("a\n…", "a\nb", True),
        ("a.c", "abc", False),
        ("", "", True),
        ("", "a warning", False),
    ],
)
def test_output_is_compared_line_by_line_with_an_ellipsis_for_what_varies(shown: str, printed: str, same: bool) -> None:
    assert (difference(shown, printed) == "") is same
