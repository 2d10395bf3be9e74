"""Truth from judges that are not independent, and how many independent judges a panel is worth; numpy, no I/O.

Judges of one family (one vendor, one base model, one rubric) share blind spots: on some items they take the same thing
for true. Dawid and Skene's model counts each of them as new evidence, and is far too sure; a few copies of one judge
make it believe them alone. Here the judges of family g do not look at the truth z but at what the family takes for
true, h_g (two levels, as in Jaffe, Fetaya, Nadler, Jiang and Kluger 2016, "Unsupervised ensemble learning with
dependent classifiers", AISTATS):

  P(votes | z, u) = prod over lone judges j of B_j[z, u; v_j]
                    x prod over families g of sum over h of A_g[z, u; h] prod over j in g of B_j[h; v_j]

B_j is the judge's own confusion matrix. A_g are the family's blind spots: h is z but for one probability of going
astray, evenly over the other categories, which is drawn towards that of all families. u is 0 and, where the data asks
for it, 1 for hard items, on which lone judges and families have tables of their own. All is learnt by exact EM; with
no family and no hard items it is Dawid and Skene's model.

Families are declared, or found. Two judges that meet only through the truth correlate as c_j c_k; those that agree
beyond that are merged first, which gives nested partitions; of these, and of small changes of the best, that of the
lowest Bayesian information criterion is taken (Schwarz 1978, Ann. Stat. 6:461, plus a charge for the choice as in Chen
and Chen 2008, Biometrika 95:759), so that independent judges are left alone.

Kish's effective number (Survey Sampling, 1965): the mean of m errors of equal variance with mean correlation r varies
like that of m / (1 + (m - 1) r) independent ones. Nine frontier models were worth about two (arXiv 2605.29800).

What votes cannot tell: a blind spot that all judges share (the truth is then nowhere to be seen, and `effective` is too
high; with gold labels `error_correlation` shows it), and, when there is one family only, whether its judges share a
blind spot or all others do (the trees are the same but for which hub is called the truth): `_sided` chooses, and
`notes` say so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from factory.faults import FactoryError
from factory.votes import latent
from factory.votes.aggregation import Decided, JudgesModel, Votes
from factory.votes.latent import Profiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MOST_JUDGES = 40
"""Families are sought among at most so many judges: the search tries pairs of them."""
SEARCH_ITEMS = 20_000
"""Families are sought on at most so many items, drawn at random."""
PULL = 50.0
"""A family's blind spots are drawn towards those of all families by the weight of so many items."""
_TRIES = 4  # merges tried at each step: those of the highest correlation of errors
_SEARCH_ROUNDS = 100
_SEARCH_TOLERANCE = 1e-4
_ALIKE = 0.05  # standard deviations of accuracy closer than this are the same
_ONE_FAMILY = (
    "one family of judges errs together: whether it, or all the others, cannot be told from votes. Taken for it is the "
    "side that leaves the judges' accuracies more alike, else the smaller one; declare families where you know them"
)

Branch = tuple[int, ...]  # judges that hang together; one judge alone


class Table(NamedTuple):
    """Profiles as one-hot votes `(profiles, judges, categories)`, zeros where a judge did not vote, and their times."""

    votes: Array
    times: Array


class Shape(NamedTuple):
    """Which judges hang together, and whether some items are hard."""

    branches: tuple[Branch, ...]
    hard: bool = False


class Tables(NamedTuple):
    """What the model learns. With roots (z, u) in the order of z within u: `prior` `(roots,)`; for every branch the
    blind spots `(roots, categories)`, None for a lone judge, and every judge's confusion `(states, categories)`, by
    root for a lone judge and by h for one of a family."""

    prior: Array
    blind: list[Array | None]
    confusion: dict[int, Array]


class Fit(NamedTuple):
    """EM's result: tables, posterior over roots `(profiles, roots)`, log likelihood, and the criterion (lower is
    better)."""

    shape: Shape
    tables: Tables
    posterior: Array
    likelihood: float
    criterion: float
    rounds: int
    converged: bool


