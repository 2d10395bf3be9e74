"""The journal's log is moved beside the commits, and full tables are sealed into parts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from store_processes import SMALL
from store_rows import call, candidate, prompt

from factory.faults import LockedError
from factory.schema import Call, Candidate
from factory.store import Store, journal, parts
from factory.store.journal import Pending


def test_the_log_is_moved_beside_the_commits_and_ends_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No commit does it, no row is lost, and the thread has ended with the store."""
    monkeypatch.setattr(journal, "CHECKPOINT", 50_000)
    names: set[str] = set()
    real = journal._move

    def move(path: Path) -> None:
        names.add(threading.current_thread().name)
        real(path)

    monkeypatch.setattr(journal, "_move", move)
    with Store.open(tmp_path / "store", create=True) as store:
        for start in range(0, 400, 10):
            store.append("calls", [call(n, text="x" * 1000) for n in range(start, start + 10)])
        assert len(store.read("calls")) == 400
    assert names == {"checkpoint"}
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    assert len(Store.open(tmp_path / "store").read("calls")) == 400


def test_a_fork_waits_for_the_thread_that_moves_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child would inherit SQLite's locks from a thread that it has not."""
    monkeypatch.setattr(journal, "CHECKPOINT", 1)
    alive: list[str] = []
    monkeypatch.setattr(journal, "_move", lambda path: time.sleep(0.3))
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("calls", [call(1)])
        child = os.fork()
        if child == 0:
            os._exit(0)
        alive += [thread.name for thread in threading.enumerate() if thread.name == "checkpoint"]
        os.waitpid(child, 0)
    assert alive == []


def test_a_log_that_cannot_be_moved_is_left_to_a_later_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CHECKPOINT", 1)
    real = journal._move
    monkeypatch.setattr(journal, "_move", lambda path: real(tmp_path / "not there" / path.name))
    with Store.open(tmp_path / "store", create=True) as store:
        store.append("calls", [call(n) for n in range(10)])
        assert len(store.read("calls")) == 10


def test_a_table_is_sealed_by_the_append_that_fills_it(tmp_path: Path) -> None:
    with Store.open(tmp_path, create=True, seal_at=Pending(rows=5, bytes=1 << 20)) as store:
        store.append("candidates", [candidate(i) for i in range(4)])
        assert store._journal.pending()["candidates"].rows == 4
        store.append("candidates", [candidate(4)])
        store.append("prompts", [prompt(1)])
        assert "candidates" not in store._journal.pending()
        assert store.seal() == 0
        assert [part.rows for part in store._journal.parts()] == [5]
    with Store.open(tmp_path, seal_at=Pending(rows=1000, bytes=500)) as store:
        store.append("candidates", [candidate(5, text="long " * 200)])
        assert [part.rows for part in store._journal.parts()] == [5, 1]


def test_a_large_append_becomes_several_parts(tmp_path: Path) -> None:
    with Store.open(tmp_path, create=True, seal_at=SMALL) as store:
        store.append("candidates", [candidate(i) for i in range(35)])
        assert [part.rows for part in store._journal.parts()] == [10, 10, 10, 5]
        assert len({c.key for c in store.rows(Candidate)}) == 35


def test_a_seal_waits_for_no_reader_and_a_held_one_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("factory.store.SEAL_PATIENCE", 0.05)
    other = Store.open(store.folder, seal_at=Pending(rows=1, bytes=1))
    with FileLock(store.folder / "seal.lock"):
        assert other.append("candidates", [candidate(1)]) == 1
        with pytest.raises(LockedError, match="sealed by another process"):
            other.seal()
    assert other.seal() == 1


def test_what_is_wanted_of_a_few_keys_reads_their_row_groups_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts of six and four rows in groups of two, each call with both of its attempts in one."""
    monkeypatch.setattr(parts, "ROW_GROUP", 2)
    read: list[int] = []
    real = parts.Places.narrowed

    def narrowed(self: parts.Places, data: ds.FileSystemDataset, keys: Collection[str]) -> ds.FileSystemDataset:
        found = real(self, data, keys)
        read.append(found.to_table(columns=["key"]).num_rows)
        return found

    monkeypatch.setattr(parts.Places, "narrowed", narrowed)
    with Store.open(tmp_path, create=True, seal_at=Pending(rows=6, bytes=1 << 20)) as store:
        store.append("calls", [call(i, attempt) for i in range(5) for attempt in (1, 2)])
        store.append("calls", [call(5), call(6), call(7)])
        assert [part.rows for part in store._journal.parts()] == [6, 4]
        for number in range(8):
            held = store.rows(Call, {"key": call(number).key})
            assert [(row.text, row.attempt) for row in held] == [
                (f"answer {number}", attempt) for attempt in ((1, 2) if number < 5 else (1,))
            ]
        assert read == [2, 2, 2, 2, 2, 0, 0, 0]
        assert len(store.rows(Call, {"key": [call(n).key for n in (0, 4, 6)], "attempt": 1})) == 3
        assert store.rows(Call, {"key": "nowhere"}) == []
        store.seal(force=True)
        assert store.latest_calls([call(7).key])[call(7).key].text == "answer 7"
