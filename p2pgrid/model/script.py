"""A job script: an ordinary Python file with a PEP 723 header. Read here, never executed.

``work(item)`` must be defined at its top level; ``inputs(*args)``, ``reduce(a, b)`` and ``finish(results)`` may be.
``[tool.p2pgrid]`` in the header sets the same options as the flags of ``p2pgrid run``; a key that is not known
is an error, since an option that is silently ignored costs somebody a night of computing. For the same reason a header
that redirects where packages come from is refused (docs/spec/environments.md).
"""

from __future__ import annotations

import ast
import difflib
import re
import tomllib
import warnings
from typing import Annotated, Any, Literal

import msgspec

from p2pgrid.errors import BadDataError

SCRIPT_BYTES_MAX = 1 << 20
ROLES = ("work", "inputs", "reduce", "finish")
# The block of PEP 723: its opening line, comment lines only, its closing line.
_BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)[ \t]*$\n(?P<content>(^#(| .*)$\n)+)^# ///[ \t]*$")

_Positive = Annotated[int, msgspec.Meta(ge=1)]
Runtime = Literal["auto", "python", "native", "wasm", "command"]


class ScriptOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[tool.p2pgrid]``. None means: not said here, so flags, environment and defaults decide."""

    runtime: Runtime | None = None
    replicas: _Positive | None = None
    """How many workers run each unit."""
    quorum: _Positive | Literal["auto"] | None = None
    """How many of them must agree."""
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Seconds that one unit may take."""
    attempts: _Positive | None = None
    """How often a unit that raised or died is tried."""
    memory: str | _Positive | None = None
    """Memory that one unit may take: bytes, or text as "512M"."""
    labels: tuple[str, ...] = ()
    """Labels that a worker must offer."""
    detach: bool | None = None
    local: _Positive | None = None
    """Nodes of an embedded grid to run on instead."""
    finish: Literal["grid", "local"] = "grid"
    """Where ``finish`` runs: as the last unit in the grid, or at the submitter."""


class JobScript(msgspec.Struct, frozen=True, kw_only=True):
    """A script that was read and found usable."""

    source: str
    file_name: str
    options: ScriptOptions
    requires_python: str = ""
    dependencies: tuple[str, ...] = ()
    """Names, extras, version ranges and markers, in a normal form."""
    functions: frozenset[str] = frozenset()
    """Which of work, inputs, reduce and finish it defines."""

    @property
    def has_inputs(self) -> bool:
        """Whether it makes its own items."""
        return "inputs" in self.functions

    @property
    def has_reduce(self) -> bool:
        """Whether results are folded pairwise."""
        return "reduce" in self.functions

    @property
    def has_finish(self) -> bool:
        """Whether a last step makes the job's result."""
        return "finish" in self.functions


def parse_script(source: str | bytes, file_name: str) -> JobScript:
    """Read a job script. ``file_name`` is what messages and tracebacks show.

    Raises BadDataError for text that is no Python, a header that does not parse, an unknown option, or a missing ``work``.
    """
    text = _as_text(source, file_name)
    tree = _syntax_tree(text, file_name)
    header = _header(text, file_name)
    functions = _defined(tree, file_name)
    if "work" not in functions:
        raise BadDataError(f"{file_name} defines no work(item)", hint=_missing_work_hint(tree))
    tool = header.get("tool", {})
    options = _options(tool.get("p2pgrid", {}) if isinstance(tool, dict) else {}, file_name)
    if options.finish == "local" and "finish" not in functions:
        raise BadDataError(f'{file_name} says finish = "local" but defines no finish(results)', hint="define it, or drop the option")
    return JobScript(
        source=text,
        file_name=file_name,
        options=options,
        requires_python=_requires_python(header, file_name),
        dependencies=_dependencies(header, file_name),
        functions=functions,
    )


def _as_text(source: str | bytes, file_name: str) -> str:
    if len(source) > SCRIPT_BYTES_MAX:
        raise BadDataError(f"{file_name} is longer than {SCRIPT_BYTES_MAX} bytes", hint="ship data as inputs, not inside the script")
    if isinstance(source, str):
        return source
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadDataError(f"{file_name} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _syntax_tree(text: str, file_name: str) -> ast.Module:
    """Parse and compile, so that what only the compiler refuses (a stray return, say) is found here too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, file_name)
            compile(tree, file_name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BadDataError(_syntax_message(error, file_name)) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadDataError(f"{file_name} is not a usable Python file: {str(error) or type(error).__name__}") from error
    return tree


def _syntax_message(error: SyntaxError, file_name: str) -> str:
    message = f"{file_name}:{error.lineno or 0}: {error.msg}"
    if not error.text:
        return message
    line = error.text.rstrip("\r\n")
    stripped = line.lstrip()
    caret = max(0, (error.offset or 1) - 1 - (len(line) - len(stripped)))
    return f"{message}\n    {stripped}\n    {' ' * caret}^"


def _header(text: str, file_name: str) -> dict[str, Any]:
    """The TOML of the ``script`` block; empty when there is none."""
    text = text.replace("\r\n", "\n")
    blocks = [match for match in _BLOCK.finditer(text) if match.group("type") == "script"]
    if not blocks:
        if re.search(r"(?m)^# /// script[ \t]*$", text):
            raise BadDataError(
                f"the header of {file_name} is opened but not closed", hint="end it with a line '# ///'; each line starts with '# '"
            )
        return {}
    if len(blocks) > 1:
        raise BadDataError(f"{file_name} has {len(blocks)} 'script' blocks in its header", hint="PEP 723 allows one")
    lines = blocks[0].group("content").splitlines()
    content = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise BadDataError(f"the header of {file_name} is not valid TOML: {error}") from error


def _options(table: Any, file_name: str) -> ScriptOptions:
    if not isinstance(table, dict):
        raise BadDataError(f"[tool.p2pgrid] of {file_name} is not a table")
    known = ScriptOptions.__struct_fields__
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            raise BadDataError(f"[tool.p2pgrid] of {file_name} has an unknown key '{key}'", hint=hint)
    try:
        return msgspec.convert(table, ScriptOptions)
    except msgspec.ValidationError as error:
        raise BadDataError(f"[tool.p2pgrid] of {file_name}: {error}") from error


def _requires_python(header: dict[str, Any], file_name: str) -> str:
    value = header.get("requires-python", "")
    if not isinstance(value, str):
        raise BadDataError(f"requires-python of {file_name} is not text")
    if value:
        from p2pgrid.model.dependencies import check_python

        check_python(value, file_name)
    return value


def _dependencies(header: dict[str, Any], file_name: str) -> tuple[str, ...]:
    value = header.get("dependencies", [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadDataError(f"dependencies of {file_name} is not a list of texts")
    if not value:
        return ()
    # What reads them is loaded for scripts that have some: a command line should start quickly.
    from p2pgrid.model.dependencies import read_dependencies

    tool = header.get("tool", {})
    if isinstance(tool, dict) and "uv" in tool:
        hint = "take the table out: packages come from the index that this machine is set up for, and workers ask none"
        raise BadDataError(f"the header of {file_name} has a [tool.uv] table, which is refused beside dependencies", hint=hint)
    return read_dependencies(value, file_name)


def _defined(tree: ast.Module, file_name: str) -> frozenset[str]:
    """Which roles the module will define, as far as its text tells."""
    found: set[str] = set()
    for statement in _statements(tree.body):
        if isinstance(statement, ast.AsyncFunctionDef) and statement.name in ROLES:
            raise BadDataError(f"{file_name}:{statement.lineno}: {statement.name} is async", hint="make it an ordinary function")
        found.update(name for name in _names(statement) if name in ROLES)
    return frozenset(found)


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run at import, those inside if, try and with included."""
    found: list[ast.stmt] = []
    pending = list(reversed(body))
    while pending:
        statement = pending.pop()
        found.append(statement)
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statement, (ast.If, ast.Try, ast.With)):
                pending.extend(getattr(statement, field, []))
        if isinstance(statement, ast.Try):
            for handler in statement.handlers:
                pending.extend(handler.body)
    return found


def _names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return [statement.target.id]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    return []


def _missing_work_hint(tree: ast.Module) -> str:
    names = [statement.name for statement in tree.body if isinstance(statement, ast.FunctionDef) and statement.name not in ROLES]
    close = difflib.get_close_matches("work", names, n=1, cutoff=0.5) or (names if len(names) == 1 else [])
    if close:
        return f"rename {close[0]} to work: it is called once for each item"
    return "define work(item) at the top level of the script: it is called once for each item"
