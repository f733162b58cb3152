"""One unit, one result, one amount of fuel: in two processes, on two sets of instructions, and on an interpreter of WebAssembly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = """
import asyncio, datetime, decimal, hashlib, itertools, json, math, os, random, re, statistics, time, uuid, zlib
from fractions import Fraction
from pathlib import Path

class Thing:
    pass

def floats():
    total = 0.0
    for number in range(1, 300):
        total += math.sin(number) ** 3 * math.exp(-number / 50) + math.pow(number, 0.3) - math.lgamma(number)
    return [total, math.fsum([0.1] * 9), statistics.stdev([1.5, 2.5, 9.0]), float("inf") - float("inf"), -float("nan")]

def work(kind):
    if kind == 0:
        return floats()
    if kind == 1:
        return [list({str(n) for n in range(40)}), [hash(str(n)) for n in range(5)], repr(Thing())]
    if kind == 2:
        drawn = [random.random(), random.gauss(0, 1), str(uuid.uuid4()), os.urandom(9), random.sample(range(99), 5)]
        return [drawn, time.time(), str(datetime.datetime.now())]
    if kind == 3:
        return [str(decimal.Decimal(2).sqrt()), str(sum(Fraction(1, n) for n in range(1, 60))), 3 ** 500 % 10 ** 40, math.factorial(60)]
    if kind == 4:
        text = json.dumps({"a": [1, 2.5, None, "é"] * 50})
        raw = text.encode()
        return [zlib.crc32(raw), hashlib.sha256(raw).hexdigest(), re.findall(r"\\d\\.\\d", text)[:3], len(zlib.compress(raw))]
    if kind == 5:
        Path("f").write_text("x" * 1000)
        return [sorted(os.listdir(".")), Path("f").stat().st_mtime, list(itertools.permutations(range(4)))[7]]
    if kind == 6:
        raise ValueError({"a", "b", "c"})
    if kind == 7:
        async def main():
            return await asyncio.gather(*(asyncio.sleep(n, n) for n in (3, 1, 2)))
        return asyncio.run(main())
    def recurse(n):
        return recurse(n + 1)
    return recurse(0)
"""
KINDS = list(range(9))
SCRIPT = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import importlib.util
spec = importlib.util.spec_from_file_location("guests_of_tests", sys.argv[2])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
from pathlib import Path
job = module.Guests(Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5], sys.argv[6], fresh=True)
ended = job.run(json.loads(sys.argv[7]), first=40)
print(json.dumps([ended.outcomes, [raw.hex() for raw in ended.payloads], ended.fuel]))
"""


def outcome_in_another_process(program: Path, folder: Path, isa: str) -> Any:
    """What the golden units come to in a process of their own: (outcomes, payloads, fuel)."""
    conftest = str(Path(__file__).with_name("conftest.py"))
    arguments = [json.dumps(sys.path), conftest, str(folder), str(program), GOLDEN, isa, json.dumps(KINDS)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_results_and_fuel_are_the_same_in_every_process(guests: Any, compiled: Callable[[str], Path], tmp_path: Path) -> None:
    here = guests(GOLDEN, fresh=True).run(KINDS, first=40)
    assert here.outcomes == [0, 0, 0, 0, 0, 0, 1, 0, 1]
    assert min(here.fuel) > 0
    there = outcome_in_another_process(compiled("native"), tmp_path / "other", "native")
    assert there == [here.outcomes, [raw.hex() for raw in here.payloads], here.fuel]


def test_fuel_does_not_depend_on_the_other_units_of_a_run(guests: Any) -> None:
    whole = guests(GOLDEN, fresh=True).run(KINDS, first=40)
    for place in (2, 6):
        alone = guests(GOLDEN, fresh=True).run(KINDS[place : place + 1], first=40 + place)
        assert (alone.payloads, alone.fuel) == (whole.payloads[place : place + 1], whole.fuel[place : place + 1])


def test_warm_guests_return_what_fresh_ones_return(guests: Any) -> None:
    kinds = [kind for kind in KINDS if kind != 1]  # Addresses of objects are what a warm guest does not repeat.
    warm, fresh = (guests(GOLDEN, fresh=fresh).run(kinds * 3, first=40) for fresh in (False, True))
    assert warm.outcomes == fresh.outcomes
    assert warm.payloads == fresh.payloads


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "pulley"])
def test_results_and_fuel_are_the_same_on_every_engine(guests: Any, isa: str) -> None:
    native, other = (guests(GOLDEN, fresh=True, isa=kind).run(KINDS, first=40, timeout_s=60.0) for kind in ("native", isa))
    assert other.outcomes == native.outcomes
    assert other.payloads == native.payloads
    assert other.fuel == native.fuel
