"""Kill -9 anywhere, then the same command: nothing lost, nothing double, the same tables."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_run

from factory.crash import POINTS

PASSED = [point for point in POINTS if not point.startswith("revise.")]  # those: tests/test_revision.py


class Other(NamedTuple):
    """A recipe, and what its uninterrupted run left."""

    text: str
    tables: dict[str, list[dict[str, object]]]
    seconds: float


@pytest.fixture(scope="module")
def text(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run.recipe_text(
        tiny_model, tiny_run.write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")
    )


@pytest.fixture(scope="module")
def whole(text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[dict[str, object]]], float]:
    """Tables of the uninterrupted run, and its seconds."""
    store = tmp_path_factory.mktemp("whole") / "store"
    seconds = tiny_run.timed(store, text)
    tables = tiny_run.tables_of(store)
    assert len(tables["rounds"]) == 3
    assert all(
        tables[name] for name in ("prompts", "calls", "candidates", "judgments", "preferences", "labels", "logps")
    )
    return tables, seconds


def assert_same(store: Path, tables: dict[str, list[dict[str, object]]]) -> None:
    found = tiny_run.tables_of(store)
    for name, rows in tables.items():
        assert found[name] == rows, f"{name} differs after the kill"
    keys = tiny_run.attempts_of(store)
    assert len(keys) == len(set(keys))
    assert all(attempt == 1 for _, attempt in keys), "a call was paid for twice"


@pytest.mark.slow
@pytest.mark.parametrize("point", [*PASSED, "round.before_mark:5"])  # the fifth: round 1, pairs written
def test_a_kill_at_each_crash_point(
    point: str, text: str, whole: tuple[dict[str, list[dict[str, object]]], float], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    code = tiny_run.finish(store, text, crash_at=point)
    assert code == -9, f"the run never passed {point}: exit {code}\n{tiny_run.log_of(store)}"
    assert tiny_run.finish(store, text) == 0, tiny_run.log_of(store)
    assert_same(store, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_random_kills(
    seed: int, text: str, whole: tuple[dict[str, list[dict[str, object]]], float], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    tiny_run.run_with_random_kills(store, text, seed, longest=whole[1], kills=2)
    assert_same(store, whole[0])


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 130))
def test_many_random_kills(
    seed: int, text: str, whole: tuple[dict[str, list[dict[str, object]]], float], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    tiny_run.run_with_random_kills(store, text, seed, longest=whole[1], kills=3)
    assert_same(store, whole[0])


OTHERS = ("online_dpo", "kto_rounds", "constitutional")
"""Recipes whose rounds have other stages: one that samples in training, one without pairs, one with two trainings."""


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Other:
    """A recipe with the tables and the seconds of its uninterrupted run."""
    folder = tmp_path_factory.mktemp(str(request.param))
    rules = folder / "rules.yaml"
    rules.write_text(tiny_run.RULES)
    text = tiny_run.shrunk(request.param, tiny_model, tiny_run.short_prompts(folder / "prompts.jsonl"), rules)
    seconds = tiny_run.timed(folder / "store", text)
    return Other(text, tiny_run.tables_of(folder / "store"), seconds)


@pytest.mark.slow
def test_random_kills_of_other_recipes(other: Other, tmp_path: Path) -> None:
    tiny_run.run_with_random_kills(tmp_path / "store", other.text, 7, longest=other.seconds, kills=2)
    assert_same(tmp_path / "store", other.tables)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200, 210))
def test_many_random_kills_of_other_recipes(seed: int, other: Other, tmp_path: Path) -> None:
    tiny_run.run_with_random_kills(tmp_path / "store", other.text, seed, longest=other.seconds, kills=3)
    assert_same(tmp_path / "store", other.tables)
