"""Keeps the pages in step with the code: `python docs/generate.py` writes what can be derived, and says what cannot.

Derived are the pages of reason codes, exit codes and JSON documents, the index of messages, the page of scenario files, and
the type column of the field tables in docs/spec. There the order of fields and what they mean is written by hand; where it is
not the order of the code, that is a complaint, and so is a message without a heading. A test runs the same functions and fails
when a page is stale.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.errors import RemoteError
from p2pgrid.model.reasons import Reason
from p2pgrid.testing.plans import scenario as scenarios
from p2pgrid_cli import exits
from p2pgrid_cli.documents import DOCUMENTS
from p2pgrid_cli.documents import forms_of as documents_of

DOCS = Path(__file__).resolve().parent
SPEC = DOCS / "spec"
DHT_PAGE = "dht.md"
MESSAGES_PAGE = "messages.md"
DHT_MODULES = ("p2pgrid.dht.messages", "p2pgrid.dht.records")
WIRE_MODULES = (
    "p2pgrid.core.invites",
    "p2pgrid.model.blob",
    "p2pgrid.model.environment",
    "p2pgrid.model.folder",
    "p2pgrid.model.job",
    "p2pgrid.model.membership",
    "p2pgrid.model.node",
    "p2pgrid.model.values",
    "p2pgrid.model.work",
    "p2pgrid.net.messages",
    "p2pgrid.services.membership",
    "p2pgrid.store.index",
    "p2pgrid.store.shelf",
    "p2pgrid.wire.envelope",
    "p2pgrid.wire.faces",
    "p2pgrid.wire.messages",
    "p2pgrid.wire.owner",
)
BASES = ("Message", "Statement")
PLAIN = {bytes: "bytes", int: "int", str: "text", bool: "bool", float: "float", type(None): "nil", msgspec.Raw: "any value"}
HEADING = re.compile(r"^#{2,4} .*?`(?P<name>[A-Z]\w+)`")
ROW = re.compile(r"^\| `(?P<field>\w+)` \|(?P<type>[^|]*)\| (?P<meaning>.+) \|$")


def is_wire_form(value: Any) -> bool:
    """Whether a class is a positional struct or a named tuple: what goes over the wire or onto the disk."""
    if not inspect.isclass(value) or value.__name__ in BASES or value.__name__.startswith("_"):
        return False
    if issubclass(value, msgspec.Struct):
        return bool(value.__struct_config__.array_like)
    return issubclass(value, tuple) and hasattr(value, "_fields")


def forms(modules: tuple[str, ...]) -> dict[str, type[Any]]:
    """The wire forms that these modules define, by name."""
    found: dict[str, type[Any]] = {}
    for name in modules:
        for value in vars(importlib.import_module(name)).values():
            if is_wire_form(value) and value.__module__ == name:
                if value.__name__ in found:
                    raise ValueError(f"two forms are called {value.__name__}: the pages cannot tell them apart")
                found[value.__name__] = value
    return found


def forms_of(page: str) -> dict[str, type[Any]]:
    """The forms that a page may describe."""
    return forms(DHT_MODULES if page == DHT_PAGE else WIRE_MODULES)


def fields_of(form: type[Any]) -> tuple[str, ...]:
    """The names of a form's positions."""
    return form.__struct_fields__ if issubclass(form, msgspec.Struct) else form._fields


def wire_type(kind: Any) -> str:
    """What stands at a position, in words."""
    if hasattr(kind, "__supertype__"):
        return wire_type(kind.__supertype__)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return wire_type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(wire_type(argument) for argument in arguments)
    if origin is list or (origin is tuple and arguments[-1] is ...):
        return f"list of {wire_type(arguments[0])}"
    if origin is tuple:
        return "(" + ", ".join(wire_type(argument) for argument in arguments) + ")"
    if origin is dict:
        return f"map of {wire_type(arguments[0])} to {wire_type(arguments[1])}"
    if kind in PLAIN:
        return PLAIN[kind]
    if issubclass(kind, enum.IntEnum):
        return "int"
    return f"`{kind.__name__}`"


def sections(text: str) -> Iterator[tuple[str, list[int]]]:
    """(name, numbers of the rows) of each form that a page describes under a heading."""
    name, rows = "", list[int]()
    in_table = False
    for number, line in enumerate(text.splitlines()):
        if line.startswith("#"):
            if name:
                yield name, rows
            heading = HEADING.match(line)
            name, rows, in_table = heading["name"] if heading else "", [], False
        elif line.startswith("| field |"):
            in_table = True
        elif in_table and ROW.match(line):
            rows.append(number)
        elif not line.startswith("|"):
            in_table = False
    if name:
        yield name, rows


