"""The only way in which a name from outside becomes a path, and a file from outside is opened.

Which names are accepted is decided in :mod:`p2pgrid.model.names`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from p2pgrid.errors import BadDataError
from p2pgrid.model.names import check_relative
from p2pgrid.model.reasons import Reason

__all__ = ["check_relative", "open_inside", "open_untrusted", "safe_join"]


def safe_join(folder: Path, relative: str) -> Path:
    """The path of ``relative`` inside ``folder``. Raises BadDataError for whatever could leave it.

    Pure: links that exist on the disk are not looked at. Use :func:`open_inside` to read what strangers wrote.
    """
    return folder.joinpath(*check_relative(relative))


def open_untrusted(path: Path, size_bytes_max: int) -> tuple[int, int]:
    """Open a file that strangers may have made; returns (descriptor, size in bytes).

    The last part of the path is not followed if it is a link, a pipe does not block, and only a regular file with
    one name and at most ``size_bytes_max`` is accepted. Raises BadDataError.
    """
    return _opened(str(path), None, size_bytes_max)


def open_inside(folder: Path, relative: str, size_bytes_max: int) -> tuple[int, int]:
    """As :func:`open_untrusted`, for a name below ``folder`` with no link followed in any part of it."""
    parts = check_relative(relative)
    if os.open not in os.supports_dir_fd:
        return _opened_by_path(folder, parts, size_bytes_max)
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        here = os.open(folder, flags)
    except OSError as error:
        raise BadDataError(f"'{folder}' cannot be opened: {error.strerror}") from error
    try:
        for part in parts[:-1]:
            deeper = os.open(part, flags | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = deeper
        return _opened(parts[-1], here, size_bytes_max)
    except OSError as error:
        raise BadDataError(f"'{relative}' cannot be opened: {error.strerror}", reason=Reason.BAD_NAME) from error
    finally:
        os.close(here)


def _opened_by_path(folder: Path, parts: tuple[str, ...], size_bytes_max: int) -> tuple[int, int]:
    """Systems without openat: every folder on the way is looked at first. The caller has stopped the writer by then."""
    here = folder
    for part in parts[:-1]:
        here = here / part
        if here.is_symlink() or not here.is_dir():
            raise BadDataError(f"'{'/'.join(parts)}' passes through a link", reason=Reason.BAD_NAME)
    return _opened(str(here / parts[-1]), None, size_bytes_max)


def _opened(name: str, folder: int | None, size_bytes_max: int) -> tuple[int, int]:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(name, flags, dir_fd=folder) if folder is not None else os.open(name, flags)
    except (OSError, ValueError) as error:
        raise BadDataError(f"'{name}' cannot be opened: {error}", reason=Reason.BAD_NAME) from error
    status = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file"
    elif status.st_nlink != 1:
        problem = "has more than one name"
    elif status.st_size > size_bytes_max:
        problem = f"is larger than {size_bytes_max} bytes"
    if problem:
        os.close(descriptor)
        reason = Reason.TOO_LARGE if "larger" in problem else Reason.BAD_NAME
        raise BadDataError(f"'{name}' {problem}", reason=reason)
    return descriptor, status.st_size
