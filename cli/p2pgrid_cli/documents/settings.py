"""The document of ``config show``."""

from __future__ import annotations

from typing import Any

import msgspec


class Setting(msgspec.Struct, frozen=True):
    """Each of ``settings``."""

    key: str
    """As in [config.toml](settings.md)."""
    value: Any
    """Sizes in bytes, spans in seconds, shares from 0 to 1, hours as pairs of minutes of the day."""
    text: str
    """The value as people write it; a size is rounded where no unit says it exactly."""
    origin: str
    """``environment``, ``file``, ``flag`` (said to an earlier ``join``) or ``default``."""
    where: str | None
    """The variable, the file with the line, or the option; null for a default."""


class Config(msgspec.Struct, frozen=True):
    """What ``join`` without options would use now."""

    home: str
    """The folder of the node."""
    file: str
    """Its ``config.toml``, which need not be there."""
    settings: tuple[Setting, ...]
    """In the order of [settings](settings.md)."""
