"""Settings: every fault at once, with the right one named; which table a method reads; threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_rows import CONFIG, preference, train

from factory.faults import ConfigError, FactoryError
from factory.store import Store
from factory.training import config_of, needs
from train.config import OnlineSpec, TrainConfig


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(method="cdpo", settings={"epochs": 0, "batchsize": 3}, parameters={"beta": -1, "gamma": 2})
    text = str(caught.value)
    assert all(part in text for part in ("epochs", "batchsize", "beta is in (0, inf]", "no parameter 'gamma'"))


def test_what_is_sound_beside_a_fault_is_checked_too() -> None:
    given = {"epochs": 0, "kl_budget": 3, "online": {"steps": 2, "n": 1}}
    with pytest.raises(ConfigError) as caught:
        config_of(method="grpo", settings=given, parameters={"beta": -1})
    assert [fault.split()[0] for fault in caught.value.faults] == ["epochs:", "beta", "online.n:"]
    with pytest.raises(ConfigError) as caught:
        config_of(method="dpo", settings={"epochs": 0, "kl_budget": 3}, parameters={})
    assert [fault.split()[0] for fault in caught.value.faults] == ["epochs:", "kl_budget:"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr": 1}, "lr: there is no such key; did you mean 'learning_rate'?"),
        ({"max_steps": 3}, "did you mean 'epochs'?"),
        ({"online": {"max_steps": 3}}, "did you mean 'steps'?"),
        ({"bach_size": 3}, "did you mean 'batch_size'?"),
        ({"lora.rank": 3}, "lora.rank: there is no such key; did you mean 'r'?"),
        ({"gradient_accumulation_steps": 3}, "Known: add, batch_size"),
        ({"learning_rate": "much"}, "learning_rate: must be a number (given: 'much')"),
        ({"beta": 0.1}, "beta: is a parameter of dpo, not a setting of the trainer (-p beta=...)"),
    ],
)
def test_a_wrong_setting_is_answered_with_the_right_one(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(method="dpo", settings=given, parameters={})
    assert said in caught.value.text()


def test_a_setting_may_lead_into_another() -> None:
    lora = config_of(method="dpo", settings={"lora.r": 4, "lora.alpha": 8}, parameters={}).lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.dropout) == (4, 8, 0)


def test_settings_become_a_configuration() -> None:
    config = config_of(
        method="ipo", settings={"learning_rate": "5e-7", "lora": None}, parameters={"length_normalised": True}
    )
    assert (config.method, config.learning_rate, config.lora) == ("ipo", 5e-7, None)
    with pytest.raises(FactoryError, match="did you mean"):
        config_of(method="dop", settings={}, parameters={})


def test_a_method_knows_its_table() -> None:
    tables = {name: needs(TrainConfig(method=name)) for name in ("dpo", "kto", "sft", "reward_model")}
    assert tables == {"dpo": "preferences", "kto": "labels", "sft": "labels", "reward_model": "preferences"}
    assert needs(TrainConfig(method="grpo", online=OnlineSpec())) == "prompts"
    with pytest.raises(FactoryError, match="answers that the policy samples"):
        needs(TrainConfig(method="grpo"))
    with pytest.raises(FactoryError, match="trains on labels of the store"):
        needs(TrainConfig(method="kto", online=OnlineSpec()))


def test_threads_are_measured_once_and_kept(store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory.engines import transformers as engine

    monkeypatch.setattr(engine, "default_threads", lambda: 2)
    store.append("preferences", [preference(i) for i in range(2)])
    before = torch.get_num_threads()
    train(store, tiny_model, "out", CONFIG.model_copy(update={"threads": None}))
    monkeypatch.setattr(engine, "default_threads", lambda: pytest.fail("measured again"))
    assert (store.folder / "out" / "threads").read_text() == "2"
    assert torch.get_num_threads() == before
