"""A kill at any point loses nothing acknowledged and doubles nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from store_processes import HERE, SMALL, start
from store_rows import any_row, candidate

from factory import crash
from factory.schema import Candidate, digest
from factory.store import Store


def run_code(code: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@settings(max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
class Interleavings(RuleBasedStateMachine):
    """Any order of append, seal, reopen and second writer reads back exactly what was appended first for each key."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(os.environ["STORE_TEST_FOLDER"]) / os.urandom(8).hex()
        self.store = Store.open(self.folder, create=True, seal_at=SMALL)
        self.model: dict[str, dict[tuple[str, int], dict[str, Any]]] = {"labels": {}, "calls": {}}

    @rule(target=keys, key=st.text(min_size=1, max_size=6))
    def a_key(self, key: str) -> str:
        return key

    @rule(data=st.data(), table=st.sampled_from(["labels", "calls"]))
    def append(self, data: st.DataObject, table: str) -> None:
        rows = data.draw(st.lists(any_row(table, self.keys | st.text(min_size=1, max_size=6)), max_size=6))
        new = 0
        for row in rows:
            identity = (row["key"], row.get("attempt", 0))
            new += identity not in self.model[table]
            self.model[table].setdefault(identity, row)
        assert self.store.append(table, rows) == new

    @rule(force=st.booleans())
    def seal(self, force: bool) -> None:
        self.store.seal(force=force)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder, seal_at=SMALL)

    @rule(keys=st.lists(keys, max_size=4), retry=st.booleans())
    def missing(self, keys: list[str], retry: bool) -> None:
        wanted = [k for k in dict.fromkeys(keys) if self._is_missing("calls", k, retry)]
        assert self.store.missing("calls", keys, retry_failed=retry) == wanted

    def _is_missing(self, table: str, key: str, retry: bool) -> bool:
        attempts = [row for (held, _), row in self.model[table].items() if held == key]
        if not attempts:
            return True
        last = max(attempts, key=lambda row: row["attempt"])
        return last["failure"] is not None and (retry or last["passing"])

    @invariant()
    def reads_back_what_was_appended(self) -> None:
        for table, rows in self.model.items():
            expected = [rows[identity] for identity in sorted(rows, key=lambda i: (i[0].encode(), i[1]))]
            assert self.store.read(table) == expected
        assert self.store.verify() == []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


class TestInterleavings(Interleavings.TestCase):  # type: ignore[misc,name-defined]
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STORE_TEST_FOLDER", str(tmp_path))


WRITER = """
import sys
from factory.store.journal import Pending
from factory.store import Store
from store_rows import candidate
with Store.open(sys.argv[1], create=True, seal_at=Pending(rows=20, bytes=1 << 20)) as store:
    print("open", flush=True)
    for start in range(0, 100, 7):
        rows = [candidate(i) for i in range(start, min(start + 7, 100))]
        store.append("candidates", rows)
        print(*[row.key for row in rows], flush=True)
    store.seal(force=True)
    print("sealed", flush=True)
"""


ALL = sorted(digest("candidate", i) for i in range(100))


@pytest.mark.parametrize(
    ("point", "passing"),
    [("store.create.before_commit", 1)]  # a store is made once
    + [(p, n) for p in crash.POINTS if p.startswith(("store.append", "store.seal")) for n in (1, 3)],
)
def test_a_kill_loses_nothing_acknowledged_and_doubles_nothing(tmp_path: Path, point: str, passing: int) -> None:
    folder = tmp_path / "store"
    killed = run_code(WRITER, folder, FACTORY_CRASH=f"{point}:{passing}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    acknowledged = {key for line in killed.stdout.splitlines() for key in line.split() if len(key) == 32}
    if killed.stdout:
        with Store.open(folder) as store:
            held = [row["key"] for row in store.read("candidates", columns=["key"])]
            assert len(set(held)) == len(held)
            assert acknowledged <= set(held)
            assert store.verify() == []
    again = run_code(WRITER, folder)
    assert again.stdout.endswith("sealed\n"), again.stderr
    with Store.open(folder) as store:
        assert [row.key for row in store.rows(Candidate)] == ALL
        assert store.rows(Candidate) == sorted((candidate(i) for i in range(100)), key=lambda c: c.key)
        assert store.verify() == []
        assert store.orphans() == []
        assert list((folder / "tables").glob("*/*.tmp")) == []


@pytest.mark.parametrize("point", ["store.seal.after_write", "store.seal.after_rename"])
def test_what_a_killed_seal_left_is_reported_ignored_and_removed(tmp_path: Path, point: str) -> None:
    killed = run_code(WRITER, tmp_path / "store", FACTORY_CRASH=point)
    assert killed.returncode == -signal.SIGKILL
    with Store.open(tmp_path / "store") as store:
        before = store.read("candidates")
        assert len(store.orphans()) == 1
        store.seal(force=True)
        assert store.orphans() == []
        assert store.read("candidates") == before


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(30))
def test_two_writers_killed_at_random_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "store"
    Store.open(folder, create=True).close()
    acknowledged: set[str] = set()
    for _ in range(4):
        writers = [start(WRITER, folder) for _ in range(2)]
        time.sleep(0.2 + chance.random() / 2)
        for writer in writers:
            writer.kill()
            acknowledged |= {key for line in writer.communicate()[0].splitlines() for key in line.split()}
    assert run_code(WRITER, folder).stdout.endswith("sealed\n")
    with Store.open(folder) as store:
        held = [row["key"] for row in store.read("candidates", columns=["key"])]
        assert held == ALL
        assert {key for key in acknowledged if len(key) == 32} <= set(held)
        assert store.verify() == []
