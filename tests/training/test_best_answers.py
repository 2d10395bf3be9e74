"""The best answer to each prompt, which raft learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_rows import CONFIG, WORDS, asked, said, train

from factory.faults import ConfigError, FactoryError
from factory.schema import Label, now
from factory.store import Store
from factory.training import config_of, needs, plan_training
from factory.training.best_of import best
from train.config import BestSpec


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
