"""Several aspects: in one call or one each, with weights, in JSON, with a reference answer."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from judged import AT, completed, matchup_of, prompt_of

from factory.judges.rating import RatingJudge
from factory.judges.rubric import load
from factory.schema import Ask, Judgment, Reading, Request, digest
from factory.verdicts import combine_aspects

ASPECTS = ["instruction-following", "truthfulness", "honesty", "helpfulness"]


def row(ask: Ask, found: Reading) -> Judgment:
    """A reading as the runner keeps it."""
    fields = {n: getattr(found, n) for n in ("aspect", "score", "score_low", "score_high", "detail", "failure")}
    return Judgment(
        key=digest(found.aspect), run="r", judge="j", kind="pointwise", prompt_key="p",
        candidate_a=ask.matchup.a.key, at=AT, **fields,
    )  # fmt: skip


def asked(request: Request) -> str:
    """A hash of all that a request without tools was, before requests had any."""
    parts = asdict(request)
    assert parts.pop("tools") == ()
    return digest(parts)


def test_the_default_question_is_the_one_that_kept_calls_answer() -> None:
    (ask,) = RatingJudge().asks(matchup_of(b=None))
    assert asked(ask.request) == "a4674d0dd3c36ef252b9ae5a32cb4146"


def test_the_bundled_aspects_serve_both_judges() -> None:
    constitution = load("quality-aspects")
    for question in ("rating", "comparison"):
        assert [p.name for p in constitution.choose([], question)] == ASPECTS
    assert all(sorted(p.scale) == [1, 2, 3, 4, 5] for p in constitution.principles)


def test_one_call_for_all_aspects_gives_a_reading_for_each() -> None:
    judge = RatingJudge(constitution="quality-aspects", together=True)
    (ask,) = judge.asks(matchup_of(b=None))
    assert (ask.request.answers, ask.request.prefix) == ((), "")
    text = ask.request.messages[-1]["content"]
    assert all(f"Aspect {name}:" in text and f"{name}: <number from 1 to 5>" in text for name in ASPECTS)
    found = judge.read(
        ask, completed(ask, "truthfulness: 2\n\nhelpfulness: 5\nhonesty: great\ninstruction-following: 4/5")
    )
    assert [(r.aspect, r.score, r.failure) for r in found] == [
        ("instruction-following", 4.0, None),
        ("truthfulness", 2.0, None),
        ("honesty", None, "no_verdict"),
        ("helpfulness", 5.0, None),
    ]
    assert combine_aspects([row(ask, r) for r in found]) is None
    assert judge.asks(matchup_of(b=None), found) == []


def test_together_in_json_has_a_field_for_each_aspect() -> None:
    judge = RatingJudge(constitution="quality-aspects", together=True, form="json")
    (ask,) = judge.asks(matchup_of(b=None))
    assert ask.request.json_schema is not None
    assert ask.request.json_schema["required"] == ASPECTS
    found = judge.read(ask, completed(ask, '{"instruction-following": 4, "truthfulness": 9, "helpfulness": 1}'))
    assert [(r.score, r.failure) for r in found] == [(4, None), (None, "no_verdict"), (None, "no_verdict"), (1, None)]


def test_one_aspect_in_json() -> None:
    judge = RatingJudge(form="json")
    (ask,) = judge.asks(matchup_of(b=None))
    assert ask.request.json_schema is not None
    assert ask.request.json_schema["properties"] == {"score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}}
    assert judge.read(ask, completed(ask, '{"score": 4}'))[0].score == 4.0
    assert judge.read(ask, completed(ask, "4"))[0].failure == "no_verdict"


def test_aspects_count_by_their_weight(tmp_path: Path) -> None:
    """Shares of the scales .75 and 0 with weights 3 and 1: .5625."""
    file = tmp_path / "two.yaml"
    file.write_text(
        "name: two\nsource: own\nprinciples:\n"
        "- {name: help, source: own, weight: 3.0, rating: 'Is it helpful?', scale: {1: a, 2: b, 3: c, 4: d, 5: e}}\n"
        "- {name: truth, source: own, rating: 'Is it so?', scale: {0: wrong, 9: right}}\n"
    )
    judge = RatingJudge(constitution=str(file))
    help_, truth = judge.asks(matchup_of(b=None))
    rows = [
        row(help_, judge.read(help_, completed(help_, "4"))[0]),
        row(truth, judge.read(truth, completed(truth, "0"))[0]),
    ]
    score = combine_aspects(rows)
    assert score is not None
    assert score.share == pytest.approx(0.5625)
    assert (rows[0].detail or {})["weight"] == 3.0
    assert "weight" not in (rows[1].detail or {})


def test_a_reference_answer_is_shown_and_noted() -> None:
    matchup = matchup_of(b=None, prompt=replace(prompt_of(), reference="To the sea."))
    judge = RatingJudge(reference=True)
    (ask,) = judge.asks(matchup)
    assert "<<reference answer" in ask.request.messages[-1]["content"]
    (found,) = judge.read(ask, completed(ask, logprobs={"5": math.log(0.9)}))
    assert (found.score, (found.detail or {})["reference"]) == (5.0, True)
