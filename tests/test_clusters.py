"""Means and regressions by cluster: against scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from factory.stats import clusters


def test_the_mean_is_the_t_interval() -> None:
    values = [0.1, 0.7, 0.4, 0.9, -0.3]
    found = clusters.mean(values, range(5))
    assert found[1:] == pytest.approx(stats.t.interval(0.95, 4, np.mean(values), stats.sem(values)))
    assert math.isnan(clusters.mean(values, ["p"] * 5).low)
    assert math.isnan(clusters.mean([], []).value)


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
