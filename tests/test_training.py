"""From the store's rows to a policy's folder: what is read, what is kept, what a kill leaves, what is refused."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factory import crash, resources
from factory.faults import ConfigError, FactoryError, LockedError
from factory.judges.verifier import VerifierJudge
from factory.schema import Candidate, Label, Message, Preference, Prompt, digest, now
from factory.store import Store
from factory.store.locks import held
from factory.training import config_of, needs, plan_training, train_policy
from factory.training.best_of import best
from factory.training.rewards import RewardPart, Rewards
from train import logps
from train.config import BestSpec, LoraSpec, OnlineSpec, TrainConfig
from train.metrics import read, timeless
from train.policy import load_tokenizer

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "transformers", "peft", "pyarrow.dataset", "factory.training", "train.trainer"])
CONFIG = TrainConfig(learning_rate=1e-2, batch_size=4, threads=1, dtype="float32", lora=LoraSpec(r=4), save_every=2)
WORDS = ("sea", "river", "bread", "music", "glass", "story", "answer", "letter", "mountain", "sentence")


def said(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def asked(i: int) -> list[Message]:
    return [{"role": "user", "content": f"Tell me something about {WORDS[i % 10]} number {i}."}]


def preference(i: int, chosen: str = "", rejected: str = "Never.", round: int = 1) -> Preference:
    return Preference(
        key=digest("preference", i, round), run="r", round=round, prompt=asked(i),
        chosen=said(chosen or f"The {WORDS[i % 10]} is old."), rejected=said(rejected), prompt_key=str(i),
        chosen_key=f"c{i}", rejected_key=f"d{i}", margin=1.0, at=now(),
    )  # fmt: skip


def label(i: int) -> Label:
    return Label(
        key=digest("label", i), run="r", round=1, prompt=asked(i), completion=said(f"{WORDS[i % 10]}, {i}."),
        label=i % 2 == 0, prompt_key=str(i), candidate_key=f"c{i}", weight=1.0 + i % 2, at=now(),
    )  # fmt: skip


def candidate(key: str, finish_reason: str) -> Candidate:
    return Candidate(
        key=key, run="r", round=1, prompt_key="0", split="train", model="tiny", finish_reason=finish_reason, at=now()
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of every forward pass without gradients."""
    counts: list[int] = []
    whole = logps.PackedForward.token_logps

    def counted(self: logps.PackedForward, groups: Any, *, spread: bool = False) -> Any:
        if not torch.is_grad_enabled():
            counts.append(len(groups))
        return whole(self, groups, spread=spread)

    monkeypatch.setattr(logps.PackedForward, "token_logps", counted)
    return counts


def train(store: Store, start: Path | str, out: str, config: TrainConfig = CONFIG, **more: Any) -> Any:
    settings: dict[str, Any] = {"run": "r", "rounds": [1], "out": store.folder / out, "config": config}
    return train_policy(store, start=str(start), **(settings | more))


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
    adapter = json.loads(Path(result.policy, "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tiny_model)


def test_labels_become_a_policy(store: Store, tiny_model: Path) -> None:
    store.append("labels", [label(i) for i in range(10)])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"method": "kto", "epochs": 4}))
    assert result.last["rewards/margins"] > result.first["rewards/margins"]
    assert result.first["kl"] >= 0
    assert len(store.read("logps")) == 20  # every answer after its own prompt, and after another


def prompt(i: int, split: str) -> Prompt:
    return Prompt(key=str(i), messages=asked(i), split=split, group=str(i), at=now())


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


# --------------------------------------------------------------------------------------------------------- kills


def _train(folder: str, model: str, method: str, crash_at: str) -> None:
    os.environ[crash.VARIABLE] = crash_at
    torch.set_num_threads(1)
    logps.DEFAULT_BATCH_TOKENS["cpu"] = 200  # several batches of scoring
    with Store.open(folder) as store:
        train(store, model, "out", CONFIG.model_copy(update={"method": method}))


