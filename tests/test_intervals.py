"""Intervals against published numbers, against their own coverage, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from factory.schema import Estimate
from factory.stats import intervals


def test_wilson_is_the_published_interval() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), (low, high) in published.items():
        estimate = intervals.wilson(successes, n)
        assert estimate.value == pytest.approx(successes / n)
        assert (estimate.low, estimate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_at_the_edges() -> None:
    assert all(math.isnan(x) for x in intervals.wilson(0, 0))
    assert intervals.wilson(0, 5).low == 0.0
    assert intervals.wilson(5, 5).high == 1.0
    narrow, wide = intervals.wilson(5, 10, level=0.5), intervals.wilson(5, 10, level=0.99)
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high


def test_paired_rates_is_newcombes_method_10() -> None:
    """Newcombe 1998 (17:2635), table II: cells 36, 12, 2, 0 give 0.0569 to 0.3404."""
    estimate = intervals.paired_rates(36, 12, 2, 0)
    assert estimate.value == pytest.approx(0.2)
    assert (estimate.low, estimate.high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))


def test_paired_rates_by_hand() -> None:
    """6 of 10 against 3 of 10 with 2 both: a = .6 [.3127, .8318], b = .3 [.1078, .6032]; ad - bc = 2*3 - 4*1 = 2 is
    below n/2, so phi = 0: low = .3 - sqrt(.2873^2 + .3032^2) = -.1177, high = .3 + sqrt(.2318^2 + .1922^2) = .6011."""
    estimate = intervals.paired_rates(2, 4, 1, 3)
    assert tuple(estimate) == (pytest.approx(0.3), pytest.approx(-0.1177, abs=2e-4), pytest.approx(0.6011, abs=2e-4))


def test_nothing_differs_is_not_certainty() -> None:
    few, many = intervals.paired_rates(0, 0, 0, 10), intervals.paired_rates(0, 0, 0, 1000)
    assert few.value == many.value == 0
    assert few.low < many.low < 0 < many.high < few.high


def test_wins_and_losses() -> None:
    ties = intervals.wins_and_losses(0, 100, 0)
    assert ties.value == 0.5
    assert 0.45 < ties.low < 0.5 < ties.high < 0.55
    sweep = intervals.wins_and_losses(10, 0, 0)
    assert sweep.value == 1.0
    assert sweep.low == pytest.approx(intervals.wilson(10, 10).low)  # no ties: the win rate is a plain rate
    plain = intervals.wins_and_losses(30, 0, 20)
    assert tuple(plain) == pytest.approx(tuple(intervals.wilson(30, 50)))
    assert math.isnan(intervals.wins_and_losses(0, 0, 0).value)


def test_difference_squares_and_adds() -> None:
    a, b = Estimate(10.0, 7.0, 13.0), Estimate(4.0, 0.0, 8.0)
    assert tuple(intervals.difference(a, b)) == pytest.approx((6.0, 1.0, 11.0))
    assert tuple(intervals.difference(a, b, share=0.5)) == pytest.approx((8.0, 8 - math.sqrt(13), 8 + math.sqrt(13)))
    assert tuple(intervals.difference(a, b, share=-1)) == pytest.approx((14.0, 9.0, 19.0))
    unknown = intervals.difference(a, Estimate(4.0, math.nan, math.nan))
    assert unknown.value == 6.0
    assert math.isnan(unknown.low)
    assert math.isnan(unknown.high)


def test_widened_spends_no_more_than_its_allowance() -> None:
    estimate = Estimate(0.0, -1.96, 1.96)
    assert intervals.widened(estimate, 1).high > estimate.high
    errors = [2 * (1 - _normal_cdf(intervals.widened(estimate, k).high)) for k in range(1, 2000)]
    assert 0.049 < sum(errors) < 0.0501
    with pytest.raises(ValueError, match="counts from 1"):
        intervals.widened(estimate, 0)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400).tolist()
    estimate = intervals.mean(values)
    half = 1.96 * float(np.std(values)) / math.sqrt(400)
    assert estimate.value == pytest.approx(float(np.mean(values)))
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.03)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.03)
    assert estimate == intervals.mean(values)
    assert estimate != intervals.mean(values, seed=1)


def test_clusters_widen_the_interval() -> None:
    """Eight copies of each of 30 values tell no more than the 30 values do."""
    values = np.random.default_rng(0).normal(size=30).tolist()
    copies = [value for value in values for _ in range(8)]
    names = [f"prompt {i}" for i in range(30) for _ in range(8)]
    clustered = intervals.mean(copies, names)
    assert tuple(clustered) == pytest.approx(tuple(intervals.mean(values)))
    naive = intervals.mean(copies)
    assert (clustered.high - clustered.low) > 2 * (naive.high - naive.low)


def test_ratio_of_sums_and_its_edges() -> None:
    assert intervals.ratio([1.0, 3.0], [1.0, 1.0]).value == 2.0
    assert intervals.ratio([1.0, 9.0], [1.0, 4.0]).value == 2.0
    assert all(math.isnan(x) for x in intervals.mean([]))
    single = intervals.mean([4.0, 6.0], ["same", "same"])
    assert single.value == 5.0
    assert math.isnan(single.low)
    empty_cluster = intervals.ratio([1.0, 0.0, 2.0], [1.0, 0.0, 1.0])
    assert empty_cluster.value == 1.5
    assert 1.0 <= empty_cluster.low <= empty_cluster.high <= 2.0
    with pytest.raises(ValueError, match="2 numerators for 1"):
        intervals.ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="1 clusters for 2"):
        intervals.mean([1.0, 2.0], ["a"])


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    whole = intervals.mean(values, resamples=500)
    monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", 700)
    assert intervals.mean(values, resamples=500) == whole


def test_share_picks_its_interval() -> None:
    assert intervals.share([1, 0, 0, 1]) == intervals.wilson(2, 4)
    assert intervals.share([True, False]) == intervals.wilson(1, 2)
    clustered = intervals.share([1, 0, 1, 1], ["p", "p", "q", "q"])
    assert clustered.value == 0.75
    assert (clustered.low, clustered.high) == (0.5, 1.0)
    agreed = intervals.share([1, 1, 1, 1], ["p", "p", "q", "q"])
    assert agreed == intervals.wilson(2, 2)
    assert agreed.low < 1.0
    assert math.isnan(intervals.share([]).value)


def test_paired_shares_picks_its_interval() -> None:
    assert intervals.paired_shares([1, 1, 0], [0, 1, 0]) == intervals.paired_rates(1, 1, 0, 1)
    fractional = intervals.paired_shares([0.5, 1.0, 0.25, 0.5], [0.0, 0.25, 0.25, 0.0])
    assert fractional.value == pytest.approx(0.4375)
    assert 0.0 <= fractional.low < fractional.value < fractional.high
    level = intervals.paired_shares([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert level.value == 0
    assert level.low < 0 < level.high
    assert math.isnan(intervals.paired_shares([], []).value)
    with pytest.raises(ValueError, match="pairs are needed"):
        intervals.paired_shares([1], [])


def test_win_rate_picks_its_interval() -> None:
    assert intervals.win_rate([1.0, 0.5, 0.0, 1.0]) == intervals.wins_and_losses(2, 1, 1)
    mixed = intervals.win_rate([0.25, 0.75, 1.0, 0.5])
    assert mixed.value == pytest.approx(0.625)
    assert 0.25 <= mixed.low < mixed.high <= 1.0
    same = intervals.win_rate([0.25, 0.25, 0.25])
    assert same.low < 0.25 < same.high
    assert math.isnan(intervals.win_rate([]).value)


def test_paired_interval_covers_the_truth_where_the_bootstrap_does_not() -> None:
    """Rare passes on 30 prompts: 95% intervals that hold the true difference (.02) at least 93% of the time."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        a, b = (rng.random(30) < 0.05).astype(int).tolist(), (rng.random(30) < 0.03).astype(int).tolist()
        estimate = intervals.paired_shares(a, b)
        covered += estimate.low <= 0.02 <= estimate.high
    assert covered / 400 >= 0.93


