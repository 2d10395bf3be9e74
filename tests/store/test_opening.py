"""Opening a store: older and newer ones, files that are none, file systems, options."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest
from store_rows import candidate, judgment

from factory.faults import FactoryError, IntegrityError
from factory.schema import Candidate, Judgment
from factory.store import Store, columns, filesystem, parts
from factory.store.journal import APPLICATION, Pending


def test_a_part_from_before_a_column_was_added_reads_with_its_default(store: Store) -> None:
    store.append("judgments", [judgment(i, round=i % 2) for i in range(6)])
    last, bodies = store._journal.oldest("judgments", Pending(100, 1 << 20))
    old = columns.from_bodies("judgments", bodies).drop_columns(["canary", "canary_name", "detail"])
    store._journal.enter(parts.write(store.folder, "judgments", "part-old", old), last)
    store.append("judgments", [judgment(i, canary=True, canary_name="empty") for i in range(6, 8)])
    read = store.rows(Judgment)
    assert len(read) == 8
    assert sorted((r.canary, r.canary_name or "", r.detail) for r in read) == (
        [(False, "", None)] * 6 + [(True, "empty", None)] * 2
    )
    assert len(store.read("judgments", where={"canary": False})) == 6
    assert len(store.read("judgments", where={"canary": True})) == 2
    assert len(store.read("judgments", where={"canary": False, "round": 1}, columns=["score"])) == 3
    assert len(store.read("judgments", where={"canary_name": None})) == 6


def test_columns_that_this_program_does_not_know_are_passed_over(store: Store) -> None:
    store.append("candidates", [candidate(1), candidate(2)])
    last, bodies = store._journal.oldest("candidates", Pending(100, 1 << 20))
    data = columns.from_bodies("candidates", bodies)
    newer = data.append_column("mood", pa.array(["calm", "calm"]))
    store._journal.enter(parts.write(store.folder, "candidates", "part-new", newer), last)
    with sqlite3.connect(store.folder / "journal.sqlite") as db:
        body = json.dumps(json.loads(columns.encode("candidates", candidate(3)).body) | {"mood": "wild"})
        db.execute("INSERT INTO rows (tbl, key, body) VALUES ('candidates', 'x', ?)", (body,))
    assert {c.key for c in store.rows(Candidate)} == {candidate(i).key for i in (1, 2, 3)}


def test_a_store_of_a_newer_version_is_refused_with_the_remedy(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.folder / "journal.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(FactoryError, match=r"layout 99, this program knows 1[\s\S]*pip install --upgrade"):
        Store.open(store.folder)


@pytest.mark.parametrize("content", [b"", b"no database, but a text that is long enough" * 100])
def test_a_file_that_is_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.sqlite").write_bytes(content)
    with pytest.raises(FactoryError) as caught:
        Store.open(tmp_path)
    assert caught.value.exit_code == (5 if content else 2)


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("CREATE TABLE theirs (a)")
    with pytest.raises(IntegrityError, match="no journal of a store"):
        Store.open(tmp_path)


def test_the_journal_says_what_it_is(store: Store) -> None:
    with sqlite3.connect(store.folder / "journal.sqlite") as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_no_store_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FactoryError, match=r"there is no store here[\s\S]*factory prompts add"):
        Store.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    monkeypatch.setattr(filesystem.kind, "__defaults__", (mounts,))
    monkeypatch.setattr(filesystem.is_network, "__defaults__", (mounts,))
    with pytest.raises(FactoryError, match=r"network file system \(nfs4\)[\s\S]*local disk"):
        Store.open(tmp_path / "store", create=True)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("value", "level"), [("NORMAL", 1), ("full", 2)])
def test_synchronous_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, level: int) -> None:
    monkeypatch.setenv("FACTORY_SYNCHRONOUS", value)
    with Store.open(tmp_path, create=True) as store, store._journal.transaction() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (level,)


def test_a_wrong_synchronous_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORY_SYNCHRONOUS", "sometimes")
    with pytest.raises(FactoryError, match="NORMAL or FULL"):
        Store.open(tmp_path, create=True)


def test_the_secret_stays(tmp_path: Path) -> None:
    with Store.open(tmp_path, create=True) as store:
        secret = store.secret
    with Store.open(tmp_path, create=True) as again:
        assert again.secret == secret
        assert len(secret) == 32
    with Store.open(tmp_path / "other", create=True) as other:
        assert other.secret != secret
