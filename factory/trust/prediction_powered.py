"""Prediction-powered inference: a mean of what people would say, from few of their verdicts and many of a judge's.

Angelopoulos et al., Science 2023, arXiv 2301.09633; with power tuning as in PPI++, arXiv 2311.01453:

  theta = w mean(f over items without gold) + mean(y - w f over items with gold)

y is gold, f the judge's prediction, right or wrong: what the judge gets wrong on average is taken off, so that theta is
unbiased for any judge and any w, if items with gold are drawn at random. w = 0 is the plain mean of gold; a judge that
is worth nothing gets a w near 0 and costs nothing. w is the minimiser of the variance, which here sums what an item
adds to the error within its prompt, also where items of one prompt have gold and others not; with one item a prompt it
is PPI++'s cov(y, f) / ((1 + n/N) var(f)).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from factory.schema import Estimate
from factory.stats.intervals import places, rate
from factory.stats.quantiles import LEVEL, t_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class Powered(NamedTuple):
    """A mean: prediction-powered, from gold alone, and from the judge alone (which is whatever the judge believes)."""

    estimate: Estimate
    gold_only: Estimate
    judge_only: float
    weight: float  # w
    gold: int  # items with gold
    others: int  # items without


def powered_mean(
    gold: Sequence[float],
    judged: Sequence[float],
    prompts: Sequence[Hashable],
    others: Sequence[float],
    other_prompts: Sequence[Hashable],
    *,
    level: float = LEVEL,
) -> Powered:
    """The mean of gold over all items. `judged` are the judge's predictions of the items with gold, `others` those of
    the items without; they need not be on gold's scale, as w takes care of that. w is 0 or more. Bounds are NaN with
    gold on one prompt."""
    import numpy as np

    y, f, g = (np.asarray(values, dtype=np.float64) for values in (gold, judged, others))
    index, groups = places([*prompts, *other_prompts])
    n = len(y)
    of_gold = _sums(y - _mean(y), index[:n], groups, n)
    of_judge = _sums(f - _mean(f), index[:n], groups, n)
    of_others = _sums(g - _mean(g), index[n:], groups, len(g))
    spread = of_judge - of_others
    total = float((spread**2).sum())
    weight = float((of_gold * spread).sum()) / total if total > 1e-15 and len(g) else 0.0
    weight = max(weight, 0.0)
    value = _mean(y) + weight * (_mean(g) - _mean(f)) if len(g) else _mean(y)
    seen = len(set(prompts))
    if n and float(np.ptp(y)) == 0:
        alone = _constant(y, prompts, level)
        return Powered(alone, alone, _mean(np.concatenate([f, g])), 0.0, n, len(g))
    return Powered(
        _interval(value, of_gold - weight * spread, seen - 2 if weight else seen - 1, level),
        _interval(_mean(y), of_gold, seen - 1, level),
        _mean(np.concatenate([f, g])),
        weight,
        n,
        len(g),
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _sums(away: Array, index: NDArray[np.int64], groups: int, n: int) -> Array:
    """What each prompt adds to the error of a mean, `(prompts,)`."""
    import numpy as np

    return np.asarray(np.bincount(index, away, groups) / n if n else np.zeros(groups))


def _constant(gold: Array, prompts: Sequence[Hashable], level: float) -> Estimate:
    """Gold that never varies shows no scale of its errors: Wilson's interval for shares, no bounds for other values."""
    value = float(gold[0])
    return rate(gold.tolist(), prompts, level) if 0 <= value <= 1 else Estimate.alone(value)


def _interval(value: float, error: Array, freedom: int, level: float) -> Estimate:
    """t interval, with the freedom of the prompts that have gold; w, fitted to them, takes one degree."""
    if freedom < 1:
        return Estimate.alone(value)
    half = t_of(level, freedom) * math.sqrt((freedom + 1) / freedom * float((error**2).sum()))
    return Estimate(value, value - half, value + half)
