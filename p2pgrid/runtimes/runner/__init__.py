"""The Python runner: one WebAssembly component with CPython and its library inside, in which the units of strangers run.

It has no imports: there is no file, clock, socket or random function that it could call. It is built once, when the package is built
(``building``), and is the same file wherever that package is installed. Grids name it by its blob id, because two builds of one source
differ in the order of their sets.
"""

from __future__ import annotations

from pathlib import Path

FILE_NAME = "runner.wasm"


def path() -> Path | None:
    """The built component, if this installation has one. Where the build tool does not exist, packages are built without."""
    file = Path(__file__).with_name(FILE_NAME)
    return file if file.is_file() else None


def build(folder: Path | None = None) -> Path:
    """Build the component into ``folder`` (here, if none is given) and return its path. Takes about 20 s.

    Raises ``building.NoToolError`` where componentize-py is not installed, ``building.BuildError`` when it fails.
    """
    from p2pgrid.runtimes.runner import building

    return building.build(folder or Path(__file__).parent)
