"""The terminal as the picture uses it. What it does not take at once waits, and the next frame with it, but nobody else.

A write that blocks would block keys and signals, too: over a slow line, or to a terminal that has stopped reading, Ctrl-C would not
be heard. So writes go through a descriptor of our own that does not block; that of the shell stays as it is.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

LAST_S = 1.0
"""So long what was written last may take at the end."""
WRITE_S = 10.0
"""Without a descriptor of our own: a terminal that takes nothing for so long has gone."""


class Terminal:
    """Where keys come from and where pictures go. Use as a context manager within the event loop."""

    def __init__(self, fd_in: int, fd_out: int, *, colour: bool = True, encoding: str = "utf-8") -> None:
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.colour = colour
        self.encoding = encoding
        self.on_free: Callable[[], None] = lambda: None
        """Called when it has taken all that waited."""
        self._own = -1
        self._unsent = b""

    def __enter__(self) -> Terminal:
        # Not everywhere is there such a thing, and not every output has a name.
        with suppress(OSError, AttributeError):
            self._own = os.open(os.ttyname(self.fd_out), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.drain()
        own, self._own = self._own, -1
        if own >= 0:
            os.close(own)

    @property
    def busy(self) -> bool:
        """Whether something waits: a frame is better made later, of newer figures."""
        return bool(self._unsent)

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            found = os.get_terminal_size(self.fd_out)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def write(self, data: bytes) -> None:
        """Now, or as soon as it is taken. Raises OSError when the terminal has gone."""
        if self._own < 0:
            self._write_all(data)
            return
        if self._unsent:
            self._unsent += data
            return
        self._unsent = data
        self._send()
        if self._unsent:
            asyncio.get_running_loop().add_writer(self._own, self._ready)

    def drain(self, wait_s: float = LAST_S) -> None:
        """Wait until all is taken; what is not by then is dropped."""
        if not self._unsent:
            return
        asyncio.get_running_loop().remove_writer(self._own)
        deadline = time.monotonic() + wait_s
        with suppress(OSError):
            while self._unsent and select.select([], [self._own], [], max(0.0, deadline - time.monotonic()))[1]:
                self._send()
        self._unsent = b""

    def _send(self) -> None:
        with suppress(BlockingIOError):
            self._unsent = self._unsent[os.write(self._own, self._unsent) :]

    def _ready(self) -> None:
        try:
            self._send()
        except OSError:
            self._unsent = b""  # It has gone: the next write says so.
        if not self._unsent:
            asyncio.get_running_loop().remove_writer(self._own)
            self.on_free()

    def _write_all(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self.fd_out, left) :]
            except BlockingIOError:
                # Whoever shares the terminal made its writes not wait.
                if not select.select([], [self.fd_out], [], WRITE_S)[1]:
                    raise


def own_terminal() -> Terminal:
    """The one that this program was started in."""
    encoding = sys.stdout.encoding or "utf-8"
    return Terminal(0, sys.stdout.fileno(), colour=not os.environ.get("NO_COLOR"), encoding=encoding)
