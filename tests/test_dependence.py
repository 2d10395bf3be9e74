"""The model of dependent judges on judges whose families and blind spots are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from voted import noisy, of_matrix, votes, with_blind_spots

from factory.faults import FactoryError
from factory.votes.aggregation import Decided, aggregate, encode, methods
from factory.votes.dependence import dependent, effective_judges, error_correlation
from factory.votes.latent import dawid_skene

THREE_FAMILIES = [0, 0, 0, 1, 1, 1, 2, 2, 2]


def brier(decided: Decided, truth: NDArray[np.int64]) -> float:
    """Mean of (probability of category 1 - truth)^2."""
    assert decided.posterior is not None
    return float(np.mean((decided.posterior[:, 1] - truth) ** 2))


def kish(said: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """From the errors themselves: m / (1 + (m - 1) r)."""
    errors = (said != truth[:, None]).astype(float)
    m = said.shape[1]
    r = (np.corrcoef(errors.T).sum() - m) / (m * (m - 1))
    return float(m / (1 + (m - 1) * r))


def families_of(decided: Decided) -> set[frozenset[Any]]:
    assert decided.model is not None
    return {frozenset(family) for family in decided.model.families}


def trials(accuracy: Sequence[float], families: Sequence[int], rate: float, items: int, seeds: int) -> list[Any]:
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 2, items)
        found.append((truth, with_blind_spots(rng, truth, accuracy, families, rate)))
    return found


# ------------------------------------------------------------------------------------------------------- known truth


def test_families_are_found_and_the_posterior_is_better_than_dawid_skenes() -> None:
    ours, theirs = [], []
    for truth, said in trials([0.85] * 9, THREE_FAMILIES, 0.2, 400, 6):
        found = dependent(of_matrix(said))
        ours.append(brier(found, truth))
        theirs.append(brier(dawid_skene(of_matrix(said)), truth))
        assert families_of(found) == {frozenset(f"j{j}" for j in range(k, k + 3)) for k in (0, 3, 6)}
        assert found.model is not None
        assert found.model.effective == pytest.approx(kish(said, truth), abs=0.9)
        assert list(found.model.accuracy.values()) == pytest.approx([0.85 * 0.8 + 0.15 * 0.2] * 9, abs=0.12)
    assert np.mean(ours) < np.mean(theirs) - 0.02


def test_its_probabilities_are_calibrated_where_dawid_skenes_are_not() -> None:
    """Items given .9 or more: how far the share that is right falls short of what was claimed."""

    def gap(method: str) -> float:
        short = []
        for truth, said in trials([0.9] * 9, THREE_FAMILIES, 0.25, 1500, 4):
            posterior = methods.get(method)(of_matrix(said)).posterior
            assert posterior is not None
            sure = posterior.max(axis=1) > 0.9
            hits = posterior.argmax(axis=1)[sure] == truth[sure]
            short.append(posterior.max(axis=1)[sure].mean() - hits.mean())
        return float(np.mean(short))

    assert abs(gap("dependent")) < 0.03
    assert gap("dawid_skene") > 0.08


@pytest.mark.parametrize("items", [60, 300, 2000])
def test_independent_judges_are_left_alone(items: int) -> None:
    ours, theirs = [], []
    for truth, said in trials([0.6, 0.65, 0.7, 0.75, 0.8, 0.7, 0.6], [-1] * 7, 0.0, items, 8):
        ours.append(brier(dependent(of_matrix(said)), truth))
        theirs.append(brier(dawid_skene(of_matrix(said)), truth))
    assert np.mean(ours) <= np.mean(theirs) + 0.004


def test_copies_of_one_judge_count_once() -> None:
    """Six copies and three others: nine judges are two. Dawid and Skene's model believes the copies alone."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 500)
    said = noisy(rng, truth, [0.75] * 9)
    said[:, :6] = said[:, :1]
    found, naive = dependent(of_matrix(said)), dawid_skene(of_matrix(said))
    assert found.model is not None
    assert found.model.effective == pytest.approx(kish(said, truth), abs=0.25)
    assert found.model.effective == pytest.approx(2.1, abs=0.3)
    assert families_of(found) == {frozenset(f"j{j}" for j in range(6))}
    assert brier(found, truth) < brier(naive, truth) / 2
    assert "one family of judges errs together" in found.model.notes[0]


