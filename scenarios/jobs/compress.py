# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.p2pgrid]
# ///
"""Compress files on the grid: a file goes in, a file comes out.

    p2pgrid run scenarios/jobs/compress.py report.txt photos/*.tiff
    python scenarios/jobs/compress.py --plain FILE...    # here, into the current folder

Each unit turns one file into NAME.xz. The results are files: fetch them with `p2pgrid results JOB -o FOLDER`.
Run plainly it prints a line for each file:

    report.txt.xz 48211 -> 9204 bytes
"""

from __future__ import annotations

import lzma
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

PRESET = 6


def inputs(*paths: str) -> Iterator[Path]:
    """One unit for each file."""
    if not paths:
        raise ValueError("name at least one file to compress")
    names: dict[str, str] = {}
    for text in paths:
        path = Path(text)
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {text}")
        if path.name in names:
            raise ValueError(f"{names[path.name]} and {text} would both become {path.name}.xz")
        names[path.name] = text
        yield path


def work(source: Path) -> Path:
    """Compress one file into the unit's own folder."""
    target = Path(source.name + ".xz")
    with source.open("rb") as plain_bytes, lzma.open(target, "wb", preset=PRESET) as compressed:
        shutil.copyfileobj(plain_bytes, compressed, 1 << 20)
    return target


def main(paths: list[str]) -> None:
    """The reference: one file after the other."""
    for source in list(inputs(*paths)):
        target = work(source)
        print(f"{target} {source.stat().st_size} -> {target.stat().st_size} bytes")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--plain"]:
        sys.exit("usage: p2pgrid run compress.py FILE...   or: python compress.py --plain FILE...")
    try:
        main(sys.argv[2:])
    except (OSError, ValueError) as error:
        print(f"compress: {error}", file=sys.stderr)
        sys.exit(65)
