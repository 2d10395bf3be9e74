"""Trainings on answers of the policy's own in two processes: they sample, learn and go on as one does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from factory import crash
from factory.engines import EngineSpec
from factory.faults import FactoryError
from factory.schema import Call, Candidate, Prompt, now
from factory.store import Store
from factory.training import train_policy
from factory.training.result import TrainResult
from factory.training.rewards import RewardPart, Rewards
from train.config import LoraSpec, OnlineSpec, TrainConfig
from train.launching import Launch
from train.metrics import read, timeless

TWO = Launch(processes=2)
WORDS = ("sea", "rivers", "bread", "music", "glass")
RATED = Rewards(parts=(RewardPart(judge="rating", engine=EngineSpec("scripted", "rater")),), canary_share=0.0)


def fill(folder: Path) -> None:
    with Store.open(folder, create=True) as store:
        store.append("prompts", [
            Prompt(key=word, messages=[{"role": "user", "content": f"Tell me something about {word}."}], split="train",
                   group=word, at=now())
            for word in WORDS
        ])  # fmt: skip


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Store]]:
    """Two with one secret, so that their judges read the same."""
    fill(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    opened = [Store.open(tmp_path / name) for name in ("one", "two")]
    yield opened
    for store in opened:
        store.close()


def settings(method: str, **more: Any) -> TrainConfig:
    spec: dict[str, Any] = {
        "steps": 3,
        "prompts": 3,
        "n": 4,
        "max_tokens": 10,
        "updates": 2 if method in ("ppo", "bond") else 1,
    }
    given: dict[str, Any] = {"lora": LoraSpec(r=4), "learning_rate": 1e-3, "dtype": "float32", "threads": 1}
    return TrainConfig(method=method, online=OnlineSpec(**spec), warmup=0.0, schedule="constant", **given | more)


def trained(store: Store, model: Path, config: TrainConfig, processes: Launch | None = None) -> TrainResult:
    return train_policy(
        store, run="r", rounds=[0], start=str(model), out=store.folder / "out", config=config, reward=RATED,
        processes=processes,
    )  # fmt: skip


def answers(store: Store) -> list[tuple[str, str, int, str]]:
    """Batch, prompt, sample and text of everything that was sampled."""
    return sorted((c.model.rpartition(",")[2], c.prompt_key, c.sample, c.text) for c in store.rows(Candidate))


def weights(result: TrainResult) -> dict[str, torch.Tensor]:
    (path,) = Path(result.policy).glob("*.safetensors")
    return load_file(path)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "lora"), [("ppo", LoraSpec(r=4)), ("bond", None), ("dpo", LoraSpec(r=4))])
def test_two_processes_sample_and_learn_as_one(
    method: str, lora: LoraSpec | None, tiny_model: Path, stores: list[Store]
) -> None:
    """The same answers; the same metrics and weights to 1e-5 or so (AdamW divides by small gradients)."""
    config = settings(method, lora=lora, clip=None, learning_rate=1e-5)
    one = trained(stores[0], tiny_model, config)
    two = trained(stores[1], tiny_model, config, TWO)
    assert answers(stores[0]) == answers(stores[1])
    assert len(answers(stores[0])) == 36
    lines = [[timeless(line) for line in read(store.folder / "out" / "metrics.jsonl")] for store in stores]
    assert len(lines[0]) == one.steps == two.steps
    assert any(line.get("grad_norm", 0) > 0 for line in lines[0])
    for ours, theirs in zip(lines[1], lines[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    ours_kept, theirs_kept = weights(two), weights(one)
    assert ours_kept.keys() == theirs_kept.keys()
    assert all(torch.allclose(ours_kept[name], theirs_kept[name], atol=5e-5) for name in theirs_kept)


@pytest.mark.slow
def test_a_killed_one_goes_on_to_the_same_bits_and_pays_nothing_twice(
    tiny_model: Path, stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the third of six steps, between two updates on a batch."""
    config = settings("bond", save_every=1)
    whole = trained(stores[0], tiny_model, config, TWO)
    monkeypatch.setenv(crash.VARIABLE, "train.after_step:3")
    with pytest.raises(FactoryError, match="SIGKILL"):
        trained(stores[1], tiny_model, config, TWO)
    monkeypatch.delenv(crash.VARIABLE)
    assert [p.name for p in (stores[1].folder / "out" / "checkpoints").glob("step-*")] == ["step-000002"]
    paid = {call.key: call.attempt for call in stores[1].rows(Call)}
    again = trained(stores[1], tiny_model, config, TWO)
    ours, theirs = weights(again), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [[timeless(line) for line in read(store.folder / "out" / "metrics.jsonl")] for store in stores]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 6
    calls = [{call.key: call.attempt for call in store.rows(Call)} for store in stores]
    assert calls[0] == calls[1]
    assert paid.items() <= calls[1].items()
    assert answers(stores[0]) == answers(stores[1])


@pytest.mark.slow
def test_what_a_judge_ends_by_reaches_the_caller(tiny_model: Path, stores: list[Store]) -> None:
    """Only the first process asks judges; the others must not wait for ever."""
    spent = Rewards(parts=RATED.parts, canary_share=0.0, max_tokens=1)
    with pytest.raises(FactoryError, match="budget"):
        train_policy(
            stores[0], run="r", rounds=[0], start=str(tiny_model), out=stores[0].folder / "out",
            config=settings("grpo"), reward=spent, processes=TWO,
        )  # fmt: skip
