"""Intervals for rates, means and differences; no I/O, numpy alone.

Wilson (1927, JASA 22) for a rate, with the number of trials that its clusters are worth (Korn and Graubard 1998, Survey
Methodology 24:193); Newcombe (1998, Statistics in Medicine 17:2635, method 10) for the difference of two paired rates;
the same square-and-add step (MOVER: Zou and Donner 2008) for other differences; the bootstrap over clusters (Efron
1979) with expanded percentiles (Hesterberg 2015) for all else. A cluster is what is drawn anew: the answers to one
prompt hang together, so that prompts are resampled and never single answers (Miller 2024, arXiv 2411.00640). How often
these intervals hold the truth where prompts are few: `benchmarks/intervals.py`.

Every function returns `Estimate(value, low, high)` at the given level, two-sided. No data gives NaN throughout; a mean
of one cluster has NaN bounds, a rate those of one trial.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from factory.schema import Estimate
from factory.stats.quantiles import LEVEL, expanded, t_of, z_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Index = NDArray[np.int64]

RESAMPLES = 2000
UNKNOWN = Estimate(math.nan, math.nan, math.nan)
_DRAWN_AT_ONCE = 2_000_000  # indices held in memory by one block of resamples
_FLAT = 1e-20  # of p (1 - p): what rounding leaves of a variance between clusters that are all alike


def wilson(successes: float, n: float, level: float = LEVEL) -> Estimate:
    """A rate of independent trials. Both numbers may be fractional (weights); 0 of n has an upper bound above 0."""
    return UNKNOWN if n <= 0 else _wilson(successes / n, n, level)


def _wilson(p: float, n: float, level: float) -> Estimate:
    z = z_of(level)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(p * (1 - p) / n + z * z / (4 * n * n), 0.0))
    low = 0.0 if p <= 0 else max(0.0, min(centre - half, p))
    high = 1.0 if p >= 1 else min(1.0, max(centre + half, p))
    return Estimate(p, low, high)


def rate(values: Sequence[float], clusters: Sequence[Hashable], level: float = LEVEL) -> Estimate:
    """The mean of values within [0, 1] with Wilson's interval, for as many trials as the clusters are worth.

    One value a cluster: Wilson's own. Where all values are 0, or all 1, or all stand in one cluster, or all clusters
    have one mean, how they hang together cannot be seen, and every cluster counts as one trial. Clusters of different
    sizes vary as fewer of one size do: Kish's (sum of sizes)^2 / sum of squared sizes.
    """
    import numpy as np

    n = len(values)
    if n == 0:
        return UNKNOWN
    value = np.asarray(values, dtype=np.float64)
    index, groups = places(clusters)
    p = float(value.mean())
    if groups == n:
        return _wilson(p, n, level)
    sizes, sums = np.bincount(index), np.bincount(index, value - p)
    alike = n**2 / float((sizes**2).sum())
    return _wilson(p, _worth(p, float((sums**2).sum()) / n**2, n, alike, level) or groups, level)


def _worth(p: float, spread: float, trials: float, clusters: float, level: float) -> float:
    """Kish's effective number of trials for a rate whose clusters vary by `spread` (the sum of the squares of what each
    adds to its error), from 1 to `trials`, with Korn and Graubard's correction of the freedom. Both numbers may be
    fractional. 0 where nothing varies: it cannot be told then."""
    if clusters <= 1 or spread <= _FLAT * p * (1 - p):
        return 0.0
    independent, variance = p * (1 - p) / (trials - 1), spread * clusters / (clusters - 1)
    freedom = (t_of(level, trials - 1) / t_of(level, clusters - 1)) ** 2
    return max(1.0, min(float(trials), trials * independent / variance * freedom))


def paired_rates(both: int, only_a: int, only_b: int, neither: int, level: float = LEVEL) -> Estimate:
    """Rate of a minus rate of b over the same trials, from the four counts of a 2x2 table.

    Newcombe's method 10: Wilson bounds of each rate, squared and added, with their correlation phi,
    continuity-corrected as he does. Bounds stay in [-1, 1] and do not shrink to a point when nothing differs.
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return UNKNOWN
    a, b = wilson(both + only_a, n, level), wilson(both + only_b, n, level)
    return _square_and_add(a, b, _phi(both, only_a, only_b, neither))


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    """Correlation of two paired yes/no answers; a positive one is pulled half an observation towards zero."""
    n = both + only_a + only_b + neither
    spread = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if spread == 0:
        return 0.0
    cross = both * neither - only_a * only_b
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    return corrected / math.sqrt(spread)


