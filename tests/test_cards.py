"""Cards: front matter that the Hub's own libraries read; judges and licences as the store knows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from reported_run import RECIPE, measured, run_report
from store_rows import AT, candidate, judgment, prompt
from test_export import preference

from factory.export import cards, export, export_policy
from factory.faults import FactoryError
from factory.schema import Round, digest
from factory.store import Store


def front_of(card: str) -> dict[str, Any]:
    """The front matter."""
    assert card.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(card.split("\n---\n")[0])
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        sources = ("verifiable", "owner/data", "mine.jsonl", "owner/data")
        opened.append("prompts", [prompt(i, source=source) for i, source in enumerate(sources)])
        opened.append("preferences", [preference(i) for i in range(4)])
        opened.append("candidates", [candidate(i, model=f"/home/someone/models/m{i % 2}") for i in range(4)])
        opened.append("judgments", [judgment(i) for i in range(4)])
        yield opened


def test_the_front_matter_says_features_splits_and_sizes(store: Store, tmp_path: Path) -> None:
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard

    export(store, tmp_path / "out")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    infos = DatasetInfosDict.from_dataset_card_data(card.data)
    assert set(infos) == {"preferences", "judgments", "candidates"}
    assert infos["preferences"].splits["train"].num_examples == 4
    assert infos["preferences"].features["chosen"].feature["role"].dtype == "string"
    assert card.data.size_categories == ["n<1K"]
    written = sum(path.stat().st_size for path in (tmp_path / "out" / "judgments").iterdir())
    assert infos["judgments"].download_size == written


def test_sources_are_named_with_the_licences_that_are_known(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith(("| prompts", "| answers"))]
    assert rows == [
        "| prompts | mine.jsonl | 1 | unknown | a file |",
        "| prompts | owner/data | 2 | unknown | https://huggingface.co/datasets/owner/data |",
        "| prompts | verifiable | 1 | apache-2.0 | comes with preference-factory |",
        "| answers | models/m0 | 2 | unknown |  |",
        "| answers | models/m1 | 2 | unknown |  |",
    ]
    assert front_of(card)["license"] == "unknown"
    assert "/home/someone" not in card


def test_one_known_licence_is_the_licence() -> None:
    assert cards._licence(["apache-2.0", "apache-2.0"]) == "apache-2.0"
    assert cards._licence(["apache-2.0", "unknown"]) == "unknown"
    assert cards._licence(["apache-2.0", "mit"]) == "unknown"
    assert cards._licence([]) == "unknown"


def test_habits_that_the_data_tells_are_biases_in_words() -> None:
    judge = {
        "judge": "<b>", "first_position": [0.86, 0.8, 0.9], "longer_wins": [0.55, 0.45, 0.65],
        "flip_rate": [0.71, 0.6, 0.8], "fooled_rate": [0.4, 0.2, 0.6],
    }  # fmt: skip
    said = list(cards._habits({"judges": [judge]}))
    assert said == [
        "\\<b\\>: first shown wins in 86% (80% to 90%); without the habit 50%.",
        "\\<b\\>: changed by order in 71% (60% to 80%); its verdicts should not.",
        "\\<b\\>: preferred answers that say nothing to real ones in 40% of the canaries it decided.",
    ]


def test_judges_of_the_run_stand_in_the_card(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Judges of r" in card
    assert "## Limits" in card


# -------------------------------------------------------------------------------------------------------------- policy


def test_the_model_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    recipe = "name: q\nmodel: smollm2-135m-instruct\npanel: [{judge: pairwise}]\ntrain: {config: {method: dpo}}\n"
    (tmp_path / "README.md").write_text(cards.model_card(run_report(recipe=recipe), 1, tmp_path))
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.license, data.library_name) == (cards.EMBEDDED_ON_HUB, "apache-2.0", "transformers")
    assert data.tags == ["preference-factory", "dpo"]
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results or ()}
    assert results["heldout", "pass_rate"] == 0.39
    assert results["final", "pass_rate"] == 0.35


def test_a_base_that_is_not_on_the_hub_is_no_base_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    card = cards.model_card(run_report(recipe="model: /home/someone/models/base\n" + RECIPE), 1, tmp_path)
    front = front_of(card)
    assert "base_model" not in front
    assert (front["library_name"], front["license"]) == ("peft", "unknown")
    assert "A LoRA adapter of models/base" in card
    assert "/home/someone" not in card.split("## Where the numbers come from")[0]


def test_the_card_of_another_round_says_that_it_is_no_champion(tmp_path: Path) -> None:
    base = run_report()
    later = replace(base, rounds=[*base.rounds, replace(base.rounds[1], round=2, report=measured(30))])
    card = cards.model_card(later, 2, tmp_path)
    assert "not the champion, which is round 1 of its run." in card
    assert "final prompts of the run" not in card.split("---")[1]  # `final` was measured of the champion alone


def with_policy(store: Store) -> Path:
    """Round 1 of run r with a policy's files."""
    folder = store.run_folder("r") / "round-1" / "policy"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "training.json", "README.md"):
        (folder / name).write_text(json.dumps({"name": name}))
    where = str(folder.resolve().relative_to(store.folder.resolve()))
    store.put_run("r", RECIPE, {"versions": {}})
    for number, policy in ((0, "start"), (1, where)):
        kept = {"report": measured(14 + 20 * number).to_json(), "decision": None}
        store.append("rounds", [Round(key=digest(number), run="r", round=number, policy=policy, champion=True,
                                      report=kept, at=AT)])  # fmt: skip
    return folder


def test_a_policy_is_copied_with_its_card(store: Store, tmp_path: Path) -> None:
    with_policy(store)
    report = export_policy(store, tmp_path / "policy", run="r")
    assert report.form == "policy"
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [
        "README.md", "config.json", "export.json", "model.safetensors",
    ]  # fmt: skip
    assert "# r, round 1" in (tmp_path / "policy" / "README.md").read_text()
    with pytest.raises(FactoryError, match="export already"):
        export_policy(store, tmp_path / "policy", run="r")
    with pytest.raises(FactoryError, match=r"round 0 trained no policy[\s\S]*with one: 1"):
        export_policy(store, tmp_path / "other", run="r", number=0)
    with pytest.raises(FactoryError, match=r"has no round 7"):
        export_policy(store, tmp_path / "other", run="r", number=7)
    assert not (tmp_path / "other").exists()
