"""What hostile code can try from inside of a guest. Everything ends as an outcome of its own unit, and the next unit runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import Failure

ATTACKS = {
    "reads a file of the host": "return open('/etc/passwd').read()",
    "reads a file of the host with what was hidden": (
        "import gc\nreturn [kind for kind in type.__subclasses__(object) + gc.get_objects() if getattr(kind, '__name__', '') == 'FileIO'"
        " and kind.__module__ == '_io'][0]('/etc/passwd').read()"
    ),
    "climbs out of its folder": "return open('../../../../etc/passwd').read()",
    "lists the host's processes": "import os\nreturn os.listdir('/proc')",
    "starts a program": "import subprocess\nreturn subprocess.run(['id'])",
    "starts a shell": "import os\nreturn os.system('id')",
    "forks": "import os\nreturn os.fork()",
    "kills its parent": "import os\nos.kill(1, 9)",
    "opens a socket": "import socket\nreturn socket.socket()",
    "asks for a name": "import socket\nreturn socket.gethostbyname('localhost')",
    "fetches a page": "import urllib.request\nreturn urllib.request.urlopen('http://127.0.0.1:1')",
    "loads machine code": "import ctypes\nreturn ctypes.CDLL(None)",
    "starts threads": "import threading\nthreading.Thread(target=print).start()",
    "calls what the component would import": "import componentize_py_runtime\nreturn componentize_py_runtime.call_import(0, [])",
    "asks the system for chance": "import _random\nreturn _random.Random()",
    "opens a database file": "import sqlite3\nreturn sqlite3.connect('/tmp/x.db')",
    "runs made-up bytecode": "exec((lambda: 0).__code__.replace(co_code=bytes(range(256))))",
    "recurses in C": "class A:\n    def __getattr__(self, name): return getattr(self, name)\nreturn A().x",
    "ends the process": "import os\nos._exit(0)",
    "aborts": "import os\nos.abort()",
    "crashes on purpose": "import faulthandler\nfaulthandler._sigsegv()",
    "takes all memory": "taken = []\nwhile True: taken.append(bytearray(1 << 20))",
    "takes all memory in small pieces": "taken = []\nwhile True: taken = [taken, taken]\n",
    "spins": "while True: pass",
    "spins in a big integer": "return len(str(7 ** (10 ** 8)))",
    "spins in a regular expression": "import re\nreturn re.match('(a+)+$', 'a' * 40 + 'b')",
    "lifts the limit of recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\nreturn work(x)",
    "writes files without end": "with open('f', 'wb') as file:\n    while True: file.write(bytes(1 << 20))",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_as_an_outcome_of_its_unit(guests: Any, attack: str) -> None:
    body = ATTACKS[attack].replace("\n", "\n        ")
    source = f"def work(x):\n    if x:\n        {body}\n    return 'fine'\n"
    ended = guests(source, memory_bytes=160 << 20).run([1, 0], timeout_s=0.5)
    assert ended.outcomes[0] in (frames.RAISED, frames.TIMED_OUT)
    assert ended.outcomes[1] == frames.OK
    assert ended.values[1] == "fine"


@pytest.mark.parametrize(
    "forgery",
    [
        "app.Runner.run = lambda self, request: b''",
        "app.Runner.run = lambda self, request: bytes(80_000_000)",
        "app.Runner.run = lambda self, request: bytes(1) + bytes(8)",
        "app.Runner.run = lambda self, request: b'\\2' + bytes(8) + b'\\xc0'",
        "app.Runner.run = lambda self, request: b'\\0' + bytes(8) + b'\\xc1'",
        "app.Runner.run = lambda self, request: b'\\0' + bytes(8) + b'\\xc0\\xc0'",
        "app.Runner.run = lambda self, request: b'\\0' + b'\\xff' * 8",
        "app.Runner.run = lambda self, request: b'\\1' + bytes(8) + b'\\xc0'",
        "app.Runner.run = lambda self, request: 'no bytes'",
        "app.Runner.report = lambda self: app.REPORT.pack(0, 9) + bytes((0x91, 0x94, 0, 200, 0xa1, 97, 0xc4, 1, 97))",
        "app.Runner.report = lambda self: app.REPORT.pack(40000, 0) + bytes(40000)",
    ],
)
def test_a_guest_that_forges_its_answers_fails_its_own_units_only(guests: Any, forgery: str) -> None:
    job = guests(f"import p2pgrid_guest.app as app\ndef work(x): return 'fine'\n{forgery}\n")
    ended = job.run([1, 2])
    assert ended.outcomes == [frames.RAISED] * 2
    assert ended.values[0]["type"] in ("Trap", "Unreachable")
    assert list(Path(job.outbox).iterdir()) == []


@pytest.mark.parametrize("said", ["b'no description'", "bytes(1_000_000)", "b'\\x80'"])
def test_a_guest_that_forges_what_it_says_about_loading_is_not_used(guests: Any, said: str) -> None:
    source = f"import p2pgrid_guest.app as app\ndef work(x): 0\napp.describe_exception = lambda *arguments: {said}\nraise ValueError"
    with pytest.raises(Failure):
        guests(source)


def test_a_warm_guest_that_was_spoilt_is_replaced(guests: Any) -> None:
    source = (
        "import p2pgrid_guest.app as app\ndef work(x):\n    if x: app.Runner.run = lambda self, request: b'\\7' * 30\n    return 'fine'\n"
    )
    assert guests(source).run([1, 0, 0]).values == ["fine"] * 3
