"""Compiled layers say what the others say; without a compiler they are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from factory.faults import FactoryError
from tests.train.conftest import pair_rows
from train.batches import FixedRows
from train.compiling import compile_layers
from train.config import TrainConfig
from train.metrics import timeless
from train.policy import Policy
from train.trainer import Trainer

Loader = Callable[..., Policy]


@pytest.mark.slow
def test_a_compiled_training_is_the_same_training(policy: Loader, tmp_path: Path) -> None:
    found = []
    for on in (False, True):
        loaded = policy()
        names = set(loaded.trainable())
        settings = TrainConfig(threads=1, learning_rate=1e-2, compile=on, micro_batch_tokens=60)
        source = FixedRows(pair_rows(8), settings.batch_size, settings.epochs, settings.seed)
        lines = Trainer(loaded, source, settings, tmp_path / str(on)).run().lines
        assert set(loaded.trainable()) == names
        found.append([timeless(line) for line in lines])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_all_but_attention_is_compiled(policy: Loader) -> None:
    loaded = policy()
    compile_layers(loaded.model)
    compiled = {
        name.rsplit(".", 1)[-1] for name, m in loaded.model.named_modules() if m._compiled_call_impl is not None
    }
    assert compiled == {"mlp", "input_layernorm", "post_attention_layernorm"}


def test_without_a_compiler_it_is_refused(policy: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(FactoryError, match="needs a C"):
        compile_layers(policy().model)
