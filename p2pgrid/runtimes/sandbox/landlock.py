"""The first wall: which files a process may touch, by Landlock; and where the kernel knows how, no TCP, no signals and no abstract
sockets to anybody outside.

Every right of the ABI found is handled, so that what no rule grants is forbidden. Landlock does not speak of ``stat``, of changing modes
and times, nor (before ABI 3) of cutting files short: the filter of system calls and the namespaces do.
"""

from __future__ import annotations

import ctypes
import os
import stat

from . import kernel

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in range(6, 16))

LEAST_ABI = 2
"""Before it no file could be moved between two folders, and results are."""
SIGNAL_SCOPE_ABI = 6
"""From it on a process cannot signal one outside of its cage."""
TRUNCATE_ABI = 3

_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_NET_BITS = 0b11
_SCOPES = 0b11
_NET_ABI = 4
_VERSION_FLAG = 1
_PATH_BENEATH = 1

READ = READ_FILE | READ_DIR | EXECUTE
WRITE = (
    READ_FILE | READ_DIR | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER | TRUNCATE
)
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


class _Attributes(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The version of Landlock in this kernel; 0 when there is none or it is off."""
    return max(0, kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, None, 0, _VERSION_FLAG))


def handled_rights(version: int) -> int:
    """All file rights of an ABI."""
    return int((1 << _FS_BITS.get(version, 16)) - 1)


class Ruleset:
    """Rules for the calling process: ``allow`` what it may, then ``restrict``."""

    def __init__(self) -> None:
        """Raises OSError when there is no Landlock, or one too old."""
        self.abi = abi()
        if self.abi < LEAST_ABI:
            raise OSError(38, "the kernel has no Landlock, or one that is too old")
        self._handled = handled_rights(self.abi)
        wanted = _Attributes(self._handled, _NET_BITS if self.abi >= _NET_ABI else 0, _SCOPES if self.abi >= SIGNAL_SCOPE_ABI else 0)
        # Older kernels know a shorter structure.
        size = 8 if self.abi < _NET_ABI else 16 if self.abi < SIGNAL_SCOPE_ABI else 24
        self._number = kernel.checked(
            kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, ctypes.byref(wanted), size, 0), "no Landlock rules can be made"
        )

    def allow(self, path: str, rights: int) -> None:
        """Grant rights on a file, or on a folder and all beneath. What does not exist needs no right. Raises OSError."""
        try:
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            rights &= self._handled
            if not stat.S_ISDIR(os.fstat(parent).st_mode):
                rights &= _OF_FILES
            rule = _PathBeneath(rights, parent)
            result = kernel.syscall(kernel.LANDLOCK_ADD_RULE, self._number, _PATH_BENEATH, ctypes.byref(rule), 0)
            kernel.checked(result, f"Landlock does not take {path}")
        finally:
            os.close(parent)

    def restrict(self) -> None:
        """Hold this process to the rules, for ever. Needs no_new_privs. Raises OSError."""
        kernel.checked(kernel.syscall(kernel.LANDLOCK_RESTRICT_SELF, self._number, 0), "Landlock does not hold this process")
        os.close(self._number)
