"""Coefficients of agreement between judges, with bootstrap intervals over items; numpy alone, no I/O.

  percent   mean over items of the share of agreeing pairs of votes (Fleiss 1971, Psychol. Bulletin 76:378, eq. 2-3)
  kappa     Fleiss 1971 for many judges; unequal numbers of votes as in Gwet (Handbook of Inter-Rater Reliability, 4th
            ed., ch. 2): shares of categories averaged over items
  alpha     Krippendorff (Content Analysis, 3rd ed., ch. 12; "Computing Krippendorff's alpha-reliability", 2011),
            metrics nominal, ordinal, interval, ratio
  ac1, ac2  Gwet 2008, Br. J. Math. Stat. Psychol. 61:29: chance agreement that stays sane when one category is rare;
            ac2 is ac1 with partial agreement (handbook, ch. 5)
  bp        Brennan and Prediger 1981, Educ. Psychol. Meas. 41:687: chance is one over the number of categories
  cohen     Cohen 1960; weighted 1968

Votes are counts `(items, categories)`. Every coefficient is a function of sums of per-item terms, and items with equal
counts have equal terms. So the bootstrap draws how often each distinct pattern of votes occurs (a multinomial) instead
of drawing items: resampling a million votes costs what resampling their patterns costs. Where patterns are more than
`GROUPS`, items are dealt at random into that many groups of equal size, and groups are drawn: sums over a group are as
independent as items are, so that the interval is the same but for a noise of 1 / sqrt(2 GROUPS) (1.6%) in its width.

Where a coefficient has no meaning (no item with two votes, one category, no disagreement to expect) it is NaN, quietly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from factory.schema import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["identity", "ordinal", "linear", "quadratic", "ratio"]
DRAWS = 1000
GROUPS = 2000
_BLOCK = 8_000_000  # numbers in memory at once while terms of many patterns are summed


class Patterns(NamedTuple):
    """Distinct rows `(patterns, columns)` and how many items have each `(patterns,)`."""

    rows: Array
    times: NDArray[np.int64]


class Coefficient(NamedTuple):
    """`terms` of rows `(patterns, columns)` are `(patterns, m)`; `finish` makes the coefficient `(draws,)` of their
    sums `(draws, m)`."""

    terms: Callable[[Array], Array]
    finish: Callable[[Array], Array]


# ---------------------------------------------------------------------------------------------------------- patterns


def patterns(rows: Array) -> Patterns:
    """Equal rows counted once. Rows of small whole numbers are packed into one integer each, which sorts fast."""
    import numpy as np

    packed = _packed(rows)
    if packed is None:
        found, times = np.unique(rows, axis=0, return_counts=True)
        return Patterns(found.astype(np.float64), times.astype(np.int64))
    first, times = distinct(packed)
    return Patterns(rows[first].astype(np.float64), times)


def _packed(rows: Array) -> NDArray[np.int64] | None:
    """Each row as one whole number, or None where that is not possible."""
    import numpy as np

    if rows.size == 0 or rows.min() < 0:
        return None
    base = int(rows.max()) + 1
    if rows.shape[1] * math.log2(max(base, 2)) > 53 or not np.array_equal(rows, np.floor(rows)):
        return None
    return np.asarray(rows @ (float(base) ** np.arange(rows.shape[1]))).astype(np.int64)


def distinct(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each distinct code, in order: a place where it stands, and how often it occurs. Small codes are counted,
    large ones sorted."""
    import numpy as np

    largest = int(codes.max(initial=0))
    if largest >= 4 * len(codes):
        _, first, times = np.unique(codes, return_index=True, return_counts=True)
        return first, times.astype(np.int64)
    counted = np.bincount(codes, minlength=largest + 1)
    place = np.zeros(largest + 1, dtype=np.int64)
    place[codes] = np.arange(len(codes))
    held = np.flatnonzero(counted)
    return place[held], counted[held].astype(np.int64)


# --------------------------------------------------------------------------------------------------------- bootstrap


def resampled(found: Patterns) -> str:
    """What the bootstrap draws: "items", or random groups of them where distinct items are many."""
    return "items" if len(found.times) <= GROUPS else f"{GROUPS} random groups of items"


