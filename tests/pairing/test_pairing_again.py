"""Pairing where the store holds preferences or labels already: by another name, another judge, an older version."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from paired import NO_LABELS, fill

from factory.pairing import Filters, LabelRule, pair, writing
from factory.schema import Label, Preference
from factory.store import Store
from factory.store.columns import from_bodies


def test_what_is_held_beside_is_told(store: Store) -> None:
    fill(store)
    assert pair(store, run="r", lead="v", strategy="all").warnings == []
    report = pair(store, run="r", lead="v", strategy="best_worst")
    assert report.held_by == {"all": 2, "best_worst": 1}
    assert any("all (2)" in warning for warning in report.warnings)
    fewer = pair(store, run="r", lead="v", strategy="all", filters=Filters(per_prompt=1))
    assert any("hold 1 preferences of all that an earlier call made" in warning for warning in fewer.warnings)
    again = pair(store, run="r", lead="v", strategy="all")
    assert (again.held_by, again.written) == ({"all": 2, "best_worst": 1}, 0)


NEWER = ["probability", "entropy", "weight", "flipped"]


@pytest.mark.parametrize("sealed", [False, True])
def test_preferences_of_an_older_store_still_read(store: Store, monkeypatch: pytest.MonkeyPatch, sealed: bool) -> None:
    """Rows that were written before preferences had a weight have weight 1, in the journal and in sealed parts."""
    fill(store)
    pair(store, run="r", lead="v", strategy="all", weights="margin")
    if sealed:
        monkeypatch.setattr("factory.store.from_bodies", lambda *given: from_bodies(*given).drop_columns(NEWER))
        assert store._seal_table("preferences") == 2
        monkeypatch.undo()
    else:
        strip_journal(store.folder / "journal.sqlite")
    rows = store.rows(Preference)
    assert [(row.weight, row.probability, row.entropy, row.margin) for row in rows] == [(1.0, None, None, 0.5)] * 2
    assert not any(row.flipped for row in rows)
    found = store.sql("SELECT weight, probability FROM preferences").rows()
    assert found == [{"weight": 1.0, "probability": None}] * 2
    report = pair(store, run="r", lead="v", strategy="all")
    assert (report.preferences, report.written, report.held) == (2, 0, 2)


def strip_journal(path: Path) -> None:
    with sqlite3.connect(path) as db:
        for key, body in db.execute("SELECT id, body FROM rows WHERE tbl = 'preferences'").fetchall():
            values = {name: value for name, value in json.loads(body).items() if name not in NEWER}
            db.execute("UPDATE rows SET body = ? WHERE id = ?", (json.dumps(values), key))


def test_a_preference_against_a_kept_one_is_refused(store: Store) -> None:
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="all", labels=NO_LABELS)
    assert (report.preferences, report.labels) == (0, 0)
    assert report.dropped["contradicts_kept"] == 1
    assert len(store.rows(Preference)) == 2


def test_a_pairing_with_a_name_stands_for_itself(store: Store) -> None:
    """Another judge leads: under a name of its own its pairs and labels may be the opposite of the first ones."""
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="all", name="by x")
    assert (report.preferences, report.labels, report.labels_refused) == (1, 2, 0)
    assert report.held_by == {"all": 2, "by x": 1}
    assert {(row.chosen_key, row.strategy) for row in store.rows(Preference)} == {("a", "all"), ("b", "by x")}
    assert {row.strategy for row in store.rows(Label)} == {"all", "by x"}
    again = pair(store, run="r", lead="x", strategy="all", name="by x")
    assert (again.written, again.labels_written) == (0, 0)


def test_a_label_against_a_kept_one_is_refused_and_counted(store: Store) -> None:
    """By the verifier only a is desirable; by x, which prefers b to a and saw no other, it is the other way round."""
    fill(store)
    pair(store, run="r", lead="v", strategy="all")
    report = pair(store, run="r", lead="x", strategy="all")
    assert (report.labels_refused, report.labels, report.labels_written) == (2, 0, 0)
    assert {row.candidate_key: row.label for row in store.rows(Label)} == dict.fromkeys("bcef", False) | {"a": True}


def test_a_round_goes_on_with_the_name_that_its_labels_once_got(store: Store) -> None:
    """They went by the way to label: the same call again labels nothing twice."""
    fill(store)
    pair(store, run="r", lead="v", name="threshold")
    again = pair(store, run="r", lead="v")
    assert (again.labels, again.labels_written) == (5, 0)
    assert {row.strategy for row in store.rows(Label)} == {"threshold"}
    assert {row.strategy for row in store.rows(Preference)} == {"threshold", "best_worst"}


def test_labels_of_an_earlier_call_that_this_one_does_not_make_are_told(store: Store) -> None:
    fill(store)
    pair(store, run="r", lead="v")
    pairs = pair(store, run="r", lead="v", labels=LabelRule(by="pairs"))
    told = "hold 3 labels of best_worst that an earlier call made and this one does not"
    assert any(told in warning for warning in pairs.warnings)
    for labels in (LabelRule(), NO_LABELS):
        assert not any("labels of" in warning for warning in pair(store, run="r", lead="v", labels=labels).warnings)


def test_a_pairing_is_written_a_few_rows_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can write during a commit, and one of a hundred thousand rows takes long."""
    fill(store)
    monkeypatch.setattr(writing, "COMMIT", 2)
    sizes: list[int] = []
    real = Store.append

    def append(self: Store, table: str, rows: Sequence[Preference | Label]) -> int:
        sizes.append(len(rows))
        return real(self, table, rows)

    monkeypatch.setattr(Store, "append", append)
    report = pair(store, run="r", lead="v", strategy="all")
    assert sizes == [2, 2, 2, 1]
    assert (report.written, report.labels_written) == (2, 5)
    assert (len(store.rows(Preference)), len(store.rows(Label))) == (2, 5)
