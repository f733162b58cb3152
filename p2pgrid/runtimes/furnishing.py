"""The private folder of a process: made, handed over, and filled with what its units may read.

::

    <folder>/            read-only for the process
        scratch/         where units run
        outbox/          what they return, until the node takes it
        inputs/          links to input files under the names their owner knows
        given/           placed by the node, read-only: input files, and the compiled program

Files are hard links where the file system and their modes allow it, else copies: the bytes of an input are on this disk once.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from p2pgrid.model.ids import BlobId

OWN_PARTS = ("scratch", "outbox", "inputs")
"""What the process may write."""
GIVEN = "given"
_READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


def make_folder(folder: Path) -> None:
    """Make the private folder, for this user alone. Raises OSError."""
    for part in (folder, *(folder / name for name in OWN_PARTS), folder / GIVEN):
        part.mkdir(mode=0o700)


def hand_over(folder: Path, user: int) -> None:
    """Give its parts to a user. Raises OSError.

    The folder itself and what is placed there stay ours: nobody can exchange a part of it, or let others in.
    """
    (folder / GIVEN).chmod(0o755)
    os.chown(folder, -1, user, follow_symlinks=False)
    folder.chmod(0o750)
    for name in OWN_PARTS:
        os.chown(folder / name, user, user, follow_symlinks=False)


def place_file(source: Path, target: Path, *, for_others: bool) -> None:
    """Make a file readable at ``target``; ``for_others``: by a user who is not us. Raises OSError."""
    try:
        if not for_others or stat.S_IMODE(source.stat().st_mode) & stat.S_IROTH:
            os.link(source.resolve(), target)
            return
    except FileExistsError:
        raise
    except OSError:
        # Another file system, or a file of somebody else that must not get another name.
        pass
    shutil.copyfile(source, target)
    target.chmod(_READABLE)


class Given:
    """The input files that lie in one private folder now."""

    def __init__(self, folder: Path, *, for_others: bool) -> None:
        self._folder = folder / GIVEN
        self._for_others = for_others
        self._placed: set[bytes] = set()

    def replace(self, files: Mapping[BlobId, Path]) -> dict[bytes, str]:
        """Have exactly these lie there; gives where each of them does. Blocks. Raises OSError."""
        for blob in sorted(self._placed - files.keys()):
            self._folder.joinpath(blob.hex()).unlink(missing_ok=True)
            self._placed.discard(blob)
        places: dict[bytes, str] = {}
        for blob, source in files.items():
            target = self._folder / blob.hex()
            if blob not in self._placed:
                place_file(source, target, for_others=self._for_others)
                self._placed.add(blob)
            places[blob] = str(target)
        return places

    @property
    def empty(self) -> bool:
        """Whether nothing lies there."""
        return not self._placed

    def program(self, source: Path, name: str) -> str:
        """Place a program, once; gives where it lies. Blocks. Raises OSError."""
        target = self._folder / name
        place_file(source, target, for_others=self._for_others)
        return str(target)
