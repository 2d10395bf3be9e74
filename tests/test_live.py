"""A run while it works: rates since the stage began, cost of the run, and time left by earlier rounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from store_rows import call
from typer.testing import CliRunner

from factory.cli import app
from factory.rounds import live
from factory.schema import now
from factory.store import Store


def mark(number: int, stage: str, seconds: float) -> dict[str, Any]:
    return {"round": number, "stage": stage, "state": "done", "detail": {"seconds": seconds}}


MARKS = [
    mark(0, "evaluate", 500),
    *(mark(1, stage, seconds) for stage, seconds in (("generate", 100), ("label", 50), ("train", 30))),
    *(mark(2, stage, seconds) for stage, seconds in (("generate", 80), ("label", 20), ("train", 10))),
]


def test_time_left_is_that_of_the_newest_round_that_did_it() -> None:
    assert live.left(MARKS, 3, "generate", 30) == 50 + 20 + 10
    assert live.left(MARKS, 3, "train", 0) == 10
    assert live.left(MARKS, 2, "label", 10) == 40 + 30


def test_a_stage_that_takes_longer_than_it_did_leaves_the_others() -> None:
    assert live.left(MARKS, 3, "generate", 1000) == 30


def test_nothing_is_said_where_there_is_nothing_to_go_by() -> None:
    assert live.left(MARKS, 1, "generate", 3) is None
    assert live.left(MARKS, 3, "revise", 3) is None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.put_run("r", "name: r", {})
        yield opened


def test_a_stage_under_way_has_rates_and_cost(store: Store) -> None:
    store.append("calls", [call(1, run="r", round=2, cost=0.25, at=now() - timedelta(hours=1))])
    store.mark("r", 2, "generate", "started", {})
    store.append("calls", [call(i, run="r", round=2, cost=0.5, completion_tokens=30, at=now()) for i in range(2, 6)])
    store.append("calls", [call(9, run="r", round=2, cost=None, completion_tokens=0, failure="timeout", at=now())])
    with store.run_lock("r"):
        found = live.underway(store, "r", now() + timedelta(seconds=10))
    assert found is not None
    assert (found.round, found.stage, found.answers, found.failures, found.tokens) == (2, "generate", 5, 1, 120)
    assert found.cost == 2.25
    assert "round 2 · generate: 10 s, 5 answers (0.5/s), 1 failed, 12 tokens/s, $2.25 so far" in found.text()


def test_a_run_that_nobody_works_at_is_at_no_stage(store: Store) -> None:
    store.mark("r", 1, "train", "started", {})
    assert live.underway(store, "r") is None
    store.mark("r", 1, "train", "done", {"seconds": 2})
    with store.run_lock("r"):
        assert live.underway(store, "r") is None


def test_steps_of_training_are_counted(store: Store) -> None:
    folder = store.run_folder("r") / "round-1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    store.mark("r", 1, "train", "started", {})
    with store.run_lock("r"):
        found = live.underway(store, "r")
    assert found is not None
    assert found.steps == 2
    assert "2 steps" in found.text()


def test_an_unknown_price_is_said() -> None:
    assert live.costs(None) == ["cost not known"]
    assert live.costs(0.0) == []
    assert live.costs(0.0004) == ["$0.0004 so far"]


def test_the_heading_of_a_stage_tells_what_is_left(store: Store) -> None:
    assert live.heading(store, "r", 1, "generate") == "round 1 · generate"
    for stage, seconds in (("generate", 90.0), ("train", 60.0)):
        store.mark("r", 1, stage, "done", {"seconds": seconds})
    assert live.heading(store, "r", 2, "generate") == "round 2 · generate (about 2 min 30 s left in this round)"


def test_status_shows_the_stage_under_way_and_watch_ends_when_all_is_done(store: Store) -> None:
    where = ["--store", str(store.folder)]
    store.mark("r", 1, "generate", "started", {})
    with store.run_lock("r"):
        shown = CliRunner().invoke(app, ["status", *where])
        (said,) = json.loads(CliRunner().invoke(app, ["status", "--json", *where]).stdout)
    assert "round 1 · generate: " in shown.stdout
    assert said["now"]["stage"] == "generate"
    store.mark("r", 1, "final", "done", {"seconds": 1})
    watched = CliRunner().invoke(app, ["status", "--watch", "--every", "0.1", *where])
    assert watched.exit_code == 0
    assert watched.stdout.startswith("r: done\n")
    refused = CliRunner().invoke(app, ["status", "--watch", "--json", *where])
    assert refused.exit_code == 2