# ----------------------------------------------------------------------------------------------------------- method


def dependent(
    votes: Votes,
    families: Mapping[Any, Any] | None = None,
    rounds: int = latent.ROUNDS,
    tolerance: float = latent.TOLERANCE,
    smoothing: float = latent.SMOOTHING,
    copies: int = 1,
    seed: int = 0,
) -> Decided:
    """The likeliest category given judges' own confusion and the blind spots that their families share.

    `families` names the family of each judge (a judge without one stands alone); None: they are found. `copies`: how
    many times the votes hold each item (2 where pairs stand in both orders), so that it counts once. The model's
    `effective` is Kish's number, from the correlation of the judges' errors under the posterior. FactoryError with
    fewer than three judges or three families, or more than 40 judges without declared families.
    """
    import numpy as np

    latent.check_judges(votes, "dependent")
    if not votes.items:
        return latent.nothing(votes)
    given = latent.profiles(votes)
    table = _table(given, copies)
    voted = tuple(int(j) for j in np.unique(votes.judge))
    if families is None:
        shape, notes = _found(_sample(table, seed), voted, smoothing)
    else:
        shape, notes = _declared(votes, families, voted), ()
        shape = _harder(_sample(table, seed), shape, smoothing)
    best = fit(table, shape, rounds, tolerance, smoothing)
    truth = _truth(best.posterior, len(votes.categories))
    model = _model(votes, given, table, best, truth, notes)
    return latent.decide(votes, given, truth, model)


def _model(votes: Votes, given: Profiles, table: Table, best: Fit, truth: Array, notes: tuple[str, ...]) -> JudgesModel:
    import numpy as np

    kinds = len(votes.categories)
    prior = best.tables.prior.reshape(-1, kinds).sum(axis=0)
    confusion = _confusion(best, len(votes.judges), kinds)
    accurate = latent.accuracy(votes, prior, confusion)
    correlation = _correlation(table, truth)
    voted = np.unique(votes.judge)
    return JudgesModel(
        accuracy=accurate,
        confusion=confusion,
        prior=prior,
        rounds=best.rounds,
        converged=best.converged,
        effective=effective_judges(correlation[np.ix_(voted, voted)]),
        correlation=correlation,
        families=tuple(tuple(votes.judges[j] for j in branch) for branch in best.shape.branches if len(branch) > 1),
        notes=(*notes, *latent.notes(votes, accurate, truth, given)),
    )


def _declared(votes: Votes, families: Mapping[Any, Any], voted: Sequence[int]) -> Shape:
    strange = [judge for judge in families if judge not in votes.judges]
    if strange:
        raise FactoryError(f"families name judges without votes: {strange}", todo=f"the judges are {votes.judges}")
    of: dict[Any, list[int]] = {}
    for j in voted:
        judge = votes.judges[j]
        of.setdefault(("family", families[judge]) if judge in families else ("alone", judge), []).append(j)
    if len(of) < latent.FEWEST_JUDGES:
        raise FactoryError(
            f"{len(of)} families of judges: which of two is right where they differ cannot be told from votes",
            todo="add a judge of another family, or use majority",
        )
    return Shape(tuple(tuple(members) for members in of.values()))


def _truth(posterior: Array, kinds: int) -> Array:
    """Posterior of z alone, `(profiles, categories)`."""
    import numpy as np

    return np.asarray(posterior.reshape(len(posterior), -1, kinds).sum(axis=1))


def _confusion(best: Fit, judges: int, kinds: int) -> Array:
    """Each judge's confusion matrix as seen from the truth, `(judges, true, said)`, blind spots and hard items in."""
    import numpy as np

    prior = best.tables.prior.reshape(-1, kinds)
    within = (prior / prior.sum(axis=0)).T  # (z, u)
    found = np.full((judges, kinds, kinds), np.nan)
    for branch, blind in zip(best.shape.branches, best.tables.blind, strict=True):
        for j in branch:
            own = best.tables.confusion[j]
            by_root = own if blind is None else blind @ own
            found[j] = np.einsum("zu,uzv->zv", within, by_root.reshape(-1, kinds, kinds))
    return found


