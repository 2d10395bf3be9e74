"""What a run would take, counted before it begins."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from factory import recipe as recipes, rounds
from factory.engines.scripted import ScriptedEngine
from factory.evaluation import likelihoods
from factory.evaluation.likelihoods import Item
from factory.evaluation.measures import Scored
from factory.rounds import forecast
from factory.rounds.runbook import Run
from factory.rounds.stages import STAGES
from factory.schema import Request, text_of
from factory.store import Store

RULES = [{"match": "Score: <", "reply": [f"It is of the kind {i}.\nScore: {i % 5}" for i in range(97)]}]


class Likelihood:
    """Stands in for a model that scores answers: all are as likely."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def score(self, policy: str, items: Sequence[Item]) -> list[Scored]:
        """One token of log-probability -1 each."""
        return [Scored(-1.0, 1, (-1.0,)) for _ in items]


def with_model(engine: ScriptedEngine, request: Request) -> str:
    """Stands in for a conversation as a model reads it: with the model's name, so that each has answers of its own."""
    return f"{engine.identity.model}\n{text_of(request.messages)}\nassistant: {request.prefix}"


def trained(flow: Run, number: int) -> dict[str, Any]:
    """Stands in for a training: another policy, by its name."""
    (flow.out(number) / "policy").mkdir(parents=True)
    return {"training": None, "trained_on": None}


def asked(store: Store, recipe: recipes.Recipe) -> dict[str, int]:
    """Run two rounds; how many calls each stage made."""
    flow = rounds.begin(store, recipe, "run", None)
    calls: Counter[str] = Counter()
    for number in range(3):
        names = [step.name for step in recipe.steps_of(number)] if number else ["prompts"]
        for name in [*names, "evaluate"]:
            before = len(store.read("calls", columns=["key"]))
            rounds.do(flow, number, name)
            calls[name if number else "start"] += len(store.read("calls", columns=["key"])) - before
        rounds.close(flow, number)
    return {name: count for name, count in calls.items() if count}


