"""Confidence sequences: they hold at all moments together, where an interval for one moment does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from factory.stats.confidence_sequences import from_moments, running, sequence
from factory.stats.intervals import z_of

SIZES = [*range(10, 100, 5), *range(100, 1501, 25)]
RUNS = 150


def draws(shares: tuple[float, float, float], seed: int) -> Any:
    """Paired differences: lost, even, won. Shape (1500,)."""
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], size=SIZES[-1], p=shares)


@pytest.mark.parametrize("shares", [(0.1, 0.8, 0.1), (0.3, 0.3, 0.4), (0.01, 0.98, 0.01)])
def test_the_mean_stays_within_at_all_looks_together(shares: tuple[float, float, float]) -> None:
    """Misses over 78 looks at most 5% of the runs; the fixed-size interval misses many times that."""
    truth = shares[2] - shares[0]
    missed, missed_by_fixed = 0, 0
    for seed in range(RUNS):
        values = draws(shares, seed)
        missed += any(not e.low <= truth <= e.high for e in running(values, SIZES))
        heads = [values[:size] for size in SIZES if size >= 100]
        missed_by_fixed += any(abs(h.mean() - truth) > z_of() * h.std() / math.sqrt(len(h)) for h in heads)
    assert missed / RUNS <= 0.05
    assert missed_by_fixed / RUNS > 0.15


def test_the_mixture_from_moments_holds_for_large_samples() -> None:
    missed = 0
    for seed in range(RUNS):
        values = draws((0.3, 0.3, 0.4), seed)
        found = [from_moments(h.mean(), h.var(), len(h)) for h in (values[:size] for size in SIZES if size >= 100)]
        missed += any(not e.low <= 0.1 <= e.high for e in found)
    assert missed / RUNS <= 0.05


def test_the_mean_may_drift_and_depend_on_the_past() -> None:
    """Each value leans against the sum so far: the mean of the conditional means is held, though it is random."""
    missed = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        values, means, total = [], [], 0.0
        for uniform in rng.random(400):
            mean = -0.5 if total > 0 else 0.4
            values.append(1.0 if uniform < (1 + mean) / 2 else -1.0)
            means.append(mean)
            total += values[-1]
        truth = np.cumsum(means) / np.arange(1, 401)
        sizes = list(range(20, 401, 20))
        missed += any(not e.low <= truth[s - 1] <= e.high for s, e in zip(sizes, running(values, sizes), strict=True))
    assert missed / RUNS <= 0.05


def test_it_costs_less_than_twice_the_width_of_one_look() -> None:
    values = draws((0.3, 0.3, 0.4), 1)
    for size in (500, 1500):
        fixed = z_of() * values[:size].std() / math.sqrt(size)
        exact = running(values, [size])[0]
        assert fixed < (exact.high - exact.low) / 2 < 2 * fixed
        large = from_moments(values[:size].mean(), values[:size].var(), size)
        assert fixed < (large.high - large.low) / 2 < (exact.high - exact.low) / 2


def test_golden_numbers_of_the_normal_mixture() -> None:
    """n 500, variance 1, alpha .05, narrowest there: x solves x = log(1 + x) + 5.991465, that is x = 8.179766, so that
    the radius is sqrt((500 + 500/x) x) / 500 = sqrt(500 (x + 1)) / 500 = 0.135497."""
    found = from_moments(0.25, 1.0, 500, tight_at=500)
    x = 8.0
    for _ in range(50):
        x = math.log1p(x) - 2 * math.log(0.05)
    assert found.high - found.value == pytest.approx(math.sqrt(500 * (x + 1)) / 500)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_looks_are_put_end_to_end() -> None:
    values = draws((0.2, 0.4, 0.4), 3)[:300].tolist()
    looks = [values[:50], values[50:60], [], values[60:]]
    assert sequence(looks) == running(values)[-1]
    assert sequence([[], []]).value != sequence([[], []]).value  # NaN: nothing was seen


def test_smaller_alpha_is_wider_and_other_bounds_scale() -> None:
    values = draws((0.2, 0.4, 0.4), 4)[:200]
    strict, usual = (running(values, [200], alpha=a)[0] for a in (0.01, 0.05))
    assert strict.low < usual.low < usual.high < strict.high
    halved = running(values / 2 + 0.5, [200], low=0.0, high=1.0)[0]
    assert halved == pytest.approx([bound / 2 + 0.5 for bound in usual])


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="outside"):
        sequence([[0.5, 1.5]])
    with pytest.raises(ValueError, match="low < high"):
        sequence([[0.5]], low=1.0, high=1.0)
    with pytest.raises(ValueError, match="alpha"):
        sequence([[0.5]], alpha=1.0)
    with pytest.raises(ValueError, match="alpha"):
        from_moments(0.1, 1.0, 10, 0.0)
    with pytest.raises(ValueError, match="sizes"):
        running([0.1], [2])


def test_too_little_gives_no_bounds() -> None:
    assert math.isnan(from_moments(0.5, 1.0, 0).value)
    assert math.isnan(from_moments(0.5, 0.0, 50).low)
    alone = sequence([[1.0]])
    assert (alone.value, alone.low, alone.high) == (1.0, -1.0, 1.0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_bounds_hold_the_mean_and_stay_within_the_values_range(values: list[float]) -> None:
    for found in running(values):
        assert -1 <= found.low <= found.value + 1e-12
        assert found.value - 1e-12 <= found.high <= 1
