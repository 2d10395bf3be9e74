"""Judges against gold, by hand and with a known truth."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from judged import both, candidate_of, pointwise
from sklearn.metrics import brier_score_loss, cohen_kappa_score

from factory.schema import Candidate, Judgment
from factory.trust.calibration import against, calibrate
from factory.trust.evidence import Evidence, evidence
from factory.trust.gold import Gold, Word
from factory.verdicts import Pair

WORDS: dict[str, Word] = {"a": "b", "b": "a", "tie": "tie"}


def said(chances: list[float]) -> tuple[Evidence, list[Pair]]:
    """One judge and one pair a prompt."""
    pairs = [(f"{n:03}a", f"{n:03}b") for n in range(len(chances))]
    rows: list[Judgment] = []
    candidates: list[Candidate] = []
    for n, (pair, p) in enumerate(zip(pairs, chances, strict=True)):
        rows += both("j", *pair, p, p, prompt_key=f"p{n}")
        candidates += [replace(candidate_of(key), prompt_key=f"p{n}") for key in pair]
    return evidence(rows, candidates), pairs


def test_by_hand() -> None:
    """Gold a a a b tie tie against .9 .8 .5 .7 .9 .5: right, right, tied, wrong; then decided and tied on gold's ties.
    Accuracy (1 + 1 + 1/2 + 0) / 4; Brier (.01 + .04 + .25 + .49) / 4."""
    found, pairs = said([0.9, 0.8, 0.5, 0.7, 0.9, 0.5])
    gold: dict[Pair, Word] = dict(zip(pairs, ["a", "a", "a", "b", "tie", "tie"], strict=True))  # type: ignore[arg-type]
    stats = against(found, "j", gold)
    assert stats.confusion == (2, 1, 1, 1, 1)
    assert stats.accuracy.value == pytest.approx(2.5 / 4)
    assert stats.right_if_decided.value == pytest.approx(2 / 3)
    assert stats.brier.value == pytest.approx(0.79 / 4)
    oracle = cohen_kappa_score(["a", "a", "tie", "a", "a", "tie"], ["a", "a", "a", "b", "tie", "tie"])
    assert stats.cohen_kappa.value == pytest.approx(oracle)
    assert [(step.low, step.verdicts) for step in stats.curve] == [(0.5, 1), (0.7, 1), (0.8, 1), (0.9, 1)]
    assert stats.ece == pytest.approx((0.0 + 0.7 + 0.2 + 0.1) / 4)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["a", "b", "tie"])), min_size=1, max_size=25))
def test_exchanging_a_and_b_changes_nothing(rows: list[tuple[float, Word]]) -> None:
    chances = [p for p, _ in rows]
    found, pairs = said(chances)
    turned, _ = said([1 - p for p in chances])
    gold = dict(zip(pairs, [word for _, word in rows], strict=True))
    one = against(found, "j", gold)
    other = against(turned, "j", {pair: WORDS[word] for pair, word in gold.items()})
    assert other.confusion == one.confusion
    for name in ("accuracy", "right_if_decided", "brier"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), nan_ok=True, abs=1e-9)
    assert other.cohen_kappa.value == pytest.approx(one.cohen_kappa.value, nan_ok=True)


def test_brier_is_scikit_learns_and_a_sound_judge_is_calibrated() -> None:
    rng = random.Random(0)
    chances = [rng.random() for _ in range(3000)]
    found, pairs = said(chances)
    gold: dict[Pair, Word] = {pair: "a" if rng.random() < p else "b" for pair, p in zip(pairs, chances, strict=True)}
    stats = against(found, "j", gold)
    assert stats.brier.value == pytest.approx(brier_score_loss([gold[p] == "a" for p in pairs], chances))
    assert stats.ece < 3 * stats.ece_of_sound < 0.06
    for step in stats.curve:
        assert step.right.low - 0.02 <= step.confidence <= step.right.high + 0.02


def world(seed: int, prompts: int, gold: int) -> tuple[Evidence, Gold]:
    """Models x (better) and y, two answers each a prompt; judge j sees quality with noise and likes y; three people see
    it with less. True win rate of x: P(N(1, 2) > 0) = Phi(1 / sqrt 2) = 0.760."""
    rng = random.Random(seed)
    rows: list[Judgment] = []
    candidates: list[Candidate] = []
    people: dict[str, dict[Pair, Word]] = {"ann": {}, "bob": {}, "cho": {}}
    asked = set(rng.sample(range(prompts), gold))
    for n in range(prompts):
        one, other = rng.sample(["a", "b"], 2)
        quality = {f"{n:04}{one}": 1 + rng.gauss(0, 1), f"{n:04}{other}": rng.gauss(0, 1)}
        pair = (f"{n:04}a", f"{n:04}b")
        model = {f"{n:04}{one}": "x", f"{n:04}{other}": "y"}
        candidates += [replace(candidate_of(key), prompt_key=f"p{n}", model=model[key]) for key in pair]
        edge = quality[pair[0]] - quality[pair[1]]
        biased = 2 * edge + (1.5 if model[pair[0]] == "y" else -1.5) + rng.gauss(0, 0.5)
        p = 1 / (1 + math.exp(-biased))
        rows += both("j", *pair, p, p, prompt_key=f"p{n}")
        rows += [pointwise("v", key, quality[key], low=-9, high=9, prompt_key=f"p{n}") for key in pair]
        for said_by in people.values():
            if n in asked:
                said_by[pair] = "a" if edge > 0 else "b"
    return evidence(rows, candidates), Gold("file", people, {})


def test_what_people_would_say_of_a_model_that_the_judge_dislikes() -> None:
    held = 0
    for seed in range(60):
        found, gold = world(seed, 120, 40)
        rows = {(row.model, row.judge): row.powered for row in calibrate(found, gold).believed}
        one = rows["x", "j"]
        held += one.estimate.low <= 0.7602 <= one.estimate.high
        assert one.judge_only < 0.7
        assert rows["y", "j"].estimate.value == pytest.approx(1 - one.estimate.value)
    assert held >= 52  # 57 of 60 to be expected; fewer than 52 have a chance of 1%
    assert {judge for _, judge in rows} == {"j", "v", "panel"}


def test_the_whole_report() -> None:
    found, gold = world(7, 200, 120)
    report = calibrate(found, gold)
    assert (report.people, report.pairs, report.prompts, report.ties) == (3, 120, 120, 0)
    assert report.people_agree.value == 1.0
    sound = {stats.judge: stats for stats in report.judges}
    assert sound["v"].accuracy.value == 1.0
    assert sound["j"].accuracy.value < 0.95
    tests = {test.judge: test.passes for test in report.alternative}
    assert tests["v"] is True
    limits = {limit.judge: limit for limit in report.thresholds}
    assert limits["v"].threshold is not None
    assert limits["v"].kept.value > 0.95
    assert 0 < report.weights()["j"] < report.weights()["v"] == 1.0
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["judges"][0]["accuracy"][0] == sound["j"].accuracy.value
    assert written["judges"][0]["confusion"]["right"] == sound["j"].confusion.right
    for head in ("Gold from file", "Calibration curve", "Alternative annotator", "What people would say", "confidence"):
        assert head in report.text()


def test_gold_of_the_run_is_not_held_against_itself() -> None:
    found, _ = world(1, 40, 10)
    report = calibrate(found, Gold("v", {"v": {pair: v.verdict for pair, v in found.said["v"].items()}}))
    assert [stats.judge for stats in report.judges] == ["j"]
    assert report.alternative[0].passes is None
    assert "needs 3 people" in report.text()


def test_scores_of_people_power_mean_scores() -> None:
    """People score 1 to 5, the judge's 0..1 stretched. So cov(y, f) / var(f) is 4, w is 4 / (1 + 15 / 45) = 3, and the
    mean is that of all scores of the judge, stretched."""
    candidates = [replace(candidate_of(f"{n:03}"), prompt_key=f"p{n}") for n in range(60)]
    judged = {c.key: (n % 7) / 7 for n, c in enumerate(candidates)}
    found = evidence([pointwise("v", k, s, prompt_key=f"p{int(k)}") for k, s in judged.items()], candidates)
    scores = {key: 1 + 4 * judged[key] for key in list(judged)[:15]}
    (row,) = calibrate(found, Gold("f", {"": {}}, scores)).believed
    assert (row.of, row.model, row.powered.weight) == ("mean score", "m", pytest.approx(3, rel=0.05))
    assert row.powered.estimate.value == pytest.approx(1 + 4 * sum(judged.values()) / 60, abs=0.01)


def test_a_judge_without_a_shared_pair() -> None:
    found, pairs = said([0.9])
    stats = against(found, "j", {("x", "y"): "a"})
    assert stats.pairs == 0
    assert math.isnan(stats.accuracy.value)
    assert stats.row()["ece"] is None
    assert pairs == [("000a", "000b")]
