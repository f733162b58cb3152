"""Who a process is: becoming a user without any right, and giving up every capability for ever."""

from __future__ import annotations

import ctypes
import os
import struct

from . import kernel

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_CAP_AMBIENT = 23, 24, 28, 47
_AMBIENT_CLEAR_ALL = 4
_SECUREBITS = 0b11100011
"""No capabilities by being root, none kept over a change of the user, none ambient; each locked. What a change of the user clears,
it clears: that switch stays as it is."""
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63


def drop_bounding_set() -> None:
    """Make it impossible to regain a capability by executing anything. Raises OSError where it is refused; needs CAP_SETPCAP."""
    for capability in range(_LAST_CAPABILITY + 1):
        if kernel.prctl(_PR_CAPBSET_READ, capability, check=False) == 1:
            kernel.prctl(_PR_CAPBSET_DROP, capability)
    kernel.prctl(_PR_SET_SECUREBITS, _SECUREBITS)


def become(user: int) -> None:
    """Take a user and group id, real, effective and saved, and no other group. Raises OSError."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def drop_capabilities() -> None:
    """Give up all that are left: permitted, effective, inheritable, ambient. Raises OSError."""
    kernel.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, check=False)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    kernel.checked(kernel.libc().capset(header, ctypes.create_string_buffer(24)), "the capabilities cannot be given up")


def capabilities() -> int:
    """The capabilities this process has or could take up. Raises OSError."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(24)
    kernel.checked(kernel.libc().capget(header, data), "the capabilities cannot be read")
    words = struct.unpack("=6I", data.raw[:24])
    return int(words[0] | words[1] | words[2] | (words[3] | words[4] | words[5]) << 32)
