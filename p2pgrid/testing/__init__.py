"""Whole grids in virtual time: public, so that you may try your own jobs, faults and checks in them.

    verdict = SimulatedGrid(load(Path("scenarios/grids/churn.toml")), seed=7).run()
    assert verdict.ok, verdict.violations

``docs/guides/try-against-churn.md`` is a walk; docs/reference/scenario-files.md says what a scenario may hold. Onlookers
(:class:`Onlooker`) are told everything that happens. :class:`MemoryNetwork` and :class:`MemoryTransport` join nodes in one
process in real time.
"""

from typing import TYPE_CHECKING, Any

from p2pgrid.net.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from p2pgrid.testing.grid import SimulatedGrid
    from p2pgrid.testing.observe import Onlooker
    from p2pgrid.testing.plans.scenario import GridScenario, load
    from p2pgrid.testing.verdict import Verdict

__all__ = ["GridScenario", "MemoryNetwork", "MemoryTransport", "Onlooker", "SimulatedGrid", "Verdict", "load"]
_ROOMS = {"SimulatedGrid": "grid", "Onlooker": "observe", "GridScenario": "plans.scenario", "load": "plans.scenario", "Verdict": "verdict"}


def __getattr__(name: str) -> Any:
    """Rooms are opened when they are asked for: one of them alone is quick to import, and rooms may import one another."""
    if name not in _ROOMS:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
