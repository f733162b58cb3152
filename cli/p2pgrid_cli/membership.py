"""``join``, ``leave``, ``invite``: the node's place in a grid."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid.errors import ConfigError, P2PGridError, TryAgainError, UnreachableError, UsageError
from p2pgrid_cli import exits
from p2pgrid_cli import joinoptions as options
from p2pgrid_cli.common import HomeOption, home_of, print_line, run_async, say, wall_ms, with_channel
from p2pgrid_cli.completion import complete_role
from p2pgrid_cli.interrupts import raise_them
from p2pgrid_cli.progress import Progress

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from p2pgrid.client.channel import Channel
    from p2pgrid.node import Node, NodeConfig
    from p2pgrid.services.membership import HomeMembership
    from p2pgrid.store.home import Home
    from p2pgrid_cli.settings import Settings

DETACH_S = 60.0
GONE_S = 5.0
LEAVE_S = 60.0
WITHIN_S = 25.0
LOOK_S = 0.02
READY = "ready: "
STARTING = "starting the node, and meeting the grid"
DAYS = 365.0
ROLE_HELP = "Role to grant, repeatable: work, store, submit, native, invite. Default: the first four."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(join)
    app.command()(leave)
    app.command()(invite)


def join(
    invite: options.Invite = None,
    detach: options.Detach = False,
    name: options.Name = None,
    cpus: options.Cpus = None,
    memory: options.Memory = None,
    storage: options.Storage = None,
    listen: options.Listen = None,
    native: options.Native = None,
    runtimes: options.Runtimes = None,
    packages: options.Packages = None,
    accept_from: options.AcceptFrom = None,
    only_idle: options.OnlyIdle = None,
    on_battery: options.OnBattery = None,
    hours: options.Hours = None,
    busy: options.Busy = None,
    nice: options.Nice = None,
    upload: options.Upload = None,
    download: options.Download = None,
    leave_within: options.LeaveWithin = WITHIN_S,
    log_level: options.LogLevel = None,
    home: HomeOption = None,
    parent: options.Parent = 0,
    for_owner: options.ForOwner = False,
    log_file: options.LogFile = None,
) -> None:
    """Run a node: found a private grid, enter one with an invite, or start again where this home was.

    Terms that are not said hold as said before. Each can also be set in config.toml in the home, or as P2PGRID_ONLY_IDLE and so on.
    """
    said = dict(locals())  # Before there is any other name: what was said, by the names of the terms.
    from p2pgrid_cli import logs
    from p2pgrid_cli.settings import from_flags
    from p2pgrid_cli.terms import TERMS

    level = logs.level_of(log_level, logs.QUIET if for_owner else logs.USUAL)
    asked = from_flags(**{term.name: said[term.name] for term in TERMS})
    if detach:
        _detach(home_of(home))
        return
    with logs.for_node(level, log_file):
        interrupted = run_async(_join(home_of(home), invite, asked, parent, leave_within, for_owner))
    if interrupted:
        raise typer.Exit(exits.INTERRUPTED)


async def _join(home: Home, invite: str | None, asked: Settings, parent: int, leave_s: float, for_owner: bool) -> bool:
    """Run the node until it is to stop; whether that was Ctrl-C. ``for_owner``: it serves one command of whoever started it."""
    from p2pgrid.services import membership as memberships
    from p2pgrid_cli.ending import noted
    from p2pgrid_cli.settings import config_of, load, save, saved

    home.prepare()
    home.lock()
    try:
        with noted(home, keeps=not for_owner) as ending:
            config = config_of(asked if for_owner else asked.over(load(home)), home.folder, volunteers=not for_owner, temporary=for_owner)
            said = asked.over(saved(home))
            before = memberships.load(home)
            membership = _membership(home, before, invite)
            entered = False
            try:
                async with _started(home, membership, config, quiet=for_owner) as node:
                    entered = ending.started = True
                    save(home, said)
                    _greet(node, membership)
                    return await _until_stopped(node, parent, leave_s)
            except P2PGridError:
                if invite and not entered:
                    # The next try must be free to use another invite, or what held before.
                    if before is None:
                        (home.folder / "membership").unlink(missing_ok=True)
                    elif membership is not before:
                        memberships.restore(home, before)
                raise
    finally:
        home.close()


@asynccontextmanager
async def _started(home: Home, membership: HomeMembership, config: NodeConfig, *, quiet: bool) -> AsyncIterator[Node]:
    """The node of a home, once it is ready; until then a line on the terminal says what is waited for, unless ``quiet``."""
    from p2pgrid_cli.hosting import running_node

    with Progress(live=False if quiet else None) as progress:
        progress.step(STARTING)
        async with running_node(home, membership, config) as node:
            progress.stop()
            yield node


def _membership(home: Home, known: HomeMembership | None, invite: str | None) -> HomeMembership:
    """The home's membership: as it is known, made now, or by the invite."""
    from p2pgrid.core.invites import parse_invite
    from p2pgrid.model.ids import short
    from p2pgrid.model.reasons import Reason
    from p2pgrid.services.membership import accept_invite, found_grid, renew, renews

    if invite is None:
        return known or found_grid(home, f"grid of {_host()}", os.urandom, wall_ms())
    invited = parse_invite(invite, wall_ms())
    if known is None:
        return accept_invite(home, invited, wall_ms())
    if known.grid.id != invited.grid.id:
        ours, theirs = (f"'{grid.name}' ({short(grid.id)})" for grid in (known.grid, invited.grid))
        hint = "use another --home for another grid"
        text = f"this home is already a member of {ours}, and the invite is for {theirs}"
        raise ConfigError(text, reason=Reason.OTHER_GRID, hint=hint)
    return renew(home, known, invited, wall_ms()) if renews(home, known, invited, wall_ms()) else known


