"""Rubrics of a prompt's own: the weighted share of criteria met, faults counted where they are absent."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from judged import completed, matchup_of, prompt_of
from test_rating_aspects import row

from factory.faults import ConfigError, FactoryError
from factory.judges import CannotAsk
from factory.judges.criteria import RubricJudge, criteria_of
from factory.schema import Matchup
from factory.verdicts import combine_aspects

RUBRIC = [
    {"text": "Names a river.", "weight": 5},
    {"text": "Gives its length.", "weight": 2},
    {"text": "Is rude.", "weight": -3},
    {"text": "Counts for nothing.", "weight": 0},
]


def asked_of(rubric: Any = RUBRIC) -> Matchup:
    return matchup_of(b=None, prompt=replace(prompt_of(), rubric=rubric))


def test_the_score_is_the_weighted_share_of_criteria_met() -> None:
    """Met with .9, .5 and, of the fault, .2: (5 x .9 + 2 x .5 + 3 x .8) / 10 = .79."""
    judge = RubricJudge()
    asks = judge.asks(asked_of())
    assert [ask.aspect for ask in asks] == ["1 Names a river.", "2 Gives its length.", "3 Is rude."]
    assert {ask.request.answers for ask in asks} == {("Yes", "No")}
    rows = []
    for ask, p in zip(asks, (0.9, 0.5, 0.2), strict=True):
        (found,) = judge.read(ask, completed(ask, logprobs={"Yes": math.log(p), "No": math.log(1 - p)}))
        rows.append(row(ask, found))
    score = combine_aspects(rows)
    assert score is not None
    assert score.value == pytest.approx(0.79)
    assert [(r.detail or {})["weight"] for r in rows] == [5, 2, 3]
    assert [(r.detail or {})["fault"] for r in rows] == [False, False, True]


@given(
    st.lists(st.floats(-10, 10).filter(lambda w: abs(w) > 0.01), min_size=1, max_size=6),
    st.data(),
)
def test_a_rubric_score_stays_within_0_and_1_and_its_ends_are_reached(
    weights: list[float], data: st.DataObject
) -> None:
    judge = RubricJudge(criteria=[{"text": f"c{i}", "weight": w} for i, w in enumerate(weights)])
    asks = judge.asks(matchup_of(b=None))
    best = [
        row(a, judge.read(a, completed(a, "Yes" if w > 0 else "No"))[0]) for a, w in zip(asks, weights, strict=True)
    ]
    worst = [
        row(a, judge.read(a, completed(a, "No" if w > 0 else "Yes"))[0]) for a, w in zip(asks, weights, strict=True)
    ]
    some = [row(a, judge.read(a, completed(a, data.draw(st.sampled_from(["Yes", "No"]))))[0]) for a in asks]
    values = [score.value for rows in (best, worst, some) if (score := combine_aspects(rows)) is not None]
    assert values[:2] == [pytest.approx(1.0), pytest.approx(0.0)]
    assert -1e-9 <= values[2] <= 1 + 1e-9


def test_text_answers_are_yes_or_no_and_nothing_else() -> None:
    judge = RubricJudge(max_tokens=4)
    ask = judge.asks(asked_of())[0]
    assert judge.read(ask, completed(ask, "Yes."))[0].score == 1.0
    assert judge.read(ask, completed(ask, "(No)"))[0].score == 0.0
    for text in ("yes", "Yes and no", "Not yes", "Maybe", "Yes, it does"):
        assert judge.read(ask, completed(ask, text))[0].failure == "no_verdict"


def test_an_implicit_rubric_is_one_grade() -> None:
    judge = RubricJudge(aggregation="implicit")
    (ask,) = judge.asks(asked_of())
    text = ask.request.messages[-1]["content"]
    assert "1. (+5) Names a river." in text
    assert "3. (-3) Is rude." in text
    assert "Counts for nothing" not in text
    (found,) = judge.read(ask, completed(ask, logprobs={"6": math.log(0.5), "8": math.log(0.5)}))
    assert (found.score, found.score_low, found.score_high) == (pytest.approx(7.0), 0.0, 9.0)


def test_all_criteria_in_one_call_stand_or_fail_alone() -> None:
    judge = RubricJudge(together=True)
    (ask,) = judge.asks(asked_of())
    found = judge.read(ask, completed(ask, "C1: Yes\n\nC3: No\nC2: perhaps"))
    assert [(r.score, r.failure) for r in found] == [(1.0, None), (None, "no_verdict"), (1.0, None)]
    in_json = RubricJudge(together=True, form="json")
    (ask,) = in_json.asks(asked_of())
    assert ask.request.json_schema is not None
    assert ask.request.json_schema["required"] == ["C1", "C2", "C3"]
    found = in_json.read(ask, completed(ask, '{"C1": "No", "C2": "Yes"}'))
    assert [(r.score, r.failure) for r in found] == [(0.0, None), (1.0, None), (None, "no_verdict")]


@pytest.mark.parametrize(
    ("rubric", "kind"), [(None, "no_rubric"), ([], "no_rubric"), ([{"weight": 1}], "bad_rubric"), ("x", "bad_rubric")]
)
def test_a_prompt_without_a_usable_rubric_fails_by_name(rubric: Any, kind: str) -> None:
    with pytest.raises(CannotAsk) as caught:
        RubricJudge().asks(asked_of(rubric))
    assert caught.value.kind == kind


def test_one_rubric_for_all_prompts_from_a_list_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(RUBRIC))
    (tmp_path / "r.yaml").write_text("- {text: Names a river., weight: 5}\n- Gives its length.\n")
    assert len(RubricJudge(criteria=str(tmp_path / "r.json")).asks(asked_of(None))) == 3
    assert len(RubricJudge(criteria=str(tmp_path / "r.yaml")).asks(asked_of(None))) == 2
    with pytest.raises(FactoryError, match="cannot be read"):
        RubricJudge(criteria=str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"1\.text"):
        RubricJudge(criteria=["fine", {"weight": 2}])


def test_the_forms_in_which_rubrics_are_published() -> None:
    assert criteria_of(["Be brief."]) == (("Be brief.", 1.0),)
    rar = [{"title": "Energy", "description": "Essential Criteria: says so.", "weight": 5}]
    assert criteria_of(rar) == (("Essential Criteria: says so.", 5.0),)
    assert criteria_of([{"criterion": "Warns.", "points": -8, "tags": ["x"]}]) == (("Warns.", -8.0),)
    with pytest.raises(ConfigError) as caught:
        criteria_of(
            [
                3,
                {"text": "x", "weight": "much"},
                {"text": " "},
                {"text": "x", "colour": 1},
                {"text": "x", "weight": True},
            ]
        )
    assert len(caught.value.faults) == 5
    for wrong in (None, "text", {}, [], [{"text": "x", "weight": 0}], ["x"] * 100):
        with pytest.raises(ConfigError):
            criteria_of(wrong)


def test_criteria_are_cleaned_as_every_foreign_text() -> None:
    ask = RubricJudge().asks(asked_of([{"text": "Says <|im_end|> hello", "weight": 1}]))[0]
    assert "<|im_end|>" not in ask.request.messages[-1]["content"]
