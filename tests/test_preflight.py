"""Names and options of a recipe, looked up before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory import recipe as recipes
from factory.faults import ConfigError
from factory.rounds import preflight

ADMITTED = "evaluate: {independent: false}\n"
LEAST = f"name: least\npanel: [{{judge: verifier}}]\n{ADMITTED}"


def told(text: str, *overrides: str) -> list[str]:
    return list(preflight.faults(recipes.parse(text, where="least", overrides=overrides)))


@pytest.mark.parametrize("name", sorted(recipes.bundled_recipes()))
def test_the_bundled_recipes_are_sound(name: str) -> None:
    preflight.check(recipes.load(name), where=name)


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("engine.kind=transfomers", "engine", "did you mean 'transformers'"),
        ("engine={kind: scripted, options: {modle: x}}", "engine", "option of the scripted engine"),
        ("panel.0.judge=verifer", "panel.0", "did you mean 'verifier'"),
        ("panel.0.options.leest=3", "panel.0", "its options are least"),
        ("panel.0.matchups=evry", "panel.0", "choice of matchups"),
        ("panel.0.matchups=random", "panel.0", "needs a number"),
        ("panel.0.engine.kind=opnai", "panel.0.engine", "did you mean 'openai'"),
        ("pair.strategy=best_wurst", "pair.strategy", "did you mean 'best_worst'"),
        ("pair.combine=dawid", "pair.combine", "dawid_skene"),
        ("pair.quantiles=[0.9, 0.1]", "pair", "the lower first"),
        ("train.config.method=simppo", "train.config", "did you mean 'simpo'"),
        ("train.config.parameters.betta=1", "train.config", "no parameter 'betta'"),
    ],
)
def test_a_wrong_name_is_told_with_its_key(override: str, key: str, said: str) -> None:
    [fault] = told(LEAST, override)
    assert fault.startswith(f"{key}: ")
    assert said in fault


ENDPOINT = "{kind: openai, model: big, options: {base_url: http://h/v1%s}}"


def test_a_cap_on_dollars_needs_the_prices_of_every_model_that_is_paid_for() -> None:
    """Else a run would generate for hours before its judge is refused."""
    panel = f"{ADMITTED}name: x\npanel: [{{judge: verifier}}, {{judge: pairwise, engine: %s}}]\n"
    other = ", prices: {other: {prompt: 1, completion: 1}}"
    for form in ("", other):
        [fault] = told(panel % (ENDPOINT % form), "budget.max_cost=1")
        assert fault == "budget.max_cost: cannot be kept: no prices of big are given"
        assert told(panel % (ENDPOINT % form), "budget.max_tokens=1000") == []
    assert told(panel % (ENDPOINT % other.replace("other", "big")), "budget.max_cost=1") == []
    [fault] = told(LEAST, "budget.max_cost=1", "engine.kind=openai")
    assert "no prices of smollm2-135m-instruct" in fault


def test_an_engine_of_one_process_has_no_count() -> None:
    [fault] = told(LEAST, "engine.kind=openai", "engine.count=2")
    assert fault.startswith("engine: count: the openai engine")
    assert told(LEAST, "engine.count=2") == []


def test_a_choice_by_scores_needs_a_pointwise_judge_before_it() -> None:
    alone = "name: x\npanel: [{judge: pairwise, matchups: verifier_ties}]\n"
    [fault] = told(alone)
    assert "pointwise judge before it" in fault
    assert told(ADMITTED + "name: x\npanel: [{judge: verifier}, {judge: pairwise, matchups: verifier_ties}]\n") == []


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    wrong = recipes.parse(LEAST, where="x", overrides=["pair.strategy=x", "engine.kind=x", "train.config.method=x"])
    with pytest.raises(ConfigError) as caught:
        preflight.check(wrong, where="mine.yaml")
    assert len(caught.value.faults) == 3
    assert caught.value.where == "mine.yaml"


PANEL = "name: x\npanel: [{judge: verifier}, {judge: rating, model: big}]\n"
ECHO = "evaluate.independent: the verifier labels and measures"


def test_a_measure_that_labels_must_be_admitted() -> None:
    [fault] = told(PANEL)
    assert fault.startswith(ECHO)
    assert told(PANEL, "evaluate.independent=false") == []
    assert told(PANEL, "evaluate.judge={judge: pairwise, model: other}") == []
    [still] = told(PANEL, "evaluate.judge={judge: rating, name: another}")
    assert still.startswith(ECHO)
    assert told("name: x\npanel: [{judge: rating}]\n") == []


def test_a_verifier_that_rewards_labels_too() -> None:
    online = "name: x\npanel: [{judge: rating}]\ntrain: {config: {method: grpo, online: {steps: 2}}}\nstages: [train]\n"
    [fault] = told(online)
    assert fault.startswith(ECHO)
    assert preflight.labelled_by(recipes.parse(online, where="x")) == {"verifier": ""}
    assert told(online, "train.reward={judge: reward_model, options: {model: m}}") == []


def test_who_labelled_is_told_by_name_kind_and_model() -> None:
    panel = "[{judge: rating, name: strict}, {judge: pairwise, model: big}, {judge: verifier}]"
    found = preflight.labelled_by(recipes.parse(f"name: x\nmodel: mine\npanel: {panel}\n", where="x"))
    assert found == {"rating": "mine", "strict": "mine", "pairwise": "big", "verifier": ""}


def test_the_evaluation_s_judge_is_looked_up() -> None:
    [fault] = told(PANEL, "evaluate.judge={judge: pairwsie}")
    assert fault.startswith("evaluate.judge: no judge named 'pairwsie'")


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[label, train]", "label needs a stage generate"),
        ("[generate, label, train]", "train needs a stage pair"),
        ("[generate, label, pair]", "no policy"),
        ("[generate, {stage: label, rounds: first}, pair, train]", "pair needs a stage label"),
    ],
)
def test_a_stage_comes_after_what_it_works_on(stages: str, said: str) -> None:
    assert any(said in fault for fault in told(LEAST + f"stages: {stages}\n"))