# ------------------------------------------------------------------------------------------------ errors and numbers


def error_correlation(votes: Votes, posterior: Array) -> Array:
    """Correlation of every two judges' errors over the items that both judged, `(judges, judges)`.

    `posterior` `(items, categories)` is the truth: certain (gold labels) or a model's, of which errors are expected. 0
    where one of them never errs, or they share no item.
    """
    import numpy as np

    every = Profiles(votes, np.ones(len(votes.items)), np.arange(len(votes.items)))
    return _correlation(_table(every), posterior)


def effective_judges(correlation: Array) -> float:
    """Kish's effective number of judges, m^2 / (sum of all correlations): at least 1, at most m."""
    m = len(correlation)
    total = float(correlation.sum())
    return float(m) if total <= m else max(m * m / total, 1.0)


def _correlation(table: Table, truth: Array) -> Array:
    import numpy as np

    seen = table.votes.sum(axis=2)
    judges = seen.shape[1]
    both, one, n = np.zeros((judges, judges)), np.zeros((judges, judges)), (seen * table.times[:, None]).T @ seen
    for k, p in enumerate(truth.T):
        wrong = seen - table.votes[:, :, k]
        expected = (wrong * (table.times * p)[:, None]).T
        both += expected @ wrong
        one += expected @ seen
    n = np.maximum(n, 1)
    rate, joint = one / n, both / n
    spread = np.sqrt(rate * (1 - rate) * rate.T * (1 - rate.T))
    found = np.divide(joint - rate * rate.T, spread, out=np.zeros_like(joint), where=spread > 1e-12)
    np.fill_diagonal(found, 1.0)
    return np.asarray(np.clip(found, -1, 1))


# ---------------------------------------------------------------------------------------------------------------- EM


def _table(given: Profiles, copies: int = 1) -> Table:
    import numpy as np

    said = given.said
    votes = np.zeros((len(given.times), len(said.judges), len(said.categories)))
    votes[said.item, said.judge, said.value] = 1.0
    return Table(votes, given.times / copies)


def _sample(table: Table, seed: int) -> Table:
    """At most `SEARCH_ITEMS` items, drawn with replacement, as profiles."""
    import numpy as np

    if table.times.sum() <= SEARCH_ITEMS:
        return table
    rng = np.random.default_rng(seed)
    times = rng.multinomial(SEARCH_ITEMS, table.times / table.times.sum())
    drawn = times > 0
    return Table(table.votes[drawn], times[drawn].astype(np.float64))


def fit(table: Table, shape: Shape, rounds: int, tolerance: float, smoothing: float, pull: float = PULL) -> Fit:
    """EM from the shares of votes in which each branch counts once.

    It ends when no posterior moves by more than `tolerance`, or after `rounds`. `smoothing` is added to every count;
    `pull`: see `_spots`.
    """
    import numpy as np

    kinds = table.votes.shape[2]
    posterior, seen = _start(table, shape)
    tables = _maximise(table, shape, posterior, seen, smoothing, pull)
    moved, done, likelihood = np.inf, 0, -np.inf
    while done < rounds and moved > tolerance:
        previous = posterior
        posterior, seen, likelihood = _expect(table, shape, tables)
        tables = _maximise(table, shape, posterior, seen, smoothing, pull)
        moved = float(np.abs(posterior - previous).max(initial=0.0))
        done += 1
    criterion = -2 * likelihood + _cost(shape, kinds, max(float(table.times.sum()), 2.0))
    return Fit(shape, tables, posterior, likelihood, criterion, done, moved <= tolerance)