def run_child(*arguments: str) -> int | None:
    child = FORKS.Process(target=_train, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after a DPO training that nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    with Store.open(folder, create=True) as store:
        store.append("preferences", [preference(i) for i in range(10)])
    assert run_child(str(folder), str(tiny_model), "dpo", "") == 0
    return folder


@pytest.mark.parametrize(
    "point",
    [
        "train.after_score:2",
        "train.after_step:3",
        "train.mid_checkpoint:2",
        "train.before_policy",
        "train.after_policy",
    ],
)
def test_a_killed_training_ends_the_same(point: str, uninterrupted: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Store.open(folder, create=True) as store:
        store.append("preferences", [preference(i) for i in range(10)])
    assert run_child(str(folder), str(tiny_model), "dpo", point) == -signal.SIGKILL
    assert run_child(str(folder), str(tiny_model), "dpo", "") == 0

    ours, theirs = folder / "out", uninterrupted / "out"
    name = "policy/adapter_model.safetensors"
    wanted, got = load_file(theirs / name), load_file(ours / name)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    lines = [[timeless(line) for line in read(out / "metrics.jsonl")] for out in (ours, theirs)]
    assert lines[0] == lines[1]
    assert sorted(p.name for p in ours.iterdir()) == ["metrics.jsonl", "policy"]
    with Store.open(folder) as left, Store.open(uninterrupted) as right:
        columns = ["key", "logprob", "tokens"]
        assert left.read("logps", columns=columns) == right.read("logps", columns=columns)


def test_every_point_of_training_is_in_the_kill_test() -> None:
    points = {name for name in crash.POINTS if name.startswith("train.")}
    assert points == {
        "train.after_score", "train.after_step", "train.mid_checkpoint", "train.before_policy", "train.after_policy"
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ settings


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


# --------------------------------------------------------------------------------------------------------- plans


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


def test_cuts_are_counted_in_rows_and_tokens(store: Store, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.append("preferences", [preference(0), preference(1, chosen="The sea is old and wide and blue.")])
    result = train(store, tiny_model, "out", CONFIG.model_copy(update={"max_completion_length": 12, "epochs": 1}))
    whole = [len(load_tokenizer(str(tiny_model))(t)["input_ids"]) + 1 for t in (
        "The sea is old.", "The sea is old and wide and blue.", "Never.", "Never."
    )]  # fmt: skip
    cuts = [max(0, n - 12) for n in whole]
    assert result.truncated_tokens == sum(cuts) > 0
    assert f"are cut to the limits on length, by {sum(cuts)} tokens in all" in caplog.text


# ------------------------------------------------------------------------------------- the best answer to each prompt


def scored(i: int, answer: int, score: float) -> Label:
    key = f"c{i}-{answer}"
    return Label(
        key=key, run="r", round=1, prompt=asked(i), completion=said(f"{WORDS[answer]}, {i}."), label=score >= 0.5,
        prompt_key=str(i), candidate_key=key, score=score, at=now(),
    )  # fmt: skip


def test_raft_learns_the_best_answer_to_each_prompt_and_says_so(store: Store, tiny_model: Path) -> None:
    scores = ((0.9, 0.6, 0.1), (0.2, 0.1, 0.0), (0.7, 0.7, 0.3), (0.5, 1.0, 0.9))
    store.append("labels", [scored(i, j, score) for i, each in enumerate(scores) for j, score in enumerate(each)])
    raft = CONFIG.model_copy(update={"method": "raft", "epochs": 1})
    result = train(store, tiny_model, "raft", raft)
    assert (result.rows, dict(result.skipped)) == (3, {})
    assert result.best == {
        "prompts": 4, "answers": 12, "taken": 3, "tied": 1, "single": 0, "without": {"no answer passed": 1},
    }  # fmt: skip
    kept = json.loads(Path(result.policy, "training.json").read_text())
    assert (kept["result"]["method"], kept["result"]["best"]) == ("raft", result.best)
    assert train(store, tiny_model, "raft", raft) == result  # the folder gives back what it was
    learnt = best(store.rows(Label), BestSpec(), CONFIG.seed).rows
    where = {"candidate_key": [row.candidate_key for row in learnt]}
    same = train(store, tiny_model, "sft", raft.model_copy(update={"method": "sft"}), where=where)
    assert (same.rows, same.best) == (3, {})
    weights = [load_file(Path(each.policy, "adapter_model.safetensors")) for each in (result, same)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_raft_without_a_good_answer_says_what_to_do(store: Store, tiny_model: Path) -> None:
    store.append("labels", [scored(i, j, 0.1 * j) for i in range(3) for j in range(3)])
    raft = CONFIG.model_copy(update={"method": "raft"})
    with pytest.raises(FactoryError, match=r"none of 3 prompts has a best answer to learn: no answer passed \(3\)"):
        train(store, tiny_model, "out", raft)
    worse = config_of(method="raft", settings={"best": {"passing": False, "min_score": 0.15}}, parameters={})
    assert train(store, tiny_model, "out", worse.model_copy(update={"threads": 1, "epochs": 1})).rows == 3


def test_a_plan_of_raft_counts_the_answers_that_are_taken(store: Store, tiny_model: Path) -> None:
    store.append("labels", [scored(i, j, 0.5 + 0.1 * j) for i in range(3) for j in range(3)])
    found = plan_training(
        store, run="r", rounds=[1], start=str(tiny_model), config=CONFIG.model_copy(update={"method": "raft"})
    )
    assert found.rows == 3


def test_what_is_the_best_is_for_raft_alone() -> None:
    with pytest.raises(ConfigError, match="sft learns all rows; raft learns the best"):
        config_of(method="sft", settings={"best": {"min_score": 0.5}}, parameters={})
    assert needs(config_of(method="raft", settings={}, parameters={})) == "labels"


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
