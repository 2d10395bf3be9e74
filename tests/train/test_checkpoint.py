"""A checkpoint is whole or is not taken, and brings back all that a training is in the middle of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from factory.faults import FactoryError
from train import checkpoint
from train.checkpoint import Stamp

STAMP = Stamp("data", "config", "model")


def training(seed: int = 0) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    torch.manual_seed(seed)
    weights = {"a": nn.Parameter(torch.randn(3, 2)), "b": nn.Parameter(torch.randn(4))}
    return weights, torch.optim.AdamW(weights.values(), lr=0.1)


def steps(weights: dict[str, nn.Parameter], optimiser: torch.optim.AdamW, count: int) -> None:
    """Steps whose gradients are random: they depend on the random state."""
    for _ in range(count):
        for parameter in weights.values():
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()


def test_weights_optimiser_and_random_state_come_back(tmp_path: Path) -> None:
    weights, optimiser = training()
    steps(weights, optimiser, 2)
    checkpoint.save(tmp_path, 2, STAMP, weights, optimiser)
    steps(weights, optimiser, 3)

    others, other_optimiser = training(seed=9)
    found = checkpoint.newest(tmp_path, STAMP)
    assert found is not None
    assert found.step == 2
    checkpoint.load(found, others, other_optimiser)
    steps(others, other_optimiser, 3)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    weights, optimiser = training()
    for step in (1, 2, 3, 12):
        checkpoint.save(tmp_path, step, STAMP, weights, optimiser)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000012"]


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.STATE, checkpoint.MARK])
@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_torn_or_changed_one_is_passed_over(
    tmp_path: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    weights, optimiser = training()
    checkpoint.save(tmp_path, 1, STAMP, weights, optimiser)
    checkpoint.save(tmp_path, 2, STAMP, weights, optimiser)
    path = tmp_path / "step-000002" / name
    data = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "flip":
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    else:
        path.unlink()
    found = checkpoint.newest(tmp_path, STAMP)
    assert found is not None
    assert found.step == 1
    assert "not whole" in caplog.text


def test_one_that_was_being_written_is_not_seen(tmp_path: Path) -> None:
    weights, optimiser = training()
    checkpoint.save(tmp_path, 1, STAMP, weights, optimiser)
    (tmp_path / "step-000001").rename(tmp_path / "writing-000001")
    assert checkpoint.newest(tmp_path, STAMP) is None
    checkpoint.save(tmp_path, 1, STAMP, weights, optimiser)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.parametrize(("field", "word"), [("data", "data"), ("config", "settings"), ("model", "model")])
def test_another_trainings_checkpoint_is_refused(tmp_path: Path, field: str, word: str) -> None:
    weights, optimiser = training()
    checkpoint.save(tmp_path, 1, STAMP, weights, optimiser)
    with pytest.raises(FactoryError, match=f"another {word}"):
        checkpoint.newest(tmp_path, STAMP._replace(**{field: "changed"}))
