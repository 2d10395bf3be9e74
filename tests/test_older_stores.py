"""A store written before a column was there opens, reads and goes on, whatever columns have come since.

The older program is this one with some columns of the schema taken away, for every column that has a default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from store_rows import call, candidate, judgment, prompt

from factory.schema import TABLES, Row
from factory.store import Store, columns
from factory.store.columns import columns_of
from factory.verdicts import quarantined, read

ROWS = {"prompts": prompt, "calls": call, "candidates": candidate, "judgments": judgment}


def younger(table: str) -> list[str]:
    """Columns that may have come later: those with a default."""
    return [name for name, column in columns_of(table).items() if column.default is not dataclasses.MISSING]


@contextmanager
def without(table: str, names: set[str], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program as it was before these columns."""
    kept = {name: column for name, column in columns_of(table).items() if name not in names}
    caches = (columns.columns_of, columns._plan_of, columns.arrow_schema)
    with patch.context() as older:

        def fields(row_type: Any) -> Any:
            return [f for f in dataclasses.fields(row_type) if row_type is not TABLES[table] or f.name in kept]

        older.setattr(columns, "dataclasses", _Fields(fields))
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


class _Fields:
    """The module `dataclasses` with another `fields`."""

    def __init__(self, fields: Any) -> None:
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        return getattr(dataclasses, name)


@pytest.mark.parametrize("table", sorted(ROWS))
def test_rows_from_before_read_with_the_defaults(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sealed rows and one in the journal lack the younger columns; one sealed and one unsealed row have them."""
    names = set(younger(table)) - {"attempt", "round", "failure", "passing", "canary"}
    make = ROWS[table]
    with without(table, names, monkeypatch), Store.open(tmp_path / "store", create=True) as older:
        assert not names & set(columns_of(table))
        older.append(table, [make(1), make(2)])
        older.seal(force=True)
        older.append(table, [make(3)])
    assert names < set(columns_of(table))
    with Store.open(tmp_path / "store") as store:
        store.append(table, [make(4)])
        held = {row.key: row for row in store.rows(TABLES[table])}
        for number in (1, 2, 3):
            assert held[make(number).key] == plain(make(number), names)
        assert held[make(4).key] == make(4)
        store.seal(force=True)
        store.append(table, [make(5)])
        assert len(store.rows(TABLES[table])) == 5
        assert store.verify() == []
        assert store.sql(f"SELECT count(*) AS n FROM {table}").rows() == [{"n": 5}]


def plain(row: Row, names: set[str]) -> Row:
    """The row with the defaults in these columns."""
    defaults = {f.name: f.default for f in dataclasses.fields(row) if f.name in names}
    return dataclasses.replace(row, **defaults)


def test_a_sealed_row_without_a_batch_is_found_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with without("judgments", {"batch"}, monkeypatch), Store.open(tmp_path / "store", create=True) as older:
        older.append("judgments", [judgment(1)])
        older.seal(force=True)
    with Store.open(tmp_path / "store") as store:
        store.append("judgments", [judgment(2, batch="b")])
        assert [row.key for row in store.rows(TABLES["judgments"], {"batch": ""})] == [judgment(1).key]
        rows: Any = store.rows(TABLES["judgments"])
        assert quarantined(rows) == {}
        assert len(read(rows).scores["verifier"]) == 2
