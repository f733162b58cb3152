"""The pages say what the code does: forms and their fields, methods, reasons, exit codes."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from p2pgrid.errors import P2PGridError
from p2pgrid.model import log
from p2pgrid_cli import exits
from p2pgrid_cli.documents import DOCUMENTS, forms_of

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SPEC = DOCS / "spec"
CODE = ("p2pgrid", "cli", "bench", "scenarios")
CITED = re.compile(r"\bdocs/[\w./-]+\.md(?:#[\w-]+)?")
METHOD = re.compile(r'methods\.on(?P<form>_notify|_stream)?\(\s*"(?P<name>[\w.]+)"(?P<rest>[^\n]*)')


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("p2pgrid_docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    heads = re.findall(r"^#{1,6} (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def cited() -> Iterator[tuple[str, str]]:
    """(file, page with its anchor) of every page that the code names."""
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for mention in CITED.findall(path.read_text(encoding="utf-8")):
                yield path.relative_to(ROOT).as_posix(), mention


def links() -> Iterator[tuple[Path, str]]:
    """(page, target) of every link with an anchor between pages."""
    for page in sorted(DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+#[^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                yield page, target


def test_every_page_and_section_that_the_code_names_exists() -> None:
    missing = []
    for source, mention in cited():
        name, _, anchor = mention.partition("#")
        page = ROOT / name
        if not page.is_file() or (anchor and anchor not in slugs(page)):
            missing.append(f"{source}: {mention}")
    assert not missing


def test_every_anchor_of_a_link_exists() -> None:
    missing = []
    for page, target in links():
        name, _, anchor = target.partition("#")
        if anchor not in slugs(page.parent / name if name else page):
            missing.append(f"{page.name}: {target}")
    assert not missing


def test_every_form_on_the_wire_has_its_section() -> None:
    assert generate.undescribed() == []
    assert len(generate.forms(generate.WIRE_MODULES)) > 60
    assert len(generate.forms(generate.DHT_MODULES)) > 15


@pytest.mark.parametrize("page", sorted(SPEC.glob("*.md")), ids=lambda page: page.name)
def test_field_tables_have_the_fields_and_types_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    filled, complaints = generate.fill(page.name, text)
    assert complaints == []
    assert filled == text, "stale: run python docs/generate.py"


def test_a_table_that_is_wrong_is_reported() -> None:
    head = "## `BatchRef`\n\n| field | type | meaning |\n|---|---|---|\n"
    swapped = head + "| `units` | int | a |\n| `blob` | bytes | b |\n| `size_bytes` | int | c |\n"
    assert len(generate.fill("job.md", swapped)[1]) == 1
    assert len(generate.fill("job.md", "## `NoSuchThing`\n")[1]) == 1
    wrong_type = head + "| `blob` | text | a |\n| `units` | int | b |\n| `size_bytes` | int | c |\n"
    filled, complaints = generate.fill("job.md", wrong_type)
    assert complaints == []
    assert "| `blob` | bytes | a |" in filled


@pytest.mark.parametrize("page", sorted(generate.derived_pages()), ids=lambda page: page.name)
def test_derived_pages_are_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == generate.derived_pages()[page], "stale: run python docs/generate.py"


def methods() -> dict[str, tuple[str, str]]:
    """(form, who may) of every method that a service registers."""
    found = {}
    for path in sorted((ROOT / "p2pgrid" / "services").rglob("*.py")):
        for match in METHOD.finditer(path.read_text(encoding="utf-8")):
            role = re.search(r'role="(\w+)"', match["rest"])
            who = "owner" if "owner_only=True" in match["rest"] else f"role `{role[1]}`" if role else "member"
            found[match["name"]] = ({None: "call", "_notify": "notice", "_stream": "stream"}[match["form"]], who)
    return found


def test_every_method_is_in_the_list_of_calls() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (\w+) \| ([^|]+) \|", (SPEC / "rpc.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: (form, who) for name, form, who in rows} == methods()


def test_every_kind_of_log_record_is_in_the_ledger_page() -> None:
    text = (SPEC / "ledger.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \| ", text.partition("## Records of a job's log")[2], re.MULTILINE)
    assert {int(number): name for number, name in rows} == log.NAMES


def test_every_exit_code_is_described() -> None:
    text = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert rows == {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}


def test_every_error_is_on_the_page_of_exit_codes() -> None:
    text = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    told = {name: int(code) for name, code in re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)}
    pending, kinds = [P2PGridError], set[type[P2PGridError]]()
    while pending:
        kind = pending.pop()
        kinds.add(kind)
        pending += kind.__subclasses__()
    shipped = {kind for kind in kinds if kind.__module__ == "p2pgrid.errors" and kind.__name__ not in ("P2PGridError", "RemoteError")}
    assert told == {kind.__name__: exits.code_of(kind("x")) for kind in shipped}


def test_every_command_with_a_document_is_on_the_page_of_documents() -> None:
    text = (DOCS / "reference" / "json.md").read_text(encoding="utf-8")
    titles = " ".join(re.findall(r"^## (.+)$", text, re.MULTILINE))
    assert set(re.findall(r"`(\w+) --json`", titles)) == set(DOCUMENTS)


def test_every_key_of_a_document_is_explained_once() -> None:
    text = (DOCS / "reference" / "json.md").read_text(encoding="utf-8")
    forms = {shown for command in DOCUMENTS for form in forms_of(command) for shown in (form, *all_inner(form))}
    assert sorted(re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE)) == sorted(form.__name__ for form in forms)
    for form in forms:
        texts = generate.meanings(inspect.getsource(form))
        assert [name for name, meaning in texts.items() if not meaning] == [], form
        assert inspect.getdoc(form)


def all_inner(form: type[Any]) -> Iterator[type[Any]]:
    """The objects within an object, to the bottom; one that holds its own kind is not gone into again."""
    pending, seen = [form], {form}
    while pending:
        for inner in generate.inner_forms(pending.pop()):
            if inner not in seen:
                seen.add(inner)
                pending.append(inner)
                yield inner


def test_the_architecture_page_names_every_module() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    inside = ("p2pgrid/runtimes/worker", "p2pgrid/runtimes/sandbox", "p2pgrid/testing")
    modules = [path for folder in ("p2pgrid", "cli/p2pgrid_cli") for path in sorted((ROOT / folder).rglob("*.py"))]
    named = [path for path in modules if not path.name.startswith("__") and not path.relative_to(ROOT).as_posix().startswith(inside)]
    assert len(named) > 80
    assert [path.name for path in named if f"`{path.name}`" not in text and f"`p2pgrid/{path.name}`" not in text] == []
