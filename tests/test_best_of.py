"""Which of a prompt's answers is learnt: the best that is good enough, by chance among equals, and all else counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, strategies as st

from factory.schema import Label, now
from factory.training.best_of import best
from train.config import BestSpec


def label(prompt: str, answer: str, score: float | None, desirable: bool = True) -> Label:
    return Label(
        key=f"{prompt}{answer}", run="r", prompt=[{"role": "user", "content": prompt}],
        completion=[{"role": "assistant", "content": answer}], label=desirable, prompt_key=prompt,
        candidate_key=f"{prompt}{answer}", score=score, at=now(),
    )  # fmt: skip


ROWS = [
    label("p", "a", 0.4, False), label("p", "b", 0.9), label("p", "c", 0.7),
    label("q", "a", 0.2, False), label("q", "b", 0.1, False),
    label("r", "a", 0.6), label("r", "b", 0.6), label("r", "c", 0.5),
    label("s", "a", 0.55),
]  # fmt: skip


def taken(wanted: BestSpec, rows: list[Label] = ROWS, seed: int = 0) -> list[str]:
    return [row.key for row in best(rows, wanted, seed).rows]


def test_the_best_answer_to_each_prompt_is_taken_and_the_rest_is_counted() -> None:
    found = best(ROWS, BestSpec())
    assert [row.prompt_key for row in found.rows] == ["p", "r", "s"]
    assert found.rows[0].key == "pb"
    assert found.to_json() == {
        "prompts": 4, "answers": 9, "tied": 1, "single": 1, "without": {"no answer passed": 1}, "taken": 3,
    }  # fmt: skip


def test_ties_are_one_by_chance_all_or_none() -> None:
    assert {taken(BestSpec(), seed=seed)[1] for seed in range(30)} == {"ra", "rb"}
    assert taken(BestSpec()) == taken(BestSpec(), list(ROWS))
    assert sorted(taken(BestSpec(ties="all"))) == ["pb", "ra", "rb", "sa"]
    found = best(ROWS, BestSpec(ties="skip"))
    assert [row.key for row in found.rows] == ["pb", "sa"]
    assert found.without == Counter({"no answer passed": 1, "several answers are the best": 1})


def test_a_least_score_and_answers_that_did_not_pass() -> None:
    found = best(ROWS, BestSpec(min_score=0.58))
    assert [row.prompt_key for row in found.rows] == ["p", "r"]
    assert found.without == Counter({"no answer passed": 1, "no answer reaches min_score": 1})
    assert taken(BestSpec(passing=False))[:2] == ["pb", "qa"]
    assert taken(BestSpec(passing=False, min_score=0.8)) == ["pb"]


def test_a_score_at_the_least_is_enough_whatever_its_rounding() -> None:
    rows = [label("p", "a", 0.1 + 0.2), label("q", "a", 0.3 - 1e-15)]
    assert taken(BestSpec(min_score=0.3), rows) == ["pa", "qa"]


def test_the_best_that_passed_is_taken_though_one_that_did_not_scores_more() -> None:
    assert taken(BestSpec(), [label("p", "a", 0.9, False), label("p", "b", 0.6)]) == ["pb"]


def test_labels_without_scores_rank_by_what_they_say() -> None:
    rows = [label("p", "a", None, False), label("p", "b", None), label("q", "a", None, False)]
    assert taken(BestSpec(), rows) == ["pb"]
    assert taken(BestSpec(passing=False), rows) == ["pb", "qa"]


def test_an_answer_without_a_score_is_not_compared_with_those_that_have_one() -> None:
    assert taken(BestSpec(), [label("p", "a", None), label("p", "b", 0.1)]) == ["pb"]
    found = best([label("p", "a", None), label("p", "b", 0.9, False)], BestSpec())
    assert (found.rows, found.without) == ([], Counter({"no answer that passed has a score": 1}))


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
ROW = st.builds(
    lambda prompt, number, score, good: label(prompt, str(number), score, good),
    st.sampled_from("pqr"), st.integers(0, 9), SCORES, st.booleans(),
)  # fmt: skip
SPECS = st.builds(
    BestSpec, min_score=SCORES, passing=st.booleans(), ties=st.sampled_from(["one", "all", "skip"])
)  # fmt: skip


@given(st.lists(ROW, max_size=20, unique_by=lambda row: row.key), SPECS, st.randoms())
def test_every_prompt_gives_or_is_counted(rows: list[Label], wanted: BestSpec, random: Random) -> None:
    found = best(rows, wanted)
    assert len({row.prompt_key for row in found.rows}) + found.without.total() == found.prompts
    assert found.answers == len(rows)
    for row in found.rows:
        assert row.label or not wanted.passing
        others = [each for each in rows if each.prompt_key == row.prompt_key and (each.label or not wanted.passing)]
        assert row.score is None or all(each.score is None or each.score <= row.score for each in others)
    again = list(rows)
    random.shuffle(again)
    assert {row.key for row in best(again, wanted).rows} == {row.key for row in found.rows}


@pytest.mark.parametrize("fault", [{"min_score": 1.5}, {"min_score": True}, {"ties": "first"}, {"passing": 3}])
def test_what_is_no_setting_is_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fault))):
        BestSpec(**fault)  # type: ignore[arg-type]


def test_text_does_not_decide() -> None:
    """The order of two that are tied hangs on their keys and the seed alone."""
    told = [replace(row, completion=[{"role": "assistant", "content": "x" * 500}]) for row in ROWS]
    assert taken(BestSpec(), told) == taken(BestSpec())
