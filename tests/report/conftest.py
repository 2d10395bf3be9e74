"""The store that the report of a run is read from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from reported_run import RECIPE, answer, close_round, heldout, metrics, preference

from factory.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with one run of two rounds, as rounds.py leaves it."""
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.put_run("r", RECIPE, {"versions": {"torch": "2.13.0"}})
        for number, passes in ((0, 14), (1, 39)):
            close_round(opened, number, passes)
        opened.append("preferences", [preference(i) for i in range(30)])
        opened.append("prompts", [heldout(i) for i in range(4)])
        opened.append("candidates", [answer(i) for i in range(4)])
        path = opened.run_folder("r") / "round-1" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in metrics(2.0, -9.0)))
        yield opened
