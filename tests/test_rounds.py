"""A whole run: what it leaves in the store, that it goes on, what it refuses, and that children change nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from factory import recipe as recipes, report, rounds
from factory.budget import BudgetError
from factory.evaluation.held import held_prompts
from factory.faults import FactoryError, LockedError
from factory.prompts import add_prompts
from factory.rounds import branching, stages
from factory.rounds.branching import Point
from factory.rounds.runbook import Run, open_run
from factory.rounds.stages import STAGES, drawn
from factory.schema import Call, Candidate, Prompt, Round
from factory.store import Store


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def text(tiny_model: Path, prompts: Path) -> str:
    return tiny_run.recipe_text(tiny_model, prompts)


@pytest.fixture(scope="module")
def done(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that ended."""
    store = tmp_path_factory.mktemp("done") / "store"
    assert tiny_run.finish(store, text) == 0, tiny_run.log_of(store)
    return store


def test_a_run_leaves_everything_in_the_store(done: Path) -> None:
    tables = tiny_run.tables_of(done)
    assert [row["round"] for row in tables["rounds"]] in (
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    )
    splits = {row["key"]: row["split"] for row in tables["prompts"]}
    trained = {row["prompt_key"] for row in tables["preferences"]}
    assert trained
    assert {splits[key] for key in trained} == {"train"}
    assert all(row["chosen"] != row["rejected"] for row in tables["preferences"])
    final = next(row for row in tables["rounds"] if row["round"] == 2)
    assert final["decision"] == "stop"
    assert final["rule"] == "max_rounds"
    home = done / "runs" / "tiny"
    for number in (1, 2):
        assert (home / f"round-{number}" / "policy" / "adapter_model.safetensors").is_file()
        assert json.loads((home / f"round-{number}" / "report.json").read_text())["round"] == number
    assert "<html" in (home / "report.html").read_text()
    assert recipes.parse((home / "recipe.yaml").read_text(), where="kept").name == "tiny"


def test_a_new_policy_is_a_new_model(done: Path) -> None:
    with Store.open(done) as store:
        sampled = store.rows(Candidate, {"kind": "sample", "split": "train"})
    assert len({row.model_hash for row in sampled if row.round == 1}) == 1
    assert {row.model_hash for row in sampled if row.round == 1}.isdisjoint(
        row.model_hash for row in sampled if row.round == 2
    )


def test_the_same_command_again_changes_nothing(done: Path, text: str) -> None:
    before = tiny_run.tables_of(done)
    assert tiny_run.finish(done, text) == 0, tiny_run.log_of(done)
    assert tiny_run.tables_of(done) == before