MEASURED = {
    "n": 1, "limit": 4, "max_tokens": 64, "temperature": 0.8, "probes": 3,
    "judge": {"judge": "pairwise", "name": "other", "engine": {"kind": "scripted", "model": "other"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("constitutional", {"drafts": 6, "revise": 12, "generate": 2 * 24, "label": 2 * 26}),
        ("self_rewarding", {"generate": 2 * 24, "label": 2 * 50, "meta_label": 2 * 12}),
        ("rlaif", {"generate": 2 * 24, "label": 2 * (26 + 26 + 25)}),
    ],
)
def test_the_plan_is_what_a_run_asks_for(
    name: str, stages: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six prompts a round; of four answers each. Two pairs a prompt in both orders with a canary: (12 + 1) x 2. Where
    both evaluations happen to draw the same answer of the start for their canary, the second pays nothing for it."""
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    data = recipes.load(name).model_dump(mode="json")
    data |= {"engine": {"kind": "scripted"}, "isolate": "never"}
    for part in data["panel"]:
        part["engine"] = {"kind": "scripted", "model": str(tmp_path / "rules.yaml")}
    data["prompts"] |= {"source": str(tiny_run.write_prompts(tmp_path / "prompts.jsonl", 40)), "per_round": 6}
    data["collect"]["questions"] = 5
    data |= {"evaluate": data["evaluate"] | MEASURED, "stop": {"max_rounds": 2, "any": []}}
    for step in data["stages"]:
        step["set"].pop("engine", None)
    recipe = recipes.parse(json.dumps(data), where=name)
    monkeypatch.setitem(STAGES, "train", trained)
    monkeypatch.setattr(likelihoods, "ModelScorer", Likelihood)
    monkeypatch.setattr(ScriptedEngine, "render", with_model)
    with Store.open(tmp_path / "store", create=True) as store:
        made = asked(store, recipe)
        heard = [(row["round"], row["call_key"]) for row in store.read("judgments", where={"judge": "other"})]
        again = {key for number, key in heard if number == 1} & {key for number, key in heard if number == 2}
        made["evaluate"] += len(again)
        prompts = dict(Counter(row["split"] for row in store.read("prompts", columns=["split"])))
    assert made == stages | {"start": 4 + 3, "evaluate": 2 * (4 + 3 + (4 + 1) * 2)}
    planned: Counter[str] = Counter()
    for row in forecast.plan(recipe, prompts)["stages"]:
        stage = str(row["stage"])
        named = {"evaluate the start": "start", "evaluate the policy": "evaluate"}
        if "final" not in stage:
            planned[named.get(stage.partition(": ")[0], stage.partition(": ")[0])] += row["calls"]
    assert {stage: calls for stage, calls in planned.items() if calls} == made


def parse(text: str, *overrides: str) -> recipes.Recipe:
    return recipes.parse(text, where="test.yaml", overrides=overrides)


def test_the_plan_knows_the_most_pairs_of_every_choice() -> None:
    def calls(matchups: str) -> int:
        text = f"name: x\npanel: [{{judge: verifier}}, {{judge: pairwise, matchups: '{matchups}'}}]\n"
        stages = forecast.plan(parse(text + "prompts: {per_round: 10}\nstop: {max_rounds: 1}\n"), {"train": 10})[
            "stages"
        ]
        return next(stage["calls"] for stage in stages if stage["stage"] == "label: pairwise")

    assert calls("verifier_ties:1") == calls("random:1") == (10 + 1) * 2
    assert calls("against_best:2") == (20 + 1) * 2
    assert calls("against_best") == (30 + 1) * 2


def test_the_plan_counts_calls_at_most() -> None:
    text = (
        "name: x\npanel: [{judge: verifier}, {judge: pairwise}, {judge: rating}]\nprompts: {per_round: 10}\n"
        "generate: {n: 4, max_tokens: 50}\nevaluate: {limit: 20, max_tokens: 50}\nstop: {max_rounds: 3}\n"
    )
    plan = forecast.plan(parse(text), {"train": 100, "heldout": 30, "final": 5})
    calls = {stage["stage"]: stage["calls"] for stage in plan["stages"] if stage["calls"]}
    assert calls == {
        "evaluate the start": 20,
        "generate": 3 * 10 * 4,
        "label: pairwise": 3 * (10 * 6 + 1) * 2,  # a canary among sixty pairs
        "label: rating": 3 * (10 * 4 + 1),
        "evaluate the policy": 3 * 20,
        "evaluate start and champion on final": 2 * 5,
    }
    assert plan["calls_at_most"] == sum(calls.values())


def test_the_plan_says_that_a_judge_behind_an_endpoint_is_paid_for() -> None:
    here = "name: x\npanel: [{judge: verifier}, {judge: pairwise}]\n"
    assert forecast.plan(parse(here), {"train": 8})["cost_usd"] == 0.0
    there = "name: x\npanel: [{judge: verifier}, {judge: pairwise, engine: {kind: openai}}]\n"
    plan = forecast.plan(parse(there), {"train": 8})
    assert plan["cost_usd"] is None
    assert "unknown" in plan["cost"]


def test_a_priced_endpoint_costs_what_its_tokens_cost() -> None:
    """10 prompts x 2 answers x 50 tokens written at $2 a million, and 60 tokens of a prompt read at $1 a million."""
    engine = "{kind: openai, model: m, options: {base_url: http://h/v1, prices: {prompt: 1, completion: 2}}}"
    text = (
        f"name: x\npanel: [{{judge: verifier}}]\nengine: {engine}\nmodel: m/m/m\ngenerate: {{n: 2, max_tokens: 50}}\n"
    )
    plan = forecast.plan(parse(text, "prompts.per_round=10", "stop.max_rounds=1"), {"train": 10})
    stage = next(row for row in plan["stages"] if row["stage"] == "generate")
    assert stage["cost_usd"] == 20 * (50 * 2 + 60 * 1) / 1e6
    assert plan["cost_usd"] == stage["cost_usd"]
    assert plan["memory"].startswith("unknown")


def test_stages_left_out_ask_for_nothing_and_repeated_ones_are_counted_each() -> None:
    plan = forecast.plan(recipes.load("constitutional"), {"train": 64, "heldout": 10, "final": 5})
    times = {row["stage"]: row["times"] for row in plan["stages"]}
    assert (times["drafts"], times["generate"], times["revise"]) == (1, 2, 1)
    plan = forecast.plan(recipes.load("grpo"), {"train": 64, "heldout": 10, "final": 5})
    assert "generate" not in {row["stage"] for row in plan["stages"]}
    assert plan["memory_bytes"]


def test_judges_that_reward_are_asked_in_every_batch() -> None:
    """5 batches of 2 x 4 answers: a rating of each with a canary, and two pairs a prompt in both orders with one."""
    reward = "[{judge: verifier}, {judge: rating}, {judge: pairwise, matchups: 'random:2'}]"
    online = "{method: grpo, online: {steps: 5, prompts: 2, n: 4, max_tokens: 10}}"
    text = (
        f"name: x\nstages: [train]\npanel: []\ntrain: {{reward: {reward}, config: {online}}}\nstop: {{max_rounds: 3}}\n"
    )
    rows = {row["stage"]: row for row in forecast.plan(parse(text), {"train": 9})["stages"]}
    assert rows["train: rating"]["calls"] == 3 * 5 * (8 + 1)
    assert rows["train: pairwise"]["calls"] == 3 * 5 * (4 + 1) * 2
    assert rows["train (40 rows at most)"]["tokens"] == 3 * 40 * 10


def test_rows_to_train_on_are_those_that_the_stages_before_make() -> None:
    """constitutional: 64 revisions of one draft each are learnt first, then a pair a prompt; raft: the best of 8."""
    sizes = {"train": 100, "heldout": 10, "final": 5}
    for name, trained_on in (
        ("constitutional", ["sft (64 rows at most)", "train (64 rows at most)"]),
        ("self_rewarding", ["train (80 rows at most)"]),  # 48 pairs of answers and 32 of judgments
        ("raft", ["train (64 rows at most)"]),
        ("kto_rounds", ["train (384 rows at most)"]),
    ):
        stages = [row["stage"] for row in forecast.plan(recipes.load(name), sizes)["stages"]]
        assert [stage for stage in stages if "rows at most" in stage] == trained_on
