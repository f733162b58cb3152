"""The tree of commands. Each is built from its module when it is wanted, and not before."""

from __future__ import annotations

import importlib
from typing import Any

import click

from p2pgrid_cli import catalog

COMPLETE_VARIABLE = "_P2PGRID_COMPLETE"
"""What the shell sets when it asks what may come next."""


class Program(click.Group):
    """``p2pgrid`` itself: its list of commands and its help come from the catalog."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return list(catalog.entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command, with its examples at the end of its help."""
        entry = catalog.entries().get(cmd_name)
        if entry is None:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load(entry)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's; a name that is unknown here is told with the one that was meant."""
        from p2pgrid.errors import UsageError
        from p2pgrid_cli.terms import close_to

        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in catalog.entries() and not ctx.resilient_parsing:
            meant = close_to(name, catalog.entries())
            raise UsageError(f"no such command '{name}'", hint=f"did you mean '{meant}'?" if meant else "p2pgrid --help")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The same text as without click."""
        formatter.write(catalog.main_help(catalog.help_columns()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Names and options, without importing a single command."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=entry.about) for name, entry in catalog.entries().items() if name.startswith(incomplete)]
        return found + (click.Command.shell_complete(self, ctx, incomplete) if incomplete.startswith("-") else [])


def load(entry: catalog.Entry) -> click.Command:
    """Import the module of a command, and build it."""
    from typer.main import get_group

    from p2pgrid_cli.grouping import App

    module = importlib.import_module(f"p2pgrid_cli.{entry.module}")
    app = App()
    module.register(app)
    command: click.Command = get_group(app).commands[entry.name]
    _finish(command, entry.examples)
    for name, examples in catalog.INNER_EXAMPLES.get(entry.name, {}).items():
        assert isinstance(command, click.Group)
        _finish(command.commands[name], examples)
    return command


def _finish(command: click.Command, examples: tuple[tuple[str, str], ...]) -> None:
    """What all commands have in common."""
    _explain_arguments(command)
    command.epilog = catalog.examples_text(examples, catalog.help_columns())
    command.context_settings = {
        **command.context_settings,
        "help_option_names": ["-h", "--help"],
        "max_content_width": catalog.HELP_COLUMNS_MAX,
    }


def _explain_arguments(command: click.Command) -> None:
    """Give arguments their help again: click 8.4 and later forget what typer 0.24 told them."""
    from typer.utils import get_params_from_function

    arguments = [param for param in command.params if isinstance(param, click.Argument) and not getattr(param, "help", None)]
    if arguments and command.callback is not None:
        told = get_params_from_function(getattr(command.callback, "__wrapped__", command.callback))
        for argument in arguments:
            vars(argument)["help"] = getattr(told[argument.name or ""].default, "help", None)


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from p2pgrid import __version__
        from p2pgrid_cli.common import print_line

        print_line(f"{catalog.PROGRAM} {__version__}")
        ctx.exit()


program = Program(
    name=catalog.PROGRAM,
    no_args_is_help=True,
    params=[
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print the version.")
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": catalog.HELP_COLUMNS_MAX},
)
