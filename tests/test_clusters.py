"""Rates, means and regressions by cluster: against scipy and statsmodels, and by how often intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, strategies as st
from scipy import stats

from factory.stats import clusters
from factory.stats.intervals import wilson


@pytest.mark.parametrize("freedom", [1, 2, 5, 30, 10_000])
@pytest.mark.parametrize("t", [-40.0, -3.0, -0.5, 0.0, 0.1, 2.0, 15.0])
def test_students_t(t: float, freedom: float) -> None:
    assert clusters.t_below(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-11)


def test_quantiles_of_students_t() -> None:
    assert clusters.t_of(0.95, 1) == pytest.approx(12.7062, abs=1e-4)
    assert clusters.t_of(0.9, 7) == pytest.approx(stats.t.ppf(0.95, 7), abs=1e-8)
    assert clusters.t_below(math.inf, 3) == 1.0
    assert clusters.t_below(-math.inf, 3) == 0.0


@given(st.lists(st.booleans(), max_size=40))
def test_a_value_a_cluster_is_wilsons(values: list[bool]) -> None:
    found = clusters.rate(values, range(len(values)))
    assert found == pytest.approx(wilson(sum(values), len(values)), nan_ok=True)


def test_copies_of_a_cluster_are_no_evidence() -> None:
    """Each prompt's ten pairs say the same: they are worth no more than one."""
    once = clusters.rate([1, 1, 0, 1, 0, 1], range(6))
    tenfold = clusters.rate(
        [v for v in [1, 1, 0, 1, 0, 1] for _ in range(10)], [g for g in range(6) for _ in range(10)]
    )
    assert tenfold.value == once.value
    assert tenfold.low <= once.low + 0.01
    assert tenfold.high >= once.high - 0.01


def test_one_cluster_or_no_variation_counts_clusters() -> None:
    assert clusters.rate([1] * 50, [0] * 50) == wilson(1, 1)
    assert clusters.rate([0] * 50, [i // 10 for i in range(50)]) == wilson(0, 5)
    assert math.isnan(clusters.rate([], []).value)
    assert math.isnan(clusters.mean([], []).value)


@pytest.mark.parametrize("groups", [5, 30])
def test_rates_hold_the_truth_as_often_as_they_say(groups: int) -> None:
    """True rate .7, six pairs a prompt with a correlation of .3 within it; 600 draws: 95% but for 2% of noise."""
    held = 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        chance = rng.beta(0.7 * 7 / 3, 0.3 * 7 / 3, size=groups)
        values = (rng.random((groups, 6)) < chance[:, None]).ravel()
        found = clusters.rate(values.tolist(), np.repeat(np.arange(groups), 6).tolist())
        held += found.low <= 0.7 <= found.high
    assert 0.92 <= held / 600 <= 0.985


def test_the_mean_is_the_t_interval() -> None:
    values = [0.1, 0.7, 0.4, 0.9, -0.3]
    found = clusters.mean(values, range(5))
    assert found[1:] == pytest.approx(stats.t.interval(0.95, 4, np.mean(values), stats.sem(values)))
    assert math.isnan(clusters.mean(values, ["p"] * 5).low)


def test_the_regression_is_statsmodels_with_clusters() -> None:
    """Its sandwich without small-sample correction, times G / (G - 1), with Student's t."""
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(400, 3)), np.repeat(np.arange(80), 5)
    y = (rng.random(400) < 1 / (1 + np.exp(-x @ [1, -0.5, 0]))).astype(float)
    found = clusters.logistic(x, y, groups.tolist()).coefficients
    model = sm.GLM(y, x, family=sm.families.Binomial())
    oracle = model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    assert found is not None
    assert [e.value for e in found] == pytest.approx(oracle.params, abs=1e-8)
    half = oracle.bse * math.sqrt(80 / 79) * stats.t.ppf(0.975, 79)
    assert [e.high - e.value for e in found] == pytest.approx(half, rel=1e-6)


def test_scales_and_signs_of_columns() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 2))
    y = (rng.random(200) < 1 / (1 + np.exp(-x[:, 0]))).astype(float)
    plain = clusters.logistic(x, y, range(200)).coefficients
    scaled = clusters.logistic(x * [1000, -1], y, range(200)).coefficients
    turned = clusters.logistic(-x, 1 - y, range(200)).coefficients
    assert plain is not None
    assert scaled is not None
    assert turned is not None
    assert scaled[0].value == pytest.approx(plain[0].value / 1000)
    assert scaled[1] == pytest.approx((-plain[1].value, -plain[1].high, -plain[1].low))
    for one, other in zip(plain, turned, strict=True):
        assert other == pytest.approx(one)


def test_what_cannot_be_fitted_says_why() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 2))
    split = clusters.logistic(x[:, :1], (x[:, 0] > 0).astype(float), range(60))
    assert split.coefficients is None
    assert "without an exception" in split.why
    rare = np.concatenate([x[:, :1], (np.arange(60) < 4)[:, None] * 1.0], axis=1)
    won = np.where(np.arange(60) < 4, 1.0, np.arange(60) % 2)
    assert clusters.logistic(rare, won, range(60)).coefficients is None
    assert "together" in clusters.logistic(x[:, [0, 0]], rng.integers(0, 2, 60).tolist(), range(60)).why
    assert "too few" in clusters.logistic(x, rng.integers(0, 2, 60).tolist(), [0] * 60).why
