"""Spans of time as people write them."""

from __future__ import annotations

import pytest

from p2pgrid.errors import UsageError
from p2pgrid.model.sizes import parse_span_ms


@pytest.mark.parametrize(
    ("text", "span_ms"),
    [("90s", 90_000), ("30m", 1_800_000), ("12h", 43_200_000), ("7d", 604_800_000), (" 2W ", 1_209_600_000), ("1.5h", 5_400_000)],
)
def test_spans_have_a_number_and_a_unit(text: str, span_ms: int) -> None:
    assert parse_span_ms(text) == span_ms


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "0d", "7 parsecs", "nan", "nand", "infd", "1e99d"])
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_span_ms(text)
    assert "7d" in caught.value.hint
