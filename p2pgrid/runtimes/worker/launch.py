"""The first lines a worker process runs: ``launch.py CHANNEL PROGRESS PARENT [FOLDER ...]``.

Ties the process to its parent, hides the protocol from the code to come, and hands over to ``serve``. The arguments are the
numbers of the two inherited files, the parent's process id, and the folders that hold msgspec and blake3.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType

PRIVATE = "_p2pgrid"
_FIRST_PRIVATE_FILE = 64


def main() -> None:
    """Never returns."""
    channel, progress, parent_id = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _name_packages(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    library = len(sys.path)
    sys.path.extend(sys.argv[4:])
    sys.argv[:] = ["job"]
    _import_msgspec()
    channel, progress = _hide(channel), _hide(progress)
    serve = __import__(f"{PRIVATE}.runtimes.worker.serve", fromlist=["serve"])
    serve.serve(channel, progress, parent_id, library)


def _name_packages(folder: str) -> None:
    """Packages with a private name and no code of their own, so that no ``__init__`` of the real ones runs here."""
    for suffix in ("", ".model", ".runtimes", ".runtimes.worker", ".runtimes.sandbox"):
        module = ModuleType(PRIVATE + suffix)
        module.__path__ = [folder + suffix.replace(".", os.sep)]
        sys.modules[PRIVATE + suffix] = module


def _import_msgspec() -> None:
    """Import msgspec without typing_extensions, which it can use but does not need: a quarter of the start-up time."""
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    try:
        __import__("msgspec")
    finally:
        del sys.modules["typing_extensions"]


def _hide(number: int) -> int:
    """Move a file out of the low numbers, where careless code closes and prints; not inherited by children."""
    import fcntl

    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _FIRST_PRIVATE_FILE)
    os.close(number)
    return moved


if __name__ == "__main__":
    main()
