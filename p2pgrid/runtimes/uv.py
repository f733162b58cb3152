"""Running uv: found where it was installed, in an environment of its own, bounded in time and output, gone with its group.

uv reads settings from files of the folder it is in, of the user and of the system; none of them counts here. What a submitter's
own environment says of indexes and proxies counts at the submitter; at a worker nothing does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from p2pgrid.errors import ConfigError, TryAgainError
from p2pgrid.model.reasons import Reason

OUTPUT_BYTES_MAX = 64 << 10
NICENESS = 10
KILL_S = 3.0


class Ran(NamedTuple):
    """How a run of uv ended."""

    code: int
    output: str
    """What it said, at most 64 KiB of it."""


def find_uv() -> str:
    """The path of uv. Raises ConfigError when it is not installed."""
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, OSError):
        found = shutil.which("uv")
    if found is None:
        raise ConfigError("uv is not installed, and packages of jobs are set up with it", hint="pip install uv")
    return found


def bare_environment(folder: Path) -> dict[str, str]:
    """Variables for a run that must depend on nothing of its surroundings. ``folder`` is what it may fill."""
    return {"PATH": os.defpath, "HOME": str(folder), "UV_CACHE_DIR": str(folder / "uv"), "LC_ALL": "C.UTF-8"}


async def run_uv(arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout_s: float) -> Ran:
    """Run uv in ``folder``; a run that is cancelled or takes longer is killed with all its children.

    Raises ConfigError when there is no uv, TryAgainError when it cannot be started or takes too long.
    """
    fixed = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "UV_NO_CONFIG": "1", "NO_COLOR": "1"}
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            find_uv(),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**environment, **fixed},
            cwd=folder,
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except OSError as error:
        raise TryAgainError(f"uv cannot be started: {error.strerror}", reason=Reason.BUSY) from error
    except asyncio.CancelledError:
        # Half started, it would be ended without its children.
        with suppress(OSError):
            await _end(await starting)
        raise
    try:
        _give_way(process.pid)
        async with asyncio.timeout(timeout_s):
            output = await _read(process)
            code = await process.wait()
    except TimeoutError as error:
        raise TryAgainError(f"uv took longer than {timeout_s:g} s", reason=Reason.TIMEOUT) from error
    finally:
        await _end(process)
    return Ran(code, output)


def _give_way(number: int) -> None:
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, number, NICENESS)


async def _read(process: asyncio.subprocess.Process) -> str:
    """What it writes; all is read so that it never waits, and the first 64 KiB are kept."""
    assert process.stdout is not None
    kept = bytearray()
    while piece := await process.stdout.read(1 << 16):
        kept += piece[: OUTPUT_BYTES_MAX - len(kept)]
    return kept.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Make sure that it and its children are gone."""
    if process.returncode is None:
        with suppress(OSError, AttributeError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            process.kill()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), KILL_S)
