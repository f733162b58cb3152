"""``p2pgrid``: the entry of the program, and the one place where errors leave it.

Hardly anything is imported before :func:`main` runs, so that Ctrl-C finds somebody to hear it from the first moment, and
``p2pgrid --help`` costs little more than an interpreter does.
"""

from __future__ import annotations

import os
import sys

from p2pgrid_cli.interrupts import end_at_once

TYPE_CHECKING = False  # As in typing, which takes longer to import than all that is needed here.
if TYPE_CHECKING:
    import click


def main() -> None:
    """Run one command, and turn errors into a line, a hint and an exit code."""
    end_at_once()
    from p2pgrid.errors import P2PGridError
    from p2pgrid_cli import exits

    try:
        _run(sys.argv[1:])
        _flush()
        sys.exit(exits.OK)
    except P2PGridError as error:
        _say(f"p2pgrid: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
        sys.exit(exits.code_of(error))
    except KeyboardInterrupt:
        _drop_output()
        _say("stopped")
        sys.exit(exits.INTERRUPTED)
    except BrokenPipeError:
        _give_up_output()
        sys.exit(exits.UNIT_FAILED)
    except Exception as error:
        if os.environ.get("P2PGRID_TRACEBACK"):
            raise
        _say(f"p2pgrid: this is a bug: {type(error).__name__}: {error}")
        _say("  hint: run it again with P2PGRID_TRACEBACK=1 and report what it prints")
        sys.exit(exits.BUG)


def _run(words: list[str]) -> None:
    """Parse and run. The command says from when on Ctrl-C is an exception."""
    from p2pgrid_cli import catalog, exits

    plain = catalog.is_plain(words)
    if plain:
        sys.stdout.write(f"{_version() if plain == 'version' else catalog.main_help(catalog.help_columns())}\n")
        return
    import click

    from p2pgrid_cli import program

    try:
        instruction = os.environ.get(program.COMPLETE_VARIABLE)
        if instruction:
            from p2pgrid_cli.completion import respond

            sys.exit(respond(instruction))
        context = program.program.make_context(catalog.PROGRAM, words)
        with context:
            program.program.invoke(context)
    except click.UsageError as error:
        _show_usage(error)
        sys.exit(exits.USAGE)
    except click.exceptions.Exit as error:
        if error.exit_code == exits.INTERRUPTED:
            _drop_output()
        _flush()
        sys.exit(error.exit_code)


def _version() -> str:
    from p2pgrid import __version__

    return f"p2pgrid {__version__}"


def _say(text: str) -> None:
    """As ``common.say``, without what that imports. Whoever read our messages may have gone, too."""
    from p2pgrid.logs import sayable

    try:
        sys.stderr.write(sayable(text, keep="\n") + "\n")
        sys.stderr.flush()
    except OSError:
        _give_up_output()


def _drop_output() -> None:
    """What was not yet written when Ctrl-C came never is: whoever has the other end of a pipe need not read on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _flush() -> None:
    """Find out now whether somebody reads the last words: the interpreter would complain while it ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up_output()
        sys.exit(1)


def _give_up_output() -> None:
    """Whoever read our output has gone; the interpreter must not complain about it while it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(null, stream.fileno())


def _show_usage(error: click.UsageError) -> None:
    """A line and a hint for what the option parser refused; the whole help when there was nothing to parse."""
    import click

    path = error.ctx.command_path if error.ctx else "p2pgrid"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _say(error.format_message())
        return
    message = error.format_message().rstrip(".").replace("valid float range", "number").replace("valid integer range", "whole number")
    _say(f"p2pgrid: {' '.join(f'{message[:1].lower()}{message[1:]}'.split())}")
    _say(f"  hint: {path} --help")
