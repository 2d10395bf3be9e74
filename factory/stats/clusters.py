"""Means and regressions of what hangs together, in closed form; numpy alone, no I/O.

Pairs of answers to one prompt are no independent trials. So the prompts are what is taken for independent: a cluster is
a prompt, and its pairs enter the variance as one sum (Liang and Zeger 1986, Biometrika 73:13), with the correction
G / (G - 1) for G clusters and Student's t with G - 1 degrees of freedom. Where every cluster holds one pair, all is as
it would be for independent pairs.

The closed form costs one pass over the pairs where the bootstrap over prompts costs thousands. Rates have intervals of
their own: `intervals.rate`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from factory.schema import Estimate
from factory.stats.intervals import UNKNOWN, places
from factory.stats.quantiles import LEVEL, t_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Index = NDArray[np.int64]

_STEPS = 100
_FLAT = 1e-9
_FARTHEST = 4.0  # log-odds that a step may move a row
_SEPARATED = 1e-6  # of the information at even odds, 1/4


# ------------------------------------------------------------------------------------------------------- means


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
