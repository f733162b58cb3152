"""Attacks that use up the machine: memory, threads, the disk, processes. Each is bounded a little above what the cage allows."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import stat
import threading
from pathlib import Path

from p2pgrid.runtimes.selftest.attacks.base import USUAL, Absent, Canary, Refused, attack, pause

_PIECE_BYTES = 8 << 20
_MAP_GROWSDOWN = 0x100
_NO_MEMORY = (*USUAL, errno.ENOMEM, errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EMFILE)


def _pieces(canary: Canary) -> int:
    return int(canary["memory_bytes"]) * 2 // _PIECE_BYTES


@attack(*_NO_MEMORY, errors=(MemoryError,), ends=True)
def take_memory(canary: Canary) -> str:
    kept = [bytes([1]) * _PIECE_BYTES for _ in range(_pieces(canary))]
    pause(canary["watched_s"])
    return f"{len(kept) * _PIECE_BYTES} bytes were taken"


@attack(*_NO_MEMORY, errors=(MemoryError,), ends=True)
def take_shared_memory(canary: Canary) -> str:
    kept = []
    for _ in range(_pieces(canary)):
        piece = mmap.mmap(-1, _PIECE_BYTES)
        piece.write(bytes([1]) * _PIECE_BYTES)
        kept.append(piece)
    pause(canary["watched_s"])
    return f"{len(kept) * _PIECE_BYTES} bytes were taken"


@attack(*_NO_MEMORY, errors=(MemoryError,), ends=True)
def take_stack_memory(canary: Canary) -> str:
    """Memory that grows downwards is no data in the eyes of the kernel, and no limit of data counts it."""
    kept = []
    for _ in range(_pieces(canary)):
        kept.append(mmap.mmap(-1, _PIECE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_GROWSDOWN))
        kept[-1].write(bytes([1]) * _PIECE_BYTES)
    pause(canary["watched_s"])
    return f"{len(kept) * _PIECE_BYTES} bytes were taken"


@attack(*_NO_MEMORY, errno.ENODEV, errors=(MemoryError,), ends=True)
def take_shared_zeroes(canary: Canary) -> str:
    """A shared view of /dev/zero gets memory of its own for every page that is only looked at."""
    kept = []
    number = os.open("/dev/zero", os.O_RDONLY)
    try:
        for _ in range(_pieces(canary)):
            kept.append(mmap.mmap(number, _PIECE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ))
            kept[-1].find(b"x")
    finally:
        os.close(number)
    pause(canary["watched_s"])
    return f"{len(kept) * _PIECE_BYTES} bytes were taken"


@attack(*_NO_MEMORY, errors=(MemoryError,), ends=True)
def take_nameless_files(canary: Canary) -> str:
    kept: list[int] = []
    try:
        for _ in range(_pieces(canary)):
            kept.append(os.memfd_create("bomb"))
            os.write(kept[-1], bytes([1]) * _PIECE_BYTES)
        pause(canary["watched_s"])
    finally:
        for number in kept:
            os.close(number)
    return f"{len(kept) * _PIECE_BYTES} bytes were taken"


@attack(*_NO_MEMORY, ends=True, spoils=True)
def fill_disk(canary: Canary) -> str:
    for number in range(int(canary["folder_bytes"]) * 3 // _PIECE_BYTES + 1):
        with open(f"filler-{number}", "wb") as file:
            file.write(bytes([1]) * _PIECE_BYTES)
    pause(canary["watched_s"])
    return "more was written than the folder may hold"


@attack(*_NO_MEMORY, ends=True, spoils=True)
def fill_disk_unseen(canary: Canary) -> str:
    """Files that have no name any more, but are open: no walk through the folder finds them."""
    kept: list[int] = []
    for number in range(int(canary["folder_bytes"]) * 3 // _PIECE_BYTES + 1):
        kept.append(os.open(f"unseen-{number}", os.O_WRONLY | os.O_CREAT, 0o600))
        os.unlink(f"unseen-{number}")
        os.write(kept[-1], bytes([1]) * _PIECE_BYTES)
    pause(canary["watched_s"])
    return f"{len(kept)} nameless files hold more than the folder may"


def _nameless(name: str) -> int:
    """An open file of some MiB that no folder lists."""
    number = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    os.unlink(name)
    os.write(number, bytes([1]) * _PIECE_BYTES)
    return number


@attack(*_NO_MEMORY, ends=True, spoils=True)
def fill_disk_mapped(canary: Canary) -> str:
    """Files without a name and not even open: one page of each is mapped, which keeps it all."""
    kept = []
    for place in range(int(canary["folder_bytes"]) * 3 // _PIECE_BYTES + 1):
        number = _nameless(f"mapped-{place}")
        kept.append(_map_page(number))
        os.close(number)
    pause(canary["watched_s"])
    return f"{len(kept)} mapped files hold more than the folder may"


def _map_page(number: int) -> int:
    """Map a page of a file. Not by the mmap module: that keeps the file open."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    address = library.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ, mmap.MAP_SHARED, number, ctypes.c_long(0))
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


