"""One value of many votes: the simple rules by hand, the table that comes out, what is refused."""

from __future__ import annotations

import math

import pytest
from voted import rows, votes

from factory.aggregation import aggregate
from factory.faults import FactoryError


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
