"""Settings: strict, coerced where YAML 1.1 reads numbers as text, checked against the objective."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from factory.faults import FactoryError
from train.config import LoraSpec, TrainConfig


def test_numbers_that_yaml_reads_as_text() -> None:
    text = (
        "{learning_rate: 5e-7, parameters: {beta: 1e-1, length_normalised: no}, add: {sft: 2e-1}, lora: {alpha: 1e1}}"
    )
    config = TrainConfig(**yaml.safe_load(text))
    assert config.learning_rate == 5e-7
    assert config.parameters == {"beta": 0.1, "length_normalised": False}
    assert config.parameters["length_normalised"] is False
    assert config.add == {"sft": 0.2}
    assert config.lora == LoraSpec(alpha=10.0)


def test_every_fault_of_the_file_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig(**yaml.safe_load("{learning_rat: 1, epochs: 0, add: {nll: 1}, lora: {r: 0}}"))
    assert {error["loc"] for error in caught.value.errors()} == {
        ("learning_rat",),
        ("epochs",),
        ("add",),
        ("lora", "r"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "warmup: no", "epochs: yes", "learning_rate: on", "clip: yes", "seed: off", "threads: yes", "lora: {r: yes}",
        "lora: {dropout: no}", "add: {sft: yes}", "learning_rate: .inf", "weight_decay: .nan",
        "parameters: {beta: .nan}",
    ],
)  # fmt: skip
def test_yes_and_no_and_infinities_are_no_numbers(text: str) -> None:
    with pytest.raises(ValidationError):
        TrainConfig(**yaml.safe_load(text))


def test_null_means_the_whole_model() -> None:
    assert TrainConfig(**yaml.safe_load("lora: null")).lora is None


def test_every_setting_has_a_meaning() -> None:
    for model in (TrainConfig, LoraSpec):
        assert all(field.description for field in model.model_fields.values())


def test_a_wrong_method_or_parameter_is_found_by_check() -> None:
    with pytest.raises(FactoryError, match="did you mean 'simpo'"):
        TrainConfig(method="simppo").check()
    with pytest.raises(FactoryError, match="label_smoothing is in"):
        TrainConfig(method="cdpo", parameters={"label_smoothing": 0.7}).check()
    TrainConfig(method="ipo", parameters={"length_normalised": True}).check()


def test_every_turn_is_learnt_by_methods_on_completions_alone() -> None:
    TrainConfig(method="sft", train_on="every_turn").check()
    with pytest.raises(FactoryError, match="every_turn is for methods on completions"):
        TrainConfig(method="dpo", train_on="every_turn").check()
