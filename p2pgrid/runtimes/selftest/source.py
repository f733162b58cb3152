"""The text of a unit that attacks: the attack modules packed into one source, since a unit has no files of its own.

They are put together again under their own names inside of the unit, where the name ``p2pgrid`` belongs to whoever takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from p2pgrid.runtimes.selftest.attacks import base, bombs, disk, kernel, network, processes

ATTACKS = base.ATTACKS
"""Every attack by its name."""
_MODULES = (base, disk, network, processes, kernel, bombs)

_UNPACK = """\
import sys
from types import ModuleType

def _unpack(sources):
    for name, text in sources.items():
        parent, _, own = name.rpartition(".")
        above = ""
        for part in parent.split("."):
            above = above + "." + part if above else part
            if above not in sys.modules:
                sys.modules[above] = ModuleType(above)
                sys.modules[above].__path__ = []
        module = sys.modules[name] = ModuleType(name)
        exec(compile(text, name + ".py", "exec", dont_inherit=True), module.__dict__)
        setattr(sys.modules[parent], own, module)

"""
_WORK = """
from p2pgrid.runtimes.selftest.attacks.base import attempt

def work(item):
    return list(attempt(item["attack"], item["canary"]))
"""
_COMMAND = """
def _command():
    import json
    item = json.loads({item!r})
    said = []
    for name in item["attacks"]:
        status, detail = attempt(name, item["canary"])
        said.append([name, status, str(detail)])
    sys.stdout.write(json.dumps(said))

_command()
"""


@lru_cache(maxsize=1)
def own_sources() -> dict[str, str]:
    """The text of the attack modules by their names, in the order in which they need one another."""
    return {module.__name__: Path(module.__file__ or "").read_text(encoding="utf-8") for module in _MODULES}


def unit_source(more: Mapping[str, str] | None = None) -> str:
    """The source of a job whose ``work`` takes {"attack": name, "canary": ...}. ``more``: further attack modules by name."""
    return f"{_UNPACK}_unpack({ {**own_sources(), **(more or {})}!r})\n{_WORK}"


def program_source(item: str, more: Mapping[str, str] | None = None) -> str:
    """The source of a program that attempts ``{"attacks": [...], "canary": ...}`` (JSON) and prints what came of it as JSON."""
    return unit_source(more) + _COMMAND.format(item=item)
