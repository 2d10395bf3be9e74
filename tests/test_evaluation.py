"""Evaluation on the real store, verifier and scripted engine; scoring on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from factory import evaluation, intervals
from factory.engines.scripted import Rule, ScriptedEngine
from factory.evaluation import NEUTRAL, Item, ModelScorer, compare, evaluate
from factory.faults import FactoryError
from factory.measures import Scored
from factory.schema import Judgment, Logp, PolicyReport, Prompt, Request, Sampling, digest, now
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
        patch.setattr(evaluation.crash, "point", kill)
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