def _cost(shape: Shape, kinds: int, items: float) -> float:
    """What the criterion charges: log(items) for each number learnt (blind spots are one number for all families while
    they are sought), and once, for any family, the logarithm of how many pairs of judges it could have been."""
    judges = sum(len(branch) for branch in shape.branches)
    lone = sum(len(branch) == 1 for branch in shape.branches)
    roots = kinds * (1 + shape.hard)
    numbers = roots - 1 + (kinds - 1) * (lone * roots + (judges - lone) * kinds)
    if lone == judges:
        return numbers * math.log(items)
    return (numbers + 1 + shape.hard) * math.log(items) + 2 * math.log(math.comb(judges, 2))


def _start(table: Table, shape: Shape) -> tuple[Array, list[Array | None]]:
    """Posterior over roots, and for each family what roots and h may be, `(profiles, roots, categories)`."""
    import numpy as np

    own = [_mean_votes(table.votes[:, list(branch)]) for branch in shape.branches]
    shares = _mean_votes(np.stack(own, axis=1))
    if shape.hard:
        split = 1 - shares.max(axis=1, keepdims=True)
        hardness = np.clip(split / max(float(split.max()), 1e-9), 0.05, 0.95)
        posterior = np.concatenate([shares * (1 - hardness), shares * hardness], axis=1)
    else:
        posterior = shares
    seen = [
        None if len(branch) == 1 else posterior[:, :, None] * _filled(mine)[:, None, :]
        for branch, mine in zip(shape.branches, own, strict=True)
    ]
    return posterior, seen


def _mean_votes(votes: Array) -> Array:
    """Shares of categories over those that voted, zeros where none did. `(profiles, categories)`"""
    import numpy as np

    total = votes.sum(axis=1)
    n = total.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(total, n, out=np.zeros_like(total), where=n > 0))


def _filled(shares: Array) -> Array:
    """Shares with an even spread where there are none."""
    import numpy as np

    return np.where(shares.sum(axis=1, keepdims=True) > 0, shares, 1 / shares.shape[1])


def _maximise(
    table: Table, shape: Shape, posterior: Array, seen: Sequence[Array | None], smoothing: float, pull: float
) -> Tables:
    """Tables from expected counts."""

    expected = posterior * table.times[:, None]
    prior = expected.sum(axis=0) + smoothing
    counts: list[Array | None] = []
    confusion: dict[int, Array] = {}
    for branch, joint in zip(shape.branches, seen, strict=True):
        weighted = None if joint is None else joint * table.times[:, None, None]
        counts.append(None if weighted is None else weighted.sum(axis=0) + smoothing)
        state = expected if weighted is None else weighted.sum(axis=1)
        for j in branch:
            confusion[j] = _rows(state.T @ table.votes[:, j] + smoothing)
    return Tables(prior / prior.sum(), _spots(counts, pull), confusion)


def _spots(counts: Sequence[Array | None], pull: float) -> list[Array | None]:
    """Each family's blind spots `(roots, categories)` from its counts: one probability of going astray (another for
    hard items), evenly over the other categories, drawn towards that of all families by `pull` items' weight."""
    import numpy as np

    kinds = next((c.shape[1] for c in counts if c is not None), 1)
    eye = np.eye(kinds)

    def right(c: Array) -> Array:
        by_root = c.reshape(-1, kinds, kinds)
        return np.stack([np.trace(by_root, axis1=1, axis2=2), by_root.sum(axis=(1, 2))])

    met = {i: right(c) for i, c in enumerate(counts) if c is not None}
    if not met:
        return list(counts)
    pooled = np.sum(list(met.values()), axis=0)
    spots: list[Array | None] = [None] * len(counts)
    for i, (hits, n) in met.items():
        weight = n / (n + pull)
        p = (weight * hits / n + (1 - weight) * pooled[0] / pooled[1])[:, None, None]
        spots[i] = (p * eye + (1 - p) * (1 - eye) / max(kinds - 1, 1)).reshape(-1, kinds)
    return spots


