"""``config show``: every setting has a value, and one of four said so."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import ConfigError
from p2pgrid.model.ids import to_text
from p2pgrid.store.home import Home
from p2pgrid_cli.configuring import document, line_numbers, settings_of, table
from p2pgrid_cli.settings import Settings, from_flags, save, variable_of
from p2pgrid_cli.terms import TERMS, Term

KEY = to_text(b"k" * 32)


def home_with(folder: Path, text: str = "", **flags: object) -> Home:
    home = Home(folder / "home", os.urandom)
    home.prepare()
    if text:
        (home.folder / "config.toml").write_text(text, encoding="utf-8")
    if flags:
        save(home, from_flags(**flags))
    return home


def origins(home: Home, environment: dict[str, str]) -> dict[str, tuple[str, str, str]]:
    return {line.term.name: (line.text, line.origin, line.where) for line in settings_of(home, environment)}


def test_the_environment_counts_over_the_file_over_flags_over_the_default(tmp_path: Path) -> None:
    home = home_with(tmp_path, '# mine\ncpus = 3\n\nbusy = "30%"\n', cpus=4, memory="2G", nice=5)
    found = origins(home, {"P2PGRID_BUSY": "50%", "P2PGRID_HOURS": "22:00-07:00"})
    assert found["busy"] == ("50%", "environment", "P2PGRID_BUSY")
    assert found["hours"] == ("22:00-07:00", "environment", "P2PGRID_HOURS")
    assert found["cpus"] == ("3", "file", "config.toml:2")
    assert found["memory"] == ("2G", "flag", "p2pgrid join --memory")
    assert found["nice"] == ("5", "flag", "p2pgrid join --nice")
    assert found["upload"] == ("0", "default", "")
    assert list(found) == [term.name for term in TERMS]


def test_a_home_that_is_not_there_has_the_defaults_and_is_not_made(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home", os.urandom)
    found = origins(home, {})
    assert {origin for _, origin, _ in found.values()} == {"default"}
    assert all(text for text, _, _ in found.values())
    assert not home.folder.parent.exists()


@pytest.mark.parametrize(
    ("text", "hint"), [("cpu = 2", "did you mean 'cpus'?"), ("only-idle = 2", "did you mean 'only_idle'?"), ("x = 1", "known are name, ")]
)
def test_an_unknown_key_is_an_error_with_a_suggestion(text: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key") as caught:
        settings_of(home_with(tmp_path, text), {})
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_every_setting_can_be_said_in_the_environment_and_in_the_file(term: Term, tmp_path: Path) -> None:
    samples = {"name": "n", "listen": "127.0.0.1:1", "native": "no", "on_battery": "yes", "hours": "01:00-02:00", "accept_from": KEY}
    samples |= {"runtimes": "wasm", "packages": "numpy", "busy": "20%", "only_idle": "90s", "memory": "3G", "storage": "5M", "upload": "1M"}
    said = samples.get(term.name, "2" if term.name != "download" else "64K")
    assert origins(home_with(tmp_path), {variable_of(term): said})[term.name] == (said, "environment", variable_of(term))
    file = origins(home_with(tmp_path, f'{term.name} = "{said}"\n'), {})
    assert file[term.name] == (said, "file", "config.toml:1")


def spans() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, 1439), st.integers(0, 1440)).filter(lambda span: span[0] != span[1])


@given(
    st.fixed_dictionaries(
        {
            "cpus": st.integers(0, 999_999),
            "native": st.booleans(),
            "busy": st.integers(0, 100).map(lambda share: share / 100),
            "only_idle": st.integers(0, 600_000).map(float),
            "hours": st.lists(spans(), max_size=4).map(tuple),
            "accept_from": st.sampled_from([(), (KEY,)]),
            "packages": st.sampled_from([("off",), ("any",), ("numpy", "pandas")]),
            "upload": st.integers(0, 9999).map(lambda size: size << 20),
        }
    )
)
def test_what_is_shown_is_read_as_the_same(values: dict[str, object]) -> None:
    terms = {term.name: term for term in TERMS}
    for name, value in values.items():
        assert terms[name].read(terms[name].write(value)) == value


def test_the_document_holds_what_the_table_shows(tmp_path: Path) -> None:
    home = home_with(tmp_path, "cpus = 3\n")
    lines = settings_of(home, {})
    told = msgspec.to_builtins(document(home, lines))
    assert told["file"] == str(home.folder / "config.toml")
    assert told["settings"][1] == {"key": "cpus", "value": 3, "text": "3", "origin": "file", "where": "config.toml:1"}
    assert table(lines, 80, origin=True).row_count == len(TERMS)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits(width: int, tmp_path: Path) -> None:
    from rich.console import Console

    home = home_with(tmp_path, f'name = "{"n" * 80}"\naccept_from = "{KEY},{KEY}"\n')
    out = Console(width=width, file=(tmp_path / "out").open("w"))
    out.print(table(settings_of(home, {}), width, origin=True))
    out.file.close()
    lines = (tmp_path / "out").read_text().splitlines()
    assert max(map(len, lines)) <= width
    assert any("default" in line for line in lines)


def test_lines_are_numbered_as_editors_do(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('# cpus = 1\ncpus = 2\n"nice" = 3\n')
    assert line_numbers(file) == {"cpus": 2, "nice": 3}
    assert line_numbers(tmp_path / "none") == {}


def test_settings_know_every_term() -> None:
    assert {term.field for term in TERMS} == set(Settings.__struct_fields__)
