"""Pairing strategies on small cases worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from judged import both, candidate_of, pointwise

from factory import verdicts
from factory.pairing import Choice, Group, Rule, strategies
from factory.pairing.sifting import sift
from factory.schema import Judgment


def group_of(keys: str, rows: Sequence[Judgment], lead: str = "v") -> Group:
    panel = verdicts.read(rows)
    return sift([candidate_of(key) for key in keys], panel, panel.judges(), Rule("lead", lead)).group


def scored(low: float = 0.0, high: float = 1.0, **scores: float) -> Group:
    return group_of("".join(scores), [pointwise("v", key, s, low=low, high=high) for key, s in scores.items()])


def names(choices: Sequence[Choice]) -> list[str]:
    return [f"{c.chosen.key}>{c.rejected.key}" for c in choices]


def picked(strategy: str, group: Group, seed: int = 0) -> list[str]:
    return names(strategies.get(strategy)(group, seed))


def test_strategies_on_scores() -> None:
    group = scored(a=0.2, b=1.0, c=0.6, d=0.6)
    assert names(strategies.get("all")(group, 0)) == ["b>a", "b>c", "b>d", "c>a", "d>a"]
    assert names(strategies.get("best_worst")(group, 0)) == ["b>a"]
    assert names(strategies.get("max_margin")(group, 0)) == ["b>a"]
    drawn = {names(strategies.get("random")(group, seed))[0] for seed in range(50)}
    assert drawn == {"b>a", "b>c", "b>d", "c>a", "d>a"}


def test_equals_are_drawn_by_seed() -> None:
    group = scored(a=1.0, b=1.0, c=0.0, d=0.0)
    for strategy in ("best_worst", "max_margin"):
        drawn = {names(strategies.get(strategy)(group, seed))[0] for seed in range(50)}
        assert drawn == {"a>c", "a>d", "b>c", "b>d"}


def test_of_equals_the_pair_that_more_judges_saw() -> None:
    rows = [pointwise("v", k, s) for k, s in zip("abcd", (1.0, 1.0, 0.0, 0.0), strict=True)] + both(
        "x", "b", "c", 0.5, 0.5
    )
    group = sift([candidate_of(k) for k in "abcd"], verdicts.read(rows), ["v", "x"], Rule("lead", "v")).group
    for strategy in ("best_worst", "max_margin"):
        assert {names(strategies.get(strategy)(group, seed))[0] for seed in range(20)} == {"b>c"}


def test_best_and_worst_must_have_met() -> None:
    """b has the best record and a the worst, but a was only judged against c."""
    rows = [*both("x", "b", "c", 0.9, 0.9), *both("x", "a", "c", 0.2, 0.2)]
    group = sift([candidate_of(k) for k in "abc"], verdicts.read(rows), ["x"], Rule("lead", "x")).group
    assert group.standing == pytest.approx({"a": 0.2, "b": 0.9, "c": 0.45})
    assert names(strategies.get("best_worst")(group, 0)) == ["b>c"]


def test_nothing_decided_is_nothing_chosen() -> None:
    for strategy in strategies.names():
        assert strategies.get(strategy)(scored(a=1.0, b=1.0), 0) == []


def test_best_over_one_of_the_rest() -> None:
    group = scored(a=0.2, b=1.0, c=0.6, d=0.6)
    assert {picked("best_random", group, seed)[0] for seed in range(50)} == {"b>a", "b>c", "b>d"}
    assert {picked("best_random", scored(a=0.0, b=1.0, c=1.0), seed)[0] for seed in range(50)} == {"b>a", "c>a"}


def test_best_over_the_one_nearest_two_deviations_below_the_mean() -> None:
    """Twenty answers at 0.6, one each at 1, 0.3 and 0: mean 13.3/23 = 0.578, deviation 0.157, so 0.264 is looked for,
    and 0.3 is nearest, not the outlier at 0."""
    rows = {chr(97 + i): 0.6 for i in range(20)} | {"x": 1.0, "y": 0.3, "z": 0.0}
    assert picked("mu_2sigma", scored(**rows)) == ["x>y"]
    assert picked("best_worst", scored(**rows)) == ["x>z"]
    assert picked("mu_2sigma", scored(a=0.0, b=0.5, c=1.0)) == ["c>a"]  # with few, that is the worst


def test_rewards_count_on_their_own_scale() -> None:
    """Rewards without ends: 20 at 0, 8, -7, -30: mean -1.26, deviation 6.6, so -14.5 is looked for: -7 is 7.5 away,
    -30 is 15.5 away. As shares (r / (1 + |r|)) the three below would lie 0.44 and 0.48 below the mean: all alike."""
    keys = "abcdefghijklmnopqrstuvw"
    values = dict.fromkeys(keys[:20], 0.0) | {"u": 8.0, "v": -7.0, "w": -30.0}
    rows = [pointwise("v", key, s, low=None, high=None) for key, s in values.items()]  # type: ignore[arg-type]
    group = group_of(keys, rows)
    assert group.rewards["w"] == -30.0
    assert picked("mu_2sigma", group) == ["u>v"]


def test_two_judges_have_no_common_scale() -> None:
    rows = [pointwise("v", key, s, low=1, high=5) for key, s in {"a": 5.0, "b": 1.0}.items()]
    rows += [pointwise("w", "a", 0.0), pointwise("w", "b", None)]
    panel = verdicts.read(rows)
    group = sift([candidate_of("a"), candidate_of("b")], panel, ["v", "w"], Rule("mean")).group
    assert group.scores == group.rewards == {"a": 0.5, "b": 0.0}


def test_a_moderate_margin_between_good_answers() -> None:
    """Margins of scores are halved differences doubled again: c over b is 0.3, d over a is 1."""
    assert picked("moderate_margin", scored(a=0.0, b=0.6, c=0.9)) == ["c>b"]
    assert picked("moderate_margin", scored(a=0.5, b=0.55, c=0.6)) == ["c>a"]  # the others are below 0.1
    assert picked("moderate_margin", scored(a=0.0, b=1.0)) == []


def test_a_tie_with_the_best_is_as_good() -> None:
    """a and b pass, c and d fail: every pass over every fail. e in the middle is in neither tier."""
    group = scored(a=1.0, b=1.0, c=0.0, d=0.0, e=0.5)
    assert picked("tie_aware", group) == ["a>c", "a>d", "b>c", "b>d"]
    assert picked("best_worst", group)[0] in {"a>c", "a>d", "b>c", "b>d"}


def test_who_ties_with_both_ends_is_in_no_tier() -> None:
    rows = [*both("v", "a", "b", 0.9, 0.9), *both("v", "a", "c", 0.5, 0.5), *both("v", "b", "c", 0.5, 0.5)]
    assert picked("tie_aware", group_of("abc", rows)) == ["a>b"]


@pytest.mark.parametrize("strategy", strategies.names())
def test_ties_and_silence_make_no_pair(strategy: str) -> None:
    assert picked(strategy, scored(a=1.0, b=1.0, c=1.0)) == []
    assert picked(strategy, group_of("abc", [])) == []
    assert picked(strategy, Group([], {}, {}, {})) == []


@pytest.mark.parametrize("strategy", ["best_worst", "best_random", "mu_2sigma", "moderate_margin"])
def test_a_winner_with_the_worse_record_is_not_chosen(strategy: str) -> None:
    """b beats a, but lost to all others, whom a beat: by their records b is no better than a."""
    rows = [*both("v", "a", "b", 0.2, 0.2)]
    rows += [row for other in "cd" for row in both("v", "a", other, 0.7, 0.7) + both("v", "b", other, 0.3, 0.3)]
    assert "b>a" not in picked(strategy, group_of("abcd", rows))


def test_every_strategy_names_its_source() -> None:
    """A paper's number, or that it is our own."""
    for name in strategies.names():
        said = strategies.get(name).__doc__ or ""
        assert any(
            mark in said for mark in ("2203.", "2502.", "2401.", "2310.", "2504.", "2212.", "Our own", "measured")
        )