def _rows(counts: Array) -> Array:
    import numpy as np

    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _expect(table: Table, shape: Shape, tables: Tables) -> tuple[Array, list[Array | None], float]:
    """Posterior over roots, joint posterior with every family's h, and the log likelihood of all items."""
    import numpy as np

    log = np.broadcast_to(np.log(tables.prior), (len(table.times), len(tables.prior))).copy()
    inside: list[tuple[Array, Array] | None] = []
    for branch, blind in zip(shape.branches, tables.blind, strict=True):
        mine = sum(table.votes[:, j] @ np.log(tables.confusion[j]).T for j in branch)
        if blind is None:
            log += mine
            inside.append(None)
            continue
        top = mine.max(axis=1, keepdims=True)
        of_h = np.exp(mine - top)
        of_root = of_h @ blind.T
        log += np.log(of_root) + top
        inside.append((of_h, of_root))
    peak = log.max(axis=1, keepdims=True)
    odds = np.exp(log - peak)
    total = odds.sum(axis=1, keepdims=True)
    posterior = odds / total
    likelihood = float(table.times @ (np.log(total) + peak)[:, 0])
    seen = [_joint(posterior, blind, found) for blind, found in zip(tables.blind, inside, strict=True)]
    return posterior, seen, likelihood


def _joint(posterior: Array, blind: Array | None, found: tuple[Array, Array] | None) -> Array | None:
    """Posterior of root and h together: q(root) A[root, h] L(h) / sum over h of A L."""
    if blind is None or found is None:
        return None
    of_h, of_root = found
    return (posterior / of_root)[:, :, None] * blind[None] * of_h[:, None, :]


# ------------------------------------------------------------------------------------------------ search of families


def _found(table: Table, voted: Sequence[int], smoothing: float) -> tuple[Shape, tuple[str, ...]]:
    """The shape that greedy merging finds, and what is to be said of it."""
    if len(voted) > MOST_JUDGES:
        raise FactoryError(
            f"families are not sought among {len(voted)} judges (at most {MOST_JUDGES})",
            todo="declare families, or use dawid_skene",
        )
    lone = Shape(tuple((j,) for j in voted))
    shapes = [lone, *(Shape(branches) for branches in _nested(_excess(table, voted), voted))]
    best = min((_search_fit(table, shape, smoothing) for shape in shapes), key=lambda found: found.criterion)
    while (better := _step(table, best, smoothing)) is not None:
        best = better
    return _sided(table, best, smoothing)


def _excess(table: Table, voted: Sequence[int]) -> Array:
    """By how much every two judges agree beyond what both agree with the rest, in logs, `(judges, judges)`.

    Where judges meet only through the truth, the correlation of two is a product c_j c_k (as in a one-factor model);
    within a family it is more. log c is fitted by medians, which a few families do not move.
    """
    import numpy as np

    correlation, shared = _vote_correlation(table)
    keep = np.ix_(voted, voted)
    log = np.log(np.maximum(correlation[keep], 0.5 / np.sqrt(np.maximum(shared[keep], 1.0))))
    np.fill_diagonal(log, np.nan)
    own = np.nanmedian(log, axis=1) / 2
    for _ in range(100):
        own = 0.5 * own + 0.5 * np.nanmedian(log - own[None, :], axis=1)
    return np.asarray(log - own[:, None] - own[None, :])


def _vote_correlation(table: Table) -> tuple[Array, Array]:
    """Correlation of every two judges' one-hot votes over the items that both judged, and how many these are."""
    import numpy as np

    votes, weighted = table.votes, table.votes * table.times[:, None, None]
    seen = votes.sum(axis=2)
    shared = (seen * table.times[:, None]).T @ seen
    n = np.maximum(shared, 1)
    share = np.einsum("pjk,pl->jlk", weighted, seen, optimize=True) / n[:, :, None]
    agreed = np.einsum("pjk,plk->jl", weighted, votes, optimize=True) / n
    by_chance = (share * share.transpose(1, 0, 2)).sum(axis=2)
    spread = 1 - (share**2).sum(axis=2)
    scale = np.sqrt(np.maximum(spread * spread.T, 0))
    return np.divide(agreed - by_chance, scale, out=np.zeros_like(scale), where=scale > 1e-12), shared


