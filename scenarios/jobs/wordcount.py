# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.p2pgrid]
# ///
"""Count the words of many files, spread over the grid.

    p2pgrid run scenarios/jobs/wordcount.py              # the standard library of this Python
    p2pgrid run scenarios/jobs/wordcount.py notes/ a.txt # any folders and files
    python scenarios/jobs/wordcount.py --plain [PATH...] # the same in one process, without p2pgrid

Prints a line of totals and the twenty most frequent words, the more frequent first, equals by alphabet:

    734 files, 1334419 words, 38220 distinct
    54964 self
    34856 x
    33275 the
    ...

A word is a run of ASCII letters and underscores, in lower case.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypedDict

UNITS_MAX = 64
SHOWN = 20
NOT_LIBRARY = {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
WORD = re.compile(rb"[a-z_]+")


class Tally(TypedDict):
    """What one unit, or a part of the reduce tree, has counted."""

    files: int
    counts: dict[str, int]


def standard_library() -> list[Path]:
    """The Python files of the running interpreter's own library, its tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if not NOT_LIBRARY.intersection(path.relative_to(root).parts[:-1]))


def files_of(paths: Iterable[str]) -> list[Path]:
    """The files named, and all files below the folders named. Hidden ones below a folder are left out."""
    found: dict[Path, None] = {}
    for name in paths:
        path = Path(name)
        if path.is_file():
            found[path] = None
        elif path.is_dir():
            below = (item for item in sorted(path.rglob("*")) if not any(part.startswith(".") for part in item.relative_to(path).parts))
            found.update((item, None) for item in below if item.is_file())
        else:
            raise FileNotFoundError(f"no such file or folder: {name}")
    return list(found)


def inputs(*paths: str) -> Iterator[list[Path]]:
    """Groups of files, so that there are a few dozen units however many files there are."""
    files = files_of(paths) if paths else standard_library()
    if not files:
        raise FileNotFoundError(f"no files in: {' '.join(paths) or sysconfig.get_path('stdlib')}")
    units = min(UNITS_MAX, len(files))
    for start in range(units):
        yield files[start::units]


def work(files: list[Path]) -> Tally:
    """Count one group of files."""
    counts: Counter[bytes] = Counter()
    for path in files:
        counts.update(WORD.findall(path.read_bytes().lower()))
    return {"files": len(files), "counts": {word.decode(): count for word, count in counts.items()}}


def reduce(a: Tally, b: Tally) -> Tally:
    """Merge two tallies; the first one is changed and returned."""
    counts = a["counts"]
    for word, count in b["counts"].items():
        counts[word] = counts.get(word, 0) + count
    a["files"] += b["files"]
    return a


def finish(total: Tally) -> str:
    """The text that is printed."""
    counts = total["counts"]
    lines = [f"{total['files']} files, {sum(counts.values())} words, {len(counts)} distinct"]
    ranking = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    lines += [f"{count} {word}" for word, count in ranking[:SHOWN]]
    return "\n".join(lines) + "\n"


def plain(*paths: str) -> str:
    """The reference: one pass in this process, without units and without merging."""
    return finish(work([path for group in inputs(*paths) for path in group]))


if __name__ == "__main__":
    if sys.argv[1:2] != ["--plain"]:
        sys.exit("usage: p2pgrid run wordcount.py [PATH...]   or: python wordcount.py --plain [PATH...]")
    try:
        sys.stdout.write(plain(*sys.argv[2:]))
    except OSError as error:
        print(f"wordcount: {error}", file=sys.stderr)
        sys.exit(65)
