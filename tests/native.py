"""What a test needs of the machine: without it the test is skipped with the reason, or fails where everything has to be there."""

from __future__ import annotations

import os

import pytest

REQUIRED = "P2PGRID_REQUIRE_NATIVE"
"""Set to 1 in the environment of a machine that must be able to do it all: nothing is skipped there."""


def needs(condition: object, reason: str) -> None:
    """Go on only if the condition holds. ``reason``: what is missing otherwise."""
    if condition:
        return
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, and {reason}", pytrace=False)
    pytest.skip(reason)
