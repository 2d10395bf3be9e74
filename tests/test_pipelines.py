"""Every bundled recipe: documented, without faults, and run to its end on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from factory import preflight, recipe as recipes
from factory.judges import judges

NAMES = sorted(recipes.bundled_recipes())
WANTED = {
    "quickstart", "rlaif", "iterative_dpo", "online_dpo", "kto_rounds", "constitutional", "self_rewarding", "best_of_n",
    "raft", "bond", "grpo", "ppo", "simpo_onpolicy", "verifiable",
}  # fmt: skip
RULES = """
- {match: Write it anew, reply: [A better answer without any., "Another answer, and better."]}
- {match: "Score: <", reply: ["It says something.\\nScore: 1", "It is good.\\nScore: 4", "It will do.\\nScore: 3"]}
- {match: judgments, asks: true, answer_logprobs: {A: -0.2, B: -2.0}}
"""


def scripted(part: dict[str, Any], rules: Path) -> dict[str, Any]:
    """A judge that asks a model asks a scripted one; programs stay as they are."""
    if part["judge"] == "verifier":  # a random model's words have no substance
        part = part | {"options": {"least": 0}}
    asks = judges.facts(part["judge"])["asks"]
    return part | {"engine": {"kind": "scripted", "model": str(rules)}} if asks else part


def shrunk(name: str, model: Path, prompts: Path, rules: Path, **more: Any) -> str:
    """A bundled recipe at the size of a test, as YAML (JSON is YAML): what it does stays."""
    data = recipes.load(name).model_dump(mode="json")
    data |= {"model": str(model), "name": "tiny", "isolate": "never", "seed": 1}
    data["engine"] = {"kind": "transformers", "options": {"dtype": "float32", "threads": 1, "batch_size": 8}}
    data["prompts"] |= {"source": str(prompts), "per_round": 6}
    data["generate"] |= {"n": 3, "max_tokens": 8}
    data["revise"] |= {"max_tokens": 8}
    data["evaluate"] |= {"n": 1, "max_tokens": 8, "limit": 4, "score_limit": 2}
    data["stop"] = {"max_rounds": 1, "any": []}
    data["panel"] = [scripted(part, rules) for part in data["panel"]]
    if data["train"]["reward"]:
        data["train"]["reward"] = scripted(data["train"]["reward"], rules)
    small = {"batch_size": 4, "dtype": "float32", "threads": 1, "save_every": 1, "epochs": 1}
    for config in [data["train"]["config"], *(s["set"].get("train.config", {}) for s in data["stages"])]:
        config |= small
        config["lora"] = {"r": 4}
        if config.get("online"):
            config["online"] |= {"steps": 2, "prompts": 2, "n": 2, "max_tokens": 6}
    for step in data["stages"]:
        if step["stage"] == "revise":  # a random model's critiques are none
            step["set"]["engine"] = {"kind": "scripted", "model": str(rules)}
        if "panel" in step["set"]:
            step["set"]["panel"] = [scripted(part, rules) for part in step["set"]["panel"]]
    return json.dumps(data | more)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    limit = [{"kind": "max_words", "count": 2}]  # some of a random model's eight tokens meet it
    lines = [{"prompt": f"Tell me about thing number {i}.", "topic": f"t{i}", "constraints": limit} for i in range(32)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Revisions, and judgments in the form that is asked for."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(RULES)
    return path


def test_every_pipeline_is_there() -> None:
    assert set(NAMES) == WANTED


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_does_how_to_run_it_and_what_to_turn(name: str) -> None:
    text = recipes.find(name).read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert len(head) >= 2
    if name != "quickstart":
        assert any(f"factory run {name}" in line for line in head)
        assert any("Worth knowing" in line for line in head)
    preflight.check(recipes.load(name), where=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_to_its_end(name: str, tiny_model: Path, prompts: Path, rules: Path, tmp_path: Path) -> None:
    text = shrunk(name, tiny_model, prompts, rules)
    assert tiny_run.finish(tmp_path / "store", text) == 0, tiny_run.log_of(tmp_path / "store")
    rows = tiny_run.tables_of(tmp_path / "store")["rounds"]
    last = max(rows, key=lambda row: row["round"])
    assert (last["round"], last["rule"]) == (1, "max_rounds")
    policy = tmp_path / "store" / "runs" / "tiny" / "round-1" / "policy"
    assert (policy / "adapter_model.safetensors").is_file()
    assert last["report"]["training"]["steps"] > 0
