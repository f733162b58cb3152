"""How the runner is built, and when it is not."""

from __future__ import annotations

import shutil
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
from wasmtime import component as components

from p2pgrid.runtimes import runner
from p2pgrid.runtimes.runner import building
from p2pgrid.runtimes.worker.engine import Engine


def test_the_component_imports_nothing(compiled: Any) -> None:
    engine = Engine()
    kind = components.Component.deserialize_file(engine.raw, str(compiled("native"))).type
    assert kind.imports(engine.raw) == {}
    assert set(kind.exports(engine.raw)) >= {"compile", "load", "place", "run"}


def test_a_runner_is_current_only_with_the_stamp_of_its_sources(tmp_path: Path) -> None:
    (tmp_path / building.FILE_NAME).write_bytes(b"component")
    assert not building.is_current(tmp_path)
    (tmp_path / building.STAMP_NAME).write_text("another")
    assert not building.is_current(tmp_path)
    (tmp_path / building.STAMP_NAME).write_text(building.stamp() + "\n")
    assert building.is_current(tmp_path)
    (tmp_path / building.FILE_NAME).unlink()
    assert not building.is_current(tmp_path)


def test_the_stamp_names_every_source_and_no_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(building.HERE / "guest", tmp_path / "guest")
    for name in ("runner.wit", "building.py"):
        shutil.copy(building.HERE / name, tmp_path)
    before = building.stamp()
    monkeypatch.setattr(building, "HERE", tmp_path)
    assert building.stamp() == before
    source = tmp_path / "guest" / "world.py"
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    assert building.stamp() == before
    source.write_bytes(source.read_bytes() + b"# changed\n")
    assert building.stamp() != before


def test_without_the_tool_there_is_a_reason_and_no_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(building.NoToolError):
        building.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_installation_without_the_component_has_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "__init__.py"))
    assert runner.path() is None
    (tmp_path / runner.FILE_NAME).write_bytes(b"x")
    assert runner.path() == tmp_path / runner.FILE_NAME
