"""Runs all attacks on one cage and prints what came of them: in a process of its own, since a test cannot become another user.

``driver.py attack RUNTIME LEVEL`` attacks from within a cage, ``driver.py control WHO`` makes the attacks that succeed for WHO without any.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from p2pgrid.errors import P2PGridError
from p2pgrid.offload import ThreadOffload
from p2pgrid.runtimes import runner
from p2pgrid.runtimes.selftest.attacks.base import ATTACKS, Canary
from p2pgrid.runtimes.selftest.canaries import Bounds, Canaries
from p2pgrid.runtimes.selftest.commands import attack_by_commands
from p2pgrid.runtimes.selftest.native import attack_natively
from p2pgrid.runtimes.selftest.report import Attempt
from p2pgrid.runtimes.selftest.running import BOUNDS, MIB, OWN, attack, attack_command, attack_native, attacks_on, place_for_pool
from p2pgrid.runtimes.selftest.source import program_source
from p2pgrid.runtimes.selftest.webassembly import Wanted, assembled, call_functions
from p2pgrid.runtimes.tasks import PoolPolicy, Workers
from tests.attacks.sandbox import more_attacks

MORE = {more_attacks.__name__: Path(more_attacks.__file__).read_text(encoding="utf-8")}
ENDLESS, ENDLESS_S = "run-for-ever", 1.0
OF_A_FAMILY = "share-out-memory"
"""It needs to fork, as commands may."""
GUESTS_CONTROLLED = (
    *("open-host-file", "open-relative-file", "make-host-file", "list-root", "find-host-file", "start-process", "start-program"),
    *("run-shell", "connect-tcp", "connect-path-socket", "call-library", "signal-process", "start-thread", "read-clock"),
)
"""Those that do no harm, and need no end by somebody else."""
_GUEST = (
    "import json, sys; from p2pgrid.runtimes.selftest.attacks import guests; "
    "guests.work({'attack': sys.argv[1], 'canary': json.loads(sys.argv[2])})"
)
CONTROL_BOUNDS = Bounds(
    memory_bytes=24 * MIB, folder_bytes=8 * MIB, folder_entries=50, threads=400, processes=4, watched_s=0.01, outlives_s=0.01, guarded=False
)
"""Small: nobody ends a bomb that has no cage around it."""


EVERYTHING = dict(ATTACKS)
"""The node's own attacks and those of the tests, by name."""
for _name in [name for name in ATTACKS if name not in {own.name for own in OWN}]:
    del ATTACKS[_name]  # What a node attacks itself with is to be the same wherever tests run in one process.


async def in_cage(runtime: str, level: str) -> list[Attempt]:
    """What came of all attacks on a cage."""
    policy = PoolPolicy(cage=level, programs=Path.home() / "programs")

    async def attacking(workers: Workers, canary: Canary) -> list[Attempt]:
        attacks = [attack for attack in EVERYTHING.values() if attack.name != ENDLESS]
        endless = [EVERYTHING[ENDLESS]]
        if runtime == "native":
            found = await attack_native(workers, canary, attacks, MORE)
            return found + await attack_natively(
                workers, endless, {**canary, "may_fork": False}, job=b"endless", more=MORE, unit_s=ENDLESS_S
            )
        found = await attack_command(workers, canary, "", attacks, MORE)
        return found + await attack_by_commands(
            workers, [endless], {**canary, "may_fork": True}, job=b"endless", more=MORE, unit_s=ENDLESS_S
        )

    offload = ThreadOffload()
    try:
        chosen = attacking if runtime in ("native", "command") else attacks_on(runtime, policy, runner.path(), offload)
        async with place_for_pool(offload) as folder:
            return await attack(policy, offload, chosen, folder, BOUNDS)
    finally:
        await offload.close()


async def without_cage(control: str) -> list[Attempt]:
    """What came of the attacks where nothing is in their way: each is to succeed. Those that spoil a process get one each."""
    wanted = [attack for attack in EVERYTHING.values() if attack.control == control]
    alone = [[chosen] for chosen in wanted if chosen.spoils or chosen.ends]
    together = [chosen for chosen in wanted if not chosen.spoils and not chosen.ends]

    async def attacking(workers: Workers, canary: Canary) -> list[Attempt]:
        works = []
        for number, group in enumerate([together, *alone]):
            told = {**canary, "may_fork": group[0].name == OF_A_FAMILY}
            works.append(attack_natively(workers, group, told, job=str(number).encode(), more=MORE))
        return [attempt for attempts in await asyncio.gather(*works) for attempt in attempts]

    offload = ThreadOffload()
    try:
        async with place_for_pool(offload) as folder:
            return await attack(PoolPolicy(cage="bare"), offload, attacking, folder, CONTROL_BOUNDS)
    finally:
        await offload.close()


def plain(names: Sequence[str]) -> list[Attempt]:
    """What came of attacks in a process that inherits everything, as any child does that nobody thought of."""
    canaries = Canaries(CONTROL_BOUNDS)
    canaries.start()
    try:
        item = json.dumps({"attacks": list(names), "canary": {**canaries.facts, "may_fork": False}})
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program_source(item, MORE)], stdout=subprocess.PIPE, close_fds=False, check=True, timeout=10
        )
    finally:
        canaries.close()
    return [Attempt(name, status == "refused", detail) for name, status, detail in json.loads(ended.stdout)]


async def in_own_files() -> list[Attempt]:
    """The module's calls on files that a unit does have: they must be able to succeed."""
    place = "a-file-of-its-own-with-a-name-that-is-long-enough"

    async def attacking(workers: Workers, canary: Canary) -> list[Attempt]:
        with tempfile.TemporaryDirectory() as name:
            code = assembled(Path(name))["functions"]
            calls = [Wanted("make-host-file", 2), Wanted("sleep", 12)]
            ended = await call_functions(workers, canary, code, b"control", calls, place)
        return [Attempt(call.name, told.value == bytes(8), repr(told)) for call, (told, _) in zip(calls, ended, strict=True)]

    offload = ThreadOffload()
    try:
        async with place_for_pool(offload) as folder:
            return await attack(PoolPolicy(programs=Path.home() / "programs"), offload, attacking, folder)
    finally:
        await offload.close()


def as_plain_python() -> list[Attempt]:
    """What the attacks on the Python runner come to in an ordinary Python."""
    canaries = Canaries(CONTROL_BOUNDS)
    canaries.start()
    attempts = []
    try:
        for name in GUESTS_CONTROLLED:
            told = subprocess.run(
                [sys.executable, "-c", _GUEST, name, json.dumps(canaries.facts)], check=False, timeout=10, capture_output=True
            )
            attempts.append(Attempt(name, told.returncode != 0, told.stderr.decode(errors="replace")[-200:]))
    finally:
        canaries.close()
    return attempts


def main() -> None:
    """Print {"error": text} or {"attempts": [[name, held, detail], ...]}."""
    try:
        if sys.argv[1] == "attack":
            found = asyncio.run(in_cage(sys.argv[2], sys.argv[3]))
        elif sys.argv[2] == "wasm":
            found = asyncio.run(in_own_files())
        elif sys.argv[2] == "python":
            found = as_plain_python()
        elif sys.argv[2] == "plain":
            found = plain([attack.name for attack in EVERYTHING.values() if attack.control == "plain"])
        else:
            found = asyncio.run(without_cage(sys.argv[2]))
    except P2PGridError as error:
        print(json.dumps({"error": error.message}))
        return
    print(json.dumps({"attempts": [[attempt.name, attempt.held, attempt.detail] for attempt in found]}))


if __name__ == "__main__":
    main()
