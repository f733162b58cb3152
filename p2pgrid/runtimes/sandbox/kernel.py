"""Calls into the kernel that Python has no function for, by ctypes. Imported on Linux only, or where nothing of it is called."""

from __future__ import annotations

import ctypes
import os
from typing import Any

# The same number on x86-64 and aarch64 for all calls of this age.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
MOUNT_SETATTR = 442

_library: ctypes.CDLL | None = None


def libc() -> ctypes.CDLL:
    """The C library of this process."""
    global _library  # noqa: PLW0603 (opened once, on first use: other systems import this file too)
    if _library is None:
        _library = ctypes.CDLL(None, use_errno=True)
        _library.syscall.restype = ctypes.c_long
    return _library


def checked(result: int, what: str) -> int:
    """The result of a call. Raises OSError, with ``what`` in words, when it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: Any) -> int:
    """A raw system call; -1 when it failed. ints go as longs, the rest as ctypes takes it."""
    longs = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = libc().syscall(ctypes.c_long(number), *longs)
    return result


def prctl(option: int, value: int = 0, third: Any = 0, *, check: bool = True) -> int:
    """``prctl(2)``. Raises OSError unless ``check`` is off."""
    third = ctypes.c_ulong(third) if isinstance(third, int) else third
    result: int = libc().prctl(option, ctypes.c_ulong(value), third, ctypes.c_ulong(0), ctypes.c_ulong(0))
    return checked(result, f"prctl({option}) failed") if check else result
