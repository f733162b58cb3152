"""Attacks as units of the ``wasm`` runtime: a module that asks for everything it must not get, and modules that must not even load."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from p2pgrid.errors import ConfigError, P2PGridError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.values import decode_value, encode_value
from p2pgrid.offload import Offload
from p2pgrid.runtimes.selftest import modules
from p2pgrid.runtimes.selftest.attacks.base import Canary
from p2pgrid.runtimes.selftest.native import SUBMITTER, Told
from p2pgrid.runtimes.selftest.report import Attempt
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, Workers

UNIT_S = 10.0
ENDLESS_S = 1.0
"""For units that must be ended."""
_SEED = bytes(range(32))
DAY_NS = 86_400 * 10**9
_PAGE_BYTES = 64 << 10
_TRAPPED = frozenset({Outcome.RAISED})
_ENDED = frozenset({Outcome.RAISED, Outcome.TIMED_OUT})


class Wanted(NamedTuple):
    """One call of the module's ``work``, and how it has to end."""

    name: str
    number: int
    ends: frozenset[Outcome] = frozenset()
    """How it may end otherwise than with an answer; when there are any, no answer is right unless ``answers`` says so."""
    answers: bool = True
    """Whether it may answer: 0, unless it is judged by itself."""


CALLS: tuple[Wanted, ...] = (
    Wanted("open-host-file", 1),
    Wanted("make-host-file", 2),
    Wanted("find-host-file", 3),
    Wanted("read-open-files", 4),
    Wanted("use-sockets", 5),
    Wanted("grow-memory", 7, _TRAPPED),
    Wanted("overflow-stack", 8, _TRAPPED, answers=False),
    Wanted("read-clock", 9),
    Wanted("read-environment", 11),
    Wanted("sleep", 12),
    Wanted("read-beyond-memory", 13, _TRAPPED, answers=False),
    Wanted("pass-wild-pointers", 14, _TRAPPED),
    Wanted("call-anywhere", 15, _TRAPPED, answers=False),
    Wanted("lie-about-result", 16, _TRAPPED | {Outcome.TOO_LARGE}, answers=False),
    Wanted("draw-chance", 10),
    Wanted("run-honestly", 0),
)
"""The honest call comes last: what went before must not have hurt it."""
SPIN = Wanted("spin", 6, _ENDED, answers=False)


async def attack_webassembly(workers: Workers, canary: Canary, offload: Offload) -> list[Attempt]:
    """All attacks by modules. Raises what the pool raises, ConfigError where there is no engine."""
    with tempfile.TemporaryDirectory(prefix="p2pgrid-modules-") as name:
        codes = await offload.run(assembled, Path(name))
        path = "../" * 12 + str(canary["open_file"]).lstrip("/")
        first, again, [(spun, _)], *refused = await asyncio.gather(
            call_functions(workers, canary, codes["functions"], b"functions", CALLS, path),
            call_functions(workers, canary, codes["functions"], b"again", CALLS, path),
            call_functions(workers, canary, codes["functions"], b"spin", [SPIN], path, ENDLESS_S),
            *(_refusal(workers, canary, module, code) for module, code in codes.items() if module != "functions"),
        )
    attempts = [_judged(call, told, canary) for call, (told, _) in zip(CALLS, first, strict=True)]
    attempts.append(_judged(SPIN, spun, canary))
    same = first == again
    attempts.append(
        Attempt("tell-runs-apart", same, "answers and fuel are the same in another process" if same else f"{first} and {again}"[:200])
    )
    return [*attempts, *refused]


def assembled(folder: Path) -> dict[str, Code]:
    """The attacking modules by name, as files. Raises ConfigError where there is no engine to assemble them."""
    try:
        from wasmtime import wat2wasm
    except ImportError as error:
        raise ConfigError(f"there is no WebAssembly engine here: {error}", hint="pip install wasmtime") from error
    texts = {"functions": modules.FUNCTIONS, **modules.UNLOADABLE}
    contents = {name: bytes(wat2wasm(text)) for name, text in texts.items()} | {"load-garbage": modules.GARBAGE}
    codes = {}
    for name, content in contents.items():
        path = folder / f"{name}.wasm"
        path.write_bytes(content)
        codes[name] = Code(program=path, program_id=blob_id_of(content), seed=_SEED)
    return codes


async def run_engine(workers: Workers, task: BatchTask) -> list[tuple[Told, bytes]]:
    """How each unit ended, and its fuel."""
    ended: list[tuple[Told, bytes]] = []

    def collect(chunk: BatchChunk) -> None:
        for place, (code, payload) in enumerate(zip(chunk.outcomes, chunk.payloads, strict=True)):
            ended.append((Told(Outcome(code), decode_value(payload)), chunk.fuel[place * 8 : place * 8 + 8]))
        for file in chunk.files:
            file.path.unlink(missing_ok=True)

    await workers.run(task, collect)
    return ended


async def call_functions(
    workers: Workers, canary: Canary, code: Code, job: bytes, calls: Sequence[Wanted], path: str, unit_s: float = UNIT_S
) -> list[tuple[Told, bytes]]:
    """Call ``work`` in a unit each; how they ended, and their fuel. ``path``: what calls about files name; 32 to 255 bytes."""
    items = [msgspec.Raw(encode_value([call.number, path])) for call in calls]
    task = BatchTask(
        job=JobKey(SUBMITTER, b"wasm-" + job),
        code=code,
        runtime="wasm",
        inputs=items,
        timeout_s=unit_s,
        memory_bytes=canary["limit_bytes"],
    )
    return await run_engine(workers, task)


async def _refusal(workers: Workers, canary: Canary, name: str, code: Code) -> Attempt:
    """A module that must not load."""
    task = BatchTask(
        job=JobKey(SUBMITTER, b"wasm-" + name.encode()),
        code=code,
        runtime="wasm",
        inputs=[msgspec.Raw(encode_value([0, ""]))],
        timeout_s=UNIT_S,
        memory_bytes=canary["limit_bytes"],
    )
    try:
        [(told, _)] = await run_engine(workers, task)
    except P2PGridError as error:
        return Attempt(name, False, f"it cannot be tried: {error.message}")
    return Attempt(name, told.outcome == Outcome.RAISED, _said(told))


def _judged(call: Wanted, told: Told, canary: Canary) -> Attempt:
    if told.outcome != Outcome.OK:
        return Attempt(call.name, told.outcome in call.ends, _said(told))
    if not isinstance(told.value, bytes) or len(told.value) != 8:
        return Attempt(call.name, False, f"it answered {told.value!r}"[:200])
    answer = int.from_bytes(told.value, "little")
    match call.name:
        case "run-honestly":
            held, detail = answer == 42, f"it answered {answer}"
        case "draw-chance":
            held, detail = True, "compared with that of another process"
        case "grow-memory":
            held, detail = 0 < answer * _PAGE_BYTES <= canary["memory_bytes"], f"it ended up with {answer * _PAGE_BYTES} bytes"
        case "read-clock":
            held, detail = abs(answer - canary["made_ns"]) > DAY_NS, f"it showed {answer} ns"
        case _:
            held, detail = answer == 0, "nothing was there" if answer == 0 else "it got through"
    return Attempt(call.name, held and call.answers, detail)


def _said(told: Told) -> str:
    message = told.value.get("message", "") if isinstance(told.value, dict) else repr(told.value)
    return f"{told.outcome.name.lower().replace('_', ' ')}: {message}"[:200]
