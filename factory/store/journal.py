"""The journal: one SQLite file with the rows not yet sealed, the manifest of sealed parts, every key, and the runs.

WAL, one write transaction for each change: a finished commit survives a kill (and with synchronous=FULL a power loss).
The keys of sealed rows stay here, so that "is it there already?" is answered in the transaction that writes.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from factory import crash
from factory.faults import FactoryError, IntegrityError, LockedError
from factory.schema import now, unique
from factory.store.columns import DONE, PASSING, Encoded, clean, json_text
from factory.store.parts import Part

FILE = "journal.sqlite"
APPLICATION = 0x50464143  # "PFAC", in SQLite's application_id
VERSION = 1
"""Version of the layout, in SQLite's user_version. A new column of a table is no new version."""
AT_ONCE = 64
"""Rows that one statement inserts at most."""
PATIENCE = 60.0
"""Seconds to wait for another writer."""
CHECKPOINT = 2_000_000
"""Bytes of rows after which a thread moves what the write-ahead log holds into the file, while commits go on."""
LOG_PAGES = 8192
"""Pages of 4 KiB at which a commit does that itself: the log starts anew only when all of it has been moved."""

_LAYOUT = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE keys (
    tbl TEXT, key TEXT, attempt INTEGER, state INTEGER NOT NULL, PRIMARY KEY (tbl, key, attempt)
) WITHOUT ROWID;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL
);
CREATE INDEX rows_by_table ON rows (tbl);
CREATE INDEX rows_by_key ON rows (tbl, key);
CREATE TABLE pending (tbl TEXT PRIMARY KEY, rows INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE parts (
    path TEXT PRIMARY KEY, tbl TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL, footer TEXT NOT NULL, columns TEXT NOT NULL, at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE runs (run TEXT PRIMARY KEY, recipe TEXT NOT NULL, info TEXT NOT NULL, at TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE marks (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, stage TEXT NOT NULL, state TEXT NOT NULL,
    detail TEXT NOT NULL, pid INTEGER NOT NULL, at TEXT NOT NULL
);
CREATE INDEX marks_by_run ON marks (run, id);
"""


class Snapshot(NamedTuple):
    """What one read transaction saw of a table: the sealed parts, and the lines of JSON not yet sealed."""

    parts: list[Part]
    bodies: list[str]


class Pending(NamedTuple):
    """Rows not yet sealed, and the bytes of their JSON."""

    rows: int
    bytes: int


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _settle() -> None:
    for journal in list(_journals):
        journal.settle()


os.register_at_fork(before=_settle)  # a child must not inherit locks of SQLite from a thread that it has not


class Journal:
    """One open journal. Safe between threads (they take turns), processes (SQLite serialises them) and forks."""

    def __init__(self, path: Path, *, synchronous: str) -> None:
        self.path = path
        self._synchronous = synchronous
        self._lock = threading.RLock()
        self._pid = 0
        self._db: sqlite3.Connection | None = None
        self._unmoved = 0  # bytes of rows committed here since a checkpoint began
        self._moving: threading.Thread | None = None
        _journals.add(self)

    # --------------------------------------------------------------------------------------------- transactions

    def _connection(self) -> sqlite3.Connection:
        if self._db is None or self._pid != os.getpid():
            self._db, self._pid = self._connect(), os.getpid()
        return self._db

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False,
                             cached_statements=4 * AT_ONCE)  # fmt: skip
        db.execute(f"PRAGMA synchronous={self._synchronous}")
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
        return db

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction; rolled back when the body raises. SQLite's errors come out as faults with a remedy."""
        with self._lock, self._mapped():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _fault(error, self.path) from error

    def close(self) -> None:
        """Close the connection of this process."""
        with self._lock:
            if self._pid == os.getpid():
                self.settle()
            self._moving = None
            if self._db is not None and self._pid == os.getpid():
                self._db.close()
            self._db = None

    def settle(self) -> None:
        """Wait for the thread that moves the log."""
        moving = self._moving
        if moving is not None and moving.is_alive():
            moving.join()

    # ------------------------------------------------------------------------------------------------- creation

    def create(self, secret: bytes) -> None:
        """Lay out a new file, or leave one that is laid out as it is."""
        with self._mapped():
            self._connection().execute("PRAGMA journal_mode=WAL")
        with self.transaction(write=True) as db:
            if db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION:
                return
            for statement in _LAYOUT.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={VERSION}")
            db.execute("INSERT INTO meta VALUES ('secret', ?)", (secret,))
            crash.point("store.create.before_commit")

    def check(self) -> None:
        """FactoryError when the file is no journal, or one of a newer version."""
        with self.transaction() as db:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION and empty:
            raise no_store(self.path.parent)
        if application != APPLICATION:
            raise IntegrityError("this is no journal of a store", where=str(self.path), todo="name another --store")
        if version > VERSION:
            raise FactoryError(
                f"the store has layout {version}, this program knows {VERSION}",
                where=str(self.path),
                todo="pip install --upgrade preference-factory",
            )

    def secret(self) -> bytes:
        """The store's secret."""
        with self.transaction() as db:
            return bytes(db.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()[0])

    def damage(self) -> list[str]:
        """What SQLite's own check finds; empty when the file is whole."""
        with self.transaction() as db:
            found = [row[0] for row in db.execute("PRAGMA quick_check")]
            held = dict(db.execute("SELECT tbl, count(*) FROM keys GROUP BY tbl"))
            kept = db.execute(
                "SELECT tbl, sum(rows) FROM (SELECT tbl, rows FROM parts"
                " UNION ALL SELECT tbl, count(*) FROM rows GROUP BY tbl) GROUP BY tbl"
            )
            counts = dict(kept)
        faults = [] if found == ["ok"] else found
        return faults + [
            f"{table}: {held.get(table, 0)} keys for {counts.get(table, 0)} rows"
            for table in sorted({*held, *counts})
            if held.get(table) != counts.get(table)
        ]

    # ----------------------------------------------------------------------------------------------------- rows

    def add(self, table: str, rows: Sequence[Encoded]) -> tuple[int, Pending]:
        """Commit the rows whose key and attempt are not there yet; how many those were, and what now waits to be
        sealed in the table."""
        with self.transaction(write=True) as db:
            fresh = rows if self._enter_keys(db, table, rows) else self._fresh(db, table, rows)
            pending = self._insert(db, table, fresh)
            crash.point("store.append.before_commit")
        crash.point("store.append.after_commit")
        self._move_sometimes(sum(len(row.body) for row in fresh))
        return len(fresh), pending

    def _move_sometimes(self, size: int) -> None:
        with self._lock:
            self._unmoved += size
            if self._unmoved >= CHECKPOINT and (self._moving is None or not self._moving.is_alive()):
                self._unmoved = 0
                self._moving = threading.Thread(target=_move, args=(self.path,), name="checkpoint", daemon=True)
                with suppress(RuntimeError):  # no thread to be had: a later commit moves the log itself
                    self._moving.start()

    def _enter_keys(self, db: sqlite3.Connection, table: str, rows: Sequence[Encoded]) -> bool:
        """Enter the keys of all rows; false, and nothing entered, where one is there already: the rare case, found
        without a question for each key."""
        try:
            _insert(db, "keys", [(table, r.key, r.attempt, r.state) for r in rows])
        except sqlite3.IntegrityError:
            db.execute("ROLLBACK")
            db.execute("BEGIN IMMEDIATE")
            return False
        return True

    def _fresh(self, db: sqlite3.Connection, table: str, rows: Sequence[Encoded]) -> list[Encoded]:
        """The rows whose key and attempt are not there yet, each once; their keys are entered."""
        held = set(
            db.execute(
                "SELECT key, attempt FROM keys WHERE tbl = ? AND key IN (SELECT value FROM json_each(?))",
                (table, json.dumps([row.key for row in rows])),
            )
        )
        fresh = list({(r.key, r.attempt): r for r in reversed(rows) if (r.key, r.attempt) not in held}.values())
        fresh.reverse()
        _insert(db, "keys", [(table, r.key, r.attempt, r.state) for r in fresh])
        return fresh

    def _insert(self, db: sqlite3.Connection, table: str, rows: Sequence[Encoded]) -> Pending:
        _insert(db, "rows (tbl, key, body)", [(table, r.key, r.body) for r in rows])
        waiting = db.execute(
            "INSERT INTO pending VALUES (?, ?, ?)"
            " ON CONFLICT (tbl) DO UPDATE SET rows = rows + excluded.rows, bytes = bytes + excluded.bytes"
            " RETURNING rows, bytes",
            (table, len(rows), sum(len(r.body) for r in rows)),
        )
        return Pending(*waiting.fetchone())

    def missing(self, table: str, keys: Sequence[str], *, retry_failed: bool) -> list[str]:
        """The keys, in order and without repeats, that are not there or whose latest attempt is to be made again."""
        latest = (
            "SELECT key, max(attempt), state FROM keys"
            " WHERE tbl = ? AND key IN (SELECT value FROM json_each(?)) GROUP BY key"
        )
        with self.transaction() as db:
            states = {key: state for key, _, state in db.execute(latest, (table, json.dumps(keys)))}
        good = {DONE} if retry_failed else {s for s in set(states.values()) if s != PASSING}
        return [key for key in unique(keys) if states.get(key, PASSING) not in good]

    def known(self, table: str, keys: Sequence[str]) -> list[str]:
        """Those of the keys that have a row, in order of key."""
        query = "SELECT DISTINCT key FROM keys WHERE tbl = ? AND key IN (SELECT value FROM json_each(?)) ORDER BY key"
        with self.transaction() as db:
            return [key for (key,) in db.execute(query, (table, json.dumps(keys)))]

    def snapshot(self, tables: Sequence[str], keys: Sequence[str] | None = None) -> dict[str, Snapshot]:
        """Manifest and unsealed rows of several tables, all from one read transaction.

        With `keys`, only the unsealed rows of those keys.
        """
        chosen = "" if keys is None else " AND key IN (SELECT value FROM json_each(?))"
        more = () if keys is None else (json.dumps(keys),)
        with self.transaction() as db:
            return {
                table: Snapshot(
                    parts=[_part(r) for r in db.execute("SELECT * FROM parts WHERE tbl = ? ORDER BY path", (table,))],
                    bodies=[
                        body
                        for (body,) in db.execute(
                            f"SELECT body FROM rows WHERE tbl = ?{chosen} ORDER BY id",  # noqa: S608
                            (table, *more),
                        )
                    ],
                )
                for table in tables
            }

    def parts(self) -> list[Part]:
        """The whole manifest."""
        with self.transaction() as db:
            return [_part(row) for row in db.execute("SELECT * FROM parts ORDER BY path")]

    def counts(self) -> dict[str, int]:
        """Rows of every table that has any, sealed or not."""
        with self.transaction() as db:
            return dict(db.execute("SELECT tbl, count(*) FROM keys GROUP BY tbl"))

    # -------------------------------------------------------------------------------------------------- sealing

    def pending(self) -> dict[str, Pending]:
        """What waits to be sealed, for each table that has any."""
        with self.transaction() as db:
            return {t: Pending(n, size) for t, n, size in db.execute("SELECT * FROM pending WHERE rows > 0")}

    def oldest(self, table: str, most: Pending) -> tuple[int, list[str]]:
        """Lines of the oldest rows of a table that are not sealed, about `most` of them, and the id of the last."""
        last, bodies, size = 0, [], 0
        with self.transaction() as db:
            for row, body in db.execute("SELECT id, body FROM rows WHERE tbl = ? ORDER BY id", (table,)):
                last, size = row, size + len(body)
                bodies.append(body)
                if len(bodies) >= most.rows or size >= most.bytes:
                    break
        return last, bodies

    def enter(self, part: Part, last: int) -> None:
        """In one transaction, put a part into the manifest and drop the rows up to id `last` that it holds."""
        with self.transaction(write=True) as db:
            _list_part(db, part)
            db.execute("DELETE FROM rows WHERE tbl = ? AND id <= ?", (part.table, last))
            _count_pending(db, part.table)
            crash.point("store.seal.before_commit")
        crash.point("store.seal.after_commit")

    # -------------------------------------------------------------------------------------------------- erasing

    def erase(self, table: str, keys: Sequence[str], replaced: Mapping[str, Part | None]) -> int:
        """In one transaction, drop these keys and their rows, and put in the place of each part named by path the one
        that is written anew without them (None: nothing is left of it). How many rows."""
        listed = json.dumps(keys)
        theirs = "WHERE tbl = ? AND key IN (SELECT value FROM json_each(?))"
        with self.transaction(write=True) as db:
            gone = db.execute(f"DELETE FROM keys {theirs}", (table, listed)).rowcount  # noqa: S608
            db.execute(f"DELETE FROM rows {theirs}", (table, listed))  # noqa: S608
            for path, part in replaced.items():
                db.execute("DELETE FROM parts WHERE path = ?", (path,))
                if part is not None:
                    _list_part(db, part)
            _count_pending(db, table)
        return gone

    def copy(self, path: Path) -> None:
        """The journal as it is at one moment, into a new file, while others go on writing."""
        with self._lock, self._mapped(), closing(sqlite3.connect(path)) as copied:
            self._connection().backup(copied)

    def scrub(self) -> None:
        """Leave nothing of dropped rows in the file and its log. LockedError: another process has them open."""
        with self._lock, self._mapped():
            self.settle()
            db = self._connection()
            db.execute("VACUUM")
            busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LockedError(
                "another process reads the store, so that what was dropped is still in the journal's log",
                where=str(self.path),
                todo="run the command again when it is done",
            )

    # ----------------------------------------------------------------------------------------------------- runs

    def put_run(self, run: str, recipe: str, info: Mapping[str, Any]) -> None:
        """Enter a run, or give one that is there another recipe and info (its time stays)."""
        with self.transaction(write=True) as db:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?)"
                " ON CONFLICT (run) DO UPDATE SET recipe = excluded.recipe, info = excluded.info",
                (run, clean(recipe), json_text(info), now().isoformat()),
            )

    def runs(self) -> list[dict[str, Any]]:
        """Every run as {run, recipe, info, at}, oldest first."""
        with self.transaction() as db:
            found = db.execute("SELECT run, recipe, info, at FROM runs ORDER BY at, run").fetchall()
        return [
            {"run": run, "recipe": recipe, "info": json.loads(info), "at": datetime.fromisoformat(at)}
            for run, recipe, info, at in found
        ]

    def mark(self, run: str, round_: int, stage: str, state: str, detail: Mapping[str, Any] | None) -> None:
        """Write down that a stage of a run has started, is done, or has failed."""
        with self.transaction(write=True) as db:
            db.execute(
                "INSERT INTO marks (run, round, stage, state, detail, pid, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run, round_, stage, state, json_text(detail), os.getpid(), now().isoformat()),
            )

    def marks(self, run: str | None = None) -> list[dict[str, Any]]:
        """The marks of a run (None: of all) as {run, round, stage, state, detail, pid, at}, oldest first."""
        chosen, values = ("", ()) if run is None else (" WHERE run = ?", (run,))
        query = f"SELECT run, round, stage, state, detail, pid, at FROM marks{chosen} ORDER BY id"  # noqa: S608
        with self.transaction() as db:
            found = db.execute(query, values).fetchall()
        names = ("run", "round", "stage", "state", "detail", "pid", "at")
        marks = [dict(zip(names, row, strict=True)) for row in found]
        return [m | {"detail": json.loads(m["detail"]), "at": datetime.fromisoformat(m["at"])} for m in marks]


def _list_part(db: sqlite3.Connection, part: Part) -> None:
    """Enter a part into the manifest."""
    db.execute(
        "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (part.path, part.table, part.rows, part.bytes, part.sha256, part.footer,
         json.dumps(part.columns), now().isoformat()),
    )  # fmt: skip


