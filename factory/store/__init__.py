"""The store: every row that the factory makes, durable from the moment `append` returns.

    STORE/journal.sqlite                     rows not yet sealed, the manifest, the runs (factory/store/journal.py)
    STORE/tables/<table>/part-*.parquet      sealed, immutable, checksummed (factory/store/parts.py)
    STORE/runs/<run>/                        a run's recipe, policies and reports

`with Store.open("store", create=True) as store: store.append("prompts", rows)`. Several processes may write at once;
readers take no lock: one SQLite transaction gives them the manifest and the unsealed rows together.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from factory.faults import FactoryError, LockedError
from factory.schema import TABLES, Call, Row, unique
from factory.store import filesystem, locks, parts
from factory.store.columns import (
    clean,
    columns_of,
    condition,
    decode,
    encode,
    fill,
    from_bodies,
    has_attempts,
    known_column,
)
from factory.store.journal import FILE, Journal, Pending, Snapshot, no_store

if TYPE_CHECKING:
    import pyarrow as pa

    from factory.query import QueryResult

R = TypeVar("R", bound=Row)
State = Literal["started", "done", "failed"]
Where = Mapping[str, Any]

log = logging.getLogger(__name__)

SEAL_AT = Pending(rows=20_000, bytes=64 << 20)
"""A table whose unsealed rows reach either is sealed by the append that got there; a part holds about as much."""
SEAL_PATIENCE = 60.0
SYNCHRONOUS = "FACTORY_SYNCHRONOUS"
_LEFT_BEHIND = shutil.ignore_patterns("locks", "*.lock", "*.writing", "checkpoints", ".*")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Store:
    """A store on disk. Use `Store.open`; safe between threads, processes and forks."""

    def __init__(self, folder: Path, journal: Journal, seal_at: Pending) -> None:
        self.folder = folder
        self._journal = journal
        self._seal_at = seal_at
        self._places = parts.Places()

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        create: bool = False,
        synchronous: Literal["NORMAL", "FULL"] | None = None,
        seal_at: Pending = SEAL_AT,
    ) -> Self:
        """Open the store in `folder`; `create` makes one where there is none.

        synchronous: NORMAL survives a kill of the process, FULL also a loss of power (each append waits for the disk);
        None takes FACTORY_SYNCHRONOUS, else NORMAL. FactoryError: no store, a network file system, a store of a newer
        version; IntegrityError: a damaged journal.
        """
        home = Path(folder).expanduser().absolute()
        if filesystem.is_network(home):
            raise FactoryError(
                f"a store cannot lie on a network file system ({filesystem.kind(home)}): its journal would be damaged",
                where=str(home),
                todo="name a folder on a local disk with --store or FACTORY_STORE, and copy it away when done",
            )
        path = home / FILE
        if not create and not path.is_file():
            raise no_store(home)
        journal = Journal(path, synchronous=_synchronous(synchronous))
        if create:
            _make(home, journal)
        journal.check()
        return cls(home, journal, seal_at)

    def close(self) -> None:
        """Close the journal. What was appended is durable already."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def secret(self) -> bytes:
        """32 random bytes made with the store, for HMAC nonces that a resumed run renders the same."""
        return self._journal.secret()

    # -------------------------------------------------------------------------------------------------- writing

    def append(self, table: str, rows: Iterable[Row | Mapping[str, Any]]) -> int:
        """Commit rows durably, all or none; those whose key (calls: key and attempt) is there already are ignored.

        Returns the number of new rows. FactoryError names table, column and value of a row that does not fit.
        """
        encoded = [encode(table, row) for row in rows]
        if not encoded:
            columns_of(table)
            return 0
        count, pending = self._journal.add(table, encoded)
        if self._is_full(pending):
            self._seal_unless_held(table)
        return count

    def missing(self, table: str, keys: Iterable[str], *, retry_failed: bool = False) -> list[str]:
        """The keys that have no row yet, in order and without repeats.

        A call whose latest attempt failed passingly (with `retry_failed`: failed in any way) counts as missing.
        """
        columns_of(table)
        return self._journal.missing(table, [clean(k) for k in keys], retry_failed=retry_failed)

    def seal(self, force: bool = False) -> int:
        """Move rows from the journal to Parquet parts; how many. Without `force` only tables that have enough.

        LockedError: another process has been sealing for a minute.
        """
        with locks.seal_lock(self.folder, SEAL_PATIENCE):
            self._clear_orphans()
            waiting = self._journal.pending()
            return sum(self._seal_table(t) for t, pending in waiting.items() if force or self._is_full(pending))

    def _is_full(self, pending: Pending) -> bool:
        return pending.rows >= self._seal_at.rows or pending.bytes >= self._seal_at.bytes

    def _seal_unless_held(self, table: str) -> None:
        try:
            with locks.seal_lock(self.folder, 0):
                self._clear_orphans()
                self._seal_table(table)
        except LockedError:
            log.debug("%s is left to the process that is sealing", table)

    def _seal_table(self, table: str) -> int:
        sealed = 0
        while True:
            last, bodies = self._journal.oldest(table, self._seal_at)
            if not bodies:
                return sealed
            data = from_bodies(table, bodies)
            part = parts.write(self.folder, table, f"part-{last:012d}", data)
            self._journal.enter(part, last)
            sealed += part.rows

    def erase(self, table: str, keys: Iterable[str]) -> int:
        """Drop the rows of these keys for good: what must not be kept. How many rows.

        Sealed parts that hold any are written anew without them; a process that reads those at that moment fails. What
        was dropped leaves the disk with `scrub`. LockedError: another process has been sealing for a minute.
        """
        wanted = [clean(key) for key in unique(keys)]
        with locks.seal_lock(self.folder, SEAL_PATIENCE):
            self._clear_orphans()
            replaced = {
                part.path: self._without(part, left)
                for part in self._journal.parts()
                if part.table == table and (left := parts.without(self.folder, part, wanted)) is not None
            }
            gone = self._journal.erase(table, wanted, replaced)
            self._clear_orphans()
        return gone

    def _without(self, part: parts.Part, left: pa.Table) -> parts.Part | None:
        if not left.num_rows:
            return None
        name = f"{Path(part.path).stem.split('~')[0]}~{secrets.token_hex(4)}"
        return parts.write(self.folder, part.table, name, fill(part.table, left))

    def scrub(self) -> None:
        """Leave nothing of erased rows in the journal's file. LockedError: another process reads it; do it again."""
        self._journal.scrub()

    def copy(self, folder: Path) -> None:
        """This store as it is at one moment, into a folder that is there and empty, while others go on writing.

        Files of runs are copied as they lie; locks, drafts and checkpoints stay behind. FactoryError: a file went
        meanwhile.
        """
        self._journal.copy(folder / FILE)
        with closing(Journal(folder / FILE, synchronous="NORMAL")) as copied:
            listed = copied.parts()
        try:
            for part in listed:
                (folder / part.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / part.path, folder / part.path)
            if (runs := self.folder / "runs").is_dir():
                shutil.copytree(runs, folder / "runs", symlinks=True, ignore=_LEFT_BEHIND)
        except (FileNotFoundError, shutil.Error) as error:
            what = "the store lost files while it was copied"
            raise FactoryError(what, where=str(self.folder), todo="do it again") from error

    def _clear_orphans(self) -> None:
        for path in parts.orphans(self.folder, self._journal.parts()):
            log.info("removed %s, which a killed process left", path)
            path.unlink(missing_ok=True)

    # -------------------------------------------------------------------------------------------------- reading

    def table(self, table: str, columns: Sequence[str] | None = None, where: Where | None = None) -> pa.Table:
        """A snapshot of a table as Arrow, ordered by key (calls: key and attempt).

        where: a value each column equals, or a list of values it is in; None is null. FactoryError: an unknown column;
        IntegrityError: a damaged part.
        """
        chosen = condition(table, where or {})
        snapshot = self._journal.snapshot([table], _picked_keys(where))[table]
        return self._joined(table, snapshot, columns or list(columns_of(table)), where or {}, chosen)

    def read(
        self, table: str, *, columns: Sequence[str] | None = None, where: Where | None = None
    ) -> list[dict[str, Any]]:
        """`table` as dicts of Python values: JSON columns decoded, messages as lists of dicts."""
        return decode(table, self.table(table, columns, where))

    def rows(self, row_type: type[R], where: Where | None = None) -> list[R]:
        """`read` as the dataclasses of factory/schema.py."""
        return [row_type(**row) for row in self.read(row_type.TABLE, where=where)]

    def latest_calls(self, keys: Iterable[str]) -> dict[str, Call]:
        """The latest attempt of each of the keys that is held."""
        known = self._journal.known(Call.TABLE, [clean(key) for key in unique(keys)])
        calls = self.rows(Call, {"key": known}) if known else []
        return {call.key: call for call in calls}  # ordered by attempt: the last one stays

    def counts(self) -> dict[str, int]:
        """Rows of every table."""
        return dict.fromkeys(TABLES, 0) | self._journal.counts()

    def snapshot(self) -> dict[str, Snapshot]:
        """Manifest and unsealed rows of all tables, from one moment."""
        return self._journal.snapshot(list(TABLES))

    def sql(
        self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None, limit: int | None = None
    ) -> QueryResult:
        """One SELECT over the tables and views, in a guarded process (factory/query/)."""
        from factory.query import run

        return run(self, query, parameters, limit=limit)

    def _joined(self, table: str, snapshot: Snapshot, columns: Sequence[str], where: Where, chosen: Any) -> pa.Table:
        import pyarrow as pa

        order = ["key", "attempt"] if has_attempts(table) else ["key"]
        carried = unique([*(known_column(table, name).name for name in columns), *order])
        found = [_filtered(from_bodies(table, snapshot.bodies), chosen).select(carried)]
        if snapshot.parts:
            chosen = condition(table, where, parts.absent_columns(table, snapshot.parts))
            with parts.guarded(self.folder, snapshot.parts):
                data, keys = parts.dataset(self.folder, table, snapshot.parts), _picked_keys(where)
                picked = data if keys is None else self._places.narrowed(data, keys)
                sealed = picked.to_table(columns=carried, filter=chosen)
            found.append(fill(table, sealed))
        return pa.concat_tables(found).sort_by([(name, "ascending") for name in order]).select(list(columns))

    # ----------------------------------------------------------------------------------------------------- runs

    def run_folder(self, run: str) -> Path:
        """STORE/runs/<run>/, made if need be. FactoryError: a name that cannot be a folder's."""
        check_run_name(run)
        folder = self.folder / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def run_lock(self, run: str) -> Iterator[None]:
        """Hold a run: `with store.run_lock(run):`. LockedError says who holds it; the holder's children pass. What is
        refused before anything of a new run is there leaves no folder of it."""
        fresh = not (self.folder / "runs" / run).exists()
        folder = self.run_folder(run)
        with locks.run_lock(folder, run):
            try:
                yield
            except Exception:
                if fresh and self.get_run(run) is None and [path.name for path in folder.iterdir()] == ["locks"]:
                    shutil.rmtree(folder, ignore_errors=True)
                raise

    def is_locked(self, run: str) -> bool:
        """Is the run held by a process that lives?"""
        return locks.is_locked(self.folder / "runs" / run)

    def put_run(self, run: str, recipe_yaml: str, info: Mapping[str, Any]) -> None:
        """Keep a run's resolved recipe (also as runs/<run>/recipe.yaml) and what else is known of it."""
        folder = self.run_folder(run)
        filesystem.write_whole(folder / "recipe.yaml", clean(recipe_yaml))
        self._journal.put_run(run, recipe_yaml, info)

    def get_run(self, run: str) -> dict[str, Any] | None:
        """{run, recipe, info, at} of a run, None when it is unknown."""
        return next((found for found in self.runs() if found["run"] == run), None)

    def runs(self) -> list[dict[str, Any]]:
        """Every run as {run, recipe, info, at}, oldest first."""
        return self._journal.runs()

    def mark(self, run: str, round: int, stage: str, state: State, detail: Mapping[str, Any] | None = None) -> None:
        """Write down that a stage of a round has started, is done, or has failed."""
        self._journal.mark(run, round, stage, state, detail)

    def marks(self, run: str | None = None) -> list[dict[str, Any]]:
        """What was marked of a run (None: of all) as {run, round, stage, state, detail, pid, at}, oldest first."""
        return self._journal.marks(run)

    # ------------------------------------------------------------------------------------------------- checking

    def verify(self) -> list[str]:
        """Every fault found by checksum, of the journal and of each part; empty when the store is whole."""
        found = [f"{FILE}: {fault}" for fault in self._journal.damage()]
        faults = ((part, parts.fault(self.folder, part)) for part in self._journal.parts())
        return found + [f"{part.path}: {fault}" for part, fault in faults if fault]

    def orphans(self) -> list[Path]:
        """Files among the parts that do not belong to the store; the next seal removes them."""
        return parts.orphans(self.folder, self._journal.parts())


def check_run_name(run: str) -> None:
    """FactoryError: a run cannot be called that, since no folder can."""
    if not _RUN_NAME.fullmatch(run):
        raise FactoryError(
            f"{run!r} cannot name a run",
            todo="use up to 100 letters, digits, dots, dashes and underscores, a letter or digit first",
        )


def _make(home: Path, journal: Journal) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FactoryError(f"the store's folder cannot be made: {error.strerror}", where=str(home)) from error
    with locks.seal_lock(home, SEAL_PATIENCE):
        journal.create(secrets.token_bytes(32))


def _synchronous(wanted: str | None) -> str:
    value = (wanted or os.environ.get(SYNCHRONOUS) or "NORMAL").upper()
    if value not in ("NORMAL", "FULL"):
        raise FactoryError(f"synchronous is NORMAL or FULL, not {value!r}", where=SYNCHRONOUS)
    return value


def _picked_keys(where: Where | None) -> list[str] | None:
    if not where or where.get("key") is None:
        return None
    keys = where["key"]
    return [clean(k) for k in ([keys] if isinstance(keys, str) else keys)]


def _filtered(data: pa.Table, condition: Any) -> pa.Table:
    return data if condition is None else data.filter(condition)
