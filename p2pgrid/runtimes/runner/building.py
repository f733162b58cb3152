"""How the runner is built: the guest's sources and the standard library, frozen into a component by componentize-py.

Runs before the package is installed, so it imports the standard library only and is loaded by its path (``hatch_build.py``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata, util
from pathlib import Path

HERE = Path(__file__).parent
FILE_NAME = "runner.wasm"
STAMP_NAME = "runner.stamp"
"""Beside the component: names what it was built from."""
_BUILD_S = 600
_APP = '''"""The application that the build tool is pointed at."""
from p2pgrid_guest import library

library.import_all()

import wit_world
from p2pgrid_guest import app

runner = app.Runner()


def answered(raw):
    return raw.decode("latin-1")


class WitWorld(wit_world.WitWorld):
    def compile(self, source, file_name):
        return answered(app.compile_source(source, file_name))

    def load(self, request):
        return answered(runner.load(request.encode("latin-1")))

    def place(self, request):
        return answered(runner.place(request.encode("latin-1")))

    def run(self, request):
        return answered(runner.run(request.encode("latin-1")))


app.settle()
'''


class BuildError(Exception):
    """The runner could not be built; the tool's own words are in the message."""


class NoToolError(BuildError):
    """componentize-py is not installed: it does not exist for every platform."""


def sources() -> list[Path]:
    """All that decides what the component does, besides the tool."""
    return [HERE / "runner.wit", HERE / "building.py", *sorted((HERE / "guest").glob("*.py"))]


def stamp() -> str:
    """Names what a build made now would be made from. Raises NoToolError."""
    try:
        version = metadata.version("componentize-py")
    except metadata.PackageNotFoundError as error:
        raise NoToolError("componentize-py is not installed") from error
    digest = hashlib.sha256(version.encode())
    for file in sources():
        # Line ends differ where a version control tool rewrites them.
        digest.update(b"\0" + file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def is_current(folder: Path) -> bool:
    """Whether ``folder`` holds a component that was built from these sources. Raises NoToolError."""
    try:
        return (folder / FILE_NAME).is_file() and (folder / STAMP_NAME).read_text(encoding="ascii").strip() == stamp()
    except OSError:
        return False


def build(folder: Path) -> Path:
    """Build the component into ``folder``, whatever is there. Its path. Raises BuildError, NoToolError, OSError."""
    if util.find_spec("componentize_py") is None:
        raise NoToolError("componentize-py is not installed")
    made_of = stamp()
    with tempfile.TemporaryDirectory(prefix="p2pgrid-runner-") as name:
        stage = Path(name)
        shutil.copytree(HERE / "guest", stage / "p2pgrid_guest", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(HERE / "runner.wit", stage)
        (stage / "runner_app.py").write_text(_APP, encoding="utf-8")
        _run_tool(stage)
        folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another build may be at it, and a node may be reading.
        draft = folder / f".{FILE_NAME}.{os.getpid()}"
        shutil.copy(stage / FILE_NAME, draft)
        os.replace(draft, folder / FILE_NAME)
        (folder / STAMP_NAME).write_text(made_of + "\n", encoding="ascii")
    return folder / FILE_NAME


def _run_tool(stage: Path) -> None:
    arguments = ["-d", "runner.wit", "-w", "runner", "componentize", "--stub-wasi", "-p", ".", "-o", FILE_NAME, "runner_app"]
    # The tool would also look into the site-packages of an active environment.
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import sys, componentize_py; sys.exit(componentize_py.script())", *arguments],
            cwd=stage,
            env=environment | _module_path(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"componentize-py took longer than {_BUILD_S} s") from error
    if done.returncode or not (stage / FILE_NAME).is_file():
        raise BuildError(f"componentize-py failed: {(done.stderr or done.stdout).strip()[:4000]}")


def _module_path() -> dict[str, str]:
    """Where the child finds the tool: a build environment may exist in this process's sys.path alone."""
    spec = util.find_spec("componentize_py")
    return {"PYTHONPATH": str(Path(spec.origin).parent.parent)} if spec is not None and spec.origin else {}


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))  # noqa: T201 - for people at a prompt
