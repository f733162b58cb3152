"""``run``: a script or a command over many items, here or on the grid."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pgrid.errors import BadDataError, P2PGridError, RefusedError, UnreachableError, UsageError
from p2pgrid.model.sizes import parse_size
from p2pgrid_cli import exits
from p2pgrid_cli.common import HomeOption, JsonOption, beside, home_of, print_document, print_line, run_async, say, wall_ms
from p2pgrid_cli.completion import complete_runtime, complete_script
from p2pgrid_cli.grouping import GroupedCommand
from p2pgrid_cli.interrupts import raise_them

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.client.jobs import JobBuilder, JobOptions, Plan
    from p2pgrid.model.ids import JobId
    from p2pgrid.model.script import JobScript
    from p2pgrid.node import Node
    from p2pgrid_cli.localgrid import LocalNodes
    from p2pgrid_cli.progress import Progress

ITEMS = ":::"
OVER = "--over"
WASM_MAGIC = b"\0asm\1\0\0\0"
STDIN = "-"
"""In the place of all items: they are the lines of stdin, read to its end."""
CANCEL_S = 5.0
TAKEN_S = (0.0, 0.05, 0.1, 0.2)
"""A node that is perhaps just taking a job is asked to cancel it after each of these times."""
WHERE, EACH_UNIT = "Where it runs", "Each unit"
"""Groups of options."""


class RunCommand(GroupedCommand):
    """Options come before the script or ``--``; all words after it are left as they are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split at ``--`` if it comes before any script."""
        split = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:split])
        behind = args[split + 1 :]
        if ctx.params.get("words"):
            ctx.params["words"] = [*ctx.params["words"], *args[split:]]
        else:
            ctx.params["words"] = behind
            ctx.meta["p2pgrid.command"] = split < len(args)
        return rest


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=RunCommand, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)


@dataclass(frozen=True)
class Request:
    """What the words of the command line mean."""

    script: JobScript | None
    path: Path
    arguments: list[str]
    over: list[str] | None
    command: list[str]
    items: list[str]


def run(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="SCRIPT.py [ARGS]... | -- COMMAND {} ::: ITEM...", autocompletion=complete_script)
    ] = None,
    local: Annotated[
        int | None,
        typer.Option(min=1, max=64, rich_help_panel=WHERE, help="An embedded grid of this many nodes on this machine, gone afterwards."),
    ] = None,
    quorum: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, rich_help_panel=EACH_UNIT, help="Equal answers that each unit needs, from as many workers. Default: 1."
        ),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, max=64, rich_help_panel=EACH_UNIT, help="Copies of each blob of the job. Default: 3.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, rich_help_panel=EACH_UNIT, help="Seconds that one unit may take. Default: 3600.")
    ] = None,
    memory: Annotated[str | None, typer.Option(rich_help_panel=EACH_UNIT, help="Memory that one unit may take, as 512M.")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=WHERE,
            help="auto, native, python, wasm or command. Default: auto, native where members trust you, else python.",
            autocompletion=complete_runtime,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", rich_help_panel=WHERE, help="Print the job's id and return; the grid goes on.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for result files. Default: ./results-ID.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Run work(item) of a script, or a command, on many items. The results go to stdout, in order.

    Without a grid it computes on this machine. Options come before the script; all behind it is for the script.
    """
    request = _understand(words or [], bool(context.meta.get("p2pgrid.command")))
    asked = _runtime(request, runtime)
    options = _options(request.script, quorum, replicas, timeout, memory)
    nodes = local if local is not None else request.script.options.local if request.script else None
    detach = detach or bool(request.script and request.script.options.detach)
    if detach and nodes:
        raise UsageError("--detach and --local exclude one another", hint="a local grid is gone when the command ends")
    local_nodes = _start_local(nodes, options.quorum) if nodes else None
    code = run_async(_run(request, asked, options, local_nodes, detach, output, as_json, home))
    if code:
        raise typer.Exit(code)


