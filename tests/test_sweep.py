"""Sweeps: values and seeds, what runs share, and what is told of them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny_run
from typer.testing import CliRunner

from factory import recipe as recipes
from factory.cli import app
from factory.faults import FactoryError
from factory.rounds import forecast, sweep as sweeps
from factory.rounds.branching import Point
from factory.rounds.forecast import Shared
from factory.schema import Estimate
from factory.store import Store

SVG = "{http://www.w3.org/2000/svg}"
LEAST = "name: least\npanel: [{judge: verifier}]\n"


def load(overrides: object) -> recipes.Recipe:
    return recipes.parse(LEAST, where="least", overrides=list(overrides))  # type: ignore[call-overload]


def test_values_are_read_as_yaml() -> None:
    assert sweeps.values_of("a.b=0.01,1,null,x") == ("a.b", [0.01, 1, None, "x"])


@pytest.mark.parametrize("text", ["a.b", "=1,2", "a.b=", "a=[1", "a=1,1"])
def test_what_is_no_list_of_values_is_refused(text: str) -> None:
    with pytest.raises(FactoryError):
        sweeps.values_of(text)


@pytest.mark.parametrize(
    "given",
    [
        ["--beta", "0.1", "--vary", "train.config.parameters.beta=1,2"],
        ["--vary", "seed=1,2", "--seeds", "3,4"],
    ],
)
def test_a_key_is_varied_once(given: list[str], tmp_path: Path) -> None:
    """Else the later values would take the place of the earlier, and nobody would be told."""
    shown = CliRunner().invoke(app, ["sweep", "quickstart", *given, "--dry-run", "--store", str(tmp_path / "none")])
    assert shown.exit_code == 2, shown.output
    assert "to do: " in shown.output


def test_every_value_with_every_seed_is_a_run_of_its_own_name() -> None:
    found = sweeps.variants(load, "s", {"train.config.parameters.beta": [0.1, 1]}, [1, 2])
    assert [v.run for v in found] == ["s-beta-0.1-seed-1", "s-beta-1-seed-1", "s-beta-0.1-seed-2", "s-beta-1-seed-2"]
    assert [v.recipe.seed for v in found] == [1, 1, 2, 2]
    assert found[1].recipe.train.config.parameters == {"beta": 1}
    with pytest.raises(FactoryError, match="varies something"):
        sweeps.variants(load, "s", {})


@pytest.mark.parametrize(
    ("override", "step"),
    [
        ("train.config.parameters.beta=0.5", "train"),
        ("pair.strategy=all", "pair"),
        ("panel.0.options.least=0", "label"),
        ("generate.n=2", None),
        ("seed=3", None),
        ("evaluate.n=2", None),
    ],
)
def test_runs_part_at_the_first_stage_that_the_setting_changes(override: str, step: str | None) -> None:
    one, other = (sweeps.Variant({}, 0, name, load(o)) for name, o in (("one", []), ("other", [override])))
    assert sweeps.point_between(one, other) == (step and Point("one", 0, step))


VARY = {"train.config.parameters.beta": [0.1, 1]}


def test_each_run_begins_at_a_point_of_the_first_with_its_seed() -> None:
    found = sweeps.variants(load, "s", VARY, [1, 2])
    one, two = (Point(f"s-beta-0.1-seed-{seed}", 0, "train") for seed in (1, 2))
    assert sweeps.points(found) == [None, one, None, two]
    assert sweeps.shared(found) == [Shared(), Shared("train", start=True), Shared(), Shared("train", start=True)]
    [_, other] = sweeps.shared(sweeps.variants(load, "s", {"evaluate.max_tokens": [8, 16]}))
    assert other == Shared()


def test_the_plan_of_a_sweep_counts_what_is_shared_once() -> None:
    """10 prompts of 4 answers in each of 2 rounds; 5 held-out prompts measure the start and each round, 3 final ones
    the start and the champion. The second run has its own round 2 and its own policies alone."""
    found = sweeps.variants(load, "s", VARY)
    sizes = {"train": 10, "heldout": 5, "final": 3}
    plans = [forecast.plan(v.recipe, sizes, shared=s) for v, s in zip(found, sweeps.shared(found), strict=True)]
    assert [plan["calls_at_most"] for plan in plans] == [2 * 40 + 3 * 5 + 2 * 3, 40 + 2 * 5 + 3]
    times = {row["stage"].partition(" (")[0]: row["times"] for row in plans[1]["stages"]}
    assert (times["generate"], times["train"], "evaluate the start" in times) == (1, 2, False)
    whole = forecast.total(plans)
    assert whole["calls_at_most"] == 101 + 53
    assert whole["tokens_at_most"] == sum(plan["tokens_at_most"] for plan in plans)
    assert whole["cost"] == "nothing is paid for: the model runs here"
    assert whole["memory_bytes"] == max(plan["memory_bytes"] for plan in plans)
    assert whole["seconds"] == pytest.approx(sum(plan["seconds"] for plan in plans), abs=2)


def test_the_cost_of_a_sweep_is_that_of_all_its_runs() -> None:
    priced = "engine={kind: openai, model: m, options: {base_url: http://h/v1, prices: {prompt: 1, completion: 2}}}"
    for overrides, said in (([priced], "about $"), (["engine={kind: openai, model: m}"], "unknown: no prices of m")):
        recipe = load([*overrides, "model=a/b/c"])
        plan = forecast.plan(recipe, {"train": 10, "heldout": 5, "final": 3})
        whole = forecast.total([plan, plan])
        assert whole["cost"].startswith(said)
        assert whole["cost_usd"] == (plan["cost_usd"] and pytest.approx(2 * plan["cost_usd"]))


def test_the_interval_over_seeds_is_students() -> None:
    """Values 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027."""
    nan = math.nan
    found = sweeps.over([Estimate(float(v), nan, nan) for v in (1, 2, 3)])
    assert found is not None
    assert found.value == 2
    assert found.high - found.value == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    own = Estimate(0.5, 0.4, 0.6)
    assert sweeps.over([own, None]) == own
    assert sweeps.over([None]) is None


def outcome(beta: float, rate: float) -> sweeps.Outcome:
    measures = dict.fromkeys(sweeps.MEASURES) | {"pass_rate": Estimate(rate, rate - 0.1, rate + 0.1)}
    return sweeps.Outcome(values={"a.beta": beta}, seed=1, run=f"r{beta}", shares="", round=1, champion=1,
                          stopped_by="max_rounds", measures=measures)  # fmt: skip


def test_the_picture_is_of_what_was_measured() -> None:
    found = sweeps.Sweep(name="s", keys=("a.beta",), runs=(outcome(0.01, 0.2), outcome(1.0, 0.4)))
    drawn = str(sweeps.picture(found))
    ElementTree.fromstring(drawn)
    assert "log10 of beta" in drawn
    assert "held-out pass rate" in drawn
    assert "KL from the start" not in drawn


def of(values: dict[str, object], rate: float, seed: int = 1) -> sweeps.Outcome:
    return dataclasses.replace(outcome(0.0, rate), values=values, seed=seed)


def charts_of(found: sweeps.Sweep) -> tuple[ElementTree.Element, list[ElementTree.Element]]:
    drawn = ElementTree.fromstring(str(sweeps.picture(found)))
    return drawn, [each for each in drawn.iter(f"{SVG}svg") if each.get("class") in ("lines", "rows")]


def test_names_have_a_line_each_against_the_key_that_has_numbers() -> None:
    """Whichever of the two keys comes first."""
    runs = [of({"a.method": m, "b.flip": f}, rate) for m, rate in (("dpo", 0.3), ("ipo", 0.4)) for f in (0, 0.3)]
    for keys in (("a.method", "b.flip"), ("b.flip", "a.method")):
        drawn, [chart] = charts_of(sweeps.Sweep(name="s", keys=keys, runs=tuple(runs)))
        texts = [text.text for text in drawn.iter(f"{SVG}text")]
        assert texts[:2] == ["dpo", "ipo"]
        assert "flip" in texts
        assert len(list(chart.iter(f"{SVG}polyline"))) == 2
        titles = [title.text for title in chart.iter(f"{SVG}title")]
        assert titles == [
            f"{name}, flip {flip}: {rate} ({rate - 0.1:.3g} to {rate + 0.1:.3g})"
            for name, rate in (("dpo", 0.3), ("ipo", 0.4))
            for flip in (0, 0.3)
        ]


def test_a_second_key_with_numbers_has_lines_too() -> None:
    """They were one line through all points before."""
    runs = [of({"a.beta": b, "b.gamma": g}, b + g) for b in (0.1, 0.2) for g in (0.5, 0.6)]
    drawn, [chart] = charts_of(sweeps.Sweep(name="s", keys=("a.beta", "b.gamma"), runs=tuple(runs)))
    assert [text.text for text in drawn.iter(f"{SVG}text")][:2] == ["gamma 0.5", "gamma 0.6"]
    assert len(list(chart.iter(f"{SVG}polyline"))) == 2


@pytest.mark.parametrize(
    ("keys", "runs", "names"),
    [
        (("a.method",), [({"a.method": "dpo"}, 1), ({"a.method": "ipo"}, 1)], ["dpo", "ipo"]),
        (("a.ties",), [({"a.ties": True}, 1), ({"a.ties": False}, 1)], ["ties True", "ties False"]),
        (("a.limit",), [({"a.limit": None}, 1), ({"a.limit": 3}, 1)], ["limit None", "limit 3"]),
        ((), [({}, 1), ({}, 2)], ["seed 1", "seed 2"]),
    ],
)
def test_without_numbers_each_value_or_seed_has_a_point(
    keys: tuple[str, ...], runs: list[tuple[dict[str, object], int]], names: list[str]
) -> None:
    found = tuple(of(values, 0.2 + 0.1 * i, seed) for i, (values, seed) in enumerate(runs))
    _, [chart] = charts_of(sweeps.Sweep(name="s", keys=keys, runs=found))
    titles = [title.text for title in chart.iter(f"{SVG}title")]
    assert titles == [f"{names[0]}: 0.2 (0.1 to 0.3)", f"{names[1]}: 0.3 (0.2 to 0.4)"]


def test_one_value_is_no_picture() -> None:
    assert not sweeps.picture(sweeps.Sweep(name="s", keys=("a.beta",), runs=(outcome(0.1, 0.2),)))


@pytest.mark.slow
def test_a_sweep_pays_for_its_data_once(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tiny_run.write_prompts(tmp_path / "prompts.jsonl")
    text = tiny_run.recipe_text(tiny_model, prompts, stop={"max_rounds": 1, "any": []})

    def of(overrides: object) -> recipes.Recipe:
        return recipes.parse(text, where="tiny", overrides=list(overrides))  # type: ignore[call-overload]

    vary = {"train.config.parameters.beta": [0.1, 1.0]}
    found = sweeps.variants(of, "s", vary)
    with Store.open(tmp_path / "store", create=True) as store:
        done = sweeps.sweep(store, "s", found, vary)
        bought = store.read("calls", columns=["run", "purpose", "round"])
        second = {(row["purpose"], row["round"]) for row in bought if row["run"] == "s-beta-1.0"}
        assert second == {("evaluate", 1)}
        again = sweeps.sweep(store, "s", found, vary)
        assert again == done
        assert len(store.read("calls", columns=["key"])) == len(bought)
    told = json.loads(json.dumps(done.to_json()))
    assert [row["values"] for row in told["values"]] == [{"train.config.parameters.beta": v} for v in (0.1, 1.0)]
    assert all(row["measures"]["kl"] for row in told["values"])
    assert told["runs"][1]["shares"] == "s-beta-0.1 before train"