def _count_pending(db: sqlite3.Connection, table: str) -> None:
    """Count anew what waits to be sealed in a table."""
    db.execute(
        "UPDATE pending SET (rows, bytes) ="
        " (SELECT count(*), coalesce(sum(length(body)), 0) FROM rows WHERE tbl = pending.tbl) WHERE tbl = ?",
        (table,),
    )


def _insert(db: sqlite3.Connection, where: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows with few statements, which stay prepared. (`executemany` hands the interpreter to another thread and
    back for each row.)"""
    for place in range(0, len(rows), AT_ONCE):
        some = rows[place : place + AT_ONCE]
        slots = ", ".join([f"({', '.join('?' * len(some[0]))})"] * len(some))
        db.execute(f"INSERT INTO {where} VALUES {slots}", [value for row in some for value in row])  # noqa: S608


def _move(path: Path) -> None:
    """Move what the write-ahead log holds into the file. Should that fail, a later commit does it or says why not."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def no_store(folder: Path) -> FactoryError:
    """The error for a folder that holds no store."""
    return FactoryError(
        "there is no store here",
        where=str(folder),
        todo="make one with `factory prompts add FILE` or `factory run quickstart`, or name another with --store",
    )


def _part(row: Sequence[Any]) -> Part:
    path, table, rows, size, sha256, footer, columns, _ = row
    return Part(path, table, rows, size, sha256, footer, tuple(json.loads(columns)))


def _fault(error: sqlite3.DatabaseError, path: Path) -> Exception:
    """The fault behind an error of SQLite, by its code; an error that is our own mistake stays as it is."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockedError("another process is writing to the store", where=str(path), todo="try again when it is done")
    if code == sqlite3.SQLITE_FULL:
        return FactoryError("the disk is full", where=str(path), todo="free some space, then run the command again")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IntegrityError("the journal is damaged", where=str(path), todo="restore the store from a backup")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
        return FactoryError(f"the journal cannot be used: {error}", where=str(path), todo="check rights and disk")
    return error
