"""The job that a scenario runs when it names no script: it squares numbers, and anybody can say what must come out.

A unit's value is the square of its number; with ``result_bytes`` it is the list of the square and that many bytes. With
``reduce`` the squares are added up on the grid, and the padding of the first part stays.
"""

from __future__ import annotations

from p2pgrid.testing.plans.scenario import JobPlan

_SCRIPT = '''\
# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.p2pgrid]
# quorum = {quorum}
# attempts = {attempts}
# replicas = {replicas}
# ///
"""Squares of numbers."""

import time


def inputs():
    return range({units})


def work(number):
    if {sleep_s!r}:
        time.sleep({sleep_s!r})
    return {value}
'''
_SUM = """

def reduce(a, b):
    return a + b
"""
_SUM_PADDED = """

def reduce(a, b):
    return [a[0] + b[0], a[1]]
"""


def _padding(plan: JobPlan) -> int:
    if not isinstance(plan.result_bytes, int):
        raise TypeError("result_bytes of a job is still a span: draw the scenario first")
    return plan.result_bytes


def builtin_source(plan: JobPlan, units: int, *, sleep_s: float = 0.0) -> str:
    """The text of a job script with ``units`` units.

    ``sleep_s``: seconds of wall time that each unit takes; in virtual time the simulated runtime decides about that.
    """
    padding = _padding(plan)
    value = f"[number * number, bytes([number % 251]) * {padding}]" if padding else "number * number"
    text = _SCRIPT.format(
        quorum=plan.quorum, attempts=plan.attempts, replicas=plan.replicas, units=units, sleep_s=float(sleep_s), value=value
    )
    return text + ((_SUM_PADDED if padding else _SUM) if plan.reduce else "")


def expected(plan: JobPlan, units: int) -> list[object]:
    """The right values of the job's last level, in order: one for each unit, or the one sum."""
    padding = _padding(plan)
    squares = [number * number for number in range(units)]
    if plan.reduce:
        return [[sum(squares), bytes(padding)] if padding else sum(squares)]
    return [[square, bytes([number % 251]) * padding] for number, square in enumerate(squares)] if padding else list(squares)
