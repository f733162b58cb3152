"""Reading job scripts without running them."""

from __future__ import annotations

import pytest

from p2pgrid.errors import BadDataError
from p2pgrid.model.script import SCRIPT_BYTES_MAX, ScriptOptions, parse_script

HEADER = """\
#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "numpy>=2",
# ]
#
# [tool.p2pgrid]
# timeout = 2.5
# replicas = 3
# quorum = "auto"
# labels = ["gpu"]
# finish = "local"
# ///
"""
WORK = "def work(item):\n    return item\n"
FINISH = "def finish(results):\n    return results\n"


def with_options(text: str) -> str:
    return "# /// script\n# [tool.p2pgrid]\n" + "".join(f"# {line}\n" for line in text.splitlines()) + "# ///\n" + WORK


def test_header_options_and_functions_are_read() -> None:
    script = parse_script(HEADER + WORK + FINISH, "job.py")
    assert script.options == ScriptOptions(timeout=2.5, replicas=3, quorum="auto", labels=("gpu",), finish="local")
    assert script.requires_python == ">=3.11"
    assert script.dependencies == ("numpy>=2",)
    assert script.functions == {"work", "finish"}
    assert (script.has_inputs, script.has_reduce, script.has_finish) == (False, False, True)


def test_a_script_needs_no_header() -> None:
    script = parse_script(WORK, "job.py")
    assert script.options == ScriptOptions()
    assert script.dependencies == ()


def test_windows_line_ends_and_a_byte_order_mark_are_fine() -> None:
    source = b"\xef\xbb\xbf" + (HEADER + WORK + FINISH).replace("\n", "\r\n").encode()
    assert parse_script(source, "job.py").options.replicas == 3


def test_reading_never_runs_the_script() -> None:
    assert parse_script("raise SystemExit(1)\n" + WORK, "job.py").functions == {"work"}


@pytest.mark.parametrize(
    "source",
    [
        "work = lambda x: x",
        "work: object = len",
        "from math import sqrt as work",
        "try:\n    import numpy\nexcept ImportError:\n    def work(x): 0",
        "if True:\n    pass\nelse:\n    def work(x): 0",
        "with open('x') as f:\n    def work(x): 0",
    ],
)
def test_work_may_be_defined_in_any_ordinary_way(source: str) -> None:
    assert "work" in parse_script(source, "job.py").functions


@pytest.mark.parametrize("source", ["", "def outer():\n    def work(x): 0", "class C:\n    def work(self): 0", "work: object"])
def test_a_script_without_work_is_refused_with_a_hint(source: str) -> None:
    with pytest.raises(BadDataError, match="defines no work") as caught:
        parse_script(source, "job.py")
    assert "work" in caught.value.hint


def test_a_misspelt_work_is_guessed() -> None:
    with pytest.raises(BadDataError) as caught:
        parse_script("def wrok(x): 0\ndef other(y): 0", "job.py")
    assert "rename wrok to work" in caught.value.hint


def test_an_async_work_is_refused() -> None:
    with pytest.raises(BadDataError, match="async"):
        parse_script("async def work(x): 0", "job.py")


def test_a_syntax_error_shows_line_and_caret() -> None:
    with pytest.raises(BadDataError) as caught:
        parse_script("x = 1\n    def work(x):\n", "job.py")
    assert caught.value.message.startswith("job.py:2: ")
    with pytest.raises(BadDataError) as caught:
        parse_script("def work(x):\n    return x +\n", "job.py")
    lines = caught.value.message.splitlines()
    assert lines[0].startswith("job.py:2: ")
    assert lines[1].strip() == "return x +"
    assert lines[2].strip() == "^"


@pytest.mark.parametrize(
    "source", ["return 1\n" + WORK, "def work(x):\n    nonlocal y\n", WORK + "\0", b"\xff\xfe", "(" * 10_000, "-" * 100_000 + "1"]
)
def test_what_python_refuses_is_bad_data(source: str | bytes) -> None:
    with pytest.raises(BadDataError):
        parse_script(source, "job.py")


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ("replcas = 2", "unknown key 'replcas'", "did you mean 'replicas'"),
        ("zzz = 2", "unknown key 'zzz'", "known are"),
        ("replicas = 0", "replicas", ""),
        ("replicas = true", "replicas", ""),
        ("timeout = -1", "timeout", ""),
        ('runtime = "docker"', "runtime", ""),
        ('quorum = "most"', "quorum", ""),
        ('finish = "local"', "defines no finish", ""),
        ("replicas = ", "not valid TOML", ""),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: str, words: str, hint: str) -> None:
    with pytest.raises(BadDataError, match=words) as caught:
        parse_script(with_options(options), "job.py")
    assert hint in caught.value.hint


def test_two_headers_and_an_open_one_are_refused() -> None:
    with pytest.raises(BadDataError, match="2 'script' blocks"):
        parse_script(HEADER + "\n" + HEADER + WORK + FINISH, "job.py")
    with pytest.raises(BadDataError, match="not closed"):
        parse_script("# /// script\n# dependencies = []\n\n" + WORK, "job.py")


@pytest.mark.parametrize("line", ['dependencies = "numpy"', "dependencies = [1]", "requires-python = 3", "tool = 5"])
def test_standard_fields_of_a_wrong_type_are_refused_or_ignored(line: str) -> None:
    source = f"# /// script\n# {line}\n# ///\n" + WORK
    if line.startswith("tool"):
        assert parse_script(source, "job.py").options == ScriptOptions()
    else:
        with pytest.raises(BadDataError):
            parse_script(source, "job.py")


def test_a_script_over_the_limit_is_refused() -> None:
    with pytest.raises(BadDataError, match="longer"):
        parse_script(WORK + "#" * SCRIPT_BYTES_MAX, "job.py")
