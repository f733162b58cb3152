"""How the command line starts, helps, and reads what people write."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path

import click
import pytest

import p2pgrid_cli
from p2pgrid import __version__
from p2pgrid.errors import (
    BadDataError,
    ConfigError,
    IntegrityError,
    MalformedError,
    NoPeersError,
    P2PGridError,
    RefusedError,
    TryAgainError,
    UnreachableError,
    UsageError,
)
from p2pgrid.model.sizes import parse_size
from p2pgrid.model.values import FileRef
from p2pgrid_cli import catalog
from p2pgrid_cli.common import size_text
from p2pgrid_cli.exits import code_of
from p2pgrid_cli.program import program
from p2pgrid_cli.results import note_files, plain, print_value
from p2pgrid_cli.settings import Settings
from p2pgrid_cli.terms import parse_listen

PACKAGE = Path(p2pgrid_cli.__file__ or "").parent
HEAVY = ("asyncio", "blake3", "cryptography", "kademlia", "msgspec", "rich", "sqlite3", "ssl", "uvloop")


def program_says(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "p2pgrid_cli", *words], capture_output=True, text=True, timeout=15, check=False)


def test_the_package_is_a_program() -> None:
    done = program_says("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"p2pgrid {__version__}\n", "")


def test_help_loads_nothing_that_only_a_command_needs() -> None:
    script = "import sys, p2pgrid_cli.main; print(*[name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_words_show_the_help_as_a_usage_error() -> None:
    done = program_says()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Begin with:" in done.stderr


@pytest.mark.parametrize("command", catalog.entries())
def test_each_command_names_its_home(command: str) -> None:
    found = program.get_command(click.Context(program), command)
    assert found is not None
    inner = found.commands.values() if isinstance(found, click.Group) else [found]
    homeless = ("simulate", "schema", "completion")  # Grids in virtual time, and what is about the program itself.
    for one in inner:
        assert any(param.name == "home" for param in one.params) == (command not in homeless)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("17", 17), ("512M", 512 << 20), ("1.5k", 1536), ("10G", 10 << 30), ("10GiB", 10 << 30), ("2 MB", 2 << 20), ("3B", 3)],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "-1", "5X", "lots", "1e40", "nan", "inf", "1G2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_sizes_are_shown_with_three_digits() -> None:
    assert [size_text(size) for size in (0, 999, 1024, 1536, 200 << 20, 10 << 30)] == [
        "0 B",
        "999 B",
        "1 KiB",
        "1.5 KiB",
        "200 MiB",
        "10 GiB",
    ]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (None, ("0.0.0.0", 0)),
        ("", ("0.0.0.0", 0)),
        ("127.0.0.1", ("127.0.0.1", 0)),
        ("127.0.0.1:7400", ("127.0.0.1", 7400)),
        (":7400", ("0.0.0.0", 7400)),
        ("[::1]:7400", ("::1", 7400)),
        ("::1", ("::1", 0)),
    ],
)
def test_places_to_listen_are_read(text: str | None, place: tuple[str, int]) -> None:
    assert parse_listen(text) == place


@pytest.mark.parametrize("text", ["garbage", "host.example:80", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:x", "1.2.3:4"])
def test_what_is_no_place_to_listen_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no address to listen on"):
        parse_listen(text)


def test_new_settings_win_where_they_say_something() -> None:
    older = Settings(name="old", cpus=4, native=True)
    assert Settings(cpus=0, native=False).over(older) == Settings(name="old", cpus=0, native=False)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UsageError, 2),
        (BadDataError, 65),
        (MalformedError, 65),
        (NoPeersError, 69),
        (UnreachableError, 69),
        (P2PGridError, 70),
        (TryAgainError, 75),
        (RefusedError, 77),
        (IntegrityError, 77),
        (ConfigError, 78),
    ],
)
def test_each_kind_of_error_has_the_code_of_the_contract(kind: type[P2PGridError], code: int) -> None:
    assert code_of(kind("no")) == code


def test_values_are_printed_for_pipes() -> None:
    out = io.BytesIO()
    for value in (None, "line\n", "no end", b"\x00raw", {"a": [1, None, "ü"]}, 3):
        print_value(value, out)
    assert out.getvalue() == b'line\nno end\n\x00raw{"a": [1, null, "\xc3\xbc"]}\n3\n'


def test_values_become_json_whatever_they_hold() -> None:
    file = FileRef(b"\x01" * 32, 5, "out.txt")  # type: ignore[arg-type]
    document = plain({1: b"raw", "f": file, "t": (1, 2)})
    assert document == {"1": "cmF3", "f": {"file": "out.txt", "blob": document["f"]["blob"], "size_bytes": 5}, "t": [1, 2]}
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    assert plain(deep)


def test_result_files_of_one_name_do_not_overwrite_each_other() -> None:
    found: dict[str, FileRef] = {}
    files = [FileRef(bytes([number]) * 32, 1, "out.tar.gz") for number in (1, 2, 2, 3)]  # type: ignore[arg-type]
    note_files([files[0], {"x": files[1]}, files[2:]], found)
    assert sorted(found) == ["out-2.tar.gz", "out-3.tar.gz", "out.tar.gz"]


def test_every_message_for_people_goes_through_one_door() -> None:
    for path in PACKAGE.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], path
