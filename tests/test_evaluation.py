"""Evaluation on the real store, verifier and scripted engine; scoring on a tiny model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import store_rows

from factory import crash
from factory.engines.scripted import Rule, ScriptedEngine
from factory.evaluation import compare, evaluate, measures
from factory.evaluation.answers import Baseline
from factory.evaluation.judged import is_independent, labellers_of
from factory.evaluation.likelihoods import NEUTRAL, Item, ModelScorer
from factory.evaluation.measures import Graded, Scored
from factory.evaluation.reporting import Evidence, report_of
from factory.faults import FactoryError
from factory.judges import votes
from factory.labelling.panel import PanelMember
from factory.schema import (
    Candidate,
    Judgment,
    Logp,
    Matchup,
    PolicyReport,
    Prompt,
    Reading,
    Request,
    Sampling,
    digest,
    now,
)
from factory.stats import intervals
from factory.store import Store

GOOD = "Quiet rivers carry northern glass towards distant harbours every winter. That is all."
BAD = "Quiet rivers carry northern glass towards distant harbours every winter."
PROMPTS = 8


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with eight held-out prompts that ask for an end phrase, and a final one without constraints."""
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.append("prompts", [prompt(i) for i in range(PROMPTS)])
        opened.append("prompts", [prompt(99, split="final", constraints=None)])
        yield opened


def prompt(
    i: int, *, split: str = "heldout", constraints: object = ({"kind": "end_phrase", "phrase": "That is all."},)
) -> Prompt:
    messages = [{"role": "user", "content": f"Tell me of topic {i}. End with: That is all."}]
    wanted = None if constraints is None else list(constraints)  # type: ignore[call-overload]
    return Prompt(key=digest(i), messages=messages, split=split, group=str(i), constraints=wanted, at=now())


def topic(request: Request) -> int:
    return int(str(request.messages[-1]["content"]).split("topic ")[1].split(".")[0])


def policy(name: str, passing: int, *, failing: int | None = None) -> ScriptedEngine:
    """A policy that passes on the first `passing` topics and, if asked to, fails on one."""
    rules = [Rule(reply=lambda request, sample: GOOD if topic(request) < passing else BAD)]
    if failing is not None:
        rules.insert(0, Rule(match=f"topic {failing}\\.", fail="refused"))
    return ScriptedEngine(name, rules=rules)


class FakeScorer:
    """By rule: -1 nat a word under the start, -.5 under any other policy, -2 after the neutral prompt."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
        self.asked.append((policy, len(items)))
        return [self._one(policy, item) for item in items]

    def _one(self, policy: str, item: Item) -> Scored:
        words = len(item.text.split())
        each = -2.0 if item.messages == NEUTRAL else -1.0 if policy == "start" else -0.5
        return Scored(each * words, words)


def measure(store: Store, engine: ScriptedEngine, round_: int, **options: object) -> PolicyReport:
    settings: dict[str, object] = {"split": "heldout", "start": "start", "baseline_round": 0 if round_ else None}
    return evaluate(store, run="r", round=round_, policy=engine.identity.model, engine=engine, **(settings | options))  # type: ignore[arg-type]


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


# ------------------------------------------------------------------------------------------------------ real scoring


def items() -> list[Item]:
    """Answers of several lengths, an empty one, a cut one."""
    asked = [[{"role": "user", "content": text}] for text in ("Tell me of rivers.", "Tell me of bread and music.")]
    return [
        Item(asked[0], "Rivers run to the sea."),
        Item(asked[0], "The better answer is A. That is all.", ended=False),
        Item(asked[1], ""),
        Item(asked[1], "Bread, music and glass in three sentences."),
        Item(NEUTRAL, "Rivers run to the sea."),
    ]


def by_hand(folder: Path, item: Item) -> Scored:
    """Sum of log-softmax over the answer's tokens, by the model's own forward on one unpadded row."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = tokenizer.apply_chat_template(item.messages, tokenize=False, add_generation_prompt=True)
    before = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(item.text, add_special_tokens=False)["input_ids"] if item.text else []
    answer = [*answer, *([tokenizer.convert_tokens_to_ids("<|im_end|>")] if item.ended else [])]
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *answer]])).logits[0].double().log_softmax(-1)
    total = sum(float(logits[len(before) - 1 + i, token]) for i, token in enumerate(answer))
    return Scored(total, len(answer))


