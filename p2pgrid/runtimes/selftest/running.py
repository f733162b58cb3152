"""The self-test: every runtime's cage is attacked through the real worker pool, and what came of it is reported.

A runtime whose test cannot be made does not hold. The pools of the test are its own, with small bounds, so that bombs stay small.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from p2pgrid.errors import ConfigError, P2PGridError, RefusedError
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import Offload, run_surely
from p2pgrid.runtimes.cages import Cages, is_root, kind_of
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.process import library_folders
from p2pgrid.runtimes.selftest.attacks.base import Attack, Canary
from p2pgrid.runtimes.selftest.canaries import Bounds, Canaries, new_folder, survivors
from p2pgrid.runtimes.selftest.commands import attack_by_commands
from p2pgrid.runtimes.selftest.guest import attack_guest
from p2pgrid.runtimes.selftest.native import attack_natively
from p2pgrid.runtimes.selftest.report import Attempt, RuntimeReport, report_of
from p2pgrid.runtimes.selftest.source import ATTACKS
from p2pgrid.runtimes.selftest.webassembly import attack_webassembly
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, OnResults, PoolPolicy, Workers

MIB = 1 << 20
RUNTIMES = ("native", "command", "wasm", "python")
BOUNDS = Bounds(memory_bytes=96 * MIB, folder_bytes=16 * MIB, folder_entries=300, threads=1500, processes=24, watched_s=4.0)
_FILE_BYTES_MAX = 12 * MIB
_OPEN_FILES_MAX = 128
_LANES = 3
"""Killers of one runtime that run at one time, each lane on processes of its own."""
_TIMEOUT_S = 60.0
_COMPILING_S = 600.0
"""On top of it for the Python runner, which may have to be compiled first."""
_GONE_S = 1.0
_ENDING_S = 0.7
"""For a test that was cancelled to end, before it is told so again."""
_LOOKS = 50

OWN = tuple(ATTACKS.values())
"""The attacks that a node makes on itself."""
Attacking = Callable[[Workers, Canary], Awaitable[list[Attempt]]]
OnAttack = Callable[[str, int, int], None]
"""Told, by runtime, how many attacks were made, and how many were begun so far."""


class _Counted:
    """Workers that tell how far the attacks on them are. Whatever else is asked of them is theirs."""

    def __init__(self, workers: Workers, runtime: str, on_attack: OnAttack) -> None:
        self._workers, self._runtime, self._on_attack = workers, runtime, on_attack
        self._made = self._begun = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    async def run(self, task: BatchTask, on_results: OnResults) -> None:
        """As the workers'."""

        def counted(chunk: BatchChunk) -> None:
            self._made += len(chunk.outcomes)
            self._on_attack(self._runtime, self._made, self._begun)
            on_results(chunk)

        self._begun += len(task.inputs)
        self._on_attack(self._runtime, self._made, self._begun)
        await self._workers.run(task, counted)


async def run_selftest(
    policy: PoolPolicy,
    offload: Offload,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    runner: Path | None = None,
    timeout_s: float = _TIMEOUT_S,
    on_attack: OnAttack | None = None,
) -> tuple[RuntimeReport, ...]:
    """Attack the cages of these runtimes, all at one time, and report each in the order asked for.

    ``policy``: the node's; its cage, interpreter and paths are what is tested. ``runner``: the Python runner's component, for ``python``.
    ``timeout_s``: seconds after which a runtime that is not through counts as not holding. Never raises because of an attack.
    """
    loop = asyncio.get_running_loop()
    tests = [loop.create_task(_test(policy, offload, runtime, runner, timeout_s, on_attack)) for runtime in runtimes]
    try:
        return tuple(await asyncio.gather(*tests))
    finally:
        # gather() is cancelled as soon as the first of them is: the others have targets and processes to remove, too.
        late = tests
        while late and (late := list((await asyncio.wait(late, timeout=_ENDING_S))[1])):
            for test in late:
                test.cancel()


async def _test(
    policy: PoolPolicy, offload: Offload, runtime: str, runner: Path | None, timeout_s: float, on_attack: OnAttack | None
) -> RuntimeReport:
    """The report of one runtime. Whatever goes wrong is a reason not to hold."""
    level = "none"
    try:
        attacking = _counting(attacks_on(runtime, policy, runner, offload), runtime, on_attack)
        async with asyncio.timeout(timeout_s + (_COMPILING_S if runtime == "python" else 0.0)), place_for_pool(offload) as folder:
            level = await _level(policy, offload, runtime, folder)
            attempts = await attack(policy, offload, attacking, folder)
    except TimeoutError:
        return RuntimeReport(runtime, level, False, f"the attacks did not end within {timeout_s:g} s")
    except P2PGridError as error:
        return RuntimeReport(runtime, level, False, error.message)
    except OSError as error:
        return RuntimeReport(runtime, level, False, f"it cannot be tested: {error}")
    return report_of(runtime, level, (_accepted(attempt, runtime, level) for attempt in attempts))


def _counting(attacking: Attacking, runtime: str, on_attack: OnAttack | None) -> Attacking:
    if on_attack is None:
        return attacking
    return lambda workers, canary: attacking(cast(Workers, _Counted(workers, runtime, on_attack)), canary)


async def _level(policy: PoolPolicy, offload: Offload, runtime: str, folder: Path) -> str:
    """The level that the runtime's units get. Raises RefusedError where there is none: nothing is attacked without a cage."""
    cages = await offload.run(Cages, policy, folder, library_folders())
    kind = kind_of(runtime)
    level, reason = await offload.run(cages.choose, kind)
    if level is None or (level == "bare" and kind != "engine"):
        raise RefusedError(f"there is no cage: {reason}", reason=Reason.NO_CAGE)
    return level


