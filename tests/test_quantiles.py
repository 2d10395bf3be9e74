"""Quantiles against scipy, and bounds of the bootstrap that make the t interval's mistakes and no others."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from factory.stats import quantiles


@pytest.mark.parametrize("freedom", [1, 2, 5, 30, 10_000])
@pytest.mark.parametrize("t", [-40.0, -3.0, -0.5, 0.0, 0.1, 2.0, 15.0])
def test_students_t(t: float, freedom: float) -> None:
    assert quantiles.t_below(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-11)


def test_quantiles_of_students_t() -> None:
    assert quantiles.t_of(0.95, 1) == pytest.approx(12.7062, abs=1e-4)
    assert quantiles.t_of(0.9, 7) == pytest.approx(stats.t.ppf(0.95, 7), abs=1e-8)
    assert quantiles.t_below(math.inf, 3) == 1.0
    assert quantiles.t_below(-math.inf, 3) == 0.0


@pytest.mark.parametrize("clusters", [3, 24, 10_000])
def test_expanded_percentiles_are_those_of_a_t_interval_for_resamples_that_vary_too_little(clusters: int) -> None:
    """A normal with the variance of resampled means, (n - 1) / n of what it should be, read there: t on both sides."""
    low, high = quantiles.expanded(0.9, clusters)
    spread = math.sqrt((clusters - 1) / clusters)
    assert stats.norm.ppf(high) * spread == pytest.approx(stats.t.ppf(0.95, clusters - 1), rel=1e-6)
    assert low + high == pytest.approx(1)
