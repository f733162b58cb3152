"""The options of ``join``, each with its help; what they mean for the node is in p2pgrid_cli.settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p2pgrid_cli.completion import complete_runtimes

LENT, WHEN, NETWORK = "What is lent", "To whom, and when", "Network"
"""Groups of options."""

Invite = Annotated[str | None, typer.Argument(help="An invite, as 'p2pgrid invite' prints it. Without one a private grid is founded.")]
Detach = Annotated[bool, typer.Option("--detach", help="Run in the background and return when ready.")]
Name = Annotated[str | None, typer.Option(help="What others see. Default: the host's name.")]
Cpus = Annotated[int | None, typer.Option(min=0, rich_help_panel=LENT, help="Cores to lend. Default: all.")]
Memory = Annotated[str | None, typer.Option(rich_help_panel=LENT, help="Memory to lend, as 4G. Default: half.")]
Storage = Annotated[
    str | None, typer.Option(rich_help_panel=LENT, help="Storage to lend, as 10G. Default: 10G, at most a tenth of the free disk.")
]
Listen = Annotated[str | None, typer.Option(rich_help_panel=NETWORK, help="HOST:PORT to listen on. Default: all addresses, any free port.")]
Native = Annotated[
    bool | None, typer.Option("--native/--no-native", rich_help_panel=LENT, help="Run native code and commands of other members here.")
]
Runtimes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        rich_help_panel=LENT,
        help="Runtimes to offer: native, command, python, wasm, or all.",
        autocompletion=complete_runtimes,
    ),
]
Packages = Annotated[
    str | None, typer.Option(metavar="WHICH", rich_help_panel=LENT, help="Packages that native units may bring: any, off, or names.")
]
AcceptFrom = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", rich_help_panel=WHEN, help="Work only for this submitter; repeatable. all: for every member."),
]
OnlyIdle = Annotated[
    str | None,
    typer.Option(metavar="MINUTES", rich_help_panel=WHEN, help="Work only when nobody has touched the machine for so long. 0: always."),
]
OnBattery = Annotated[
    bool | None, typer.Option("--on-battery/--no-on-battery", rich_help_panel=WHEN, help="Work on battery, too. Default: no.")
]
Hours = Annotated[
    str | None, typer.Option(metavar="FROM-TO", rich_help_panel=WHEN, help="Work only then, as 22:00-07:00, local time; or always.")
]
Busy = Annotated[
    str | None,
    typer.Option(metavar="SHARE", rich_help_panel=WHEN, help="Pause when other programs use more of the CPU, as 30%. 0: never."),
]
Nice = Annotated[
    int | None, typer.Option(rich_help_panel=WHEN, help="How much units give way to the owner's programs, 0 to 19. Default: 19.")
]
Upload = Annotated[
    str | None, typer.Option(metavar="RATE", rich_help_panel=NETWORK, help="Most bytes of blobs a second to others, as 1M. 0: no cap.")
]
Download = Annotated[
    str | None, typer.Option(metavar="RATE", rich_help_panel=NETWORK, help="Most bytes of blobs a second from others. 0: no cap.")
]
LeaveWithin = Annotated[
    float, typer.Option(min=0.0, help="Seconds for leaving in good order, after 'p2pgrid leave' or SIGTERM. 0: go at once.")
]
LogLevel = Annotated[
    str | None, typer.Option("--log-level", envvar="P2PGRID_LOG", metavar="LEVEL", help="debug, info or warning. Default: info.")
]
Parent = Annotated[int, typer.Option(hidden=True)]
ForOwner = Annotated[bool, typer.Option("--for-owner", hidden=True)]
LogFile = Annotated[Path | None, typer.Option("--log-file", hidden=True)]
