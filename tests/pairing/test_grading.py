"""Single labels by quantile, and the weights of labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from judged import candidate_of

from factory.pairing.grading import BALANCE, Graded, Scored, by_quantile, by_threshold, quantile, weigh

UNIT = st.floats(0, 1).map(lambda value: round(value, 3))


def scores(**values: float) -> dict[str, Scored]:
    return {key: Scored(value, None, value) for key, value in values.items()}


def labels(low: float, high: float, **values: float) -> dict[str, bool]:
    found = by_quantile([candidate_of(key) for key in values], scores(**values), low, high)
    assert found.dropped["middle"] == len(values) - len(found.graded)
    return {g.candidate.key: g.label for g in found.graded}


def test_the_ends_are_labelled_and_the_middle_is_not() -> None:
    assert labels(0.25, 0.75, a=0.1, b=0.3, c=0.5, d=0.7, e=0.9) == {"a": False, "b": False, "d": True, "e": True}
    assert labels(0.1, 0.9, a=0.1, b=0.3, c=0.5, d=0.7, e=0.9) == {"a": False, "e": True}


def test_where_most_are_alike_only_what_differs_is_labelled() -> None:
    assert labels(0.25, 0.75, a=1.0, b=1.0, c=1.0, d=1.0, e=0.0) == {"e": False}
    assert labels(0.25, 0.75, a=0.0, b=0.0, c=0.0, d=0.0, e=1.0) == {"e": True}
    assert labels(0.25, 0.75, a=0.5, b=0.5, c=0.5) == {}
    assert labels(0.25, 0.75, a=0.0, b=1.0) == {"a": False, "b": True}
    assert labels(0.25, 0.75, a=0.5) == {}


def test_who_has_no_score_has_no_label() -> None:
    candidates = [candidate_of("a"), candidate_of("b"), candidate_of("c", failure="cut")]
    assert by_quantile(candidates, {}, 0.25, 0.75).dropped["no_score"] == 2
    assert by_threshold(candidates, scores(a=0.7, c=1.0), 0.5).dropped == {"no_score": 1}
    assert by_quantile([], {}, 0.25, 0.75).graded == []


@settings(max_examples=200, deadline=None)
@given(st.lists(UNIT, min_size=1, max_size=30), UNIT)
def test_quantiles_are_numpys(values: list[float], q: float) -> None:
    assert quantile(sorted(values), q) == pytest.approx(float(np.quantile(values, q)))


@settings(max_examples=200, deadline=None)
@given(st.lists(UNIT, min_size=1, max_size=20), st.tuples(UNIT, UNIT).filter(lambda q: q[0] < q[1]))
def test_no_desirable_answer_is_below_an_undesirable_one(values: list[float], ends: tuple[float, float]) -> None:
    named = {f"k{i:02d}": value for i, value in enumerate(values)}
    found = by_quantile([candidate_of(key) for key in named], scores(**named), *ends)
    good = [g.score for g in found.graded if g.label]
    bad = [g.score for g in found.graded if not g.label]
    assert not good or not bad or min(good) > max(bad)
    assert all(0 < g.distance <= 1 for g in found.graded)


def graded(*kinds: bool) -> list[Graded]:
    return [
        Graded(candidate_of(f"k{i}"), kind, 0.9 if kind else 0.2, 0.8 if kind else 0.6) for i, kind in enumerate(kinds)
    ]


def test_weights_by_distance_from_where_the_label_turns() -> None:
    """At a threshold of 0.6: 0.9 is 3/4 of the way to 1, 0.3 half of the way to 0, 0.6 none of it."""
    found = by_threshold([candidate_of(k) for k in "abc"], scores(a=0.9, b=0.3, c=0.6), 0.6).graded
    assert weigh(found, "distance") == pytest.approx([0.75, 0.5, 0.0])
    assert [g.label for g in found] == [True, False, True]
    met = {"a": Scored(0.9, False, 0.9), "b": Scored(1.0, True, 1.0)}
    found = by_threshold([candidate_of(k) for k in "ab"], met, 0.5).graded
    assert weigh(found, "distance") == pytest.approx([0.1, 1.0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_both_kinds_weigh_as_kto_asks(kinds: list[bool]) -> None:
    """2402.01306, eq. 8: the desirable weigh 1 to 4/3 times what the undesirable weigh; the larger weight is 1."""
    weights = weigh(graded(*kinds), "balanced")
    good = math.fsum(w for w, kind in zip(weights, kinds, strict=True) if kind)
    bad = math.fsum(w for w, kind in zip(weights, kinds, strict=True) if not kind)
    assert max(weights) == 1.0
    if good and bad:
        assert BALANCE[0] - 1e-9 <= good / bad <= BALANCE[1] + 1e-9
        assert len({round(w, 9) for w, kind in zip(weights, kinds, strict=True) if kind}) == 1
    else:
        assert set(weights) == {1.0}
    assert weigh(graded(*kinds), "none") == [1.0] * len(kinds)
