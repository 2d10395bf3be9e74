"""Rates, means and regressions of what hangs together, in closed form; numpy alone, no I/O.

Pairs of answers to one prompt are no independent trials. So the prompts are what is taken for independent: a cluster is
a prompt, and its pairs enter the variance as one sum (Liang and Zeger 1986, Biometrika 73:13), with the correction
G / (G - 1) for G clusters and Student's t with G - 1 degrees of freedom. Where every cluster holds one pair, all is as
it would be for independent pairs.

A rate keeps Wilson's interval, with the number of trials that the clusters are worth (Korn and Graubard 1998, Survey
Methodology 24:193). The closed form costs one pass over the pairs where the bootstrap over prompts costs thousands, and
errs on the safe side where prompts are few.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from factory.schema import Estimate
from factory.stats.intervals import LEVEL, UNKNOWN, wilson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Index = NDArray[np.int64]

_STEPS = 100
_FLAT = 1e-9
_FARTHEST = 4.0  # log-odds that a step may move a row
_SEPARATED = 1e-6  # of the information at even odds, 1/4


def places(clusters: Sequence[Hashable]) -> tuple[Index, int]:
    """The number of each entry's cluster `(entries,)`, in order of appearance, and how many clusters there are."""
    import numpy as np

    seen: dict[Hashable, int] = {}
    index = np.asarray([seen.setdefault(cluster, len(seen)) for cluster in clusters], dtype=np.int64)
    return index, len(seen)


# ------------------------------------------------------------------------------------------------ Student's t


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


# --------------------------------------------------------------------------------------------- rates and means


def rate(values: Sequence[float], clusters: Sequence[Hashable], level: float = LEVEL) -> Estimate:
    """The mean of values within [0, 1] with Wilson's interval, for as many trials as the clusters are worth.

    One value a cluster: Wilson's own. Where all values are 0, or all 1, or all stand in one cluster, how they hang
    together cannot be seen, and every cluster counts as one trial.
    """
    import numpy as np

    n = len(values)
    if n == 0:
        return UNKNOWN
    value = np.asarray(values, dtype=np.float64)
    index, groups = places(clusters)
    p = float(value.mean())
    return wilson(p * (worth := _worth(value - p, index, groups, p, level)), worth, level)


def _worth(away: Array, index: Index, groups: int, p: float, level: float) -> float:
    """Kish's effective number of trials, at most their number, with Korn and Graubard's correction of the freedom."""
    import numpy as np

    n = len(away)
    if groups == n:
        return float(n)
    if groups < 2 or p <= 0 or p >= 1:
        return float(groups)
    sums = np.bincount(index, away, groups)
    variance = groups / (groups - 1) * float((sums**2).sum()) / n**2
    if variance <= 0:
        return float(groups)
    independent = p * (1 - p) / (n - 1)
    freedom = (t_of(level, n - 1) / t_of(level, groups - 1)) ** 2
    return min(float(n), n * independent / variance * freedom)


def mean(values: Sequence[float] | Array, clusters: Sequence[Hashable], level: float = LEVEL) -> Estimate:
    """The mean of any values, t interval from the clusters' sums. One cluster: NaN bounds."""
    import numpy as np

    if len(values) == 0:
        return UNKNOWN
    value = np.asarray(values, dtype=np.float64)
    index, groups = places(clusters)
    centre = float(value.mean())
    return of_influence(centre, (value - centre) / len(value), index, groups, level)


def of_influence(value: float, influence: Array, index: Index, groups: int, level: float = LEVEL) -> Estimate:
    """An estimate from what each entry adds to its error `(entries,)`: the variance is that of the clusters' sums."""
    import numpy as np

    if groups < 2:
        return Estimate.alone(value)
    sums = np.bincount(index, influence, groups)
    half = t_of(level, groups - 1) * math.sqrt(groups / (groups - 1) * float((sums**2).sum()))
    return Estimate(value, value - half, value + half)


# ------------------------------------------------------------------------------------------ logistic regression


class Logistic(NamedTuple):
    """A logistic regression: an estimate a column, in log-odds; None for all and the reason where there is no fit."""

    coefficients: list[Estimate] | None
    why: str = ""


def logistic(
    columns: Array, won: Sequence[float] | Array, clusters: Sequence[Hashable], level: float = LEVEL
) -> Logistic:
    """Log-odds of winning as a sum over columns `(entries, columns)`, without a constant, by maximum likelihood.

    The covariance is the sandwich H^-1 (sum over clusters of s s') H^-1 of the scores s summed within clusters. No fit:
    columns that cannot be told apart, and wins that the columns split without an exception (the likelihood then has no
    maximum).
    """
    import numpy as np

    x, y = np.asarray(columns, dtype=np.float64), np.asarray(won, dtype=np.float64)
    index, groups = places(clusters)
    if groups <= x.shape[1] + 1:
        return Logistic(None, f"{groups} prompts are too few for {x.shape[1]} effects")
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return Logistic(None, "the features go together: their effects cannot be told apart")
    beta = _newton(x, y)
    if beta is None:
        return Logistic(None, "the features split wins from losses without an exception")
    p = _sigmoid(x @ beta)
    inverse = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x)
    influence = ((y - p)[:, None] * x) @ inverse
    found = [of_influence(float(b), influence[:, k], index, groups, level) for k, b in enumerate(beta)]
    return Logistic(found)


def _newton(x: Array, y: Array) -> Array | None:
    """The maximum likelihood coefficients, None where they run away: the information then vanishes in a direction of
    the columns (which are made orthonormal, so that their scales do not matter)."""
    import numpy as np

    q, r = np.linalg.qr(x)
    beta = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = _sigmoid(q @ beta)
        information = (q * (p * (1 - p))[:, None]).T @ q
        if np.linalg.eigvalsh(information)[0] < _SEPARATED:
            return None
        step = np.linalg.solve(information, q.T @ (y - p))
        far = float(np.abs(q @ step).max())
        beta = beta + step * min(1.0, _FARTHEST / max(far, _FLAT))
        if far < _FLAT:
            return np.asarray(np.linalg.solve(r, beta))
    return None


def _sigmoid(x: Array) -> Array:
    import numpy as np

    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
