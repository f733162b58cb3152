"""Code of strangers on real nodes: Python and modules inside WebAssembly, packages that workers do not have, and who gets what."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from p2pgrid.model import log as kinds
from p2pgrid.model.ids import JobId, StatementId, from_text
from p2pgrid.model.work import Receipt
from p2pgrid.store.ledger import Ledgers
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import peek
from tests.e2e.grids import Grid, Member, grid_of, until
from tests.native import needs

PRIMES = """\
import random, time


def work(number):
    number = int(number)
    found = [n for n in range(2, number) if all(n % d for d in range(2, int(n**0.5) + 1))]
    names = {str(n) for n in found[:20]}
    return {"primes": len(found), "chance": random.random(), "set": list(names), "time": time.time(), "float": 0.1 * number}
"""
WHERE = """\
import sys


def work(item):
    return sys.platform
"""
PACKAGES = """\
# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=1.26"]
# ///
import numpy


def work(item):
    size = int(item)
    matrix = numpy.arange(size * size, dtype=float).reshape(size, size)
    return [float(matrix.trace()), numpy.__file__]
"""
SPY = """\
import os, socket


def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return type(error).__name__


def work(home):
    return [
        attempt(lambda: open(f"{home}/node.key", "rb").read()),
        attempt(lambda: os.listdir(os.path.expanduser("~root"))),
        attempt(lambda: os.kill(os.getppid(), 0)),
        attempt(lambda: socket.create_connection(("127.0.0.1", 22), 1)),
        attempt(lambda: open(f"{home}/escaped", "w")),
    ]
