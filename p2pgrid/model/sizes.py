"""Sizes and spans of time as people write them, for options of commands and for files."""

from __future__ import annotations

from p2pgrid.errors import UsageError

SPANS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes from ``512M``, ``10G``, ``10GiB`` or a plain number. Raises UsageError."""
    compact = text.strip().upper().removesuffix("IB").removesuffix("B")
    number, unit = (compact[:-1], compact[-1]) if compact[-1:] in UNITS and compact[-1:].isalpha() else (compact, "")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1 << 60:
        raise UsageError(f"'{text}' is not a size", hint="for example 512M or 10G")
    return int(value * UNITS[unit])


def parse_span_ms(text: str) -> int:
    """Milliseconds from ``90s``, ``30m``, ``12h``, ``7d`` or ``2w``. Raises UsageError, also for a number without a unit."""
    compact = text.strip().lower()
    try:
        value = float(compact[:-1]) * SPANS_S[compact[-1:]]
    except (KeyError, ValueError):
        value = -1.0
    if not 0 < value < 1 << 40:
        raise UsageError(f"'{text}' is no span of time", hint="for example 12h, 7d or 4w")
    return int(value * 1000)