def _understand(words: list[str], command: bool) -> Request:
    """Tell scripts from commands. Raises UsageError, or BadDataError for an unusable script."""
    from p2pgrid.model.script import parse_script

    if not words:
        raise UsageError("nothing to run", hint="p2pgrid run SCRIPT.py, or p2pgrid run -- COMMAND {} ::: ITEM...")
    if command or (ITEMS in words and not words[0].endswith(".py")):
        if ITEMS not in words:
            raise UsageError("a command needs items", hint="p2pgrid run -- COMMAND {} ::: ITEM...")
        split = words.index(ITEMS)
        if not words[:split]:
            raise UsageError("no command before ':::'", hint="p2pgrid run -- COMMAND {} ::: ITEM...")
        return Request(None, Path(), [], None, words[:split], words[split + 1 :])
    if words[0].startswith("-"):
        raise UsageError(f"no such option: {words[0]}", hint="p2pgrid run --help")
    path = Path(words[0])
    if path.suffix == ".wasm":
        return _module(path, words[1:])
    try:
        source = path.read_bytes()
    except OSError as error:
        hint = "give the path of a Python file that defines work(item)"
        raise UsageError(f"cannot read the script '{path}': {error.strerror}", hint=hint) from error
    arguments, over = _items(words[1:])
    script = parse_script(source, path.name)
    unused = arguments if over is not None else [word for word in arguments if not script.has_inputs and word.startswith("--")]
    if unused:
        hint = "options of 'p2pgrid run' come before the script, items behind --over"
        raise UsageError(f"{path.name} has no use for '{unused[0]}'", hint=hint)
    return Request(script, path, arguments, over, [], [])


def _items(words: list[str]) -> tuple[list[str], list[str] | None]:
    """Arguments, and the items behind ``--over`` if there are any."""
    if OVER not in words:
        return words, None
    split = words.index(OVER)
    items = words[split + 1 :]
    return words[:split], sys.stdin.read().splitlines() if items == [STDIN] else items


def _module(path: Path, words: list[str]) -> Request:
    """A WebAssembly module over items. Raises UsageError, or BadDataError for a file that is no module."""
    arguments, items = _items(words)
    if items is None:
        raise UsageError(f"{path.name} needs items", hint=f"p2pgrid run {path.name} [ARGS]... --over ITEM...")
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise UsageError(f"cannot read the module '{path}': {error.strerror}", hint="give the path of a .wasm file") from error
    if magic != WASM_MAGIC:
        kind = "a component" if magic[:4] == WASM_MAGIC[:4] else "no WebAssembly"
        raise BadDataError(f"{path.name} is {kind}", hint="a core module for wasm32-wasi (WASI preview 1) is wanted")
    return Request(None, path, arguments, items, [], items)


def _options(script: JobScript | None, quorum: int | None, replicas: int | None, timeout: float | None, memory: str | None) -> JobOptions:
    """Flags over the script's header over defaults."""
    from p2pgrid.client.jobs import JobOptions
    from p2pgrid.model.script import ScriptOptions

    said = script.options if script else ScriptOptions()
    if said.quorum == "auto":
        raise UsageError("quorum = 'auto' is not there yet", hint="give a number")
    default = JobOptions()
    wanted = memory if memory is not None else said.memory
    return JobOptions(
        quorum=quorum or said.quorum or default.quorum,
        replicas=replicas or said.replicas or default.replicas,
        timeout_s=timeout or said.timeout or default.timeout_s,
        memory_bytes=parse_size(str(wanted)) if wanted is not None else 0,
        attempts=said.attempts or default.attempts,
    )


def _runtime(request: Request, flag: str | None) -> str:
    """What the user asks for. Raises UsageError for a runtime that does not fit what is to be run."""
    own = "command" if request.command else "wasm" if request.script is None else None
    asked = flag or (request.script.options.runtime if request.script else None) or own or "auto"
    fitting = (own, "auto") if own else ("auto", "native", "python")
    if asked not in fitting:
        known = asked in ("auto", "native", "python", "wasm", "command")
        what = "a command" if own == "command" else "a module" if own else "a script"
        raise UsageError(
            f"{what} cannot run as '{asked}'" if known else f"'{asked}' is no runtime",
            hint=f"use one of: {', '.join(fit for fit in fitting if fit)}",
        )
    if asked == "python" and request.script is not None and request.script.dependencies:
        raise UsageError(
            f"{request.path.name} has dependencies, and the 'python' runtime has the standard library only",
            hint="use --runtime native, or drop the dependencies",
        )
    return asked


