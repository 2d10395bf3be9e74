"""Prediction-powered means: the papers' formulas written out, coverage, and what a bad judge costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from factory.stats.quantiles import t_of
from factory.trust.prediction_powered import powered_mean


def test_the_formula_of_the_papers() -> None:
    """theta, its variance var(y - w f) / n + w^2 var(f) / N, and the w that makes it least (PPI++, eq. 10's minimand),
    one item a prompt."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=40)
    f, g = y + rng.normal(0.5, 0.7, 40), rng.normal(0.5, 1.2, 300)
    found = powered_mean(y.tolist(), f.tolist(), range(40), g.tolist(), range(40, 340))

    def variance(w: float) -> float:
        return float((y - w * f).var() / 40 + w**2 * g.var() / 300)

    best = minimize_scalar(variance, bounds=(0, 3), method="bounded", options={"xatol": 1e-9}).x
    assert found.weight == pytest.approx(best, abs=1e-6)
    theta = best * g.mean() + (y - best * f).mean()
    assert found.estimate.value == pytest.approx(theta, abs=1e-6)
    half = t_of(0.95, 38) * math.sqrt(39 / 38 * variance(best))
    assert found.estimate.high - found.estimate.value == pytest.approx(half, rel=1e-6)
    assert found.gold_only.value == pytest.approx(y.mean())
    # PPI++'s own plug-in pools the two variances of f
    pooled = np.cov(y, f, bias=True)[0, 1] / ((1 + 40 / 300) * np.concatenate([f, g]).var())
    assert found.weight == pytest.approx(pooled, rel=0.25)


@pytest.mark.parametrize("noise", [0.1, 0.6, 3.0])
def test_intervals_hold_the_truth_and_are_no_wider_than_golds(noise: float) -> None:
    """True mean 0; the judge is 0.4 too high; three items a prompt hang together, a fifth has gold."""
    held, width, plain = 0, 0.0, 0.0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        y = rng.normal(0, 0.5, 120)[:, None] + rng.normal(0, 1, (120, 3))
        f = y + rng.normal(0.4, noise, y.shape)
        gold, prompt = rng.random(y.shape) < 0.2, np.repeat(np.arange(120), 3).reshape(120, 3)
        found = powered_mean(y[gold], f[gold], prompt[gold].tolist(), f[~gold], prompt[~gold].tolist())
        held += found.estimate.low <= 0 <= found.estimate.high
        width += found.estimate.high - found.estimate.low
        plain += found.gold_only.high - found.gold_only.low
    assert 0.92 <= held / 400 <= 0.98
    assert width < plain * (0.7 if noise < 1 else 1.02)


def test_the_judges_scale_and_zero_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    y, others = rng.normal(size=30), rng.normal(size=100)
    f = y + rng.normal(size=30)
    one = powered_mean(y, f, range(30), others, range(30, 130))
    two = powered_mean(y, 10 * f + 7, range(30), 10 * others + 7, range(30, 130))
    assert two.estimate == pytest.approx(one.estimate)


def test_a_judge_against_gold_weighs_nothing() -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=50)
    found = powered_mean(y, -y, range(50), rng.normal(size=100), range(50, 150))
    assert found.weight == 0
    assert found.estimate == found.gold_only


def test_no_others_or_one_prompt() -> None:
    found = powered_mean([1.0, 0.0, 1.0], [1.0, 0.0, 0.0], ["a", "b", "c"], [], [])
    assert (found.estimate, found.weight) == (found.gold_only, 0.0)
    one = powered_mean([1.0, 0.0], [1.0, 0.0], ["a", "a"], [1.0], ["b"])
    assert math.isnan(one.estimate.low)


def test_gold_that_never_varies_is_not_certainty() -> None:
    """Ten wins of ten: Wilson's lower bound is 10 / (10 + 1.96^2) = 0.722. Ten scores of 5 have no bounds."""
    others = ([0.4, 0.9] * 20, [f"o{n}" for n in range(40)])
    won = powered_mean([1.0] * 10, [0.9, 0.8] * 5, range(10), *others)
    assert won.estimate == won.gold_only == (1.0, pytest.approx(10 / (10 + 1.959964**2), abs=1e-6), 1.0)
    scored = powered_mean([5.0] * 10, [0.9, 0.8] * 5, range(10), *others)
    assert scored.estimate.value == 5.0
    assert math.isnan(scored.estimate.low)
