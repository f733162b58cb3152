"""What a unit of the ``python`` runtime would try, under the Python inside of WebAssembly: a node reads the text, it never calls this."""

from __future__ import annotations

import sys
from typing import Any


def work(item: dict[str, Any]) -> Any:
    """Attempt one attack by name: what it gained. An exception, or the end of the guest, says that it was refused."""
    return globals()["attempt_" + item["attack"].replace("-", "_")](item["canary"])


def attempt_open_host_file(canary: dict[str, Any]) -> Any:
    with open(canary["open_file"]) as file:
        return file.read()


def attempt_open_relative_file(canary: dict[str, Any]) -> Any:
    with open("../" * 20 + canary["open_file"].lstrip("/")) as file:
        return file.read()


def attempt_make_host_file(canary: dict[str, Any]) -> Any:
    with open(canary["open_folder"] + "/planted", "w") as file:
        return file.write("planted")


def attempt_list_root(canary: dict[str, Any]) -> Any:
    import os

    return os.listdir(canary["open_folder"])


def attempt_find_host_file(canary: dict[str, Any]) -> Any:
    import os

    return os.stat(canary["open_file"]).st_size


def attempt_read_open_files(canary: dict[str, Any]) -> Any:
    import os

    for number in range(3, 256):
        try:
            data = os.read(number, 4096)
        except OSError:
            continue
        if canary["token"].encode() in data:
            return "the secret was read"
    raise PermissionError("no open file")


def attempt_start_process(canary: dict[str, Any]) -> Any:
    import os

    return os.posix_spawn("/bin/sh", ["sh", "-c", "exit 0"], {})


def attempt_start_program(canary: dict[str, Any]) -> Any:
    import subprocess

    return subprocess.run(["/bin/sh", "-c", "exit 0"], check=False).returncode


def attempt_run_shell(canary: dict[str, Any]) -> Any:
    import os

    return os.system("exit 0")  # noqa: S605 - it is the attack


def attempt_fork(canary: dict[str, Any]) -> Any:
    import os

    make_child = getattr(os, "fork")  # noqa: B009 - it is the attack
    return make_child()


def attempt_connect_tcp(canary: dict[str, Any]) -> Any:
    import socket

    with socket.create_connection(("127.0.0.1", canary["tcp_port"]), 1) as conversation:
        return conversation.send(b"attack")


def attempt_connect_path_socket(canary: dict[str, Any]) -> Any:
    import socket

    with socket.socket(socket.AF_UNIX) as conversation:
        return conversation.connect(canary["path_socket"])


def attempt_fetch_page(canary: dict[str, Any]) -> Any:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{canary['tcp_port']}", timeout=1) as answer:
        return answer.status


def attempt_call_library(canary: dict[str, Any]) -> Any:
    import ctypes

    return ctypes.CDLL(None).getpid()


def attempt_signal_process(canary: dict[str, Any]) -> Any:
    import os

    os.kill(canary["process"], 0)
    return "it was signalled"


def attempt_start_thread(canary: dict[str, Any]) -> Any:
    import threading

    thread = threading.Thread(target=len, args=("",))
    thread.start()
    thread.join()
    return "a thread ran"


def attempt_take_memory(canary: dict[str, Any]) -> Any:
    kept: list[bytes] = []
    while len(kept) << 20 < 4 * canary["memory_bytes"]:
        kept.append(bytes([1]) * (1 << 20))
    return f"{len(kept)} MiB"


def attempt_take_memory_at_once(canary: dict[str, Any]) -> Any:
    return len(bytearray(4 * canary["memory_bytes"]))


def attempt_recurse(canary: dict[str, Any]) -> Any:
    sys.setrecursionlimit(1 << 30)

    def deeper(depth: int) -> int:
        return deeper(depth + 1) + depth

    return deeper(0)


def attempt_spin(canary: dict[str, Any]) -> Any:
    while True:
        pass


def attempt_spin_in_arithmetic(canary: dict[str, Any]) -> Any:
    return len(str(pow(3, 50_000_000)).encode())


def attempt_spin_in_pattern(canary: dict[str, Any]) -> Any:
    import re

    return re.match(r"(a+)+$", "a" * 64 + "b") is None


def attempt_read_environment(canary: dict[str, Any]) -> Any:
    import os

    if canary["token"] in str(dict(os.environ)):
        return "the secret was read"
    raise PermissionError("it is not there")


def attempt_exit(canary: dict[str, Any]) -> Any:
    import os

    os._exit(0)


def attempt_read_clock(canary: dict[str, Any]) -> Any:
    import time

    return time.time_ns()


def attempt_draw_chance(canary: dict[str, Any]) -> Any:
    import os
    import random
    import uuid

    return [os.urandom(8).hex(), random.random(), str(uuid.uuid4()), random.SystemRandom().random()]


def attempt_sleep(canary: dict[str, Any]) -> Any:
    import time

    time.sleep(3600)
    return "slept"


def attempt_run_honestly(canary: dict[str, Any]) -> Any:
    return 42
