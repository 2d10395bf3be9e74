"""Full disks, flipped bits, lost parts: found, named, and nothing else lost."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from store_rows import candidate

from factory.faults import FactoryError, IntegrityError
from factory.schema import Candidate, digest
from factory.store import Store, parts


def test_a_full_disk_is_said_and_loses_nothing(store: Store) -> None:
    store.append("candidates", [candidate(1)])
    with store._journal.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(FactoryError, match=r"the disk is full[\s\S]*run the command again"):
        store.append("candidates", [candidate(i, text="long " * 1000) for i in range(2, 50)])
    assert [row.key for row in store.rows(Candidate)] == [candidate(1).key]
    assert store.verify() == []


def test_a_disk_that_takes_no_part_keeps_the_rows_in_the_journal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    store.append("candidates", [candidate(i) for i in range(5)])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(FactoryError, match="a part of candidates cannot be written: No space left on device"):
            store.seal(force=True)
    assert len(store.read("candidates")) == 5
    assert store.seal(force=True) == 5
    assert store.orphans() == []
    assert len(store.read("candidates")) == 5


def sealed(folder: Path, count: int = 300) -> tuple[Store, Path]:
    store = Store.open(folder, create=True)
    store.append("candidates", [candidate(i, text=f"words of answer {i} " * 5, logprob=-i / 3) for i in range(count)])
    store.seal(force=True)
    (path,) = folder.glob("tables/candidates/*.parquet")
    return store, path


def damage_read(store: Store, expected: list[dict[str, Any]]) -> IntegrityError | None:
    try:
        read = store.read("candidates")
    except IntegrityError as error:
        return error
    assert read == expected
    return None


def test_a_flipped_bit_is_found_on_read_and_by_verify(tmp_path: Path) -> None:
    store, path = sealed(tmp_path / "store")
    whole, expected = path.read_bytes(), store.read("candidates")
    chance = random.Random(0)
    found = 0
    for _ in range(150):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        assert store.verify() == [f"{path.relative_to(store.folder)}: it does not match its SHA-256"]
        error = damage_read(store, expected)
        if error is not None:  # else a bit that means nothing, such as one of a page's statistics
            assert (error.exit_code, error.where) == (5, path.relative_to(store.folder).as_posix())
            found += 1
    assert found > 140
    path.write_bytes(whole)
    assert store.verify() == []


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_torn_or_lost_part_is_named(tmp_path: Path, content: bytes | None) -> None:
    store, path = sealed(tmp_path / "store")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IntegrityError, match="a sealed part of candidates is damaged"):
        store.read("candidates")
    assert len(store.verify()) == 1
    assert store.read("prompts") == []


def test_a_part_that_the_manifest_does_not_name_does_not_exist(tmp_path: Path) -> None:
    store, path = sealed(tmp_path / "store")
    shutil.copy(path, path.with_name("part-999999999999.parquet"))
    path.with_name("part-888888888888.parquet").write_bytes(b"")
    assert len(store.read("candidates")) == 300
    assert len(store.orphans()) == 2
    store.seal()
    assert store.orphans() == []
    assert len(store.read("candidates")) == 300


def test_an_error_that_is_not_the_parts_fault_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = sealed(tmp_path / "store")

    def fail(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(parts, "dataset", fail)
    with pytest.raises(OSError, match="Too many open files"):
        store.read("candidates")


def test_keys_that_were_lost_from_the_journal_are_found(tmp_path: Path) -> None:
    store, _ = sealed(tmp_path / "store")
    with sqlite3.connect(store.folder / "journal.sqlite") as db:
        db.execute("DELETE FROM keys WHERE key = ?", (digest("candidate", 1),))
    assert store.verify() == ["journal.sqlite: candidates: 299 keys for 300 rows"]
