"""Showing what a job came to: values on stdout in order, result files into a folder, failures on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from p2pgrid.errors import BadDataError, RefusedError, TryAgainError
from p2pgrid_cli import exits
from p2pgrid_cli.aside import aside
from p2pgrid_cli.common import interruptible, print_document, say

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.client.running import Outcome
    from p2pgrid.model.ids import JobId
    from p2pgrid.model.script import JobScript
    from p2pgrid.model.values import FileRef
    from p2pgrid_cli.documents.results import Results

PLAIN_DEPTH = 50


class Shown:
    """Where values go: printed at once, or gathered for ``--json`` and a local ``finish``."""

    def __init__(self, gather: bool) -> None:
        self.gather = gather
        self.values: list[Any] = []
        self.files: dict[str, FileRef] = {}

    def take(self, number: int, value: Any) -> None:
        """A value, in order."""
        note_files(value, self.files)
        if self.gather:
            self.values.append(value)
        else:
            with interruptible():
                print_value(value, sys.stdout.buffer)


def print_value(value: Any, out: BinaryIO) -> None:
    """Text as it is, bytes raw, nothing for None, everything else as a line of JSON."""
    if value is None:
        return
    if isinstance(value, bytes):
        out.write(value)
    elif isinstance(value, str):
        out.write(value.encode())
        if not value.endswith("\n"):
            out.write(b"\n")
    else:
        out.write(json.dumps(plain(value), ensure_ascii=False).encode() + b"\n")
    out.flush()


def plain(value: Any, depth: int = PLAIN_DEPTH) -> Any:
    """A value as JSON can carry it: bytes as base64, files as their names."""
    import base64

    from p2pgrid.model.ids import to_text
    from p2pgrid.model.values import FileRef

    if depth == 0:
        return str(value)
    if isinstance(value, FileRef):
        return {"file": value.name, "blob": to_text(value.blob), "size_bytes": value.size_bytes}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth - 1) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def note_files(value: Any, found: dict[str, FileRef], depth: int = PLAIN_DEPTH) -> None:
    """Collect the result files in a value, under names of their own."""
    from p2pgrid.model.values import FileRef

    if isinstance(value, FileRef):
        name, number = value.name, 1
        while name in found and found[name].blob != value.blob:
            number += 1
            stem, dot, rest = value.name.partition(".")
            name = f"{stem}-{number}{dot}{rest}"
        found[name] = value
    elif depth and isinstance(value, list | tuple):
        for item in value:
            note_files(item, found, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            note_files(item, found, depth - 1)


async def show_results(
    channel: Channel,
    job: JobId,
    *,
    wait: bool,
    output: Path | None,
    as_json: bool,
    progress: Any,
    finish: tuple[JobScript, Path] | None = None,
    stays: bool = True,
) -> int:
    """Follow a job and show it; returns the exit code. ``stays``: whether its results can be asked for again."""
    from p2pgrid.client.running import collect

    shown = Shown(gather=as_json or finish is not None)

    def take(number: int, value: Any) -> None:
        with aside():
            shown.take(number, value)

    prints = progress.live and not shown.gather and sys.stdout.isatty()
    outcome = await collect(channel, job, wait=wait, on_value=take if prints else shown.take, on_event=progress.event)
    progress.stop()
    await save_files(channel, job, shown.files, output)
    if finish is not None and not outcome.line.failed and outcome.line.state == "done":
        finished = _finish(finish, shown.values, outcome)
        shown.values = [finished]
        if not as_json:
            with interruptible():
                print_value(finished, sys.stdout.buffer)
    if as_json:
        print_document(document(job, outcome, shown))
    report(job, outcome, stays=stays)
    return code_of(outcome)


def code_of(outcome: Outcome) -> int:
    """0 when every unit has its value."""
    if outcome.line.state == "running":
        raise TryAgainError("the job has not ended yet", hint="wait for it with --wait")
    return exits.UNIT_FAILED if outcome.line.failed or outcome.line.state != "done" else exits.OK


def _finish(finish: tuple[JobScript, Path], values: list[Any], outcome: Outcome) -> Any:
    from p2pgrid.client.jobs import load_script

    script, path = finish
    taken = values[0] if script.has_reduce and values else values
    try:
        return load_script(script, path).finish(taken)
    except Exception as error:
        raise BadDataError(f"{path}: finish() failed: {type(error).__name__}: {error}") from error


def document(job: JobId, outcome: Outcome, shown: Shown) -> Results:
    """The document of ``run --json`` and ``results --json``."""
    from p2pgrid_cli.documents.results import results_of

    return results_of(job, outcome, [plain(value) for value in shown.values])


def report(job: JobId, outcome: Outcome, *, stays: bool = True) -> None:
    """What went wrong, on stderr: the first failures with their tracebacks, the others counted."""
    from p2pgrid.model.ids import short, to_text
    from p2pgrid.model.reasons import Reason

    line = outcome.line
    for failure in outcome.failures:
        say(f"unit {failure.number} failed ({failure.reason}): {failure.type + ': ' if failure.type else ''}{failure.message}")
        if failure.traceback:
            say("  " + failure.traceback.strip().replace("\n", "\n  "))
    # That the traceback is to be read need not be said below it.
    for reason in dict.fromkeys(failure.reason for failure in outcome.failures if not failure.traceback or failure.reason != Reason.RAISED):
        if reason.next_step:
            say(f"  hint: {reason.next_step}")
    more = line.failed - len(outcome.failures)
    if more > 0:
        say(f"... and {more} more units failed")
    if line.failed:
        if line.final != "map":
            say(f"there is no result of {line.final}(), because {line.failed} of {line.units} units failed")
        again = f": p2pgrid results {to_text(job)}" if stays and line.done and line.final == "map" else ""
        say(f"{line.done} of {line.units} units have results{again}")
    if line.runtime == "auto" and outcome.fuel:
        counted = f"{len(outcome.fuel)} of {outcome.results} results"
        say(f"{counted} come from units that ran as python: their nodes take no native code of yours")
    if line.conflicts:
        say(f"{line.conflicts} units have two different decisions: is work() deterministic?")
    if line.state == "cancelled":
        say(f"job {short(job)} was cancelled")
    if outcome.note:
        say(outcome.note)


async def save_files(channel: Channel, job: JobId, files: dict[str, FileRef], output: Path | None) -> None:
    """Fetch result files into a folder; names never lead out of it."""
    from p2pgrid.model.ids import BlobId, short
    from p2pgrid.store.paths import safe_join

    if not files:
        return
    folder = output or Path(f"results-{short(job)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, reference in files.items():
            target = safe_join(folder, name)
            partial = target.with_name(f".{target.name}.part")
            with partial.open("wb") as file:
                await channel.get(BlobId(reference.blob), file)
            partial.replace(target)
    except OSError as error:
        raise RefusedError(f"result files cannot be written to '{folder}': {error.strerror}", hint="choose a folder with -o") from error
    say(f"{len(files)} result file{'s' if len(files) != 1 else ''} in {folder}")
