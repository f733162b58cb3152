"""``python -m bench.newcomer``: a stopwatch for somebody who has the README and nothing else.

A fresh clone, a fresh environment and an empty home, and the commands of the README and the tutorial, one after the other.
What is asked: how long until the first result, and how long until two machines are in one grid. The package index must be
reachable; `pip` may use its cache, unless ``--no-cache``. All happens in a temporary folder that is gone afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from p2pgrid.store.home import Home

ROOT = Path(__file__).resolve().parents[1]
STEP_S = 600.0
RESULT_TARGET_S = 120.0
JOINED_TARGET_S = 180.0
SCRIPT = "scenarios/jobs/wordcount.py"


class Step(NamedTuple):
    """A command and how long it took."""

    command: str
    seconds: float
    printed: str


class Newcomer:
    """Somebody with a clone, typing."""

    def __init__(self, folder: Path, *, cached: bool) -> None:
        self.folder = folder
        self.clone = folder / "p2pgrid"
        self.steps: list[Step] = []
        hidden = ("P2PGRID", "PYTHON", "VIRTUAL_ENV", "XDG_", "PIP_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        (folder / "home").mkdir()
        # The cache of pip lies where it always did; all else that a home would hold is new.
        index = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        cache = {} if cached else {"PIP_NO_CACHE_DIR": "1"}
        self.environment = (
            kept | index | cache | {"XDG_DATA_HOME": str(folder / "home" / "data"), "XDG_CACHE_HOME": str(folder / "home" / "cache")}
        )
        if cached and "PIP_CACHE_DIR" not in index:
            self.environment["PIP_CACHE_DIR"] = str(Path("~/.cache/pip").expanduser())

    def type(self, command: str, *, where: Path | None = None) -> str:
        """Run a line of shell as it stands. Raises RuntimeError with what it said."""
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=where or self.clone,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_S,
            check=False,
        )
        self.steps.append(Step(command, time.monotonic() - began, done.stdout))
        if done.returncode:
            raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def took(self) -> float:
        """Seconds of all commands so far."""
        return sum(step.seconds for step in self.steps)


def play(newcomer: Newcomer) -> tuple[float, float]:
    """Seconds to the first result, and to two joined machines. The second one's installation is the first one's, taken twice."""
    newcomer.type(f"git clone --quiet --depth 1 file://{ROOT} p2pgrid", where=newcomer.folder)
    newcomer.type("python3 -m venv .venv && .venv/bin/pip install -e .")
    installed_s = newcomer.took()
    newcomer.type(f".venv/bin/p2pgrid run --local 4 {SCRIPT}")
    result_s = newcomer.took()
    local = "P2PGRID_LISTEN=127.0.0.1:0 .venv/bin/p2pgrid"
    newcomer.type(f"{local} join --detach")
    newcomer.type(".venv/bin/p2pgrid invite > invite.txt")
    newcomer.type(f'{local} join --detach --home ./second "$(cat invite.txt)"')
    peers = json.loads(newcomer.type(".venv/bin/p2pgrid peers --json"))["peers"]
    if sum(peer["live"] for peer in peers) != 2:
        raise RuntimeError(f"two nodes joined, and {len(peers)} are seen")
    first_run_s = result_s - installed_s
    return result_s, newcomer.took() - first_run_s


def end(newcomer: Newcomer) -> None:
    """Stop both nodes."""
    for home in (newcomer.folder / "home" / "data" / "p2pgrid", newcomer.clone / "second"):
        if home.exists() and Home(home, os.urandom).running() is not None:
            newcomer.type(f".venv/bin/p2pgrid leave --home {home}")


def main() -> int:
    """Print the table. Returns 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.newcomer", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-cache", action="store_true", help="let pip download everything")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON document on stdout")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="p2pgrid-newcomer-"))
    newcomer = Newcomer(folder, cached=not options.no_cache)
    try:
        result_s, joined_s = play(newcomer)
    finally:
        end(newcomer)
        shutil.rmtree(folder, ignore_errors=True)
    install_s = newcomer.steps[0].seconds + newcomer.steps[1].seconds
    rows = [(step.command.replace(str(ROOT), "..."), step.seconds) for step in newcomer.steps]
    totals = [
        ("to the first result", result_s, RESULT_TARGET_S),
        ("to two joined machines, the second installed meanwhile", joined_s, JOINED_TARGET_S),
        ("to two joined machines, the second installed afterwards", joined_s + install_s, JOINED_TARGET_S),
    ]
    if options.as_json:
        sys.stdout.write(json.dumps({"steps": rows, "totals": totals}, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{seconds:7.1f} s  {command}\n" for command, seconds in rows)
        sys.stdout.writelines(f"{seconds:7.1f} s  {what} (target {target:g} s)\n" for what, seconds, target in totals)
    return int(any(seconds > target for _, seconds, target in totals))


if __name__ == "__main__":
    sys.exit(main())
