"""The distributions that simulated grids draw from. Every function takes its generator; none keeps anything.

Lengths of sessions are Weibull with a shape k below 1 (Stutzbach and Rejaie, Understanding Churn in Peer-to-Peer
Networks, IMC 2006): most sessions are short, and whoever has stayed long stays longer.
"""

from __future__ import annotations

import math
import random


def log_normal(median: float, sigma: float, rng: random.Random) -> float:
    """A value around ``median``; ``sigma`` is the spread of its logarithm. 0 gives the median itself."""
    return median * math.exp(rng.gauss(0.0, sigma)) if sigma else median


def exponential(mean: float, rng: random.Random) -> float:
    """A wait that has no memory."""
    return rng.expovariate(1.0 / mean)


def weibull(scale: float, shape: float, rng: random.Random) -> float:
    """A length of which the share ``exp(-(x / scale) ** shape)`` is longer than x."""
    return rng.weibullvariate(scale, shape)


def weibull_mean(scale: float, shape: float) -> float:
    """The mean of :func:`weibull`."""
    return scale * math.gamma(1.0 + 1.0 / shape)


def weibull_scale(mean: float, shape: float) -> float:
    """The scale with which :func:`weibull` has this mean."""
    return mean / math.gamma(1.0 + 1.0 / shape)


def weibull_through(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """(scale, shape) with which the share of ``weibull`` longer than x is as told, at two points (x, share)."""
    (first_x, first_share), (second_x, second_share) = first, second
    shape = math.log(math.log(second_share) / math.log(first_share)) / math.log(second_x / first_x)
    return first_x / (-math.log(first_share)) ** (1.0 / shape), shape


def weibull_rest(scale: float, shape: float, rng: random.Random) -> float:
    """What is left of a session that somebody who looks at a random moment finds under way.

    Such a moment falls into long sessions more often, in proportion to their length, and anywhere within them with equal
    chance. With a shape below 1 what is left is longer, on average, than a whole session.
    """
    # (X / scale) ** shape of a length drawn in proportion to itself is Gamma(1 + 1 / shape).
    whole: float = scale * rng.gammavariate(1.0 + 1.0 / shape, 1.0) ** (1.0 / shape)
    return whole * rng.random()


def clamped_normal(mean: float, sigma: float, rng: random.Random) -> float:
    """A normal value that is never further than three ``sigma`` from its mean."""
    return min(max(rng.gauss(mean, sigma), mean - 3.0 * sigma), mean + 3.0 * sigma)
