"""Attacks as units of the ``python`` runtime: everything the library offers to get out, in a guest that has no way out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.values import encode_value
from p2pgrid.offload import Offload
from p2pgrid.runtimes.selftest.attacks import guests
from p2pgrid.runtimes.selftest.attacks.base import Canary
from p2pgrid.runtimes.selftest.native import SUBMITTER, Told
from p2pgrid.runtimes.selftest.report import Attempt
from p2pgrid.runtimes.selftest.webassembly import DAY_NS, run_engine
from p2pgrid.runtimes.tasks import BatchTask, Code, JobKey, Outcome, Workers

UNIT_S = 15.0
ENDLESS_S = 1.5
_SEED = bytes(range(32))
_PREFIX = "attempt_"
ENDLESS = ("spin", "spin-in-arithmetic", "spin-in-pattern")
"""They must be ended by their deadline."""
HONEST = ("read-clock", "draw-chance", "sleep", "run-honestly")
"""They must answer, and the same in every process."""
NAMES = tuple(name.removeprefix(_PREFIX).replace("_", "-") for name in vars(guests) if name.startswith(_PREFIX))


async def attack_guest(workers: Workers, canary: Canary, runner: Path, offload: Offload) -> list[Attempt]:
    """All attacks in guests, and the honest ones once more in another process. Raises what the pool raises."""
    content = await offload.run(runner.read_bytes)
    program_id = await offload.run(blob_id_of, content)
    text = await offload.run(Path(guests.__file__).read_text)
    code = Code(source=text, file_name="selftest.py", program=runner, program_id=program_id, seed=_SEED)

    def units(job: bytes, names: tuple[str, ...]) -> BatchTask:
        return BatchTask(
            job=JobKey(SUBMITTER, b"python-" + job),
            code=code,
            runtime="python",
            fresh=True,
            inputs=[msgspec.Raw(encode_value({"attack": name, "canary": canary})) for name in names],
            timeout_s=ENDLESS_S if names[0] in ENDLESS else UNIT_S,
            memory_bytes=canary["limit_bytes"],
        )

    hostile = tuple(name for name in NAMES if name not in HONEST and name not in ENDLESS)
    first, again, *endless = await asyncio.gather(
        run_engine(workers, units(b"hostile", (*HONEST, *hostile))),
        run_engine(workers, units(b"again", HONEST)),
        *(run_engine(workers, units(name.encode(), (name,))) for name in ENDLESS),
    )
    attempts = [_judged(name, told, canary) for name, (told, _) in zip((*HONEST, *hostile), first, strict=True)]
    attempts += [_judged(name, told, canary) for name, [(told, _)] in zip(ENDLESS, endless, strict=True)]
    same = first[: len(HONEST)] == again
    attempts.append(
        Attempt("tell-runs-apart", same, "answers and fuel are the same in another process" if same else f"{first} and {again}"[:200])
    )
    return attempts


def _judged(name: str, told: Told, canary: Canary) -> Attempt:
    said = told.value
    if name in ENDLESS:
        return Attempt(name, told.outcome == Outcome.TIMED_OUT, f"{told.outcome.name.lower().replace('_', ' ')}: {_text(said)}"[:200])
    if name not in HONEST:
        # Anything but an answer: an exception, or a trap of the guest. The end of the worker itself would be one too many.
        return Attempt(name, told.outcome in (Outcome.RAISED, Outcome.UNENCODABLE), _text(said)[:200])
    held = told.outcome == Outcome.OK
    if held and name == "run-honestly":
        held = said == 42
    if held and name == "read-clock":
        held = isinstance(said, int) and abs(said - canary["made_ns"]) > DAY_NS
    return Attempt(name, held, _text(said)[:200])


def _text(value: object) -> str:
    if isinstance(value, dict) and "message" in value:
        return f"{value.get('type')}: {value['message']}"
    return repr(value)
