"""Runs, their marks, and the one process that holds each."""

from __future__ import annotations

import os
import time

import pytest
from store_processes import start

from factory.faults import FactoryError, LockedError
from factory.store import Store


def test_runs_and_marks(store: Store) -> None:
    assert store.get_run("a") is None
    store.put_run("a", "rounds: 2\n", {"seed": 1})
    store.put_run("b", "rounds: 3\n", {})
    first = store.get_run("a")
    store.put_run("a", "rounds: 4\n", {"seed": 2})
    again = store.get_run("a")
    assert first is not None
    assert again is not None
    assert (again["recipe"], again["info"], again["at"]) == ("rounds: 4\n", {"seed": 2}, first["at"])
    assert [run["run"] for run in store.runs()] == ["a", "b"]
    assert (store.folder / "runs" / "a" / "recipe.yaml").read_text() == "rounds: 4\n"
    store.mark("a", 1, "generate", "started")
    store.mark("a", 1, "generate", "done", {"calls": 4})
    store.mark("b", 1, "generate", "failed", {"why": "é"})
    marks = store.marks("a")
    assert [(m["round"], m["stage"], m["state"], m["detail"]) for m in marks] == [
        (1, "generate", "started", None), (1, "generate", "done", {"calls": 4}),
    ]  # fmt: skip
    assert marks[0]["pid"] == os.getpid()
    assert len(store.marks()) == 3


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "-x", "a b", "x" * 101, "é"])
def test_a_run_is_named_so_that_it_can_be_a_folder(store: Store, name: str) -> None:
    with pytest.raises(FactoryError, match="cannot name a run"):
        store.run_folder(name)


LOCKER = """
import sys
from factory.store import Store
with Store.open(sys.argv[1]) as store, store.run_lock("r"):
    print("held", flush=True)
    sys.stdin.readline()
"""


PARENT = """
import subprocess, sys
from factory.store import Store
with Store.open(sys.argv[1]) as store, store.run_lock("r"):
    child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdout=subprocess.PIPE, text=True)
    print(child.stdout.readline().strip(), child.pid, flush=True)
    child.wait()
"""


def test_a_run_is_held_by_one_process_which_is_named(store: Store) -> None:
    other = start(LOCKER, store.folder)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert store.is_locked("r")
    with pytest.raises(LockedError, match=f"run r is held by process {other.pid} on ") as caught, store.run_lock("r"):
        pass
    assert caught.value.exit_code == 4
    other.communicate("done\n", timeout=30)
    assert not store.is_locked("r")
    with store.run_lock("r"), store.run_lock("r"):
        assert store.is_locked("r")
    assert not store.is_locked("r")


def test_a_killed_holder_frees_the_run(store: Store) -> None:
    from factory.store.locks import stale_notes

    other = start(LOCKER, store.folder)
    assert other.stdout is not None
    other.stdout.readline()
    assert stale_notes(store.folder) == []
    other.kill()
    other.communicate()
    assert [note.name for note in stale_notes(store.folder)] == ["run.json"]
    with store.run_lock("r"):
        assert stale_notes(store.folder) == []
    assert stale_notes(store.folder) == []


def test_a_child_passes_and_outlives_a_killed_parent_with_the_run_held(store: Store) -> None:
    parent = start(PARENT, store.folder, LOCKER)
    assert parent.stdout is not None
    said, child = parent.stdout.readline().split()
    assert said == "held"
    parent.kill()
    parent.wait()
    assert store.is_locked("r")
    with pytest.raises(LockedError, match=f"held by process {child}"), store.run_lock("r"):
        pass
    assert parent.stdin is not None
    parent.stdin.close()  # the child shares it, and ends when it reads the end
    for _ in range(200):
        if not store.is_locked("r"):
            break
        time.sleep(0.05)
    with store.run_lock("r"):
        assert store.is_locked("r")
