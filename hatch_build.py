"""Builds the Python runner when the package is built: a component of about 35 MB that belongs into every wheel and into no repository.

It is made by componentize-py, which exists for the usual platforms only. Where it does not, the package is built without a runner: such a
node runs the jobs of those it trusts, and takes the runner for the others from its grid.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RUNNER = Path("p2pgrid", "runtimes", "runner")
WITHOUT_VARIABLE = "P2PGRID_BUILD_WITHOUT_RUNNER"
"""Set to 1 to build without the runner, whatever is installed."""


class RunnerHook(BuildHookInterface[Any]):
    """Has the runner built before files are collected, if it is missing or was built from other sources."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """As hatchling asks for it, for sdists, wheels and editable installs alike."""
        folder = Path(self.root) / RUNNER
        building = _load(folder / "building.py")
        component: Path = folder / building.FILE_NAME
        if os.environ.get(WITHOUT_VARIABLE) == "1":
            self.app.display_warning("built without the Python runner, as asked")
            return
        try:
            if building.is_current(folder):
                return
            self.app.display_info("building the Python runner: about 20 s")
            building.build(folder)
        except building.NoToolError as error:
            # A source distribution carries the component: then no tool is needed.
            if not component.is_file():
                self.app.display_warning(f"built without the Python runner: {error}")


def _load(path: Path) -> ModuleType:
    """A module by its file: the package itself cannot be imported yet, its dependencies are not there."""
    spec = importlib.util.spec_from_file_location("p2pgrid_runner_building", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
