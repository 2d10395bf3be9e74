"""The self-rewarding judge: points from 0 to 5, by distribution, after reasoning, or as the paper writes it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from judged import completed, matchup_of

from factory.faults import FactoryError
from factory.judges.self_reward import SelfRewardJudge
from factory.schema import Completion, Failure


def test_the_score_is_the_expected_number_of_points() -> None:
    """(0 x .2 + 5 x .6) / .8 = 3.75."""
    judge = SelfRewardJudge()
    (ask,) = judge.asks(matchup_of(b=None))
    assert ask.request.answers == ("0", "1", "2", "3", "4", "5")
    assert (ask.request.sampling.max_tokens, ask.request.sampling.temperature) == (1, 0.0)
    (found,) = judge.read(ask, completed(ask, logprobs={"0": math.log(0.2), "5": math.log(0.6)}))
    assert found.score == pytest.approx(3.75)
    assert (found.score_low, found.score_high, found.aspect) == (0.0, 5.0, "additive-quality")
    assert judge.asks(matchup_of(b=None), [found]) == []


def test_the_rubric_adds_up_one_point_a_step() -> None:
    text = SelfRewardJudge().asks(matchup_of(b=None))[0].request.messages[-1]["content"]
    assert all(f"Step {step}:" in text for step in range(1, 6))
    assert "0: reaches no step" in text


def test_reasoning_first_leads_to_a_score_by_distribution() -> None:
    judge, matchup = SelfRewardJudge(reasoning="first"), matchup_of(b=None)
    (thinking,) = judge.asks(matchup)
    assert (thinking.request.answers, thinking.labels) == ((), {})
    (step,) = judge.read(thinking, completed(thinking, "It names a river.<|im_end|>", finish="length"))
    assert (step.score, step.failure) == (None, None)
    (scoring,) = judge.asks(matchup, [step])
    assert [m["role"] for m in scoring.request.messages] == ["user", "assistant", "user"]
    assert "<|im_end|>" not in scoring.request.messages[1]["content"]
    (found,) = judge.read(scoring, completed(scoring, logprobs={"4": -0.1}))
    assert (found.score, (found.detail or {})["reasoning"]) == (4.0, "It names a river.\N{REPLACEMENT CHARACTER}")
    assert judge.asks(matchup, [step, found]) == []


@pytest.mark.parametrize(("text", "failure"), [("", None), ("x", Failure("timeout"))])
def test_no_reasoning_is_a_failure_and_the_end(text: str, failure: Failure | None) -> None:
    judge, matchup = SelfRewardJudge(reasoning="first"), matchup_of(b=None)
    (ask,) = judge.asks(matchup)
    (step,) = judge.read(ask, completed(ask, text, failure=failure))
    assert step.failure == ("timeout" if failure else "no_reasoning")
    assert judge.asks(matchup, [step]) == []


def test_a_written_judgment_ends_in_its_score() -> None:
    judge = SelfRewardJudge(reasoning="written")
    (ask,) = judge.asks(matchup_of(b=None))
    assert ask.request.messages[-1]["content"].endswith('"Score: <0 to 5>".')
    (found,) = judge.read(ask, completed(ask, "It is about rivers.\nScore: 3"))
    assert (found.score, (found.detail or {})["reasoning"]) == (3.0, "It is about rivers.")
    assert judge.read(ask, completed(ask, "It is fine. 3"))[0].failure == "no_verdict"
    assert judge.read(ask, completed(ask, "It is fine.\nScore: 3", finish="length"))[0].failure == "cut"


def test_samples_are_aspects_so_that_none_replaces_another() -> None:
    judge = SelfRewardJudge(reasoning="written", samples=3, temperature=0.7)
    (ask,) = judge.asks(matchup_of(b=None))
    assert (ask.request.n, ask.request.sampling.temperature) == (3, 0.7)
    found = [
        judge.read(ask, Completion(ask.request, n, text=f"So.\nScore: {n + 2}", finish_reason="stop"))[0]
        for n in range(3)
    ]
    assert [(r.aspect, r.score) for r in found] == [
        ("additive-quality 1", 2.0),
        ("additive-quality 2", 3.0),
        ("additive-quality 3", 4.0),
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"samples": 2}, "needs reasoning: written"),
        ({"samples": 2, "reasoning": "written"}, "needs a temperature above 0"),
        ({"temperature": "warm"}, "temperature: must be a number"),
        ({"temperature": -1}, "temperature: must be a number"),
        ({"reasoning": "after"}, "reasoning: must be none, first, written"),
        ({"constitution": "quality-aspects"}, "must have one principle"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(FactoryError, match=told):
        SelfRewardJudge(**options)
