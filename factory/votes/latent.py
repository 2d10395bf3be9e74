"""Latent truth by expectation-maximisation: what is true is what makes the votes likeliest; numpy, no I/O.

  dawid_skene  each judge has a confusion matrix of its own: Dawid and Skene 1979, Applied Statistics 28:20, eq. 2.3-2.5
  one_coin     each judge is right with a probability of its own, and errs evenly over the other categories: fewer
               numbers to learn, better where judges judged few items

EM starts from the shares of votes, so that the truth it finds is the majority's, refined. Three things cannot be told
from votes alone: which of two judges is right where they differ (fewer than three judges are refused); that most judges
are wrong most of the time (everything mirrored explains the votes as well); and that judges err together (agreement is
taken for independent evidence: `factory/votes/dependence.py` does better where judges come in families).

Items that every judge voted on alike have the same posterior: they are counted once, so that a round of EM costs what
the distinct profiles of votes cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from factory.faults import FactoryError
from factory.stats.coefficients import distinct
from factory.votes.aggregation import Decided, JudgesModel, Votes, leader, named

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Index = NDArray[np.int64]

FEWEST_JUDGES = 3
ROUNDS = 200
TOLERANCE = 1e-7
SMOOTHING = 0.01


class Profiles(NamedTuple):
    """Distinct ways in which items were voted on. `said` are the votes of one item of each profile, their `item` being
    the profile; `times` `(profiles,)` how many items have it; `profile` `(items,)` which one each item has."""

    said: Votes
    times: Array
    profile: Index


class Fit(NamedTuple):
    """EM's result over profiles: posterior `(profiles, categories)`, prior, confusion `(judges, true, said)`."""

    posterior: Array
    prior: Array
    confusion: Array
    rounds: int
    converged: bool


# ---------------------------------------------------------------------------------------------------------- profiles


def profiles(votes: Votes) -> Profiles:
    """Items with equal votes of the same judges as one profile. Where a profile does not fit into a number (many
    judges), every item is its own."""
    import numpy as np

    items, base = len(votes.items), len(votes.categories) + 1
    if len(votes.judges) * math.log2(base) > 53:
        return Profiles(votes, np.ones(items), np.arange(items))
    digit = float(base) ** np.arange(len(votes.judges))
    codes = np.bincount(votes.item, (votes.value + 1) * digit[votes.judge], items).astype(np.int64)
    first, times = distinct(codes)
    profile = _ranks(codes, codes[first])
    place = np.full(items, -1, dtype=np.int64)
    place[first] = np.arange(len(first))
    kept = place[votes.item] >= 0
    said = votes._replace(
        item=place[votes.item[kept]], judge=votes.judge[kept], value=votes.value[kept], items=list(range(len(first)))
    )
    return Profiles(said, times.astype(np.float64), profile)


def _ranks(codes: Index, known: Index) -> Index:
    """Where each code stands among the known ones, which are sorted."""
    import numpy as np

    largest = int(known[-1]) if len(known) else 0
    if largest >= 4 * len(codes):
        return np.searchsorted(known, codes)
    rank = np.zeros(largest + 1, dtype=np.int64)
    rank[known] = np.arange(len(known))
    return np.asarray(rank[codes])


# ---------------------------------------------------------------------------------------------------------------- EM


def fit(
    given: Profiles,
    confuse: Callable[[Array], Array],
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
    smoothing: float = SMOOTHING,
) -> Fit:
    """EM from the shares of votes. `confuse` makes confusion `(judges, true, said)` of expected counts of that shape.

    `smoothing` votes are added to every count, so that no probability is 0; it ends when no posterior moves by more
    than `tolerance`, or after `rounds`.
    """
    import numpy as np

    kinds, judges = len(given.said.categories), len(given.said.judges)
    place = given.said.judge * kinds + given.said.value
    said = np.bincount(place, given.times[given.said.item], judges * kinds).reshape(judges, kinds).astype(np.float64)
    posterior = _shares(given.said)
    moved = math.inf
    prior, confusion = _maximise(given, place, said, posterior, confuse, smoothing)
    done = 0
    while done < rounds and moved > tolerance:
        previous, posterior = posterior, _expect(given.said, place, prior, confusion)
        prior, confusion = _maximise(given, place, said, posterior, confuse, smoothing)
        moved = float(np.abs(posterior - previous).max(initial=0.0))
        done += 1
    return Fit(posterior, prior, confusion, done, moved <= tolerance)


def _shares(said: Votes) -> Array:
    import numpy as np

    kinds = len(said.categories)
    counts = np.bincount(said.item * kinds + said.value, minlength=len(said.items) * kinds)
    counts = counts.reshape(len(said.items), kinds)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _maximise(
    given: Profiles, place: Index, said: Array, posterior: Array, confuse: Callable[[Array], Array], smoothing: float
) -> tuple[Array, Array]:
    """Share of each true category `(categories,)`, and confusion `(judges, true, said)` (eq. 2.3 and 2.4). `said`
    `(judges, categories)` are all votes: what is left of them by the others is the last true category's."""
    import numpy as np

    judges, kinds = said.shape
    expected = posterior.T * given.times
    counts = np.empty((judges, kinds, kinds))
    for true, share in enumerate(expected[:-1]):
        counts[:, true] = np.bincount(place, share[given.said.item], judges * kinds).reshape(judges, kinds)
    counts[:, -1] = np.maximum(said - counts[:, :-1].sum(axis=1), 0.0)
    prior = expected.sum(axis=1) + smoothing
    return prior / prior.sum(), confuse(counts + smoothing)


