from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from store_rows import AT, call, candidate, judgment, prompt

from factory import export as exporting
from factory.export import export, to_pandas
from factory.faults import FactoryError
from factory.schema import Label, Preference, digest
from factory.store import Store


def said(text: str) -> Any:
    return [{"role": "assistant", "content": text}]


def asked(number: int) -> Any:
    return [{"role": "user", "content": f"Tell me about river {number}"}]


def preference(number: int, **more: Any) -> Preference:
    values: dict[str, Any] = {
        "key": digest("preference", number), "run": "r", "prompt": asked(number),
        "chosen": said(f"A long answer about bread {number}"), "rejected": said("That is all."),
        "prompt_key": digest("prompt", number), "chosen_key": "c", "rejected_key": "d", "margin": 0.5, "at": AT,
    }  # fmt: skip
    return Preference(**values | more)


def label(number: int) -> Label:
    return Label(
        key=digest("label", number), run="r", prompt=asked(number), completion=said(f"About glass {number}"),
        label=number % 2 == 0, prompt_key=digest("prompt", number), candidate_key="c", at=AT,
    )  # fmt: skip


SPLITS = ["train", "train", "heldout", "final"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("export") / "store", create=True) as opened:
        opened.append("prompts", [prompt(i, split=SPLITS[i % 4]) for i in range(8)])
        opened.append("preferences", [preference(i) for i in range(8)])
        opened.append("labels", [label(i) for i in range(8)])
        opened.seal(force=True)
        opened.append("preferences", [preference(90, run="other", prompt_key="unknown")])
        opened.append("candidates", [candidate(i, split=SPLITS[i % 4], text=f'"{i}",\né') for i in range(8)])
        opened.append("judgments", [judgment(i, detail={"met": [i], "why": "é"}) for i in range(8)])
        opened.append("calls", [call(1, cost=0.5)])
        yield opened


# ------------------------------------------------------------------------------------------------------- dataset

LOAD = """
import json, sys
from datasets import get_dataset_config_names, load_dataset
folder = sys.argv[1]
default = load_dataset(folder)
found = {"configs": get_dataset_config_names(folder), "default": {k: v.column_names for k, v in default.items()}}
for name in found["configs"]:
    found[name] = {split: [dict(row, at=None) for row in rows] for split, rows in load_dataset(folder, name).items()}
print(json.dumps(found))
"""


