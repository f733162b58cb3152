"""What commands there are: where each lives, what it does in a line, and how it is used.

The main help is written from this table alone, so that it imports nothing; the module of a command is imported when the
command is wanted. Examples are shown at the end of each command's help, and tests parse every one of them.
"""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

PROGRAM = "p2pgrid"
HELP_COLUMNS_MIN, HELP_COLUMNS_MAX = 50, 100
ABOUT = "Share spare CPU and storage with other machines, and use theirs. No server."
BEGIN = (
    ("p2pgrid run --local 4 SCRIPT.py", "a script on four nodes of this machine"),
    ("p2pgrid join", "found a private grid, to invite others to"),
)
_GAP = 2


class Entry(NamedTuple):
    """A command. ``examples``: (what to type, what that does)."""

    name: str
    module: str
    about: str
    examples: tuple[tuple[str, str], ...] = ()


class Group(NamedTuple):
    """Commands that belong together."""

    title: str
    entries: tuple[Entry, ...]


GROUPS = (
    Group(
        "Work",
        (
            Entry(
                "run",
                "run",
                "run a script or a command on many items",
                (
                    ("p2pgrid run job.py 1000", "items come from inputs(1000)"),
                    ("p2pgrid run job.py --over 1 2 3", "items given here; files are taken along"),
                    ("seq 100 | p2pgrid run job.py --over -", "items are the lines of stdin"),
                    ("p2pgrid run -- gzip -9kc {} ::: a.log b.log", "a command for each item, like GNU parallel"),
                    ("p2pgrid run tool.wasm --over 1 2 3", "a WebAssembly module, on any machine"),
                    ("p2pgrid run --local 4 job.py", "on four nodes of this machine"),
                ),
            ),
            Entry(
                "jobs",
                "jobs",
                "list the jobs this node leads or keeps",
                (("p2pgrid jobs", "the newest first"), ("p2pgrid jobs --json", "for programs: docs/reference/json.md")),
            ),
            Entry(
                "watch",
                "jobs",
                "watch a job until it ends",
                (("p2pgrid watch 7xq3", "the beginning of its id will do"), ("p2pgrid watch 7xq3 | cat", "a line for each change")),
            ),
            Entry(
                "results",
                "jobs",
                "print the results of a job",
                (
                    ("p2pgrid results 7xq3", "what there is now"),
                    ("p2pgrid results 7xq3 --wait", "wait for its end first"),
                    ("p2pgrid results 7xq3 -o folder", "where result files go"),
                ),
            ),
            Entry(
                "cancel",
                "jobs",
                "cancel a job, wherever it is led",
                (("p2pgrid cancel 7xq3", "its results so far stay readable"), ("p2pgrid cancel 7xq3 --json", "say it to a program")),
            ),
            Entry(
                "simulate",
                "simulate",
                "run whole grids in virtual time, with faults",
                (
                    ("p2pgrid simulate churn.toml --seed 7", "one grid, the same every time"),
                    ("p2pgrid simulate churn.toml --seeds 1..20", "twenty of the family"),
                    ("p2pgrid simulate churn.toml --trace fault", "when what broke"),
                ),
            ),
        ),
    ),
    Group(
        "Files",
        (
            Entry(
                "put",
                "files",
                "store a file or a folder on several nodes",
                (
                    ("p2pgrid put data.csv", "three copies for a week; prints the id"),
                    ("p2pgrid put photos --ttl 30d --replicas 5", "a folder, longer and safer"),
                    ("p2pgrid put data.csv --replicas auto", "as many as the nodes' absences ask for"),
                ),
            ),
            Entry(
                "get",
                "files",
                "fetch a file or a folder, verified",
                (
                    ("p2pgrid get 7xq3 -o data.csv", "into a file"),
                    ("p2pgrid get 7xq3 | head", "to stdout"),
                    ("p2pgrid get 7xq3 -o photos", "a folder"),
                ),
            ),
            Entry(
                "blobs",
                "files",
                "list what was put or pinned at this node",
                (("p2pgrid blobs", "with copies and time left"), ("p2pgrid blobs --all --json", "also what lies here for others")),
            ),
            Entry(
                "pin",
                "files",
                "keep a file at this node for good",
                (("p2pgrid pin 7xq3", "fetched if it is not here"), ("p2pgrid blobs", "says which are pinned")),
            ),
            Entry(
                "unpin",
                "files",
                "give up what was pinned or put here",
                (("p2pgrid unpin 7xq3", "other nodes keep their copies"), ("p2pgrid blobs", "says what is left")),
            ),
        ),
    ),
    Group(
        "Grid",
        (
            Entry(
                "join",
                "membership",
                "run a node: found a grid, or enter one",
                (
                    ("p2pgrid join", "found a private grid, or start again"),
                    ("p2pgrid join INVITE --detach", "enter a grid, in the background"),
                    ("p2pgrid join --cpus 2 --storage 20G", "lend this much and no more"),
                    ("p2pgrid join --only-idle 10 --hours 22:00-07:00", "only at night, when nobody is there"),
                ),
            ),
            Entry(
                "invite",
                "membership",
                "print an invite, to hand over like a password",
                (
                    ("p2pgrid invite", "to work, store and submit, for a year"),
                    ("p2pgrid invite --role work --role store", "may help, may not submit"),
                    ("p2pgrid invite --days 1", "all memberships from it end tomorrow"),
                ),
            ),
            Entry(
                "leave",
                "membership",
                "stop the node of this home, in good order",
                (("p2pgrid leave", "its jobs and copies go to others"), ("p2pgrid leave --home ~/second", "the node of another home")),
            ),
            Entry(
                "peers",
                "look",
                "list the nodes, with what they have to spare",
                (("p2pgrid peers", "this node first"), ("p2pgrid peers --json", "for programs: docs/reference/json.md")),
            ),
        ),
    ),
    Group(
        "This machine",
        (
            Entry(
                "pause",
                "pausing",
                "give the processors back within two seconds",
                (("p2pgrid pause", "until 'p2pgrid resume'"), ("p2pgrid pause --for 2h", "for a time")),
            ),
            Entry(
                "resume",
                "pausing",
                "work again, whatever stands in the way now",
                (("p2pgrid resume", "after 'p2pgrid pause', too"), ("p2pgrid resume --home ~/second", "the node of another home")),
            ),
            Entry(
                "finish",
                "pausing",
                "take nothing new, end what runs, then pause",
                (("p2pgrid finish", "before a shutdown that can wait"), ("p2pgrid finish --json", "say it to a program")),
            ),
            Entry(
                "doctor",
                "doctor",
                "attack the cages of this machine",
                (
                    ("p2pgrid doctor", "which runtimes hold, and what else is amiss"),
                    ("p2pgrid doctor --runtime wasm", "only this one"),
                    ("p2pgrid doctor --verbose", "every attack"),
                ),
            ),
            Entry(
                "config",
                "configuring",
                "show the settings, and where each comes from",
                (("p2pgrid config show --origin", "every setting and who said so"), ("p2pgrid config path", "the file to write them to")),
            ),
        ),
    ),
    Group(
        "Looking",
        (
            Entry(
                "top",
                "look",
                "a live picture of node, peers and jobs",
                (("p2pgrid top", "q ends it"), ("p2pgrid top --once", "one look, also for a pipe")),
            ),
            Entry(
                "why",
                "why",
                "the reason behind a state, and what to do",
                (
                    ("p2pgrid why me", "does this node work for others?"),
                    ("p2pgrid why 7xq3", "a job, a file or a node"),
                    ("p2pgrid why 7xq3/12", "unit 12 of a job"),
                ),
            ),
            Entry(
                "schema",
                "schemas",
                "print the JSON Schema of a command's document",
                (("p2pgrid schema jobs", "what 'p2pgrid jobs --json' prints"), ("p2pgrid schema", "which commands have one")),
            ),
            Entry(
                "completion",
                "completion",
                "print a script for the completion of a shell",
                (
                    ('eval "$(p2pgrid completion bash)"', "in ~/.bashrc"),
                    ('eval "$(p2pgrid completion zsh)"', "in ~/.zshrc"),
                    ("p2pgrid completion fish | source", "in ~/.config/fish/config.fish"),
                ),
            ),
        ),
    ),
)
SHOW_EXAMPLES = (
    ("p2pgrid config show", "every setting with its value"),
    ("p2pgrid config show --origin", "and who said so"),
    ("p2pgrid config show --json", "for programs"),
)
PATH_EXAMPLES = (("p2pgrid config path", "which file that is"), ('${EDITOR:-vi} "$(p2pgrid config path)"', "change it"))
INNER_EXAMPLES = {"config": {"show": SHOW_EXAMPLES, "path": PATH_EXAMPLES}}
"""Of the commands within a command."""


