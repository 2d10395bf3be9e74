"""Policies measured and compared by the real store and verifier and a scripted engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import store_rows
from evaluated import BAD, GOOD, PROMPTS, FakeScorer, measure, policy, prompt

from factory.engines.scripted import Rule, ScriptedEngine
from factory.evaluation import compare, measures
from factory.evaluation.likelihoods import Item
from factory.faults import FactoryError
from factory.schema import (
    Judgment,
    PolicyReport,
    Sampling,
    digest,
)
from factory.stats import intervals
from factory.store import Store


def test_two_policies_measured_and_compared(store: Store) -> None:
    """The start passes on topics 0-1, the policy on 0-4: gain 3/8; on 3 prompts better, on 5 equal: win rate .6875."""
    start = measure(store, policy("start", 2), 0, scorer=FakeScorer())
    report = measure(store, policy("p1", 5), 1, scorer=FakeScorer())
    assert (start.prompts, start.answers, start.failures) == (PROMPTS, PROMPTS, 0)
    assert start.pass_rate == intervals.wilson(2, 8)
    assert (start.win_rate, start.gain, start.baseline) == (None, None, "")
    assert start.kl_sequence is not None
    assert tuple(start.kl_sequence) == (0.0, 0.0, 0.0)
    assert report.pass_rate == intervals.wilson(5, 8)
    assert report.score == intervals.wilson(5, 8)
    assert report.gain == intervals.paired_rates(2, 3, 0, 3)
    assert report.win_rate == intervals.wins_and_losses(3, 5, 0)
    assert report.baseline == "start"
    assert dict(report.by_constraint) == {"end_phrase": intervals.wilson(5, 8)}


def test_a_round_that_trained_nothing_gains_exactly_nothing(store: Store) -> None:
    """The same policy gives the same answers: no interval of chance is about that."""
    measure(store, policy("start", 2), 0, n=2)
    report = measure(store, policy("start", 2), 1, n=2)
    assert (report.gain, report.win_rate) == (measures.NOTHING, measures.EVEN)
    assert (report.length_controlled, report.win_rate_anytime, report.gain_anytime) == (
        measures.EVEN, measures.EVEN, measures.NOTHING,
    )  # fmt: skip
    assert compare(store, run="r", round=1, baseline_round=0) == (measures.EVEN, measures.NOTHING)
    assert report.pass_rate == measure(store, policy("start", 2), 0, n=2).pass_rate
    apart = measure(store, policy("start", 2), 2, n=2, sampling=Sampling(temperature=0.5))
    assert apart.gain is not None
    assert apart.gain.low < 0 < apart.gain.high  # other answers of the same policy


def test_the_same_answers_without_grades_have_no_gain(store: Store) -> None:
    measure(store, policy("start", 2), 0, split="final")
    report = measure(store, policy("start", 2), 1, split="final")
    assert (report.gain, report.win_rate, report.gain_anytime) == (None, None, None)
    assert compare(store, run="r", round=1, baseline_round=0, split="final") == (None, None)


def test_lengths_kl_and_relevance(store: Store) -> None:
    """13 words when passing, 10 else: KL .5 nats a word, relevance 1 nat a word."""
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 5), 1, scorer=FakeScorer())
    words = (5 * 13 + 3 * 10) / 8
    assert report.words is not None
    assert report.words.value == pytest.approx(words)
    assert report.tokens is not None
    assert report.tokens.value > 0
    assert report.kl_sequence is not None
    assert report.kl_sequence.value == pytest.approx(0.5 * words)
    assert report.kl_token is not None
    assert report.kl_token.value == pytest.approx(0.5)
    assert report.relevance is not None
    assert report.relevance.value == pytest.approx(1.0)
    assert report.distinct_2 == pytest.approx(12 / (5 * 12 + 3 * 9))  # all texts share the same pairs


def test_answers_are_scored_in_the_context_that_they_were_sampled_in() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    asked = replace(prompt(1), tools=tools)
    answer = replace(store_rows.candidate(1), text="It rains.", finish_reason="length")
    assert Item.of(asked, answer) == (asked.messages, "It rains.", False, tuple(tools))
    plain = Item.of(prompt(1), replace(answer, finish_reason="stop"))
    assert (plain.ended, plain.tools) == (True, ())


def test_the_start_policy_is_not_scored_against_itself(store: Store) -> None:
    scorer = FakeScorer()
    measure(store, policy("start", 2), 0, scorer=scorer)
    assert scorer.asked == [("start", 2 * PROMPTS)]
    measure(store, policy("p1", 2), 1, scorer=scorer)
    assert scorer.asked[1:] == [("p1", PROMPTS), ("start", 2 * PROMPTS)]


def test_only_the_first_prompts_are_scored_when_asked_so(store: Store) -> None:
    scorer = FakeScorer()
    report = measure(store, policy("start", 2), 0, scorer=scorer, score_limit=3)
    assert scorer.asked == [("start", 6)]
    assert report.answers == PROMPTS
    assert report.relevance is not None


def test_without_a_scorer_likelihoods_stay_unmeasured(store: Store) -> None:
    report = measure(store, policy("start", 2), 0)
    assert (report.kl_sequence, report.kl_token, report.relevance) == (None, None, None)
    assert report.pass_rate is not None


def test_a_failed_answer_does_not_pass_and_is_counted(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 8, failing=7), 1, scorer=FakeScorer())
    assert (report.answers, report.failures) == (8, 1)
    assert report.pass_rate == intervals.wilson(7, 8)
    assert report.by_constraint["end_phrase"] == intervals.wilson(7, 8)
    assert report.win_rate == intervals.wins_and_losses(5, 2, 1)  # lost where the start gave some answer
    assert report.words is not None
    assert report.words.value == 13.0


def test_verdicts_are_stored_once_under_the_verifiers_name(store: Store) -> None:
    first = measure(store, policy("start", 2), 0)
    again = measure(store, policy("start", 2), 0)
    assert again == first
    judgments = store.rows(Judgment)
    assert len(judgments) == PROMPTS
    assert {judgment.judge for judgment in judgments} == {"verifier"}
    assert sum(judgment.score or 0.0 for judgment in judgments) == 2.0


def test_nothing_is_asked_twice_and_other_seeds_are_not_mixed_in(store: Store) -> None:
    engine = policy("start", 2)
    first = measure(store, engine, 0, seed=1)
    asked = engine.asked
    measure(store, engine, 0, seed=2)
    assert engine.asked == 2 * asked
    assert measure(store, engine, 0, seed=1) == first
    assert engine.asked == 2 * asked
    assert first.answers == PROMPTS


def test_several_samples(store: Store) -> None:
    """Sample 0 passes everywhere, sample 1 nowhere: half pass in every prompt, and against the same half win."""
    rules = [Rule(reply=lambda request, sample: GOOD if sample == 0 else BAD)]
    measure(store, ScriptedEngine("start", rules=rules), 0, n=2)
    report = measure(store, ScriptedEngine("p1", rules=rules), 1, n=2)
    assert report.answers == 2 * PROMPTS
    assert report.pass_rate is not None
    assert report.pass_rate.value == 0.5
    assert report.win_rate is not None
    assert report.win_rate.value == 0.5
    assert report.gain is not None
    assert report.gain.value == 0.0


def test_limit_takes_the_first_by_key(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 5), 1, limit=3)
    first = sorted(digest(i) for i in range(PROMPTS))[:3]
    passed = sum(1 for i in range(5) if digest(i) in first)
    assert (report.prompts, report.answers) == (3, 3)
    assert report.pass_rate == intervals.wilson(passed, 3)
    assert report.gain is not None


def test_prompts_without_constraints_have_no_pass_rate(store: Store) -> None:
    report = measure(store, policy("start", 2), 0, split="final", scorer=FakeScorer())
    assert (report.pass_rate, report.score, dict(report.by_constraint)) == (None, None, {})
    assert report.words is not None
    assert report.relevance is not None


def test_compare_reads_the_store_alone(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    measure(store, policy("p1", 5), 1)
    measure(store, policy("p2", 4), 2)
    found = compare(store, run="r", round=2, baseline_round=1)
    assert found.gain == intervals.paired_rates(4, 0, 1, 3)
    assert found.win_rate == intervals.wins_and_losses(0, 7, 1)


def test_a_round_that_holds_other_answers_too_is_not_taken_for_the_baseline(store: Store) -> None:
    """Two baselines under one run's name, the first of them again (nothing is asked anew), and one asked otherwise."""
    one, other, ours = policy("A", 2), policy("B", 7), policy("p1", 5)
    first = measure(store, one, 0) and measure(store, ours, 1, baseline_engine=one)
    second = measure(store, other, 0) and measure(store, ours, 1, baseline_engine=other)
    again = measure(store, one, 0) and measure(store, ours, 1, baseline_engine=one)
    assert (first.gain, first.baseline) == (intervals.paired_rates(2, 3, 0, 3), "A")
    assert (second.gain, second.baseline) == (intervals.paired_rates(5, 0, 2, 1), "B")
    assert again == first
    with pytest.raises(FactoryError, match="round 0 of run 'r' has no answers"):
        measure(store, ours, 1, baseline_engine=one, sampling=Sampling(temperature=0.5))


def test_what_cannot_be_measured_is_said(store: Store) -> None:
    with pytest.raises(FactoryError, match="no prompts in the split 'train'"):
        measure(store, policy("start", 2), 0, split="train")
    with pytest.raises(FactoryError, match="round 0 of run 'r' has no answers") as caught:
        measure(store, policy("p1", 2), 1)
    assert caught.value.todo == "evaluate round 0 on heldout first"


def test_policies_in_the_store_are_named_from_it(store: Store) -> None:
    folder = store.folder / "runs" / "r" / "round-1" / "policy"
    folder.mkdir(parents=True)
    report = measure(store, policy(str(folder), 2), 0)
    assert report.policy == "runs/r/round-1/policy"


def test_reports_survive_json(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 5), 1, scorer=FakeScorer())
    assert PolicyReport.from_json(report.to_json()) == report