def test_scores_are_the_models_own(store: Store, tiny_model: Path) -> None:
    found = ModelScorer(store, device="cpu", dtype="float32").score(str(tiny_model), items())
    for score, item in zip(found, items(), strict=True):
        expected = by_hand(tiny_model, item)
        assert score.tokens == expected.tokens
        assert score.logprob == pytest.approx(expected.logprob, rel=1e-4)
    assert found[2].tokens == 1  # the end token alone


def test_scores_are_kept_and_no_model_is_loaded_for_them(
    store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = ModelScorer(store, device="cpu", dtype="float32")
    first = scorer.score(str(tiny_model), items())
    assert len(store.rows(Logp)) == len(items())
    import train.policy

    monkeypatch.setattr(train.policy, "load_policy", None)
    assert scorer.score(str(tiny_model), items()) == first
    assert scorer.score(str(tiny_model), []) == []


def test_a_scoring_that_was_cut_off_gives_the_same_numbers(
    tmp_path: Path, store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its first batch, then gone on with: bit for bit what an uninterrupted pass gives."""
    import train.logps

    monkeypatch.setitem(train.logps.DEFAULT_BATCH_TOKENS, "cpu", 24)
    scorer = ModelScorer(store, device="cpu", dtype="float32")
    with Store.open(tmp_path / "whole", create=True) as other:
        whole = ModelScorer(other, device="cpu", dtype="float32").score(str(tiny_model), items())

    def kill(name: str) -> None:
        if name == "evaluate.after_scores":
            raise InterruptedError(name)

    with monkeypatch.context() as patch:
        patch.setattr(crash, "point", kill)
        with pytest.raises(InterruptedError):
            scorer.score(str(tiny_model), items())
    assert 0 < len(store.rows(Logp)) < len(items())
    assert scorer.score(str(tiny_model), items()) == whole


def test_a_real_policy_is_measured(store: Store, tiny_model: Path) -> None:
    """Random weights pass nothing and are about nothing; the start is at no distance from itself."""
    from factory.engines.transformers import TransformersEngine

    engine = TransformersEngine(str(tiny_model), device="cpu", dtype="float32")
    sampling = Sampling(max_tokens=12)
    scorer = ModelScorer(store, device="cpu", dtype="float32")
    report = evaluate(
        store,
        run="real",
        round=0,
        policy=str(tiny_model),
        split="heldout",
        engine=engine,
        start=str(tiny_model),
        sampling=sampling,
        scorer=scorer,
        limit=4,
    )
    engine.close()
    assert report.answers == 4
    assert report.pass_rate == intervals.wilson(0, 4)
    assert report.relevance is not None
    assert abs(report.relevance.value) < 1.0
    assert report.kl_sequence is not None
    assert report.kl_sequence.value == 0.0


# ---------------------------------------------------------------------------------------- health, slices, other judges


def test_the_report_tells_how_the_policy_is(store: Store) -> None:
    """All answers share the same ten words, half of them followed by three more; none is broken."""
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 5), 1, scorer=FakeScorer())
    assert report.self_bleu is not None
    assert report.self_bleu > 0.7
    assert {name: share.value for name, share in report.broken.items()} == {
        "empty": 0.0, "loop": 0.0, "copy": 0.0, "degenerate": 0.0, "refuse": 0.0
    }  # fmt: skip
    assert report.entropy is not None
    assert report.entropy.value == pytest.approx(0.5)  # minus the scorer's nats a word
    assert report.kl_on == "policy"
    assert report.kl3_token is None  # the fake keeps no tokens
    assert report.distinct_1 is not None
    assert report.distinct_3 is not None
    by = {(part.by, part.name): part for part in report.slices}
    assert by["source", "unknown"].prompts == PROMPTS
    assert by["source", "unknown"].pass_rate == report.pass_rate
    assert by["prompt words", "to 10"].win_rate == report.win_rate
    assert report.near_trained == 0
    assert report.independent is None


def test_intervals_that_allow_for_looks_are_wider_the_more_looks() -> None:
    """200 prompts: the policy passes on the first 120, the baseline on the first 80."""

    def graded(passing: int) -> list[Graded]:
        return [Graded(str(i), 0, "a b", 2, score=float(i < passing), passed=i < passing) for i in range(200)]

    def report(look: int) -> PolicyReport:
        prompts = [replace(prompt(i), key=str(i)) for i in range(200)]
        return report_of(Evidence("p", "heldout", prompts, graded(120), Baseline("s", graded(80), []), None, look=look))

    first, third = report(1), report(3)
    assert first.gain == third.gain == intervals.paired_rates(80, 40, 0, 80)
    assert first.win_rate_anytime is not None
    assert first.win_rate_anytime.value == pytest.approx(0.6)
    for wider, narrower in ((third.gain_anytime, first.gain_anytime), (first.gain_anytime, first.gain)):
        assert wider is not None
        assert narrower is not None
        assert wider.value == pytest.approx(narrower.value)
        assert wider.low < narrower.low
        assert wider.high > narrower.high
    assert (first.look, third.look) == (1, 3)


class OtherTokens(FakeScorer):
    """The policy's tokenizer makes a token of a word, the start's two."""

    def _one(self, policy: str, item: Item) -> Scored:
        found = super()._one(policy, item)
        split = found.tokens * (2 if policy == "start" else 1)
        return found._replace(tokens=split, by_token=(found.logprob / split,) * split)


def test_a_policy_with_another_tokenizer_is_measured_but_for_kl(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    report = measure(store, policy("p1", 5), 1, scorer=OtherTokens())
    assert (report.kl_sequence, report.kl_token, report.kl3_sequence, report.kl_on) == (None, None, None, "")
    assert report.entropy is not None
    assert report.relevance is not None
    assert report.scored == PROMPTS


def test_tempered_answers_give_a_log_ratio_unless_there_are_probes(store: Store) -> None:
    """At temperature .8 the answers themselves are scored; with probes, one more answer at 1 to each of 3 prompts."""
    tempered, scorer = Sampling(temperature=0.8, top_p=0.9), FakeScorer()
    measure(store, policy("start", 2), 0, sampling=tempered)
    without = measure(store, policy("p1", 5), 1, sampling=tempered, scorer=scorer)
    assert (without.kl_on, without.scored) == ("tempered", PROMPTS)
    engine = policy("p1", 5)
    found = measure(store, engine, 1, sampling=tempered, scorer=scorer, probes=3)
    assert (found.kl_on, found.scored) == ("policy", 3)
    assert engine.asked == 3  # the rest was held
    assert found.relevance == without.relevance
    assert found.pass_rate == without.pass_rate
    probes = [c for c in store.rows(Candidate, {"run": "r", "round": 1}) if c.kind == "probe"]
    assert len(probes) == 3
    assert compare(store, run="r", round=1, baseline_round=0).gain == without.gain
    plain = measure(store, policy("p2", 5), 2, scorer=scorer, probes=3)
    assert (plain.kl_on, plain.scored) == ("policy", PROMPTS)  # not tempered: no probe is asked for


def test_margins_are_of_the_baseline_s_better_and_worse_answers(store: Store) -> None:
    """Of every prompt sample 0 passes (13 words) and sample 1 fails (10): under the policy half a nat a word, under the
    start one: shifts 6.5 and 5, margin 1.5."""
    rules = [Rule(reply=lambda request, sample: GOOD if sample == 0 else BAD)]
    measure(store, ScriptedEngine("start", rules=rules), 0, n=2)
    report = measure(store, ScriptedEngine("p1", rules=rules), 1, n=2, scorer=FakeScorer())
    assert report.implicit_pairs == PROMPTS
    found = {name: estimate.value for name, estimate in report.implicit.items()}
    assert found == pytest.approx(
        {
            "margin": 1.5,
            "accuracy": 1.0,
            "chosen": -6.5,
            "rejected": -5.0,
            "chosen_shift": 6.5,
            "rejected_shift": 5.0,
        }
    )


class Likes:
    """A pairwise judge that votes for the answer with more words."""

    kind = "pairwise"
    reader = "1"

    def __init__(self, name: str = "likes") -> None:
        self.name = name

    def vote(self, matchups: Iterable[Matchup]) -> Iterator[Judgment]:
        for m in matchups:
            assert m.b is not None
            more = len(m.a.text.split()) - len(m.b.text.split())
            reading = Reading(verdict="a" if more > 0 else "b", p_a=1.0 if more > 0 else 0.0)
            yield votes.judgment(self, m.a, reading, b=m.b)  # type: ignore[arg-type]


def test_another_judge_compares_with_the_baseline(store: Store) -> None:
    """The start passes (and is longer) on topics 0-1, the policy on 1-4: 3 longer, 1 shorter, 4 the same text."""
    measure(store, policy("start", 2), 0)
    rules = [Rule(reply=lambda request, sample: GOOD if 1 <= topic(request) < 5 else BAD)]
    member = PanelMember("likes", Likes())  # type: ignore[arg-type]
    report = measure(store, ScriptedEngine("p1", rules=rules), 1, judges=[member], labelled_by={"verifier": ""})
    [said] = report.judged
    assert said.win_rate == intervals.wins_and_losses(3, 4, 1)
    assert (said.judge, said.comparisons, said.ties, said.failures, said.flips) == ("likes", 8, 4, 0, 0)
    assert said.independent is True
    assert said.length_controlled is not None
    assert report.independent is True
    assert PolicyReport.from_json(report.to_json()) == report


def test_a_failed_answer_loses_before_every_judge(store: Store) -> None:
    measure(store, policy("start", 8), 0)
    member = PanelMember("likes", Likes())  # type: ignore[arg-type]
    [said] = measure(store, policy("p1", 8, failing=3), 1, judges=[member]).judged
    assert said.win_rate == intervals.wins_and_losses(0, 7, 1)
    assert said.independent is None


def test_a_failed_answer_loses_at_equal_lengths_too(store: Store) -> None:
    """Seven prompts tied, one failed, twice each: 7/16, by the verifier and by a judge."""
    measure(store, policy("start", 8), 0, n=2)
    member = PanelMember("likes", Likes())  # type: ignore[arg-type]
    report = measure(store, policy("p1", 8, failing=3), 1, judges=[member], n=2)
    for found in (report.length_controlled, report.judged[0].length_controlled):
        assert found is not None
        assert found.value == pytest.approx(7 / 16, abs=1e-3)


def test_a_judge_by_another_name_is_the_judge_that_labelled(store: Store) -> None:
    """Of its kind, whatever it is called in the panel and here."""
    measure(store, policy("start", 2), 0)
    for name, labelled in (("other", {"words": ""}), ("words", {"words": ""}), ("words", {"length": "", "words": ""})):
        member = PanelMember.of("words", name=name)
        [said] = measure(store, policy("p1", 5), 1, judges=[member], labelled_by=labelled).judged
        assert said.independent is False
    [said] = measure(
        store, policy("p1", 5), 1, judges=[PanelMember.of("words", name="verifier")], labelled_by={"rating": "m"}
    ).judged
    assert said.independent is True


def test_a_verifier_judge_scores_both_sides(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    member = PanelMember.of("verifier", name="strict")
    [said] = measure(store, policy("p1", 5), 1, judges=[member]).judged
    assert said.win_rate == intervals.wins_and_losses(3, 5, 0)
    assert said.score is not None
    assert said.score.value == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("name", "kind", "model", "labelled_by", "alone"),
    [
        ("pairwise", "pairwise", "big", None, None),
        ("pairwise", "pairwise", "big", {"verifier": ""}, True),
        ("pairwise", "pairwise", "big", {"pairwise": "small"}, False),
        ("strict", "pairwise", "big", {"pairwise": "small"}, False),
        ("rating", "rating", "big", {"pairwise": "big"}, False),  # the same model in another role
        ("verifier", "verifier", "", {"other": ""}, True),
    ],
)
def test_who_is_independent(
    name: str, kind: str, model: str, labelled_by: dict[str, str] | None, alone: bool | None
) -> None:
    assert is_independent(name, kind, model, labelled_by) is alone


def test_labelled_and_measured_by_the_same_is_said(store: Store) -> None:
    report = measure(store, policy("start", 2), 0, labelled_by={"verifier": ""})
    assert report.independent is False
    assert measure(store, policy("start", 2), 0, labelled_by={"pairwise": "m"}).independent is True


def test_the_labellers_of_a_policy_are_those_of_its_run(store: Store) -> None:
    trained = prompt(50, split="train")
    store.append("prompts", [trained])
    row = {"run": "made", "kind": "pointwise", "score": 1.0, "at": now()}
    said = [
        Judgment(key="1", judge="rating", judge_model="m", prompt_key=trained.key, candidate_a="c", **row),  # type: ignore[arg-type]
        Judgment(key="2", judge="verifier", prompt_key=digest(0), candidate_a="d", **row),  # type: ignore[arg-type]
    ]
    store.append("judgments", said)
    folder = store.folder / "runs" / "made" / "round-1" / "policy"
    assert labellers_of(store, str(folder)) == {"rating": "m"}  # what measured held-out answers has not labelled
    rules = Judgment(
        key="3", judge="rules", prompt_key=trained.key, candidate_a="c", detail={"all_met": True}, **row  # type: ignore[arg-type]
    )  # fmt: skip
    store.append("judgments", [rules])
    assert labellers_of(store, str(folder)) == {"rating": "m", "rules": "", "verifier": ""}  # by another name
    assert labellers_of(store, "smollm2-135m-instruct") is None
    assert labellers_of(store, str(store.folder / "runs" / "other" / "policy")) is None


def test_an_older_report_reads(store: Store) -> None:
    measure(store, policy("start", 2), 0)
    whole = measure(store, policy("p1", 5), 1, scorer=FakeScorer()).to_json()
    later = {f.name for f in dataclasses.fields(PolicyReport)} - {
        "policy", "split", "prompts", "answers", "failures", "pass_rate", "score", "win_rate", "baseline", "gain",
        "tokens", "words", "relevance", "distinct_2", "kl_sequence", "kl_token", "scored", "by_constraint",
    }  # fmt: skip
    older = PolicyReport.from_json({name: value for name, value in whole.items() if name not in later})
    assert older.pass_rate == intervals.wilson(5, 8)
    assert (older.slices, older.judged, older.broken, older.entropy, older.look) == ((), (), {}, None, 1)


def test_k3_of_a_real_policy(store: Store, tiny_model: Path) -> None:
    """Token by token what is summed in k1; scored by a model against itself, nothing."""
    scorer = ModelScorer(store, device="cpu", dtype="float32")
    scored = scorer.score(str(tiny_model), items())
    for each in scored:
        assert each.by_token is not None
        assert len(each.by_token) == each.tokens
        assert sum(each.by_token) == pytest.approx(each.logprob, abs=1e-3)
    again = scorer.score(str(tiny_model), items())
    found = measures.divergence_k3(again, scored, [str(i) for i in range(len(scored))])
    assert found is not None
    assert tuple(found.sequence) == pytest.approx((0.0, 0.0, 0.0))
