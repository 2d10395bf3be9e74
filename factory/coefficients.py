"""Coefficients of agreement between judges, with bootstrap intervals over items; numpy alone, no I/O.

  percent   mean over items of the share of agreeing pairs of votes (Fleiss 1971, Psychol. Bulletin 76:378, eq. 2-3)
  kappa     Fleiss 1971 for many judges; unequal numbers of votes as in Gwet (Handbook of Inter-Rater Reliability, 4th
            ed., ch. 2): shares of categories averaged over items
  alpha     Krippendorff (Content Analysis, 3rd ed., ch. 12; "Computing Krippendorff's alpha-reliability", 2011),
            metrics nominal, ordinal, interval
  ac1       Gwet 2008, Br. J. Math. Stat. Psychol. 61:29: chance agreement that stays sane when one category is rare
  cohen     Cohen 1960; 1968 with quadratic weights

Votes are counts `(items, categories)`. All coefficients depend on items through sums of per-item terms, and items with
equal counts are the same to them, so that the bootstrap draws how often each distinct pattern of votes occurs (a
multinomial) instead of drawing items: resampling a million votes costs what resampling their patterns costs.

Where a coefficient has no meaning (no item with two votes, one category, no disagreement to expect) it is NaN, quietly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from factory.schema import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Level = Literal["nominal", "ordinal", "interval"]
DRAWS = 1000
FEWEST_DRAWS = 200
_WORK = 200_000_000  # numbers that a bootstrap may draw in all; above it, fewer draws
_BLOCK = 4_000_000  # of them in memory at once


class Patterns(NamedTuple):
    """Distinct rows `(patterns, columns)` and how many items have each `(patterns,)`."""

    rows: Array
    times: NDArray[np.int64]


def patterns(rows: Array) -> Patterns:
    """Equal rows counted once. Rows of small whole numbers are packed into one integer each, which sorts fast."""
    import numpy as np

    packed = _packed(rows)
    if packed is None:
        found, times = np.unique(rows, axis=0, return_counts=True)
        return Patterns(found.astype(np.float64), times.astype(np.int64))
    _, first, times = np.unique(packed, return_index=True, return_counts=True)
    return Patterns(rows[first].astype(np.float64), times.astype(np.int64))


def _packed(rows: Array) -> NDArray[np.int64] | None:
    import numpy as np

    if rows.size == 0 or not np.array_equal(rows, np.floor(rows)) or rows.min() < 0:
        return None
    base = int(rows.max()) + 1
    if rows.shape[1] * math.log2(max(base, 2)) >= 62:
        return None
    return np.asarray(rows.astype(np.int64) @ (base ** np.arange(rows.shape[1], dtype=np.int64)))


def draws_for(distinct: int) -> int:
    """How many resamples are made of so many patterns: 1000, fewer where that would draw too many numbers."""
    return max(FEWEST_DRAWS, min(DRAWS, _WORK // max(distinct, 1)))


def estimate(found: Patterns, coefficient: Callable[[Array, Array], Array], seed: int = 0) -> Estimate:
    """The coefficient and its 95% percentile interval over items.

    `coefficient(rows, weights)` takes the patterns and weights `(draws, patterns)` and gives `(draws,)`. Draws where
    it has no meaning are left out; bounds are NaN with fewer than two items, or when no draw has one.
    """
    import numpy as np

    if len(found.times) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    with np.errstate(all="ignore"):
        value = float(coefficient(found.rows, found.times[None, :].astype(np.float64))[0])
        if math.isnan(value) or found.times.sum() < 2:
            return Estimate(value, math.nan, math.nan)
        drawn = np.concatenate([coefficient(found.rows, weights) for weights in _resamples(found.times, seed)])
    sound = drawn[np.isfinite(drawn)]
    if len(sound) == 0:
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(sound, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _resamples(times: NDArray[np.int64], seed: int) -> Iterator[Array]:
    """How often each pattern occurs in each resample of the items, in blocks `(draws, patterns)`."""
    import numpy as np

    rng = np.random.default_rng(seed)
    items, left = int(times.sum()), draws_for(len(times))
    while left > 0:
        size = min(left, max(1, _BLOCK // len(times)))
        yield rng.multinomial(items, times / items, size=size).astype(np.float64)
        left -= size


# ------------------------------------------------------------------------------------------- many judges, by counts


def percent(counts: Array, weights: Array) -> Array:
    """Mean over items with two votes or more of n_k (n_k - 1) / (n (n - 1)), summed over categories k."""
    votes = counts.sum(axis=1)
    usable = votes >= 2
    agreeing = _ratio((counts * (counts - 1)).sum(axis=1), votes * (votes - 1))
    return _ratio(weights[:, usable] @ agreeing[usable], weights[:, usable].sum(axis=1))


def _shares(counts: Array, weights: Array) -> Array:
    """pi_k: the mean over items with a vote of each category's share of its votes. `(draws, categories)`"""
    votes = counts.sum(axis=1)
    voted = votes >= 1
    return _ratio(weights[:, voted] @ (counts[voted] / votes[voted, None]), weights[:, voted].sum(axis=1)[:, None])