@pytest.mark.slow
def test_children_give_the_same_tables(done: Path, tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert tiny_run.finish(store, tiny_run.recipe_text(tiny_model, prompts, isolate="always")) == 0, tiny_run.log_of(
        store
    )
    assert tiny_run.tables_of(store) == tiny_run.tables_of(done)


def test_another_recipe_needs_another_name(done: Path, text: str) -> None:
    other = recipes.parse(text, where="other", overrides=["seed=2"])
    with Store.open(done) as store, pytest.raises(FactoryError, match="begun with another recipe"):
        open_run(store, other, "tiny")


def test_a_run_that_its_budget_stopped_goes_on_with_a_larger_one(
    done: Path, tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert tiny_run.finish(store, tiny_run.recipe_text(tiny_model, prompts, budget={"max_tokens": 4000})) != 0
    assert BudgetError.__name__ in tiny_run.log_of(store)
    calls = tiny_run.tables_of(store)["calls"]
    assert 0 < sum(call["prompt_tokens"] + call["completion_tokens"] for call in calls) <= 4000
    assert tiny_run.finish(store, tiny_run.recipe_text(tiny_model, prompts)) == 0, tiny_run.log_of(store)
    assert tiny_run.tables_of(store) == tiny_run.tables_of(done)


def test_a_run_is_held_by_one_process(done: Path, text: str) -> None:
    with Store.open(done) as store, store.run_lock("tiny"):
        code = tiny_run.finish(done, text)
    assert code != 0
    assert LockedError.__name__ in tiny_run.log_of(done)


def test_status_says_where_a_run_is(done: Path) -> None:
    with Store.open(done) as store:
        progress = rounds.progress_of(store, "tiny")
    assert progress["state"] == "done"
    stages = {(row["round"], row["stage"]): row["state"] for row in progress["stages"]}
    assert stages[1, "train"] == "done"
    assert set(stages.values()) == {"done"}
    assert (progress["decision"]["round"], progress["decision"]["rule"]) == (2, "max_rounds")


def test_too_few_preferences_end_the_run_without_training(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    text = tiny_run.recipe_text(
        tiny_model, prompts, stop={"max_rounds": 3, "any": [{"rule": "label_starvation", "minimum": 1000}]}
    )
    assert tiny_run.finish(tmp_path / "store", text) == 0, tiny_run.log_of(tmp_path / "store")
    rows = tiny_run.tables_of(tmp_path / "store")["rounds"]
    last = max(rows, key=lambda row: row["round"])
    assert (last["round"], last["rule"]) == (1, "label_starvation")
    assert not (tmp_path / "store" / "runs" / "tiny" / "round-1" / "policy").exists()
    assert last["policy"] == str(tiny_model)


def test_what_counts_for_training_is_what_the_method_needs(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    """KTO trains on labels: that no pair has the margin asked for does not matter."""
    train = json.loads(tiny_run.recipe_text(tiny_model, prompts))["train"]
    train["config"]["method"] = "kto"
    text = tiny_run.recipe_text(
        tiny_model,
        prompts,
        train=train,
        pair={"strategy": "all", "lead": "pairwise", "min_margin": 1.0},
        stop={"max_rounds": 1, "any": [{"rule": "label_starvation", "minimum": 2}]},
    )
    assert tiny_run.finish(tmp_path / "store", text) == 0, tiny_run.log_of(tmp_path / "store")
    tables = tiny_run.tables_of(tmp_path / "store")
    assert len(tables["preferences"]) < 2 <= len(tables["labels"])
    assert (tmp_path / "store" / "runs" / "tiny" / "round-1" / "policy" / "adapter_model.safetensors").is_file()


def test_a_failed_stage_keeps_its_reason_and_is_tried_again(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    text = tiny_run.recipe_text(
        tiny_model, prompts, prompts={"source": str(prompts.parent / "late.jsonl"), "per_round": 6}
    )
    loaded = recipes.parse(text, where="test")
    with Store.open(tmp_path / "store", create=True) as store:
        with pytest.raises(FactoryError):
            rounds.run(store, loaded, "late")
        progress = rounds.progress_of(store, "late")
        assert progress["stages"][-1]["state"] == "failed"
        assert "late.jsonl" in progress["stages"][-1]["note"]
        assert progress["state"].startswith("failed")
        tiny_run.write_prompts(prompts.parent / "late.jsonl")
        flow = open_run(store, loaded, "late")
        assert rounds.do(flow, 0, "prompts")["prompts"]["train"] > 0


def test_a_run_of_which_nothing_is_done_takes_a_mended_recipe(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    wrong = {"source": str(tmp_path / "nowhere.jsonl"), "per_round": 6}
    broken = recipes.parse(tiny_run.recipe_text(tiny_model, prompts, prompts=wrong), where="test")
    mended = recipes.parse(tiny_run.recipe_text(tiny_model, prompts), where="test")
    other = recipes.parse(tiny_run.recipe_text(tiny_model, prompts, seed=2), where="test")
    with Store.open(tmp_path / "store", create=True) as store:
        with pytest.raises(FactoryError, match=r"nowhere\.jsonl"):
            rounds.run(store, broken, "mine")
        flow = open_run(store, mended, "mine")
        held = store.get_run("mine")
        assert held is not None
        assert held["recipe"] == recipes.dump(mended) == (flow.home / "recipe.yaml").read_text()
        assert rounds.do(flow, 0, "prompts")["prompts"]["train"] > 0
        with pytest.raises(FactoryError, match="begun with another recipe"):
            open_run(store, other, "mine")


def test_a_run_with_rows_keeps_its_recipe_though_no_stage_is_done(
    done: Path, tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    """Its first answers were paid for when it was cut off."""
    begun, other = (recipes.parse(tiny_run.recipe_text(tiny_model, prompts, seed=s), where="test") for s in (1, 2))
    with Store.open(done) as store:
        row = store.rows(Candidate, {"run": "tiny"})[0]
    with Store.open(tmp_path / "store", create=True) as store:
        open_run(store, begun, "tiny")
        store.append("candidates", [row])
        with pytest.raises(FactoryError, match="begun with another recipe"):
            open_run(store, other, "tiny")


def test_several_judges_reward_by_weight(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    rating = {"judge": "rating", "weight": 0.5, "engine": {"kind": "scripted"}}
    train = json.loads(tiny_run.recipe_text(tiny_model, prompts))["train"]
    train["config"] |= {"method": "grpo", "online": {"steps": 1, "prompts": 2, "n": 3, "max_tokens": 6}}
    text = tiny_run.recipe_text(
        tiny_model,
        prompts,
        stages=["train"],
        train=train | {"reward": [{"judge": "verifier", "options": {"least": 0}}, rating]},
    )
    with Store.open(tmp_path / "store", create=True) as store:
        flow = open_run(store, recipes.parse(text, where="test"), "tiny")
        rounds.do(flow, 0, "prompts")
        training = rounds.do(flow, 1, "train")["training"]
        said = store.read("judgments", columns=["judge", "canary", "score"], where={"run": "tiny", "round": 1})
    assert training["steps"] == 1
    heard = [row["judge"] for row in said if not row["canary"]]
    assert heard.count("verifier") == heard.count("rating") == 6
    [own, other, whole] = (training["last"][n] for n in ("rewards/verifier", "rewards/rating", "reward"))
    assert whole == pytest.approx(own + 0.5 * other)


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """The ended run's store, to write in."""
    return Path(shutil.copytree(done, tmp_path / "store"))


def test_a_stage_that_is_done_again_says_the_same_in_the_report(copy: Path, text: str) -> None:
    with Store.open(copy) as store:
        flow = Run(store, recipes.parse(text, where="test"), "tiny")
        before = rounds.round_report(flow, 1)
        again = STAGES["pair"](flow, 1)
        assert again["pairs"]["written"] == 0
        store.mark("tiny", 1, "pair", "done", again | {"seconds": before["stages"]["pair"]})
        after = rounds.round_report(flow, 1)
    assert before["pairs"]["preferences"] > 0
    assert after == before


def test_prompts_added_later_are_of_no_round_of_the_run(copy: Path, text: str, tmp_path: Path) -> None:
    loaded = recipes.parse(text, where="test", overrides=["evaluate.limit=null"])
    with Store.open(copy) as store:
        flow = Run(store, loaded, "tiny")
        held = {split: flow.prompts(split) for split in ("train", "heldout", "final")}
        order = drawn(flow, 1)
        add_prompts(store, str(tiny_run.write_prompts(tmp_path / "more.jsonl", 160)))
        assert len(store.rows(Prompt, {"split": "heldout"})) > len(held["heldout"])
        assert {split: flow.prompts(split) for split in held} == held
        assert drawn(flow, 1) == order
        assert held_prompts(store, "heldout", until=flow.until) == held["heldout"]


def test_calls_that_failed_without_a_price_cost_nothing(copy: Path, text: str) -> None:
    with Store.open(copy) as store:
        flow = Run(store, recipes.parse(text, where="test"), "tiny")
        before = rounds.spent(flow, 1)
        paid = store.rows(Call, {"run": "tiny", "round": 1})[0]
        refused = replace(paid, key="refused", failure="endpoint", cost=None, completion_tokens=0, prompt_tokens=0)
        store.append("calls", [refused])
        assert rounds.spent(flow, 1) == before
        store.append("calls", [replace(refused, key="unpriced", failure=None)])
        assert (before["cost"], rounds.spent(flow, 1)["cost"]) == (0.0, None)


def test_a_run_without_final_prompts_ends_and_says_so(tiny_model: Path, tmp_path: Path) -> None:
    prompts = tiny_run.write_prompts(tmp_path / "few.jsonl", 10)
    loaded = recipes.parse(tiny_run.recipe_text(tiny_model, prompts), where="test")
    with Store.open(tmp_path / "store", create=True) as store:
        flow = open_run(store, loaded, "few")
        assert rounds.do(flow, 0, "prompts")["prompts"]["final"] == 0
        assert rounds.do(flow, 0, "final")["report"] is None
        told = rounds.progress_of(store, "few")
    assert told["state"] == "done"
    assert "no prompts in the split 'final'" in told["stages"][-1]["note"]


def test_a_run_that_was_cut_off_before_midnight_is_gone_on_with(tmp_path: Path) -> None:
    loaded = recipes.parse("name: x\npanel: [{judge: verifier}]\n", where="test")
    other = recipes.parse("name: x\nseed: 1\npanel: [{judge: verifier}]\n", where="test")
    with Store.open(tmp_path / "store", create=True) as store:
        for name, recipe in [("x-2026-01-01", loaded), ("x-2026-01-03", other), ("x-mine", loaded)]:
            store.put_run(name, recipes.dump(recipe), {})
        assert rounds.unfinished(store, loaded) == "x-2026-01-01"
        store.mark("x-2026-01-01", 1, "final", "done", {})
        assert rounds.unfinished(store, loaded) is None


def test_prompts_are_drawn_in_turn(done: Path, text: str) -> None:
    loaded = recipes.parse(text, where="test")
    with Store.open(done) as store:
        flow = Run(store, loaded, "tiny")
        size = loaded.prompts.per_round
        everything = {row.key for row in store.rows(Prompt, {"split": "train"})}
        first, second = drawn(flow, 1), drawn(flow, 2)
        turns: list[Any] = [drawn(flow, i) for i in range(1, 2 + len(everything) // size)]
    assert len(first) == len(set(first)) == size
    assert not set(first) & set(second)
    assert {key for turn in turns for key in turn} == everything


@pytest.mark.parametrize(
    ("settings", "begins", "held_to"),
    [
        ({}, "last", "last"),
        ({"reference": "start"}, "last", "start"),
        ({"begin_from": "start"}, "start", "start"),
        ({"begin_from": "start", "reference": "start"}, "start", "start"),
    ],
)
def test_a_later_round_begins_from_and_is_held_to_what_its_recipe_says(
    settings: dict[str, str], begins: str, held_to: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the loops take the last round for the reference where their authors mean the first."""
    told: dict[str, Any] = {}

    class ReachedError(Exception):
        """Training would begin here."""

    def train_policy(store: Store, **given: Any) -> None:
        told.update(given)
        raise ReachedError

    recipe: dict[str, Any] = json.loads(text)
    recipe["train"] |= settings
    monkeypatch.setattr("factory.training.train_policy", train_policy)
    monkeypatch.setattr("factory.rounds.stages._made", lambda *_: Counter(all=99))
    with Store.open(tmp_path / "store", create=True) as store:
        flow = Run(store, recipes.parse(json.dumps(recipe), where="test"), "tiny").at("train")
        (flow.folder(1) / "policy").mkdir(parents=True)
        names = {"start": recipe["model"], "last": str(flow.folder(1) / "policy")}
        with pytest.raises(ReachedError):
            STAGES["train"](flow, 2)
    assert (told["start"], told["reference"]) == (names[begins], names[held_to])


@pytest.mark.parametrize("best", [0, 1, 2])
def test_a_round_may_go_on_from_the_champion(best: int, copy: Path, text: str) -> None:
    """Also where rounds after the champion trained policies that were no better; by default the last one is taken."""
    with Store.open(copy) as store:
        last, flow = (_going_on_from(how, store, text, best) for how in ("last", "champion"))
        assert flow.last == 2
        assert last.current(3) == last.policy(2)
        assert flow.current(3) == flow.policy(3) == flow.policy(best)  # round 3 has not trained anything
        assert flow.policy(2) == last.policy(2)  # what a round trained is its own
        (flow.folder(3) / "policy").mkdir(parents=True)
        assert flow.policy(3) == str(flow.folder(3) / "policy")
        assert flow.at("generate").current(3) == flow.policy(best)  # also where the round was killed after training


def test_a_round_that_has_begun_keeps_to_the_champion_of_then(copy: Path, text: str) -> None:
    """What the reports decided stays, whatever a later version of the rules makes of their numbers."""
    with Store.open(copy) as store:
        flow = _going_on_from("champion", store, text, 1)
        for number in range(3):
            _rewrite(flow, number, lambda report, n=number: report["report"].update(pass_rate=[n / 9, 0.0, 1.0]))
        assert flow.champion == 2
        assert flow.origin(3) == 1
        assert [flow.origin(number) for number in (1, 2)] == [0, 1]


@pytest.mark.parametrize(("how", "best", "previous"), [("last", 1, 1), ("champion", 1, 0), ("champion", 2, 0)])
def test_the_previous_judge_is_what_this_rounds_policy_was_trained_from(
    how: str, best: int, previous: int, copy: Path, text: str
) -> None:
    """Where round 2 lost, it is not the champion once more: a judge that is compared with itself always agrees."""
    part = {"judge": "pairwise", "engine": {"kind": "scripted"}}
    panel = [part | {"model": "policy"}, part | {"name": "before", "model": "previous"}]
    with Store.open(copy) as store:
        flow = _going_on_from(how, store, json.dumps(json.loads(text) | {"panel": panel}), best)
        policy, before = (stages._asked(flow.at("label"), 3, each)[0] for each in flow.recipe.panel)
        assert policy == flow.policy(best if how == "champion" else 2)
        assert before == flow.policy(previous)


@pytest.mark.parametrize(
    ("best", "note"),
    [(0, ["it began with the start policy, the best until then"]), (1, [])],
)
def test_the_report_says_what_a_round_began_with(best: int, note: list[str], copy: Path, text: str) -> None:
    with Store.open(copy) as store:
        flow = _going_on_from("champion", store, text, best)
        assert [rounds.round_report(flow, number)["began_with"] for number in (0, 1, 2)] == [None, 0, best]
        [row] = store.rows(Round, {"run": "tiny", "round": 2})
        told = replace(row, report=rounds.round_report(flow, 2))
        assert report._view(2, told, {}, copy / "metrics.jsonl").notes == note


def _going_on_from(how: str, store: Store, text: str, best: int) -> Run:
    """The ended run under that rule, as if that round had been the best."""
    flow = Run(store, recipes.parse(text, overrides=[f"go_on_from={how}"], where="test"), "tiny")
    for number in range(3):
        _rewrite(flow, number, lambda said, n=number: said.update(champion=n == 0 or n == best))
    return flow


def _rewrite(flow: Run, number: int, change: Any) -> None:
    path = flow.folder(number) / "report.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


@pytest.mark.parametrize(("split", "number", "look"), [("heldout", 0, 1), ("heldout", 3, 3), ("final", 3, 1)])
def test_held_out_prompts_are_looked_at_every_round_and_final_ones_once(
    split: str, number: int, look: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("factory.evaluation.evaluate", lambda store, **given: told.update(given))
    monkeypatch.setattr(Run, "engine", lambda *_: BytesIO())
    with Store.open(tmp_path / "store", create=True) as store:
        flow = Run(store, recipes.parse(text, where="test"), "tiny")
        stages._measure(flow, number, split, None, scored=False)
    assert (told["split"], told["look"]) == (split, look)


def test_a_run_gives_back_its_champion_and_not_its_last_policy(copy: Path, text: str) -> None:
    """Elsewhere the best score is kept, and what goes on is the last checkpoint."""
    with Store.open(copy) as store:
        flow = Run(store, recipes.parse(text, where="test"), "tiny")
        for number, passed in enumerate((0.1, 0.9, 0.5)):
            path = flow.folder(number) / "report.json"
            report = json.loads(path.read_text())
            report["report"]["pass_rate"] = [passed, passed, passed]
            path.write_text(json.dumps(report))
        outcome = rounds.tell(flow)
        assert (outcome.champion_round, outcome.champion) == (1, str(flow.folder(1) / "policy"))
        assert (flow.home / "champion").resolve() == (flow.folder(1) / "policy").resolve()
        assert branching.point_of(store, "tiny:champion", flow.recipe) == Point("tiny", 1)
