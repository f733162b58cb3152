"""Where the log goes: JSON lines in a bounded file of the owner, or stderr; nothing of it holds up or stops a node."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid import logs as said
from p2pgrid.errors import RefusedError, UsageError
from p2pgrid_cli import logs

LOG = logging.getLogger("p2pgrid.test_cli_logs")


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """The logging of the process as it was."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in list(logger.handlers):
        if handler not in handlers:
            logger.removeHandler(handler)
    logger.setLevel(level)


def happened(text: str = "it is gone") -> None:
    said.line(LOG, logging.INFO, said.HAPPENED, reason="dead", text=text, about=(b"j" * 32,))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_nodes_lines_are_json_that_only_the_owner_can_read(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with logs.for_node(logging.INFO, path):
        happened()
        LOG.warning("the handler of '%s' failed", "own.put")
    first, second = lines(path)
    assert list(first) == ["time", "level", "event", "reason", "text", "about"]
    assert (first["level"], first["event"], first["reason"], first["about"]) == ("info", "happened", "dead", ["njvgu2tk"])
    assert (second["event"], second["logger"]) == ("the handler of 'own.put' failed", LOG.name)
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_below_the_level_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with logs.for_node(logging.WARNING, path):
        happened()
        LOG.warning("this is")
    assert [line["event"] for line in lines(path)] == ["this is"]


def test_a_bug_leaves_its_traceback_and_an_error_of_ours_does_not(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with pytest.raises(ZeroDivisionError), logs.for_node(logging.INFO, path):
        raise ZeroDivisionError
    with pytest.raises(RefusedError), logs.for_node(logging.INFO, path):
        raise RefusedError("no")
    (line,) = lines(path)
    assert line["event"] == "the node failed"
    assert "ZeroDivisionError" in str(line["exception"])


def test_what_a_line_shows_is_what_was_when_it_was_said(tmp_path: Path) -> None:
    path, items = tmp_path / "node.log", [1]
    with logs.for_node(logging.INFO, path):
        LOG.info("items: %s", items)
        items.append(2)
    assert lines(path)[0]["event"] == "items: [1]"


def test_files_are_bounded_and_the_older_one_keeps_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    sink = logs.FileSink(path, 1000)
    for number in range(100):
        sink.write(b"%099d\n" % number)
    sink.close()
    older, newer = (tmp_path / "node.1.log").read_bytes(), path.read_bytes()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "node.1.log", path]
    assert 0 < len(newer) <= 1000 == len(older)
    kept = [int(line) for line in (older + newer).split()]
    assert kept == list(range(100 - len(kept), 100))


def test_a_file_that_was_there_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    path.write_bytes(b"x" * 950 + b"\n")
    sink = logs.FileSink(path, 1000)
    sink.write(b"y" * 40 + b"\n")
    sink.write(b"z" * 40 + b"\n")
    sink.close()
    assert path.read_bytes() == b"z" * 40 + b"\n"
    assert (tmp_path / "node.1.log").stat().st_size == 992


def test_a_disk_that_takes_nothing_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    with logs.for_node(logging.INFO, folder / "node.log") as handler:
        happened()
        handler.flush()
        wait_until(lambda: handler.lost == 1)
        folder.mkdir()
        happened("it is back")
    assert [line["text"] for line in lines(folder / "node.log")] == ["it is back"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_survived() -> None:
    handler = logs.LateHandler(logs.FileSink(Path("/dev/full")), logs.Formatter(pretty=False), gather_s=0.0)
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "one", (), None))
    handler.close()
    assert handler.lost == 1


class Stuck:
    """A reader who does not read."""

    def __init__(self) -> None:
        self.taken = threading.Event()
        self.go_on = threading.Event()
        self.data = b""

    def write(self, data: bytes) -> None:
        self.taken.set()
        self.go_on.wait(10.0)
        self.data += data


def test_a_reader_who_does_not_read_holds_up_nobody_and_lines_are_bounded() -> None:
    sink = Stuck()
    handler = logs.LateHandler(sink, logs.Formatter(pretty=False), gather_s=0.0)
    record = logging.LogRecord("x", logging.INFO, "", 0, "one", (), None)
    handler.handle(record)
    assert sink.taken.wait(5.0)
    for _ in range(logs.LINES_MAX + 10):
        handler.handle(record)
    assert handler.lost == 10
    sink.go_on.set()
    handler.close()
    assert sink.data.count(b"\n") == logs.LINES_MAX + 1


def test_a_line_that_cannot_be_shown_does_not_end_the_log(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError

    path = tmp_path / "node.log"
    with logs.for_node(logging.INFO, path) as handler:
        said.line(LOG, logging.INFO, said.HAPPENED, reason=Broken(), text="", about=())
        happened()
    assert handler.lost == 1
    assert [line["reason"] for line in lines(path)] == ["dead"]


def test_people_get_columns_and_no_json(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.for_node(logging.INFO) as handler:
        handler.setFormatter(logs.Formatter(pretty=True))
        happened()
    text = capfd.readouterr().err
    assert "happened" in text
    assert "reason=dead" in text
    assert "{" not in text
    assert "\x1b" not in text


def test_the_loggers_of_the_process_are_as_before(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers), logging.getLogger().level
    with logs.for_node(logging.DEBUG, tmp_path / "node.log"):
        pass
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "log"]


def test_commands_say_warnings_at_once_and_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    for old in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(old)
    logs.for_commands()
    logs.for_commands()
    happened()
    LOG.warning("look at the disk")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "look at the disk"


def test_a_level_is_one_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logs.level_of("DEBUG", logging.INFO) == logging.DEBUG
    assert logs.level_of(None, logging.WARNING) == logging.WARNING
    with pytest.raises(UsageError) as caught:
        logs.level_of("loud", logging.INFO)
    assert "debug, info, warning" in caught.value.hint


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_what_a_process_says_beside_its_log_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, b"x" * 100)
        logs._keep_short(descriptor, 100)
        assert path.stat().st_size == 100
        os.write(descriptor, b"y")
        logs._keep_short(descriptor, 100)
        assert path.stat().st_size == 0
    finally:
        os.close(descriptor)


def wait_until(true: object, timeout_s: float = 5.0) -> None:
    """The writer has no sign for others; a test looks until it has done its work."""
    assert callable(true)
    done = threading.Event()
    for _ in range(int(timeout_s * 100)):
        if true():
            return
        done.wait(0.01)
    raise AssertionError("it did not come")
