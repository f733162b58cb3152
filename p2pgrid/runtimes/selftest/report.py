"""What a self-test says, and the last one kept on the disk: it holds for the machine, the versions and the user that it was made with."""

from __future__ import annotations

import os
import platform
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

FILE_NAME = "selftest.json"
_REPORT_BYTES_MAX = 1 << 20


class Attempt(msgspec.Struct, frozen=True):
    """One attack on one cage."""

    name: str
    held: bool
    detail: str = ""
    accepted: bool = False
    """Not held, as it is known of this level: it does not count against the cage."""


class RuntimeReport(msgspec.Struct, frozen=True):
    """What came of all attacks on the cage of one runtime."""

    runtime: str
    level: str
    """``namespaces``, ``landlock`` or ``bare``; ``none`` when no cage could be tested."""
    holds: bool
    reason: str = ""
    """Why it does not hold; empty when it does."""
    attempts: tuple[Attempt, ...] = ()


class ReportKey(msgspec.Struct, frozen=True):
    """What a report depends on. Another key, and the cages are to be attacked again."""

    version: str
    python: str
    wasmtime: str
    kernel: str
    uid: int
    level: str
    """What the owner asked for: ``auto``, or one level."""


class _Saved(msgspec.Struct, frozen=True):
    key: ReportKey
    reports: tuple[RuntimeReport, ...]


def report_of(runtime: str, level: str, attempts: Iterable[Attempt]) -> RuntimeReport:
    """The report of these attempts: the cage holds when there were any, and each of them was held or is known of the level."""
    found = tuple(attempts)
    failed = [attempt for attempt in found if not attempt.held and not attempt.accepted]
    if not found:
        return RuntimeReport(runtime, level, False, "nothing was attempted")
    if not failed:
        return RuntimeReport(runtime, level, True, "", found)
    names = ", ".join(attempt.name for attempt in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return RuntimeReport(runtime, level, False, f"{len(failed)} of {len(found)} attacks not held: {names}{more}", found)


def holding(reports: Iterable[RuntimeReport]) -> frozenset[str]:
    """The runtimes whose cage holds."""
    return frozenset(report.runtime for report in reports if report.holds)


def current_key(level: str) -> ReportKey:
    """The key of this machine, now. ``level``: the policy's."""
    from p2pgrid import __version__

    uid = os.getuid() if hasattr(os, "getuid") else -1
    return ReportKey(__version__, platform.python_version(), _wasmtime_version(), f"{platform.system()} {platform.release()}", uid, level)


def _wasmtime_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("wasmtime")
    except PackageNotFoundError:
        return ""


def encode_reports(reports: Iterable[RuntimeReport], key: ReportKey) -> bytes:
    """The bytes to keep."""
    return msgspec.json.format(msgspec.json.encode(_Saved(key, tuple(reports))), indent=1) + b"\n"


def decode_reports(data: bytes, key: ReportKey) -> tuple[RuntimeReport, ...]:
    """The reports, if they are of this key; none otherwise, and none for bytes that are something else."""
    try:
        saved = msgspec.json.decode(data, type=_Saved)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ()
    return saved.reports if saved.key == key else ()


def save_reports(folder: Path, reports: Iterable[RuntimeReport], key: ReportKey) -> bool:
    """Keep them in a folder, which is made. False when the disk refuses: then the next start attacks again before it offers anything."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, beside = tempfile.mkstemp(prefix=FILE_NAME, dir=folder)
        try:
            with open(number, "wb") as file:
                file.write(encode_reports(reports, key))
            os.replace(beside, folder / FILE_NAME)
        except OSError:
            os.unlink(beside)
            raise
    except OSError:
        return False
    return True


def load_reports(folder: Path, key: ReportKey) -> tuple[RuntimeReport, ...]:
    """The last reports kept in a folder, if they are of this key and nobody else could have written them."""
    try:
        with (folder / FILE_NAME).open("rb") as file:
            if not (_is_ours(os.fstat(file.fileno())) and _is_ours(os.stat(folder))):
                return ()
            data = file.read(_REPORT_BYTES_MAX)
    except OSError:
        return ()
    return decode_reports(data, key)


def _is_ours(state: os.stat_result) -> bool:
    """A report that somebody else can write could say that a cage holds."""
    return not hasattr(os, "geteuid") or (state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
