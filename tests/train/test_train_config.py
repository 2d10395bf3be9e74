"""Settings: strict, coerced where YAML 1.1 reads numbers as text, checked against the objective."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from factory.faults import ConfigError, FactoryError
from train import advantages
from train.config import LoraSpec, OnlineSpec, TrainConfig


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


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "grpo", "online": {"n": 1}}, "online.n: grpo needs 2 answers to a prompt or more, not 1"),
        ({"method": "rloo", "online": {"n": 1}}, "online.n: rloo needs 2"),
        ({"method": "bond", "online": {"n": 2}}, "online.n: bond needs 3"),
        ({"method": "dpo", "online": {"n": 1}}, "online.n: dpo needs 2"),
        ({"method": "grpo", "online": {"kl_weight": 0.3}}, "online.kl_weight: grpo does not read it"),
        ({"method": "rloo", "online": {"scale": "none"}}, "online.scale: rloo does not read it"),
        ({"method": "dpo", "online": {"gamma": 0.5}}, "online.gamma: dpo does not read it"),
        (
            {"method": "grpo", "online": {"sampler_options": {"max_num_seqs": 3}}},
            "online.sampler_options: are of a vllm",
        ),
        ({"method": "grpo", "online": {}, "add": {"sft": 0.2}}, "add: is for methods on pairs, labels and completions"),
        ({"method": "reward_model", "add": {"sft": 0.2}}, "add: is for methods on pairs"),
        ({"method": "reward_model", "weighting": "wpo"}, "weighting: is for methods on pairs"),
        ({"method": "dpo", "kl_budget": 5}, "kl_budget: dpo measures no KL as it trains"),
        ({"method": "bco", "kl_budget": 5}, "kl_budget: bco measures no KL"),
        ({"method": "simpo", "online": {}, "kl_budget": 5}, "kl_budget: simpo measures no KL"),
    ],
)
def test_a_setting_that_the_method_would_pass_over_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        TrainConfig(**settings).check()


def test_all_that_would_be_passed_over_is_told_at_once() -> None:
    wrong = {"method": "grpo", "online": {"n": 1, "eta": 0.1}, "add": {"sft": 1}, "best": {}, "train_on": "every_turn"}
    wrong |= {"parameters": {"beta": -1}}
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**wrong).check()  # type: ignore[arg-type]
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "beta is in [0, inf], not -1", "online.eta", "online.n", "best", "train_on", "add",
    ]  # fmt: skip


def test_a_method_that_samples_and_a_wrong_parameter_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(method="grpo", parameters={"beta": -1}).check()
    assert caught.value.faults == (
        "beta is in [0, inf], not -1",
        "online: grpo trains on answers that the policy samples: set it (online: {steps: 50, n: 4})",
    )
    with pytest.raises(ConfigError, match="online: kto trains on labels of the store: leave it out"):
        TrainConfig(method="kto", online=OnlineSpec()).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ppo", "online": {"n": 1, "kl_weight": 0.1, "gamma": 0.9, "lam": 1.0}, "kl_budget": 5},
        {"method": "bond", "online": {"n": 3, "eta": 0.1, "anchor_rate": 0.1, "anchor_weight": 0.1}},
        {"method": "grpo", "online": {"n": 2, "scale": "none", "sampler": "vllm", "sampler_options": {"threads": 1}}},
        {"method": "rloo", "online": {"n": 2, "kl_weight": 0.0}},
        {"method": "dpo", "online": {"n": 2}, "add": {"sft": 0.2}, "kl_budget": 5, "weighting": "wpo"},
        {"method": "kto", "kl_budget": 5, "add": {"sft": 0.2}},
    ],
)
def test_settings_that_the_method_reads_are_taken(settings: dict[str, Any]) -> None:
    TrainConfig(**settings).check()


def test_every_way_to_advantages_reads_settings_that_there_are() -> None:
    for way in advantages.ways.names():
        assert advantages.reads(way) <= OnlineSpec.model_fields.keys()
        assert 1 <= advantages.least(way) <= 3
