"""Scores without ends are log-odds: a pair of them is Bradley and Terry's, in the program and in the view alike."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from store_rows import AT, judgment

from factory import verdicts
from factory.labelling.matchups import choose, parse
from factory.schema import Judgment
from factory.store import Store
from factory.verdicts import Score, from_scores


def reward(key: str, score: float, number: int) -> Judgment:
    return judgment(
        number, judge="rm", candidate_a=key, prompt_key="p", score=score, score_low=None, score_high=None,
        at=AT + timedelta(seconds=number),
    )  # fmt: skip


def test_a_pair_of_rewards_is_bradley_terry() -> None:
    """Rewards 2.5 and 1: sigmoid(1.5) = 0.8176."""
    panel = verdicts.read([reward("a", 2.5, 1), reward("b", 1.0, 2)])
    found = panel.verdict("rm", ("a", "b"))
    assert found is not None
    assert (found.p_a, found.verdict) == (pytest.approx(1 / (1 + math.exp(-1.5))), "a")
    turned = panel.verdict("rm", ("b", "a"))
    assert turned is not None
    assert (turned.p_a, turned.verdict) == (pytest.approx(1 - found.p_a), "b")


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_the_order_of_shares_is_that_of_rewards(one: float, other: float) -> None:
    scores = verdicts.read([reward("a", one, 1), reward("b", other, 2)]).scores["rm"]
    a, b = scores["a"], scores["b"]
    assert a is not None
    assert b is not None
    assert 0 <= a.share <= 1
    if one - other > 1e-6:
        assert a.share > b.share
    assert from_scores(a, b).p_a + from_scores(b, a).p_a == pytest.approx(1)


def test_high_rewards_are_told_apart() -> None:
    """sigmoid(40) and sigmoid(42) are both 1 in floating point; the better answer must still win."""
    panel = verdicts.read([reward("a", 40.0, 1), reward("b", 42.0, 2)])
    found = panel.verdict("rm", ("a", "b"))
    assert found is not None
    assert found.verdict == "b"
    assert found.p_a == pytest.approx(1 / (1 + math.exp(2)))


def test_a_bounded_scale_stays_a_share() -> None:
    assert from_scores(Score(5, 1.0), Score(3, 0.5)).p_a == 0.75


def test_ties_of_rewards_are_by_their_difference() -> None:
    from judged import candidate_of

    group = [candidate_of("a"), candidate_of("b")]
    scores = {row.candidate_a: verdicts.combine_aspects([row]) for row in (reward("a", 40.0, 1), reward("b", 42.0, 2))}
    assert len(choose(group, parse("verifier_ties"), scores, 0)) == 1  # best against worst, no tie
    three = [*group, candidate_of("c")]
    scores["c"] = verdicts.combine_aspects([reward("c", 41.0, 3)])
    assert [(a.key, b.key) for a, b in choose(three, parse("verifier_ties"), scores, 0)] == [("a", "b")]


def test_the_view_says_the_same(tmp_path: Path) -> None:
    rows = [reward("a", 2.5, 1), reward("b", 1.0, 2), reward("c", -900.0, 3)]
    store = Store.open(tmp_path, create=True)
    store.append("judgments", rows)
    panel = verdicts.read(rows)
    found = {(r["candidate_a"], r["candidate_b"]): r for r in store.sql("FROM verdicts").rows()}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    for pair, row in found.items():
        expected = panel.verdict("rm", pair)
        assert expected is not None
        assert (row["p_a"], row["verdict"]) == (pytest.approx(expected.p_a), expected.verdict)
    assert all(r["log_odds"] for r in store.sql("FROM candidate_scores").rows())