def estimates(found: Patterns, wanted: Mapping[str, Coefficient], seed: int = 0) -> dict[str, Estimate]:
    """Each coefficient with its 95% percentile interval over items, all from the same `DRAWS` resamples.

    Draws where a coefficient has no meaning are left out; bounds are NaN with fewer than two items, or when no draw has
    one.
    """
    import numpy as np

    items = int(found.times.sum())
    if items == 0:
        return dict.fromkeys(wanted, Estimate(math.nan, math.nan, math.nan))
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        units, times = _units(found, wanted, rng)
        whole = times @ units
        drawn = _weights(times, rng) @ units if items > 1 else units[:0]
        edges = np.cumsum([0, *(c.terms(found.rows[:1]).shape[1] for c in wanted.values())])
        parts = zip(wanted.items(), edges[:-1], edges[1:], strict=True)
        return {
            name: _interval(float(c.finish(whole[None, a:b])[0]), c.finish(drawn[:, a:b])) for (name, c), a, b in parts
        }


def estimate(found: Patterns, wanted: Coefficient, seed: int = 0) -> Estimate:
    """One coefficient with its interval."""
    return estimates(found, {"": wanted}, seed)[""]


def _interval(value: float, drawn: Array) -> Estimate:
    import numpy as np

    sound = drawn[np.isfinite(drawn)]
    if math.isnan(value) or len(sound) == 0:
        return Estimate.alone(value)
    low, high = np.quantile(sound, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _units(found: Patterns, wanted: Mapping[str, Coefficient], rng: np.random.Generator) -> tuple[Array, Array]:
    """Terms of what is drawn `(units, m)`, and how many of each there are: patterns, or groups of items."""
    import numpy as np

    def terms(rows: Array) -> Array:
        return np.concatenate([c.terms(rows) for c in wanted.values()], axis=1)

    if len(found.times) <= GROUPS:
        return terms(found.rows), found.times.astype(np.float64)
    items = int(found.times.sum())
    dealt = rng.permutation(items) % GROUPS
    ends = np.cumsum(found.times)
    width = terms(found.rows[:1]).shape[1]
    sums = np.zeros((GROUPS, width))
    step = max(1, _BLOCK // width)
    for start in range(0, len(ends), step):
        block = terms(found.rows[start : start + step])
        times = found.times[start : start + step]
        group = dealt[ends[start] - times[0] : ends[start + len(times) - 1]]
        row = np.repeat(np.arange(len(times)), times)
        for m in range(width):
            sums[:, m] += np.bincount(group, block[row, m], GROUPS)
    return sums, np.ones(GROUPS)


def _weights(times: Array, rng: np.random.Generator) -> Array:
    """How often each unit occurs in each resample, `(draws, units)`."""
    import numpy as np

    n = int(times.sum())
    return rng.multinomial(n, times / n, size=DRAWS).astype(np.float64)


# ----------------------------------------------------------------------------------------------- partial agreement


def agreement_weights(name: Weights, scale: Array) -> Array:
    """How far two categories agree, `(categories, categories)` from 0 to 1, by their places on the scale.

    identity 0 or 1; linear 1 - |x - y| / range; quadratic its square; ordinal 1 - C(|k - l| + 1, 2) / C(q, 2) by
    places k, l among q; ratio 1 - ((x - y) / (x + y))^2 over that of the ends (handbook, ch. 3).
    """
    import numpy as np

    apart = np.abs(scale[:, None] - scale[None, :])
    if name == "identity":
        away = (apart > 0).astype(np.float64)
    elif name == "ordinal":
        steps = np.abs(np.subtract.outer(np.arange(len(scale)), np.arange(len(scale)))).astype(np.float64)
        away = steps * (steps + 1)
    elif name == "ratio":
        away = ratio_distances(scale)
        low, high = scale.min(initial=0.0 if not len(scale) else np.inf), scale.max(initial=0.0)
        away = _ratio(away, ((high - low) / (high + low)) ** 2) if high > low else away
        return np.asarray(1 - away)
    else:
        away = apart ** (2 if name == "quadratic" else 1)
    return np.asarray(1 - away / away.max(initial=np.finfo(float).tiny))


def ratio_distances(scale: Array) -> Array:
    """((x - y) / (x + y))^2 for values of 0 or more, 0 between two zeros."""
    import numpy as np

    total = scale[:, None] + scale[None, :]
    share = np.divide(scale[:, None] - scale[None, :], total, out=np.zeros_like(total), where=total > 0)
    return np.asarray(share**2)


# ------------------------------------------------------------------------------------------- many judges, by counts


def _agreeing(counts: Array, weights: Array) -> Array:
    """Share of an item's pairs of votes that agree, 0 where it has fewer than two votes."""
    import numpy as np

    votes = counts.sum(axis=1)
    pairs = votes * (votes - 1)
    found = (counts * (counts @ weights)).sum(axis=1) - votes
    return np.asarray(np.divide(found, pairs, out=np.zeros_like(pairs), where=votes >= 2))


def _chance_terms(weights: Array) -> Callable[[Array], Array]:
    """Per item: agreement, whether it has two votes, whether it has one, shares of the categories in its votes."""
    import numpy as np

    def terms(counts: Array) -> Array:
        votes = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, votes, out=np.zeros_like(counts), where=votes >= 1)
        flags = np.concatenate([votes >= 2, votes >= 1], axis=1)
        return np.concatenate([_agreeing(counts, weights)[:, None], flags, shares], axis=1)

    return terms


def _corrected(weights: Array, chance: Callable[[Array], Array]) -> Coefficient:
    """(agreement - chance) / (1 - chance), with chance `(draws,)` from the categories' shares `(draws, categories)`."""

    def finish(sums: Array) -> Array:
        agreement, shares = _ratio(sums[:, 0], sums[:, 1]), _ratio(sums[:, 3:], sums[:, 2:3])
        by_chance = chance(shares)
        return _ratio(agreement - by_chance, 1 - by_chance)

    return Coefficient(_chance_terms(weights), finish)


def percent(weights: Array) -> Coefficient:
    """Mean over items with two votes or more of the share of their pairs of votes that agree."""
    return Coefficient(_chance_terms(weights), lambda sums: _ratio(sums[:, 0], sums[:, 1]))


def fleiss_kappa(weights: Array) -> Coefficient:
    """Chance agreement is sum over k, l of w_kl pi_k pi_l: for identity weights sum pi_k^2."""
    return _corrected(weights, lambda shares: ((shares @ weights) * shares).sum(axis=1))


def gwet(weights: Array) -> Coefficient:
    """Chance agreement is sum w_kl / (q (q - 1)) x sum pi_k (1 - pi_k), with q categories, of which some may be unused:
    AC1 for identity weights, else AC2."""
    q = len(weights)
    factor = weights.sum() / (q * (q - 1)) if q > 1 else math.nan
    return _corrected(weights, lambda shares: factor * (shares * (1 - shares)).sum(axis=1))


def brennan_prediger(weights: Array) -> Coefficient:
    """Chance agreement is sum w_kl / q^2."""
    return _corrected(weights, lambda shares: 0 * shares[:, 0] + float(weights.mean()))


def distance_alpha(distances: Array) -> Coefficient:
    """Krippendorff's alpha for fixed distances of categories: 1 - (n - 1) observed / expected disagreement, over the
    votes of items with two or more. Nominal: every two categories equally far apart."""
    import numpy as np

    def terms(counts: Array) -> Array:
        votes = counts.sum(axis=1)
        kept = np.where(votes[:, None] >= 2, counts, 0.0)
        observed = (kept * (kept @ distances)).sum(axis=1) / np.maximum(votes - 1, 1)
        return np.concatenate([observed[:, None], kept], axis=1)

    def finish(sums: Array) -> Array:
        totals = sums[:, 1:]
        return _alpha(totals.sum(axis=1), sums[:, 0], (totals * (totals @ distances)).sum(axis=1))

    return Coefficient(terms, finish)


def ordinal_alpha(categories: int) -> Coefficient:
    """Alpha over categories in their order. The distance of c and k is (n_c / 2 + ... + n_k / 2)^2, the votes that lie
    between their middles: each category has a place, its middle rank, anew for every draw. Sums are coincidences of
    k <= l, of which those of k < l stand for both orders."""
    import numpy as np

    one, other = np.triu_indices(categories)

    def terms(counts: Array) -> Array:
        votes = counts.sum(axis=1)
        kept = np.where(votes[:, None] >= 2, counts, 0.0)
        pairs = kept[:, one] * (kept[:, other] - (one == other))
        return np.asarray(pairs / np.maximum(votes - 1, 1)[:, None])

    def finish(sums: Array) -> Array:
        totals = sums @ (np.eye(categories)[one] + np.eye(categories)[other] * (one != other)[:, None])
        n = totals.sum(axis=1)
        place = _ratio(totals.cumsum(axis=1) - totals / 2, n[:, None])
        place = place - _ratio((totals * place).sum(axis=1), n)[:, None]
        observed = 2 * (sums * (place[:, one] - place[:, other]) ** 2).sum(axis=1)
        expected = 2 * (n * (totals * place**2).sum(axis=1) - (totals * place).sum(axis=1) ** 2)
        return _alpha(n, observed, expected)

    return Coefficient(terms, finish)


def interval_alpha() -> Coefficient:
    """Alpha for squared differences, from each item's (votes, sum, sum of squares): no categories are needed.

    Both disagreements are variances: sum over pairs of (x - y)^2 = 2 (n sum x^2 - (sum x)^2). Centre the values first,
    so that a large mean does not drown them in rounding.
    """
    import numpy as np

    def terms(moments: Array) -> Array:
        kept = np.where(moments[:, :1] >= 2, moments, 0.0)
        votes, total, square = kept.T
        observed = 2 * (votes * square - total**2) / np.maximum(votes - 1, 1)
        return np.concatenate([observed[:, None], kept], axis=1)

    def finish(sums: Array) -> Array:
        observed, n, s, q = sums.T
        return _alpha(n, observed, 2 * (n * q - s**2))

    return Coefficient(terms, finish)


# ------------------------------------------------------------------------------------------------------- two judges


def cohen_kappa(weights: Array) -> Coefficient:
    """Kappa from pairs of votes `(patterns, 2)`, as numbers of categories: 1 - observed / expected disagreement, with
    1 - w_kl for how far two categories disagree."""
    import numpy as np

    away, kinds = 1 - weights, len(weights)

    def terms(cells: Array) -> Array:
        one, other = cells.astype(np.int64).T
        eye = np.eye(kinds)
        return np.concatenate([away[one, other][:, None], eye[one], eye[other]], axis=1)

    def finish(sums: Array) -> Array:
        first, second = sums[:, 1 : 1 + kinds], sums[:, 1 + kinds :]
        expected = ((first @ away) * second).sum(axis=1)
        n = first.sum(axis=1)
        return np.asarray(1 - _ratio(sums[:, 0] / n, expected / n**2))

    return Coefficient(terms, finish)


def quadratic_kappa() -> Coefficient:
    """Kappa with weights (x - y)^2 from pairs of values `(patterns, 2)`, for measurements without categories: 1 - mean
    (x - y)^2 / its mean by chance, var x + var y + (mean x - mean y)^2. Centre the values first."""
    import numpy as np

    def terms(values: Array) -> Array:
        x, y = values.T
        return np.stack([np.ones_like(x), x, y, x**2 + y**2, (x - y) ** 2], axis=1)

    def finish(sums: Array) -> Array:
        n, x, y, square, apart = sums.T
        return np.asarray(1 - _ratio(apart / n, square / n - 2 * (x / n) * (y / n)))

    return Coefficient(terms, finish)


def _alpha(votes: Array, observed: Array, expected: Array) -> Array:
    """1 - (n - 1) observed / expected, from sums over coincidences and over products of totals."""
    import numpy as np

    return np.asarray(1 - (votes - 1) * _ratio(observed / votes**2, expected / votes**2))


def _ratio(above: Array, below: Array | float) -> Array:
    """Division where nothing is left below gives NaN. Rounding counts as nothing: what comes here is of order one."""
    import numpy as np

    below = np.broadcast_to(np.asarray(below, dtype=np.float64), np.shape(above))
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.abs(below) > 1e-12))
