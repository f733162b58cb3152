"""``python -m bench quick [--units N] [--rounds N] [--json] [--check] [--profile [lead|worker|keeper]] [--systems A,B]``."""

from __future__ import annotations

import argparse
import sys

from bench.grid import PROFILABLE
from bench.quick import SYSTEMS, ChildError, Options, run


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> Options:
    """Options from the words of the command line; argparse ends the process when they are wrong."""
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    quick = parser.add_subparsers(dest="command", required=True).add_parser(
        "quick", help="two workers, no-ops and latency, in under 3 minutes"
    )
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
    found = vars(parser.parse_args(arguments))
    del found["command"]
    systems = tuple(found.pop("systems").split(","))
    unknown = [name for name in systems if name not in SYSTEMS]
    if unknown:
        parser.error(f"no such system: {unknown[0]}; there are {', '.join(SYSTEMS)}")
    return Options(systems=systems, **found)


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
        return run(parse(sys.argv[1:]), _say)
    except ChildError as error:
        _say(str(error))
        return 70


if __name__ == "__main__":
    sys.exit(main())
