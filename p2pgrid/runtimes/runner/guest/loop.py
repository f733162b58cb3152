"""An event loop for units: there is nothing outside to wait for, so waiting only moves the clock."""

from __future__ import annotations

import asyncio
from asyncio import base_events, unix_events
from typing import Any

from .world import clock


class _Selector:
    """Stands where a loop asks the system for events."""

    def select(self, timeout: float | None = None) -> list[Any]:
        """Let the time pass. Raises RuntimeError where an unguarded wait would never end."""
        if timeout is None:
            raise RuntimeError("every task waits for another, and nothing can come from outside of the unit")
        clock.sleep(max(0.0, timeout))
        return []

    def close(self) -> None:
        """As selectors have it."""


class UnitLoop(base_events.BaseEventLoop):
    """What ``asyncio.run`` gets."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Selector()

    def _process_events(self, events: list[Any]) -> None:
        """There never are any."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake."""


def install() -> None:
    """Have asyncio make loops of this kind."""
    unix_events._UnixDefaultEventLoopPolicy._loop_factory = UnitLoop  # type: ignore[attr-defined]
    asyncio.SelectorEventLoop = UnitLoop  # type: ignore[assignment]
