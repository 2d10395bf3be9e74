"""A plan says what labelling then does."""

from __future__ import annotations

import pytest
from labelled import Program, fill, first_wins

from factory.engines.scripted import ScriptedEngine
from factory.judges.pairwise import PairwiseJudge
from factory.judges.rating import RatingJudge
from factory.labelling import PanelMember, label, plan
from factory.schema import Judgment
from factory.store import Store


def test_a_plan_says_what_labelling_then_does(store: Store) -> None:
    fill(store, prompts=40, failed=True)

    def panel() -> list[PanelMember]:
        return [
            PanelMember("words", Program()),
            PanelMember("rating", RatingJudge(), ScriptedEngine()),
            PanelMember("llm", PairwiseJudge(), ScriptedEngine()),
        ]

    first = plan(store, panel(), run="r")
    assert store.rows(Judgment) == []
    assert [(p.judge, p.matchups, p.held, p.follow_ups, p.at_most) for p in first] == [
        ("words", 121, 0, 0, False), ("rating", 121, 0, 0, False), ("llm", 120, 0, 0, False)
    ]  # fmt: skip
    report = label(store, panel(), run="r")
    assert [p.calls for p in first] == [r.calls for r in report.judges] == [0, 125, 250]
    assert [p.canaries for p in first] == [r.canaries for r in report.judges] == [0, 5, 5]
    assert first[2].tokens > 0
    assert first[2].cost == 0.0
    again = plan(store, panel(), run="r")
    assert [(p.held, p.calls, p.answers) for p in again] == [(120, 0, 0), (125, 0, 125), (250, 0, 250)]


def test_a_plan_without_the_scores_that_choose_says_at_most(store: Store) -> None:
    fill(store, prompts=2, answers=4)
    panel = [PanelMember("words", Program()), PanelMember("llm", PairwiseJudge(), first_wins(), "verifier_ties")]
    assert [(p.matchups, p.at_most) for p in plan(store, panel, run="r", canary_share=0)] == [(8, False), (12, True)]
    label(store, panel, run="r", canary_share=0)
    assert [(p.matchups, p.at_most) for p in plan(store, panel, run="r", canary_share=0)] == [(8, False), (2, False)]


def test_a_plan_counts_the_questions_that_follow(store: Store) -> None:
    fill(store)
    members = [PanelMember("llm", PairwiseJudge(reasoning="first", max_tokens=64), first_wins())]
    (found,) = plan(store, members, run="r", canary_share=0)
    assert (found.matchups, found.calls, found.follow_ups) == (9, 18, 18)


@pytest.mark.parametrize("judge", ["pairwise", "rating", "rubric", "self_reward", "constitutional"])
def test_an_endpoint_that_cannot_go_on_with_an_answer_is_not_asked_to(judge: str) -> None:
    from factory.engines.openai import OpenAIEngine

    plain, goes_on = (OpenAIEngine("m", base_url="http://localhost:9/v1", prefix=how) for how in ("refuse", "continue"))
    assert PanelMember.of(judge, engine=plain).judge.prefix == ""
    assert PanelMember.of(judge, engine=goes_on).judge.prefix != ""
    assert PanelMember.of(judge, engine=plain, options={"prefix": "So: "}).judge.prefix == "So: "
