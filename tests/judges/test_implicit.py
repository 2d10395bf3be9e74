"""The implicit reward: beta times the log-ratio of a policy and its reference, from the one place that scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from judged import candidate_of, prompt_of
from tiny_models import build_tiny_model

from factory import verdicts
from factory.faults import FactoryError
from factory.judges import judges
from factory.judges.implicit import ImplicitJudge
from factory.schema import Candidate, Matchup
from train.data import encode
from train.policy import load_policy

ANSWERS = ["Rivers carry water to the sea.", "No.", "A river flows, bends and floods."]


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("other"), seed=5)


def judge_of(model: Path, reference: Path, **options: Any) -> ImplicitJudge:
    return ImplicitJudge(
        model=str(model), reference=str(reference), **({"dtype": "float32", "device": "cpu"} | options)
    )


def matchups(*texts: str) -> list[Matchup]:
    return [Matchup(prompt_of(), candidate_of(f"k{i}", text)) for i, text in enumerate(texts)]


def logp(folder: Path, text: str, *, ended: bool = True) -> tuple[float, int]:
    """Summed log-probability by the model's own forward, and the tokens."""
    policy = load_policy(str(folder), dtype="float32", device="cpu")
    row = encode(policy.tokenizer, prompt_of().messages, text, ended=ended)
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    with torch.no_grad():
        logps = policy.model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return float(logps[-len(row.completion_ids) :].sum()), len(row.completion_ids)


def test_it_is_beta_times_the_log_ratio(tiny_model: Path, other_model: Path) -> None:
    judge = judge_of(other_model, tiny_model, beta=0.3)
    found = list(judge.vote(matchups(*ANSWERS)))
    for vote, text in zip(found, ANSWERS, strict=True):
        (policy, tokens), (reference, _) = logp(other_model, text), logp(tiny_model, text)
        assert vote.score == pytest.approx(0.3 * (policy - reference), abs=1e-4)
        assert vote.detail["policy_logp"] == pytest.approx(policy, abs=1e-3)
        assert vote.detail["tokens"] == tokens
        assert (vote.score_low, vote.score_high, vote.failure) == (None, None, None)
    pair = verdicts.read(found).verdict("implicit", ("k0", "k1"))
    assert pair is not None
    assert pair.p_a == pytest.approx(verdicts.sigmoid((found[0].score or 0) - (found[1].score or 0)))


def test_by_token(tiny_model: Path, other_model: Path) -> None:
    whole = list(judge_of(other_model, tiny_model).vote(matchups(*ANSWERS)))
    mean = list(judge_of(other_model, tiny_model, length_normalised=True).vote(matchups(*ANSWERS)))
    for a, b in zip(whole, mean, strict=True):
        assert b.score == pytest.approx((a.score or 0) / a.detail["tokens"])
        assert a.reader != b.reader


def test_an_answer_that_was_cut_has_no_end_token(tiny_model: Path, other_model: Path) -> None:
    cut: Candidate = candidate_of("k0", ANSWERS[0])
    object.__setattr__(cut, "finish_reason", "length")
    [found] = judge_of(other_model, tiny_model, beta=1).vote([Matchup(prompt_of(), cut)])
    expected = logp(other_model, ANSWERS[0], ended=False)[0] - logp(tiny_model, ANSWERS[0], ended=False)[0]
    assert found.score == pytest.approx(expected, abs=1e-4)


def test_an_adapter_is_held_against_its_base_without_a_second_model(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules="all-linear")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    load_policy(str(tiny_model)).tokenizer.save_pretrained(tmp_path / "merged")
    shared = judge_of(tmp_path / "adapter", tiny_model)
    found = [vote.score for vote in shared.vote(matchups(*ANSWERS))]
    expected = [vote.score for vote in judge_of(tmp_path / "merged", tiny_model).vote(matchups(*ANSWERS))]
    assert found == pytest.approx(expected, abs=1e-3)
    assert max(abs(score or 0.0) for score in found) > 0.01
    assert shared._loaded is not None
    assert shared._loaded.reference is shared._loaded.policy
    assert [vote.score for vote in shared.vote(matchups(*ANSWERS))] == found


def test_what_cannot_be_scored_fails_alone(tiny_model: Path, other_model: Path) -> None:
    asked = [*matchups("Short.", "  ", "word " * 3000), Matchup(prompt_of(), candidate_of("k9", failure="timeout"))]
    found = list(judge_of(other_model, tiny_model).vote(asked))
    assert [vote.failure for vote in found] == [None, "unreadable", "too_long", "candidate_failed"]
    assert [vote.score is None for vote in found] == [False, True, True, True]


def test_a_policy_is_not_its_own_reference(tiny_model: Path) -> None:
    with pytest.raises(FactoryError, match="the same model"):
        list(judge_of(tiny_model, tiny_model).vote(matchups("x")))


def test_models_of_different_tokens_are_refused(tiny_model: Path, other_model: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(other_model, tmp_path / "odd")
    tokenizer = AutoTokenizer.from_pretrained(other_model)
    tokenizer.add_tokens(["rivers"])
    tokenizer.save_pretrained(tmp_path / "odd")
    with pytest.raises(FactoryError, match="different tokenizers"):
        list(judge_of(tmp_path / "odd", tiny_model).vote(matchups("x")))


def test_beta_must_be_above_zero(tiny_model: Path, other_model: Path) -> None:
    with pytest.raises(FactoryError, match="beta: must be above 0"):
        judge_of(other_model, tiny_model, beta=0)


def test_the_models_stay_between_votes_until_closed(tiny_model: Path, other_model: Path) -> None:
    judge = judge_of(other_model, tiny_model)
    first = next(judge.vote(matchups("x"))).score
    held = judge._loaded
    assert next(judge.vote(matchups("x"))).score == first
    assert judge._loaded is held
    judge.close()
    assert judge._loaded is None
    assert next(judge.vote(matchups("x"))).score == first


def test_the_registry_says_what_it_needs() -> None:
    assert judges.facts("implicit") == {"asks": False, "model": True, "reference": True, "whose": "policy"}
