"""Prices come from the user's table; what is not there is unknown, and every fault of a table is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factory.engines.prices import Prices, read_prices

GIVEN = {"prompt": 2.5, "completion": 10}


def test_prices_come_alone_by_model_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("m: {prompt: 2.5, completion: 10}\ncheap: {prompt: 5e-2, completion: 1e-1, cached_prompt: 0}\n")
    as_json = tmp_path / "prices.json"
    as_json.write_text('{"prompt": 2.5, "completion": 10}')
    for given in (GIVEN, {"m": GIVEN}, str(file), str(as_json)):
        assert read_prices(given, "m") == (Prices(2.5, 10.0, 2.5), [])
    assert read_prices(str(file), "cheap") == (Prices(0.05, 0.1, 0.0), [])
    assert read_prices(str(file), "other") == (None, [])
    assert read_prices(None, "m") == (None, [])


def test_cached_tokens_have_a_price_of_their_own() -> None:
    """1,000 prompt tokens of which 400 were cached, 100 written: 600 x 2 + 400 x 0.5 + 100 x 10 millionths."""
    assert Prices(2.0, 10.0, 0.5).cost(1000, 100, 400) == pytest.approx(0.0024)
    assert Prices(2.0, 10.0, 2.0).cost(1000, 100, 400) == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": 1}, ["completion is missing"]),
        ({"prompt": "much", "completion": -1, "x": 2}, ["'x' is not one of", "prompt must be", "completion must be"]),
        ({"prompt": True, "completion": float("nan")}, ["prompt must be", "completion must be"]),
        ({"m": 5, "n": {"prompt": 1}}, ["prices of m: must be", "prices of n: completion is missing"]),
        ([1], ["must be US dollars"]),
        ("no/such.yaml", ["cannot be read"]),
    ],
)  # fmt: skip
def test_every_fault_is_told(given: Any, said: list[str]) -> None:
    prices, faults = read_prices(given, "m")
    assert prices is None
    assert len(faults) == len(said)
    assert all(part in fault for part, fault in zip(said, faults, strict=True))


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    for text, said in (("a: [", "neither YAML nor JSON"), ("- 1", "must be US dollars"), ("", "must be US dollars")):
        file.write_text(text)
        assert said in read_prices(str(file), "m")[1][0]
