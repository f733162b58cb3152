"""What a script's header may say about packages, and how what it may not is refused."""

from __future__ import annotations

import pytest

from p2pgrid.errors import BadDataError
from p2pgrid.model.script import parse_script

WORK = "def work(item):\n    return item\n"


def script(header: str) -> str:
    return "# /// script\n" + "".join(f"# {line}\n" for line in header.splitlines()) + "# ///\n" + WORK


@pytest.mark.parametrize(
    "line",
    ["numpy", "numpy>=2,<3", "Requests[socks, security]~=2.31", "tomli; python_version < '3.11'", "x==1.0+cpu", "numpy (>=2)"],
)
def test_names_extras_versions_and_markers_are_taken(line: str) -> None:
    found = parse_script(script(f'dependencies = ["{line}"]'), "job.py").dependencies
    assert len(found) == 1
    assert found[0].lower().startswith(line[:5].lower().rstrip(";>"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("numpy @ https://example.invalid/numpy.whl", "names a place"),
        ("numpy @ file:///tmp/numpy.whl", "names a place"),
        ("numpy@git+https://example.invalid/numpy", "names a place"),
        ("https://example.invalid/numpy.whl", "is an address"),
        ("git+https://example.invalid/numpy", "is an address"),
        ("file:///tmp/numpy.whl", "is an address"),
        ("./numpy", "is a path"),
        ("../numpy", "is a path"),
        ("/tmp/numpy.whl", "is a path"),
        ("folder/numpy", "is a path"),
        ("~/numpy", "is a path"),
        ("numpy-2-py3-none-any.whl", "is a path"),
        ("C:\\\\numpy", "is a path"),
        ("-e .", "is an option"),
        ("-r requirements.txt", "is an option"),
        ("--index-url https://example.invalid", "is an option"),
        ("numpy\\n--index-url https://example.invalid", "control characters"),
        ("numpy --pre", "not understood"),
        ("numpy>=2 # note", "not understood"),
        ("", "not understood"),
        ("numpy===2", "compares text"),
        ("n" * 600, "too long"),
    ],
)
def test_everything_that_points_somewhere_is_refused_with_what_and_why(line: str, why: str) -> None:
    with pytest.raises(BadDataError, match=why) as caught:
        parse_script(script(f'dependencies = ["{line}"]'), "job.py")
    assert "job.py" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "table",
    [
        "[tool.uv]",
        "[tool.uv.sources]\nnumpy = { path = '/tmp/evil' }",
        "[[tool.uv.index]]\nurl = 'https://example.invalid'",
    ],
)
def test_a_table_that_redirects_packages_is_refused_beside_dependencies(table: str) -> None:
    with pytest.raises(BadDataError, match=r"\[tool.uv\]") as caught:
        parse_script(script(f'dependencies = ["numpy"]\n{table}'), "job.py")
    assert "take the table out" in caught.value.hint
    assert parse_script(script(table), "job.py").dependencies == ()


def test_too_many_dependencies_are_refused() -> None:
    with pytest.raises(BadDataError, match="more than 200"):
        parse_script(script(f"dependencies = {['numpy'] * 201}"), "job.py")


@pytest.mark.parametrize("text", ["3.11 or so", ">=3.11; x", "@ file:///x"])
def test_a_requires_python_that_is_no_version_range_is_refused(text: str) -> None:
    with pytest.raises(BadDataError, match="no version range"):
        parse_script(script(f'requires-python = "{text}"'), "job.py")
