"""The length-controlled win rate against truths that a simulation knows."""

from __future__ import annotations

import math
import random

import pytest

from factory.evaluation.length_control import FEWEST, Compared, fit, win_rate
from factory.stats import intervals


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def simulated(
    n: int, *, ability: float, length: float, hardness: float = 0.0, longer: float = 0.0, seed: int = 0
) -> tuple[list[Compared], float]:
    """Verdicts of a judge that loves length, on answers longer by `longer` standard deviations on average; and the win
    rate that it would have given at equal lengths, which is known."""
    rng = random.Random(seed)
    rows, truth = [], 0.0
    for i in range(n):
        more, hard = rng.gauss(longer, 1.0), rng.gauss(0.0, 1.0)
        p = sigmoid(ability + length * math.tanh(more) + hardness * hard)
        truth += sigmoid(ability + hardness * hard) / n
        rows.append(Compared(float(rng.random() < p), 40 * more, hard, i))
    return rows, truth


def plain(rows: list[Compared]) -> float:
    return sum(row.won for row in rows) / len(rows)


def test_a_judge_that_loves_length_is_corrected() -> None:
    """No better, only longer: the plain win rate says two thirds, the corrected one says a half."""
    rows, truth = simulated(4000, ability=0.0, length=1.5, hardness=0.7, longer=1.0, seed=1)
    found = fit(rows, resamples=200)
    assert found is not None
    assert truth == pytest.approx(0.5, abs=0.02)
    assert plain(rows) > 0.66
    assert found.win_rate.value == pytest.approx(truth, abs=0.03)
    assert found.win_rate.low < truth < found.win_rate.high
    assert found.length == pytest.approx(1.5, abs=0.25)
    assert found.hardness == pytest.approx(0.7, abs=0.15)


def test_a_better_and_shorter_policy_is_not_punished() -> None:
    rows, truth = simulated(4000, ability=0.8, length=1.5, longer=-1.0, seed=2)
    found = win_rate(rows, resamples=50)
    assert found is not None
    assert truth == pytest.approx(sigmoid(0.8))
    assert plain(rows) < 0.55
    assert found.value == pytest.approx(truth, abs=0.03)


def test_without_a_love_of_length_it_is_the_plain_rate() -> None:
    rows, truth = simulated(4000, ability=0.4, length=0.0, longer=1.0, seed=3)
    found = win_rate(rows, resamples=50)
    assert found is not None
    assert found.value == pytest.approx(truth, abs=0.03)
    assert found.value == pytest.approx(plain(rows), abs=0.03)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """60 simulations of 200 comparisons at 95%: fewer than 51 hits would come of a sound interval once in 10,000."""
    held = 0
    for seed in range(60):
        rows, truth = simulated(200, ability=0.3, length=1.0, hardness=0.5, longer=0.8, seed=100 + seed)
        found = win_rate(rows, resamples=100, seed=seed)
        assert found is not None
        held += found.low <= truth <= found.high
    assert held >= 51


def test_several_answers_to_a_prompt_are_one_cluster() -> None:
    """Every comparison four times over tells nothing new: the interval stays as wide (within a fifth)."""
    rows, _ = simulated(150, ability=0.2, length=1.0, longer=0.5, seed=4)
    once, often = win_rate(rows), win_rate([row for row in rows for _ in range(4)])
    assert once is not None
    assert often is not None
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.2)


def test_what_failed_loses_at_any_length() -> None:
    """A policy that is as good as the other, and fails on one prompt of four: 3/8, as the plain rate has it."""
    rows, _ = simulated(300, ability=0.0, length=0.0, seed=5)
    even = [row._replace(won=0.5) for row in rows]
    failing = [*even, *(Compared(0.0, None, 0.0, f"failed {i}") for i in range(100))]
    found = win_rate(failing, resamples=100)
    assert found is not None
    assert found.value == pytest.approx(0.375, abs=1e-3)
    assert 0.33 < found.low < 0.37
    assert 0.38 < found.high < 0.42
    assert win_rate([*even[: FEWEST - 1], *failing[-20:]]) is None


def test_without_failures_their_order_changes_nothing() -> None:
    rows, _ = simulated(50, ability=0.3, length=1.0, seed=6)
    failed = [Compared(1.0, None, 0.0, 1000 + i) for i in range(10)]
    first, last = fit([*failed, *rows], resamples=20), fit([*rows, *failed], resamples=20)
    assert first is not None
    assert last is not None
    assert first.length == pytest.approx(last.length)
    assert first.win_rate.value == pytest.approx(last.win_rate.value)


def test_length_that_explains_every_verdict_has_a_finite_fit() -> None:
    rows = [Compared(float(i % 2), 30.0 if i % 2 else -30.0, 0.0, i) for i in range(40)]
    found = fit(rows, resamples=50)
    assert found is not None
    assert math.isfinite(found.length)
    assert found.win_rate.value == pytest.approx(0.5, abs=0.01)


def test_ends() -> None:
    won = [Compared(1.0, 0.0, 0.0, i) for i in range(20)]
    assert win_rate(won[: FEWEST - 1]) is None
    found = win_rate(won, resamples=20)
    assert found is not None
    assert 0.9 < found.value <= 1.0  # all equally long: nothing to correct
    ties = win_rate([Compared(0.5, float(i), 0.0, i) for i in range(20)], resamples=20)
    assert ties is not None
    assert ties == pytest.approx(intervals.wilson(10, 20))  # all draws agree, which is no certainty
    alone = win_rate([Compared(float(i % 2), float(i), 0.0, "one prompt") for i in range(20)])
    assert alone is not None
    assert math.isnan(alone.low)