counts = st.integers(0, 200)


@given(counts, counts, counts, counts)
def test_paired_rates_bounds_hold_their_value(both: int, only_a: int, only_b: int, neither: int) -> None:
    estimate = intervals.paired_rates(both, only_a, only_b, neither)
    if both + only_a + only_b + neither:
        assert -1 - 1e-12 <= estimate.low <= estimate.value + 1e-12
        assert estimate.value - 1e-12 <= estimate.high <= 1 + 1e-12
        mirrored = intervals.paired_rates(both, only_b, only_a, neither)
        assert (mirrored.low, mirrored.high) == (pytest.approx(-estimate.high), pytest.approx(-estimate.low))


@given(counts, counts, counts)
def test_wins_and_losses_mirror(wins: int, ties: int, losses: int) -> None:
    estimate, mirrored = intervals.wins_and_losses(wins, ties, losses), intervals.wins_and_losses(losses, ties, wins)
    if wins + ties + losses:
        assert -1e-12 <= estimate.low <= estimate.value + 1e-12 <= estimate.high + 2e-12 <= 1 + 3e-12
        assert (mirrored.low, mirrored.high) == (pytest.approx(1 - estimate.high), pytest.approx(1 - estimate.low))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.integers(0, 5))
def test_bootstrap_bounds_lie_within_the_data(values: list[float], seed: int) -> None:
    estimate = intervals.mean(values, resamples=50, seed=seed)
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert min(values) - slack <= estimate.low <= estimate.high <= max(values) + slack
