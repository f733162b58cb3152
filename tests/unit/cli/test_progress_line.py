"""The line of progress: what it says at which width, on a terminal that is really one, and not at all in a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.wire.owner import FollowEvent, JobLine
from p2pgrid_cli.dashboard.lines import ASCII, UNICODE, width_of
from p2pgrid_cli.progress import Progress, Status, progress_line

JOB = Status("job a4dqobyh", 27, 30, rate=5.5, left_s=1.0, more="1 failed")
BYTES = Status("sending", 150 << 20, 200 << 20, "bytes", rate=238 << 20, left_s=0.3)
STEP = Status("compiling the Python runner, the first time only", elapsed_s=12.0)
NOTE = "node abcdefgh fetches packages (3 of 8), 12 s"


@pytest.mark.parametrize(
    ("status", "width", "text"),
    [
        (JOB, 59, "job a4dqobyh  ████████░   90%  27 of 30  5.5/s  1 s left"),
        (JOB, 100, "job a4dqobyh  ██████████████░░   90%  27 of 30  5.5/s  1 s left  1 failed"),
        (JOB, 30, "job a4dqobyh   90%  27 of 30"),
        (BYTES, 59, "sending  ███████░░   75%  150 MiB of 200 MiB  0 s left"),
        (STEP, 59, "compiling the Python runner, the first time only  12 s"),
        (STEP, 49, "compiling the Python runner, the first time only"),
        (Status("reading items", 31_500, elapsed_s=3.0), 59, "reading items  31,500  3 s"),
        (JOB._replace(done=30), 59, "job a4dqobyh  █████████  100%  30 of 30  5.5/s  1 failed"),
    ],
)
def test_what_is_said_at_which_width(status: Status, width: int, text: str) -> None:
    assert progress_line(status, width) == text


def test_what_workers_prepare_is_told_where_there_is_room() -> None:
    status = JOB._replace(done=0, rate=0.0, left_s=-1.0, elapsed_s=12.0, more=NOTE)
    assert progress_line(status, 120).endswith(NOTE)


@settings(max_examples=200, deadline=None)
@given(
    status=st.builds(
        Status,
        what=st.text(max_size=60),
        done=st.integers(0, 1 << 40),
        total=st.integers(0, 1 << 40),
        noun=st.sampled_from(["", "bytes"]),
        rate=st.floats(0, 1e12),
        left_s=st.floats(-1, 1e9),
        elapsed_s=st.floats(0, 1e9),
        more=st.text("abc ", max_size=80),
    ),
    width=st.integers(1, 200),
)
def test_the_line_is_never_wider_than_it_may_be(status: Status, width: int) -> None:
    for glyphs in (UNICODE, ASCII):
        text = progress_line(status, width, glyphs)
        assert width_of(text) <= width
        assert "\x1b" not in text


SCRIPT = """
import time
from p2pgrid_cli import aside, common, logs, progress
progress.DRAW_S = progress.AFTER_S = 0.01
with progress.Progress() as shown:
    shown.step("a step with a name that is longer than the sixty columns of this small terminal are, by far")
    time.sleep(0.15)
    for number in range(0, 1000, 50):
        shown.count("units", number, 1000)
        time.sleep(0.01)
        if number == 500:
            with aside.aside():
                print("a value", flush=True)
    shown.note("a note")
    time.sleep(0.05)
    logs.StderrSink().write(b"a line of the log\\n")
    time.sleep(0.05)
    common.say("a message")
    time.sleep(0.05)
with progress.TransferProgress() as moved:
    for number in range(20):
        moved.more("sending", 10 << 20, 200 << 20)
        time.sleep(0.01)
print("end", flush=True)
"""


def on_a_terminal(columns: int, term: str = "xterm") -> str:
    """What the script writes to a terminal."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": term, "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    written, deadline = b"", time.monotonic() + 30
    while time.monotonic() < deadline:
        if not select.select([leader], [], [], 0.5)[0]:
            continue
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        if not data:
            break
        written += data
    os.close(leader)
    assert process.wait(15) == 0
    return written.decode()


def test_on_a_terminal_the_line_neither_wraps_nor_stays() -> None:
    written = on_a_terminal(60)
    drawn = [row.removesuffix("\x1b[K") for row in re.split(r"[\r\n]+", written)]
    assert any("units  " in row and "█" in row for row in drawn)
    assert any(row.startswith("a step with a name") and row.endswith("…") for row in drawn)
    assert any("MiB of 200 MiB" in row for row in drawn)
    assert max(map(width_of, drawn)) < 60
    # What stays is what was printed, each in a line of its own.
    screen = [re.split(r"\r(?!\r|$)", row.rstrip("\r"))[-1].replace("\x1b[K", "") for row in written.split("\n")]
    assert [row for row in screen if row] == ["a value", "a note", "a line of the log", "a message", "end"]


def test_a_terminal_that_only_prints_gets_no_line() -> None:
    assert on_a_terminal(60, term="dumb").replace("\r", "") == "a value\na note\na line of the log\na message\nend\n"


def test_nothing_goes_into_a_pipe() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("a value\nend\n", "a note\na line of the log\na message\n")


def test_what_a_job_waits_for_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    line = JobLine(b"\x07" * 32, "job.py", "running", 8, 0, 0, 0, 0, 0, "led")
    for note in ("", NOTE, NOTE.replace("3 of 8), 12 s", "4 of 8), 13 s"), "", "waiting: no node takes the units that are left"):
        progress.event(FollowEvent(line, (), 1, False, note))
    assert capsys.readouterr().err.splitlines() == [NOTE, "waiting: no node takes the units that are left"]
