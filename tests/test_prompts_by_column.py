"""Columns of one's own stay with the prompts, and prompts are picked by them: in SQL, to be answered, to be paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from factory.cli import app
from factory.schema import Prompt
from factory.store import Store

ROWS = [
    {"prompt": f"Tell me about {what}.", "topic": what, "source": source, "meta": {"level": level}, "noise": 1}
    for what, source, level in [("tea", "web", 1), ("salt", "web", 2), ("rivers", "book", 3), ("bread", None, 4)]
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--store", "store"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store of four prompts to train on, two of their columns kept."""
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keep = ["--keep", "source", "--keep", "meta.level", "--heldout", "0", "--final", "0"]
    added = run("prompts", "add", "mine.jsonl", *keep)
    assert added.exit_code == 0, added.output
    assert "columns not used: noise" in added.stdout
    return tmp_path


def kept(store: Path) -> dict[str | None, Any]:
    with Store.open(store) as opened:
        return {prompt.topic: prompt.kept for prompt in opened.rows(Prompt)}


def test_kept_columns_stay_with_their_prompts(here: Path) -> None:
    assert kept(here / "store") == {
        "tea": {"source": "web", "meta.level": 1},
        "salt": {"source": "web", "meta.level": 2},
        "rivers": {"source": "book", "meta.level": 3},
        "bread": {"meta.level": 4},
    }
    asked = "SELECT kept->>'source' AS s, count(*) AS n FROM prompts GROUP BY 1 ORDER BY 1"
    assert json.loads(run("query", asked, "--json").stdout) == [
        {"s": "book", "n": 1}, {"s": "web", "n": 2}, {"s": None, "n": 1},
    ]  # fmt: skip


def test_what_cannot_be_kept_is_told(here: Path) -> None:
    refused = run("prompts", "add", "mine.jsonl", "--keep", "sauce")
    assert refused.exit_code == 2
    assert "there is no column 'sauce'" in refused.stderr


def test_prompts_are_answered_and_paired_by_what_was_kept(here: Path) -> None:
    scripted = ("--engine", "scripted", "--model", "m", "--n", "3", "--run", "r")
    made = run("generate", *scripted, "--where", "(kept->>'meta.level')::INT < 4", "--json")
    assert (made.exit_code, json.loads(made.stdout)["candidates"]) == (0, 9), made.output
    assert run("label", "--run", "r", "--judge", "words").exit_code == 0
    web = run("pair", "--run", "r", "--where", "kept->>'source' = 'web' -- all of it", "--name", "web", "--json")
    assert web.exit_code == 0, web.output
    assert json.loads(web.stdout)["prompts"] == 2
    traced = (
        "SELECT DISTINCT p.topic FROM preferences f JOIN prompts p ON p.key = f.prompt_key WHERE f.strategy = 'web'"
    )
    assert {row["topic"] for row in json.loads(run("query", traced, "--json").stdout)} <= {"tea", "salt"}


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("topik = 'tea'", "topik"),
        ("topic = 'gold'", "this holds for no prompt of the store"),
        ("topic = 'tea'; SELECT 1", "cannot be run"),
        ("topic = 'bread'", "there are no candidates with run r, round 0, split train, kind sample to any of the 1 "),
    ],
)
def test_a_condition_that_picks_nothing_is_told(here: Path, where: str, told: str) -> None:
    run("generate", "--engine", "scripted", "--model", "m", "--n", "2", "--run", "r", "--where", "topic <> 'bread'")
    run("label", "--run", "r", "--judge", "words")
    refused = run("pair", "--run", "r", "--where", where)
    assert refused.exit_code == 2, refused.output
    assert told in refused.stderr
    assert not refused.stdout