def fleiss_kappa(counts: Array, weights: Array) -> Array:
    """(P - sum pi_k^2) / (1 - sum pi_k^2)"""
    return _beyond_chance(percent(counts, weights), (_shares(counts, weights) ** 2).sum(axis=1))


def gwet_ac1(counts: Array, weights: Array) -> Array:
    """Chance agreement is sum pi_k (1 - pi_k) / (q - 1), with q categories, of which one may be unused."""
    shares = _shares(counts, weights)
    chance = _ratio((shares * (1 - shares)).sum(axis=1), shares.shape[1] - 1)
    return _beyond_chance(percent(counts, weights), chance)


def nominal_alpha(counts: Array, weights: Array) -> Array:
    """Krippendorff's alpha, every two categories equally far apart: 1 - (n - 1) observed / expected disagreement, over
    the votes of items with two or more."""
    votes = counts.sum(axis=1)
    usable = votes >= 2
    kept, drawn, votes = counts[usable], weights[:, usable], votes[usable]
    observed = drawn @ ((votes**2 - (kept**2).sum(axis=1)) / (votes - 1))
    totals = drawn @ kept
    n = totals.sum(axis=1)
    return _not_by_chance(n, observed, n**2 - (totals**2).sum(axis=1))


def ordinal_alpha(counts: Array, weights: Array) -> Array:
    """Alpha over categories in their order. The distance of c and k is (n_c / 2 + ... + n_k / 2)^2, the votes that lie
    between their middles: each category has a place, its middle rank, anew for every draw."""
    votes = counts.sum(axis=1)
    usable = votes >= 2
    kept, drawn, votes = counts[usable], weights[:, usable], votes[usable]
    totals = drawn @ kept
    n = totals.sum(axis=1)
    place = _ratio(totals.cumsum(axis=1) - totals / 2, n[:, None])
    place = place - _ratio((totals * place).sum(axis=1), n)[:, None]
    within = votes * (place**2 @ kept.T) - (place @ kept.T) ** 2
    observed = (drawn * within / (votes - 1)).sum(axis=1)
    expected = n * (totals * place**2).sum(axis=1) - (totals * place).sum(axis=1) ** 2
    return _not_by_chance(n, observed, expected)


def interval_alpha(moments: Array, weights: Array) -> Array:
    """Alpha for squared differences, from each item's (votes, sum, sum of squares): no categories are needed.

    Both disagreements are variances: sum over pairs of (x - y)^2 = 2 (n sum x^2 - (sum x)^2). Centre the values first,
    so that a large mean does not drown them in rounding.
    """
    usable = moments[:, 0] >= 2
    votes, total, square = moments[usable].T
    drawn = weights[:, usable]
    observed = drawn @ (2 * (votes * square - total**2) / (votes - 1))
    n, s, q = drawn @ votes, drawn @ total, drawn @ square
    expected = 2 * (n * q - s**2)
    return _not_by_chance(n, observed, expected)


# ------------------------------------------------------------------------------------------------------- two judges


def cohen_kappa(cells: Array, weights: Array) -> Array:
    """Plain kappa from distinct pairs of votes `(patterns, 2)`, as numbers of categories."""
    import numpy as np

    kinds = int(cells.max()) + 1 if cells.size else 1
    one = np.eye(kinds)
    first, second = cells.astype(np.int64).T
    n = weights.sum(axis=1)
    same = _ratio(weights @ (first == second).astype(np.float64), n)
    chance = ((weights @ one[first]) * (weights @ one[second])).sum(axis=1)
    return _beyond_chance(same, _ratio(chance, n * n))


def quadratic_kappa(values: Array, weights: Array) -> Array:
    """Kappa with weights (x - y)^2 from distinct pairs of values `(patterns, 2)`: 1 - mean (x - y)^2 / its mean by
    chance, which is var x + var y + (mean x - mean y)^2. Centre the values first."""
    import numpy as np

    x, y = values.T
    n = weights.sum(axis=1)
    observed = _ratio(weights @ (x - y) ** 2, n)
    mean_x, mean_y = _ratio(weights @ x, n), _ratio(weights @ y, n)
    square = _ratio(weights @ x**2, n) + _ratio(weights @ y**2, n)
    return np.asarray(1 - _ratio(observed, square - 2 * mean_x * mean_y))


def _not_by_chance(votes: Array, observed: Array, expected: Array) -> Array:
    """Krippendorff's 1 - (n - 1) observed / expected, from sums over coincidences and over products of totals."""
    import numpy as np

    return np.asarray(1 - (votes - 1) * _ratio(observed, expected))


def _beyond_chance(observed: Array, chance: Array) -> Array:
    return _ratio(observed - chance, 1 - chance)


def _ratio(above: Array, below: Array | int) -> Array:
    """Division where nothing is left below gives NaN (rounding counts as nothing)."""
    import numpy as np

    below = np.broadcast_to(np.asarray(below, dtype=np.float64), np.shape(above))
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.abs(below) > 1e-12))
