"""``p2pgrid top`` where there is no live picture: once, as a document, into a pipe, on a terminal that only prints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.snapshots import busy
from p2pgrid.wire.owner import Snapshot
from p2pgrid_cli import look
from p2pgrid_cli.documents import schema_of
from p2pgrid_cli.documents.top import Top


class Node:
    """A fake of the owner's channel."""

    def __init__(self) -> None:
        self.refreshed: list[bool] = []

    async def snapshot(self, *, refresh: bool = False) -> Snapshot:
        self.refreshed.append(refresh)
        if len(self.refreshed) > 2:
            raise KeyboardInterrupt
        return busy()


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    found = Node()

    def with_channel(home: Path | None, use: Callable[[Any], Awaitable[Any]]) -> Any:
        async def used() -> Any:
            return await use(found)

        return asyncio.run(used())

    monkeypatch.setattr(look, "with_channel", with_channel)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    return found


def test_a_pipe_gets_everything_once(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    look.top()
    text, errors = capsys.readouterr()
    assert errors == ""
    assert node.refreshed == [True], "whoever looks once wants all of it now"
    assert "a laptop whose name is rather long" in text
    assert "connection 0 was closed" in text
    assert "\x1b" not in text
    assert "…" not in text


def test_the_width_can_be_said(node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    look.top(once=True)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_the_document_is_as_its_schema_says(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    look.top(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert json.loads(msgspec.json.encode(msgspec.convert(told, Top))) == told
    assert [len(told[part]) for part in ("peers", "jobs", "events", "pulses")] == [8, 8, 60, 60]
    assert told["dht"]["p95_ms"] == 41.0
    assert schema_of("top")["title"] == "p2pgrid top --json"


def test_a_terminal_that_only_prints_gets_a_page_after_each_interval(
    node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        look.top(interval=0.01)
    text = capsys.readouterr().out
    assert text.count("working: 3 of 4 cores busy") == 2
    assert node.refreshed == [False] * 3
    assert "\x1b" not in text
