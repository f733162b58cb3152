"""``p2pgrid`` with a profiler that a signal switches on and off: for the bench only, the product knows nothing of it."""

from __future__ import annotations

import cProfile
import os
import signal
from pathlib import Path

from bench.grid import PROFILE_VARIABLE
from p2pgrid_cli.main import main


class Toggle:
    """SIGUSR2 starts the profile; the next one writes it down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._profile = cProfile.Profile()
        self._on = False

    def __call__(self, number: int, frame: object) -> None:
        self._on = not self._on
        if self._on:
            self._profile.enable()
            return
        self._profile.disable()
        temporary = self._path.with_suffix(".part")
        self._profile.dump_stats(temporary)
        temporary.replace(self._path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, Toggle(Path(os.environ[PROFILE_VARIABLE])))
    main()
