"""What a run would take, counted before it begins."""

from __future__ import annotations

from factory import recipe as recipes
from factory.rounds import forecast


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
