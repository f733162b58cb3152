"""What files are compared with: ``cp`` with an fsync, and one process that sends a file to another over plain TLS.

The TLS copy is the least that a copy over an encrypted connection can do: blocking sockets of the standard library, the nodes'
own keys and ciphers, pieces of 1 MiB, one file read and one written and synced; no hashing, no streams, no second copy.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from p2pgrid.net.certificates import contexts
from p2pgrid.wire.keys import SigningKey

PIECE_BYTES = 1 << 20
WAIT_S = 300.0


class Cost(NamedTuple):
    """Seconds by the clock, and of CPU in all processes that took part."""

    wall_s: float
    cpu_s: float


def copy(source: Path, target: Path) -> Cost:
    """``cp`` and ``sync`` of the copy."""
    began = time.perf_counter()
    child = subprocess.Popen(["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", str(source), str(target)])
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise OSError("cp failed")
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime)


def copy_over_tls(source: Path, target: Path) -> Cost:
    """From one process to another over loopback; the two are started before the time is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taking = _child([listener.fileno()], "take", str(listener.fileno()), str(target))
        sending = _child([], "send", str(port), str(source))
    taken, sent = (json.loads(child.communicate(timeout=WAIT_S)[0]) for child in (taking, sending))
    return Cost(sent[0], taken[1] + sent[1])


def _child(descriptors: list[int], *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "bench.plain", *words], pass_fds=descriptors, stdout=subprocess.PIPE)


def take(descriptor: int, target: Path) -> Cost:
    """Take one connection on a listening socket and write what comes to ``target``, synced."""
    server, _ = contexts(SigningKey(os.urandom(32)))
    with socket.socket(fileno=descriptor) as listener:
        plain = listener.accept()[0]
    began, cpu_s = time.perf_counter(), time.process_time()
    piece = memoryview(bytearray(PIECE_BYTES))
    with server.wrap_socket(plain, server_side=True) as tls, target.open("wb", buffering=0) as file:
        left = int.from_bytes(tls.recv(8), "big")
        while left:
            size_bytes = tls.recv_into(piece)
            if not size_bytes:
                raise OSError("the sender went away")
            file.write(piece[:size_bytes])
            left -= size_bytes
        os.fsync(file.fileno())
        tls.sendall(b"!")
    return Cost(time.perf_counter() - began, time.process_time() - cpu_s)


def send(port: int, source: Path) -> Cost:
    """Send a file, and wait until the other side says that it is on its disk."""
    _, client = contexts(SigningKey(os.urandom(32)))
    plain = socket.create_connection(("127.0.0.1", port))
    began, cpu_s = time.perf_counter(), time.process_time()
    piece = memoryview(bytearray(PIECE_BYTES))
    with client.wrap_socket(plain) as tls, source.open("rb", buffering=0) as file:
        tls.sendall(source.stat().st_size.to_bytes(8, "big"))
        # The stubs know readinto only of raw files that are not buffered by name.
        reader: Any = file
        while size_bytes := reader.readinto(piece):
            tls.sendall(piece[:size_bytes])
        if tls.recv(1) != b"!":
            raise OSError("the receiver went away")
    return Cost(time.perf_counter() - began, time.process_time() - cpu_s)


if __name__ == "__main__":
    if sys.argv[1] == "take":
        print(json.dumps(take(int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        print(json.dumps(send(int(sys.argv[2]), Path(sys.argv[3]))))