def _check_quorum(quorum: int, nodes: int) -> None:
    """A grid that is made for this command does not grow: what it cannot do is said at once."""
    if quorum > nodes:
        there = "there is one" if nodes == 1 else f"there are {nodes}"
        raise UsageError(f"a quorum of {quorum} needs as many nodes, and {there}", hint=f"use --local {quorum}, or join a grid")


def _start_local(nodes: int, quorum: int) -> LocalNodes:
    """Start the processes of a local grid, before this process has threads or an event loop."""
    import p2pgrid.client
    import p2pgrid.node  # noqa: F401 - what is imported here, the forked nodes need not import again
    from p2pgrid_cli.localgrid import LocalNodes

    _check_quorum(quorum, nodes)
    raise_them()
    return LocalNodes(nodes)


async def _run(
    request: Request,
    runtime: str,
    options: JobOptions,
    nodes: LocalNodes | None,
    detach: bool,
    output: Path | None,
    as_json: bool,
    home: Path | None,
) -> int:
    from p2pgrid.client.jobs import JobBuilder
    from p2pgrid.client.settling import settle
    from p2pgrid_cli.progress import Progress

    progress = Progress()
    builder = JobBuilder(options, wall_ms, os.urandom, progress.reading)
    with progress:
        # The user's inputs() may take long: it runs while nodes start, and beside their heartbeats.
        building = beside(lambda: _read(builder, request, progress))
        try:
            async with _channel(nodes, detach, options.quorum, home, progress) as (channel, stays):
                plan = await building
                if request.script is not None and request.script.dependencies:
                    from p2pgrid_cli.packages import take_packages

                    await take_packages(plan, request.script, channel, progress.note, progress.tell)
                progress.step("asking the grid which runtime fits")
                plan.job, why = await settle(plan.job, runtime, channel, alone=not stays)
                if why:
                    progress.note(f"runtime: {why}")
                job, keepers = await submit(channel, plan, progress, detach=detach)
                if detach:
                    progress.stop()
                    _show_detached(job, keepers, as_json)
                    return exits.OK
                return await _follow(channel, job, request, output, as_json, progress, stays)
        finally:
            if not building.cancel() and not building.cancelled():
                building.exception()  # Seen; what went wrong before it was waited for is what is told.
            if nodes is not None:
                await nodes.close()


def _read(builder: JobBuilder, request: Request, progress: Progress) -> Plan:
    """The plan; from then on the node is what is waited for."""
    plan = _build(builder, request)
    progress.step("waiting for the node")
    return plan


def _build(builder: JobBuilder, request: Request) -> Plan:
    from p2pgrid.client.jobs import items_of

    if request.command:
        return builder.command(request.command, request.items)
    if request.script is None:
        return builder.module(request.path, request.arguments, request.items)
    items: Iterable[Any]
    try:
        items = items_of(request.script, request.path, request.arguments, request.over)
        return builder.script(request.script, items)
    except P2PGridError:
        raise
    except Exception as error:
        where = f"{request.path}: " if not isinstance(error, OSError) else ""
        raise BadDataError(
            f"{where}inputs() failed: {type(error).__name__}: {error}", hint="inputs(*ARGS) runs here, before the job"
        ) from error


@asynccontextmanager
async def _channel(
    nodes: LocalNodes | None, detach: bool, quorum: int, folder: Path | None, progress: Any
) -> AsyncIterator[tuple[Channel, bool]]:
    """A channel to the running node of this home, or to one started for this command alone; and whether its grid stays."""
    from p2pgrid.client.channel import Channel
    from p2pgrid.services.membership import load
    from p2pgrid_cli import hosting
    from p2pgrid_cli.settings import Settings, config_of
    from p2pgrid_cli.settings import load as load_settings

    if nodes:
        progress.tell(f"starting {len(nodes)} local node{'s' if len(nodes) > 1 else ''}")
        async with hosting.local_grid(nodes) as node, await _open(node) as channel:
            yield channel, False
        return
    home = home_of(folder)
    if home.running() is not None:
        async with await Channel.open(home, wall_ms) as channel:
            yield channel, True
        return
    if detach:
        raise UnreachableError("--detach needs a running node in this home", hint="start one with: p2pgrid join --detach")
    membership = load(home) if home.exists() else None
    if membership is None:
        import tempfile

        _check_quorum(quorum, 1)
        config = config_of(Settings(name="embedded", listen="127.0.0.1:0"), Path(tempfile.gettempdir()), temporary=True)
        async with hosting.embedded_node(config) as node, await _open(node) as channel:
            yield channel, False
        return
    progress.note("the node of this home is not running: it is started for this command")
    home.prepare()
    home.lock()
    try:
        async with (
            hosting.running_node(home, membership, config_of(load_settings(home), home.folder)) as node,
            await _open(node) as channel,
        ):
            yield channel, True
    finally:
        home.close()


