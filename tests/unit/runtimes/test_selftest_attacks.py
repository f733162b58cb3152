"""The self-test itself: what counts as held, that traces are seen, that nothing of it stays, and that it fails closed."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import RefusedError
from p2pgrid.model.reasons import Reason
from p2pgrid.model.values import encode_value
from p2pgrid.offload import InlineOffload, ThreadOffload
from p2pgrid.runtimes.selftest import guest, modules, running, webassembly
from p2pgrid.runtimes.selftest.attacks import base
from p2pgrid.runtimes.selftest.attacks.base import ATTACKS, Absent, Attack, Refused, attempt
from p2pgrid.runtimes.selftest.canaries import Bounds, Canaries, survivors
from p2pgrid.runtimes.selftest.commands import attack_by_commands
from p2pgrid.runtimes.selftest.native import attack_natively
from p2pgrid.runtimes.selftest.running import OWN, lanes, run_selftest
from p2pgrid.runtimes.selftest.source import program_source, unit_source
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, OnResults, Outcome, PoolPolicy
from tests.native import needs

BOUNDS = Bounds(memory_bytes=1 << 20, folder_bytes=1 << 20, folder_entries=10, threads=10, processes=2, watched_s=0.1)
FACTS = {"limit_bytes": 0, "token": "token"}


def attack_of(run: Any, **more: Any) -> Attack:
    fields = {"refusals": base.USUAL, "errors": (Refused,), "ends": False, "spoils": False, "commands": True}
    return Attack(**{"name": "tried", "run": run, **fields, "control": "anybody", "accepted": (), **more})


def raising(error: BaseException) -> Any:
    def run(canary: base.Canary) -> str:
        raise error

    return run


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Any:
    def add(run: Any, **more: Any) -> str:
        monkeypatch.setitem(ATTACKS, "tried", attack_of(run, **more))
        return attempt("tried", {})[0]

    return add


def test_an_attack_that_returns_has_gained_something(tried: Any) -> None:
    assert tried(lambda canary: "much") == base.GAINED


@pytest.mark.parametrize("number", base.USUAL)
def test_what_the_system_refuses_is_refused(tried: Any, number: int) -> None:
    assert tried(raising(OSError(number, "no"))) == base.REFUSED


@pytest.mark.parametrize(
    "error", [OSError(errno.EINVAL, "?"), OSError("no number"), KeyError("x"), TypeError(), SystemExit(0), MemoryError()]
)
def test_an_attack_that_fails_in_another_way_is_broken(tried: Any, error: BaseException) -> None:
    assert tried(raising(error)) == base.BROKEN


def test_an_attack_may_say_that_there_was_nothing(tried: Any) -> None:
    assert tried(raising(Refused("nothing there"))) == base.REFUSED
    assert tried(raising(Absent("no such processor"))) == base.ABSENT


def test_a_memory_error_is_a_refusal_of_memory_bombs_only(tried: Any) -> None:
    assert tried(raising(MemoryError()), errors=(MemoryError,)) == base.REFUSED


class Scripted:
    """Workers that answer as they are told."""

    def __init__(self, *answers: tuple[Outcome, Any]) -> None:
        self._answers = answers

    async def run(self, task: BatchTask, on_results: OnResults) -> None:
        for place, (outcome, value) in enumerate(self._answers):
            on_results(BatchChunk(place, bytes((outcome,)), [msgspec.Raw(encode_value(value))], 1))


async def verdict(attack: Attack, outcome: Outcome, value: Any, runtime: str = "native") -> tuple[bool, str] | None:
    """(held, detail) of one attack whose unit ended so; None when it was not counted."""
    workers: Any = Scripted((outcome, value))
    if runtime == "command":
        found = await attack_by_commands(workers, [[attack]], FACTS, job=b"job")
    else:
        found = await attack_natively(workers, [attack], FACTS, job=b"job")
    return (found[0].held, found[0].detail) if found else None


QUIET, KILLER = attack_of(None), attack_of(None, ends=True)
DIED = {"type": "Died", "message": "the process was killed", "traceback": ""}


@pytest.mark.parametrize(
    ("attack", "outcome", "value", "held"),
    [
        (QUIET, Outcome.OK, ["refused", "EPERM"], True),
        (QUIET, Outcome.OK, ["gained", "a secret"], False),
        (QUIET, Outcome.OK, ["broken", "TypeError"], False),
        (QUIET, Outcome.OK, ["whatever", "?"], False),
        (QUIET, Outcome.OK, "nonsense", False),
        (QUIET, Outcome.DIED, DIED, False),
        (QUIET, Outcome.RAISED, DIED, False),
        (QUIET, Outcome.TIMED_OUT, DIED, False),
        (KILLER, Outcome.DIED, DIED, True),
        (KILLER, Outcome.TIMED_OUT, DIED, True),
        (KILLER, Outcome.OK, ["gained", "all memory"], False),
    ],
)
async def test_only_what_was_clearly_refused_counts_as_held(attack: Attack, outcome: Outcome, value: Any, held: bool) -> None:
    found = await verdict(attack, outcome, value)
    assert found is not None
    assert found[0] is held, found[1]


@pytest.mark.parametrize(
    ("attack", "outcome", "value", "held"),
    [
        (QUIET, Outcome.OK, [0, b'[["tried", "refused", "EPERM"]]', ""], True),
        (QUIET, Outcome.OK, [0, b'[["tried", "gained", "x"]]', ""], False),
        (QUIET, Outcome.OK, [0, b"", ""], False),
        (QUIET, Outcome.OK, [0, b"[]", ""], False),
        (QUIET, Outcome.OK, [0, b"[[1], 2]", ""], False),
        (KILLER, Outcome.RAISED, {"type": "CommandFailed", "message": "killed by SIGSYS"}, True),
        (KILLER, Outcome.RAISED, {"type": "CommandFailed", "message": "exit status 1: Traceback"}, False),
        (KILLER, Outcome.RAISED, {"type": "FileNotFoundError", "message": "the command was not found"}, False),
        (KILLER, Outcome.DIED, DIED, True),
        (QUIET, Outcome.DIED, DIED, False),
    ],
)
async def test_programs_are_judged_by_what_they_print(attack: Attack, outcome: Outcome, value: Any, held: bool) -> None:
    found = await verdict(attack, outcome, value, "command")
    assert found is not None
    assert found[0] is held, found[1]


async def test_what_a_machine_does_not_have_is_not_counted() -> None:
    assert await verdict(QUIET, Outcome.OK, ["absent", "no such processor"]) is None


def test_attacks_that_spoil_a_process_come_last() -> None:
    quick, killers = lanes(OWN)
    spoiling = [attack.spoils for attack in quick]
    assert spoiling == sorted(spoiling)
    assert not any(attack.ends for attack in quick)
    assert sorted(attack.name for lane in (quick, *killers) for attack in lane) == sorted(ATTACKS)


def test_the_source_of_a_unit_needs_nothing_but_python() -> None:
    place: dict[str, Any] = {}
    compile(program_source("{}"), "program", "exec")
    exec(compile(unit_source().replace("_unpack({", "_texts = ({", 1), "unit", "exec"), place)  # Not unpacked: this process has them.
    assert place["work"]({"attack": "use-inherited-environment", "canary": {"token": "no such token"}})[0] == base.REFUSED


@pytest.mark.parametrize("runtime", ["native", "wasm", "python"])
def test_every_attack_is_described(runtime: str) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/doctor.md").read_text(encoding="utf-8")
    section = page.split(f"## `{runtime}`")[1].split("\n## ")[0]
    names = {
        "native": [*ATTACKS, "outlive-everything", "leave-a-trace"],
        "wasm": [*(call.name for call in webassembly.CALLS), "spin", *modules.UNLOADABLE, "load-garbage", "tell-runs-apart"],
        "python": [*guest.NAMES, "tell-runs-apart"],
    }
    described = {
        name for line in section.splitlines() if line.startswith("| `") for name in re.findall(r"`([a-z0-9-]+)`", line.split("|")[1])
    }
    assert described == set(names[runtime])


@pytest.fixture
def canaries() -> Iterator[Canaries]:
    canaries = Canaries(BOUNDS)
    canaries.start()
    yield canaries
    canaries.close()


def reach(canaries: Canaries, what: str) -> None:
    facts = canaries.facts
    kinds: dict[str, tuple[int, int, Any]] = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", facts["tcp_port"])),
        "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", facts["udp_port"])),
        "stream": (socket.AF_UNIX, socket.SOCK_STREAM, facts["path_socket"]),
        "datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, facts["datagram_socket"]),
    }
    family, kind, address = kinds[what]
    with socket.socket(family, kind) as conversation:
        conversation.connect(address)
        conversation.send(b"attack")


def test_untouched_targets_show_no_trace(canaries: Canaries) -> None:
    assert canaries.breaches() == {}


@pytest.mark.parametrize("what", ["tcp", "udp", "stream", "datagram"])
def test_a_listener_that_was_reached_is_a_trace(canaries: Canaries, what: str) -> None:
    reach(canaries, what)
    assert list(canaries.breaches()) == [f"trace-listener-{what}"]


@pytest.mark.parametrize("what", ["content", "mode", "times", "new file", "priority"])
def test_a_changed_target_is_a_trace(canaries: Canaries, what: str) -> None:
    place = Path(canaries.facts["writable_file"])
    if what == "content":
        place.write_text("changed")
    elif what == "mode":
        place.chmod(0o600)
    elif what == "times":
        os.utime(place, (1, 1))
    elif what == "new file":
        (Path(canaries.facts["open_folder"]) / "planted").write_text("x")
    else:
        os.setpriority(os.PRIO_PROCESS, canaries.facts["process"], 3)
    assert list(canaries.breaches()) == ["trace-file" if what == "new file" else "trace-target"]


def test_a_killed_process_is_a_trace(canaries: Canaries) -> None:
    os.kill(canaries.facts["process"], 9)
    os.waitid(os.P_PID, canaries.facts["process"], os.WEXITED | os.WNOWAIT)
    assert list(canaries.breaches()) == ["trace-process"]


def test_nothing_of_the_targets_stays() -> None:
    canaries = Canaries(BOUNDS)
    canaries.start()
    facts = canaries.facts
    assert canaries.token in os.environ.values()
    canaries.close()
    canaries.close()
    assert canaries.token not in os.environ.values()
    assert not Path(facts["open_file"]).parent.exists()
    assert not Path(facts["home_file"]).parent.exists()
    assert survivors(canaries.token) == []


def test_a_home_that_cannot_be_written_gets_its_target_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    canaries = Canaries(BOUNDS)
    canaries.start()
    assert Path(canaries.facts["home_file"]).exists()
    canaries.close()


def test_what_a_killed_self_test_left_in_the_home_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    old, running_one = tmp_path / ".p2pgrid-selftest-99999999-x", tmp_path / f".p2pgrid-selftest-{os.getpid()}-y"
    old.mkdir()
    running_one.mkdir()
    canaries = Canaries(BOUNDS)
    canaries.start()
    canaries.close()
    assert os.listdir(tmp_path) == [running_one.name]


async def test_nothing_is_attacked_without_a_cage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*arguments: Any) -> list[Any]:
        raise AssertionError("it was attacked")

    monkeypatch.setattr(running, "attack", never)
    reports = await run_selftest(PoolPolicy(cage="bare"), InlineOffload(), runtimes=("native", "command"))
    assert [(report.runtime, report.level, report.holds) for report in reports] == [("native", "none", False), ("command", "none", False)]
    assert "no cage" in reports[0].reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RefusedError("no cage holds", reason=Reason.NO_CAGE), "no cage holds"),
        (OSError(28, "No space left on device"), "it cannot be tested"),
        (TimeoutError(), "did not end within"),
    ],
)
async def test_a_test_that_cannot_be_made_is_a_runtime_that_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    async def failing(*arguments: Any) -> list[Any]:
        raise error

    async def level(*arguments: Any) -> str:
        return "namespaces"

    monkeypatch.setattr(running, "attack", failing)
    monkeypatch.setattr(running, "_level", level)
    (report,) = await run_selftest(PoolPolicy(), InlineOffload(), runtimes=("native",))
    assert not report.holds
    assert reason in report.reason


async def test_an_unknown_runtime_and_a_missing_runner_do_not_hold() -> None:
    reports = await run_selftest(PoolPolicy(), InlineOffload(), runtimes=("cobol", "python"))
    assert [report.holds for report in reports] == [False, False]
    assert reports[1].reason == "the Python runner is not here"


async def test_the_cage_of_this_machine_holds() -> None:
    offload = ThreadOffload()
    (report,) = await run_selftest(PoolPolicy(), offload, runtimes=("native",))
    await offload.close()
    needs(report.attempts, f"there is no cage here: {report.reason}")
    assert report.holds, report.reason
    assert report.level in ("namespaces", "landlock")
    assert len(report.attempts) > 60
    assert len({attempt.name for attempt in report.attempts}) == len(report.attempts)


async def test_a_self_test_that_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setenv("HOME", str(tmp_path))
    offload = ThreadOffload()
    task = asyncio.get_running_loop().create_task(run_selftest(PoolPolicy(), offload, runtimes=("native",)))
    async with asyncio.timeout(30):
        while not os.listdir(tmp_path) and not task.done():
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await offload.close()
    assert os.listdir(tmp_path) == []
    assert survivors(f"\0{os.getpid()}\0") == []  # As workers are told who their parent is.
