"""Keys as they are pressed: raw bytes of a terminal to names, and the terminal's mode while that lasts.

The terminal is opened a second time for reading. What the event loop does to a descriptor, as not to block, would otherwise
hold for everybody who shares it, the shell included.
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

ESCAPE_S = 0.05
"""An escape that nothing follows for so long is the key itself."""
READ_BYTES = 1024
SEQUENCE_BYTES_MAX = 16
NAMED = {
    "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace", "\x03": "ctrl-c", "\x0c": "ctrl-l",
}  # fmt: skip
SEQUENCES = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end", "Z": "backtab",
    "1~": "home", "4~": "end", "5~": "pageup", "6~": "pagedown", "7~": "home", "8~": "end",
}  # fmt: skip


class Keys:
    """Turns bytes into names of keys, however they are cut into pieces."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._sequence = ""
        """What has come of an escape sequence."""

    @property
    def pending(self) -> bool:
        """Whether an escape waits for what follows."""
        return bool(self._sequence)

    def feed(self, data: bytes) -> list[str]:
        """The keys that are complete now."""
        found = []
        for char in self._decoder.decode(data):
            key = self._char(char)
            if key:
                found.append(key)
        return found

    def flush(self) -> list[str]:
        """Nothing follows: an escape was the key itself."""
        alone, self._sequence = self._sequence == "\x1b", ""
        return ["esc"] if alone else []

    def _char(self, char: str) -> str:
        if not self._sequence:
            if char == "\x1b":
                self._sequence = char
                return ""
            return NAMED.get(char, char if char.isprintable() else "")
        if self._sequence == "\x1b":
            # Two escapes are two keys; a letter after one is that letter with Alt, of which nothing is made.
            self._sequence = self._sequence + char if char in "[O" else char if char == "\x1b" else ""
            return "esc" if char == "\x1b" else ""
        self._sequence += char
        if char.isalpha() or char == "~" or len(self._sequence) > SEQUENCE_BYTES_MAX:
            body, self._sequence = self._sequence[2:], ""
            return SEQUENCES.get(body, SEQUENCES.get(body[-1:], "") if body[:-1].startswith("1;") else "")
        return ""


class Keyboard:
    """The keys of a terminal, told one by one. Use as a context manager within the event loop."""

    def __init__(self, fd: int, on_key: Callable[[str], None]) -> None:
        self._fd = fd
        self._on_key = on_key
        self._keys = Keys()
        self._reader = -1
        self._saved: list[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def works(self) -> bool:
        """Whether keys are read."""
        return self._reader >= 0

    def __enter__(self) -> Keyboard:
        if self._raw():
            self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reader >= 0:
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
            self._reader = -1
        self.restore()

    def _raw(self) -> bool:
        """Every key at once and unseen; Ctrl-C and Ctrl-Z stay signals, Ctrl-S stops nothing. False where there is no such thing."""
        try:
            import termios
        except ImportError:
            return False
        try:
            self._saved = termios.tcgetattr(self._fd)
            self._set_raw()
        except termios.error:
            self._saved = None
        return self._saved is not None

    def _set_raw(self) -> None:
        import termios

        mode = termios.tcgetattr(self._fd)
        mode[0] &= ~termios.IXON
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)

    def restore(self) -> None:
        """The terminal's mode as it was; what was typed and not read goes, it was meant for the picture."""
        if self._saved is not None:
            import termios

            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._saved)

    def again(self) -> None:
        """After :meth:`restore`: the mode of the picture, once more."""
        if self._saved is not None:
            import termios

            with suppress(termios.error):
                self._set_raw()

    def _listen(self) -> None:
        with suppress(OSError):
            self._reader = os.open(os.ttyname(self._fd), os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
            asyncio.get_running_loop().add_reader(self._reader, self._ready)

    def _ready(self) -> None:
        try:
            data = os.read(self._reader, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The terminal has gone; its signal ends us.
            asyncio.get_running_loop().remove_reader(self._reader)
            return
        self._tell(self._keys.feed(data))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._keys.pending:
            self._timer = asyncio.get_running_loop().call_later(ESCAPE_S, lambda: self._tell(self._keys.flush()))

    def _tell(self, keys: list[str]) -> None:
        for key in keys:
            self._on_key(key)
