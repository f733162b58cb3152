"""``config``: every setting of a home with its value, and who said so. No node need run, and nothing is changed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from p2pgrid_cli.common import HomeOption, JsonOption, console, home_of, print_document, print_line
from p2pgrid_cli.grouping import App
from p2pgrid_cli.settings import CONFIG_FILE, Settings, default_name, from_environment, from_file, policy_of, saved, variable_of
from p2pgrid_cli.terms import TERMS, Term

if TYPE_CHECKING:
    from rich.table import Table

    from p2pgrid.store.home import Home
    from p2pgrid_cli.documents.settings import Config

ENVIRONMENT, FILE, FLAG, DEFAULT = "environment", "file", "flag", "default"
LISTEN = "0.0.0.0:0"
VALUE_CHARS = 40
BESIDE_CHARS = 26
"""What the name of a setting and who said it take beside the value."""


class Line(NamedTuple):
    """A setting. ``where``: the variable, the file with the line, or the command that said so; empty for a default."""

    term: Term
    value: Any
    origin: str
    where: str

    @property
    def text(self) -> str:
        """The value as it would be written."""
        return self.term.write(self.value)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    inner = App(help="Show the settings of a home, and where each comes from.", no_args_is_help=True)
    inner.command(short_help="every setting with its value")(show)
    inner.command(short_help="the path of the file of settings")(path)
    app.add_typer(inner, name="config")


def show(
    origin: Annotated[bool, typer.Option("--origin", help="Also where each value comes from.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show every setting with its value: what 'p2pgrid join' without options would use now.

    The environment counts over config.toml, that over what options of 'join' said before, and that over the default.
    """
    ours = home_of(home)
    lines = settings_of(ours, os.environ)
    if as_json:
        print_document(document(ours, lines))
        return
    out = console()
    out.print(table(lines, out.width, origin=origin))


def path(home: HomeOption = None) -> None:
    """Print the path of the file that settings can be written to. It need not be there yet."""
    print_line(str(home_of(home).folder / CONFIG_FILE))


def settings_of(home: Home, environment: Mapping[str, str]) -> list[Line]:
    """What holds for a home, and why. Raises ConfigError for a key that is not known, or a value that makes no sense."""
    file = home.folder / CONFIG_FILE
    told = ((ENVIRONMENT, from_environment(environment)), (FILE, from_file(file)), (FLAG, saved(home)), (DEFAULT, defaults(home.folder)))
    places = line_numbers(file)
    lines = []
    for term in TERMS:
        origin, value = next(
            (origin, value) for origin, settings in told if (value := getattr(settings, term.field)) is not None or origin == DEFAULT
        )
        where = {
            ENVIRONMENT: variable_of(term),
            FILE: f"{CONFIG_FILE}:{places[term.name]}" if term.name in places else CONFIG_FILE,
            FLAG: f"p2pgrid join {term.option}",
            DEFAULT: "",
        }
        lines.append(Line(term, value, origin, where[origin]))
    return lines


def defaults(folder: Path) -> Settings:
    """What the defaults come to on this machine, for a home in a folder that need not be there yet."""
    policy = policy_of(Settings(), next(place for place in (folder, *folder.parents) if place.is_dir()))
    return Settings(
        name=default_name(),
        cpus=policy.cores,
        memory_bytes=policy.memory_bytes,
        storage_bytes=policy.storage_bytes,
        listen=LISTEN,
        native=policy.native,
        runtimes=policy.runtimes,
        accept_from=(),
        packages=(policy.environments,),
        only_idle_s=policy.idle_s,
        on_battery=policy.on_battery,
        hours=policy.hours,
        busy_share=policy.busy_share,
        nice=policy.nice,
        upload_bytes_per_s=policy.upload_bytes_per_s,
        download_bytes_per_s=policy.download_bytes_per_s,
    )


def line_numbers(file: Path) -> dict[str, int]:
    """On which line of the file each key is, as far as that can be seen."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return {}
    found = ((number, re.match(r"""\s*["']?(\w+)["']?\s*=""", line)) for number, line in enumerate(text.splitlines(), 1))
    return {match[1]: number for number, match in found if match}


def table(lines: list[Line], width: int, *, origin: bool) -> Table:
    """What people read."""
    from p2pgrid_cli.render import printable
    from p2pgrid_cli.tables import Column, Row, table_of

    columns = [Column("setting"), Column("value"), *([Column("from"), Column("where", 1)] if origin else [])]
    rows = []
    chars = max(10, min(VALUE_CHARS, width - BESIDE_CHARS))
    for line in lines:
        cells = (line.term.name, printable(line.text, chars), *((line.origin, line.where) if origin else ()))
        rows.append(Row(cells, "dim" if line.origin == DEFAULT else None))
    return table_of(columns, rows, width)


def document(home: Home, lines: list[Line]) -> Config:
    """The document of ``config show --json``."""
    from p2pgrid_cli.documents.settings import Config, Setting

    settings = tuple(Setting(line.term.name, line.value, line.text, line.origin, line.where or None) for line in lines)
    return Config(str(home.folder), str(home.folder / CONFIG_FILE), settings)
