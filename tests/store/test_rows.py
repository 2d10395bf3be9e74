"""Appending and reading rows."""

from __future__ import annotations

from typing import Any

import pytest
from store_rows import call, candidate

from factory.faults import FactoryError
from factory.schema import as_row, digest
from factory.store import Store


def test_append_is_all_or_none(store: Store) -> None:
    with pytest.raises(FactoryError, match=r"candidates\.tokens"):
        store.append("candidates", [candidate(1), as_row(candidate(2)) | {"tokens": "many"}])
    assert store.read("candidates") == []


def test_tables_and_columns_are_named_when_wrong(store: Store) -> None:
    for attempt in (
        lambda: store.append("candidate", []),
        lambda: store.missing("candidate", []),
        lambda: store.read("candidate"),
    ):
        with pytest.raises(FactoryError, match="did you mean 'candidates'"):
            attempt()
    with pytest.raises(FactoryError, match="did you mean 'tokens'"):
        store.read("candidates", columns=["token"])
    with pytest.raises(FactoryError, match="did you mean 'round'"):
        store.read("candidates", where={"rond": 1})
    with pytest.raises(FactoryError, match=r"prompts\.messages holds messages"):
        store.read("prompts", where={"messages": []})
    with pytest.raises(FactoryError, match=r"candidates\.round: expected a whole number"):
        store.read("candidates", where={"round": "1"})


@pytest.mark.parametrize("half", [0, 10, 20])
def test_where_means_the_same_for_sealed_and_unsealed_rows(store: Store, half: int) -> None:
    rows = [candidate(i, round=i % 3, parent=None if i % 2 else f"p{i}", split="train") for i in range(20)]
    store.append("candidates", rows[:half])
    store.seal(force=True)
    store.append("candidates", rows[half:])

    def found(**where: Any) -> set[str]:
        return {row["key"] for row in store.read("candidates", where=where)}

    def expected(test: Any) -> set[str]:
        return {row.key for row in rows if test(row)}

    assert found(round=1) == expected(lambda r: r.round == 1)
    assert found(round=[0, 2]) == expected(lambda r: r.round in (0, 2))
    assert found(round=[]) == set()
    assert found(parent=None) == expected(lambda r: r.parent is None)
    assert found(parent=[None, "p4"]) == expected(lambda r: r.parent in (None, "p4"))
    assert found(round=1, parent=None) == expected(lambda r: r.round == 1 and r.parent is None)
    assert found(key=rows[3].key) == {rows[3].key}
    assert found(key=[rows[3].key, rows[17].key, "none"]) == {rows[3].key, rows[17].key}
    assert found(key={rows[3].key: 1}.keys() | set()) == {rows[3].key}
    assert store.counts()["candidates"] == 20


def test_columns_come_in_the_order_asked(store: Store) -> None:
    store.append("candidates", [candidate(1, tokens=3)])
    assert store.table("candidates", ["tokens", "split"]).column_names == ["tokens", "split"]
    assert store.read("candidates", columns=["text", "tokens"]) == [{"text": "answer 1", "tokens": 3}]


def test_latest_calls_and_retries(store: Store) -> None:
    store.append("calls", [call(1, failure="timeout", passing=True), call(2, failure="refused"), call(3)])
    store.seal(force=True)
    keys = [digest("call", i) for i in (1, 2, 3, 4, 1)]
    assert store.missing("calls", keys) == [keys[0], keys[3]]
    assert store.missing("calls", keys, retry_failed=True) == [keys[0], keys[1], keys[3]]
    assert store.append("calls", [call(1, attempt=2, text="at last"), call(1, attempt=1)]) == 1
    assert store.missing("calls", keys) == [keys[3]]
    latest = store.latest_calls(iter(keys))
    assert {key: (c.attempt, c.text) for key, c in latest.items()} == {
        keys[0]: (2, "at last"), keys[1]: (1, "answer 2"), keys[2]: (1, "answer 3"),
    }  # fmt: skip