def _nested(excess: Array, voted: Sequence[int]) -> list[tuple[Branch, ...]]:
    """Partitions that grow by merging the two branches of the highest mean excess, down to three branches."""
    groups: list[Branch] = [(i,) for i in range(len(voted))]
    found = []
    while len(groups) > latent.FEWEST_JUDGES:
        one, other = max(
            itertools.combinations(groups, 2), key=lambda pair: float(excess[list(pair[0])][:, list(pair[1])].mean())
        )
        groups = [g for g in groups if g not in (one, other)] + [one + other]
        found.append(tuple(sorted(tuple(sorted(voted[i] for i in g)) for g in groups)))
    return found


def _search_fit(table: Table, shape: Shape, smoothing: float) -> Fit:
    return fit(table, shape, _SEARCH_ROUNDS, _SEARCH_TOLERANCE, smoothing, math.inf)


def _step(table: Table, best: Fit, smoothing: float) -> Fit | None:
    """The best of a few changes, None when none is better."""
    shapes = [Shape(merged, best.shape.hard) for merged in _merges(table, best)]
    if not best.shape.hard:
        shapes.append(Shape(best.shape.branches, hard=True))
    fits = [_search_fit(table, shape, smoothing) for shape in shapes]
    better = [found for found in fits if found.criterion < best.criterion]
    return min(better, key=lambda found: found.criterion, default=None)


def _harder(table: Table, shape: Shape, smoothing: float) -> Shape:
    """The shape with hard items, where these improve the criterion."""
    plain, hard = (_search_fit(table, Shape(shape.branches, flag), smoothing) for flag in (False, True))
    return hard.shape if hard.criterion < plain.criterion else plain.shape


def _merges(table: Table, best: Fit) -> list[tuple[Branch, ...]]:
    """Branches with two of them merged: the pairs whose errors hang together most. Three branches are kept."""
    branches = best.shape.branches
    if len(branches) <= latent.FEWEST_JUDGES:
        return []
    correlation = _correlation(table, _truth(best.posterior, table.votes.shape[2]))

    def together(pair: tuple[Branch, Branch]) -> float:
        return float(correlation[list(pair[0])][:, list(pair[1])].mean())

    pairs = sorted(itertools.combinations(branches, 2), key=together, reverse=True)[:_TRIES]
    rest = ([branch for branch in branches if branch not in pair] for pair in pairs)
    return [tuple(sorted([*others, tuple(sorted(one + two))])) for (one, two), others in zip(pairs, rest, strict=True)]


def _sided(table: Table, best: Fit, smoothing: float) -> tuple[Shape, tuple[str, ...]]:
    """With one family only, it and the others explain the votes equally well: taken for the family is the side that
    leaves the judges' accuracies more alike (copies of one judge would else all be perfect), else the smaller one."""
    large = [branch for branch in best.shape.branches if len(branch) > 1]
    others = tuple(sorted(j for branch in best.shape.branches if len(branch) == 1 for j in branch))
    if len(large) != 1 or len(others) < 2:
        return best.shape, ()
    turned = Shape(tuple(sorted([others, *((j,) for j in large[0])])), best.shape.hard)
    spreads = [_spread_of_accuracy(table, found) for found in (best, _search_fit(table, turned, smoothing))]
    if abs(spreads[0] - spreads[1]) > _ALIKE:
        shape = best.shape if spreads[0] < spreads[1] else turned
    else:
        shape = best.shape if len(large[0]) <= len(others) else turned
    return shape, (_ONE_FAMILY,)


def _spread_of_accuracy(table: Table, found: Fit) -> float:
    import numpy as np

    kinds = table.votes.shape[2]
    prior = found.tables.prior.reshape(-1, kinds).sum(axis=0)
    right = np.einsum("k,jkk->j", prior, _confusion(found, table.votes.shape[1], kinds))
    return float(np.nanstd(right))
