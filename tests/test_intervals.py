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


@given(st.lists(st.booleans(), max_size=40))
def test_a_value_a_cluster_is_wilsons(values: list[bool]) -> None:
    found = intervals.rate(values, range(len(values)))
    assert found == pytest.approx(intervals.wilson(sum(values), len(values)), nan_ok=True)


def test_copies_of_a_cluster_are_no_evidence() -> None:
    """Each prompt's ten pairs say the same: they are worth no more than one."""
    once = intervals.rate([1, 1, 0, 1, 0, 1], range(6))
    tenfold = intervals.rate(
        [v for v in [1, 1, 0, 1, 0, 1] for _ in range(10)], [g for g in range(6) for _ in range(10)]
    )
    assert tenfold.value == once.value
    assert tenfold.low <= once.low + 0.01
    assert tenfold.high >= once.high - 0.01


def test_one_cluster_or_no_variation_counts_clusters() -> None:
    assert intervals.rate([1] * 50, [0] * 50) == intervals.wilson(1, 1)
    assert intervals.rate([0] * 50, [i // 10 for i in range(50)]) == intervals.wilson(0, 5)
    assert math.isnan(intervals.rate([], []).value)


@pytest.mark.parametrize("groups", [5, 30])
def test_rates_hold_the_truth_as_often_as_they_say(groups: int) -> None:
    """True rate .7, six pairs a prompt with a correlation of .3 within it; 600 draws: 95% but for 2% of noise."""
    held = 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        chance = rng.beta(0.7 * 7 / 3, 0.3 * 7 / 3, size=groups)
        values = (rng.random((groups, 6)) < chance[:, None]).ravel()
        found = intervals.rate(values.tolist(), np.repeat(np.arange(groups), 6).tolist())
        held += found.low <= 0.7 <= found.high
    assert 0.92 <= held / 600 <= 0.985


@pytest.mark.parametrize("answers", [2, 3])
def test_clusters_that_are_all_alike_count_as_one_trial_each(answers: int) -> None:
    """One of so many passes everywhere: what rounding leaves of the variance is no evidence."""
    passed = [True, *[False] * (answers - 1)]
    found = intervals.rate(passed * 12, [i // answers for i in range(12 * answers)])
    assert found == pytest.approx(intervals.wilson(12 / answers, 12))
    gain = intervals.paired_shares([passed] * 12, [[False] * answers] * 12)
    assert gain == pytest.approx(intervals.difference(found, intervals.wilson(0, 12)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_a_rate_is_the_share_to_its_last_digit(found: list[tuple[bool, int]]) -> None:
    values = [passed for passed, _ in found]
    assert intervals.rate(values, [cluster for _, cluster in found]).value == float(np.mean(values))


@pytest.mark.parametrize("sizes", [[1] * 10 + [20] * 2, [50] + [2] * 11, [1000] + [1] * 9])
def test_rates_of_clusters_of_different_sizes_hold_the_truth(sizes: list[int]) -> None:
    """True rate .3, correlation of .1 within a cluster; 300 draws. Counted by their number, they would miss it in 14%,
    26% and 89% of them."""
    rng, missed = np.random.default_rng(0), 0
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(300):
        chance = rng.beta(0.3 * 9, 0.7 * 9, size=len(sizes))
        found = intervals.rate((rng.random(len(clusters)) < chance[clusters]).tolist(), clusters.tolist())
        missed += not found.low <= 0.3 <= found.high
    assert missed / 300 <= 0.07


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
    clustered = ([1, 0, 1, 1], ["p", "p", "q", "q"])
    assert intervals.share(*clustered) == intervals.rate(*clustered)
    scores = intervals.share([0.5, 0.0, 1.0, 1.0], ["p", "p", "q", "q"])
    assert scores.value == 0.625
    assert (scores.low, scores.high) == (0.25, 1.0)
    agreed = intervals.share([1, 1, 1, 1], ["p", "p", "q", "q"])
    assert agreed == intervals.wilson(2, 2)
    assert agreed.low < 1.0
    assert math.isnan(intervals.share([]).value)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_shares_of_single_answers_are_newcombes(pairs: list[tuple[bool, bool]]) -> None:
    cells = (sum(a and b for a, b in pairs), sum(a > b for a, b in pairs), sum(b > a for a, b in pairs))
    found = intervals.paired_shares([[a] for a, _ in pairs], [[b] for _, b in pairs])
    assert found == pytest.approx(intervals.paired_rates(*cells, len(pairs) - sum(cells)), abs=1e-12)


def test_paired_shares_of_several_answers() -> None:
    """Prompts weigh the same; answers that all agree within their prompts are worth no more than one."""
    uneven = intervals.paired_shares([[True, True, False, False], [True]], [[False], [False, False, True, True]])
    assert uneven.value == pytest.approx(0.5)
    assert -1 <= uneven.low < 0.5 < uneven.high <= 1
    once = intervals.paired_shares([[True], [True], [False], [False]] * 5, [[True], [False], [False], [False]] * 5)
    fourfold = intervals.paired_shares(
        [[v] * 4 for v in [True, True, False, False] * 5], [[v] * 4 for v in [True, False, False, False] * 5]
    )
    assert fourfold.value == once.value == 0.25
    assert fourfold.low == pytest.approx(once.low, abs=0.03)
    assert fourfold.high == pytest.approx(once.high, abs=0.03)
    level = intervals.paired_shares([[True, False]] * 3, [[True, False]] * 3)
    assert level.value == 0
    assert level.low < 0 < level.high
    assert math.isnan(intervals.paired_shares([], []).value)
    with pytest.raises(ValueError, match="pairs are needed"):
        intervals.paired_shares([[True]], [])


@pytest.mark.parametrize(("p", "up"), [(0.05, 0.0), (0.05, 0.1), (0.5, 0.1)])
def test_gains_on_few_prompts_hold_the_truth_as_often_as_they_say(p: float, up: float) -> None:
    """Two answers a prompt, correlated by .5 within it, 16 prompts; 600 draws: 95% but for 2% of noise, or more."""
    rng = np.random.default_rng(0)
    missed = {"paired_shares": 0, "rate": 0}
    for _ in range(600):
        chance = rng.beta(p, 1 - p, 16)
        before, after = (rng.random((2, 16)) < c for c in (chance, chance + up * (1 - chance) / (1 - p)))
        gain = intervals.paired_shares(after.T.tolist(), before.T.tolist())
        rate = intervals.rate(before.T.ravel().tolist(), np.repeat(np.arange(16), 2).tolist())
        missed["paired_shares"] += not gain.low <= up <= gain.high
        missed["rate"] += not rate.low <= p <= rate.high
    assert max(missed.values()) / 600 <= 0.07, missed


@pytest.mark.parametrize("answers", [[1] * 12 + [16] * 12, [1000] + [1] * 23])
def test_many_answers_to_some_prompts_make_no_gain_surer(answers: list[int]) -> None:
    """A rare pass (5%, then 7%), each prompt with the same weight: 300 draws, missed in 10% and 20% of them where all
    answers count as trials."""
    rng, missed = np.random.default_rng(0), 0
    for _ in range(300):
        chance = rng.beta(0.05 * 9, 0.95 * 9, len(answers))
        sides = [
            [(rng.random(count) < c).tolist() for count, c in zip(answers, chances, strict=True)]
            for chances in (chance + 0.02 * (1 - chance) / 0.95, chance)
        ]
        gain = intervals.paired_shares(*sides)
        missed += not gain.low <= 0.02 <= gain.high
    assert missed / 300 <= 0.07


def test_means_on_few_prompts_hold_the_truth_as_often_as_they_say() -> None:
    """12 values of a normal; 1,000 draws: 95% but for 2% of noise, where plain percentiles miss 9%."""
    rng = np.random.default_rng(0)
    missed = plain = 0
    for _ in range(1000):
        values = rng.normal(size=12)
        found = intervals.mean(values.tolist(), resamples=500)
        missed += not found.low <= 0 <= found.high
        low, high = np.quantile(values[rng.integers(0, 12, (500, 12))].mean(axis=1), [0.025, 0.975])
        plain += not low <= 0 <= high
    assert missed / 1000 <= 0.07
    assert plain / 1000 > 0.07


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
        a, b = (rng.random(30) < 0.05)[:, None].tolist(), (rng.random(30) < 0.03)[:, None].tolist()
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