def _expect(said: Votes, place: Index, prior: Array, confusion: Array) -> Array:
    """Probability of each true category given a profile's votes, `(profiles, categories)` (eq. 2.5), by its log-odds
    against the last category."""
    import numpy as np

    kinds = len(prior)
    likely = np.log(confusion).transpose(1, 0, 2).reshape(kinds, -1)
    log = np.zeros((kinds, len(said.items)))
    for true in range(kinds - 1):
        log[true] = np.bincount(said.item, (likely[true] - likely[-1])[place], len(said.items))
    log += np.log(prior)[:, None]
    log -= log.max(axis=0)
    odds = np.exp(log, out=log)
    odds /= odds.sum(axis=0)
    return np.asarray(odds.T)


def full(counts: Array) -> Array:
    """A confusion matrix of each judge's own (eq. 2.3)."""
    import numpy as np

    return np.asarray(counts / counts.sum(axis=2, keepdims=True))


def coin(counts: Array) -> Array:
    """One accuracy a judge, errors even over the other categories."""
    import numpy as np

    kinds = counts.shape[1]
    right = np.trace(counts, axis1=1, axis2=2) / counts.sum(axis=(1, 2))
    wrong = (1 - right) / max(kinds - 1, 1)
    eye = np.eye(kinds)
    return np.asarray(right[:, None, None] * eye + wrong[:, None, None] * (1 - eye))


# ----------------------------------------------------------------------------------------------------------- methods


def dawid_skene(
    votes: Votes, rounds: int = ROUNDS, tolerance: float = TOLERANCE, smoothing: float = SMOOTHING
) -> Decided:
    """The likeliest category given what each judge tends to say. Options: see `fit`. FactoryError with fewer than three
    judges."""
    return _decided(votes, "dawid_skene", full, rounds, tolerance, smoothing)


def one_coin(votes: Votes, rounds: int = ROUNDS, tolerance: float = TOLERANCE, smoothing: float = SMOOTHING) -> Decided:
    """The likeliest category given how often each judge is right. Options: see `fit`. FactoryError with fewer than
    three judges."""
    return _decided(votes, "one_coin", coin, rounds, tolerance, smoothing)


def _decided(
    votes: Votes,
    method: str,
    confuse: Callable[[Array], Array],
    rounds: int,
    tolerance: float,
    smoothing: float,
) -> Decided:
    check_judges(votes, method)
    if not votes.items:
        return nothing(votes)
    given = profiles(votes)
    found = fit(given, confuse, rounds, tolerance, smoothing)
    model = JudgesModel(
        accuracy=accuracy(votes, found.prior, found.confusion),
        confusion=found.confusion,
        prior=found.prior,
        rounds=found.rounds,
        converged=found.converged,
        notes=notes(votes, accuracy(votes, found.prior, found.confusion), found.posterior, given),
    )
    return decide(votes, given, found.posterior, model)


def decide(votes: Votes, given: Profiles, posterior: Array, model: JudgesModel) -> Decided:
    """The likeliest category of each item; none where the first two are equally likely."""
    place = leader(posterior)
    return Decided(named(votes, place[given.profile]), posterior[given.profile], model)


def nothing(votes: Votes) -> Decided:
    """The answer to no votes."""
    import numpy as np

    kinds = len(votes.categories)
    unknown = JudgesModel({}, np.zeros((len(votes.judges), kinds, kinds)), np.zeros(kinds), 0, True)
    return Decided([], np.zeros((0, kinds)), unknown)


def check_judges(votes: Votes, method: str) -> None:
    """FactoryError when too few judges voted for their accuracy to show."""
    import numpy as np

    voted = len(np.unique(votes.judge))
    if votes.items and voted < FEWEST_JUDGES:
        raise FactoryError(
            f"{method} needs the votes of {FEWEST_JUDGES} judges and has {voted}: which of two judges is right where "
            "they differ cannot be told from votes",
            todo="add a judge, or use majority, or weighted with weights that you know",
        )


def accuracy(votes: Votes, prior: Array, confusion: Array) -> dict[str, float]:
    """Each judge's probability of being right: sum over k of prior_k confusion_kk; NaN for one without votes."""
    import numpy as np

    right = np.einsum("k,jkk->j", prior, confusion)
    voted = np.bincount(votes.judge, minlength=len(votes.judges)) > 0
    return {judge: float(p) if v else math.nan for judge, p, v in zip(votes.judges, right, voted, strict=True)}


def notes(votes: Votes, accurate: dict[str, float], posterior: Array, given: Profiles) -> tuple[str, ...]:
    """What the user should know before trusting the result."""
    found = []
    chance = 1 / max(len(votes.categories), 1)
    below = [str(judge) for judge, p in accurate.items() if p < chance - 1e-9]
    if below:
        found.append(f"right less often than chance, so that their votes count against: {', '.join(below)}")
    against = _against_majority(posterior, given)
    if against > 0.5:
        found.append(
            f"the result contradicts the majority on {against:.0%} of the items that have one: labels may have "
            "changed places"
        )
    return tuple(found)


def _against_majority(posterior: Array, given: Profiles) -> float:
    """Share of items with a majority whose likeliest category is another."""

    most = leader(_shares(given.said))
    clear = most >= 0
    differs = most != leader(posterior)
    total = float(given.times[clear].sum())
    return float(given.times[clear & differs].sum()) / total if total else 0.0
