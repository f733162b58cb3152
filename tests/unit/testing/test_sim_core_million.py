"""Big jobs through the core: what a unit costs."""

from __future__ import annotations

import pytest

from p2pgrid.model.limits import MIB
from p2pgrid.testing.core import million as core_million
from p2pgrid.testing.core.million import UNITS, describe, measured, million_units, peak_bytes

WHOLE_BYTES_MAX = 512 * MIB


def test_a_tenth_of_a_million_units_takes_less_than_a_tenth_of_the_memory_allowed() -> None:
    units = UNITS // 10
    figures = measured(units)
    assert figures.peak_bytes < figures.before_bytes + (WHOLE_BYTES_MAX - figures.before_bytes) * units / UNITS
    assert figures.statements > figures.receipts > 0


def test_a_unit_that_is_not_decided_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert million_units(3000).units == 3000
    monkeypatch.setattr(core_million._Million, "run", lambda self: None)
    with pytest.raises(AssertionError, match="units are left"):
        million_units(3000)


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_bytes()
    held = bytearray(b"x" * (peak_bytes() + 32 * MIB))
    assert peak_bytes() >= before + 16 * MIB
    assert held
    assert "units in" in describe(million_units(2000))
