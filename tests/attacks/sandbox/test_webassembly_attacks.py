"""Attacks by WebAssembly modules and by Python in the runner, inside of the cages that their engine runs in."""

from __future__ import annotations

import importlib.util

import pytest

from p2pgrid.runtimes import runner
from p2pgrid.runtimes.selftest import guest, modules, webassembly
from tests.attacks.sandbox.conftest import Attacked
from tests.attacks.sandbox.driver import GUESTS_CONTROLLED
from tests.native import needs

pytestmark = pytest.mark.timeout(120)  # The first test of a cage waits for all attacks on it.

TOGETHER = ("tell-runs-apart", "outlive-everything", "leave-a-trace")
MODULES = (*(call.name for call in webassembly.CALLS), "spin", *modules.UNLOADABLE, "load-garbage", *TOGETHER)
GUESTS = (*guest.NAMES, *TOGETHER)
WHERE = [("namespaces", "root"), ("landlock", "user")]
"""The attackers do not see the cage around their engine: two stand for all."""


def needs_engine() -> None:
    needs(importlib.util.find_spec("wasmtime") is not None, "there is no WebAssembly engine")


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("level", "user"), WHERE)
def test_webassembly_holds_against(attacked: Attacked, level: str, user: str, name: str) -> None:
    needs_engine()
    held, detail = attacked(user, "attack", "wasm", level)[name]
    assert held, detail


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize(("level", "user"), WHERE)
def test_the_python_runner_holds_against(attacked: Attacked, level: str, user: str, name: str) -> None:
    needs_engine()
    needs(runner.path() is not None, "the Python runner was not built")
    held, detail = attacked(user, "attack", "python", level)[name]
    assert held, detail


@pytest.mark.parametrize("name", GUESTS_CONTROLLED)
def test_the_same_python_succeeds_without_the_runner(attacked: Attacked, name: str) -> None:
    held, detail = attacked("user", "control", "python")[name]
    assert not held, detail


@pytest.mark.parametrize("name", ["make-host-file", "sleep"])
def test_the_same_calls_succeed_on_what_a_unit_has(attacked: Attacked, name: str) -> None:
    needs_engine()
    held, detail = attacked("user", "control", "wasm")[name]
    assert held == (name == "sleep"), detail