def loaded(folder: Path, cache: Path) -> dict[str, Any]:
    """What `datasets` makes of the folder, in a process of its own, since it reads its settings when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_folder_opens_with_load_dataset(store: Store, tmp_path: Path) -> None:
    report = export(store, tmp_path / "out")
    assert report.to_json()["rows"] == {"preferences": 9, "labels": 8, "judgments": 8, "candidates": 8}
    found = loaded(tmp_path / "out", tmp_path / "cache")
    assert found["configs"] == ["preferences", "labels", "judgments", "candidates"]
    assert list(found["default"]) == ["train", "heldout", "final"]
    assert found["default"]["train"][:3] == ["prompt", "chosen", "rejected"]
    assert {split: len(rows) for split, rows in found["preferences"].items()} == {"train": 5, "heldout": 2, "final": 2}
    assert {split: len(rows) for split, rows in found["labels"].items()} == {"train": 4, "heldout": 2, "final": 2}
    (one,) = [r for r in found["preferences"]["heldout"] if r["key"] == digest("preference", 2)]
    assert (one["prompt"], one["chosen"], one["rejected"]) == (asked(2), said("A long answer about bread 2"),
                                                               said("That is all."))  # fmt: skip
    assert {r["key"]: r["label"] for rows in found["labels"].values() for r in rows} == {
        digest("label", i): i % 2 == 0 for i in range(8)
    }
    assert all(json.loads(r["detail"])["why"] == "é" for rows in found["judgments"].values() for r in rows)
    assert {r["split"] for r in found["candidates"]["final"]} == {"final"}


def test_a_table_without_rows_is_no_configuration(store: Store, tmp_path: Path) -> None:
    report = export(store, tmp_path / "out", run="other")
    assert report.rows == {"preferences": 1}
    found = loaded(tmp_path / "out", tmp_path / "cache")
    assert found["configs"] == ["preferences"]
    assert [r["run"] for r in found["preferences"]["train"]] == ["other"]


def test_large_tables_are_several_files(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "SHARD", 2)
    export(store, tmp_path / "out", tables=["candidates"])
    files = sorted(p.name for p in (tmp_path / "out" / "candidates").glob("train-*"))
    assert files == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert sum(pq.read_metadata(p).num_rows for p in (tmp_path / "out" / "candidates").iterdir()) == 8


def test_the_card_explains_every_column(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert [config["config_name"] for config in front["configs"]] == [
        "preferences",
        "labels",
        "judgments",
        "candidates",
    ]
    assert [config.get("default") for config in front["configs"]] == [True, None, None, None]
    for name in pq.read_schema(next((tmp_path / "out" / "judgments").iterdir())).names:
        assert f"\n| {name} | " in card


# -------------------------------------------------------------------------------------------- lines, CSV, DuckDB


def test_jsonl_holds_every_row_as_json(store: Store, tmp_path: Path) -> None:
    export(store, tmp_path / "out", form="jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out" / "judgments.jsonl").read_text().splitlines()]
    assert [r["key"] for r in rows] == sorted(digest("judgment", i) for i in range(8))
    assert rows[0]["detail"]["why"] == "é"
    assert rows[0]["at"] == AT.isoformat()
    pairs = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()]
    assert {p["split"] for p in pairs} == {"train", "heldout", "final"}
    assert pairs[0]["chosen"][0]["role"] == "assistant"


def test_csv_reads_back(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_AT_ONCE", 3)
    export(store, tmp_path / "out", form="csv")
    with (tmp_path / "out" / "candidates.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {r["key"]: r["text"] for r in rows} == {digest("candidate", i): f'"{i}",\né' for i in range(8)}
    with (tmp_path / "out" / "preferences.csv").open(newline="", encoding="utf-8") as file:
        (first, *_) = csv.DictReader(file)
    assert json.loads(first["rejected"]) == said("That is all.")


def test_one_duckdb_file_has_tables_views_and_meanings(store: Store, tmp_path: Path) -> None:
    import duckdb

    export(store, tmp_path / "all.duckdb", form="duckdb")
    with duckdb.connect(str(tmp_path / "all.duckdb"), read_only=True) as database:
        assert database.sql("SELECT count(*) FROM judgments WHERE NOT canary").fetchall() == [(8,)]
        assert database.sql("SELECT cost FROM cost").fetchall() == [(0.5,)]
        assert database.sql("SELECT chosen FROM pairs_text ORDER BY 1 LIMIT 1").fetchall() == [
            ("A long answer about bread 0",)
        ]
        text = "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'calls'"
        comments = dict(database.sql(text).fetchall())
        assert comments["tag"] == "what the call was about: prompt key, or the item judged"
        assert None not in comments.values()
        tables = {name for (name,) in database.sql("SELECT table_name FROM duckdb_tables()").fetchall()}
        assert {"runs", "marks", "calls", "rounds"} <= tables


def test_a_duckdb_file_of_some_tables_has_the_views_that_they_carry(store: Store, tmp_path: Path) -> None:
    import duckdb

    export(store, tmp_path / "out", form="duckdb", tables=["judgments"])
    with duckdb.connect(str(tmp_path / "out" / "store.duckdb"), read_only=True) as database:
        names = {name for (name,) in database.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
    assert names == {"readings", "candidate_scores", "verdicts", "agreement"}


def test_pandas(store: Store) -> None:
    frame = to_pandas(store, "judgments")
    assert len(frame) == 8
    assert frame["detail"].iloc[0]["why"] == "é"
    assert len(to_pandas(store, "preferences", run="other")) == 1
    assert len(to_pandas(store, "prompts", run="other")) == 8  # prompts belong to no run


# --------------------------------------------------------------------------------------------------------- place


def test_an_export_is_replaced_only_when_forced(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is free
    export(store, out)
    before = sorted(out.rglob("*"))
    with pytest.raises(FactoryError, match=r"there is an export already[\s\S]*--force"):
        export(store, out, form="csv")
    assert sorted(out.rglob("*")) == before
    export(store, out, form="csv", force=True)
    assert sorted(p.name for p in out.iterdir()) == [
        "candidates.csv", "export.json", "judgments.csv", "labels.csv", "preferences.csv",
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_export_is_never_replaced(store: Store, tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "notes.txt").write_text("years of work")
    for place in (tmp_path / "thesis", tmp_path / "notes.txt", store.folder):
        with pytest.raises(FactoryError, match="taken by something that is no export"):
            export(store, place, force=force)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_a_failed_export_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    export(store, tmp_path / "out", form="jsonl")
    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space"):
        export(store, tmp_path / "out", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "preferences.jsonl").is_file()


def test_the_folder_has_the_usual_rights(store: Store, tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    export(store, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_nothing_to_export_and_wrong_names(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match="run nobody has no rows"):
        export(store, tmp_path / "out", run="nobody")
    with pytest.raises(FactoryError, match="did you mean 'jsonl'"):
        export(store, tmp_path / "out", form="json")
    with pytest.raises(FactoryError, match="did you mean 'labels'"):
        export(store, tmp_path / "out", tables=["label"])
    assert list(tmp_path.iterdir()) == []


def test_text_that_has_no_utf8_was_made_exportable(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("preferences", [preference(1, chosen=said("half \ud800 a pair"))])
        export(store, tmp_path / "out")
    data: pa.Table = pq.read_table(next((tmp_path / "out" / "preferences").iterdir()))
    assert data.column("chosen")[0].as_py() == said("half � a pair")


# ----------------------------------------------------------------------------------------------------------- TRL

TRAIN = """
import json, sys
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, model, out, method = sys.argv[1:]
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
known = {"dpo": (DPOTrainer, DPOConfig, "preferences"), "kto": (KTOTrainer, KTOConfig, "labels")}
trainer, config, table = known[method]
rows = load_dataset(folder, table, split="train")
arguments = config(output_dir=out, max_steps=1, per_device_train_batch_size=4, report_to=[], use_cpu=True,
                   logging_steps=1, save_strategy="no", max_length=128)
training = trainer(model=AutoModelForCausalLM.from_pretrained(model), args=arguments, train_dataset=rows,
                   processing_class=AutoTokenizer.from_pretrained(model))
training.train()
print(json.dumps(training.state.log_history[0]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_trl_trains_a_step_on_the_export(store: Store, tiny_model: Path, tmp_path: Path, method: str) -> None:
    export(store, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "out"), str(tiny_model), str(tmp_path / "trained"), method],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    logged = json.loads(done.stdout.splitlines()[-1])
    assert logged["loss"] == pytest.approx(0.6931 if method == "dpo" else 0.5, abs=2e-3)  # policy = reference