def _host() -> str:
    from p2pgrid_cli.settings import default_name

    return default_name()


def _greet(node: Node, membership: HomeMembership) -> None:
    from p2pgrid.model.ids import short

    where = ", ".join(f"{address.host}:{address.port}" for address in node.pool.addresses())
    policy = node.config.policy
    lines = [f"{READY}node {short(node.key.public)} in '{membership.grid.name}', {policy.cores} cores, listening on {where}"]
    if policy.native and policy.cores and "native" in node.member.roles:
        lines.append("members of this grid may run native code here, in a cage that this node attacks first; --no-native refuses it")
    state = node.pausing.state
    if state.reason is not None:
        lines.append(f"{state.name}: {state.reason.sentence}; p2pgrid why me says more")
    lines += [f"note: {note}" for note in node.notes]
    if membership.root_seed and not membership.contacts:
        lines.append("invite other machines: p2pgrid invite")
    say("\n".join(lines))  # In one piece: whoever waits for the first line gets them all.


async def _until_stopped(node: Node, parent: int, leave_s: float) -> bool:
    """Until the owner, a signal, or the end of the process that started us; then leave in good order. Whether it was Ctrl-C.

    A second signal goes at once.
    """
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    interrupts: list[bool] = []
    at_once = asyncio.Event()

    def stop(interrupted: bool) -> None:
        interrupts.append(interrupted)
        (at_once if node.stopping.is_set() else node.stopping).set()

    loop.add_signal_handler(signal.SIGTERM, stop, False)
    loop.add_signal_handler(signal.SIGINT, stop, True)
    while not node.stopping.is_set():
        if not parent:
            await node.stopping.wait()
        elif os.getppid() != parent:
            return False
        else:
            try:
                async with asyncio.timeout(1.0):
                    await node.stopping.wait()
            except TimeoutError:
                continue
    if any(interrupts):
        say("leaving: running units get 1.7 seconds, jobs and copies go to others (Ctrl-C again goes at once)")
    leaving = asyncio.ensure_future(node.leave(leave_s))
    hurry = asyncio.ensure_future(at_once.wait())
    await asyncio.wait([leaving, hurry], return_when=asyncio.FIRST_COMPLETED)
    for task in (leaving, hurry):
        task.cancel()
    await asyncio.gather(leaving, hurry, return_exceptions=True)
    return any(interrupts)


def _detach(home: Home) -> None:
    """Start the same command as a process of its own, and wait until it is ready or has failed."""
    import subprocess

    home.prepare()
    running = home.running()
    if running is not None:
        raise TryAgainError(f"a node already runs in '{home.folder}' (pid {running.pid})", hint="p2pgrid leave stops it")
    # What it says for people goes into a file of this start; its log has one of its own.
    arguments = [*[argument for argument in sys.argv[1:] if argument != "--detach"], "--log-file", str(home.folder / "node.log")]
    said_path = home.folder / "output.log"
    raise_them()
    with open(os.open(said_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), "wb") as output:
        environment = {**os.environ, "P2PGRID_HOME": str(home.folder)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "p2pgrid_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment,
        )
    try:
        _until_ready(process, said_path)
    except KeyboardInterrupt:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GONE_S)
        raise


def _until_ready(process: subprocess.Popen[bytes], said_path: Path) -> None:
    """Wait until a node says that it is ready, and show what it said; if it ends first, end as it did."""
    import subprocess

    deadline = time.monotonic() + DETACH_S
    with Progress() as progress:
        progress.step(STARTING)
        while time.monotonic() < deadline:
            code: int | None = None
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(LOOK_S)
            said = said_path.read_text(errors="replace")
            if READY in said or code is not None:
                progress.stop()
                sys.stderr.write(said)
                if code is not None:
                    raise typer.Exit(code)
                return
    raise UnreachableError("the node did not become ready in a minute", hint=f"see '{said_path}'")


def leave(home: HomeOption = None) -> None:
    """Stop the node of this home, in good order."""
    folder = home_of(home)
    running = folder.running()
    if running is None:
        raise UnreachableError(f"no node runs in '{folder.folder}'", hint="nothing to do")
    with_channel(home, lambda channel: _left(channel, folder))
    if folder.running() is not None:
        raise UnreachableError(f"the node (pid {running.pid}) has not stopped yet", hint=f"kill {running.pid}")
    say("left")


async def _left(channel: Channel, home: Home) -> None:
    """Tell the node to stop, and wait until it has let go of its home, at most ``LEAVE_S``."""
    import asyncio

    with Progress() as progress:
        progress.step("leaving: jobs and copies go to others")
        await channel.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while home.running() is not None:  # noqa: ASYNC110 - the lock of another process gives no sign
                    await asyncio.sleep(LOOK_S)


def invite(
    role: Annotated[list[str] | None, typer.Option("--role", help=ROLE_HELP, autocompletion=complete_role)] = None,
    expires: Annotated[float, typer.Option("--days", min=0.001, help="Days until the invite and all memberships from it end.")] = DAYS,
    home: HomeOption = None,
) -> None:
    """Print an invite: one line to hand to somebody like a password."""
    from p2pgrid.model.node import ROLES

    roles = tuple(role or ROLES[:4])
    unknown = [name for name in roles if name not in ROLES]
    if unknown:
        raise UsageError(f"'{unknown[0]}' is no role", hint=f"roles: {', '.join(ROLES)}")
    expires_ms = wall_ms() + int(expires * 24 * 3600 * 1000)
    print_line(with_channel(home, lambda channel: channel.invite(roles, expires_ms)))
