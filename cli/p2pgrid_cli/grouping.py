"""How the help of a command is laid out: arguments, options in groups, examples."""

from __future__ import annotations

from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperOption

OTHERS = "Options"


class GroupedCommand(TyperCommand):
    """Options stand under the title that they name as their panel, those without one at the end."""

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """They stand with the options; newer clicks would show them twice."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Arguments first, then a section for each group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                sections.setdefault("Arguments", []).append(record)
            elif isinstance(param, TyperOption) and param.rich_help_panel:
                sections.setdefault(param.rich_help_panel, []).append(record)
            else:
                others.append(record)
        for title, rows in [*sections.items(), (OTHERS, others)]:
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class App(typer.Typer):
    """A bundle of commands in the house's layout, without typer's own colours and completion."""

    def __init__(self, **options: Any) -> None:
        super().__init__(add_completion=False, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = GroupedCommand, **options: Any) -> Any:
        """As typer's, with our class."""
        return super().command(name, cls=cls, **options)
