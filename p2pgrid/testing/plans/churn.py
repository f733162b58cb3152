"""How machines come and go, after what has been measured of real ones.

``weibull``: sessions of peer-to-peer networks have Weibull lengths with a shape k of 0.34 to 0.59, not exponential ones
(Stutzbach and Rejaie, IMC 2006; the same was found of Kad by Steiner et al., Transactions on Networking 17(5), 2009). Most
sessions are short, and most of those who are there at any moment stay long.

``ipfs``: of the sessions of servers in the IPFS DHT half are over within 2 hours and four in five within 8, and a tenth of
the servers never left in a week (ProbeLab, network measurements, uptime and churn). A Weibull curve through the two points has
k = 0.61. The tenth is a share of machines, not of sessions: ``stable`` of a kind.

``laptop``: on in the evening, off at night, and on some evenings not at all. All have the same night, so they go together.

Times are virtual seconds. What is drawn is drawn from the generator that is given, in an order that nothing else changes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from p2pgrid.testing.plans import distributions

DAY_H = 24.0
IPFS_SCALE_H, IPFS_SHAPE = distributions.weibull_through((2.0, 0.5), (8.0, 0.2))
"""Half of the sessions are longer than 2 hours, a fifth longer than 8."""
IPFS_STABLE = 0.105
"""Share of servers that were there for a whole week."""
OPENS_H, OPENS_SPREAD_H = 17.5, 1.0
"""A laptop's usual evening begins around then, each with its own habit."""
CLOSES_H, CLOSES_SPREAD_H = 23.5, 0.8
MOOD_H = 0.4
"""How far an evening strays from the habit."""
SKIPS = 0.1
"""Share of evenings on which a laptop stays off."""
STARTS_H = 19.5
"""The hour of the day at which a run begins: most are on."""


SHORTEST_S = 0.001
"""Sessions and waits are at least that long: the curve goes down to nothing."""


class Session(NamedTuple):
    """A machine is on from ``on_s`` to ``off_s``; the last one of a run may end after it, or never (infinity)."""

    on_s: float
    off_s: float


class Churn(Protocol):
    """A way of coming and going."""

    def sessions(self, rng: random.Random, from_s: float, until_s: float, *, fresh: bool = False) -> Iterator[Session]:
        """The sessions of one machine that is first on at ``from_s``, until one begins at ``until_s`` or later.

        The first is taken to be under way already, as that of a machine found in a grid that has run for long; ``fresh``: it begins
        there.
        """

    def availability(self) -> float:
        """The share of its time that a machine is on, on average."""


@dataclass(frozen=True, slots=True)
class Staying:
    """It never leaves."""

    def sessions(self, rng: random.Random, from_s: float, until_s: float, *, fresh: bool = False) -> Iterator[Session]:
        """One session without end."""
        if from_s < until_s:
            yield Session(from_s, math.inf)

    def availability(self) -> float:
        """All of it."""
        return 1.0


@dataclass(frozen=True, slots=True)
class WeibullChurn:
    """Weibull sessions with exponential waits between them."""

    scale_s: float
    shape: float
    away_s: float

    @property
    def session_s(self) -> float:
        """The mean of a session."""
        return distributions.weibull_mean(self.scale_s, self.shape)

    def sessions(self, rng: random.Random, from_s: float, until_s: float, *, fresh: bool = False) -> Iterator[Session]:
        """The sessions of one machine."""
        on_s = from_s
        length = distributions.weibull if fresh else distributions.weibull_rest
        while on_s < until_s:
            off_s = on_s + max(SHORTEST_S, length(self.scale_s, self.shape, rng))
            yield Session(on_s, off_s)
            on_s = off_s + max(SHORTEST_S, distributions.exponential(self.away_s, rng))
            length = distributions.weibull

    def availability(self) -> float:
        """By the means of the two."""
        return self.session_s / (self.session_s + self.away_s)


@dataclass(frozen=True, slots=True)
class LaptopChurn:
    """Evenings, of days that last ``day_s``."""

    day_s: float

    def sessions(self, rng: random.Random, from_s: float, until_s: float, *, fresh: bool = False) -> Iterator[Session]:
        """Evenings of one machine. It joins when it joins, and stays for the rest of that day's evening."""
        hour_s = self.day_s / DAY_H
        opens_h = distributions.clamped_normal(OPENS_H, OPENS_SPREAD_H, rng)
        closes_h = distributions.clamped_normal(CLOSES_H, CLOSES_SPREAD_H, rng)
        day_h = -STARTS_H - DAY_H
        on_s = -math.inf
        first = True
        while on_s < until_s:
            on_s = (day_h + distributions.clamped_normal(opens_h, MOOD_H, rng)) * hour_s
            off_s = (day_h + distributions.clamped_normal(closes_h, MOOD_H, rng)) * hour_s
            skipped = rng.random() < SKIPS
            day_h += DAY_H
            begins_s = from_s if first else on_s
            if off_s > from_s and begins_s < until_s and (first or not skipped):
                yield Session(begins_s, off_s)
                first = False

    def availability(self) -> float:
        """The mean evening's share of the day."""
        return (CLOSES_H - OPENS_H) / DAY_H * (1.0 - SKIPS)


class Comings(Protocol):
    """What is known of a machine's churn: fields of ``NodePlan`` with their numbers drawn."""

    @property
    def churn(self) -> str: ...
    @property
    def session_s(self) -> float: ...
    @property
    def shape(self) -> float: ...
    @property
    def away_s(self) -> float: ...


class Joining(Comings, Protocol):
    """The same of a machine that joins at a known time."""

    @property
    def joins_s(self) -> float: ...


def churn_of(machine: Comings) -> Churn:
    """How a machine comes and goes. Raises KeyError for an unknown name."""
    hour_s = machine.session_s / (DAY_H / 2.0)
    known: dict[str, Churn] = {
        "none": Staying(),
        "weibull": WeibullChurn(distributions.weibull_scale(machine.session_s, machine.shape), machine.shape, machine.away_s),
        "ipfs": WeibullChurn(IPFS_SCALE_H * hour_s, IPFS_SHAPE, machine.away_s),
        "laptop": LaptopChurn(DAY_H * hour_s),
    }
    return known[machine.churn]


def sessions(machine: Joining, rng: random.Random, until_s: float) -> Iterator[Session]:
    """When a machine is on, from the moment it joins until one session begins at ``until_s`` or later."""
    return churn_of(machine).sessions(rng, machine.joins_s, until_s)


def stationary(churn: Churn, rng: random.Random, until_s: float) -> Iterator[Session]:
    """The sessions from 0 on of a machine that has come and gone for long: it may be off at first.

    For ways of coming and going whose waits have no memory; laptops are on or off by the hour of the day.
    """
    if isinstance(churn, WeibullChurn) and rng.random() >= churn.availability():
        return churn.sessions(rng, distributions.exponential(churn.away_s, rng), until_s, fresh=True)
    return churn.sessions(rng, 0.0, until_s)
