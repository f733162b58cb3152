"""One heartbeat timer for all sessions of a node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from p2pgrid.model.limits import Limits
from p2pgrid.net.rpc import Session


class Heart:
    """Beats twice per heartbeat interval: sessions that are silent are pinged, those silent for too long are closed."""

    def __init__(self, limits: Limits, sessions: Callable[[], Iterable[Session]], on_beat: Callable[[float], None] | None = None) -> None:
        """``sessions``: who to look after, asked at each beat; ``on_beat``: called with the loop's time after each beat."""
        self._interval_s = limits.heartbeat_s / 2
        self._sessions = sessions
        self._on_beat = on_beat
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._beat)

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._beat)
        now_s = loop.time()
        for session in list(self._sessions()):
            session.beat(now_s)
        if self._on_beat is not None:
            self._on_beat(now_s)
