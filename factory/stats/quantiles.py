"""Quantiles of the normal and of Student's t, and where the bootstrap reads its bounds; plain floats, no I/O."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

LEVEL = 0.95


def z_of(level: float = LEVEL) -> float:
    """The normal quantile of a two-sided interval: 1.96 at 0.95."""
    return NormalDist().inv_cdf(0.5 + level / 2)


def expanded(level: float, clusters: int) -> tuple[float, float]:
    """The shares of resamples below the lower and below the upper bound of a percentile interval from few clusters.

    The plain ones, (1 - level) / 2 and (1 + level) / 2, give intervals that are too narrow by z / t and, as resamples
    vary by (n - 1) / n too little, by its root. Both are made up for by going further out: Phi(-t sqrt(n / (n - 1)))
    with t of n - 1 degrees of freedom (Hesterberg 2015, The American Statistician 69:371, section 3.3).
    """
    tail = NormalDist().cdf(-t_of(level, clusters - 1) * math.sqrt(clusters / (clusters - 1)))
    return tail, 1 - tail


def t_below(t: float, freedom: float) -> float:
    """P(T <= t) under Student's t: by the incomplete beta function of freedom / (freedom + t^2)."""
    if math.isinf(t):
        return 0.0 if t < 0 else 1.0
    tail = _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
    return tail if t < 0 else 1 - tail


@lru_cache(maxsize=1024)
def t_of(level: float, freedom: float) -> float:
    """The quantile of a two-sided interval: 1.96 at 0.95 for many degrees of freedom, 12.7 for one."""
    low, high = 0.0, 1.0
    wanted = 0.5 + level / 2
    while t_below(high, freedom) < wanted:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_below(middle, freedom) < wanted else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), by its continued fraction (Abramowitz and Stegun 26.5.8)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    return front / a / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)), from its front (Lentz's method)."""
    tiny = 1e-300
    value, above, below = 1.0, 1.0, 0.0
    for step in range(1, 500):
        half = step // 2
        if step % 2:
            d = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            d = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        below = 1 / (1 + d * below or tiny)
        above = 1 + d / above or tiny
        value *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return value
