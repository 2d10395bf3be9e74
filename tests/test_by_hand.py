"""Stages run by hand, command by command, leave the rows that a run of the recipe leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from typer.testing import CliRunner

from factory.cli import app

RECIPE = """
name: tiny
seed: 1
engine: {kind: transformers, options: {dtype: float32, threads: 1, batch_size: 8}}
generate: {n: 3, max_tokens: 8}
panel: [{judge: verifier, options: {least: 0}}]
pair: {strategy: all, lead: verifier}
train: {config: {method: dpo, epochs: 1, batch_size: 4, lora: {r: 4}, dtype: float32, threads: 1}}
evaluate: {max_tokens: 8, limit: 4, score_limit: 2, independent: false}
stop: {max_rounds: 1, any: []}
isolate: never
"""
ROWS = {"candidates": ("key", "text"), "judgments": ("key", "score"), "preferences": ("key", "weight"),
        "labels": ("key", "label")}  # fmt: skip


def factory(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


def rows_of(store: Path) -> dict[str, set[tuple[Any, ...]]]:
    """What the first round's own stages wrote, evaluation left out."""
    found = tiny_run.tables_of(store)
    train = {row["key"] for row in found["prompts"] if row["split"] == "train"}
    return {
        table: {tuple(row[name] for name in names) for row in found[table]
                if row["round"] == 1 and row["run"] == "tiny" and row["prompt_key"] in train}
        for table, names in ROWS.items()
    }  # fmt: skip


@pytest.mark.slow
def test_the_same_rows_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tiny_run.short_prompts(tmp_path / "prompts.jsonl", 12)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE + f"model: {tiny_model}\nprompts: {{source: {prompts}, per_round: 1000}}\n")
    run, hand = tmp_path / "run", tmp_path / "hand"
    factory("run", recipe, "--store", run, "--run", "tiny")
    place = ("--store", hand, "--run", "tiny", "--round", 1)
    factory("prompts", "add", prompts, "--store", hand)
    engine = [part for option in ("dtype=float32", "threads=1", "batch_size=8") for part in ("-E", option)]
    factory("generate", *place, "--model", tiny_model, *engine, "--n", 3, "--max-tokens", 8, "--seed", 2)
    factory("label", *place, "--judge", "verifier", "-J", "verifier.least=0", "--seed", 2)
    factory("pair", *place, "--strategy", "all", "--lead", "verifier", "--seed", 2)
    settings = ("epochs=1", "batch_size=4", "lora={r: 4}", "dtype=float32", "threads=1", "seed=2")
    told = [part for setting in settings for part in ("--set", setting)]
    factory("train", *place, "--model", tiny_model, "--strategy", "all", *told)
    assert rows_of(hand) == rows_of(run)
    assert all(rows_of(run).values())
    identities = [
        json.loads((store / "runs" / "tiny" / "round-1" / "policy" / "training.json").read_text())["identity"]
        for store in (hand, run)
    ]
    assert identities[0] == identities[1]
    weights = [
        (store / "runs" / "tiny" / "round-1" / "policy" / "adapter_model.safetensors").read_bytes()
        for store in (hand, run)
    ]
    assert weights[0] == weights[1]
