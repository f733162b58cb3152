"""Units import the packages of their job inside their cage, cannot change them, and nothing of them runs by itself."""

from __future__ import annotations

from pathlib import Path

from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.packages import EnvironmentPolicy, Environments
from p2pgrid.runtimes.tasks import Outcome
from tests.unit.runtimes.conftest import RunUnits
from tests.unit.runtimes.wheel_maker import environment_of, make_wheel

SOURCE = """
import sys
import toy

def work(item):
    if item == "import":
        return toy.version, "evil" in sys.modules
    if item == "write":
        open(toy.__file__, "a")
    if item == "add":
        open(toy.__file__ + "c", "w")
    return None
"""


async def test_units_import_packages_that_the_node_itself_does_not_have(tmp_path: Path, run_units: RunUnits) -> None:
    folder = tmp_path / "environments"
    environments = Environments(folder, EnvironmentPolicy(), InlineOffload(), lambda: 0.0)
    await environments.start()
    wheel = make_wheel(tmp_path, files={"evil.py": "", "evil.pth": "import evil\n", "sitecustomize.py": "import evil\n"})
    packages = await environments.build(environment_of(wheel), {wheel.name: wheel})
    ended = await run_units(SOURCE, ["import", "write", "add"], code={"path": (str(packages),)})
    assert ended.values[0] == ["1.0", False]
    assert ended.outcomes == [Outcome.OK, Outcome.RAISED, Outcome.RAISED]
