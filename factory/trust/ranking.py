"""Ranking of models from comparisons of their answers: Bradley and Terry's model, with Davidson's for ties.

  P(i wins) = s_i / Z   P(j wins) = s_j / Z   P(tie) = v sqrt(s_i s_j) / Z   Z = s_i + s_j + v sqrt(s_i s_j)

Bradley and Terry 1952, Biometrika 39:324 (v = 0); Davidson 1970, J. Am. Stat. Assoc. 65:317. `strength` is log s_i, in
nats, with mean 0 over the models of a group; s_i / (s_i + s_j) is the probability that i wins where one of the two
does. The likelihood is concave, its maximum is found by Newton's method, and intervals come from the inverse Hessian,
sandwiched by the scores summed within prompts, so that prompts are taken for independent and not comparisons.

The data may know less than a scale. Models that no chain of comparisons connects are not ranked against each other, and
where all comparisons of one side went one way (Ford 1957), or ties can stretch without end, the maximum lies at
infinity: the order is known, the distance is not. Such models stand in groups of their own, and notes say so. A `prior`
(so many made-up comparisons of every two models that were compared, half won by each) gives finite distances; it is 0
unless it is declared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from factory.faults import FactoryError
from factory.schema import Estimate
from factory.stats.intervals import UNKNOWN, places
from factory.stats.quantiles import LEVEL, t_of
from factory.votes.reliability import known, plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_STEPS = 200
_CLOSE = 1e-10

Outcome = Literal["a", "b", "tie"]
Counts = Mapping[tuple[str, str, Outcome], int]


class Comparison(NamedTuple):
    """Two models' answers to one prompt: the first won (a), the second (b), or neither."""

    first: str
    second: str
    outcome: Outcome
    prompt: str


@dataclass(frozen=True)
class Strength:
    """One model. Models of one `group` share a scale; those of different groups cannot be put on one."""

    model: str
    group: int
    wins: int
    ties: int
    losses: int
    strength: Estimate  # nats; mean 0 over the group
    against_mean: Estimate  # probability to win against a model of strength 0, ties aside
    against_first: Estimate  # the same against the group's strongest; NaN for itself

    def row(self) -> dict[str, Any]:
        """One line of a table; None for what is unknown."""
        return {name: known(getattr(self, name)) for name in self.__dataclass_fields__}


