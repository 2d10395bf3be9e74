"""The rating judge: the expected score over the scale, or a text that is exactly one score."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from judged import completed, matchup_of

from factory.faults import ConfigError, FactoryError
from factory.judges.rating import RatingJudge
from factory.judges.rubric import load
from factory.schema import Failure, Reading


@pytest.fixture(scope="module")
def judge() -> RatingJudge:
    return RatingJudge()


def reading(judge: RatingJudge, text: str = "", **rest: object) -> Reading:
    (ask,) = judge.asks(matchup_of(b=None))
    (found,) = judge.read(ask, completed(ask, text, **rest))  # type: ignore[arg-type]
    return found


def test_the_score_is_the_expected_value(judge: RatingJudge) -> None:
    """(.1 x 1 + .2 x 3 + .5 x 5) / .8 = 4."""
    found = reading(judge, logprobs={"1": math.log(0.1), "3": math.log(0.2), "5": math.log(0.5)})
    assert found.score == pytest.approx(4.0)
    assert (found.score_low, found.score_high, found.failure) == (1.0, 5.0, None)
    assert found.detail == {"by": "logprobs", "mass": 0.8}


def test_too_little_mass_is_a_failure(judge: RatingJudge) -> None:
    found = reading(judge, "5", logprobs={"5": math.log(0.4)})
    assert (found.failure, found.score) == ("low_mass", None)


@pytest.mark.parametrize(
    "text", ["4", "4.", "[[4]]", "Rating: 4", "Score: 4", "4/5", "The rating is 4", "(4)", "**4**"]
)
def test_a_text_that_is_exactly_one_score(judge: RatingJudge, text: str) -> None:
    assert reading(judge, text).score == 4.0


@pytest.mark.parametrize(
    "text", ["", "0", "6", "10", "4.5", "-4", "4 5", "4-5", "4/10", "four", "5 out of 10", "1 2 3 4 5", "³"]
)
def test_any_other_text_is_a_failure(judge: RatingJudge, text: str) -> None:
    found = reading(judge, text)
    assert (found.failure, found.score) == ("no_verdict", None)


def test_a_failed_call_is_a_failed_reading(judge: RatingJudge) -> None:
    assert reading(judge, "5", failure=Failure("http_500")).failure == "http_500"


@settings(max_examples=1500, deadline=None)
@given(st.one_of(st.text(max_size=30), st.text("0123456789/.-[]() \nRating:", max_size=10)))
def test_no_text_raises_or_makes_up_a_score(text: str) -> None:
    judge = RatingJudge()
    (ask,) = judge.asks(matchup_of(b=None))
    (found,) = judge.read(ask, completed(ask, text))
    if found.failure is None:
        digits = [c for c in text.replace("/5", "", 1) if c.isdigit()] or ["5"]
        assert digits == [str(int(found.score or 0))]
    else:
        assert found.score is None


def test_one_question_for_each_aspect_with_the_scale_spelled_out(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(
        "name: two\nsource: own\nprinciples:\n"
        "- {name: help, source: own, rating: 'Is it helpful?', scale: {1: useless, 2: useful}}\n"
        "- {name: truth, source: own, rating: 'Is it so?', scale: {0: wrong, 9: right}}\n"
    )
    judge = RatingJudge(constitution=str(file))
    asks = judge.asks(matchup_of(b=None))
    assert [ask.aspect for ask in asks] == ["help", "truth"]
    assert [ask.request.answers for ask in asks] == [("1", "2"), ("0", "9")]
    assert "1: useless\n2: useful" in asks[0].request.messages[-1]["content"]
    only = RatingJudge(constitution=str(file), aspects=["truth"])
    assert [ask.aspect for ask in only.asks(matchup_of(b=None))] == ["truth"]


def test_every_fault_of_a_constitution_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("name: bad\nprinciples:\n- {name: x, source: s, rating: 'Is it?', scale: {12: a}}\ncolour: red\n")
    with pytest.raises(ConfigError) as caught:
        load(str(file))
    told = " ".join(caught.value.faults)
    assert all(word in told for word in ("source", "principles.0", "colour"))
    assert str(file) in caught.value.text()
    with pytest.raises(FactoryError, match="cannot read constitution"):
        load(str(tmp_path / "none.yaml"))


def test_the_bundled_constitution_serves_both_judges() -> None:
    constitution = load("instruction-following")
    assert constitution.choose([], "comparison")
    assert constitution.choose([], "rating")
    assert constitution.source
