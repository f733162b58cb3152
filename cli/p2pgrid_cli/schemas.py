"""``schema``: what the documents of ``--json`` look like, for programs (docs/reference/json.md has it for people)."""

from __future__ import annotations

from typing import Annotated

import typer

from p2pgrid.errors import UsageError
from p2pgrid_cli.common import print_json, print_line
from p2pgrid_cli.completion import complete_document


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schema)


def schema(
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="Whose document. Without one the names.", autocompletion=complete_document)
    ] = None,
) -> None:
    """Print the JSON Schema (2020-12) of the document that a command prints with --json."""
    from p2pgrid_cli.documents import DOCUMENTS, schema_of
    from p2pgrid_cli.terms import suggestion

    if command is None:
        print_line("\n".join(DOCUMENTS))
        return
    if command not in DOCUMENTS:
        raise UsageError(f"'{command}' prints no document", hint=suggestion(command, DOCUMENTS))
    print_json(schema_of(command))