class Against(NamedTuple):
    """Two models: what happened, and the probability that the first wins where one of the two does."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    win: Estimate


@dataclass(frozen=True)
class Ranking:
    """Models, strongest first within a group. `ties`: Davidson's v by group, None where there were none."""

    models: list[Strength]
    against: list[Against] = field(default_factory=list)
    ties: dict[int, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an estimate is [value, low, high] with null for NaN."""
        return {
            "models": [{name: plain(value) for name, value in _fields(model)} for model in self.models],
            "against": [{name: plain(value) for name, value in pair._asdict().items()} for pair in self.against],
            "ties": {str(group): value for group, value in self.ties.items()},
            "notes": self.notes,
        }


def _fields(model: Strength) -> list[tuple[str, Any]]:
    return [(name, getattr(model, name)) for name in asdict(model)]


def rank(comparisons: Iterable[Comparison], *, prior: float = 0.0, level: float = LEVEL) -> Ranking:
    """Rank all models that were compared. Comparisons of a model with itself are left out."""
    if not (math.isfinite(prior) and prior >= 0):
        raise FactoryError(f"prior must be a number of comparisons of 0 or more, not {prior}")
    rows = [row for row in comparisons if row.first != row.second]
    names = sorted({name for row in rows for name in row[:2]})
    counts: Counts = Counter((row.first, row.second, row.outcome) for row in rows)
    edges = _edges(names, counts, prior)
    groups = _groups(names, edges.beats | edges.ties)
    models: list[Strength] = []
    against: list[Against] = []
    ties: dict[int, float | None] = {}
    notes = _apart(names, groups, edges)
    for number, group in enumerate(groups):
        inside = [row for row in rows if row.first in group and row.second in group]
        fit = None
        if len(group) > 1:
            if _bounded([names.index(name) for name in group], edges):
                fit = _fit(group, inside, prior, level)
            else:
                notes.append(f"{', '.join(group)}: ties and wins only one way leave the distances open")
        ties[number] = None if fit is None else fit.ties
        strengths, pairs = _told(group, number, counts, fit, level)
        models += strengths
        against += pairs
    return Ranking(models, against, ties, notes)


# ------------------------------------------------------------------------------------ what the data can say at all


class Edges(NamedTuple):
    """Who beat whom and who tied, `(models, models)` each."""

    beats: NDArray[np.bool_]
    ties: NDArray[np.bool_]


def _edges(names: Sequence[str], counts: Counts, prior: float) -> Edges:
    import numpy as np

    at = {name: i for i, name in enumerate(names)}
    beats = np.zeros((len(names), len(names)), dtype=np.bool_)
    ties = np.zeros_like(beats)
    for first, second, outcome in counts:
        i, j = at[first], at[second]
        if outcome == "tie":
            ties[i, j] = ties[j, i] = True
        if outcome == "a" or (prior > 0):
            beats[i, j] = True
        if outcome == "b" or (prior > 0):
            beats[j, i] = True
    return Edges(beats, ties)


def _reach(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Who is reached from whom, in any number of steps; everybody from itself."""
    import numpy as np

    found = edges | np.eye(len(edges), dtype=np.bool_)
    for k in range(len(edges)):
        found |= found[:, k : k + 1] & found[k : k + 1, :]
    return found


def _groups(names: Sequence[str], edges: NDArray[np.bool_]) -> list[list[str]]:
    """Models that reach each other both ways; groups that beat others first."""
    import numpy as np

    reach = _reach(edges)
    both = reach & reach.T
    found = {tuple(np.flatnonzero(row).tolist()) for row in both}
    below = {group: int(reach[group[0]].sum()) - len(group) for group in found}
    ordered = sorted(found, key=lambda group: (-below[group], group))
    return [[names[i] for i in group] for group in ordered]


def _apart(names: Sequence[str], groups: Sequence[Sequence[str]], edges: Edges) -> list[str]:
    """What is to be said of groups: never compared, or all one way."""
    at = {name: i for i, name in enumerate(names)}
    reach = _reach(edges.beats | edges.ties)
    linked = _reach(edges.beats | edges.beats.T | edges.ties)
    notes = []
    for k, one in enumerate(groups):
        for other in groups[k + 1 :]:
            i, j = at[one[0]], at[other[0]]
            names_of = f"{' and '.join(one)} / {' and '.join(other)}"
            if not linked[i, j]:
                notes.append(f"{names_of}: never compared, not even through others")
            elif reach[i, j]:
                notes.append(
                    f"{names_of}: every comparison of theirs went to the first; how far apart they are is not known"
                )
            else:
                notes.append(f"{names_of}: both always lost to, or won over, others; not ranked against each other")
    return notes


def _bounded(group: Sequence[int], edges: Edges) -> bool:
    """Has the likelihood a maximum? With ties it has none where, while v grows, strengths can move apart so that no
    observed outcome becomes less likely: s_i - s_j >= 2 for every win, <= 2 for every tie (in steps of log v). Such
    strengths exist unless those inequalities, added up along a circle, contradict themselves."""
    import numpy as np

    beats, ties = (part[np.ix_(group, group)] for part in edges)
    if not ties.any():
        return True
    far = np.where(beats, -2.0, np.where(ties, 2.0, np.inf))  # s_j - s_i at most
    np.fill_diagonal(far, 0.0)
    for k in range(len(far)):
        far = np.minimum(far, far[:, k : k + 1] + far[k : k + 1, :])
        if (np.diag(far) < 0).any():
            return True
    return False


# ------------------------------------------------------------------------------------------------------ the model


class Fitted(NamedTuple):
    """Strengths `(models,)` of mean 0, v, their covariance `(models, models)` (None: one prompt alone), and the
    quantile of the interval."""

    strength: Array
    ties: float | None
    covariance: Array | None
    quantile: float


def _fit(group: Sequence[str], rows: Sequence[Comparison], prior: float, level: float) -> Fitted:
    """Davidson's model by Newton's method, as a softmax over win, loss and tie."""
    import numpy as np

    at = {name: i for i, name in enumerate(group)}
    with_ties = any(row.outcome == "tie" for row in rows)
    design, kind = _design([(at[row.first], at[row.second]) for row in rows], len(group), with_ties)
    outcome = np.asarray([("a", "b", "tie").index(row.outcome) for row in rows])
    width = design.shape[1]
    seen = np.bincount(kind * width + outcome, minlength=len(design) * width).reshape(len(design), width)
    weights = seen.astype(np.float64)
    weights[:, :2] += prior / 2
    beta, hessian = _maximum(design, weights, len(group))
    index, groups = places([row.prompt for row in rows])
    if groups < 2:
        return Fitted(*_parts(beta, len(group), with_ties), None, math.nan)
    expected = np.einsum("pk,pkd->pd", _softmax(design @ beta), design)
    sums = np.zeros((groups, design.shape[2]))
    np.add.at(sums, index, design[kind, outcome] - expected[kind])
    bread = np.linalg.inv(hessian)
    covariance = bread @ (sums.T @ sums) @ bread * groups / (groups - 1)
    models = len(group)
    return Fitted(*_parts(beta, models, with_ties), covariance[:models, :models], t_of(level, groups - 1))


def _parts(beta: Array, models: int, with_ties: bool) -> tuple[Array, float | None]:
    return beta[:models], math.exp(float(beta[models])) if with_ties else None


def _design(pairs: Sequence[tuple[int, int]], models: int, with_ties: bool) -> tuple[Array, NDArray[np.int64]]:
    """What each outcome adds up `(distinct pairs, outcomes, models + 1)`, and each row's distinct pair `(rows,)`."""
    import numpy as np

    distinct = sorted(set(pairs))
    place = {pair: k for k, pair in enumerate(distinct)}
    design = np.zeros((len(distinct), 3 if with_ties else 2, models + with_ties))
    for k, (i, j) in enumerate(distinct):
        design[k, 0, i] = design[k, 1, j] = 1.0
        if with_ties:
            design[k, 2, [i, j]] = 0.5
            design[k, 2, models] = 1.0
    return design, np.asarray([place[pair] for pair in pairs], dtype=np.int64)


def _maximum(design: Array, weights: Array, models: int) -> tuple[Array, Array]:
    """Coefficients of the highest likelihood and the Hessian there. The likelihood does not see the strengths' mean; a
    one added to the Hessian in that direction keeps it at 0, and changes nothing else."""
    import numpy as np

    beta = np.zeros(design.shape[2])
    level = (np.arange(len(beta)) < models) / math.sqrt(models)
    total = weights.sum(axis=1)
    best = _likelihood(design, weights, beta)
    for _ in range(_STEPS):
        p = _softmax(design @ beta)
        gradient = np.einsum("pk,pkd->d", weights - total[:, None] * p, design)
        mean = np.einsum("pk,pkd->pd", p, design)
        second = np.einsum("pk,pkd,pke->de", total[:, None] * p, design, design)
        hessian = second - np.einsum("p,pd,pe->de", total, mean, mean) + np.outer(level, level)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while _likelihood(design, weights, beta + size * step) < best - _CLOSE * abs(best) and size > 1e-6:
            size /= 2
        beta = beta + size * step
        best = _likelihood(design, weights, beta)
        if np.abs(step).max() < _CLOSE:
            break
    return beta, np.asarray(hessian)


def _likelihood(design: Array, weights: Array, beta: Array) -> float:
    import numpy as np

    return float((weights * np.log(np.maximum(_softmax(design @ beta), 1e-300))).sum())


def _softmax(utility: Array) -> Array:
    import numpy as np

    e = np.exp(utility - utility.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


# ------------------------------------------------------------------------------------------------ what is told of it


def _told(
    group: Sequence[str], number: int, counts: Counts, fit: Fitted | None, level: float
) -> tuple[list[Strength], list[Against]]:
    """The models of a group, strongest first, and every two of them that were compared."""
    record = {name: _record(name, counts) for name in group}
    if fit is None:
        alone = [Strength(name, number, *record[name], UNKNOWN, UNKNOWN, UNKNOWN) for name in group]
        return alone, []
    order = sorted(range(len(group)), key=lambda i: (-float(fit.strength[i]), group[i]))
    first = order[0]
    models = [
        Strength(
            group[i],
            number,
            *record[group[i]],
            strength=(own := _contrast(fit, {i: 1.0})),
            against_mean=_chance(own),
            against_first=UNKNOWN if i == first else _chance(_contrast(fit, {i: 1.0, first: -1.0})),
        )
        for i in order
    ]
    pairs = []
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            met = _between(group[i], group[j], counts)
            if sum(met):
                win = _chance(_contrast(fit, {i: 1.0, j: -1.0}))
                pairs.append(Against(group[i], group[j], *met, win))
    return models, pairs


def _contrast(fit: Fitted, weights: Mapping[int, float]) -> Estimate:
    """A sum of strengths with its interval."""
    value = sum(w * float(fit.strength[i]) for i, w in weights.items())
    if fit.covariance is None:
        return Estimate.alone(value)
    variance = sum(v * w * float(fit.covariance[i, j]) for i, v in weights.items() for j, w in weights.items())
    half = fit.quantile * math.sqrt(max(variance, 0.0))
    return Estimate(value, value - half, value + half)


def _chance(odds: Estimate) -> Estimate:
    return Estimate(*(0.5 * (1 + math.tanh(x / 2)) for x in odds))


def _record(name: str, counts: Counts) -> tuple[int, int, int]:
    """Wins, ties and losses of a model."""
    found = [0, 0, 0]
    for (first, second, outcome), n in counts.items():
        if name in (first, second):
            found[_side(name == first, outcome)] += n
    return found[0], found[1], found[2]


def _between(one: str, other: str, counts: Counts) -> tuple[int, int, int]:
    """Wins, ties and losses of one model against another."""
    found = [0, 0, 0]
    for turned, key in ((False, (one, other)), (True, (other, one))):
        for outcome in get_args(Outcome):
            found[_side(not turned, outcome)] += counts.get((*key, outcome), 0)
    return found[0], found[1], found[2]


def _side(is_first: bool, outcome: str) -> int:
    """0 for a win, 1 for a tie, 2 for a loss."""
    return 1 if outcome == "tie" else 0 if (outcome == "a") == is_first else 2
