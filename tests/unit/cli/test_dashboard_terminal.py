"""``top`` in a real pseudo-terminal that ``pyte`` plays: what is written, what is not, and that all is as before at the end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pyte
import pytest
from msgspec.structs import replace

from bench.snapshots import ME, busy, key
from p2pgrid.errors import RefusedError, UnreachableError
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.faces import JobPicture
from p2pgrid.wire.owner import OwnPause, Snapshot
from p2pgrid_cli.dashboard.lines import Line, Part
from p2pgrid_cli.dashboard.live import Live
from p2pgrid_cli.dashboard.painter import BEGIN, END, ENTER, LEAVE, Painter
from p2pgrid_cli.dashboard.terminal import Terminal
from p2pgrid_cli.dashboard.view import View

WAIT_S = 30.0
INTERVAL_S = 0.02
ALTERNATE = 1049 << 5
CURSOR = 25 << 5
"""As pyte keeps private modes."""


class Node:
    """A fake of the owner's channel."""

    def __init__(self) -> None:
        self.now = busy()
        self.asked = 0
        self.done: list[str] = []
        self.error: Exception | None = None
        self.silent = asyncio.Event()
        self.silent.set()

    async def snapshot(self, *, refresh: bool = False) -> Snapshot:
        await self.silent.wait()
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.now

    async def pause(self, seconds: float = 0.0) -> OwnPause:
        self.done.append("pause")
        return OwnPause("paused", "paused", Reason.PAUSED.sentence)

    async def resume(self) -> OwnPause:
        self.done.append("resume")
        if len(self.done) > 2:
            raise RefusedError("no", reason=Reason.BUSY)
        return OwnPause("running")

    async def picture(self, job: bytes, cells: int = 1024) -> JobPicture:
        self.done.append("picture")
        return JobPicture("dddd....", 640, rate=118.0)