def paired_shares(a: Sequence[Sequence[bool]], b: Sequence[Sequence[bool]], level: float = LEVEL) -> Estimate:
    """Mean of a's share minus b's over items (prompts) that both were measured on, each with the same weight; an item
    holds one or more yes/no values of either.

    Newcombe's method 10 where items hold one value each, and its like where they hold several: each rate has Wilson's
    interval for as many trials as its items are worth, and the correlation is that of the items' shares, a positive
    covariance being pulled half a value towards zero.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} items against {len(b)}: pairs are needed")
    if not a:
        return UNKNOWN
    ours, theirs = _shares(a), _shares(b)
    covariance = float(((ours.of - ours.of.mean()) * (theirs.of - theirs.of.mean())).mean())
    half = 1 / (2 * min(ours.trials, theirs.trials))
    corrected = max(covariance - half, 0.0) if covariance > 0 else covariance
    spread = float(ours.of.std() * theirs.of.std())
    sides = (_of_shares(ours, level), _of_shares(theirs, level))
    return _square_and_add(*sides, corrected / spread if spread > 0 else 0.0)


class _Shares(NamedTuple):
    """The share of each item `(items,)`, and how many independent trials their mean is of if answers to one item do not
    hang together: with m answers to one, items^2 / sum of 1 / m."""

    of: Array
    trials: float


def _shares(items: Sequence[Sequence[bool]]) -> _Shares:
    import numpy as np

    sizes = np.array([len(values) for values in items])
    return _Shares(np.array([sum(values) for values in items]) / sizes, len(items) ** 2 / float((1 / sizes).sum()))


def _of_shares(shares: _Shares, level: float) -> Estimate:
    """Their mean with Wilson's interval."""
    p, items = float(shares.of.mean()), len(shares.of)
    if shares.trials <= items:
        return _wilson(p, items, level)
    return _wilson(p, _worth(p, float(shares.of.var()) / items, shares.trials, items, level) or items, level)


def wins_and_losses(wins: int, ties: int, losses: int, level: float = LEVEL) -> Estimate:
    """Win rate with ties as half a win: 1/2 + (share won - share lost) / 2, by square-and-add on the two shares, whose
    correlation within one multinomial is -sqrt(w l / ((1-w)(1-l))). All ties: 1/2, with bounds that narrow with n."""
    n = wins + ties + losses
    if n == 0:
        return UNKNOWN
    won, lost = wilson(wins, n, level), wilson(losses, n, level)
    outside = (1 - won.value) * (1 - lost.value)
    correlation = -math.sqrt(min(won.value * lost.value / outside, 1.0)) if outside > 0 else -1.0
    gap = _square_and_add(won, lost, correlation)
    return Estimate(*(0.5 + bound / 2 for bound in gap))


def difference(a: Estimate, b: Estimate, share: float = 1.0) -> Estimate:
    """a - share * b for two estimates that know nothing of each other (square-and-add, no correlation)."""
    ends = sorted((share * b.low, share * b.high))
    return _square_and_add(a, Estimate(share * b.value, *ends), 0.0)


def _square_and_add(a: Estimate, b: Estimate, correlation: float) -> Estimate:
    """Interval of a - b from the distances of each value to its own bounds."""
    down_a, up_a = a.value - a.low, a.high - a.value
    down_b, up_b = b.value - b.low, b.high - b.value
    below = down_a**2 - 2 * correlation * down_a * up_b + up_b**2
    above = up_a**2 - 2 * correlation * up_a * down_b + down_b**2
    gap = a.value - b.value
    if math.isnan(below) or math.isnan(above):
        return Estimate.alone(gap)
    return Estimate(gap, gap - math.sqrt(max(below, 0.0)), gap + math.sqrt(max(above, 0.0)))


def widened(estimate: Estimate, looks: int, level: float = LEVEL) -> Estimate:
    """The interval stretched so that `looks` readings in a row, each of which may stop a run, err together at most
    1 - level of the time: the k-th look spends 6 / (pi k)^2 of the allowance (they sum to one), by the union bound."""
    if looks < 1:
        raise ValueError("looks counts from 1")
    spent = (1 - level) * 6 / (math.pi * looks) ** 2
    factor = z_of(1 - spent) / z_of(level)
    down, up = estimate.value - estimate.low, estimate.high - estimate.value
    return Estimate(estimate.value, estimate.value - factor * down, estimate.value + factor * up)


