"""Single labels: by all met, by threshold, by standing and from pairs; what is written of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from judged import both, candidate_of, pointwise
from paired import fill

from factory import verdicts
from factory.pairing import Group, LabelRule, Rule, pair, strategies
from factory.pairing.grading import by_threshold, from_choices
from factory.pairing.sifting import sift
from factory.schema import Candidate, Judgment, Label
from factory.store import Store

# ------------------------------------------------------------------------------------------------- of judged answers


def scored(**scores: float) -> Group:
    rows = [pointwise("v", key, score) for key, score in scores.items()]
    return sift([candidate_of(key) for key in scores], verdicts.read(rows), ["v"], Rule("lead", "v")).group


def graded(candidates: Sequence[Candidate], rows: Sequence[Judgment], rule: Rule, threshold: float) -> list[Any]:
    panel = verdicts.read(rows)
    sifted = sift(candidates, panel, panel.judges(), rule)
    return [(g.candidate.key, g.label, g.score) for g in by_threshold(candidates, sifted.scores, threshold).graded]


def test_labels_by_all_met_else_by_threshold() -> None:
    candidates = [candidate_of(k, failure="cut" if k == "d" else None) for k in "abcde"]
    rows = [pointwise("v", "a", 1.0, met=True), pointwise("v", "b", 0.9, met=False), pointwise("v", "c", None)]
    rows += [pointwise("r", "a", 2.0, low=1, high=5), pointwise("r", "b", 4.0, low=1, high=5)]
    assert graded(candidates, rows, Rule("lead", "v"), 0.5) == [("a", True, 1.0), ("b", False, 0.9)]
    assert graded(candidates, rows, Rule("lead", "r"), 0.5) == [("a", False, 0.25), ("b", True, 0.75)]
    assert graded(candidates, rows, Rule("mean"), 0.7) == [("a", False, 0.625), ("b", True, pytest.approx(0.825))]
    weighted = Rule("weighted", weights={"v": 3.0, "r": 1.0})
    assert graded(candidates, rows, weighted, 0.82) == [("a", False, 0.8125), ("b", True, pytest.approx(0.8625))]


def test_labels_of_a_pairwise_lead_go_by_standing() -> None:
    found = graded([candidate_of("a"), candidate_of("b")], both("x", "a", "b", 0.9, 0.7), Rule("lead", "x"), 0.5)
    assert found == [("a", True, 0.8), ("b", False, pytest.approx(0.2))]


def test_labels_from_pairs_leave_out_what_is_both() -> None:
    found = from_choices(strategies.get("all")(scored(a=0.0, b=0.5, c=1.0), 0))
    assert [(g.candidate.key, g.label) for g in found.graded] == [("a", False), ("c", True)]
    assert found.graded[1].score == pytest.approx((1 + 0.75) / 2)
    assert found.dropped == {"both": 1}


# ---------------------------------------------------------------------------------------------------- into the store


def test_labels_of_one_kind_are_warned_of(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", judges=["x"], labels=LabelRule(threshold=0.0))
    assert (report.labels, report.desirable) == (2, 2)
    assert any("all 2 labels are desirable" in warning for warning in report.warnings)


def test_labels_by_quantile_with_weights(store: Store) -> None:
    """Scores 1 and four of .5: the upper quarter is the one, the others are all alike."""
    fill(store)
    report = pair(store, run="r", lead="v", labels=LabelRule(by="quantile", quantiles=(0.0, 1.0), weights="balanced"))
    assert (report.labels, report.desirable, report.labels_dropped) == (5, 1, {})
    rows = store.rows(Label)
    assert {(row.label, row.weight) for row in rows} == {(True, 1.0), (False, 0.25)}
    assert {row.strategy for row in rows} == {"best_worst"}


def test_a_label_that_weighs_nothing_is_none(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", judges=["x"], labels=LabelRule(threshold=0.15, weights="distance"))
    assert report.labels_dropped == {"no_score": 3, "no_weight": 1}
    assert [(row.candidate_key, row.label) for row in store.rows(Label)] == [("b", True)]
