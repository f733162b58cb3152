"""``python -m bench quick [--units N] [--rounds N] [--json] [--check] [--profile [lead|worker|keeper]] [--systems A,B]``.

``python -m bench files [--size 1G] [--rounds N] [--folder PATH] [--json]``.
``python -m bench sandbox [--rounds N] [--units N] [--batch N] [--folder PATH] [--python PATH] [--json] [--check]``.
``python -m bench faces [--rounds N] [--settle S] [--idle S] [--folder PATH] [--json] [--check]``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import faces, files, sandbox
from bench.grid import PROFILABLE
from bench.quick import SYSTEMS, ChildError, Options, run


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> Options | faces.Options | files.Options | sandbox.Options:
    """Options from the words of the command line; argparse ends the process when they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_files(commands.add_parser("files", help="a file put into six nodes with three copies, and got back, beside cp and plain TLS"))
    _add_sandbox(commands.add_parser("sandbox", help="what a cage costs beside no cage, and what the engines of strangers' code give"))
    _add_faces(commands.add_parser("faces", help="what commands, the dashboard and a node that waits cost, on a grid of six nodes"))
    _add_quick(commands.add_parser("quick", help="two workers, no-ops and latency, in under 3 minutes"))
    found = vars(parser.parse_args(arguments))
    command = found.pop("command")
    if command != "quick":
        if command == "faces":
            return faces.Options(**found)
        return files.Options(**found) if command == "files" else sandbox.Options(**found)
    systems = tuple(found.pop("systems").split(","))
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown:
        parser.error(f"no such system: {unknown[0]}; there are {', '.join(SYSTEMS)}")
    return Options(systems=systems, **found)


def _add_files(parser: argparse.ArgumentParser) -> None:
    default = files.Options()
    parser.add_argument("--size", type=_size, default=default.size_bytes, dest="size_bytes", help="of the file, as 256M or 1G")
    parser.add_argument("--rounds", type=_positive, default=default.rounds)
    parser.add_argument("--folder", type=Path, default=None, help="where everything is written; needs nine times the size per round")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON document on stdout, raw figures included")


def _add_sandbox(parser: argparse.ArgumentParser) -> None:
    default = sandbox.Options()
    parser.add_argument("--rounds", type=_positive, default=default.rounds)
    parser.add_argument("--units", type=_positive, default=default.units, help="no-ops of each level in each round")
    parser.add_argument("--batch", type=_positive, default=default.batch, help="units in a batch")
    parser.add_argument("--starts", type=_positive, default=default.starts, help="starts of each kind")
    parser.add_argument("--python", default=default.python, help="the interpreter for workers; default: this one")
    parser.add_argument("--folder", type=Path, default=None, help="where processes work and programs are kept; default: below /var/tmp")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON document on stdout, raw figures included")
    parser.add_argument("--check", action="store_true", help="exit 1 if a floor is missed")


def _add_faces(parser: argparse.ArgumentParser) -> None:
    default = faces.Options()
    parser.add_argument("--rounds", type=_positive, default=default.rounds, help="starts of each command")
    parser.add_argument("--settle", type=float, default=default.settle_s, dest="settle_s", help="seconds before nodes count as idle")
    parser.add_argument("--idle", type=float, default=default.idle_s, dest="idle_s", help="seconds of idleness")
    parser.add_argument("--folder", type=Path, default=None, help="where the nodes' homes are made")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON document on stdout")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")


def _add_quick(quick: argparse.ArgumentParser) -> None:
    default = Options()
    quick.add_argument("--units", type=_positive, default=default.units, help="no-ops in one job")
    quick.add_argument("--rounds", type=_positive, default=default.rounds)
    quick.add_argument("--jobs", type=_positive, default=default.jobs, help="jobs of that size in each round")
    quick.add_argument("--singles", type=_positive, default=default.singles, help="one-unit jobs in each round")
    quick.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated; default: all")
    quick.add_argument("--json", action="store_true", dest="as_json", help="one JSON document on stdout, raw figures included")
    quick.add_argument("--check", action="store_true", help="exit 1 if a floor is missed")
    quick.add_argument(
        "--profile", choices=sorted(PROFILABLE), nargs="?", const="lead", default="", help="profile a node in one more round"
    )


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return _positive(text[:-1]) * units[text[-1]] if text[-1:] in units else _positive(text)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main() -> int:
    """The exit code: 0, 1 for a missed floor, 70 when a system under test failed."""
    if sys.platform != "linux":
        _say("the bench reads CPU from Linux's accounts")
        return 69
    try:
        options = parse(sys.argv[1:])
        if isinstance(options, faces.Options):
            return faces.run(options, _say)
        if isinstance(options, files.Options):
            return files.run(options, _say)
        return sandbox.run(options, _say) if isinstance(options, sandbox.Options) else run(options, _say)
    except ChildError as error:
        _say(str(error))
        return 70


if __name__ == "__main__":
    sys.exit(main())
