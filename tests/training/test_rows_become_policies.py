"""What is read of the store and left out, what becomes of it, what is handed back and refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from training_rows import CONFIG, asked, candidate, label, preference, prompt, said, train

from factory import resources
from factory.faults import FactoryError, LockedError
from factory.judges.verifier import VerifierJudge
from factory.schema import Message, Preference
from factory.store import Store
from factory.store.locks import held
from factory.training.rewards import RewardPart, Rewards
from factory.training.rows import lopsided, stored
from train import losses
from train.config import OnlineSpec, TrainConfig
from train.data import LabelRow
from train.metrics import read
from train.policy import load_tokenizer


def test_preferences_become_a_policy(store: Store, tiny_model: Path) -> None:
    store.append("preferences", [preference(i) for i in range(10)])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"epochs": 4}))
    assert (result.rows, result.steps, result.truncated, dict(result.skipped)) == (10, 12, 0, {})
    assert result.last["rewards/margins"] > result.first["rewards/margins"] + 0.2
    assert result.changed["logps/rejected"] < 0
    assert Path(result.policy, "adapter_model.safetensors").exists()
    assert sorted(p.name for p in (store.folder / "out").iterdir()) == ["metrics.jsonl", "policy"]
    kept = json.loads(Path(result.policy, "training.json").read_text())
    assert kept["result"] == json.loads(json.dumps(result.to_json()))
    until = datetime.fromisoformat(kept["made_of"].pop("until"))
    assert kept["made_of"] == {"table": "preferences", "run": "r", "round": [1], "strategy": None}
    rows = [row for row in store.rows(Preference, {"run": "r", "round": [1]}) if row.at <= until]
    assert len(rows) == result.rows
    adapter = json.loads(Path(result.policy, "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny_model)


def test_labels_become_a_policy(store: Store, tiny_model: Path) -> None:
    store.append("labels", [label(i) for i in range(10)])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"method": "kto", "epochs": 4}))
    assert result.last["rewards/margins"] > result.first["rewards/margins"]
    assert result.first["kl"] >= 0
    assert len(store.read("logps")) == 20  # every answer after its own prompt, and after another


@pytest.mark.parametrize(("method", "table", "row"), [("dpo", "preferences", preference), ("kto", "labels", label)])
def test_prompts_kept_for_measuring_are_not_learned_from(
    store: Store, tiny_model: Path, method: str, table: str, row: Any
) -> None:
    splits = ("train", "heldout", "train", "final", "train")
    store.append("prompts", [prompt(i, split) for i, split in enumerate(splits)])
    store.append(table, [row(i) for i in range(5)])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"method": method, "epochs": 1}))
    assert result.rows == 3
    assert dict(result.skipped) == {
        "its prompt is in the split 'heldout'": 1,
        "its prompt is in the split 'final'": 1,
    }


def test_only_the_rounds_that_are_named(store: Store, tiny_model: Path) -> None:
    store.append("preferences", [preference(i, round=1 + i % 3) for i in range(9)])
    assert train(store, tiny_model, "a", rounds=[1]).rows == 3
    assert train(store, tiny_model, "b", rounds=range(1, 4)).rows == 9
    assert train(store, tiny_model, "c", where={"prompt_key": ["0", "3", "1"]}).rows == 2


def test_the_loss_is_the_weighted_mean(store: Store, tiny_model: Path) -> None:
    """The first loss of rows of weights 1 and 3 is (l0 + 3 l1) / 4, of the losses of each alone."""
    store.append("preferences", [replace(preference(i), weight=weight) for i, weight in enumerate((1.0, 3.0))])
    config = CONFIG.model_copy(update={"method": "simpo", "epochs": 1})
    first, second = (
        train(store, tiny_model, f"only{i}", config, where={"prompt_key": str(i)}).first["loss"] for i in (0, 1)
    )
    assert first != pytest.approx(second)
    assert train(store, tiny_model, "both", config).first["loss"] == pytest.approx((first + 3 * second) / 4, rel=1e-5)


@pytest.mark.parametrize(("method", "table", "row"), [("dpo", "preferences", preference), ("kto", "labels", label)])
def test_rows_that_weigh_nothing_are_left_out(
    store: Store, tiny_model: Path, method: str, table: str, row: Any
) -> None:
    weights = (1.0, 0.5, 0.0, math.nan)
    store.append(table, [replace(row(i), weight=weight) for i, weight in enumerate(weights)])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"method": method, "epochs": 1}))
    assert (result.rows, dict(result.skipped)) == (2, {"its weight is not above 0": 2})


def test_rows_that_contradict_each_other_are_left_out(store: Store, tiny_model: Path) -> None:
    """Two pairings that are trained on together may differ; neither is believed where they do."""
    rows = [preference(i) for i in range(3)]
    other = replace(rows[0], key="other", chosen_key="d0", rejected_key="c0", strategy="other")
    store.append("preferences", [*rows, other])
    result = train(store, tiny_model, "out", strategy=["", "other"])
    assert (result.rows, dict(result.skipped)) == (2, {"another row says the opposite": 2})
    assert train(store, tiny_model, "one", strategy="").rows == 3
    store.append("labels", [label(i) for i in range(3)])
    store.append("labels", [replace(label(1), key="other", label=True)])
    result = train(store, tiny_model, "labels", CONFIG.model_copy(update={"method": "kto", "epochs": 1}))
    assert (result.rows, dict(result.skipped)) == (2, {"another row says the opposite": 2})
    learnt = train(store, tiny_model, "sft", CONFIG.model_copy(update={"method": "sft", "epochs": 1}))
    assert (learnt.rows, learnt.skipped) == (2, result.skipped)  # of the desirable ones; 1 is contradicted


def test_rows_of_two_strategies_are_trained_on_when_named(store: Store, tiny_model: Path) -> None:
    strategies = ("all", "all", "best_worst", "given")
    store.append("preferences", [replace(preference(i), strategy=name) for i, name in enumerate(strategies)])
    with pytest.raises(FactoryError, match=r"several ways: all \(2\), best_worst \(1\), given \(1\)") as fault:
        train(store, tiny_model, "out")
    assert "name the pairing" in fault.value.todo
    with pytest.raises(FactoryError, match="did you mean 'best_worst'"):
        train(store, tiny_model, "out", strategy="best_wurst")
    assert train(store, tiny_model, "one", strategy="all").rows == 2
    assert train(store, tiny_model, "two", strategy=["all", "best_worst"]).rows == 3
    assert train(store, tiny_model, "where", where={"strategy": "given"}).rows == 1


def test_a_pairing_is_named_alike_for_preferences_and_labels(store: Store, tiny_model: Path) -> None:
    raft = CONFIG.model_copy(update={"method": "raft"})
    store.append("preferences", [replace(preference(i), strategy="best_worst") for i in range(2)])
    store.append("labels", [replace(label(i), strategy=("best_worst", "clear")[i % 2]) for i in range(8)])
    assert train(store, tiny_model, "raft", raft, strategy="best_worst").rows == 4
    with pytest.raises(FactoryError, match="no pairing with labels there named 'cleer'; did you mean 'clear'"):
        train(store, tiny_model, "out", raft, strategy="cleer")
    with pytest.raises(FactoryError, match=r"'clear' made labels and no preferences there; .* of: best_worst \(2\)"):
        train(store, tiny_model, "out", strategy="clear")


def test_labels_from_before_they_had_their_pairing_s_name_are_found_by_it(store: Store, tiny_model: Path) -> None:
    """They went by the way to label; where two ways could be meant, one has to be named."""
    kto = CONFIG.model_copy(update={"method": "kto"})
    store.append("preferences", [replace(preference(0), strategy="best_worst")])
    store.append("labels", [replace(label(i), strategy="threshold") for i in range(4)])
    store.append("labels", [replace(label(i), strategy="clear") for i in range(4, 8)])
    assert train(store, tiny_model, "found", kto, strategy="best_worst").rows == 4
    store.append("labels", [replace(label(8), strategy="quantile")])
    said = r"'best_worst' made preferences and no labels there; .* clear \(4\), quantile \(1\), threshold \(4\)"
    with pytest.raises(FactoryError, match=said):
        train(store, tiny_model, "out", kto, strategy="best_worst")


def test_the_reference_is_scored_once(store: Store, tiny_model: Path, forwards: list[int]) -> None:
    store.append("preferences", [preference(i) for i in range(6)])
    train(store, tiny_model, "first")
    assert sum(forwards) >= 6
    forwards.clear()
    train(store, tiny_model, "second", CONFIG.model_copy(update={"method": "ipo"}))
    assert forwards == [4]  # the comparison with the model's own forward when it is loaded; nothing is scored
    assert len(store.read("logps")) == 12


def test_a_killed_scoring_pays_for_what_is_missing_only(store: Store, tiny_model: Path, forwards: list[int]) -> None:
    store.append("preferences", [preference(i) for i in range(6)])
    train(store, tiny_model, "first")
    store.append("preferences", [preference(6)])
    before = {row["key"]: row["logprob"] for row in store.read("logps")}
    train(store, tiny_model, "second")
    after = {row["key"]: row["logprob"] for row in store.read("logps")}
    assert len(after) == 14
    assert all(after[key] == value for key, value in before.items())


def test_a_reference_is_any_policy(store: Store, tiny_model: Path) -> None:
    """Round 2 goes on with round 1's adapter: held to it, to the base, or to the model as a third policy."""
    store.append("preferences", [preference(i) for i in range(8)])
    one = CONFIG.model_copy(update={"epochs": 3})
    first = train(store, tiny_model, "one", one).policy
    never = CONFIG.model_copy(update={"learning_rate": 1e-12, "epochs": 1})
    own, base, other = (
        train(store, first, name, never, reference=reference)
        for name, reference in (("own", "start"), ("base", str(tiny_model)), ("other", first))
    )
    assert own.first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert other.first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert base.first["rewards/margins"] > 0.1
    last = read(store.folder / "one" / "metrics.jsonl")[-1]
    assert base.last["logps/chosen"] - base.last["logratios/chosen"] == pytest.approx(
        last["logps/chosen"] - last["logratios/chosen"], abs=1.5
    )
    third = train(store, tiny_model, "third", never, reference=first)
    assert third.first["rewards/margins"] == pytest.approx(-base.first["rewards/margins"], rel=0.2)
    assert json.loads(Path(own.policy, "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)


def test_an_adapter_names_its_base_so_that_it_is_found(
    store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder by its whole path; the embedded model by its name, also when a round goes on with the
    adapter."""
    store.append("preferences", [preference(i) for i in range(2)])
    monkeypatch.chdir(tiny_model.parent)
    config = Path(train(store, tiny_model.name, "relative").policy, "adapter_config.json")
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(tiny_model.resolve())

    monkeypatch.setattr(resources, "_embedded", lambda: tiny_model)
    first = train(store, resources.EMBEDDED, "first").policy
    second = train(store, first, "second").policy
    for policy in (first, second):
        config = Path(policy, "adapter_config.json")
        assert json.loads(config.read_text())["base_model_name_or_path"] == resources.EMBEDDED


def test_the_whole_model_is_a_folder_that_stands_alone(store: Store, tiny_model: Path) -> None:
    store.append("preferences", [preference(i) for i in range(4)])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"lora": None, "learning_rate": 1e-3}))
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {p.name for p in Path(result.policy).iterdir()}
    assert train(store, result.policy, "again").rows == 4


def test_rows_that_cannot_be_trained_on_are_counted(store: Store, tiny_model: Path) -> None:
    rows = [preference(0), preference(1, "Never."), preference(2, " "), preference(3, "word " * 50), preference(4)]
    store.append("preferences", rows)
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"max_completion_length": 20}))
    assert result.rows == 3
    assert dict(result.skipped) == {"chosen and rejected are the same": 1, "empty completion": 1}
    assert result.truncated == 1


def test_an_answer_cut_at_its_limit_has_no_end_to_learn(store: Store, tiny_model: Path) -> None:
    store.append("preferences", [preference(0)])
    train(store, tiny_model, "whole", CONFIG.model_copy(update={"epochs": 1}))
    store.append("candidates", [candidate("c0", "length"), candidate("d0", "stop")])
    train(store, tiny_model, "cut", CONFIG.model_copy(update={"epochs": 1}))
    counts = sorted(row["tokens"] for row in store.read("logps"))
    assert len(counts) == 3  # the rejected is the same row; the chosen lost its end
    assert counts[-1] - counts[-2] == 1


def test_nothing_to_train_on_is_said(store: Store, tiny_model: Path) -> None:
    with pytest.raises(FactoryError, match="there are no preferences to train on\n"):
        train(store, tiny_model, "out")
    store.append("preferences", [preference(1, "Never.")])
    with pytest.raises(FactoryError, match="1 left out: chosen and rejected are the same"):
        train(store, tiny_model, "out")
    assert not (store.folder / "out").exists()


@pytest.mark.parametrize("place", ["train.logps.PackedForward.token_logps", "torch.optim.AdamW.step"])
def test_memory_that_runs_out_beside_the_gradients_is_said(
    place: str, store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's pass, and the optimiser's state in the first step."""
    store.append("preferences", [preference(i) for i in range(4)])
    with monkeypatch.context() as short:
        short.setattr(place, lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")))
        with pytest.raises(FactoryError, match="out of memory") as caught:
            train(store, tiny_model, "out")
    assert "micro_batch_tokens" in caught.value.todo
    assert train(store, tiny_model, "out").steps > 0


def test_a_finished_training_is_handed_back(store: Store, tiny_model: Path, forwards: list[int]) -> None:
    store.append("preferences", [preference(i) for i in range(4)])
    first = train(store, tiny_model, "out")
    forwards.clear()
    assert train(store, tiny_model, "out") == first
    assert forwards == []


def test_another_trainings_folder_is_refused(store: Store, tiny_model: Path) -> None:
    store.append("preferences", [preference(i) for i in range(4)])
    train(store, tiny_model, "out")
    with pytest.raises(FactoryError, match="policy of another training"):
        train(store, tiny_model, "out", CONFIG.model_copy(update={"seed": 5}))


# ---------------------------------------------------------------------------------------------- rows as they are given


def test_where_the_other_table_has_rows_a_method_for_them_is_named(store: Store, tiny_model: Path) -> None:
    store.append("labels", [label(i) for i in range(4)])
    with pytest.raises(FactoryError, match=r"no preferences[\s\S]*4 labels: take a method on those, such as kto"):
        train(store, tiny_model, "out")


def test_an_answer_of_several_turns_is_learnt_whole(store: Store, tiny_model: Path) -> None:
    """The assistant's turns, not the user's between: their metrics count what is learnt."""
    turns: list[Message] = [*said("The sea."), *asked(3), *said("The river.")]
    store.append("preferences", [replace(preference(0), chosen=turns)])
    train(store, tiny_model, "out", CONFIG.model_copy(update={"epochs": 1}))
    tokenizer = load_tokenizer(str(tiny_model))
    wanted = sum(len(tokenizer(text)["input_ids"]) + 1 for text in ("The sea.", "The river."))
    assert read(store.folder / "out" / "metrics.jsonl")[0]["lengths/chosen"] == wanted


@pytest.mark.parametrize(
    ("good", "bad", "parameters", "told"),
    [
        (10, 10, {}, ""),
        (5, 10, {}, ""),
        (8, 3, {}, ""),
        (1, 10, {}, "weigh 0.1 times what bad ones do, so that the good ones teach little"),
        (1, 10, {}, "-p desirable_weight=10"),
        (1, 10, {"desirable_weight": 10.0}, ""),
        (4, 1, {}, "-p undesirable_weight=3 (in a recipe pair.label_weights, "),
        (4, 1, {}, "or train.config.parameters.undesirable_weight)"),
        (2, 251, {}, "weigh 0.008 times what"),
        (2, 251, {}, "-p desirable_weight=130 "),
        (800, 3, {}, "weigh 270 times what"),
        (8, 1, {"undesirable_weight": 2.0}, "-p undesirable_weight=6"),
        (3, 0, {}, ""),
    ],
)
def test_labels_of_which_one_kind_weighs_too_little_are_told_of(
    good: int, bad: int, parameters: dict[str, float], told: str
) -> None:
    """KTO's paper asks for 1 to 4/3 (2402.01306); what is advised is within that."""
    found = [LabelRow((1,), (2,), desirable=kind) for kind in (True,) * good + (False,) * bad]
    said = lopsided(found, parameters)
    assert told in said
    assert bool(said) == bool(told)


def test_weights_of_rows_count_in_the_balance_of_labels() -> None:
    bad = [LabelRow((1,), (2,), desirable=False) for _ in range(5)]
    assert lopsided([LabelRow((1,), (2,), desirable=True, weight=5.0), *bad], {}) == ""


def test_a_training_says_that_its_labels_are_out_of_balance(
    store: Store, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.append("labels", [replace(label(i), label=i == 0) for i in range(6)])
    data = stored(store, losses.get("kto"), {"run": "r"}, None, str(tiny_model), TrainConfig(method="kto"))
    assert len(data.rows) == 6
    assert "factory pair --label-weights balanced" in caplog.text


def test_cuts_are_counted_in_rows_and_tokens(store: Store, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.append("preferences", [preference(0), preference(1, chosen="The sea is old and wide and blue.")])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"max_completion_length": 12, "epochs": 1}))
    whole = [len(load_tokenizer(str(tiny_model))(t)["input_ids"]) + 1 for t in (
        "The sea is old.", "The sea is old and wide and blue.", "Never.", "Never."
    )]  # fmt: skip
    cuts = [max(0, n - 12) for n in whole]
    assert result.truncated_tokens == sum(cuts) > 0
    assert f"are cut to the limits on length, by {sum(cuts)} tokens in all" in caplog.text


# -------------------------------------------------------------------------------------------------------- its reward


def test_an_online_training_is_of_its_reward_which_is_closed(
    store: Store, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another weight makes another training, another budget does not; the judge is closed."""
    closed: list[str] = []
    monkeypatch.setattr(VerifierJudge, "close", lambda self: closed.append(self.name))
    wanted = [{"kind": "include", "words": ["sea"]}]
    store.append("prompts", [replace(prompt(i, "train"), constraints=wanted) for i in range(2)])
    config = CONFIG.model_copy(
        update={"method": "grpo", "online": OnlineSpec(steps=1, n=2, prompts=2, max_tokens=4), "parameters": {}}
    )
    one, two = (Rewards(parts=(RewardPart(judge="verifier", weight=weight),)) for weight in (1.0, 2.0))
    result = train(store, tiny_model, "out", config, reward=one)
    assert closed == ["verifier"]
    assert train(store, tiny_model, "out", config, reward=one) == result
    assert train(store, tiny_model, "out", config, reward=replace(one, max_tokens=10**6)) == result
    with pytest.raises(FactoryError, match="policy of another training"):
        train(store, tiny_model, "out", config, reward=two)


def test_two_at_once_do_not_write_into_one_folder(store: Store, tiny_model: Path) -> None:
    store.append("preferences", [preference(i) for i in range(4)])
    out = store.folder / "out"
    out.mkdir()
    with (
        held(out / "writing.lock", "the folder of the training"),
        pytest.raises(LockedError, match=f"the folder of the training is held by process {os.getpid()}"),
    ):
        train(store, tiny_model, "out")
    assert not (out / "policy").exists()
    assert train(store, tiny_model, "out").rows == 4
