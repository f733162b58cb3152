"""``p2pgrid``: the commands, and the one place where errors leave the program."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from p2pgrid import __version__
from p2pgrid.errors import P2PGridError
from p2pgrid_cli import doctor, exits, files, jobs, look, membership, pausing, run, simulate, why
from p2pgrid_cli.common import print_line, say, show_error

app = typer.Typer(
    name="p2pgrid",
    help="Share spare CPU and storage with other machines, and use theirs. No server.",
    epilog="Begin with: p2pgrid run --local 4 SCRIPT.py   or: p2pgrid join",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print_line(f"p2pgrid {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    """Share spare CPU and storage with other machines, and use theirs. No server."""


for module in (membership, run, jobs, files, look, pausing, why, doctor, simulate):
    module.register(app)


def main() -> None:
    """Entry point: run, and turn errors into a line, a hint and an exit code."""
    try:
        # What a command returns is no exit code; typer.Exit arrives here as its number.
        sys.exit(app(standalone_mode=False) or exits.OK)
    except click.UsageError as error:
        _show_usage(error)
        sys.exit(exits.USAGE)
    except P2PGridError as error:
        show_error(error)
        sys.exit(exits.code_of(error))
    except KeyboardInterrupt:
        say("stopped")
        sys.exit(exits.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain about it while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exits.UNIT_FAILED)
    except Exception as error:
        if os.environ.get("P2PGRID_TRACEBACK"):
            raise
        say(f"p2pgrid: this is a bug: {type(error).__name__}: {error}")
        say("  hint: run it again with P2PGRID_TRACEBACK=1 and report what it prints")
        sys.exit(exits.BUG)


def _show_usage(error: click.UsageError) -> None:
    """A line and a hint for what the option parser refused; the whole help when there was nothing to parse."""
    path = error.ctx.command_path if error.ctx else "p2pgrid"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        say(error.format_message())
        return
    message = error.format_message().rstrip(".").replace("valid float range", "number").replace("valid integer range", "whole number")
    say(f"p2pgrid: {message[:1].lower()}{message[1:]}")
    say(f"  hint: {path} --help")