def test_declared_families_tell_which_side_errs_together() -> None:
    """Five of nine share a blind spot: votes cannot tell, but who knows the judges can."""
    members = [0, 0, 0, 0, 0, -1, -1, -1, -1]
    for truth, said in trials([0.85] * 9, members, 0.25, 400, 3):
        told = dependent(of_matrix(said), families={f"j{j}": "vendor" for j in range(5)})
        assert brier(told, truth) < brier(dawid_skene(of_matrix(said)), truth) / 3
        assert told.model is not None
        assert told.model.notes == ()
        assert told.model.effective == pytest.approx(kish(said, truth), abs=0.5)


def test_a_blind_spot_of_all_judges_shows_only_against_gold() -> None:
    """What votes alone cannot see: the panel's number is then far too high, and gold labels say so."""
    ((truth, said),) = trials([0.9] * 9, [0] * 9, 0.2, 1500, 1)
    found = dependent(of_matrix(said))
    assert found.model is not None
    assert found.model.effective is not None
    assert found.model.effective > 6
    gold = np.eye(2)[truth]
    assert effective_judges(error_correlation(of_matrix(said), gold)) == pytest.approx(kish(said, truth), abs=1e-6)
    assert kish(said, truth) < 2.5


def test_hard_items_are_seen() -> None:
    """On a third of the items every judge does little better than chance."""
    ours, theirs = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 2, 2000)
        hard = rng.random(2000) < 0.35
        said = np.where(hard[:, None], noisy(rng, truth, [0.55] * 9), noisy(rng, truth, [0.92] * 9))
        found = dependent(of_matrix(said))
        ours.append(brier(found, truth))
        theirs.append(brier(dawid_skene(of_matrix(said)), truth))
        assert found.model is not None
        assert found.model.effective == pytest.approx(kish(said, truth), abs=1.5)
    assert np.mean(ours) < np.mean(theirs) - 0.002


