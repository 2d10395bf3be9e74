"""factory agreement end to end: tables, JSON, gold, the sheet and back."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judged import both, candidate_of, pointwise, prompt_of
from typer.testing import CliRunner, Result

from factory.cli import app
from factory.store import Store

PROMPTS = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two models' answers to thirty prompts, judged by a scoring judge and by a noisy one of pairs."""
    folder = tmp_path_factory.mktemp("agreement") / "store"
    rng = random.Random(0)
    prompts, candidates, judgments = [], [], []
    for n in range(PROMPTS):
        prompt = prompt_of(f"Question {n}?")
        prompts.append(prompt)
        keys = [f"{n:02}{name}" for name in "ab"]
        models = rng.sample(["strong", "weak"], 2)
        for key, model in zip(keys, models, strict=True):
            text = f"answer {key}" + "\n- item" * rng.randint(0, 2)
            candidates.append(replace(candidate_of(key, text, prompt=prompt), model=model))
            good = (model == "strong") if rng.random() < 0.8 else (model != "strong")
            judgments.append(pointwise("scorer", key, float(good), prompt_key=prompt.key))
        p = 0.8 if (models[0] == "strong") == (rng.random() < 0.7) else 0.3
        judgments += both("noisy", *keys, p, min(p + 0.1, 1.0), prompt_key=prompt.key)
    with Store.open(folder, create=True) as opened:
        for table, rows in (("prompts", prompts), ("candidates", candidates), ("judgments", judgments)):
            opened.append(table, rows)
    return str(folder)


def run(store: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["agreement", "--run", "r", "--store", store, *arguments])


def good(store: str, *arguments: str) -> Any:
    result = run(store, *arguments, "--json")
    assert result.exit_code == 0, result.output + repr(result.exception)
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_tables_are_narrow_enough_to_read(store: str) -> None:
    text = run(store, "--gold", "scorer").stdout
    assert max(len(line) for line in text.splitlines()) < 160
    assert "Gold from scorer" in text
    assert "strong" in text


def test_the_json_holds_every_block(store: str) -> None:
    report = good(store)
    assert {judge["judge"] for judge in report["judges"]} == {"noisy", "scorer"}
    assert {"panel", "noisy", "scorer"} == set(report["ranking"])
    assert report["ranking"]["scorer"]["models"][0]["model"] == "strong"
    assert "gold" not in report


def test_a_sheet_filled_in_is_gold(store: str, tmp_path: Path) -> None:
    sheet = tmp_path / "people.csv"
    report = good(store, "--escalate", str(sheet), "--escalate-most", "12")
    assert len(report["escalated"]["pairs"]) == 12
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for row in rows:
        row["verdict"], row["person"] = "a", "ann"
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    against = good(store, "--gold", str(sheet), "--risk", "0.3", "--confidence", "0.8")["gold"]
    assert (against["pairs"], against["people"]) == (12, 1)
    assert against["thresholds"][0]["risk"] == 0.3
    assert against["thresholds"][0]["delta"] == pytest.approx(0.2)
    rest = good(store, "--gold", str(sheet), "--escalate", str(tmp_path / "more.jsonl"))["escalated"]["pairs"]
    assert not {(one["candidate_a"], one["candidate_b"]) for one in rest} & {
        tuple(sorted((row["candidate_a"], row["candidate_b"]))) for row in rows
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gold", "nobody"], "neither a file nor a judge"),
        (["--gold", "scorer", "--risk", "0"], "risk must lie between 0 and 1"),
        (["--gold", "scorer", "--confidence", "1"], "confidence (1 - delta) must lie between 0 and 1"),
        (["--escalate", "people.txt"], ".csv or a .jsonl"),
        (["--run", "another"], "has no judgments"),
    ],
)
def test_faults_say_what_to_do(store: str, arguments: list[str], says: str) -> None:
    result = run(store, *arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output