def fill(page: str, text: str) -> tuple[str, list[str]]:
    """A page with the right types in its tables, and the complaints about it."""
    known, lines, complaints = forms_of(page), text.splitlines(), list[str]()
    for name, rows in sections(text):
        form = known.get(name)
        if form is None:
            complaints.append(f"{page}: describes {name}, which does not exist")
            continue
        matches = [found for row in rows if (found := ROW.match(lines[row]))]
        told, due = tuple(found["field"] for found in matches), fields_of(form)
        if told != due:
            complaints.append(f"{page}: the fields of {name} are {', '.join(due) or 'none'}; the page has {', '.join(told) or 'none'}")
            continue
        hints = typing.get_type_hints(form)
        for row, found in zip(rows, matches, strict=True):
            lines[row] = f"| `{found['field']}` | {wire_type(hints[found['field']])} | {found['meaning']} |"
    return "\n".join(lines) + "\n", complaints


def undescribed() -> list[str]:
    """Forms that no page has a heading for."""
    missing = []
    for modules, pages in ((DHT_MODULES, [SPEC / DHT_PAGE]), (WIRE_MODULES, sorted(set(SPEC.glob("*.md")) - {SPEC / DHT_PAGE}))):
        told = {name for page in pages for name, _ in sections(page.read_text(encoding="utf-8"))}
        missing += [f"docs/spec has no {name} of {form.__module__}" for name, form in forms(modules).items() if name not in told]
    return missing


