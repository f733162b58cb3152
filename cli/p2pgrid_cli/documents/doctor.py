"""The document of ``doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from p2pgrid.runtimes.selftest.report import RuntimeReport
    from p2pgrid_cli.checkup import Check


class Attack(msgspec.Struct, frozen=True):
    """Each of ``attempts``."""

    name: str
    """which attack ([doctor](doctor.md))"""
    held: bool
    """whether the cage held"""
    accepted: bool
    """not held, as it is known of this level: it does not count"""
    detail: str
    """what was seen"""


class Runtime(msgspec.Struct, frozen=True):
    """Each of ``runtimes``."""

    runtime: str
    """its name"""
    level: str
    """`namespaces`, `landlock`, `bare`, the engine, or `none` when no cage could be tested"""
    holds: bool
    """whether all attacks were held"""
    reason: str
    """why not; empty when it does"""
    attempts: tuple[Attack, ...]
    """all attacks"""


class Looked(msgspec.Struct, frozen=True):
    """Each of ``checks``."""

    name: str
    """what was looked at"""
    ok: bool
    """whether it will do"""
    detail: str
    """what was seen"""


class Doctor(msgspec.Struct, frozen=True):
    """What this machine can take."""

    runtimes: tuple[Runtime, ...]
    """as asked for"""
    checks: tuple[Looked, ...]
    """what a node stands on besides"""


def doctor_of(reports: Iterable[RuntimeReport], checks: Iterable[Check]) -> Doctor:
    """The document."""
    return Doctor(
        tuple(
            Runtime(
                report.runtime,
                report.level,
                report.holds,
                report.reason,
                tuple(Attack(attempt.name, attempt.held, attempt.accepted, attempt.detail) for attempt in report.attempts),
            )
            for report in reports
        ),
        tuple(Looked(check.name, check.ok, check.detail) for check in checks),
    )
