"""Reliability: every coefficient of `factory.stats.coefficients` for a table of votes, with intervals.

Votes may be missing, judges may have judged different items, categories may be words, ranks or numbers. What is a
category's distance from another is the level's to say:

  level      alpha's distance          weights of AC2 and Brennan-Prediger   weights of Cohen's kappa
  nominal    equal or not              equal or not                          equal or not
  ordinal    votes that lie between    Gwet's ordinal weights                squared difference of places
  interval   squared difference        squared difference of values          squared difference of values
  ratio      ((x - y) / (x + y))^2     the same over its largest             the same over its largest

`weights=` overrides the last two columns. Percent, Fleiss' kappa and AC1 ask whether votes are equal at every level.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_args

from factory.faults import FactoryError
from factory.registry import unknown_name
from factory.schema import Estimate
from factory.stats import coefficients
from factory.stats.coefficients import Coefficient, Level, Patterns, Weights
from factory.votes.aggregation import Votes, count, encode

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MOST_CATEGORIES = 100
"""Votes on an interval level with more distinct values than this are measurements: coefficients that count categories
(kappas, AC1, AC2, Brennan-Prediger) are NaN for them; alpha and Cohen's kappa with squared differences are not."""
MOST_CELLS = 200_000_000
"""Items times categories that are counted."""
MOST_JUDGES = 50
"""With more judges than this, Cohen's kappa is not taken of every two of them."""
_UNKNOWN = Estimate(math.nan, math.nan, math.nan)
_WEIGHTS: dict[Level, Weights] = {
    "nominal": "identity",
    "ordinal": "ordinal",
    "interval": "quadratic",
    "ratio": "ratio",
}


@dataclass(frozen=True)
class AgreementReport:
    """How far judges agree. NaN where a coefficient has no meaning: no item with two votes, one category, one judge."""

    percent: Estimate
    fleiss_kappa: Estimate
    krippendorff_alpha: Estimate
    gwet_ac1: Estimate
    gwet_ac2: Estimate  # AC1 at nominal level
    brennan_prediger: Estimate
    cohen_kappa: dict[tuple[str, str], Estimate]  # judges in order of name; empty beyond MOST_JUDGES
    level: Level
    weights: Weights  # of AC2 and Brennan-Prediger
    cohen_weights: Weights
    categories: int
    items: int  # with at least one vote
    judges: int
    votes: int
    draws: int  # bootstrap resamples behind the intervals
    resampled: str  # what was drawn: items, or groups of them

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an estimate is [value, low, high] with null for NaN, a pair of judges is "one / other"."""
        kappas = {" / ".join(pair): plain(value) for pair, value in self.cohen_kappa.items()}
        return {f.name: plain(getattr(self, f.name)) for f in fields(self)} | {"cohen_kappa": kappas}

    def rows(self) -> list[dict[str, Any]]:
        """One line a coefficient for a table; None for what is unknown."""
        named = [f.name for f in fields(self) if isinstance(getattr(self, f.name), Estimate)]
        found = [(name, getattr(self, name)) for name in named]
        found += [(f"cohen_kappa {one} / {other}", value) for (one, other), value in self.cohen_kappa.items()]
        return [{"coefficient": name, "value": known(value)} for name, value in found]


def plain(value: Any) -> Any:
    """An estimate or a number for JSON: NaN becomes null."""
    if isinstance(value, Estimate):
        return [plain(number) for number in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def known(value: Any) -> Any:
    """None for an estimate without a value."""
    return None if isinstance(value, Estimate) and math.isnan(value.value) else value


def measure(
    ratings: pa.Table,
    level: Level = "nominal",
    categories: Sequence[Any] | None = None,
    *,
    weights: Weights | None = None,
    seed: int = 0,
) -> AgreementReport:
    """Agreement over votes in a table with columns item, judge, value; missing votes are no rows, null or NaN.

    `categories` declares the scale in its order: needed at ordinal level when values are no numbers, and for
    categories that nobody used (AC1, AC2 and Brennan-Prediger count them; weights go by their places or values).
    `weights` overrides the level's (see the module). Intervals are 95% and resample items. FactoryError when votes do
    not fit the level, the scale or the weights.
    """
    if level not in get_args(Level):
        raise unknown_name("level", level, get_args(Level))
    if weights is not None and weights not in get_args(Weights):
        raise unknown_name("weights", weights, get_args(Weights))
    votes = encode(ratings, categories)
    _check_level(votes, level, weights, categories)
    _check_size(votes, level)
    scale = _scale(votes, level)
    partial: Weights = weights or _WEIGHTS[level]
    between: Weights = weights or ("quadratic" if level == "ordinal" else _WEIGHTS[level])
    counted, spread = _patterns(votes, scale, level)
    sizes = counted.rows.shape[1]
    found = coefficients.estimates(counted, _by_categories(level, partial, scale, sizes), seed)
    if level == "interval":
        found["krippendorff_alpha"] = coefficients.estimate(spread, coefficients.interval_alpha(), seed)
    return AgreementReport(
        **found,
        cohen_kappa=_cohen(votes, scale, between, seed),
        level=level,
        weights=partial,
        cohen_weights=between,
        categories=len(votes.categories),
        items=len(votes.items),
        judges=len(votes.judges),
        votes=len(votes.item),
        draws=coefficients.DRAWS,
        resampled=coefficients.resampled(spread),
    )


def _check_level(votes: Votes, level: Level, weights: Weights | None, categories: Sequence[Any] | None) -> None:
    numeric = all(isinstance(c, int | float) for c in votes.categories)
    if level in ("interval", "ratio") and not numeric:
        raise FactoryError(f"{level} level needs votes that are numbers", todo="use nominal or ordinal")
    if level == "ordinal" and categories is None and not numeric:
        raise FactoryError("ordinal level needs the order of the categories", todo="declare categories, lowest first")
    if level == "nominal" and weights not in (None, "identity"):
        raise FactoryError(f"{weights} weights need an order of the categories", todo="use level ordinal or interval")
    if level == "ratio" and any(c < 0 for c in votes.categories):
        raise FactoryError("ratio level needs votes of 0 or more", todo="use level interval")
    if level != "ratio" and weights == "ratio":
        raise FactoryError("ratio weights need a scale with a zero", todo="use level ratio")


def _check_size(votes: Votes, level: Level) -> None:
    kinds = len(votes.categories)
    most = {"nominal": MOST_CELLS // max(len(votes.items), 1), "ordinal": 3 * MOST_CATEGORIES, "ratio": MOST_CATEGORIES}
    if kinds > most.get(level, kinds):
        raise FactoryError(f"{kinds} distinct votes are too many at {level} level", todo="round them, or use interval")


def _scale(votes: Votes, level: Level) -> Array:
    """Where each category stands, `(categories,)`: by value at interval and ratio level, else by place. Of order one;
    coefficients do not change with the unit, nor (ratio apart) with the zero."""
    import numpy as np

    by_value = level in ("interval", "ratio")
    scale = np.asarray(votes.categories if by_value else range(len(votes.categories)), dtype=np.float64)
    centred = scale - scale.mean() if level != "ratio" and len(scale) else scale
    return np.asarray(centred / max(float(np.abs(centred).max(initial=0.0)), np.finfo(float).tiny))


def _measurements(votes: Votes) -> bool:
    return len(votes.categories) > MOST_CATEGORIES


def _patterns(votes: Votes, scale: Array, level: Level) -> tuple[Patterns, Patterns]:
    """Patterns of votes by category (of nothing when votes are measurements), and what alpha is taken of."""
    import numpy as np

    if level != "interval":
        counted = coefficients.patterns(count(votes))
        return counted, counted
    counted = coefficients.patterns(np.zeros((0, 1)) if _measurements(votes) else count(votes))
    if len(counted.times):
        return counted, Patterns(counted.rows @ np.stack([np.ones_like(scale), scale, scale**2], axis=1), counted.times)
    return counted, coefficients.patterns(_moments(votes, scale))


def _moments(votes: Votes, scale: Array) -> Array:
    """Number, sum and sum of squares of each item's votes, `(items, 3)`."""
    import numpy as np

    value = scale[votes.value]
    size = len(votes.items)
    sums = [np.bincount(votes.item, weights, size) for weights in (np.ones_like(value), value, value**2)]
    return np.stack(sums, axis=1)


