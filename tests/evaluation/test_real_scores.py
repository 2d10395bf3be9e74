"""Scores of a tiny model: its own, kept, and the same after a cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory import crash
from factory.evaluation import evaluate, measures
from factory.evaluation.likelihoods import NEUTRAL, Item, ModelScorer
from factory.evaluation.measures import Scored
from factory.schema import (
    Logp,
    Sampling,
)
from factory.stats import intervals
from factory.store import Store


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
