"""The loop of ``top``: asks the node, takes keys, and paints when there is something new.

1. Asking goes on beside painting: a key is answered at once, though the node is slow.
2. The terminal is given back whatever ends the loop: a key, a signal, the end of the node, or a bug.
3. A node that does not answer is said so; the last picture stays.
4. A terminal that takes no more gets no further frame until it does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.wire.faces import JobPicture
from p2pgrid.wire.owner import OwnPause, Snapshot
from p2pgrid_cli.dashboard.header import sentence_of
from p2pgrid_cli.dashboard.keyboard import Keyboard
from p2pgrid_cli.dashboard.lines import duration
from p2pgrid_cli.dashboard.painter import Painter
from p2pgrid_cli.dashboard.screen import screen
from p2pgrid_cli.dashboard.terminal import Terminal
from p2pgrid_cli.dashboard.view import JOBS, Action, View, press

LOOK_S = 1.0
"""The size of the terminal and the age of the last answer are looked at so often when nothing else happens."""
SILENT_S = 3.0
"""After so long without an answer it is said."""
PICTURE_CELLS = 480
SIGNALS = ("SIGTERM", "SIGHUP")


class Asked(Protocol):
    """What the loop needs of the owner's channel."""

    async def snapshot(self, *, refresh: bool = False) -> Snapshot: ...
    async def pause(self, seconds: float = 0.0) -> OwnPause: ...
    async def resume(self) -> OwnPause: ...


def utc_offset_s() -> int:
    """How far local time is ahead of UTC now."""
    return time.localtime().tm_gmtoff


class Live:
    """One run of the picture."""

    def __init__(self, channel: Asked, terminal: Terminal, view: View, first: Snapshot, *, interval_s: float) -> None:
        """``first``: what is shown until the node is asked again. ``interval_s``: seconds between two questions."""
        self._channel = channel
        self._terminal = terminal
        self._interval_s = interval_s
        self._view = view
        self._snapshot = first
        self._picture: tuple[bytes, JobPicture] | None = None
        self._painter = Painter(terminal.write, colour=terminal.colour, encoding=terminal.encoding)
        self._keyboard = Keyboard(terminal.fd_in, self._on_key)
        self._news = asyncio.Event()
        terminal.on_free = self._news.set
        self._ask_now = asyncio.Event()
        self._ended = False
        self._signal = 0
        self._answered_s = 0.0
        self._acting: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Until it is to end. Returns the number of the signal that ended it, or 0. Raises what asking the node raised."""
        loop = asyncio.get_running_loop()
        self._answered_s = loop.time()
        asking = asyncio.ensure_future(self._ask_forever())
        asking.add_done_callback(lambda _: self._news.set())
        taken = self._take_signals(loop)
        try:
            with self._terminal, self._painter, self._keyboard:
                self._view = self._view._replace(keys=self._keyboard.works)
                while not self._ended:
                    self._paint(loop.time())
                    if asking.done():
                        asking.result()
                    await self._something()
        finally:
            for number in taken:
                loop.remove_signal_handler(number)
            await self._stop(asking)
        return self._signal

    async def _something(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._news.wait()
        self._news.clear()

    async def _stop(self, asking: asyncio.Future[None]) -> None:
        tasks = [task for task in (asking, self._acting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- painting ------------------------------------------------------------------------

    def _paint(self, now_s: float) -> None:
        if self._terminal.busy:
            return
        width, height = self._terminal.size()
        silent_s = now_s - self._answered_s - self._interval_s
        alarm = f"the node has not answered for {duration(silent_s)}; this is how it was" if silent_s > SILENT_S else ""
        view = self._view._replace(alarm=alarm, utc_offset_s=utc_offset_s())
        picture = self._picture[1] if self._picture and self._picture[0] == view.job else None
        self._painter.paint(screen(self._snapshot, view, width, height, picture), width, height)

    # -- the node ------------------------------------------------------------------------

    async def _ask_forever(self) -> None:
        loop = asyncio.get_running_loop()
        next_s = loop.time() + self._interval_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_s):
                    await self._ask_now.wait()
            self._ask_now.clear()
            # A slow node is not asked without a pause.
            next_s = max(next_s, loop.time() - self._interval_s / 2) + self._interval_s
            self._snapshot = await self._channel.snapshot()
            await self._ask_picture()
            self._answered_s = loop.time()
            self._news.set()

    async def _ask_picture(self) -> None:
        """Of the job whose detail is open. A node that cannot give one leaves us with the line of the job."""
        view = self._view
        ask = getattr(self._channel, "picture", None)
        if ask is None or not view.detail or view.focus != JOBS or not view.job:
            self._picture = None
            return
        try:
            self._picture = view.job, await ask(JobId(StatementId(view.job)), PICTURE_CELLS)
        except P2PGridError:
            self._picture = None

    # -- keys and signals ------------------------------------------------------------------

    def _on_key(self, key: str) -> None:
        before = self._view
        self._view, action = press(before, key, self._snapshot)
        if action is Action.QUIT:
            self._ended = True
        elif action is Action.REPAINT:
            self._painter.forget()
        elif action is not Action.NONE:
            self._act(action)
        if self._view.detail and not before.detail:
            self._ask_now.set()
        self._news.set()

    def _act(self, action: Action) -> None:
        if self._acting is not None and not self._acting.done():
            self._note("still at it")
            return
        self._note("pausing: running units are stopped" if action is Action.PAUSE else "resuming")
        self._acting = asyncio.ensure_future(self._acted(self._channel.pause() if action is Action.PAUSE else self._channel.resume()))

    async def _acted(self, work: Coroutine[Any, Any, OwnPause]) -> None:
        try:
            told = await work
        except P2PGridError as error:
            self._note(f"{error.message} ({error.reason})")
            return
        why = f": {sentence_of(told.reason)} ({told.reason}); r resumes" if told.reason else ": this node takes work"
        self._note(told.state + why)
        self._ask_now.set()

    def _note(self, text: str) -> None:
        self._view = self._view._replace(note=text)
        self._news.set()

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> list[int]:
        """Which signals now come here. Ctrl-C ends in good order, as ``q`` does."""
        handlers: dict[str, Callable[[], None]] = {"SIGINT": self._quit, "SIGWINCH": self._news.set, "SIGTSTP": self._suspend}
        handlers |= {name: lambda name=name: self._end(name) for name in SIGNALS}  # type: ignore[misc]
        taken = []
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            with suppress(NotImplementedError):
                if number is not None:
                    loop.add_signal_handler(number, handler)
                    taken.append(int(number))
        return taken

    def _quit(self) -> None:
        self._ended = True
        self._news.set()

    def _end(self, name: str) -> None:
        self._signal = int(getattr(signal, name))
        self._quit()

    def _suspend(self) -> None:
        """Ctrl-Z: the terminal is the shell's until we are continued."""
        self._painter.leave()
        self._terminal.drain()
        self._keyboard.restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._keyboard.again()
        self._painter.enter()
        self._news.set()
