"""The event heap's trace: equal for equal runs, and different as soon as anything is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2pgrid.testing.core import heap
from p2pgrid.testing.core.heap import EventHeap


def traced(fill: Callable[[EventHeap], None]) -> str:
    made = EventHeap(1)
    fill(made)
    made.run(lambda: False, 100.0)
    return made.trace_hash()


def two_calls(made: EventHeap, label: bytes = b"two", delay_s: float = 2.0) -> None:
    made.after(1.0, lambda: None, b"one")
    made.after(delay_s, lambda: None, label)


def test_equal_runs_have_equal_traces() -> None:
    assert traced(two_calls) == traced(two_calls)


@pytest.mark.parametrize(
    "other",
    [
        lambda made: two_calls(made, label=b"three"),
        lambda made: two_calls(made, delay_s=2.5),
        lambda made: (two_calls(made), made.note(b"id")),  # type: ignore[func-returns-value]
        lambda made: (two_calls(made), made.after(3.0, lambda: None)),  # type: ignore[func-returns-value]
    ],
    ids=["label", "time", "note", "call"],
)
def test_the_trace_covers_labels_times_notes_and_calls(other: Callable[[EventHeap], None]) -> None:
    assert traced(other) != traced(two_calls)


def test_asking_for_the_trace_in_between_does_not_change_it() -> None:
    asked = EventHeap(1)
    two_calls(asked)
    asked.run(lambda: asked.now >= 1.0, 100.0)
    early = asked.trace_hash()
    asked.run(lambda: False, 100.0)
    assert asked.trace_hash() == traced(two_calls) != early


def test_a_long_trace_is_hashed_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = traced(lambda made: made.every(0.5, lambda: made.note(b"x" * 3)))
    monkeypatch.setattr(heap, "TRACE_PIECES", 7)
    made = EventHeap(1)
    made.every(0.5, lambda: made.note(b"x" * 3))
    made.run(lambda: False, 100.0)
    assert len(made._trace) < 10
    assert made.trace_hash() == whole
