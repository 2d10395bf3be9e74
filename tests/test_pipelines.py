"""Every bundled recipe: documented, without faults, and run to its end on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run

from factory import recipe as recipes
from factory.rounds import preflight

NAMES = sorted(recipes.bundled_recipes())
WANTED = {
    "quickstart", "rlaif", "iterative_dpo", "online_dpo", "kto_rounds", "constitutional", "self_rewarding", "best_of_n",
    "raft", "bond", "grpo", "ppo", "simpo_onpolicy", "verifiable",
}  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.short_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Revisions, and judgments in the form that is asked for."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(tiny_run.RULES)
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
    text = tiny_run.shrunk(name, tiny_model, prompts, rules)
    assert tiny_run.finish(tmp_path / "store", text) == 0, tiny_run.log_of(tmp_path / "store")
    rows = tiny_run.tables_of(tmp_path / "store")["rounds"]
    last = max(rows, key=lambda row: row["round"])
    assert (last["round"], last["rule"]) == (1, "max_rounds")
    policy = tmp_path / "store" / "runs" / "tiny" / "round-1" / "policy"
    assert (policy / "adapter_model.safetensors").is_file()
    assert last["report"]["training"]["steps"] > 0
    assert "loss" in last["report"]["training"]["last"]  # there was something to learn from