def reasons_page() -> str:
    """The page of reason codes."""
    head = (
        "# Reason codes\n\nWhy something was refused, paused, given up or tried again. The code crosses the wire and stands in every\n"
        "`--json` document; people read the sentence. Codes are only ever added. This page is written by\n"
        "`python docs/generate.py` from `p2pgrid/model/reasons.py`. `p2pgrid why` shows them in brackets.\n"
    )
    parts = [head]
    for title, members in reason_groups():
        rows = [f"| `{reason.value}` | {reason.sentence} | {reason.next_step} |".replace("|  |", "| |") for reason in members]
        parts.append(f"\n## {title}\n\n| code | what it says | what to do |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def reason_groups() -> list[tuple[str, list[Reason]]]:
    """The codes under the headings that stand above them in the code."""
    groups: list[tuple[str, list[Reason]]] = []
    for line in inspect.getsource(Reason).splitlines():
        heading = re.fullmatch(r"    # (.+)", line)
        member = re.match(r"    ([A-Z_]+) = ", line)
        if heading:
            groups.append((heading[1], []))
        elif member and member[1] in Reason.__members__:
            groups[-1][1].append(Reason[member[1]])
    return groups


def messages_page() -> str:
    """The index of all forms, by page."""
    head = (
        "# Index of messages\n\nEvery message, statement and nested form, with its page and its fields in order. A test fails when one\n"
        "is missing. Methods are listed under [calls](rpc.md). This page is written by `python docs/generate.py`.\n"
    )
    parts = [head]
    for path in sorted(SPEC.glob("*.md")):
        names = [name for name, _ in sections(path.read_text(encoding="utf-8"))]
        known = forms_of(path.name)
        rows = [f"| `{name}` | {', '.join(f'`{field}`' for field in fields_of(known[name])) or '-'} |" for name in names if name in known]
        if rows and path.name != MESSAGES_PAGE:
            parts.append(f"\n## [{path.stem}]({path.name})\n\n| form | fields |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


# -- scenario files ----------------------------------------------------------------------------

GRIDS = DOCS.parent / "scenarios" / "grids"
SCENARIO_TABLES = (
    ("The file itself", scenarios.GridScenario, "Keys before the first table."),
    ("`[network]`", scenarios.NetworkPlan, ""),
    ("`[[nodes]]`", scenarios.NodePlan, ""),
    ("`[[faults]]`", scenarios.FaultPlan, ""),
    ("`[[jobs]]`", scenarios.JobPlan, ""),
    ("`[[files]]`", scenarios.FilePlan, ""),
    ("`[expect]`", scenarios.Expectations, ""),
    ("`[core]`", scenarios.CorePlan, ""),
)
SCENARIO_HEAD = """\
# Scenario files

A scenario describes a simulated grid: machines of some kinds, the network between them, what goes wrong, which jobs and
files there are, and what must hold at the end. `p2pgrid simulate FILE --seed N` runs it. The invariants are checked
in every run, whatever a scenario expects. From Python, `p2pgrid.testing.plans.scenario` has `load`, `parse` and `plan`.

```toml
about = "Half of the machines die while they work."

[[nodes]]
kind = "founder"

[[nodes]]
kind = "peer"
count = [8, 29]
storage_bytes = "64MiB"

[[faults]]
kind = "crash"
share = 0.5
at_s = [11, 18]

[[jobs]]
units = [150, 200]
```

Files are TOML. What the tables below call *span* is a number, or `[low, high]`: then each seed draws its own, with equal
chance. A *count* is the same in whole numbers. So one file describes a family of grids, and a seed picks one of them; the
same seed always picks the same. Machines, faults, jobs and files draw independently: one more fault leaves the machines
as they were. Times and durations are virtual seconds from the start of the run (`_s`); sizes (`_bytes`) are numbers or texts as
`"64MiB"`. A key or a word that does not exist, a number out of bounds, or a fault that could never happen is refused with its
place in the file and exit code 65.

This page is written by `python docs/generate.py` from `p2pgrid/testing/plans/scenario.py`.
"""


def meanings(source: str) -> dict[str, str]:
    """What the text below each field of a class says; empty where there is none."""
    found = dict[str, str]()
    body = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(body, ast.ClassDef)
    field = ""
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            field = statement.target.id
            found[field] = ""
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and field:
            found[field] = inspect.cleandoc(str(statement.value.value)).replace("\n", " ").replace("``", "`")
            field = ""
    return found


def meanings_of(form: type[Any]) -> dict[str, str]:
    """The same of a struct, without what is never written in a file."""
    return {field: text for field, text in meanings(inspect.getsource(form)).items() if field != "folder"}


def toml_type(kind: Any) -> str:
    """What a key takes, in words."""
    if kind == scenarios.Span:
        return "span"
    if kind == scenarios.Count:
        return "count"
    if typing.get_origin(kind) is tuple:
        return f"list of {toml_type(typing.get_args(kind)[0])}"
    names = {float: "number", int: "whole number", str: "text", bool: "true or false"}
    return names.get(kind, "table")


def toml_value(value: Any) -> str:
    """A default as it would be written."""
    if value is msgspec.NODEFAULT:
        return "must be given"
    if isinstance(value, msgspec.Struct):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`[{', '.join(toml_value(part).strip('`') for part in value)}]`"
    if isinstance(value, int) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f'`"{value >> 20}MiB"`'
    return f"`{value:,.0f}`".replace(",", "_") if value >= 10_000 else f"`{value:g}`"


def scenario_table(form: type[Any]) -> str:
    """The rows of one table of a scenario file."""
    hints, texts = typing.get_type_hints(form), meanings_of(form)
    rows = [f"<!-- {form.__name__} -->", "| key | type | default | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(form):
        if field.name in texts:
            default = "name of the file" if field.name == "name" and form is scenarios.GridScenario else toml_value(field.default)
            rows.append(f"| `{field.name}` | {toml_type(hints[field.name])} | {default} | {texts[field.name]} |")
    return "\n".join(rows) + "\n"


def scenarios_page() -> str:
    """The page of scenario files."""
    parts = [SCENARIO_HEAD]
    for title, form, text in SCENARIO_TABLES:
        about = text or inspect.cleandoc(form.__doc__ or "").replace("``", "`")
        parts.append(f"\n## {title}\n\n{about}\n\n{scenario_table(form)}")
        if form is scenarios.FaultPlan:
            rows = [f"| `{kind}` | {meaning} |" for kind, meaning in scenarios.FAULT_MEANINGS.items()]
            parts.append(
                "\nThe kinds, and what they do to each machine they strike:\n\n| kind | what happens |\n|---|---|\n"
                + "\n".join(rows)
                + "\n"
            )
    rows = [f"| [{path.stem}](../../scenarios/grids/{path.name}) | {scenarios.load(path).about} |" for path in sorted(GRIDS.glob("*.toml"))]
    parts.append("\n## Scenarios that come with p2pgrid\n\n| scenario | what it shows |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


# -- exit codes --------------------------------------------------------------------------------

EXITS_HEAD = """\
# Exit codes

Scripts may rely on them. Data goes to stdout; an error is one line and often a hint on stderr, and stdout stays empty. This
page is written by `python docs/generate.py` from `cli/p2pgrid_cli/exits.py`.

| code | meaning | what to do |
|---|---|---|
"""
ERRORS_HEAD = """
## Which error gives which code

The classes of `p2pgrid/errors.py`; a program that uses `p2pgrid.client` meets the same ones.

| error | code | says |
|---|---|---|
"""


def exits_page() -> str:
    """The page of exit codes."""
    codes = [f"| {code} | {meaning} | {step} |".replace("|  |", "| |") for code, (meaning, step) in exits.MEANINGS.items()]
    errors = [f"| `{kind.__name__}` | {code} | {says} |" for kind, code, says in exits.ERRORS if kind is not RemoteError]
    tail = "\n\nEach may carry a [reason code](reasons.md) and a hint.\n"
    return EXITS_HEAD + "\n".join(codes) + "\n" + ERRORS_HEAD + "\n".join(errors) + tail


# -- JSON documents ----------------------------------------------------------------------------

JSON_HEAD = """\
# JSON documents

Commands that list or report something take `--json` and print one document on stdout. Keys are only ever added. Keys of
nodes, jobs and blobs are the full text form (52 characters of base32). Times are Unix milliseconds, sizes bytes.
`p2pgrid schema COMMAND` prints the JSON Schema of a document, for programs. This page is written by
`python docs/generate.py` from `cli/p2pgrid_cli/documents`.
"""


def json_type(kind: Any) -> str:
    """What stands behind a key, in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(json_type(argument) for argument in arguments if argument is not msgspec.UnsetType)
    if origin is tuple and arguments[-1] is ...:
        inner = json_type(arguments[0])
        return "list" if inner in ("object", "any") else f"list of {inner.replace('number', 'numbers')}"
    if origin is tuple:
        return "list of " + ", ".join(json_type(argument) for argument in arguments)
    if origin is dict:
        return "map"
    if kind is Any:
        return "any"
    if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
        return "object"
    return {str: "text", bool: "bool", int: "number", float: "number", type(None): "null"}[kind]


def json_table(form: type[Any]) -> str:
    """The rows of one object; without those of the object that it extends."""
    hints, texts = typing.get_type_hints(form), meanings(inspect.getsource(form))
    rows = [f"| `{name}` | {json_type(hints[name])} | {text} |".replace("|  |", "| |") for name, text in texts.items()]
    return "\n".join([f"<!-- {form.__name__} -->", "| key | type | meaning |", "|---|---|---|", *rows]) + "\n"


def inner_forms(form: type[Any]) -> Iterator[type[Any]]:
    """The objects within an object, in order of their keys."""
    pending = list(typing.get_type_hints(form).values())
    while pending:
        kind = pending.pop(0)
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct):
            yield kind
        pending[:0] = typing.get_args(kind)


def json_page() -> str:
    """The page of JSON documents: each object once, at the first command that prints it."""
    parts, told = [JSON_HEAD], dict[type[Any], str]()
    for places in dict.fromkeys(DOCUMENTS.values()):
        commands = [command for command, has in DOCUMENTS.items() if has == places]
        title = ", ".join(f"`{command} --json`" for command in commands)
        parts.append(f"\n## {title}\n")
        for form in documents_of(commands[0]):
            pending = [form]
            while pending:
                shown = pending.pop(0)
                about = inspect.cleandoc(shown.__doc__ or "").replace("``", "`")
                if shown in told:
                    if shown is form:
                        parts.append(f"\n{about} As of `{told[shown]}`.\n")
                    continue
                told[shown] = commands[0]
                parts.append(f"\n{about}\n\n{json_table(shown)}")
                pending[:0] = inner_forms(shown)
    return "".join(parts)


def derived_pages() -> dict[Path, str]:
    """The pages that nobody writes by hand."""
    return {
        SPEC / MESSAGES_PAGE: messages_page(),
        DOCS / "reference" / "exit-codes.md": exits_page(),
        DOCS / "reference" / "json.md": json_page(),
        DOCS / "reference" / "reasons.md": reasons_page(),
        DOCS / "reference" / "scenario-files.md": scenarios_page(),
    }


def main() -> int:
    """Write the pages; complaints go to stderr."""
    complaints = undescribed()
    for path in sorted(SPEC.glob("*.md")):
        text, found = fill(path.name, path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        complaints += found
    for path, page in derived_pages().items():
        path.write_text(page, encoding="utf-8")
    sys.stderr.writelines(f"{line}\n" for line in complaints)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
