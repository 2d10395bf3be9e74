"""An adapter merged into its base is the same model, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from factory.faults import FactoryError
from factory.training import merge
from train.config import LoraSpec
from train.policy import Head, Policy, load_policy, save_policy

IDS = torch.tensor([[5, 6, 7, 80, 9, 300]])


def adapter(base: Path, folder: Path, *, head: Head = "language", target: str | tuple[str, ...] = "all-linear") -> Path:
    """An adapter that has learnt something: every value of it is moved."""
    lora = LoraSpec(r=4, target=target)
    policy = load_policy(str(base), lora=lora, dtype="float32", device="cpu", trainable=True, head=head)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_policy(policy, folder)
    return folder


def logits(policy: Policy) -> torch.Tensor:
    policy.model.eval()
    with torch.no_grad():
        return policy.model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("head", "target"),
    [("language", "all-linear"), ("score", "all-linear"), ("language", ("q_proj", "lm_head"))],
    ids=["language", "score", "tied head"],
)
def test_the_merged_model_says_what_the_adapter_says(
    head: Head, target: str | tuple[str, ...], tiny_model: Path, tmp_path: Path
) -> None:
    """Also where the adapter changes the head alone of one that shares the embeddings' weights."""
    made = adapter(tiny_model, tmp_path / "adapter", head=head, target=target)
    merge(str(made), tmp_path / "merged")
    whole = load_policy(str(tmp_path / "merged"), dtype="float32", device="cpu", head=head)
    wanted = logits(load_policy(str(tiny_model), str(made), dtype="float32", device="cpu", head=head))
    assert torch.allclose(logits(whole), wanted, atol=1e-5)
    base = logits(load_policy(str(tiny_model), dtype="float32", device="cpu", head=head))
    assert not torch.allclose(wanted, base, atol=1e-3)
    assert whole.tokenizer.chat_template
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is (target == "all-linear")
    assert not list(tmp_path.glob("*.writing"))


def test_it_is_stored_as_its_base_or_as_asked(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(half)
    made = adapter(half, tmp_path / "adapter")
    merge(str(made), tmp_path / "as-base")
    merge(str(made), tmp_path / "wide", dtype="float32")
    found = [AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").dtype for name in ("as-base", "wide")]
    assert found == [torch.bfloat16, torch.float32]


def test_what_cannot_be_merged(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="no adapter to merge"):
        merge(str(tiny_model), tmp_path / "merged")
    made = adapter(tiny_model, tmp_path / "adapter")
    with pytest.raises(FactoryError, match="there already"):
        merge(str(made), tmp_path)
