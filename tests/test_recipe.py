"""Recipes: every fault at once, YAML's traps, overrides, and the bundled ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory import recipe as recipes
from factory.faults import ConfigError, FactoryError

LEAST = "name: least\npanel: [{judge: verifier}]\n"


def parse(text: str, *overrides: str) -> recipes.Recipe:
    return recipes.parse(text, where="test.yaml", overrides=overrides)


def test_the_least_recipe_has_defaults() -> None:
    least = parse(LEAST)
    assert least.lead == "verifier"
    assert least.generate.n == 4
    assert least.train.config.method == "dpo"


def test_every_fault_is_reported_at_once_with_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("name: x\npanel: []\nsped: 3\ngenerate: {n: 0, temperatur: 1}\npair: {label_by: vote}\n")
    faults = "\n".join(caught.value.faults)
    for key in ("panel", "sped", "generate.n", "generate.temperatur", "pair.label_by"):
        assert key in faults
    assert caught.value.where == "test.yaml"
    assert len(caught.value.faults) == 5


def test_scientific_notation_that_yaml_reads_as_text_is_a_number() -> None:
    assert parse(LEAST + "train: {config: {learning_rate: 5e-7}}\n").train.config.learning_rate == 5e-7


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "true"])
def test_a_bare_yes_or_no_is_not_a_number(word: str) -> None:
    with pytest.raises(ConfigError, match=r"generate\.n"):
        parse(LEAST + f"generate: {{n: {word}}}\n")
    with pytest.raises(ConfigError, match="seed"):
        parse(LEAST + f"seed: {word}\n")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'name' is given twice"):
        parse(LEAST + "name: again\n")


@pytest.mark.parametrize("text", ["", "- a\n", "just words", "a: [1, 2", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_names_of_a_panel_are_unique_and_the_lead_is_among_them() -> None:
    with pytest.raises(ConfigError, match="same name"):
        parse("name: x\npanel: [{judge: verifier}, {judge: verifier}]\n")
    with pytest.raises(ConfigError, match="not in the panel"):
        parse(LEAST + "pair: {lead: rating}\n")
    assert parse("name: x\npanel: [{judge: rating, name: r1}, {judge: rating, name: r2}]\n").lead == "r1"


def test_overrides_reach_into_mappings_and_lists() -> None:
    changed = parse(LEAST, "generate.n=8", "panel.0.matchups=random:2", "train.config.learning_rate=1e-5", "seed=3")
    assert changed.generate.n == 8
    assert changed.panel[0].matchups == "random:2"
    assert changed.train.config.learning_rate == 1e-5
    assert changed.seed == 3


@pytest.mark.parametrize(
    "override", ["generate.n", "=3", "panel.7.judge=x", "panel.a.judge=x", "name.x.y=1", "seed=[1"]
)
def test_a_bad_override_says_so(override: str) -> None:
    with pytest.raises(FactoryError):
        parse(LEAST, override)


def test_a_recipe_survives_being_written_down() -> None:
    first = parse(LEAST, "train.config.learning_rate=5e-7")
    assert parse(recipes.dump(first)) == first


def test_a_file_that_is_not_utf8_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(FactoryError, match="cannot be read") as caught:
        recipes.load(str(path))
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("generate: {temperatur: 1}", "generate.temperatur: there is no such key; did you mean 'temperature'?"),
        ("zzz: 1", "zzz: there is no such key. Known: about, budget, collect, engine, evaluate, generate, go_on_from, "
         "isolate, label, model, name, pair, panel, plugins, prompts, revise, seed, stages, stop, train"),
        ("stop: {any: [{rule: no_gain, patiens: 3}]}",
         "stop.any.0.patiens: there is no such key; did you mean 'patience'?"),
        ("generate: {n: four}", "generate.n: must be a whole number (given: 'four')"),
        ("prompts: {per_round: 1.5}", "prompts.per_round: must be a whole number (given: 1.5)"),
        ("generate: {temperature: hot}", "generate.temperature: must be a number (given: 'hot')"),
        ("generate: {temperature: 6}", "generate.temperature: must be 5 or less (given: 6)"),
        ("generate: {top_p: 0}", "generate.top_p: must be above 0 (given: 0)"),
        ("evaluate: {independent: 3}", "evaluate.independent: must be true or false (given: 3)"),
        ("train: {reference: begin}", "train.reference: must be one of start, round (given: 'begin')"),
        ("train: {reference: ruond}",
         "train.reference: must be one of start, round; did you mean 'round'? (given: 'ruond')"),
        ("pair: {quantiles: [0.1, 0.2, 0.3]}", "pair.quantiles: must be 2 at most (given: [0.1, 0.2, 0.3])"),
        ("pair: {quantiles: [0.1]}", "pair.quantiles.1: is missing"),
        ("pair: 3", "pair: must be a mapping of keys to values (given: 3)"),
        ("pair: {strategy: 3}", "pair.strategy: must be text (given: 3)"),
        ("train: {pairings: x}", "train.pairings: must be a list (given: 'x')"),
        ("train: {config: {parameters: {beta: [1]}}}",
         "train.config.parameters.beta: must be true or false or a number or text (given: [1])"),
        ("train: {reward: {judge: verifier, wight: 2}}",
         "train.reward.wight: there is no such key; did you mean 'weight'?"),
        ("train: {reward: [{judge: verifier, weight: 0}]}",
         "train.reward.0.weight: a weight is a number other than 0 (given: 0)"),
        ("stages: [generate, labl]", "stages.1: must be one of generate, revise, label, collect, pair, train; did you "
         "mean 'label'? (given: 'labl')"),
        ("stages: [{stage: train, set: {train.config: {metod: sft}}}]",
         "stages.train.set: train.config.metod: there is no such key; did you mean 'method'?"),
        ("stages: [{stage: generate, name: more, set: {genrate.n: 1}}]",
         "stages.more.set: genrate: there is no such key; did you mean 'generate'?"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_plain_words_with_the_whole_key(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(LEAST + text + "\n")
    assert caught.value.faults == (told,)


def test_a_step_sets_keys_of_the_one_judge_that_rewards_with_or_without_its_place() -> None:
    for key in ("train.reward.weight", "train.reward.0.weight"):
        found = parse(LEAST + f"train: {{reward: {{judge: rating}}}}\nstages: [{{stage: train, set: {{{key}: 2}}}}]\n")
        [part] = found.at(found.step("train")).train.reward or ()
        assert (part.judge, part.weight) == ("rating", 2.0)
    with pytest.raises(FactoryError, match="not a place in a list of 2"):
        parse(LEAST + "train: {reward: [{judge: rating}, {judge: verifier}]}\n", "train.reward.weight=2")


def test_a_fault_of_one_step_is_told_also_where_another_has_its_name() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(LEAST + "stages: [label, {stage: pair, set: {pair.nam: x}}, {stage: pair, set: {pair.name: y}}, train]\n")
    assert caught.value.faults == (
        "stages: each needs a name of its own (name: ...): pair",
        "stages.pair.set: pair.nam: there is no such key; did you mean 'name'?",
    )


def test_a_misspelt_key_is_one_fault_and_what_it_holds_is_looked_at() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("name: x\npanel: [{judg: verifier}, {name: second}]\ngenerate: {temperatur: hot}\n")
    assert caught.value.faults == (
        "generate.temperatur: there is no such key; did you mean 'temperature'?",
        "panel.0.judg: there is no such key; did you mean 'judge'?",
        "panel.1.judge: is missing",
        "generate.temperature: must be a number (given: 'hot')",
    )


def test_what_does_not_go_together_is_told_at_once_but_not_where_its_parts_are_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            LEAST + "pair: {lead: rating}\n"
            "stages: [label, {stage: pair, name: final}, {stage: train, set: {train.config.epochs: 0, seed: x}}]\n"
        )
    told = [fault.partition(": ")[0] for fault in caught.value.faults]
    assert told == ["stages", "stages.train.set", "stages.train.set", "pair.lead"]
    with pytest.raises(ConfigError) as caught:
        parse("name: x\npanel: [{judge: rating, nam: lead}, {}]\npair: {lead: lead}\n")
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == ["panel.0.nam", "panel.1.judge"]


def test_the_rewards_of_a_training_are_one_judge_or_several() -> None:
    lone = parse(LEAST + "train: {reward: {judge: verifier}}\n")
    several = parse(LEAST + "train: {reward: [{judge: verifier}, {judge: rating, weight: 0.5}]}\n")
    assert [(part.judge, part.weight) for part in lone.train.reward or ()] == [("verifier", 1.0)]
    assert [(part.judge, part.weight) for part in several.train.reward or ()] == [("verifier", 1.0), ("rating", 0.5)]
    assert parse(recipes.dump(several)) == several


def test_a_fault_of_the_whole_does_not_print_the_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(LEAST + "pair: {lead: rating}\n")
    assert "given" not in caught.value.what


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(FactoryError, match="did you mean 'quickstart'"):
        recipes.load("quickstrat")
    with pytest.raises(FactoryError, match="no recipe file"):
        recipes.load("nowhere.yaml")


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(LEAST)
    assert recipes.load(str(path)).name == "least"


@pytest.mark.parametrize("name", sorted(recipes.bundled_recipes()))
def test_bundled_recipes_have_no_faults_and_say_what_they_are(name: str) -> None:
    loaded = recipes.load(name)
    assert loaded.name == name
    assert loaded.about


def test_a_stage_may_come_again_with_settings_of_its_own() -> None:
    text = LEAST + "stages: [generate, {stage: generate, name: more, rounds: later, set: {generate.n: 9}}, label]\n"
    found = parse(text)
    assert [step.name for step in found.steps_of(1)] == ["generate", "label"]
    assert [found.at(step).generate.n for step in found.steps_of(2)] == [4, 9, 4]
    assert parse(recipes.dump(found)) == found


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("[generate, generate]", "a name of its own"),
        ("[{stage: train, name: final}]", "a name of its own"),
        ("[{stage: generate, set: {generate.n: 0}}]", "must be 1 or more"),
        ("[{stage: generate, set: {model: other}}]", "of the whole run"),
        ("[{stage: generate, set: {go_on_from: champion}}]", "of the whole run"),
        ("[]", "at least 1"),
        ("[sample]", "generate"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(LEAST + f"stages: {stages}\n")


@pytest.mark.parametrize("name", ["least", *recipes.bundled_recipes()])
def test_a_recipe_that_was_written_and_read_is_the_same_to_the_digit(name: str) -> None:
    """A default of 32 that comes back as 32.0 would be another training, and another content hash of its policy."""
    more = "train: {config: {lora: {}, online: {}, kl_budget: 3}}\n"
    read = parse(LEAST + more) if name == "least" else recipes.load(name)
    again = parse(recipes.dump(read))
    assert repr(again.model_dump()) == repr(read.model_dump())
