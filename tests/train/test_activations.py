"""Computing activations again changes no gradient, packed or not, and holds less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from factory.faults import FactoryError
from tests.train.conftest import pair_rows
from train.activations import checkpoint_activations
from train.batches import FixedRows
from train.config import LoraSpec, TrainConfig
from train.logps import PackedForward, PlainForward
from train.packing import Group
from train.policy import Policy
from train.trainer import Trainer

Loader = Callable[..., Policy]
GROUPS = [Group(row.prompt, (row.chosen, row.rejected)) for row in pair_rows(4)]


def gradients(policy: Policy, way: Any) -> dict[str, torch.Tensor]:
    policy.model.train()
    torch.manual_seed(1)
    way(policy.model).token_logps(GROUPS).sums().square().sum().backward()
    return {name: p.grad.clone() for name, p in policy.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("way", [PackedForward, PlainForward])
@pytest.mark.parametrize("lora", [None, LoraSpec(r=4, dropout=0.3)], ids=["whole", "lora with dropout"])
def test_gradients_are_the_same(policy: Loader, way: Any, lora: LoraSpec | None) -> None:
    wanted = gradients(policy(lora=lora), way)
    again = policy(lora=lora)
    checkpoint_activations(again.model)
    got = gradients(again, way)
    assert wanted.keys() == got.keys() == again.trainable().keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


def kept_bytes(policy: Policy) -> int:
    """Of what the forward pass saves for the way back, without the parameters."""
    own = {p.data_ptr() for p in policy.model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    policy.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        PackedForward(policy.model).token_logps(GROUPS)
    return sum(sizes.values())


def test_less_is_held(policy: Loader) -> None:
    plain, again = policy(), policy()
    checkpoint_activations(again.model)
    assert kept_bytes(again) < kept_bytes(plain) / 2


def test_a_training_gives_the_same_policy(policy: Loader, tmp_path: Path) -> None:
    found = []
    for on in (False, True):
        loaded = policy()
        settings = TrainConfig(threads=1, learning_rate=1e-2, epochs=2, checkpoint_activations=on)
        source = FixedRows(pair_rows(8), settings.batch_size, settings.epochs, settings.seed)
        Trainer(loaded, source, settings, tmp_path / str(on)).run()
        found.append({name: p.detach().clone() for name, p in loaded.trainable().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(FactoryError, match="Linear cannot"):
        checkpoint_activations(nn.Linear(2, 2))
