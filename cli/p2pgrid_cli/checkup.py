"""What a node stands on besides its cages: the disk, the clock, the loopback network, and what the kernel can do for a cage."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from p2pgrid_cli.common import size_text

if TYPE_CHECKING:
    from p2pgrid.runtimes.tasks import PoolPolicy

FREE_BYTES_MIN = 1 << 30
_FSYNC_S_MAX = 1.0
_EARLIEST_S, _LATEST_S = 1_735_689_600, 4_102_444_800
"""From 2025 to 2100: a clock outside of that was never set."""
_CONNECT_S = 2.0


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def check_all(policy: PoolPolicy, home: Path, now_s: float) -> list[Check]:
    """All checks. ``home``: where the node keeps its things, or would; ``now_s``: Unix seconds. Blocks for a second or so."""
    return [check_disk(home), check_clock(now_s), check_loopback(), *check_kernel(policy)]


def check_disk(home: Path) -> Check:
    """Room for results, and whether what was written stays written."""
    folder = next((place for place in (home, *home.parents) if place.is_dir()), Path("/"))
    try:
        free_bytes = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            return Check("disk", False, f"{folder} cannot be written")
        started = time.monotonic()
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".p2pgrid-doctor-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        took_s = time.monotonic() - started
    except OSError as error:
        return Check("disk", False, f"{folder}: {error.strerror or error}")
    detail = f"{size_text(free_bytes)} free, a safe write takes {took_s * 1000:.0f} ms"
    return Check("disk", free_bytes >= FREE_BYTES_MIN and took_s < _FSYNC_S_MAX, detail)


def check_clock(now_s: float) -> Check:
    """Whether it was ever set. Whether it is right, other nodes say."""
    text = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(0.0, now_s)))
    return Check("clock", _EARLIEST_S <= now_s < _LATEST_S, text)


def check_loopback() -> Check:
    """A connection of this machine to itself: nodes and commands talk that way."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname(), _CONNECT_S) as ours:
            listener.settimeout(_CONNECT_S)
            theirs, _ = listener.accept()
            with theirs:
                ours.sendall(b"?")
                theirs.settimeout(_CONNECT_S)
                ok = theirs.recv(1) == b"?"
    except OSError as error:
        return Check("loopback", False, str(error.strerror or error))
    return Check("loopback", ok, "a connection works" if ok else "a connection carries nothing")


def check_kernel(policy: PoolPolicy) -> list[Check]:
    """What a cage of native code can be made of. None of it is needed for WebAssembly."""
    if sys.platform != "linux":
        return [Check("cage", False, "there is no cage for native code on this system")]
    from p2pgrid.runtimes.sandbox import landlock, seccomp

    abi = landlock.abi()
    filtering = seccomp.available()
    return [
        Check("landlock", abi > 0, f"version {abi}" if abi else "the kernel has none, or it is switched off"),
        Check("seccomp", not filtering, filtering or "calls can be filtered"),
        _check_level(policy, "namespaces"),
    ]


def _check_level(policy: PoolPolicy, level: str) -> Check:
    import msgspec

    from p2pgrid.errors import P2PGridError
    from p2pgrid.runtimes.cages import Cages
    from p2pgrid.runtimes.process import library_folders

    try:
        with tempfile.TemporaryDirectory(prefix="p2pgrid-doctor-") as name:
            cages = Cages(msgspec.structs.replace(policy, cage=level), Path(name), library_folders())
            found, reason = cages.choose("function")
    except P2PGridError as error:
        return Check(level, False, error.message)
    except OSError as error:
        return Check(level, False, str(error.strerror or error))
    return Check(level, found == level, "can be made" if found == level else reason)