def test_three_categories() -> None:
    """Families whose members take the same wrong category for true."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 1500)
    seen = np.repeat(truth[:, None], 9, axis=1)
    for k in range(3):
        blind = rng.random(1500) < 0.25
        shift = rng.integers(1, 3, 1500)
        seen[:, 3 * k : 3 * k + 3] = np.where(blind, (truth + shift) % 3, truth)[:, None]
    said = np.where(rng.random((1500, 9)) < 0.85, seen, (seen + rng.integers(1, 3, (1500, 9))) % 3)
    found, naive = dependent(of_matrix(said)), dawid_skene(of_matrix(said))
    assert families_of(found) == {frozenset(f"j{j}" for j in range(k, k + 3)) for k in (0, 3, 6)}
    assert found.posterior is not None
    assert naive.posterior is not None
    chosen = np.arange(1500), truth
    assert np.log(found.posterior[chosen]).mean() > np.log(naive.posterior[chosen]).mean() + 0.05


def test_missing_votes() -> None:
    ours, theirs = [], []
    for truth, said in trials([0.85] * 9, THREE_FAMILIES, 0.2, 1200, 3):
        said[np.random.default_rng(1).random(said.shape) < 0.3] = -1
        given = of_matrix(said)
        known = truth[given.items]
        found = dependent(given)
        ours.append(brier(found, known))
        theirs.append(brier(dawid_skene(given), known))
        assert found.model is not None
        assert found.model.effective == pytest.approx(5.2, abs=0.8)
    assert np.mean(ours) < np.mean(theirs)


def test_items_that_stand_twice_count_once() -> None:
    ((_, said),) = trials([0.85] * 9, THREE_FAMILIES, 0.2, 300, 1)
    once = dependent(of_matrix(said))
    twice = dependent(of_matrix(np.concatenate([said, said])), copies=2)
    assert once.posterior is not None
    assert twice.posterior is not None
    assert twice.posterior[:300] == pytest.approx(once.posterior, abs=1e-6)
    assert families_of(once) == families_of(twice)


# ------------------------------------------------------------------------------------------------- numbers and edges


def test_kishs_number_by_hand() -> None:
    """m judges of mean correlation r are m / (1 + (m - 1) r): 9 at 7/16 are 2; 4 at 0 are 4; below 0 they stay 4."""
    even = np.full((9, 9), 7 / 16) + np.eye(9) * 9 / 16
    assert effective_judges(even) == pytest.approx(2.0)
    assert effective_judges(np.eye(4)) == 4
    assert effective_judges(np.asarray([[1.0, -0.5], [-0.5, 1.0]])) == 2
    assert effective_judges(np.ones((5, 5))) == 1


def test_correlation_of_errors_against_gold_is_numpys() -> None:
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 500)
    said = with_blind_spots(rng, truth, [0.8] * 4, [0, 0, -1, -1], 0.3)
    ours = error_correlation(of_matrix(said), np.eye(2)[truth])
    assert ours == pytest.approx(np.corrcoef((said != truth[:, None]).T))


def test_a_judge_that_never_errs_has_no_correlation() -> None:
    truth = np.asarray([0, 1, 0, 1])
    said = np.stack([truth, 1 - truth, truth, np.asarray([0, 0, 0, 1])], axis=1)
    ours = error_correlation(of_matrix(said), np.eye(2)[truth])
    assert ours == pytest.approx(np.eye(4))


def test_the_order_of_items_and_judges_does_not_matter() -> None:
    ((_, said),) = trials([0.85] * 9, THREE_FAMILIES, 0.2, 400, 1)
    rng = np.random.default_rng(2)
    items, judges = rng.permutation(400), rng.permutation(9)
    one, two = dependent(of_matrix(said)), dependent(of_matrix(said[items][:, judges]))
    assert one.posterior is not None
    assert two.posterior is not None
    assert two.posterior == pytest.approx(one.posterior[items], abs=1e-5)


def test_what_cannot_be_known_is_refused() -> None:
    two = votes({"x": ["a", "b"], "y": ["a", "a"]})
    with pytest.raises(FactoryError, match="needs the votes of 3 judges"):
        aggregate(two, "dependent")
    three = votes({"x": ["a", "b"], "y": ["a", "a"], "z": ["b", "b"]})
    with pytest.raises(FactoryError, match="2 families of judges"):
        aggregate(three, "dependent", families={"x": 1, "y": 1})
    with pytest.raises(FactoryError, match="name judges without votes: \\['w'\\]"):
        aggregate(three, "dependent", families={"w": 1})
    many = votes({f"j{j}": ["a", "b"] for j in range(41)})
    with pytest.raises(FactoryError, match="not sought among 41 judges"):
        aggregate(many, "dependent")
    assert aggregate(many, "dependent", families={"j0": 1, "j1": 1}).num_rows == 2


def test_no_votes_and_one_category() -> None:
    empty = pa.table(
        {"item": pa.array([], pa.int64()), "judge": pa.array([], pa.string()), "value": pa.array([], pa.int64())}
    )
    assert aggregate(empty, "dependent").num_rows == 0
    alike = dependent(encode(votes({j: [7, 7, 7] for j in "wxyz"})))
    assert list(alike.value) == [7, 7, 7]
    assert alike.model is not None
    assert alike.model.effective == 4
    perfect = dependent(encode(votes({j: [0, 1] * 20 for j in "wxyz"})))
    assert list(perfect.value) == [0, 1] * 20


def test_a_judge_without_votes_does_not_count() -> None:
    model = dependent(encode(votes({"x": [0, 1, 1], "y": [0, 1, 0], "z": [0, 0, 1], "none": [None] * 3}))).model
    assert model is not None
    assert math.isnan(model.accuracy["none"])
    assert model.effective is not None
    assert model.effective <= 3