class Screen:
    """A terminal of a person: what is written is shown, and kept."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.changed = asyncio.Event()
        self.before = termios.tcgetattr(self.slave)
        os.set_blocking(self.master, False)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def ready(self) -> None:
        with suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 1 << 16):
                self.raw += data
                self._stream.feed(data)
                self.changed.set()

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    async def until(self, what: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not what():
                self.changed.clear()
                self.ready()
                if not what():
                    await self.changed.wait()

    async def shows(self, *texts: str) -> None:
        try:
            await self.until(lambda: all(text in self.text for text in texts))
        except TimeoutError:
            pytest.fail(f"{texts} never came; there is:\n{self.text}")

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
async def person() -> AsyncIterator[Screen]:
    screen = Screen()
    asyncio.get_running_loop().add_reader(screen.master, screen.ready)
    yield screen
    asyncio.get_running_loop().remove_reader(screen.master)
    screen.close()


@pytest.fixture
async def node() -> Node:
    return Node()


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def live(node: Node, person: Screen, *, colour: bool = True, interval_s: float = INTERVAL_S) -> Live:
    return Live(node, Terminal(person.slave, person.slave, colour=colour), View(), node.now, interval_s=interval_s)


@asynccontextmanager
async def running(node: Node, person: Screen, **more: Any) -> AsyncIterator[asyncio.Task[int]]:
    """The loop, with its first picture shown."""
    task = asyncio.ensure_future(live(node, person, **more).run())
    try:
        await person.shows("desk", "q quit")
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(task: asyncio.Task[int], person: Screen) -> int:
    async with asyncio.timeout(WAIT_S):
        code = await task
    person.ready()
    restored(person)
    return code


def restored(person: Screen) -> None:
    """The terminal is as it was."""
    assert termios.tcgetattr(person.slave) == person.before
    assert ALTERNATE not in person.screen.mode
    assert not person.screen.cursor.hidden
    assert person.raw.endswith(LEAVE.encode())
    assert os.get_blocking(person.slave)


async def test_the_picture_is_shown_and_q_gives_the_terminal_back(node: Node, person: Screen) -> None:
    async with running(node, person) as task:
        assert ALTERNATE in person.screen.mode
        assert person.screen.cursor.hidden
        for word in ("working: 3 of 4 cores busy", "attic", "no answer", "wordcount.py", "disagreed", "units/s"):
            assert word in person.text
        person.press(b"q")
        assert await ended(task, person) == 0


async def test_only_lines_that_changed_are_written_again(node: Node, person: Screen) -> None:
    async with running(node, person) as task:
        asked = node.asked
        await until(lambda: node.asked > asked + 3)
        person.ready()
        written = len(person.raw)
        asked = node.asked
        await until(lambda: node.asked > asked + 5)
        person.ready()
        assert len(person.raw) == written, "nothing changed, nothing is written"
        status = replace(node.now.status.status, running=2)
        node.now = replace(node.now, status=replace(node.now.status, status=status))
        await person.shows("working: 2 of 4 cores busy")
        assert person.raw[written:].count(b"\x1b[K") == 1
        assert len(person.raw) - written < 250
        assert person.raw[written:].startswith(BEGIN.encode())
        assert person.raw.endswith(END.encode())
        person.press(b"q")
        assert await ended(task, person) == 0


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not what():
            await asyncio.sleep(INTERVAL_S / 4)


async def test_keys_change_the_picture_at_once_though_the_node_is_slow(node: Node, person: Screen) -> None:
    async with running(node, person, interval_s=30.0) as task:
        person.press(b"?")
        await person.shows("this page", "Ctrl-L")
        person.press(b"\x1b")
        await person.shows("kitchen")
        person.press(b"s")
        await person.shows("by spare", "peers by spare")
        person.press(b"/attic\r")
        await person.shows("with 'attic'")
        person.press(b"\x1b[B\r")
        await person.shows("last seen 12 s ago", "p2pgrid why")
        person.press(b"\x1b")
        await person.shows("with 'attic'")
        person.press(b"q")
        assert await ended(task, person) == 0
        assert node.asked <= 1


async def test_the_detail_of_a_job_asks_for_its_picture(node: Node, person: Screen) -> None:
    async with running(node, person) as task:
        person.press(b"\t\r")
        await person.shows("a job", "dddd", "p2pgrid watch")
        assert "picture" in node.done
        person.press(b"q")
        assert await ended(task, person) == 0


async def test_pause_and_resume_say_what_came_of_it(node: Node, person: Screen) -> None:
    async with running(node, person) as task:
        person.press(b"p")
        await person.shows(f"paused: {Reason.PAUSED.sentence} (paused); r resumes")
        person.press(b"r")
        await person.shows("running: this node takes work")
        person.press(b"r")
        await person.shows("no (busy)")
        assert node.done == ["pause", "resume", "resume"]
        person.press(b"q")
        assert await ended(task, person) == 0


async def test_a_new_size_paints_everything_anew(node: Node, person: Screen) -> None:
    async with running(node, person) as task:
        person.screen.resize(40, 120)
        person.resize(120, 40)
        os.kill(os.getpid(), signal.SIGWINCH)
        await person.shows("trust", "native", "octopus")
        person.screen.resize(16, 60)
        person.resize(60, 16)
        os.kill(os.getpid(), signal.SIGWINCH)
        await until(lambda: "trust" not in person.text and "peers 6/8" in person.text)
        person.press(b"q")
        assert await ended(task, person) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP), (signal.SIGINT, 0)])
async def test_signals_give_the_terminal_back(node: Node, person: Screen, number: signal.Signals, code: int) -> None:
    async with running(node, person) as task:
        os.kill(os.getpid(), number)
        assert await ended(task, person) == code


async def test_the_end_of_the_node_gives_the_terminal_back_and_is_told(node: Node, person: Screen) -> None:
    async with running(node, person) as task:
        node.error = UnreachableError("the node stopped", reason=Reason.DEAD)
        with pytest.raises(UnreachableError):
            await ended(task, person)
        person.ready()
        restored(person)


async def test_a_bug_gives_the_terminal_back(node: Node, person: Screen) -> None:
    task = asyncio.ensure_future(live(node, person).run())
    await person.shows("desk")
    node.now = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        await task
    person.ready()
    restored(person)


async def test_cancelling_gives_the_terminal_back(node: Node, person: Screen) -> None:
    async with running(node, person) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        person.ready()
        restored(person)


async def test_a_node_that_does_not_answer_is_said_so(node: Node, person: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pgrid_cli.dashboard.live.SILENT_S", 0.1)
    monkeypatch.setattr("p2pgrid_cli.dashboard.live.LOOK_S", 0.05)
    async with running(node, person) as task:
        node.silent.clear()
        await person.shows("the node has not answered for")
        node.silent.set()
        await person.shows("q quit")
        person.press(b"q")
        assert await ended(task, person) == 0


CHILD = """
import asyncio, os
from bench.snapshots import busy
from p2pgrid_cli.dashboard.live import Live
from p2pgrid_cli.dashboard.terminal import own_terminal
from p2pgrid_cli.dashboard.view import View

class Node:
    async def snapshot(self, *, refresh=False):
        return busy()

