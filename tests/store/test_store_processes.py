"""Several processes and threads at one store."""

from __future__ import annotations

import os
import sqlite3
import threading

import pytest
from store_processes import start
from store_rows import candidate

from factory.faults import LockedError
from factory.schema import Call, Candidate, digest
from factory.store import Store
from factory.store.journal import Pending

RACER = """
import sys
from factory.store.journal import Pending
from factory.store import Store
from store_rows import call
with Store.open(sys.argv[1], seal_at=Pending(rows=50, bytes=1 << 20)) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(store.append("calls", [call(i, text=sys.argv[2])]) for i in range(200)))
"""


def test_two_processes_that_append_the_same_keys_give_each_key_once(store: Store) -> None:
    racers = [start(RACER, store.folder, name) for name in ("one", "two")]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    new = [int(racer.communicate("go\n", timeout=60)[0]) for racer in racers]
    calls = store.rows(Call)
    assert sum(new) == 200 == len(calls) == len({c.key for c in calls})
    assert new == [sum(c.text == name for c in calls) for name in ("one", "two")]
    assert store.verify() == []


def test_a_reader_sees_committed_rows_while_a_writer_writes(store: Store) -> None:
    reader = Store.open(store.folder)
    journal = sqlite3.connect(store.folder / "journal.sqlite", isolation_level=None)
    store.append("candidates", [candidate(1)])
    journal.execute("BEGIN IMMEDIATE")  # another writer is in the middle of something
    assert [row.key for row in reader.rows(Candidate)] == [digest("candidate", 1)]
    journal.execute("ROLLBACK")
    store.append("candidates", [candidate(2)])
    assert len(reader.read("candidates")) == 2
    store.seal(force=True)
    assert len(reader.read("candidates")) == 2
    reader.close()


def test_every_read_sees_whole_appends_while_another_thread_writes_and_seals(store: Store) -> None:
    writer = Store.open(store.folder, seal_at=Pending(rows=25, bytes=1 << 20))
    thread = threading.Thread(
        target=lambda: [writer.append("candidates", [candidate(i + j) for j in range(10)]) for i in range(0, 300, 10)]
    )
    thread.start()
    counts = []
    while thread.is_alive():
        counts.append(len(store.read("candidates", columns=["key"])))
    thread.join()
    assert all(count % 10 == 0 for count in counts)
    assert counts == sorted(counts)
    assert len(store.read("candidates")) == 300


def test_a_forked_process_opens_its_own_connection(store: Store) -> None:
    store.append("candidates", [candidate(1)])
    child = os.fork()
    if child == 0:
        os._exit(0 if store.append("candidates", [candidate(1), candidate(2)]) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(store.read("candidates")) == 2


def test_a_writer_that_does_not_end_is_named_as_the_cause(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factory.store.journal.PATIENCE", 0.05)
    waiting = Store.open(store.folder)
    with (
        store._journal.transaction(write=True),
        pytest.raises(LockedError, match="another process is writing to the store"),
    ):
        waiting.append("candidates", [candidate(1)])
    assert waiting.append("candidates", [candidate(1)]) == 1
