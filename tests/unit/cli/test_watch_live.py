"""How ``watch`` follows a job: drawn on a terminal, told line by line elsewhere, and the terminal given back whatever happens."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from fcntl import ioctl
from typing import Any, cast

import msgspec
import pytest

from p2pgrid.client.channel import Channel
from p2pgrid.errors import UnreachableError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.wire.faces import FailureLine, JobPicture, WorkerShare
from p2pgrid.wire.owner import FollowEvent, JobLine
from p2pgrid_cli.watching import live

JOB = JobId(StatementId(b"\x07" * 32))
LINE = JobLine(JOB, "job.py", "running", 8, 0, 0, 0, 0, 0, "led", lead=b"a" * 32)


class FakeChannel:
    """A job of eight units, of which each event finds one more decided; the third of them failed."""

    def __init__(self, events: int = 9, note: str = "") -> None:
        self._events = events
        self._note = note
        self.done = 0

    async def follow(self, job: JobId, *, wait: bool, values: bool) -> AsyncIterator[FollowEvent]:
        assert not values
        for number in range(self._events):
            end = number == self._events - 1 and self._events == 9
            self.done = number
            failed = int(number > 2)
            state = "failed" if end else "running"
            line = msgspec.structs.replace(LINE, done=number - failed, failed=failed, state=state)
            yield FollowEvent(line, (), 1, end, "" if end else self._note)
            await asyncio.sleep(0.005)
        if self._events < 9:
            await asyncio.Event().wait()

    async def picture(self, job: JobId, cells: int) -> JobPicture:
        failures = (FailureLine(2, b"a" * 32, "raised", "ValueError: two", True),) if self.done > 2 else ()
        text = "".join("f" if unit == 2 else "d" for unit in range(self.done)).ljust(8, ".")
        return JobPicture(text, 1, (WorkerShare(b"a" * 32, "anna", self.done, 1, 2.0, 1.0),), (), failures, 2.0, 3.0)


def channel(**options: Any) -> Channel:
    return cast(Channel, FakeChannel(**options))


async def test_in_a_pipe_each_change_and_each_failure_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FAILURES_S", 0.005)
    assert await live.to_the_end(channel(note="waiting: no node takes the units that are left"), JOB) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0] == "waiting: no node takes the units that are left"
    assert lines[-1] == "failed: 7 of 8 units done, 1 failed"
    assert lines.count("unit 2 failed at mfqwcylb (raised): ValueError: two") == 1
    assert len([line for line in lines if line.startswith("running")]) <= 1  # At most one a second.
    assert "1 more units failed" in told.err


async def test_an_error_of_the_node_ends_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = FakeChannel()

    async def broken(job: JobId, cells: int) -> JobPicture:
        raise UnreachableError("the node has gone")

    monkeypatch.setattr(watched, "picture", broken)
    with pytest.raises(UnreachableError, match="has gone"):
        await live.to_the_end(cast(Channel, watched), JOB)


async def test_one_look_needs_no_end() -> None:
    watched = await live.glance(channel(), JOB, 10)
    assert (watched.line.units, watched.picture.units_per_cell) == (8, 1)


async def test_one_look_is_as_wide_as_columns_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    live.print_once(await live.glance(channel(), JOB, 10))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "ddfddddd" in told
    assert max(map(len, told.splitlines())) <= 60


SCRIPT = """
import asyncio, sys
from tests.unit.cli.test_watch_live import JOB, channel
from p2pgrid_cli.watching import live
live.PICTURE_S = 0.01
sys.exit(asyncio.run(live.to_the_end(channel(events=int(sys.argv[1])), JOB)))
"""


class OnTerminal:
    """The script on a terminal of 60 columns and 24 lines."""

    def __init__(self, events: int) -> None:
        self._leader, self.follower = pty.openpty()
        ioctl(self.follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        self.before = termios.tcgetattr(self.follower)
        environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(events)], stdin=self.follower, stdout=self.follower, stderr=self.follower, env=environment
        )
        self.written = b""

    def read_until(self, wanted: bytes, timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while wanted not in self.written:
            assert time.monotonic() < deadline, self.written
            if select.select([self._leader], [], [], 0.2)[0]:
                self.written += os.read(self._leader, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(5)
        os.close(self._leader)
        os.close(self.follower)


def test_on_a_terminal_the_picture_is_drawn_and_what_is_left_is_the_outcome() -> None:
    terminal = OnTerminal(9)
    try:
        terminal.read_until(b"units have results")
        assert terminal.process.wait(5) == 1
        text = terminal.written.decode()
        picture, after = text.split("\x1b[?1049l")
        rows = [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", row) for row in re.split(r"\x1b\[\d+;1H", picture)]
        assert max(map(len, rows)) <= 60
        assert any("anna" in row and "works" in row for row in rows)
        assert any("r running" in row for row in rows)
        assert "failed: 7 of 8 units done, 1 failed" in after
        assert "unit 2 failed (raised): ValueError: two" in after
        assert termios.tcgetattr(terminal.follower) == terminal.before
    finally:
        terminal.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(number: signal.Signals) -> None:
    terminal = OnTerminal(4)
    try:
        terminal.read_until(b"anna")
        terminal.process.send_signal(number)
        terminal.read_until(b"\x1b[?1049l")
        assert terminal.process.wait(5) != 0
        assert terminal.written.rstrip().count(b"\x1b[?25h") == 1
        assert termios.tcgetattr(terminal.follower) == terminal.before
    finally:
        terminal.close()


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on() -> None:
    terminal = OnTerminal(4)
    try:
        terminal.read_until(b"anna")
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.read_until(b"\x1b[?1049l")
        assert os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED) is not None
        assert termios.tcgetattr(terminal.follower) == terminal.before
        terminal.written = b""
        terminal.process.send_signal(signal.SIGCONT)
        terminal.read_until(b"\x1b[?1049h")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.read_until(b"\x1b[?1049l")
        assert terminal.process.wait(5) != 0
        assert termios.tcgetattr(terminal.follower) == terminal.before
    finally:
        terminal.close()
