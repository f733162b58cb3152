"""An exclusive lock on a file that the system drops when its holder dies, however it dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from p2pgrid.store.disk import Disk

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Windows locks are mandatory: the locked byte lies far behind the content, so that others can still read that.
_LOCK_OFFSET = 1 << 30


def try_lock(path: Path, disk: Disk) -> int | None:
    """Take the lock; returns the descriptor that holds it, or None while somebody else does. Raises OSError."""
    descriptor = disk.create(path)
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCK_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            # flock, not lockf: a lockf lock is lost when any descriptor of the file is closed in the process.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        disk.close(descriptor)
        return None
    except OSError:
        disk.close(descriptor)
        raise
    return descriptor


def is_locked(path: Path, disk: Disk) -> bool:
    """Whether somebody holds the lock now. A file that is not there is not locked. Raises OSError."""
    if not path.exists():
        return False
    descriptor = try_lock(path, disk)
    if descriptor is None:
        return True
    disk.close(descriptor)
    return False
