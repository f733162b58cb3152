"""What every command needs: the home, an event loop, a channel to the node, sizes and ids as people write them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from p2pgrid.errors import P2PGridError, UsageError
from p2pgrid_cli.aside import aside
from p2pgrid_cli.interrupts import raise_them

if TYPE_CHECKING:
    import asyncio

    import msgspec
    from rich.console import Console

    from p2pgrid.client.channel import Channel
    from p2pgrid.model.ids import JobId
    from p2pgrid.store.home import Home

T = TypeVar("T")
PIPE_COLUMNS = 1000

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", envvar="P2PGRID_HOME", help="Folder of the node; several nodes can live on one machine.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def wall_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def home_of(folder: Path | None) -> Home:
    """The home that a command works with."""
    from p2pgrid.store.home import Home

    if folder is None:
        base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        folder = Path(base).expanduser() / "p2pgrid"
    return Home(folder.absolute(), os.urandom)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on uvloop where there is one."""
    try:
        return _run_async(work)
    finally:
        work.close()  # Ctrl-C may come before it was begun; then nobody else says that it is not wanted.


def _run_async(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    from p2pgrid_cli import logs

    logs.for_commands()
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        from uvloop import new_event_loop

        new_loop = new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.get_loop()
        raise_them()
        return runner.run(work)


def beside(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run the user's own code in a thread beside the loop.

    Unlike with ``asyncio.to_thread``, nobody waits for its end when the command is interrupted.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, raised = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
            raised = error
        with suppress(RuntimeError):  # The loop has gone, and with it whoever wanted to know.
            loop.call_soon_threadsafe(settle, result, raised)

    threading.Thread(target=run, daemon=True, name="user-code").start()
    return future


def with_channel(folder: Path | None, use: Callable[[Channel], Awaitable[T]]) -> T:
    """Open the owner's channel to the running node of a home, use it, and close it."""

    async def opened() -> T:
        from p2pgrid.client.channel import Channel

        async with await Channel.open(home_of(folder), wall_ms) as channel:
            return await use(channel)

    return run_async(opened())


@contextmanager
def interruptible() -> Iterator[None]:
    """While something blocks the event loop, as writing to a pipe that nobody reads: Ctrl-C ends it.

    The loop's own handler only asks the task to end when it next waits, and a write that goes on does not wait.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    """A message for people, on stderr. Others may have written parts of it: only what can be printed reaches the terminal."""
    from p2pgrid.logs import sayable

    with aside():
        sys.stderr.write(sayable(text, keep="\n") + "\n")
        sys.stderr.flush()


def print_line(text: str) -> None:
    """A line of data, on stdout."""
    with interruptible():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def show_error(error: P2PGridError) -> None:
    """One clear line and a hint."""
    say(f"p2pgrid: {error.message}")
    if error.hint:
        say(f"  hint: {error.hint}")


def console() -> Console:
    """Where tables go. A file or a pipe has all the width that a table wants, unless COLUMNS says otherwise."""
    from rich.console import Console

    said = os.environ.get("COLUMNS", "")
    columns = int(said) if said.isdecimal() and 0 < int(said) < PIPE_COLUMNS else PIPE_COLUMNS
    return Console() if sys.stdout.isatty() else Console(width=columns, highlight=False)


def print_document(document: msgspec.Struct) -> None:
    """A document of p2pgrid_cli.documents on stdout."""
    import msgspec

    print_json(msgspec.to_builtins(document))


def print_json(document: Any) -> None:
    """One document on stdout. Control characters are escaped, also those that JSON would let stand."""
    import json
    import re

    text = json.dumps(document, indent=2, ensure_ascii=False)
    print_line(re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found.group()):04x}", text))


def size_text(size_bytes: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1000 or unit == "GiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} {unit}" if size_bytes >= 100 or unit == "B" else f"{size_bytes:.3g} {unit}"


async def job_named(channel: Channel, text: str) -> JobId:
    """A job by its full id, or by a beginning of it that only one job known here has."""
    from p2pgrid.model.ids import JobId, StatementId, from_text, to_text

    if len(text) >= 52:
        return JobId(StatementId(from_text(text, what="job id")))
    found = [line.job for line in await channel.jobs() if to_text(line.job).startswith(text.lower())]
    if len(found) == 1 and len(text) >= 4:
        return JobId(StatementId(found[0]))
    if found:
        raise UsageError(f"'{text}' is the beginning of {len(found)} jobs", hint="give more of the id")
    raise UsageError(f"no job here begins with '{text}'", hint="give the whole id, as printed when the job was submitted")