@attack(*_NO_MEMORY, errno.EOPNOTSUPP, ends=True, spoils=True)
def reserve_disk(canary: Canary) -> str:
    """Space behind the end of a file: one call takes any amount of it, and a limit of the length does not speak of it."""
    number = os.open("reserved", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.fallocate(number, 1, ctypes.c_long(0), ctypes.c_long(int(canary["folder_bytes"]) * 2)) < 0:
            raise OSError(ctypes.get_errno(), "fallocate")
        return f"{os.fstat(number).st_blocks * 512} bytes were taken at once"
    finally:
        os.close(number)
        os.unlink("reserved")


@attack(*_NO_MEMORY, ends=True, spoils=True)
def fill_disk_in_flight(canary: Canary) -> str:
    """Files without a name that are on their way through a socket, and nowhere else."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for place in range(int(canary["folder_bytes"]) * 3 // _PIECE_BYTES + 1):
            number = _nameless(f"sent-{place}")
            try:
                socket.send_fds(ours, [b"x"], [number])
            finally:
                os.close(number)
        pause(canary["watched_s"])
    return "files in flight hold more than the folder may"


@attack(*_NO_MEMORY, ends=True, spoils=True)
def flood_folder(canary: Canary) -> str:
    for number in range(int(canary["folder_entries"]) * 3):
        os.close(os.open(f"entry-{number}", os.O_WRONLY | os.O_CREAT, 0o600))
    pause(canary["watched_s"])
    return "more files were made than the folder may hold"


@attack(*_NO_MEMORY, errno.EAGAIN, errors=(RuntimeError, MemoryError), ends=True, spoils=True)
def start_threads(canary: Canary) -> str:
    go_on = threading.Event()
    threads = []
    try:
        for _ in range(int(canary["threads"])):
            threads.append(threading.Thread(target=go_on.wait, args=(10,), daemon=True))
            threads[-1].start()
    finally:
        go_on.set()
    return f"{len(threads)} threads ran"


@attack(*USUAL, ends=True, spoils=True, commands=False, control="nowhere")
def break_protocol(canary: Canary) -> str:
    """A frame of 4 GiB on every socket that is open: the conversation with the node must end over it."""
    for number in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, b"\xff" * 64)
        except OSError:
            continue
    pause(canary["watched_s"] * 2)
    return "the node went on with it"


@attack(*USUAL, ends=True, commands=False, control="nowhere")
def return_link(canary: Canary) -> Path:
    """A link in place of a file: taken, it would carry the owner's file away."""
    Path("result").symlink_to(canary["open_file"])
    return Path("result")


@attack(*USUAL, ends=True, spoils=True)
def outlive_unit(canary: Canary) -> str:
    """A child in a session of its own that goes on; the host looks for it when all is over."""
    library = ctypes.CDLL(None, use_errno=True)
    child = int(library.fork())
    if child < 0:
        raise OSError(ctypes.get_errno(), "fork")
    if child == 0:
        os.setsid()
        if int(library.fork()) == 0:
            pause(canary["outlives_s"])
        os._exit(0)
    os.waitpid(child, 0)
    if canary["may_fork"]:
        raise Refused("it was made; whether it is gone shows later")
    return "a process of its own goes on"


@attack(*USUAL, errno.EAGAIN, errno.ENOMEM, ends=True, spoils=True)
def start_many_processes(canary: Canary) -> str:
    library = ctypes.CDLL(None, use_errno=True)
    for number in range(int(canary["processes"]) * 2):
        child = int(library.fork())
        if child == 0:
            pause(canary["watched_s"] * 2)
            os._exit(0)
        if child < 0:
            raise OSError(ctypes.get_errno(), f"fork after {number}")
    pause(canary["watched_s"])
    return f"{int(canary['processes']) * 2} processes ran"


@attack(*_NO_MEMORY, errno.EAGAIN, ends=True, spoils=True)
def share_out_memory(canary: Canary) -> str:
    """Four children that each take what one process may have."""
    if not canary["may_fork"]:
        raise Absent("it may not fork: there is no tree to measure")
    library = ctypes.CDLL(None, use_errno=True)
    for _ in range(4):
        child = int(library.fork())
        if child == 0:
            try:  # Nothing of the parent's may go on in here.
                kept = bytes([1]) * (_pieces(canary) // 3 * _PIECE_BYTES)
                pause(canary["watched_s"] * 2 if kept else 0)
            finally:
                os._exit(0)
        if child < 0:
            raise OSError(ctypes.get_errno(), "fork")
    pause(canary["watched_s"] * 1.5)
    return "a tree of processes took more than one may"