def _by_categories(level: Level, partial: Weights, scale: Array, sizes: int) -> dict[str, Coefficient]:
    """The coefficients that counts of votes by category give."""
    import numpy as np

    equal = np.eye(sizes)
    weighted = coefficients.agreement_weights(partial, scale) if len(scale) == sizes else equal
    wanted = {
        "percent": coefficients.percent(equal),
        "fleiss_kappa": coefficients.fleiss_kappa(equal),
        "gwet_ac1": coefficients.gwet(equal),
        "gwet_ac2": coefficients.gwet(weighted),
        "brennan_prediger": coefficients.brennan_prediger(weighted),
    }
    if level == "ordinal":
        wanted["krippendorff_alpha"] = coefficients.ordinal_alpha(sizes)
    elif level != "interval":
        away = 1 - coefficients.agreement_weights(_WEIGHTS[level], scale) if len(scale) else 1 - equal
        wanted["krippendorff_alpha"] = coefficients.distance_alpha(away)
    return wanted


def _cohen(votes: Votes, scale: Array, weights: Weights, seed: int) -> dict[tuple[str, str], Estimate]:
    """Kappa of every two judges over the items that both voted on; NaN where there are none."""
    import numpy as np

    if len(votes.judges) > MOST_JUDGES:
        return {}
    said = np.full((len(votes.judges), len(votes.items)), -1, dtype=np.int64)
    said[votes.judge, votes.item] = votes.value
    named = sorted((str(name), place) for place, name in enumerate(votes.judges))
    pairs = itertools.combinations(named, 2)
    return {(one, other): _kappa(said[i], said[j], scale, weights, seed) for (one, i), (other, j) in pairs}


def _kappa(one: NDArray[np.int64], other: NDArray[np.int64], scale: Array, weights: Weights, seed: int) -> Estimate:
    import numpy as np

    both = (one >= 0) & (other >= 0)
    codes = one[both] * len(scale) + other[both]
    first, times = coefficients.distinct(codes)
    cells = np.stack(np.divmod(codes[first], max(len(scale), 1)), axis=1)
    if len(scale) <= MOST_CATEGORIES:
        kappa = coefficients.cohen_kappa(coefficients.agreement_weights(weights, scale))
        return coefficients.estimate(Patterns(cells.astype(np.float64), times), kappa, seed)
    if weights != "quadratic":
        return _UNKNOWN
    return coefficients.estimate(Patterns(scale[cells], times), coefficients.quadratic_kappa(), seed)
