"""The verifier's judgments: scores, detail, failures, keys, canaries."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from factory.judges import judges
from factory.judges.verifier import READER, VerifierJudge
from factory.schema import Candidate, Judgment, Matchup, Message, Prompt, digest, now

GOOD = "bread rises because yeast makes gas inside the dough."


def prompt(constraints: Any) -> Prompt:
    asked = [Message(role="user", content="Tell me why it rises.")]
    return Prompt(key="p", messages=asked, split="train", group="g", constraints=constraints, at=now())


def candidate(text: str, key: str = "c1", **columns: Any) -> Candidate:
    return Candidate(
        key=key, run="r", round=2, prompt_key="p", split="train", model="m", text=text, at=now(), **columns
    )


def judged(constraints: Any, text: str, **columns: Any) -> Judgment:
    [judgment] = VerifierJudge().vote([Matchup(prompt(constraints), candidate(text, **columns))])
    return judgment


TWO = [{"kind": "lower_case"}, {"kind": "sentences", "count": 2}]


def test_score_is_the_share_of_constraints_met() -> None:
    judgment = judged(TWO, GOOD)
    assert (judgment.score, judgment.score_low, judgment.score_high) == (0.5, 0.0, 1.0)
    assert judgment.detail["met"] == [True, False]
    assert judgment.detail["by_kind"] == {"lower_case": 1.0, "sentences": 0.0}
    assert judgment.detail["all_met"] is False
    assert judgment.detail["substance"] is True
    assert judgment.failure is None
    assert (judgment.kind, judgment.run, judgment.round, judgment.candidate_a) == ("pointwise", "r", 2, "c1")
    assert (judgment.candidate_b, judgment.verdict, judgment.p_a) == (None, None, None)


def test_all_met() -> None:
    judgment = judged(TWO, GOOD + " heat sets it.")
    assert judgment.score == 1.0
    assert judgment.detail["all_met"] is True


def test_another_floor_is_another_reading() -> None:
    usual, stricter = VerifierJudge(), VerifierJudge(least=9)
    assert usual.reader != stricter.reader
    shown = [Matchup(prompt(TWO), candidate(GOOD + " heat sets it."))]
    assert next(usual.vote(shown)).key != next(stricter.vote(shown)).key


def test_without_substance_the_score_is_zero_and_the_share_is_kept() -> None:
    judgment = judged([{"kind": "end_phrase", "phrase": "That is all."}], "That is all.")
    assert judgment.score == 0.0
    assert judgment.detail["share"] == 1.0
    assert judgment.detail["substance"] is False
    assert judgment.detail["all_met"] is False


def test_the_same_kind_twice_is_averaged_by_kind() -> None:
    twice = [{"kind": "required_words", "words": ["yeast"]}, {"kind": "required_words", "words": ["sugar"]}]
    assert judged(twice, GOOD).detail["by_kind"] == {"required_words": 0.5}


@pytest.mark.parametrize(
    ("constraints", "columns", "failure"),
    [
        (None, {}, "no_constraints"),
        ([], {}, "no_constraints"),
        (TWO, {"failure": "timeout"}, "candidate_failed"),
        ([{"kind": "haiku"}], {}, "bad_constraints"),
        ("lower_case", {}, "bad_constraints"),
    ],
)
def test_failures_are_judgments(constraints: Any, columns: dict[str, Any], failure: str) -> None:
    judgment = judged(constraints, GOOD, **columns)
    assert judgment.failure == failure
    assert judgment.score is None
    assert judgment.score_high is None


def test_key_names_what_was_judged() -> None:
    assert judged(TWO, GOOD).key == digest("r", 2, "verifier", "c1", None, None, "", None, READER)
    assert judged(TWO, GOOD).key == judged(TWO, "other text").key
    assert judged(TWO, GOOD).key != judged(TWO, GOOD, key="c2").key


def test_a_pair_gives_a_judgment_for_each() -> None:
    pair = Matchup(prompt(TWO), candidate(GOOD, "c1"), candidate("NO.", "c2"), canary="colon")
    first, second = VerifierJudge("rules").vote([pair])
    assert [j.candidate_a for j in (first, second)] == ["c1", "c2"]
    assert [j.canary for j in (first, second)] == [False, True]
    assert second.canary_name == "colon"
    assert first.judge == "rules"


@pytest.mark.parametrize("text", ["", ":", "Thought process:", "choose A", "Tell me why it rises."])
def test_canaries_do_not_pass(text: str) -> None:
    [judgment] = VerifierJudge().vote(
        [Matchup(prompt([{"kind": "max_words", "count": 50}]), candidate(text), canary="x")]
    )
    assert judgment.score == 0.0
    assert judgment.canary


def test_deterministic() -> None:
    first, second = judged(TWO, GOOD), judged(TWO, GOOD)
    assert replace(first, at=second.at) == second


def test_the_floor_can_be_set() -> None:
    [strict] = VerifierJudge(least=30).vote([Matchup(prompt(TWO), candidate(GOOD))])
    assert strict.score == 0.0
    [lax] = VerifierJudge(least=1).vote([Matchup(prompt([{"kind": "lower_case"}]), candidate("yeast."))])
    assert lax.score == 1.0


def test_registered() -> None:
    assert judges.get("verifier") is VerifierJudge
    assert judges.facts("verifier") == {"asks": False}
