"""The public asyncio API: talk to a node you own, submit jobs, read results, put and get files.

Each name is imported when it is first used: a command that asks one question needs no more than the channel.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.client.jobs import JobBuilder, Plan
    from p2pgrid.client.running import Outcome, collect

__all__ = ["Channel", "JobBuilder", "Outcome", "Plan", "collect"]

_HOMES = {"Channel": "channel", "JobBuilder": "jobs", "Plan": "jobs", "Outcome": "running", "collect": "running"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