def entries() -> dict[str, Entry]:
    """All commands by name, in the order of the help."""
    return {entry.name: entry for group in GROUPS for entry in group.entries}


def help_columns() -> int:
    """How wide a help may be on this terminal."""
    return max(HELP_COLUMNS_MIN, min(shutil.get_terminal_size((80, 24)).columns, HELP_COLUMNS_MAX) - _GAP)


def main_help(columns: int) -> str:
    """What ``p2pgrid --help`` prints."""
    lines = [f"Usage: {PROGRAM} COMMAND [OPTIONS] [ARGS]...", "", *_wrapped(ABOUT, columns, "  "), "", "Begin with:"]
    lines += example_lines(BEGIN, columns)
    width = max(map(len, entries())) + _GAP
    for group in GROUPS:
        lines += ["", f"{group.title}:"]
        for entry in group.entries:
            lines += _wrapped(entry.about, columns, f"  {entry.name:<{width}}")
    lines += ["", "Options:", "  -h, --help   Of a command: p2pgrid COMMAND --help", "  --version    Print the version.", ""]
    return "\n".join([*lines, *_wrapped("P2PGRID_HOME or --home DIR chooses a node; NO_COLOR switches colours off.", columns, "")])


def examples_text(examples: tuple[tuple[str, str], ...], columns: int) -> str:
    """The end of a command's help. Its lines are final: the mark at the beginning tells click so."""
    return "\n".join(["\b", "Examples:", *example_lines(examples, columns - _GAP)])


def example_lines(examples: tuple[tuple[str, str], ...], columns: int) -> list[str]:
    """What to type, and what that does beside it; below it where the width is short. What to type is never broken."""
    width = max((len(typed) for typed, _ in examples), default=0)
    if all(2 * _GAP + width + len(text) <= columns for _, text in examples):
        return [f"  {typed:<{width}}  {text}" for typed, text in examples]
    return [line for typed, text in examples for line in (f"  {typed}", *_wrapped(text, columns, "      "))]


def _wrapped(text: str, columns: int, head: str) -> list[str]:
    """Words in lines of at most so many columns; further lines begin below the first word."""
    lines, line = [], head
    for word in text.split():
        first = len(line) == len(head)
        if not first and len(line) + 1 + len(word) > columns:
            lines.append(line)
            line = " " * len(head) + word
        else:
            line += word if first else f" {word}"
    return [*lines, line]


def is_plain(words: list[str]) -> str:
    """``help`` or ``version`` when nothing else is asked for, and nothing need be imported."""
    if words in (["--help"], ["-h"]) and not os.environ.get("_P2PGRID_COMPLETE"):
        return "help"
    return "version" if words == ["--version"] else ""
