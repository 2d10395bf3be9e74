"""Bradley and Terry's and Davidson's models: against choix and the written-out likelihood, coverage, and silence where
the data knows nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import choix
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.optimize import minimize

from factory.faults import FactoryError
from factory.trust.ranking import Comparison, Ranking, rank

STRENGTH = np.array([1.0, 0.3, -0.2, -1.1])


def simulated(seed: int, prompts: int, each: int = 3, ties: float | None = -0.5) -> list[Comparison]:
    """Comparisons drawn from Davidson's model with log v = `ties`; None: no ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        for _ in range(each):
            i, j = rng.choice(len(STRENGTH), 2, replace=False)
            utility = [STRENGTH[i], STRENGTH[j]]
            utility += [] if ties is None else [(STRENGTH[i] + STRENGTH[j]) / 2 + ties]
            chance = np.exp(utility) / np.exp(utility).sum()
            rows.append(
                Comparison(f"m{i}", f"m{j}", ("a", "b", "tie")[rng.choice(len(chance), p=chance)], f"p{prompt}")
            )
    return rows


def strengths(ranking: Ranking) -> dict[str, float]:
    return {model.model: model.strength.value for model in ranking.models}


def won(winner: str, loser: str, prompt: str = "p") -> Comparison:
    return Comparison(winner, loser, "a", prompt)


def tied(one: str, other: str, prompt: str = "p") -> Comparison:
    return Comparison(one, other, "tie", prompt)


def test_without_ties_it_is_choix() -> None:
    rows = simulated(1, 200, ties=None)
    data = [(int(r[0][1]), int(r[1][1])) if r.outcome == "a" else (int(r[1][1]), int(r[0][1])) for r in rows]
    oracle = choix.opt_pairwise(4, data, alpha=1e-9)
    found = rank(rows)
    assert found.ties == {0: None}
    assert strengths(found) == pytest.approx({f"m{i}": v - oracle.mean() for i, v in enumerate(oracle)}, abs=1e-5)


def test_with_ties_it_is_the_maximum_of_davidsons_likelihood() -> None:
    rows = simulated(2, 60)

    def loss(beta: Any) -> float:
        s, v = np.exp(beta[:4]), math.exp(beta[4])
        total = 0.0
        for row in rows:
            i, j = int(row.first[1]), int(row.second[1])
            tie = v * math.sqrt(s[i] * s[j])
            share = {"a": s[i], "b": s[j], "tie": tie}[row.outcome] / (s[i] + s[j] + tie)
            total -= math.log(share)
        return total

    oracle = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-8})
    found = rank(rows)
    centred = oracle.x[:4] - oracle.x[:4].mean()
    assert strengths(found) == pytest.approx({f"m{i}": v for i, v in enumerate(centred)}, abs=1e-4)
    assert found.ties[0] == pytest.approx(math.exp(oracle.x[4]), rel=1e-4)


def test_two_models_by_hand() -> None:
    """30 wins, 10 losses: log-odds log 3, halves of it around the mean; 3/4 against each other."""
    rows = [won("x", "y", f"p{i}") for i in range(30)] + [won("y", "x", f"q{i}") for i in range(10)]
    found = rank(rows)
    assert strengths(found) == pytest.approx({"x": math.log(3) / 2, "y": -math.log(3) / 2})
    assert found.models[1].against_first.value == pytest.approx(0.25)
    (pair,) = found.against
    assert (pair.wins, pair.ties, pair.losses) == (30, 0, 10)
    assert pair.win.value == pytest.approx(0.75)
    half = 2.0226909 * math.sqrt(40 / 39 * (1 / 30 + 1 / 10))  # the variance of log odds is 1/wins + 1/losses
    assert math.log(pair.win.high / (1 - pair.win.high)) - math.log(3) == pytest.approx(half, rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(120):
        for model in rank(simulated(seed, 40, each=4)).models:
            held += model.strength.low <= STRENGTH[int(model.model[1])] <= model.strength.high
    assert 0.92 <= held / 480 <= 0.98


def test_copies_within_a_prompt_change_no_interval() -> None:
    rows = simulated(3, 50)
    once, fourfold = rank(rows), rank([row for row in rows for _ in range(4)])
    for one, other in zip(once.models, fourfold.models, strict=True):
        assert other.strength == pytest.approx(one.strength, abs=1e-6)


@given(st.integers(0, 1000))
def test_exchanging_a_and_b_changes_nothing(seed: int) -> None:
    rows = simulated(seed, 8)
    flip = {"a": "b", "b": "a", "tie": "tie"}
    turned = [Comparison(r.second, r.first, flip[r.outcome], r.prompt) for r in rows]  # type: ignore[arg-type]
    one, other = rank(rows), rank(turned)
    assert one.notes == other.notes
    assert strengths(other) == pytest.approx(strengths(one), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_strengths_have_mean_0_where_ties_are_many(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = rng.choice(["a", "b", "tie"], 150, p=[0.06, 0.04, 0.9])
    rows = [Comparison(*(("x", "y") if n % 3 else ("y", "x")), word, f"p{n % 26}") for n, word in enumerate(words)]
    found = rank(rows)
    assert sum(strengths(found).values()) == pytest.approx(0.0, abs=1e-9)
    assert found.models[0].strength.low == pytest.approx(-found.models[1].strength.high)


def test_models_that_never_met_are_not_ranked() -> None:
    rows = [won("a", "b", "1"), won("b", "a", "2"), won("c", "d", "3"), won("d", "c", "4")]
    found = rank(rows)
    assert {model.model: model.group for model in found.models} == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert found.notes == ["a and b / c and d: never compared, not even through others"]


@pytest.mark.parametrize(
    "rows",
    [
        [won("a", "b", str(i)) for i in range(9)],
        [won("a", "b", "1"), tied("a", "b", "2")],  # v can grow with the distance for ever
        [tied("a", "b", "1"), tied("a", "b", "2")],
    ],
)
def test_no_distance_is_invented(rows: Sequence[Comparison]) -> None:
    found = rank(rows)
    assert all(math.isnan(model.strength.value) for model in found.models)
    assert len(found.notes) == 1
    assert found.models[0].wins == sum(row.outcome == "a" for row in rows)


def test_a_circle_of_wins_with_ties_has_distances() -> None:
    rows = [won("a", "b", "1"), won("b", "c", "2"), won("c", "a", "3"), tied("a", "c", "4")]
    assert strengths(rank(rows)) == pytest.approx({"a": 0.0, "b": 0.0, "c": 0.0}, abs=0.5)


def test_a_chain_that_ties_contradict_has_distances() -> None:
    """a beats b, b beats c, a and c tie: no strengths can run away, although nothing was ever lost back."""
    found = rank([won("a", "b", "1"), won("b", "c", "2"), tied("a", "c", "3"), tied("a", "c", "4")])
    assert all(math.isfinite(model.strength.value) for model in found.models)


def test_a_declared_prior_makes_distances_finite() -> None:
    """Nine wins and one comparison half won: 9.5 to 0.5."""
    found = rank([won("a", "b", str(i)) for i in range(9)], prior=1.0)
    assert found.against[0].win.value == pytest.approx(0.95)
    with pytest.raises(FactoryError, match="prior"):
        rank([], prior=-1.0)


def test_one_prompt_gives_no_interval_and_nothing_gives_nothing() -> None:
    found = rank([won("a", "b"), won("b", "a"), won("a", "a")])
    assert found.models[0].strength.value == pytest.approx(0.0)
    assert math.isnan(found.models[0].strength.low)
    assert rank([]).models == []
    assert found.to_json()["models"][0]["strength"] == [pytest.approx(0.0), None, None]