"""
ECHO = """(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $sizes (i32.const 0) (i32.const 4)))
    (drop (call $args (i32.const 64) (i32.const 512)))
    ;; The last argument: from its pointer up to the end of all arguments, without the zero byte.
    (i32.store (i32.const 16) (i32.load (i32.add (i32.const 64) (i32.mul (i32.const 4) (i32.sub (i32.load (i32.const 0)) (i32.const 1))))))
    (i32.store (i32.const 20)
      (i32.sub (i32.sub (i32.add (i32.const 512) (i32.load (i32.const 4))) (i32.load (i32.const 16))) (i32.const 1)))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Two nodes of one core each, for a whole module."""
    with grid_of(2, tmp_path_factory.mktemp("pair"), "--storage", "200M") as grid:
        yield grid


def runtimes(member: Member) -> list[list[str]]:
    """What each node offers, as a member sees it; the member itself first."""
    return [peer["runtimes"] for peer in member.document("peers")["peers"]]


def receipts(home: Path, job: str, folder: Path) -> dict[bytes, dict[tuple[int, int], tuple[bytes, bytes]]]:
    """By worker, then by (batch, unit): digest and fuel, as the log of a job in a home has them. Read from a copy."""
    shutil.copytree(home / "ledger", folder / "ledger")
    found: dict[bytes, dict[tuple[int, int], tuple[bytes, bytes]]] = {}

    def take(kind: int, data: bytes) -> None:
        if kind != kinds.RECEIPT:
            return
        signed = peek(data)
        body = decode(signed.body, Receipt)
        units = [
            (unit_range.batch, unit) for unit_range in body.ranges for unit in range(unit_range.start, unit_range.start + unit_range.units)
        ]
        said = found.setdefault(signed.author, {})
        for position, unit in enumerate(units):
            said[unit] = (body.digests[32 * position : 32 * position + 32], body.fuel[8 * position : 8 * position + 8])

    Ledgers(folder / "ledger", os.urandom).open(JobId(StatementId(from_text(job, what="job"))), take)
    return found


def wait_for(member: Member, runtime: str) -> None:
    """Until every node has tested the cage of a runtime and offers it."""
    until(lambda: all(runtime in offered for offered in runtimes(member)), f"all nodes offer {runtime}", 55)


@pytest.mark.timeout(120)
def test_the_same_python_unit_gives_the_same_bytes_and_the_same_fuel_on_two_nodes(pair: Grid, tmp_path: Path) -> None:
    script = tmp_path / "primes.py"
    script.write_text(PRIMES)
    wait_for(pair[0], "python")
    done = pair[0].run("run", "--runtime", "python", "--quorum", "2", "--json", script, "--over", "50", "500", "2000", timeout_s=60)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert first["disputed"] == 0
    assert len(first["units_per_node"]) == 2
    assert [result["primes"] for result in first["results"]] == [15, 95, 303]
    assert sorted(first["fuel"]) == ["0", "1", "2"]
    said = receipts(pair[0].home, first["job"], tmp_path)
    assert len(said) == 2, "two nodes answered"
    (one, other) = said.values()
    assert one == other, "each unit has the same digest and the same fuel from both"
    assert all(fuel for _, fuel in one.values())
    again = json.loads(pair[1].run("run", "--runtime", "python", "--quorum", "2", "--json", script, "--over", "50", timeout_s=60).stdout)
    # Another job: its own chance, and so a little other fuel; the order of a set is the runner's.
    assert again["results"][0]["set"] == first["results"][0]["set"]
    assert again["results"][0]["chance"] != first["results"][0]["chance"]


@pytest.mark.timeout(120)
def test_who_refuses_native_code_gets_the_same_script_as_python(tmp_path: Path) -> None:
    script = tmp_path / "where.py"
    script.write_text(WHERE)
    with grid_of(1, tmp_path, "--storage", "200M", "--cpus", "0") as grid:
        careful = grid.add("--no-native", "--storage", "200M")
        until(lambda: careful.ready, "the careful node is ready")
        until(lambda: "python" in runtimes(grid[0])[1], "it offers python", 55)
        done = grid[0].run("run", "--json", script, "--over", "1", "2", timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 results come from units that ran as python" in done.stderr
    assert json.loads(done.stdout)["results"] == ["wasi", "wasi"]


@pytest.mark.timeout(120)
def test_packages_that_no_worker_has_are_brought_along(pair: Grid, tmp_path: Path) -> None:
    script = tmp_path / "packages.py"
    script.write_text(PACKAGES)
    wait_for(pair[0], "native")
    done = pair[0].run("run", "--json", script, "--over", *map(str, range(2, 42)), timeout_s=90)
    needs(done.returncode != 69, "no package index can be reached")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [result[0] for result in document["results"]] == [float(sum(range(0, n * n, n + 1))) for n in range(2, 42)]
    assert not [result[1] for result in document["results"] if result[1].startswith(sys.prefix)]


def test_native_units_see_nothing_of_the_machine(pair: Grid, tmp_path: Path) -> None:
    script = tmp_path / "spy.py"
    script.write_text(SPY)
    wait_for(pair[0], "native")
    done = pair[0].run("run", "--runtime", "native", "--json", script, "--over", pair[0].home, pair[1].home)
    assert done.returncode == 0, done.stderr
    for seen in json.loads(done.stdout)["results"]:
        assert set(seen) <= {"PermissionError", "FileNotFoundError", "NotADirectoryError", "ProcessLookupError"}, seen
    assert not [member.home for member in pair.members if (member.home / "escaped").exists()]


def test_a_webassembly_module_runs_over_items(pair: Grid, tmp_path: Path) -> None:
    module = tmp_path / "echo.wasm"
    module.write_bytes(wasmtime.wat2wasm(ECHO))
    wait_for(pair[0], "wasm")
    done = pair[0].run("run", module, "--over", "one ", "two ", "three")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "one two three"


def test_what_is_no_module_is_said_at_once(pair: Grid, tmp_path: Path) -> None:
    module = tmp_path / "text.wasm"
    module.write_text("not a module")
    done = pair[0].run("run", module, "--over", "1")
    assert done.returncode == 65
    assert "no WebAssembly" in done.stderr


def test_a_script_cannot_be_a_command(pair: Grid, tmp_path: Path) -> None:
    script = tmp_path / "where.py"
    script.write_text(WHERE)
    done = pair[0].run("run", "--runtime", "command", script, "--over", "1")
    assert done.returncode == 2
    assert "hint: use one of: auto, native, python" in done.stderr
