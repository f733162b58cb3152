"""What node and worker process say to each other: length-prefixed msgpack frames on one socket.

::

    node                                worker
      LOAD (limits, code)        ->
                                 <-     READY | LOAD_FAILED (error)
      RUN (one batch)            ->
                                 <-     DONE (a run of units), as often as it takes; the node counts
                                        the units to know the last
      (sets the shared byte)     ->
                                 <-     STOPPED: none of the other units of this run was started

There is no frame per unit. Which unit runs now is told through 16 shared bytes: its index and when it started. One more
is set by the node when no further unit is to be started: the worker looks at it between two units, where it reads no frame.
The worker is hostile in the eyes of the node: it may say anything at any time.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

LENGTH = struct.Struct("<I")
"""The prefix of a frame: the size of what follows, in bytes."""
PROGRESS = struct.Struct("<Qd")
"""The shared bytes: index of the running unit, and when it started (seconds, monotonic clock)."""
STOP_AT = PROGRESS.size
"""Where the shared byte is that tells the worker to stop behind the unit it is at."""
SHARED_BYTES = PROGRESS.size + 1
IDLE = (1 << 64) - 1
"""The index while no unit runs."""
FRAME_SLACK_BYTES = 1 << 20
"""How much a frame may be longer than the largest result it carries."""
FLUSH_BYTES = 256 << 10
FLUSH_S = 0.05
ERROR_CHARS_MAX = 4096
"""Longest traceback, and longest message, of an error that is passed on."""

OK, RAISED, TIMED_OUT, DIED, TOO_LARGE, UNENCODABLE = range(6)

MAP, REDUCE, FINISH, COMMAND = range(4)


class Cage(msgspec.Struct, array_like=True, frozen=True):
    """How a process confines itself: decided by the node, carried out by the process before any foreign code is there."""

    level: str = "bare"
    """``namespaces``, ``landlock`` (Landlock and seccomp without namespaces), or ``bare`` (limits only: the owner's own code)."""
    kind: str = "function"
    """``function`` (no child processes), ``command`` (fork and exec allowed), or ``engine`` (hosts or compiles WebAssembly)."""
    uid: int = 0
    """The user and group to become; 0: stay who it is. Only a node that runs as root can have it changed."""
    read: list[str] = []
    """Folders and files that may be read and executed besides the private folder."""
    folder_bytes_max: int = 0
    """What the private folder may hold; the node watches it."""
    processes_max: int = 64
    """Processes and threads that a command may have at one time; held by the kernel where it can count them, by the node everywhere."""


class Load(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The first frame: what the process may use, and the code it serves."""

    folder: str
    """Its private folder; holds ``scratch`` and ``outbox``."""
    file_bytes_max: int
    open_files_max: int
    memory_bytes: int
    nice: int
    runtime: str
    source: str
    file_name: str
    entry: str
    path: list[str] = []
    """The job's folders for ``sys.path``, right behind the standard library."""
    cage: Cage = Cage()
    """How the process confines itself before the code is there."""
    program: str = ""
    """``wasm`` and ``python``: the compiled module, a file in the private folder."""
    fresh: bool = False
    """``python``: every unit gets a guest of its own, so that its result and its fuel depend on nothing but the unit."""
    fuel_max: int = 0
    """Fuel that one unit may burn; 0: only the time-out ends it."""


class Run(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """A run of units of one batch."""

    sequence: int
    kind: int
    first: int
    result_bytes_max: int
    timeout_s: float
    """Wall seconds for each unit, 0 for none. Only the command runner ends units itself; else the node watches."""
    seed: bytes
    """Of the job: makes chance repeatable."""
    files: dict[bytes, str]
    """Where the files that inputs refer to lie."""
    inputs: msgspec.Raw
    """A msgpack array with one value for each unit."""


class Ready(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The code is loaded."""


class LoadFailed(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The code cannot be loaded. ``error`` is an encoded ``describe``."""

    error: msgspec.Raw


class Done(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """Results of consecutive units: one outcome byte and one payload for each."""

    sequence: int
    first: int
    outcomes: bytes
    payloads: list[msgspec.Raw]
    run_us: int
    files: list[tuple[int, bytes, int, str]] = []
    """(unit index, blob id, size in bytes, name in the outbox)."""
    fuel: bytes = b""
    """What each unit burnt: 8 bytes little-endian a unit; empty where the runtime does not count."""


class Stopped(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """The shared byte was seen: all units that have ended were reported, and no other was started."""

    sequence: int


DONE_TAG = 5
Reply = Ready | LoadFailed | Done | Stopped


def describe(kind: str, message: str, traceback: str = "") -> bytes:
    """The payload of a unit that has no result."""
    return msgspec.msgpack.encode({"type": kind, "message": shorten(message), "traceback": shorten(traceback)})


def shorten(text: str) -> str:
    """At most ERROR_CHARS_MAX characters: the head, and the end that matters more. Half characters are made visible."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= ERROR_CHARS_MAX:
        return text
    head = ERROR_CHARS_MAX // 4
    return f"{text[:head]}\n...\n{text[-(ERROR_CHARS_MAX - head - 5) :]}"


def array_header(count: int) -> bytes:
    """The msgpack bytes that open an array of ``count`` members."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def frame(message: Any) -> bytes:
    """The bytes of one message, its length in front."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body
