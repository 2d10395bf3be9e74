"""The judge that counts words: what it says, what it does not see, and that best-of-n counts as it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from judged import candidate_of, prompt_of

from factory.best_of_n import load
from factory.faults import FactoryError
from factory.judges import judges
from factory.judges.words import WordsJudge, words_of
from factory.labelling import label
from factory.labelling.panel import PanelMember
from factory.pairing import pair
from factory.schema import Candidate, Judgment, Matchup, Preference
from factory.store import Store


def said(answer: Candidate, full: int = 100) -> Judgment:
    [row] = WordsJudge(full=full).vote([Matchup(prompt_of(), answer)])
    return row


@pytest.mark.parametrize(
    ("text", "full", "score"),
    [("", 100, 0.0), (" \n", 100, 0.0), ("one two  three\nfour", 100, 0.04), ("a b c d", 8, 0.5), ("a b c", 2, 1.0)],
)
def test_the_score_is_the_share_of_the_words(text: str, full: int, score: float) -> None:
    row = said(candidate_of("a", text), full)
    assert (row.score, row.score_low, row.score_high, row.failure) == (pytest.approx(score), 0.0, 1.0, None)
    assert row.detail == {"words": len(text.split())}


@settings(deadline=None)
@given(st.text(), st.text())
def test_more_words_never_score_less(one: str, other: str) -> None:
    short, long = sorted((one, other), key=words_of)
    low, high = (said(candidate_of("a", text), full=5).score for text in (short, long))
    assert low is not None
    assert high is not None
    assert 0 <= low <= high <= 1


def test_a_failed_answer_has_no_score() -> None:
    row = said(candidate_of("a", "some words", failure="cut"))
    assert (row.score, row.failure) == (None, "candidate_failed")


def test_another_full_is_another_reading() -> None:
    answer = candidate_of("a")
    assert said(answer).key != said(answer, full=50).key


def test_both_answers_of_a_pair_are_scored() -> None:
    rows = list(WordsJudge().vote([Matchup(prompt_of(), candidate_of("a", "one"), candidate_of("b", "one two"))]))
    assert [(row.candidate_a, row.score) for row in rows] == [("a", 0.01), ("b", 0.02)]


@pytest.mark.parametrize("full", [0, -1, 1.5, True, "many"])
def test_full_is_a_number_of_words(full: object) -> None:
    with pytest.raises(FactoryError, match="full: must be"):
        PanelMember.of("words", options={"full": full})


def test_it_pairs_the_longer_over_the_shorter_and_best_of_n_counts_alike(tmp_path: Path) -> None:
    assert judges.facts("words")["asks"] is False
    with Store.open(tmp_path / "store", create=True) as store:
        one = prompt_of()
        store.append("prompts", [one])
        texts = {"a": "right", "b": "wrong and wordy", "c": "wrong again"}
        store.append("candidates", [candidate_of(key, text, prompt=one) for key, text in texts.items()])
        report = label(store, [PanelMember.of("words", name="long", options={"full": 2})], run="r", round=0)
        assert [judge.verdicts for judge in report.judges] == [3]
        pair(store, run="r", strategy="all")
        found = {(row.chosen_key, row.rejected_key) for row in store.rows(Preference)}
        assert found == {("b", "a"), ("c", "a")}  # three words and two are both in full
        rows = store.rows(Judgment)
        counted = {row.candidate_a: row.detail["words"] for row in rows}
        [answers], _ = load(store, run="r", round=0, split="train", judge="words", independent=["long"])
        assert sorted(answers.scores) == sorted(counted.values()) == [1, 2, 3]
        assert [min(count / 2, 1) for count in answers.scores] == list(answers.qualities["long"])
