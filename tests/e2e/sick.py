"""The command line on a machine that is sick: ``python sick.py SICKNESS [VALUE] -- WORDS``. The sickness holds for all that it starts.

``clock MS``: the clock is that many milliseconds ahead. ``version N``: it speaks only that version of the protocol. ``cages``: the
kernel has no Landlock, so that no cage of native code holds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import time
from collections.abc import Callable

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LANDLOCK_CREATE_RULESET = 444
ALLOW, ERRNO, ENOSYS = 0x7FFF0000, 0x00050000, 38


def clock(ahead_ms: int) -> None:
    plain_ns, plain_s = time.time_ns, time.time
    time.time_ns = lambda: plain_ns() + ahead_ms * 1_000_000
    time.time = lambda: plain_s() + ahead_ms / 1000


def version(spoken: int) -> None:
    import msgspec

    from p2pgrid.node import Node

    plain = Node._hello
    setattr(Node, "_hello", lambda node: msgspec.structs.replace(plain(node), version_min=spoken, version_max=spoken))  # noqa: B010 - it is a patch


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def cages() -> None:
    """As on a kernel without Landlock: its call answers ENOSYS, here and in every child."""
    instructions = [
        (0x20, 0, 0, 0),  # the number of the call
        (0x15, 0, 1, LANDLOCK_CREATE_RULESET),
        (0x06, 0, 0, ERRNO | ENOSYS),
        (0x06, 0, 0, ALLOW),
    ]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    wanted = Program(len(instructions), ctypes.cast(packed, ctypes.c_void_p))
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or library.prctl(PR_SET_SECCOMP, FILTER, ctypes.byref(wanted), 0, 0):
        raise OSError(ctypes.get_errno(), f"no filter can be set on {platform.machine()}")


SICKNESSES: dict[str, Callable[..., None]] = {"clock": clock, "version": version, "cages": cages}


def main() -> None:
    at = sys.argv.index("--")
    sickness, *values = sys.argv[1:at]
    SICKNESSES[sickness](*map(int, values))
    from p2pgrid_cli.main import main as command

    sys.argv = [os.path.basename(sys.argv[0]), *sys.argv[at + 1 :]]
    command()


if __name__ == "__main__":
    main()
