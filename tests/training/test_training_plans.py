"""What a training would take, before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_rows import CONFIG, preference, prompt, train

from factory.store import Store
from factory.training import plan_training
from train.config import OnlineSpec, TrainConfig


def test_a_plan_says_what_the_reference_has_yet_to_score_and_loads_no_weights(
    store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("preferences", [preference(i) for i in range(8)])

    def planned(config: TrainConfig = CONFIG, **more: Any) -> Any:
        return plan_training(store, run="r", rounds=[1], start=str(tiny_model), config=config, **more)

    with monkeypatch.context() as without:
        without.setattr("transformers.PreTrainedModel.from_pretrained", None)
        before = planned()
    assert (before.rows, before.steps, before.processes) == (8, 4, 1)
    assert before.reference_operations > 0
    assert list(before.facts()) == ["model", "data", "memory", "of which", "work", "time"]
    assert json.loads(json.dumps(before.to_json()))["memory"]["total"] == before.memory.total
    train(store, tiny_model, "out")
    assert planned().reference_operations == 0
    assert planned(CONFIG.model_copy(update={"method": "simpo"})).reference_operations == 0
    assert before.memory.reference == 0


def test_a_plan_has_another_reference_in_memory(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    from tiny_models import build_tiny_model

    other = build_tiny_model(tmp_path / "other", seed=1)
    store.append("preferences", [preference(i) for i in range(4)])
    found = plan_training(store, run="r", rounds=[1], start=str(tiny_model), reference=str(other), config=CONFIG)
    assert found.memory.reference == 4 * (found.parameters - found.learning)


def test_a_plan_of_an_online_training_tells_its_memory_and_tokens_to_sample(store: Store, tiny_model: Path) -> None:
    store.append("prompts", [prompt(i, "train") for i in range(3)])
    spec = OnlineSpec(steps=3, prompts=2, n=4, max_tokens=5, updates=2)

    def planned(**settings: Any) -> Any:
        config = CONFIG.model_copy(update={"method": "grpo", "online": spec, **settings})
        return plan_training(store, run="r", rounds=[0], start=str(tiny_model), config=config)

    found = planned()
    assert (found.rows, found.answers, found.sampled, found.steps) == (24, 24, 24 * 5, 2 * 3)
    assert found.memory.total > found.memory.weights > 0
    assert found.reference_operations > 0
    assert found.facts()["samples"] == "24 answers, 120 tokens at most"
    assert planned(online=spec.model_copy(update={"max_tokens": 50})).memory.activations > found.memory.activations
