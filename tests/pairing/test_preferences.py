"""From judgments in the store to preferences in it: rows, weights, filters, reasons, and what cannot be paired."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from judged import both, candidate_of, pairwise, pointwise, prompt_of
from paired import JUDGED, NO_LABELS, fill

from factory.faults import FactoryError
from factory.pairing import Filters, LabelRule, pair
from factory.schema import Judgment, Label, Preference
from factory.store import Store


def test_preferences_and_labels_are_written_once(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", lead="v", strategy="all")
    assert (report.prompts, report.candidates, report.failed_candidates, report.pairs) == (2, 6, 1, 4)
    assert (report.preferences, report.written, report.labels, report.desirable) == (2, 2, 5, 1)
    assert report.dropped == {"tie": 2}
    assert report.mean_margin == pytest.approx(0.5)
    rows = {row.rejected_key: row for row in store.rows(Preference)}
    assert rows.keys() == {"b", "c"}
    assert rows["b"].chosen == [{"role": "assistant", "content": "answer a"}]
    assert rows["b"].prompt == prompt_of("Tell me about rivers.").messages
    assert (rows["b"].agreement, rows["b"].judges, rows["c"].agreement, rows["c"].judges) == (0.5, 2, 1.0, 1)
    assert {row.candidate_key: row.label for row in store.rows(Label)} == dict.fromkeys("bcef", False) | {"a": True}
    again = pair(store, run="r", lead="v", strategy="all")
    assert (again.preferences, again.written, again.labels_written) == (2, 0, 0)
    other = pair(store, run="r", lead="v", strategy="best_worst")
    assert (other.preferences, other.written, other.held) == (1, 1, 3)


def test_rows_carry_probability_entropy_and_weight(store: Store) -> None:
    fill(store)
    pair(store, run="r", lead="v", strategy="all", weights="margin")
    for row in store.rows(Preference):
        assert (row.probability, row.margin, row.weight) == (0.75, 0.5, 0.5)
        assert row.entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    pair(store, run="r", judges=["x"], strategy="max_margin", weights="probability", labels=NO_LABELS)
    (row,) = store.rows(Preference, {"strategy": "max_margin"})
    assert row.weight == row.probability == pytest.approx(0.85)


def test_weights_by_consistency_of_the_prompt(store: Store) -> None:
    fill(store)
    keys = [row["prompt_key"] for row in store.read("candidates") if row["key"] == "a"]
    report = pair(store, run="r", lead="v", strategy="all", weights="consistency", consistency={keys[0]: 0.25})
    assert {row.weight for row in store.rows(Preference)} == {0.25}
    assert (report.preferences, report.mean_probability) == (2, 0.75)
    other = pair(store, run="r", lead="v", strategy="random", weights="consistency", consistency={"another": 1.0})
    assert (other.preferences, other.dropped["no_weight"]) == (0, 1)


def test_filters_after_the_strategy_are_counted(store: Store) -> None:
    """Both preferences choose "answer a", the longer; without one of them the other stays."""
    fill(store, long="a")
    balanced = pair(store, run="r", lead="v", strategy="all", filters=Filters(length_balanced=True))
    assert balanced.dropped == {"tie": 2}  # no loss of a pair makes the lengths more alike
    few = pair(store, run="r", lead="v", strategy="all", filters=Filters(per_prompt=1))
    assert (few.preferences, few.dropped) == (1, {"per_prompt": 1, "tie": 2})
    assert few.mean_length_ratio == pytest.approx(math.log(20 / 8))


def test_near_duplicates_are_left_out_of_the_round(store: Store) -> None:
    fill(store)
    report = pair(store, run="r", lead="v", strategy="all", filters=Filters(near_duplicates=0.9))
    assert (report.preferences, report.dropped) == (2, {"tie": 2})  # "answer a" and "answer b" share no trigram
    same = candidate_of("z", "Answer A!")
    store.append("candidates", [same])
    store.append("judgments", [pointwise("v", "z", 1.0)])
    again = pair(store, run="r", lead="v", strategy="all", filters=Filters(near_duplicates=0.9))
    assert (again.preferences, again.dropped) == (2, {"near_duplicate": 3, "tie": 2})


def test_drafts_and_their_revisions(store: Store) -> None:
    """Without any judgment: the revision over its draft, and no critique is an answer."""
    one = prompt_of()
    store.append("prompts", [one])
    steps = [("d", "sample", None), ("k", "critique", "d"), ("r", "revision", "k"), ("e", "sample", None)]
    store.append("candidates", [replace(candidate_of(key), kind=kind, parent=parent) for key, kind, parent in steps])
    report = pair(store, run="r", strategy="draft_revision", lead="nobody", combine="lead")
    assert (report.candidates, report.pairs, report.preferences, report.labels) == (3, 1, 1, 0)
    (row,) = store.rows(Preference)
    assert (row.chosen_key, row.rejected_key, row.margin, row.judges, row.weight) == ("r", "d", 1.0, 0, 1.0)
    assert (row.agreement, row.probability, row.strategy) == (None, None, "draft_revision")
    store.append("judgments", both("x", "d", "r", 0.9, 0.9))
    confirmed = pair(store, run="r", strategy="draft_revision", filters=Filters(confirm=True), labels=NO_LABELS)
    assert (confirmed.preferences, confirmed.dropped) == (0, {"unconfirmed": 1})
    assert pair(store, run="r", kind=["sample", "revision"]).dropped["no_verdict"] == 2


def test_a_model_of_the_judges_is_reported(store: Store) -> None:
    """Three judges on the pairs of twelve prompts; the third is always wrong, and counts against."""
    said = {"x": 0.9, "y": 0.9, "z": 0.1}
    for i in range(12):
        one = prompt_of(f"Tell me about {i}.")
        store.append("prompts", [one])
        store.append("candidates", [candidate_of(f"{i}a", prompt=one), candidate_of(f"{i}b", prompt=one)])
        turn = i % 2 == 0
        store.append(
            "judgments",
            [row for j, p in said.items() for row in both(j, f"{i}a", f"{i}b", *((p, p) if turn else (1 - p, 1 - p)))],
        )
    report = pair(store, run="r", combine="one_coin", labels=NO_LABELS)
    assert report.preferences == 12
    accuracy = {name: value for name, value in report.judge_accuracy.items() if value is not None}
    assert accuracy["x"] > 0.9
    assert accuracy["z"] < 0.1
    assert any("less often than chance" in warning for warning in report.warnings)
    assert all(
        row.chosen_key.endswith("a" if int(row.chosen_key[:-1]) % 2 == 0 else "b") for row in store.rows(Preference)
    )
    assert pair(store, run="r", combine="majority", labels=NO_LABELS).judge_accuracy == {}


def test_a_quarantined_batch_counts_for_nothing(store: Store) -> None:
    fill(store)
    rows = store.rows(Judgment)
    batch = [replace(row, key=f"q{row.key}", judge="q", batch="q1") for row in rows if row.judge == "x"]
    fooled = [
        replace(pairwise("q", "a", f"canary{i}", 0.0, order, canary="empty"), batch="q1")
        for i in range(3)
        for order in ("a", "b")
    ]
    store.append("judgments", batch + fooled)
    with pytest.raises(FactoryError, match="no judge named 'q'"):
        pair(store, run="r", judges=["q"])
    kept = pair(store, run="r", judges=["q"], quarantine=False, labels=NO_LABELS)
    assert (kept.preferences, kept.quarantined) == (1, 0)
    assert pair(store, run="r", lead="v", labels=NO_LABELS).quarantined == 1


def test_that_all_is_in_quarantine_is_said(store: Store) -> None:
    one = prompt_of()
    store.append("prompts", [one])
    store.append("candidates", [candidate_of("a"), candidate_of("b")])
    fooled = [pairwise("q", "a", f"c{i}", 0.0, order, canary="empty") for i in range(3) for order in ("a", "b")]
    store.append("judgments", [replace(row, batch="q1") for row in both("q", "a", "b", 0.9, 0.9) + fooled])
    with pytest.raises(FactoryError, match="all judgments are in quarantine"):
        pair(store, run="r")


def test_reasons_and_preferences_add_up(store: Store) -> None:
    fill(store)
    for strategy in JUDGED:
        report = pair(store, run="r", lead="v", strategy=strategy, filters=Filters(min_margin=0.6))
        assert report.preferences + sum(report.dropped.values()) == report.pairs
        assert report.dropped == {"below_margin": 2, "tie": 2}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "which judge leads: v, x"),
        ({"lead": "w"}, "no judge named 'w'"),
        ({"lead": "v", "strategy": "best_wurst"}, "did you mean 'best_worst'"),
        ({"combine": "meen"}, "did you mean 'mean'"),
        ({"lead": "v", "run": "other"}, "has no judgments"),
        ({"lead": "v", "split": "final"}, "no candidates"),
        ({"strategy": "draft_revision"}, "has no revisions"),
        ({"strategy": "draft_revision", "min_margin": 0.5}, "without asking the judges"),
        ({"strategy": "draft_revision", "weights": "margin"}, "without asking the judges"),
        ({"lead": "v", "filters": Filters(confirm=True)}, "goes by the judges already"),
        ({"lead": "v", "weights": "consistency"}, "go together"),
        ({"lead": "v", "weights": "consitency"}, "did you mean 'consistency'"),
        ({"lead": "v", "labels": LabelRule(by="treshold")}, "did you mean 'threshold'"),
        ({"lead": "v", "labels": LabelRule(quantiles=(0.8, 0.2))}, "the lower first"),
        ({"lead": "v", "labels": LabelRule(threshold=7.0)}, "threshold 7.0 is not between 0 and 1"),
    ],
)
def test_faults_say_what_to_do(store: Store, options: dict[str, Any], told: str) -> None:
    fill(store)
    with pytest.raises(FactoryError, match=told):
        pair(store, **({"run": "r"} | options))
