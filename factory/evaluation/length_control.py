"""The win rate that would be seen if both answers were equally long.

Length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475, section 3): a logistic model of the verdict on a
policy's answer against the baseline's,

    P(win) = sigmoid(theta + phi * tanh(d / s) + psi * g)

with d the difference of the two lengths, s its standard deviation over the comparisons, and g how hard the instruction
is; then the mean of the same model's predictions with the length term at 0. Theirs takes g from a model fitted to all
systems of a leaderboard; here it is a number that comes with each prompt (the baseline's own score there, say),
centred, or nothing. Ties are half a win. phi and psi are held towards 0 by a normal prior of variance 1, as theirs are
by a ridge: verdicts that length explains without an exception would otherwise have no finite fit.

An answer that failed has no length: its comparison counts as it was decided, at any length.

What it cannot do: where quality itself comes with length (a longer answer is longer because it says more), that part of
the quality goes to the length term too. It is beside the plain win rate, never in its place. numpy alone, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from factory.schema import Estimate
from factory.stats.intervals import UNKNOWN, wilson
from factory.stats.quantiles import LEVEL, expanded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST: Final = 8
"""Comparisons below which a line through lengths says nothing."""
RESAMPLES: Final = 500
STEPS: Final = 50
_RIDGE: Final = (1e-3, 1.0, 1.0)  # on theta (next to nothing: it is the answer), phi, psi


class Compared(NamedTuple):
    """One comparison: 1 won, 1/2 tied, 0 lost (or anything between); the difference in length, ours minus theirs, in
    any unit (None: one of the answers failed); how hard the prompt is, 0 where nobody knows; and what is drawn anew in
    the bootstrap, the prompt."""

    won: float
    longer: float | None
    hardness: float
    cluster: Hashable


class Fit(NamedTuple):
    """theta, phi, psi; and the win rate at equal lengths with its interval."""

    ability: float
    length: float
    hardness: float
    win_rate: Estimate


def fit(compared: Sequence[Compared], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Fit | None:
    """The model, and its win rate with lengths taken for equal; bootstrap over clusters with expanded percentiles,
    the model fitted anew to each draw. None with fewer than FEWEST comparisons that have lengths."""
    import numpy as np

    with_lengths = sum(c.longer is not None for c in compared)
    if with_lengths < FEWEST:
        return None
    ordered = sorted(compared, key=lambda c: c.longer is None)  # those without a length last
    won = np.array([c.won for c in ordered], dtype=np.float64)
    features = _features(ordered[:with_lengths])
    coefficients = _fitted(features, won[:with_lengths])

    def rate(rows: NDArray[np.intp], begin: NDArray[np.float64] | None = None) -> float:
        fitted, others = rows[rows < with_lengths], rows[rows >= with_lengths]
        at = coefficients if begin is None else _fitted(features[fitted], won[fitted], begin)
        return float((_at_equal_lengths(features[fitted], at).sum() + won[others].sum()) / len(rows))

    value = rate(np.arange(len(ordered)))
    places: dict[Hashable, list[int]] = {}
    for i, each in enumerate(ordered):
        places.setdefault(each.cluster, []).append(i)
    ability, length, hardness = (float(c) for c in coefficients)
    if len(places) < 2:
        return Fit(ability, length, hardness, Estimate.alone(value))
    groups = [np.array(rows) for rows in places.values()]
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for k in range(resamples):
        drawn[k] = rate(np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]), coefficients)
    low, high = np.quantile(drawn, expanded(level, len(groups)))
    if not low < high:  # all draws agree: no certainty, but too little to draw from
        return Fit(ability, length, hardness, wilson(value * len(places), len(places), level))
    return Fit(ability, length, hardness, Estimate(value, float(low), float(high)))


def win_rate(
    compared: Sequence[Compared], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """The length-controlled win rate alone; None with too few comparisons."""
    found = fit(compared, level=level, resamples=resamples, seed=seed)
    return found and (found.win_rate if math.isfinite(found.win_rate.value) else UNKNOWN)


def _features(compared: Sequence[Compared]) -> NDArray[np.float64]:
    """(comparisons, 3): 1, tanh(d / s), g centred and scaled. All have a length."""
    import numpy as np

    longer = np.array([c.longer for c in compared], dtype=np.float64)
    hard = np.array([c.hardness for c in compared], dtype=np.float64)
    spread, hard_spread = float(longer.std()), float(hard.std())
    bend = np.tanh(longer / spread) if spread > 0 else np.sign(longer)
    tilt = (hard - hard.mean()) / hard_spread if hard_spread > 0 else np.zeros(len(hard))
    return np.column_stack([np.ones(len(longer)), bend, tilt])


def _fitted(
    features: NDArray[np.float64], won: NDArray[np.float64], begin: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The penalised maximum of the (quasi-)likelihood, by Newton's method with halved steps."""
    import numpy as np

    ridge = np.array(_RIDGE)
    at = np.zeros(features.shape[1]) if begin is None else begin
    loss = _loss(features, won, at, ridge)
    for _ in range(STEPS):
        expected = _sigmoid(features @ at)
        gradient = features.T @ (expected - won) + ridge * at
        curvature = (features * (expected * (1 - expected))[:, None]).T @ features + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (lower := _loss(features, won, at - size * step, ridge)) > loss and size > 1e-6:
            size /= 2
        at, gained, loss = at - size * step, loss - lower, min(lower, loss)
        if gained < 1e-10:
            break
    return at


def _loss(
    features: NDArray[np.float64], won: NDArray[np.float64], at: NDArray[np.float64], ridge: NDArray[np.float64]
) -> float:
    import numpy as np

    logits = features @ at
    return float((np.logaddexp(0.0, logits) - won * logits).sum() + (ridge * at * at).sum() / 2)


def _at_equal_lengths(features: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chance that each comparison is won, `(comparisons,)`."""
    level = features.copy()
    level[:, 1] = 0.0
    return _sigmoid(level @ coefficients)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    chances: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -logits))
    return chances
