"""The scenarios that come with p2pgrid can be read, are of the size they should be, and cover all that can go wrong."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from p2pgrid.testing.plans import scenario as module
from p2pgrid.testing.plans.scenario import BEHAVIOURS, CHURNS, FAULT_KINDS, GridScenario, load, plan

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "scenarios" / "grids").glob("*.toml"))
PAGE = ROOT / "docs" / "reference" / "scenario-files.md"
NAMES = {path.stem for path in FILES}
WANTED = (
    "agreement bit-rot calm churn clocks flash-crowd full-disks iot-edge liars mass-departure partition power-cuts slow-nodes "
    "stragglers submitter-gone sybil thousand"
)


def scenarios(engine: str = "whole") -> list[GridScenario]:
    return [scenario for scenario in map(load, FILES) if scenario.engine == engine]


def test_all_scenarios_are_there() -> None:
    assert set(WANTED.split()) <= NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_explains_itself_and_is_named_as_its_file(path: Path) -> None:
    scenario = load(path)
    assert scenario.name == path.stem
    assert len(scenario.about) > 40
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert scenario.jobs


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
def test_whole_grids_are_small_enough_to_run_by_the_hundred(scenario: GridScenario) -> None:
    for seed in range(40):
        made = plan(scenario, seed)
        assert 5 <= len(made.all_machines) <= 50
        assert 20.0 <= made.duration_s <= 60.0
        assert 60.0 <= made.settle_s <= 240.0
        assert sum(job.units for job in made.jobs if not job.plan.script) <= 600
        assert sum(file.size_bytes for file in made.files) <= 12 << 20


def test_every_kind_of_fault_liar_and_churn_is_in_some_whole_grid() -> None:
    every = scenarios()
    assert {fault.kind for scenario in every for fault in scenario.faults} == set(FAULT_KINDS)
    assert {node.behaviour for scenario in every for node in scenario.nodes} == set(BEHAVIOURS)
    assert {node.churn for scenario in every for node in scenario.nodes} == set(CHURNS)


def test_every_fault_happens_in_some_seed() -> None:
    for scenario in scenarios():
        met = {fault.table for seed in range(30) for fault in plan(scenario, seed).faults}
        assert met == set(range(1, len(scenario.faults) + 1)), scenario.name


def test_the_thousand_are_a_thousand_for_an_hour() -> None:
    (scenario,) = scenarios("core")
    made = plan(scenario, 1)
    assert len(made.machines) == 1000
    assert made.duration_s == 3600.0
    assert {machine.churn for machine in made.machines[1:]} == {"ipfs", "none"}
    assert len(made.files) == 200
    assert made.files[-1].at_s < made.duration_s
    assert scenario.core.table_nodes == (50, 200, 1000, 5000)


def test_what_also_runs_with_real_processes_leaves_nothing_to_chance() -> None:
    scenario = load(ROOT / "scenarios" / "grids" / "agreement.toml")
    first, second = plan(scenario, 1), plan(scenario, 2)
    assert len(first.machines) == 8
    assert first.faults == second.faults
    assert (first.faults[0].kind, first.faults[0].nodes) == ("crash", 3)
    assert [(job.at_s, job.units, job.unit_s) for job in first.jobs] == [(job.at_s, job.units, job.unit_s) for job in second.jobs]


# The page


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("p2pgrid_docs_generate_scenarios", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    return generator


STRUCTS = ("GridScenario", "NetworkPlan", "NodePlan", "FaultPlan", "JobPlan", "FilePlan", "Expectations", "CorePlan")


@pytest.mark.parametrize("name", STRUCTS)
def test_the_page_names_every_field_with_its_meaning(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^## [^\n]*\n(?:(?!^## ).*\n)*?<!-- {name} -->\n(?P<table>(?:\|.*\n)+)", text, re.MULTILINE)
    assert section is not None, "stale: run python docs/generate.py"
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| [^|]+ \|$", section["table"], re.MULTILINE)
    fields = [field for field in getattr(module, name).__struct_fields__ if field != "folder"]
    assert rows == fields


def test_the_page_tells_every_kind_of_fault_and_every_scenario() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [kind for kind in FAULT_KINDS if f"| `{kind}` |" not in text] == []
    assert [name for name in sorted(NAMES) if f"| [{name}](../../scenarios/grids/{name}.toml) |" not in text] == []


def test_a_field_without_a_meaning_is_reported() -> None:
    generator = load_generator()
    source = 'class A:\n    x: int = 1\n    """Is x."""\n    y: int = 2\n'
    assert generator.meanings(source) == {"x": "Is x.", "y": ""}
    assert all(all(generator.meanings_of(getattr(module, name)).values()) for name in STRUCTS)
