"""Going on from a point of an earlier run: what came before is shared and paid for once, what comes after is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_run

from factory import recipe as recipes
from factory.faults import ConfigError, FactoryError
from factory.report import collect
from factory.rounds import begin, branching, progress_of, run
from factory.rounds.branching import Point
from factory.store import Store


@pytest.fixture(scope="module")
def text(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run.recipe_text(
        tiny_model, tiny_run.write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")
    )


@pytest.fixture(scope="module")
def done(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run of two rounds that ended."""
    store = tmp_path_factory.mktemp("done") / "store"
    assert tiny_run.finish(store, text) == 0, tiny_run.log_of(store)
    return store


def calls(store: Store) -> list[dict[str, Any]]:
    return store.read("calls", columns=["key", "run", "round", "purpose"])


def parse(text: str, *overrides: str) -> recipes.Recipe:
    return recipes.parse(text, where="tiny", overrides=overrides)


def test_another_setting_from_before_training_asks_for_nothing_that_is_held(done: Path, text: str) -> None:
    """Round 1 is shared up to its training: same rows, new policy; only the new policy's answers are paid for."""
    other = parse(text, "train.config.parameters.beta=0.5", "stop.max_rounds=1")
    with Store.open(done) as store:
        before = len(calls(store))
        run(store, other, "beta", Point("tiny", 0, "train"))
        fresh = [call for call in calls(store) if call["run"] == "beta"]
        assert len(calls(store)) == before + len(fresh)
        assert fresh
        assert {(call["round"], call["purpose"]) for call in fresh} == {(1, "evaluate")}
        for table in ("preferences", "labels", "judgments"):
            rows = {name: store.read(table, where={"run": name, "round": 1}) for name in ("tiny", "beta")}
            kept = [r for r in rows["tiny"] if table != "judgments" or r["judge"] == "pairwise"]
            ours = [r for r in rows["beta"] if table != "judgments" or r["judge"] == "pairwise"]
            assert len(ours) == len(kept) > 0
        ours = store.read("preferences", where={"run": "beta"})
        theirs = store.read("preferences", where={"run": "tiny", "round": 1})
        assert [r["chosen"] for r in ours] == [r["chosen"] for r in theirs]
        known = {row["key"] for row in store.read("candidates", columns=["key"], where={"run": "beta"})}
        assert {row["chosen_key"] for row in ours} <= known
        told = progress_of(store, "beta")
        assert told["provenance"]["from"]["run"] == "tiny"
        assert any("beta=0.5" in change for change in told["provenance"]["from"]["changed"])
        assert told["state"] == "done"


def test_a_run_goes_on_from_a_round_and_has_a_round_of_its_own(done: Path, text: str) -> None:
    other = parse(text, "seed=5", "stop.max_rounds=2")
    with Store.open(done) as store:
        point = branching.point_of(store, "tiny:round-1", other)
        assert point == Point("tiny", 1)
        before = [call for call in calls(store) if call["round"] < 2]
        run(store, other, "on", point)
        rounds = store.read("rounds", columns=["round"], where={"run": "on"})
        assert sorted(row["round"] for row in rounds) == [0, 1, 2]
        again = [call for call in calls(store) if call["round"] < 2]
        assert [c for c in again if c["run"] == "on" and c["purpose"] != "evaluate"] == []
        assert {call["key"] for call in before} <= {call["key"] for call in again}
        home = store.run_folder("on")
        shared = (home / "round-1" / "policy" / "adapter_model.safetensors").read_bytes()
        theirs = store.run_folder("tiny") / "round-1" / "policy" / "adapter_model.safetensors"
        assert shared == theirs.read_bytes()
        ours, origin = ({view.round: view for view in collect(store, name).rounds} for name in ("on", "tiny"))
        assert ours[1].training == origin[1].training is not None
        assert ours[1].preferences == origin[1].preferences


def test_the_run_that_is_gone_on_from_is_named_where_there_are_several(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        for count, name in enumerate(("one", "two", "three")):
            store.put_run(name, recipes.dump(parse(text)), {})
            with pytest.raises(FactoryError, match=f"round 1 of run '{name}' is not done"):
                branching.point_of(store, "round-1", parse(text))
            said = capsys.readouterr().err
            assert (f"run {name}, the newest of {count + 1} of tiny" in said) == (count > 0)


def test_going_on_from_the_same_point_with_the_same_recipe_is_the_same_run(done: Path, text: str) -> None:
    one, two = parse(text, "stop.max_rounds=3"), parse(text, "stop.max_rounds=4")
    with Store.open(done) as store:
        point = Point("tiny", 1)
        name = branching.name_of(store, one, point)
        assert name == "tiny-from-1"
        store.put_run(name, recipes.dump(one), {})
        assert branching.name_of(store, one, point) == name
        assert branching.name_of(store, two, point) == "tiny-from-1-2"


def test_the_champion_is_a_point(done: Path, text: str) -> None:
    with Store.open(done) as store:
        origin = branching.opened(store, "tiny")
        assert branching.point_of(store, "tiny:champion", parse(text)) == Point("tiny", origin.champion)
        link = origin.home / "champion"
        assert link.exists() == (origin.champion > 0)


@pytest.mark.parametrize("point", ["tiny:round-7", "tiny:last", "nobody:round-1", "round"])
def test_a_point_that_is_not_there_is_refused(point: str, done: Path, text: str) -> None:
    with Store.open(done) as store, pytest.raises(FactoryError):
        branching.point_of(store, point, parse(text))


def test_a_run_keeps_to_where_it_was_begun(done: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(done) as store:
        with pytest.raises(FactoryError, match="'tiny' was begun at its start, not from round 1"):
            begin(store, parse(text), "tiny", Point("tiny", 1))
        for asked in (1, 0):
            flow = begin(store, parse(text), "kept", Point("tiny", asked))
            assert flow.shared == 1
            told = "run kept keeps to where it was begun: round 1 of tiny, not 0 of tiny"
            assert (told in capsys.readouterr().err) == (asked == 0)


def test_what_is_shared_cannot_change(done: Path, text: str) -> None:
    with Store.open(done) as store:
        with pytest.raises(ConfigError) as caught:
            branching.check(store, parse(text, "prompts.source=verifiable"), Point("tiny", 2))
        faults = "\n".join(caught.value.faults)
        assert "prompts.source" in faults
        assert "stop.max_rounds" in faults
