"""Command units, each run by a real runner process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.errors import BadDataError, MalformedError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.values import FileRef, encode_value
from p2pgrid.runtimes.command import CommandResult, decode_command_result, encode_command
from p2pgrid.runtimes.tasks import Outcome, PoolPolicy

ALL_BYTES = bytes(range(256)) * 300


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_stdout_is_returned_bit_for_bit(run_commands: Any) -> None:
    ended = await run_commands([encode_command(["cat"], stdin=ALL_BYTES), encode_command(["printf", "a\\n\\n"])])
    assert [decode_command_result(payload).stdout for chunk in ended.chunks for payload in chunk.payloads] == [ALL_BYTES, b"a\n\n"]
    assert ended.outcomes == [Outcome.OK] * 2


async def test_status_and_stderr_come_along(run_commands: Any) -> None:
    ended = await run_commands([encode_command(["sh", "-c", "echo out; echo warn >&2"])])
    assert decode_command_result(ended.chunks[0].payloads[0]) == CommandResult(0, b"out\n", "warn\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sh", "-c", "echo bad >&2; exit 3"], "exit status 3: bad"),
        (["sh", "-c", "kill -SEGV $$"], "killed by SIGSEGV"),
        (["no-such-command-anywhere"], "'no-such-command-anywhere' was not found"),
        (["/usr/bin"], "could not be started"),
    ],
)
async def test_a_command_that_fails_is_raised_with_its_reason(run_commands: Any, argv: list[str], said: str) -> None:
    ended = await run_commands([encode_command(argv), encode_command(["true"])])
    assert ended.outcomes == [Outcome.RAISED, Outcome.OK]
    assert said in ended.values[0]["message"]


async def test_arguments_are_never_seen_by_a_shell(run_commands: Any) -> None:
    ended = await run_commands([encode_command(["echo", "$HOME; `id` *", "'"])])
    assert ended.values[0][1] == b"$HOME; `id` * '\n"


async def test_no_stdin_is_an_empty_one(run_commands: Any) -> None:
    ended = await run_commands([encode_command(["cat"]), encode_command(["cat"], stdin=b"")])
    assert [value[1] for value in ended.values] == [b"", b""]


async def test_input_that_the_command_does_not_read_is_no_error(run_commands: Any) -> None:
    ended = await run_commands([encode_command(["true"], stdin=bytes(1 << 20))])
    assert ended.outcomes == [Outcome.OK]


async def test_files_are_placed_read_only_as_copies(run_commands: Any, tmp_path: Path) -> None:
    stored = tmp_path / "stored"
    stored.write_bytes(ALL_BYTES)
    reference = FileRef(BlobId(b"b" * 32), len(ALL_BYTES), "in.bin")
    command = encode_command(["sh", "-c", "sha256sum < sub/in.bin; stat -c %a sub/in.bin"], files=[(reference, "sub/in.bin")])
    spoil = encode_command(["sh", "-c", "chmod 600 x; echo spoilt > x"], files=[(reference, "x")])
    ended = await run_commands([command, spoil], files={reference.blob: stored})
    assert ended.values[0][1].split() == [hashlib.sha256(ALL_BYTES).hexdigest().encode(), b"-", b"444"]
    assert ended.outcomes[1] == Outcome.OK
    assert stored.read_bytes() == ALL_BYTES


@pytest.mark.parametrize("place", ["/etc/x", "../x", "a/../../x", "", "a//b", "a/./b", "a\\b", "x\0y"])
async def test_places_outside_of_the_folder_are_refused_on_both_sides(run_commands: Any, tmp_path: Path, place: str) -> None:
    reference = FileRef(BlobId(b"b" * 32), 1, "in.bin")
    with pytest.raises(BadDataError):
        encode_command(["true"], files=[(reference, place)])
    stored = tmp_path / "stored"
    stored.write_bytes(b"x")
    good = encode_command(["true"], files=[(reference, "P" * 8)])
    forged = good.replace(b"\xa8PPPPPPPP", encode_value(place))
    ended = await run_commands([forged], files={reference.blob: stored})
    assert ended.outcomes == [Outcome.RAISED]


async def test_each_command_starts_in_an_empty_folder(run_commands: Any) -> None:
    ended = await run_commands([encode_command(["sh", "-c", "ls -A; mkdir -p a/b; echo x > a/b/c"])] * 3)
    assert [value[1] for value in ended.values] == [b""] * 3


@pytest.mark.parametrize("pool_policy", [PoolPolicy(spare_s=0, cage="bare")])  # They leave notes outside.
async def test_a_late_command_is_ended_with_all_it_started(run_commands: Any, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    script = f"sleep 1000 & echo $! >> {note}; setsid sleep 1000 & echo $! >> {note}; echo $$ >> {note}; sleep 1000"
    ended = await run_commands([encode_command(["sh", "-c", script]), encode_command(["true"])], timeout_s=0.5)
    assert ended.outcomes == [Outcome.TIMED_OUT, Outcome.OK]
    pids = [int(word) for word in note.read_text().split()]
    assert len(pids) == 3
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("pool_policy", [PoolPolicy(spare_s=0, cage="bare")])  # They leave notes outside.
async def test_what_a_finished_command_left_running_is_ended_and_does_not_delay(run_commands: Any, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    ended = await run_commands([encode_command(["sh", "-c", f"setsid sleep 1000 & echo $! > {note}; echo done"])])
    assert ended.values[0][1] == b"done\n"
    assert not is_alive(int(note.read_text()))


async def test_endless_output_is_cut_off(run_commands: Any) -> None:
    ended = await run_commands(
        [encode_command(["yes"]), encode_command(["sh", "-c", "yes >&2 | head -c 1"])], result_bytes_max=100_000, timeout_s=2
    )
    assert ended.outcomes[0] == Outcome.TOO_LARGE
    assert ended.outcomes[1] in (Outcome.TIMED_OUT, Outcome.OK, Outcome.RAISED)


async def test_output_of_exactly_the_limit_is_fine(run_commands: Any) -> None:
    ended = await run_commands([encode_command(["head", "-c", "100000", "/dev/zero"])], result_bytes_max=100_000)
    assert ended.outcomes == [Outcome.OK]


async def test_inputs_that_are_no_command_are_refused(run_commands: Any) -> None:
    odd: list[Any] = [5, [], [[]], [["a\0b"]], [[1]], [["true"], "text"]]
    ended = await run_commands([encode_value(value) for value in odd])
    assert set(ended.outcomes) == {Outcome.RAISED}


def test_a_command_needs_a_program() -> None:
    for argv in ([], ["a\0b"]):
        with pytest.raises(BadDataError):
            encode_command(argv)


def test_a_foreign_result_is_checked() -> None:
    with pytest.raises(MalformedError):
        decode_command_result(b"\x01")
