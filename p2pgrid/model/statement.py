"""The base of everything that is signed."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Statement(msgspec.Struct, frozen=True, array_like=True):
    """Children set ``TYPE`` (part of what is signed). Times are Unix milliseconds.

    Positions are the schema: new fields are appended with a default and never reordered.
    """

    TYPE: ClassVar[str] = ""

    expires_ms: int
