"""A vLLM that samples for a training: its answers follow every update, of an adapter and of a whole model.

What needs vLLM runs in an environment that has it (`make vllm`) and is skipped in others.
"""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from taught import teach

from factory.faults import ConfigError
from factory.resources import EMBEDDED, model_files
from factory.schema import Sampling
from factory.training.online import VllmLive
from train.config import LoraSpec, OnlineSpec
from train.data import Ids
from train.logps import PlainForward
from train.packing import Group
from train.policy import Policy, load_policy

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not in this environment")
SPEC = OnlineSpec(max_tokens=8, sampler="vllm", sampler_options={"max_model_len": 256, "threads": 1})
PROMPTS: list[Ids] = [(5, 6, 7), (8, 9), (5, 6, 7), (10, 11, 12)]
SEEDS = [1, 2, 3, 4]


def loaded(model: Path | str, lora: LoraSpec | None) -> Policy:
    return load_policy(str(model), lora=lora, dtype="float32", device="cpu", trainable=True)


def scores(policy: Policy, answers: list[Ids]) -> list[float]:
    """What the training's own model says of the answers."""
    policy.model.eval()
    with torch.no_grad():
        groups = [Group(prompt, [answer]) for prompt, answer in zip(PROMPTS, answers, strict=True)]
        found: list[float] = PlainForward(policy.model).token_logps(groups).sums().tolist()
    return found


def follows(policy: Policy, base: str, near: float, step: float) -> None:
    """Sampled log-probs are those of the weights as they are, before any update and after each."""
    with closing(VllmLive(policy, base, SPEC)) as sampler:
        seen = []
        for update in range(3):
            answers = sampler(PROMPTS, SEEDS, SPEC)
            drawn = sampler.engine.sample(PROMPTS, SEEDS, Sampling(max_tokens=8), sampler.ends)
            assert [d.ids for d in drawn] == answers
            assert [d.logprob for d in drawn] == pytest.approx(scores(policy, answers), abs=near)
            assert all(len(answer) <= 8 for answer in answers)
            seen.append([d.logprob for d in drawn])
            torch.manual_seed(update)
            with torch.no_grad():
                for parameter in policy.trainable().values():
                    parameter.add_(step * torch.randn_like(parameter))
        assert seen[0] != seen[1] != seen[2]


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("lora", [LoraSpec(r=4), None], ids=["adapter", "whole"])
def test_answers_follow_the_weights(lora: LoraSpec | None, tiny_model: Path, tmp_path: Path) -> None:
    """The embeddings are tied: vLLM's head must follow them too."""
    base = teach(tiny_model, tmp_path, steps=2)
    follows(loaded(base, lora), str(base), near=1e-3, step=0.05)


@needs_vllm
@pytest.mark.soak
def test_the_embedded_models_answers_follow_its_adapter() -> None:
    base = model_files(EMBEDDED).base
    follows(loaded(base, LoraSpec(r=8)), base, near=1e-2, step=0.01)


def test_an_unknown_option_is_named(tiny_model: Path) -> None:
    spec = SPEC.model_copy(update={"sampler_options": {"max_model_length": 3}})
    with pytest.raises(ConfigError, match="did you mean 'max_model_len'"):
        VllmLive(loaded(tiny_model, None), str(tiny_model), spec)
