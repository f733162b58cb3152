"""What units print: the last part of it is kept, for people who look for a fault."""

from __future__ import annotations

import io
from typing import Any, cast

KEPT_BYTES = 16 << 10


class Output:
    """A text stream that forgets its beginning."""

    def __init__(self) -> None:
        self._raw = _Tail()
        self.stream = io.TextIOWrapper(cast("Any", self._raw), encoding="utf-8", errors="backslashreplace", write_through=True)

    def take(self) -> bytes:
        """What was printed since the last call."""
        kept = bytes(self._raw.kept)
        if kept:
            self._raw.kept.clear()
        return kept


class _Tail(io.BufferedIOBase):
    def __init__(self) -> None:
        super().__init__()
        self.kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        raw = bytes(data)
        self.kept += raw[-KEPT_BYTES:]
        del self.kept[:-KEPT_BYTES]
        return len(raw)

    def close(self) -> None:
        """The unit may try: the next one prints all the same."""