def _accepted(attempt: Attempt, runtime: str, level: str) -> Attempt:
    known = ATTACKS.get(attempt.name)
    return msgspec.structs.replace(attempt, accepted=not attempt.held and known is not None and known.is_accepted(runtime, level))


def attacks_on(runtime: str, policy: PoolPolicy, runner: Path | None, offload: Offload) -> Attacking:
    """What is to be done to a runtime. Raises P2PGridError where it cannot be tested at all."""
    if runtime == "native":
        return attack_native
    if runtime == "command":
        return lambda workers, canary: attack_command(workers, canary, policy.python)
    if runtime == "wasm":
        return lambda workers, canary: attack_webassembly(workers, canary, offload)
    if runtime == "python":
        if runner is None:
            raise ConfigError("the Python runner is not here")
        return lambda workers, canary: attack_guest(workers, canary, runner, offload)
    raise ConfigError(f"there is no runtime {runtime!r}")


def lanes(attacks: Sequence[Attack]) -> tuple[list[Attack], list[list[Attack]]]:
    """(those that share a process, lanes of those that may end it)."""
    quick = sorted((attack for attack in attacks if not attack.ends), key=lambda attack: attack.spoils)
    killers = [attack for attack in attacks if attack.ends]
    return quick, [killers[number::_LANES] for number in range(_LANES) if killers[number::_LANES]]


async def attack_native(
    workers: Workers, canary: Canary, attacks: Sequence[Attack] = OWN, more: Mapping[str, str] | None = None
) -> list[Attempt]:
    """The attacks as native units. ``more``: further modules of attack code, by name."""
    quick, killers = lanes(attacks)
    canary = {**canary, "may_fork": False}
    works = [
        attack_natively(workers, lane, canary, job=f"native-{number}".encode(), more=more) for number, lane in enumerate([quick, *killers])
    ]
    return [attempt for attempts in await asyncio.gather(*works) for attempt in attempts]


async def attack_command(
    workers: Workers, canary: Canary, python: str = "", attacks: Sequence[Attack] = OWN, more: Mapping[str, str] | None = None
) -> list[Attempt]:
    """All attacks that a command must not succeed with, as commands."""
    quick, killers = lanes([attack for attack in attacks if attack.commands])
    canary = {**canary, "may_fork": True}
    works = [attack_by_commands(workers, [quick], canary, job=b"command", python=python, more=more)]
    for number, lane in enumerate(killers):
        job = f"command-{number}".encode()
        works.append(attack_by_commands(workers, [[killer] for killer in lane], canary, job=job, python=python, more=more))
    return [attempt for attempts in await asyncio.gather(*works) for attempt in attempts]


async def attack(policy: PoolPolicy, offload: Offload, attacking: Attacking, folder: Path, bounds: Bounds = BOUNDS) -> list[Attempt]:
    """Attack through a pool of its own in an empty ``folder``, and look for traces on the targets and for processes that go on.

    Raises what the pool raises, and TryAgainError when the targets cannot be made.
    """
    canaries = Canaries(bounds)
    starting = asyncio.get_running_loop().create_task(offload.run(canaries.start))
    try:
        await asyncio.shield(starting)
        pool = WorkerPool(folder / "pool", small(policy, bounds), offload)
        try:
            await pool.start()
            attempts = await attacking(pool, canaries.facts)
        finally:
            await pool.close()
        left = await _left_running(folder.name, offload)
        traces = await offload.run(canaries.breaches)
    finally:
        # A thread cannot be cancelled: what it makes has to be there before it is removed.
        await asyncio.wait([starting])
        await run_surely(offload, canaries.close)
    attempts.append(Attempt("outlive-everything", not left, f"processes that go on: {left}" if left else "nothing runs on"))
    told = "; ".join(f"{name}: {what}" for name, what in traces.items())
    attempts.append(Attempt("leave-a-trace", not traces, told or "the targets are as they were"))
    return attempts


def small(policy: PoolPolicy, bounds: Bounds) -> PoolPolicy:
    """The policy with bounds that bombs reach soon."""
    policy = msgspec.structs.replace(policy, slots=1 + _LANES, idle_max=0)
    if not bounds.guarded:
        return policy
    return msgspec.structs.replace(
        policy,
        file_bytes_max=_FILE_BYTES_MAX,
        open_files_max=_OPEN_FILES_MAX,
        folder_bytes_max=bounds.folder_bytes,
        folder_entries_max=bounds.folder_entries,
        processes_max=bounds.processes,
        memory_bytes=bounds.memory_bytes,
    )


@asynccontextmanager
async def place_for_pool(offload: Offload) -> AsyncIterator[Path]:
    """A folder that a process without rights can reach through: only its name gives that away, and it holds nothing of the owner's."""
    making = asyncio.get_running_loop().create_task(offload.run(_make_place))
    try:
        yield await asyncio.shield(making)
    finally:
        await asyncio.wait([making])
        if making.exception() is None:
            await run_surely(offload, shutil.rmtree, making.result(), True)


def _make_place() -> Path:
    shared = Path("/var/tmp")  # noqa: S108 - the folder gets a name of its own there
    folder = new_folder(shared if is_root() and shared.is_dir() else Path(tempfile.gettempdir()), "p2pgrid-selftest-")
    if is_root():
        folder.chmod(0o711)
    return folder


async def _left_running(mark: str, offload: Offload) -> list[int]:
    """Processes of the pool that are still there, after a moment in which a killed one may vanish."""
    left: list[int] = []
    for _ in range(_LOOKS):
        left = await offload.run(survivors, mark)
        if not left:
            break
        await asyncio.sleep(_GONE_S / _LOOKS)
    return left
