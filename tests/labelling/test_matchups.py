"""Which pairs and answers judges see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st
from judged import candidate_of, prompt_of
from labelled import Program, fill, first_wins, panel_of

from factory.faults import FactoryError
from factory.judges.pairwise import PairwiseJudge
from factory.labelling import PanelMember, label, matchups
from factory.schema import Candidate, Judgment
from factory.store import Store
from factory.verdicts import Score

ANSWERS = [candidate_of(k, prompt=prompt_of()) for k in "abcd"]


SCORES = {"a": Score(1, 1.0), "b": Score(0.5, 0.5), "c": Score(0.5, 0.5), "d": Score(0, 0.0)}


def chosen(choice: str, candidates: Sequence[Candidate] = ANSWERS, scores: Any = SCORES, seed: int = 0) -> list[str]:
    found = matchups.choose(candidates, matchups.parse(choice), scores, seed)
    return [a.key + b.key for a, b in found]


def test_choices_of_matchups() -> None:
    assert chosen("all") == ["ab", "ac", "ad", "bc", "bd", "cd"]
    assert chosen("against_best") == ["ab", "ac", "ad"]
    assert chosen("verifier_ties") == ["ad", "bc"]
    assert len(chosen("verifier_ties:1")) == 1
    assert len(chosen("random:2")) == 2
    assert chosen("random:99") == chosen("all")
    assert len({tuple(chosen("random:2", seed=seed)) for seed in range(30)}) > 5


def test_all_tied_is_all_pairs_and_no_scores_is_none() -> None:
    assert chosen("verifier_ties", scores=dict.fromkeys("abcd", Score(1, 1.0))) == chosen("all")
    assert chosen("verifier_ties", scores={}) == []
    assert chosen("against_best", scores={"a": None}) == []


def test_failed_and_equal_answers_are_in_no_pair() -> None:
    odd = [candidate_of("a", "x"), candidate_of("b", " x\n"), candidate_of("c", "y"), candidate_of("d", failure="cut")]
    assert chosen("all", odd) == ["ac", "bc"]


@given(
    st.permutations(ANSWERS), st.sampled_from(["all", "against_best:2", "verifier_ties", "random:2"]), st.integers(0, 9)
)
def test_a_choice_does_not_depend_on_the_order_of_candidates(order: list[Candidate], choice: str, seed: int) -> None:
    assert chosen(choice, order, seed=seed) == chosen(choice, seed=seed)


@pytest.mark.parametrize("choice", ["random", "random:", "random:0", "random:-1", "random:x", "all:٣", "al"])
def test_a_wrong_choice_is_told(choice: str) -> None:
    with pytest.raises(FactoryError):
        matchups.parse(choice)


def test_a_panel_asks_the_model_about_what_the_verifier_leaves_open(store: Store) -> None:
    fill(store, prompts=2, answers=4)
    engine = first_wins()
    panel = [PanelMember("words", Program()), PanelMember("llm", PairwiseJudge(), engine, matchups="verifier_ties")]
    report = label(store, panel, run="r", canary_share=0)
    assert report.judges[1].matchups == 2  # best against worst of both prompts: lengths differ, so nothing is tied
    rows = [row for row in store.rows(Judgment) if row.judge == "llm"]
    assert {(row.candidate_a, row.candidate_b) for row in rows} == {("00-0", "00-3"), ("01-0", "01-3")}


def test_a_member_may_see_a_draw_of_the_prompts(store: Store) -> None:
    fill(store)
    report, rows = panel_of(store, PanelMember("llm", PairwiseJudge(), first_wins(), prompts=1))
    assert len({row.prompt_key for row in rows}) == 1
    again, more = panel_of(store, PanelMember("llm", PairwiseJudge(), first_wins(), prompts=1))
    assert {row.key for row in more} == {row.key for row in rows}
    assert (again.calls, again.matchups) == (0, report.matchups)