# ------------------------------------------------------------------------------------------------ the bootstrap


def places(clusters: Sequence[Hashable]) -> tuple[Index, int]:
    """The number of each entry's cluster `(entries,)`, in order of appearance, and how many clusters there are."""
    import numpy as np

    seen: dict[Hashable, int] = {}
    index = np.asarray([seen.setdefault(cluster, len(seen)) for cluster in clusters], dtype=np.int64)
    return index, len(seen)


class Clustered(NamedTuple):
    """Sums by cluster, in order of first appearance: what a ratio of sums needs. Both `(clusters,)`."""

    numerators: Array
    denominators: Array


def by_cluster(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Clustered:
    """Sum both sequences within clusters; without clusters every item is its own."""
    import numpy as np

    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape:
        raise ValueError(f"{len(top)} numerators for {len(bottom)} denominators")
    if clusters is None:
        return Clustered(top, bottom)
    if len(clusters) != len(top):
        raise ValueError(f"{len(clusters)} clusters for {len(top)} values")
    index, groups = places(clusters)
    sums = (np.bincount(index, weights=values, minlength=groups) for values in (top, bottom))
    return Clustered(*(s.astype(np.float64) for s in sums))


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Sum of numerators over sum of denominators (a mean when the denominators are 1), bootstrapped over clusters."""
    import numpy as np

    sums = by_cluster(numerators, denominators, clusters)
    total = float(sums.denominators.sum())
    if total == 0:
        return UNKNOWN
    value = float(sums.numerators.sum()) / total
    if len(sums.numerators) < 2 or not math.isfinite(value):
        return Estimate.alone(value)
    drawn = _resampled(sums, resamples, seed)
    low, high = np.nanquantile(drawn, expanded(level, len(sums.numerators)))
    return Estimate(value, float(low), float(high))


def _resampled(sums: Clustered, resamples: int, seed: int) -> Array:
    """The ratio of `resamples` draws of as many clusters, with replacement, in blocks of bounded memory.

    Shape (resamples,); a draw whose denominators are all 0 is NaN.
    """
    import numpy as np

    n = len(sums.numerators)
    rng = np.random.default_rng(seed)
    block = max(1, _DRAWN_AT_ONCE // n)
    drawn = np.empty(resamples)
    for start in range(0, resamples, block):
        picks = rng.integers(0, n, size=(min(block, resamples - start), n))
        below = sums.denominators[picks].sum(axis=1)
        above = sums.numerators[picks].sum(axis=1)
        drawn[start : start + len(picks)] = np.divide(above, below, out=np.full(len(picks), np.nan), where=below != 0)
    return drawn


def mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean of all values, bootstrapped over clusters."""
    return ratio(values, [1.0] * len(values), clusters, level=level, resamples=resamples, seed=seed)


def share(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """The mean of values within [0, 1] (a pass rate when they are 0 and 1).

    Yes/no values: `rate`. Otherwise the clustered bootstrap; where all clusters agree it would claim certainty, so that
    there Wilson's interval with one trial a cluster is given (too wide rather than too narrow).
    """
    if not values:
        return UNKNOWN
    if set(values) <= {0, 1}:
        return rate(values, range(len(values)) if clusters is None else clusters, level)
    estimate = mean(values, clusters, level=level, seed=seed)
    if estimate.low < estimate.high:
        return estimate
    groups = len(values) if clusters is None else len(set(clusters))
    return wilson(estimate.value * groups, groups, level)


def win_rate(values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean over prompts of a prompt's win rate, ties half.

    One comparison a prompt (values 0, 1/2, 1): `wins_and_losses`. Otherwise the bootstrap over prompts; where all
    prompts agree, as at `share`.
    """
    if set(values) <= {0.0, 0.5, 1.0}:
        wins, ties, losses = (sum(1 for value in values if value == outcome) for outcome in (1.0, 0.5, 0.0))
        return wins_and_losses(wins, ties, losses, level)
    estimate = mean(values, level=level, resamples=resamples, seed=seed)
    if estimate.low < estimate.high:
        return estimate
    return wilson(estimate.value * len(values), len(values), level)