async def _open(node: Node) -> Channel:
    from p2pgrid.client.channel import Channel

    return await Channel.open(node.home, wall_ms)


def _show_detached(job: JobId, keepers: int, as_json: bool) -> None:
    """The job's id; on stderr how many nodes may be lost before it is."""
    from p2pgrid.core.keeping import K
    from p2pgrid.model.ids import to_text

    if as_json:
        from p2pgrid_cli.documents.results import Detached

        print_document(Detached(to_text(job), keepers))
    else:
        print_line(to_text(job))

    if keepers >= K:
        say(f"{keepers} other nodes keep the job: it needs this one no more")
    elif keepers:
        say(f"only {keepers} other node{'s' if keepers > 1 else ''} could take the job: it grows to {K} keepers when nodes join")
    else:
        say("no other node could take the job: it ends with this one, unless others join before")


async def submit(channel: Channel, plan: Plan, progress: Any, *, detach: bool) -> tuple[JobId, int]:
    """Put what the job needs into the store, sign it, and hand it over; with ``detach`` until others have all of it."""
    import asyncio

    from p2pgrid.model.ids import JobId
    from p2pgrid.wire.envelope import seal

    for number, path in enumerate(plan.files.values()):
        progress.sending(number, len(plan.files))
        await channel.put(path, replicas=1, expires_ms=plan.job.expires_ms, announce=False)
    for content in plan.values.values():
        await channel.put_bytes(content, replicas=1, expires_ms=plan.job.expires_ms)
    signed = seal(plan.job, channel.submitter, channel.grid.id)
    progress.step("handing the job to its keepers" if detach else "handing the job over")
    try:
        job, keepers = await channel.submit(signed.raw, plan.batches, follow=not detach, detach=detach)
    except asyncio.CancelledError:
        await _take_back(channel, JobId(signed.id), progress)
        raise
    progress.submitted(job, plan.job.map_units)
    return job, keepers


async def _take_back(channel: Channel, job: JobId, progress: Any) -> None:
    """Cancel a job that Ctrl-C is meant for. The node may be just taking it, and knows it a moment later."""
    import asyncio

    from p2pgrid.model.reasons import Reason

    progress.stop()
    try:
        async with asyncio.timeout(CANCEL_S):
            for pause_s in TAKEN_S:
                await asyncio.sleep(pause_s)
                try:
                    await channel.cancel(job)
                    return
                except RefusedError as error:
                    if error.reason != Reason.UNKNOWN_JOB:
                        raise
    except TimeoutError:
        say("the job could not be cancelled in time")
    except P2PGridError as error:
        say(f"the job could not be cancelled: {error.message}")


async def _follow(channel: Channel, job: JobId, request: Request, output: Path | None, as_json: bool, progress: Any, stays: bool) -> int:
    """Show results as they come; Ctrl-C cancels the job."""
    import asyncio

    from p2pgrid.model.ids import to_text
    from p2pgrid_cli.results import show_results

    try:
        finish = None
        if request.script and request.script.options.finish == "local":
            finish = (request.script, request.path)
        return await show_results(channel, job, wait=True, output=output, as_json=as_json, progress=progress, finish=finish, stays=stays)
    except UnreachableError as error:
        progress.stop()
        if not stays or error.hint:
            raise
        hint = f"the grid may go on; read it later with: p2pgrid results {to_text(job)}"
        raise UnreachableError(error.message, reason=error.reason, hint=hint) from error
    except asyncio.CancelledError:
        await _take_back(channel, job, progress)
        raise
