from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from store_rows import any_row, call, candidate, judgment, prompt

from factory import crash
from factory.faults import FactoryError, IntegrityError, LockedError
from factory.schema import Call, Candidate, Judgment, as_row, digest
from factory.store import Store, columns, filesystem, journal, parts
from factory.store.journal import APPLICATION, Pending

HERE = Path(__file__).parent
SMALL = Pending(rows=10, bytes=1 << 20)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        yield opened


def run_code(code: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def start(code: str, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
    )


# ------------------------------------------------------------------------------------------------- interleavings


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


# -------------------------------------------------------------------------------------------------------- kills

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


# -------------------------------------------------------------------------------------------------- processes

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


# ----------------------------------------------------------------------------------------------------- full disk


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


# ------------------------------------------------------------------------------------------------------- damage


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


# ------------------------------------------------------------------------------------------------- older, newer


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


# ------------------------------------------------------------------------------------------------------ opening


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


# ------------------------------------------------------------------------------------------ appending and reading


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


# --------------------------------------------------------------------------------------------------------- runs


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
