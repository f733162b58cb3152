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
    assert [line.get("text", line["event"]) for line in lines(folder / "node.log")] == ["it is back", "1 lines were lost"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_survived() -> None:
    handler = logs.LateHandler(logs.FileSink(Path("/dev/full")), logs.Formatter(pretty=False), gather_s=0.0)
    handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "one", (), None))
    handler.close()
    assert handler.lost == 1


class Taken:
    """A reader."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


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
    *written, last = sink.data.splitlines()
    assert len(written) == logs.LINES_MAX + 1
    assert json.loads(last)["event"] == "10 lines were lost"


def test_a_line_that_cannot_be_shown_does_not_end_the_log(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError

    path = tmp_path / "node.log"
    with logs.for_node(logging.INFO, path) as handler:
        said.line(LOG, logging.INFO, said.HAPPENED, reason=Broken(), text="", about=())
        happened()
    assert handler.lost == 1
    assert [line.get("reason", line["event"]) for line in lines(path)] == ["dead", "1 lines were lost"]


def test_a_call_that_does_not_fit_its_format_fails_nobody(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with logs.for_node(logging.INFO, path) as handler:
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "%d items of %s", ("three",), None))
        happened()
    assert [line["event"] for line in lines(path)] == ["%d items of %s", "happened"]


# -- floods -----------------------------------------------------------------------------


class Hand:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record_of(event: said.Event, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("x", level, "", 0, said.Line(event.name, {"reason": "full"}), (), None)


def shown(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records]


@pytest.mark.parametrize("event", [said.REFUSED, said.HAPPENED])
def test_a_flood_of_what_others_cause_is_cut_and_counted(event: said.Event) -> None:
    clock = Hand()
    flood = logs.Flood(clock)
    passed = [record for _ in range(logs.AT_ONCE + 30) for record in flood.through(record_of(event))]
    assert shown(passed) == [f"{event.name} reason=full"] * logs.AT_ONCE
    assert flood.counts() == []
    clock.now += 1.0
    assert shown(flood.through(record_of(event))) == [f"{event.name}: 30 more were left out", f"{event.name} reason=full"]
    assert flood.through(record_of(event)) == []
    clock.now += 1.0
    assert shown(flood.counts()) == [f"{event.name}: 1 more were left out"]
    assert not flood.holds()
    clock.now += 10_000.0
    assert sum(len(flood.through(record_of(event))) for _ in range(1000)) == logs.AT_ONCE


def test_warnings_are_not_drowned_by_what_is_usual() -> None:
    flood = logs.Flood(Hand())
    for _ in range(1000):
        flood.through(record_of(said.HAPPENED))
    assert len(flood.through(record_of(said.HAPPENED, logging.WARNING))) == 1
    assert len(flood.through(record_of(said.REFUSED))) == 1


def test_what_nobody_else_causes_is_not_limited() -> None:
    flood = logs.Flood(Hand())
    assert sum(len(flood.through(record_of(said.BATCH))) for _ in range(1000)) == 1000


def test_what_was_left_out_is_told_when_there_is_room_and_nothing_more_is_said() -> None:
    sink, clock = Taken(), Hand()
    handler = logs.LateHandler(sink, logs.Formatter(pretty=False), gather_s=0.0, clock=clock)
    for _ in range(logs.AT_ONCE + 7):
        handler.handle(record_of(said.REFUSED))
    clock.now += 1.0
    wait_until(lambda: b"refused: 7 more were left out" in sink.data)
    handler.close()
    assert sink.data.count(b"\n") == logs.AT_ONCE + 1


def test_what_was_left_out_is_told_at_the_end() -> None:
    sink = Taken()
    handler = logs.LateHandler(sink, logs.Formatter(pretty=False), clock=Hand())
    for _ in range(logs.AT_ONCE + 7):
        handler.handle(record_of(said.REFUSED))
    handler.close()
    assert json.loads(sink.data.splitlines()[-1])["event"] == "refused: 7 more were left out"


def test_a_commands_own_warnings_are_limited_too(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logs._Stderr()
    for _ in range(logs.AT_ONCE * 3):
        handler.handle(record_of(said.REFUSED))
    assert logs.AT_ONCE <= len(capsys.readouterr().err.splitlines()) < logs.AT_ONCE * 2


# -- what strangers write ---------------------------------------------------------------

HOSTILE = ("\x1b[2Jgone", "a\x1b]52;c;cm0gLXJm\x07", "one\ntwo", "\x9b31mred")


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_stranger_cannot_steer_the_owners_terminal(text: str, pretty: bool) -> None:
    formatter = logs.Formatter(pretty=pretty)
    for message in (said.Line("refused", {"reason": text, "text": text}), said.Line(text, {"about": [text]}), text):
        line = formatter.format(logging.LogRecord("x", logging.INFO, "", 0, message, (), None))
        assert line.isprintable()
        assert text not in line


@pytest.mark.parametrize("pretty", [True, False])
def test_a_traceback_has_its_lines_and_nothing_that_steers(pretty: bool) -> None:
    try:
        raise ValueError("\x1b]0;x\x07 \x9b2J")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    text = logs.Formatter(pretty=pretty).format(record)
    assert "ValueError: ?]0;x? ?2J" in text
    assert text.replace("\n", "").isprintable()
    assert ("\n" if pretty else "\\n") in text


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


def wait_until(true: object, timeout_s: float = 20.0) -> None:
    """The writer has no sign for others; a test looks until it has done its work."""
    assert callable(true)
    done = threading.Event()
    for _ in range(int(timeout_s * 100)):
        if true():
            return
        done.wait(0.01)
    raise AssertionError("it did not come")
