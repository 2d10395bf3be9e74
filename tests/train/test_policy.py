"""Policies are loaded, switched and saved: adapters new and continued, bases by name, whole models with tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from factory.faults import FactoryError
from train.config import LoraSpec
from train.data import Encoded
from train.logps import sequence_logps
from train.policy import Policy, load_policy, resolve_dtype, save_policy

Loader = Callable[..., Policy]
ROWS = [Encoded((1, 9, 30, 2), (40, 50, 2)), Encoded((1, 9, 30, 2), (41, 2))]


def logps(policy: Policy) -> list[float]:
    return [s.logp for s in sequence_logps(policy.model, ROWS)]


def moved(policy: Policy, by: float = 0.05) -> Policy:
    """As if it had learnt something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(by * torch.randn_like(parameter))
    return policy


def test_a_new_adapter_changes_nothing_yet_and_its_seed_decides_it(policy: Loader, tiny_model: Path) -> None:
    bare = load_policy(str(tiny_model), dtype="float32", device="cpu")
    assert logps(policy()) == pytest.approx(logps(bare), abs=1e-5)
    first, same, other = policy(seed=3), policy(seed=3), policy(seed=4)
    pairs = list(zip(first.trainable().values(), same.trainable().values(), other.trainable().values(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_loading_leaves_the_random_state_alone(policy: Loader) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    policy(seed=9)
    assert torch.equal(torch.rand(3), wanted)


def test_without_its_adapter_a_policy_is_its_base(policy: Loader, tiny_model: Path) -> None:
    loaded = moved(policy())
    with loaded.without_adapter():
        base = logps(loaded)
    assert base == pytest.approx(logps(load_policy(str(tiny_model), dtype="float32", device="cpu")), abs=1e-5)
    assert logps(loaded) != pytest.approx(base, abs=1e-2)


def test_an_adapter_is_saved_loaded_and_continued(policy: Loader, tiny_model: Path, tmp_path: Path) -> None:
    first = moved(policy(base_name="some-name"))
    save_policy(first, tmp_path / "first")
    files = {path.name for path in (tmp_path / "first").iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json"}
    assert (
        json.loads((tmp_path / "first" / "adapter_config.json").read_text())["base_model_name_or_path"] == "some-name"
    )

    again = load_policy(str(tiny_model), str(tmp_path / "first"), dtype="float32", device="cpu")
    assert logps(again) == pytest.approx(logps(first), abs=1e-6)
    assert not again.trainable()
    continued = policy(lora=LoraSpec(r=4), adapter=str(tmp_path / "first"))
    assert all(
        torch.equal(a, b) for a, b in zip(first.trainable().values(), continued.trainable().values(), strict=True)
    )


def test_an_adapter_that_learns_on_keeps_its_own_rank_and_that_is_said(
    policy: Loader, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_policy(policy(lora=LoraSpec(r=4, alpha=8)), tmp_path)
    for wanted, said in ((LoraSpec(r=4, alpha=8), ""), (LoraSpec(r=64, alpha=8, dropout=0.1), "r 4, not 64; dropout")):
        caplog.clear()
        again = load_policy(
            str(tiny_model), str(tmp_path), lora=wanted, dtype="float32", device="cpu", trainable=True
        )  # fmt: skip
        assert {p.shape[0] for n, p in again.trainable().items() if "lora_A" in n} == {4}
        assert (said in caplog.text) if said else not caplog.text


def test_a_whole_model_takes_the_adapter_in(policy: Loader, tiny_model: Path, tmp_path: Path) -> None:
    first = moved(policy())
    save_policy(first, tmp_path / "adapter")
    whole = policy(lora=None, adapter=str(tmp_path / "adapter"))
    assert not whole.has_adapter
    assert logps(whole) == pytest.approx(logps(first), abs=1e-4)
    assert all(p.requires_grad for p in whole.model.parameters())

    save_policy(whole, tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").exists()
    again = load_policy(str(tmp_path / "whole"), dtype="float32", device="cpu")
    assert logps(again) == pytest.approx(logps(whole), abs=1e-6)
    assert again.tokenizer.chat_template == whole.tokenizer.chat_template


def test_what_learns_is_float32(policy: Loader) -> None:
    loaded = policy(dtype="bfloat16")
    assert {p.dtype for p in loaded.trainable().values()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in loaded.model.parameters()}
    assert loaded.dtype == "bfloat16"


def test_a_whole_model_does_not_learn_in_bfloat16_on_a_cpu() -> None:
    assert resolve_dtype("auto", "cpu", whole=True) == "float32"
    with pytest.raises(FactoryError, match="bfloat16 on a CPU"):
        resolve_dtype("bfloat16", "cpu", whole=True)


def test_auto_takes_bfloat16_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, wanted in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert resolve_dtype("auto", "cpu", whole=False) == wanted
        assert resolve_dtype("float32", "cpu", whole=False) == "float32"


@pytest.mark.parametrize("what", ["base", "adapter"])
def test_a_model_that_does_not_load_is_the_users_fault(what: str, tiny_model: Path, tmp_path: Path) -> None:
    empty: Any = {"base": (str(tmp_path), None), "adapter": (str(tiny_model), str(tmp_path))}
    with pytest.raises(FactoryError, match="does not load") as caught:
        load_policy(*empty[what], dtype="float32", device="cpu")
    assert str(tmp_path) in str(caught.value)
