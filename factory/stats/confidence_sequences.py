"""Confidence sequences: intervals for a mean that hold at every moment at once, so that one may look as often as one
likes and stop when one likes. No I/O, numpy alone.

A 95% interval is right 95% of the time at a size of sample that was fixed before; whoever looks after every batch and
stops when the interval says so errs far more often. The sequences here err with probability alpha over all sizes
together (Howard, Ramdas, McAuliffe and Sekhon 2021, Annals of Statistics 49:1055, arXiv 1810.08240). What is bounded is
the mean of the conditional means so far: the values need not be drawn from one distribution, nor be independent.

Two of them:

- `sequence`: for values within known bounds, at any size. Empirical Bernstein (their theorem 4): the values are
  measured against a guess from those before them, and a mixture over a grid of rates (their section 3.4) of the
  sub-exponential supermartingale gives the boundary.
- `from_moments`: from mean, variance and size, the two-sided normal mixture (their equation 14) with the sample's
  variance: for large samples only (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, arXiv 2103.06476), narrower.

Neither is for looks at *different* quantities (another policy every round on as many prompts): there each look has a
fixed size, and `intervals.widened` shares the allowance out between the looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from factory.schema import Estimate
from factory.stats.intervals import UNKNOWN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALPHA = 0.05
TIGHT_AT = 500
"""The size at which an interval is to be narrowest for its kind; it holds at all others too."""
_RATES = 40  # points of the grid of rates, each a third below the one before
_HALVINGS = 60


def sequence(
    values_by_look: Sequence[Sequence[float]],
    *,
    alpha: float = ALPHA,
    low: float = -1.0,
    high: float = 1.0,
    tight_at: int = TIGHT_AT,
) -> Estimate:
    """The mean after the last look, with bounds that hold at all looks together with probability 1 - alpha.

    `values_by_look`: what each look added, oldest first (paired differences within [low, high], one a prompt; a win
    rate's values within [0, 1]). The order of the values must not depend on what they are. No values: NaN throughout.
    ValueError: a value outside the bounds.
    """
    ends = list(accumulate(len(look) for look in values_by_look))
    flat = [value for look in values_by_look for value in look]
    if not flat:
        return UNKNOWN
    return running(flat, [ends[-1]], alpha=alpha, low=low, high=high, tight_at=tight_at)[0]


def running(
    values: Sequence[float],
    sizes: Sequence[int] | None = None,
    *,
    alpha: float = ALPHA,
    low: float = -1.0,
    high: float = 1.0,
    tight_at: int = TIGHT_AT,
) -> list[Estimate]:
    """`sequence` after so many values, for each of `sizes` (by default after every value)."""
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    if not high > low:
        raise ValueError("bounds of values need low < high")
    if x.size and not (low <= x.min() and x.max() <= high):
        raise ValueError(f"a value lies outside [{low:g}, {high:g}]")
    at = np.arange(1, len(x) + 1) if sizes is None else np.asarray(sizes, dtype=np.intp)
    if at.size and not (at.min() >= 1 and at.max() <= len(x)):
        raise ValueError(f"sizes lie within 1 and {len(x)}")
    counts = np.arange(1, len(x) + 1)
    means = np.cumsum(x) / counts
    guesses = np.concatenate([[(low + high) / 2], means[:-1]])
    spread = np.cumsum((x - guesses) ** 2)
    radius = _boundary(spread[at - 1], _grid(alpha, high - low, tight_at)) / at
    middle = means[at - 1]
    return [
        Estimate(float(m), max(low, float(m - r)), min(high, float(m + r))) for m, r in zip(middle, radius, strict=True)
    ]


class _Grid(NamedTuple):
    """Rates of the mixture, their log-weights and psi, all `(_RATES,)`; the log of what the mixture may reach."""

    rates: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    psi: NDArray[np.float64]
    log_limit: float


def _grid(alpha: float, scale: float, tight_at: int) -> _Grid:
    """Rates from just below 1 / scale downwards; most weight on the one that is best for `tight_at` values whose
    variance is a sixteenth of the squared scale. psi(r) = (-log(1 - scale r) - scale r) / scale^2. Each side has half
    of alpha."""
    import numpy as np

    if not 0 < alpha < 1:
        raise ValueError("alpha lies between 0 and 1")
    log_limit = math.log(2 / alpha)
    steps = np.arange(_RATES, dtype=np.float64)
    rates: NDArray[np.float64] = 0.9 / scale * (2 / 3) ** steps
    best = math.sqrt(2 * log_limit / (tight_at * scale**2 / 16))
    centre = int(np.argmin(np.abs(np.log(rates / best))))
    weights = 1.0 / (1 + np.abs(steps - centre)) ** 2
    psi: NDArray[np.float64] = (-np.log1p(-scale * rates) - scale * rates) / scale**2
    return _Grid(rates, np.log(weights / weights.sum()), psi, log_limit)


def _boundary(spread: NDArray[np.float64], grid: _Grid) -> NDArray[np.float64]:
    """The sum of deviations at which the mixture reaches its limit, for each of `spread`; by halving `(n,)`."""
    import numpy as np

    base = grid.log_weights - grid.psi * spread[:, None]
    above: NDArray[np.float64] = ((grid.log_limit - base) / grid.rates).min(
        axis=1
    )  # one rate alone reaches the limit here
    below = np.zeros_like(above)
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        reached = np.logaddexp.reduce(base + grid.rates * middle[:, None], axis=1) >= grid.log_limit
        above, below = np.where(reached, middle, above), np.where(reached, below, middle)
    return above


def from_moments(mean: float, variance: float, n: int, alpha: float = ALPHA, *, tight_at: int = TIGHT_AT) -> Estimate:
    """The mean of `n` values of that sample variance, with bounds that hold at all sizes together, for large samples:

    mean -/+ sqrt((V + rho) log((V + rho) / (rho alpha^2))) / n, V = n * variance, rho such that it is narrowest at
    `tight_at` values. A variance of 0 tells nothing (no bounds), for the sample's is not the true one.
    """
    if n < 1 or math.isnan(mean):
        return UNKNOWN
    if not 0 < alpha < 1:
        raise ValueError("alpha lies between 0 and 1")
    if not variance > 0:
        return Estimate.alone(mean)
    total, rho = n * variance, _rho(tight_at * variance, alpha)
    radius = math.sqrt((total + rho) * math.log((total + rho) / (rho * alpha**2))) / n
    return Estimate(mean, mean - radius, mean + radius)


def _rho(total: float, alpha: float) -> float:
    """The mixture's variance that makes it narrowest where the values' summed variance is `total`: with x = total / rho
    the boundary squared is proportional to (1 + 1/x) (log(1 + x) - 2 log alpha), least where log(1 + x) - 2 log alpha
    = x. Found by repeating it (a contraction for x > 0)."""
    x = -2 * math.log(alpha)
    for _ in range(_HALVINGS):
        x = math.log1p(x) - 2 * math.log(alpha)
    return total / x
