"""Run by path: enters the cage that stdin orders, looks whether ordinary work goes on in it, and prints ``held``.

``probe.py PARENT``, with a JSON array on stdin: level, kind, user, what may be read, the private folder.
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

_PRIVATE = "_p2pgrid_probe"
_MEMORY_BYTES = 512 << 20
_FILE_BYTES = 1 << 20


def main() -> None:
    """Never returns normally when the cage does not hold."""
    module = ModuleType(_PRIVATE)
    module.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[_PRIVATE] = module
    cage = __import__(f"{_PRIVATE}.cage", fromlist=["cage"])
    level, kind, user, read, folder = json.load(sys.stdin)
    cage.confine(cage.Plan(level, kind, user, read, folder, _FILE_BYTES, 64, _MEMORY_BYTES), int(sys.argv[1]))
    # The interpreter must still find its library, and the process its folder.
    import colorsys  # noqa: F401

    with open(os.path.join(folder, "scratch", "file"), "w", encoding="ascii") as file:
        file.write("written")
    os.rename(os.path.join(folder, "scratch", "file"), os.path.join(folder, "outbox", "file"))
    os.write(1, b"held")


if __name__ == "__main__":
    main()