os.close(os.open(os.ttyname(0), os.O_RDWR))  # Whoever leads a session gets it as the terminal that sends signals.
raise SystemExit(asyncio.run(Live(Node(), own_terminal(), View(), busy(), interval_s=0.1).run()))
"""


def program(script: str, person: Screen) -> subprocess.Popen[bytes]:
    """A script of its own session on the terminal."""
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=person.slave,
        stdout=person.slave,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONIOENCODING": "utf-8"},
    )


async def test_as_a_program_of_a_shell_it_hears_ctrl_z_and_ctrl_c(person: Screen) -> None:
    child = program(CHILD, person)
    try:
        await person.shows("attic", "q quit")
        person.press(b"\x1a")
        async with asyncio.timeout(WAIT_S):
            _, status = await asyncio.to_thread(os.waitpid, child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        person.ready()
        restored(person)
        child.send_signal(signal.SIGCONT)
        await person.until(lambda: ALTERNATE in person.screen.mode)
        await person.shows("attic", "q quit")
        person.press(b"\x03")
        async with asyncio.timeout(WAIT_S):
            assert await asyncio.to_thread(child.wait) == 0
        person.ready()
        restored(person)
    finally:
        child.kill()
        child.communicate()


FLOOD = """
import asyncio, os
from bench.snapshots import busy
from p2pgrid_cli.dashboard.live import Live
from p2pgrid_cli.dashboard.terminal import own_terminal
from p2pgrid_cli.dashboard.view import View

class Node:
    async def snapshot(self, *, refresh=False):
        live._painter.forget()
        if terminal.busy:
            os.write(2, b"busy\\n")
        return busy()

terminal = own_terminal()
live = Live(Node(), terminal, View(), busy(), interval_s=0.02)
raise SystemExit(asyncio.run(live.run()))
"""


@pytest.mark.parametrize("reads_again", [False, True])
async def test_a_terminal_that_stopped_reading_gets_newer_frames_later_and_ctrl_c_is_heard(person: Screen, reads_again: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.remove_reader(person.master)
    child = program(FLOOD, person)
    assert child.stderr is not None
    try:
        async with asyncio.timeout(WAIT_S):
            assert await asyncio.to_thread(child.stderr.readline) == b"busy\n"
        if reads_again:
            loop.add_reader(person.master, person.ready)
            await person.shows("attic", "q quit")
            shown = person.raw.count(b"attic")
            await person.until(lambda: person.raw.count(b"attic") > shown + 5)
        child.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_S):
            assert await asyncio.to_thread(child.wait) == 0
    finally:
        child.kill()
        child.communicate()
        loop.add_reader(person.master, person.ready)


async def test_without_a_terminal_for_keys_it_says_so(node: Node, person: Screen) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        task = asyncio.ensure_future(Live(node, Terminal(null, person.slave), View(), node.now, interval_s=INTERVAL_S).run())
        await person.shows("no keys can be read here; Ctrl-C quits")
        os.kill(os.getpid(), signal.SIGINT)
        assert await ended(task, person) == 0
    finally:
        os.close(null)


async def test_without_colour_the_same_words_are_there(node: Node, person: Screen) -> None:
    async with running(node, person, colour=False) as task:
        assert "no answer" in person.text
        colours = {cell.fg for row in person.screen.buffer.values() for cell in row.values()}
        assert colours == {"default"}
        person.press(b"q")
        assert await ended(task, person) == 0


def test_signs_that_an_encoding_lacks_do_not_end_the_picture() -> None:
    written: list[bytes] = []
    with Painter(written.append, encoding="ascii") as painter:
        painter.paint([(Part("東京 … ok"),)], 20, 1)
    assert b"?? ? ok" in b"".join(written)
    assert b"".join(written).endswith(LEAVE.encode())


def test_leaving_a_terminal_that_has_gone_does_no_harm() -> None:
    calls: list[bytes] = []

    def write(data: bytes) -> None:
        calls.append(data)
        if len(calls) > 1:
            raise OSError("gone")

    painter = Painter(write)
    painter.enter()
    painter.leave()
    painter.leave()
    assert calls == [ENTER.encode(), LEAVE.encode()]


def test_a_higher_picture_than_the_terminal_is_not_written_beyond_it() -> None:
    written: list[bytes] = []
    painter = Painter(written.append)
    lines: list[Line] = [(Part(str(number)),) for number in range(5)]
    painter.paint(lines, 10, 3)
    assert b"\x1b[3;1H" in written[0]
    assert b"\x1b[4;1H" not in written[0]


def test_the_fake_is_busy() -> None:
    assert busy().peers[0].node == ME
    assert busy().jobs[0].job == key(101)
