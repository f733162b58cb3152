"""All attacks on one cage are made at one time, in a process of their own; each test looks at one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.attacks.sandbox.reachable import USER, Copy
from tests.native import needs

Found = dict[str, tuple[bool, str]]
"""(held, detail) by the name of an attack."""
SLOW = ("root", "attack", "python", "namespaces")
"""What waits for the Python runner to be compiled: begun at once, looked at last."""


class Attacks:
    """What came of the attacks, each set of them made once."""

    def __init__(self, copy: Copy, beside: ThreadPoolExecutor) -> None:
        self._copy = copy
        self._beside = beside
        self._begun: dict[tuple[str, ...], Future[dict[str, Any]]] = {}

    def begin(self, user: str, *arguments: str) -> Future[dict[str, Any]]:
        """Have the driver make these attacks, if it has not begun already."""
        key = (user, *arguments)
        if key not in self._begun:
            self._begun[key] = self._beside.submit(self._copy.run, USER if user == "user" and os.geteuid() == 0 else 0, *arguments)
        return self._begun[key]

    def of(self, user: str, *arguments: str) -> Found:
        """What the driver found with these arguments. ``user``: ``root`` or ``user``. Skips where this cannot be tried."""
        needs(self._copy.python(), "no interpreter of this version can be reached by ordinary users")
        if user == "root":
            needs(os.geteuid() == 0, "the tests do not run as root")
        told = self.begin(user, *arguments).result()
        if "failure" in told:
            pytest.fail(told["failure"], pytrace=False)
        needs("attempts" in told, f"this cage cannot be tried here: {told.get('error')}")
        return {name: (held, detail) for name, held, detail in told["attempts"]}


@pytest.fixture(scope="session")
def attacks(request: pytest.FixtureRequest) -> Iterator[Attacks]:
    copy = Copy()
    with ThreadPoolExecutor(2) as beside:
        attacks = Attacks(copy, beside)
        if copy.python() and os.geteuid() == 0 and any("python_runner" in item.name for item in request.session.items):
            attacks.begin(*SLOW)
        yield attacks
    copy.remove()


Attacked = Callable[..., Found]


@pytest.fixture(scope="session")
def attacked(attacks: Attacks) -> Attacked:
    return attacks.of
