"""Hostile machines for simulated grids, by the kind of fault that brings them.

    adversary = ADVERSARIES["flood"](host)
    adversary.start(loop)  # the loop of its machine
    ...
    adversary.stop()

They are onlookers too: put them among those of the grid, so that they see what they can repeat or mutate.
"""

from __future__ import annotations

from p2pgrid.testing.hostile.adversary import Adversary, AdversaryHost, AttackerHost, Target
from p2pgrid.testing.hostile.flooding import Flooder
from p2pgrid.testing.hostile.forging import Forger
from p2pgrid.testing.hostile.lying import DigestLiar
from p2pgrid.testing.hostile.replaying import Replayer

ADVERSARIES: dict[str, type[Adversary]] = {kind.kind: kind for kind in (Flooder, Forger, Replayer)}
"""By the name that a scenario's ``[[faults]]`` uses."""

__all__ = ["ADVERSARIES", "Adversary", "AdversaryHost", "AttackerHost", "DigestLiar", "Flooder", "Forger", "Replayer", "Target"]
