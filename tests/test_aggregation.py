"""One value of many votes: the simple rules by hand, the table that comes out, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from voted import matrices, noisy, of_matrix, rows, table_of, votes

from factory.faults import FactoryError
from factory.votes.aggregation import aggregate, encode, methods


def test_majority_and_its_ties() -> None:
    found = rows(aggregate(votes({"x": ["a", "a", None], "y": ["a", "b", None], "z": ["b", None, "c"]})))
    assert found[0]["value"] == "a"
    assert found[0]["probability"] == pytest.approx(2 / 3)
    assert found[0]["entropy"] == pytest.approx(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert found[1] == {"value": None, "probability": None, "entropy": pytest.approx(math.log(2))}
    assert found[2] == {"value": "c", "probability": 1.0, "entropy": 0.0}


def test_mean() -> None:
    found = rows(aggregate(votes({"x": [1.0, 2.0], "y": [4.0, math.nan]}), "mean"))
    assert [found[0]["value"], found[1]["value"]] == [2.5, 2.0]
    with pytest.raises(FactoryError, match="numbers"):
        aggregate(votes({"x": ["a"]}), "mean")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(FactoryError, match="did you mean 'majority'"):
        aggregate(votes({"x": [1]}), "majorty")


def test_weighted_votes_by_hand() -> None:
    """b has weights 1 + 1.5 against 2; then 2 against 1.5; then 1 against 1, a tie."""
    table = votes({"x": ["a", "a", None], "y": ["b", None, "a"], "z": ["b", "b", None], "w": [None, None, "b"]})
    found = rows(aggregate(table, "weighted", weights={"x": 2, "y": 1, "z": 1.5, "w": 1, "absent": 9}))
    assert found[0]["value"] == "b"
    assert found[0]["probability"] == pytest.approx(2.5 / 4.5)
    assert found[1]["value"] == "a"
    assert found[2] == {"value": None, "probability": None, "entropy": pytest.approx(math.log(2))}


def test_log_odds_as_weights_are_the_best_that_independent_judges_allow() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 4000)
    accuracy = [0.9, 0.6, 0.6, 0.6, 0.6]
    said = of_matrix(noisy(rng, truth, accuracy))
    log_odds = {f"j{j}": math.log(p / (1 - p)) for j, p in enumerate(accuracy)}
    by_weight = np.mean(methods.get("weighted")(said, weights=log_odds).value == truth)
    assert by_weight > np.mean(methods.get("majority")(said).value == truth) + 0.05


def test_votes_without_weight_decide_nothing() -> None:
    table = votes({"x": ["a", "a"], "y": ["b", None]})
    found = rows(aggregate(table, "weighted", weights={"x": 0.0, "y": 1.0}))
    assert found[0]["value"] == "b"
    assert found[1] == {"value": None, "probability": None, "entropy": pytest.approx(math.log(2))}


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ({"x": 1.0}, r"no weight for \['y'\]"),
        ({"x": 1.0, "y": -1.0}, r"weights of \['y'\]"),
        ({"x": math.nan, "y": 1.0}, r"weights of \['x'\]"),
        ({"x": math.inf, "y": 1.0}, r"weights of \['x'\]"),
    ],
)
def test_faults_of_weights_are_told(weights: dict[str, float], fault: str) -> None:
    with pytest.raises(FactoryError, match=fault):
        aggregate(votes({"x": ["a"], "y": ["b"]}), "weighted", weights=weights)


@settings(max_examples=60, deadline=None)
@given(matrices(fewest=1))
def test_majority_is_counting(items: list[list[int | None]]) -> None:
    found = rows(aggregate(table_of(items)))
    for place, row in enumerate(items):
        said = [v for v in row if v is not None]
        if not said:
            assert place not in found
            continue
        most = max(said.count(v) for v in said)
        leaders = {v for v in said if said.count(v) == most}
        assert found[place]["value"] == (leaders.pop() if len(leaders) == 1 else None)
        if found[place]["value"] is not None:
            assert found[place]["probability"] == pytest.approx(most / len(said))
        share = np.asarray([said.count(v) / len(said) for v in set(said)])
        assert found[place]["entropy"] == pytest.approx(float(-(share * np.log(share)).sum()), abs=1e-12)


@pytest.mark.parametrize("method", ["majority", "weighted", "one_coin", "dawid_skene", "dependent"])
def test_every_posterior_is_a_distribution(method: str) -> None:
    rng = np.random.default_rng(2)
    said = noisy(rng, rng.integers(0, 3, 50), [0.7, 0.6, 0.8, 0.5], kinds=3)
    said[rng.random(said.shape) < 0.3] = -1
    options: dict[str, Any] = {"weights": dict.fromkeys(["j0", "j1", "j2", "j3"], 1.0)} if method == "weighted" else {}
    found = methods.get(method)(of_matrix(said), **options)
    assert found.posterior is not None
    assert found.posterior.shape == (50, 3)
    assert found.posterior.min() >= 0
    voted = np.flatnonzero((said >= 0).any(axis=1))
    assert found.posterior[voted].sum(axis=1) == pytest.approx(np.ones(len(voted)))
    assert len(found.value) == 50


def test_tables_in_pieces_and_of_any_type_read_alike() -> None:
    table = votes({"x": ["p", "q", None], "y": ["p", "p", "q"], "z": ["q", "p", None]})
    pieces = pa.concat_tables([table.slice(i, 1) for i in range(table.num_rows)])
    coded = pa.table({name: pieces[name].dictionary_encode() for name in table.column_names})
    views = pieces.set_column(2, "value", pieces["value"].cast(pa.string_view()))
    for other in (pieces, coded, views):
        assert aggregate(other).equals(aggregate(table))
    assert encode(table).judges == ["x", "y", "z"]


def test_a_judge_without_votes_is_still_a_judge() -> None:
    found = encode(votes({"none": [None, None], "x": ["a", "b"]}))
    assert found.judges == ["none", "x"]
    assert found.judge.tolist() == [1, 1]


@pytest.mark.parametrize(
    "items",
    [[5, 5, 3, 9, 3], [2**40, 2**40, 0, 7, 0], [-3, -3, -1, -1, 8], [2**64 - 1, 2**64 - 1, 2**64 - 2, 2**64 - 2, 1]],
)
def test_whole_numbers_as_names_keep_their_order_of_appearance(items: list[int]) -> None:
    kind = pa.uint64() if max(items) > 2**63 else pa.int64()
    table = pa.table({"item": pa.array(items, kind), "judge": [0, 1, 2, 3, 4], "value": ["a", "b", "a", "b", "a"]})
    found = encode(table)
    assert found.items == list(dict.fromkeys(items))
    assert [found.items[i] for i in found.item] == items
    assert aggregate(table)["item"].to_pylist() == found.items


@pytest.mark.parametrize("column", ["item", "judge"])
def test_votes_without_a_name_are_refused(column: str) -> None:
    table = pa.table({"item": [1, 2], "judge": [1, 2], "value": [0, 1]})
    place = table.column_names.index(column)
    with pytest.raises(FactoryError, match="1 votes lack an item or a judge"):
        aggregate(table.set_column(place, column, pa.array([1, None], pa.int64())))


def test_long_columns_of_few_numbers() -> None:
    """The order of appearance is sought in the first sixteenth; a number that comes later is found all the same."""
    item = [*range(1000)] * 2
    judge = [7] * 1000 + [3] * 999 + [1]
    found = encode(pa.table({"item": item, "judge": judge, "value": [1] * 2000}))
    assert found.judges == [7, 3, 1]
    assert [found.judges[j] for j in found.judge] == judge
    early = encode(pa.table({"item": [*range(2000)], "judge": [5, 2] * 1000, "value": [1] * 2000}))
    assert early.judges == [5, 2]
